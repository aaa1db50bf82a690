package punch

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/udx"
)

// samples are where others saw one socket.
type samples []sample

type sample struct {
	addr netip.AddrPort
	hits int
}

func (s *samples) add(a netip.AddrPort) {
	if !a.IsValid() || a.Port() == 0 {
		return
	}
	for i := range *s {
		if (*s)[i].addr == a {
			(*s)[i].hits++
			// The best first.
			slices.SortStableFunc(*s, func(a, b sample) int { return b.hits - a.hits })
			return
		}
	}
	*s = append(*s, sample{a, 1})
}

// verdict tells what kind of router they were made through, and at which addresses the
// socket may be reached (specs/hyperdht.md, section 5.1).
func (s samples) verdict() (packet.Firewall, []netip.AddrPort) {
	n := 0
	hosts := map[netip.Addr]int{}
	for _, x := range s {
		n += x.hits
		hosts[x.addr.Addr()]++
	}
	if n < 3 {
		return packet.Unknown, nil
	}
	kind := packet.Unknown
	switch best := s[0].hits; {
	case best >= 3:
		kind = packet.Consistent
	case best == 1:
		kind = packet.Random
	case len(hosts) == 1 && n > 3, n > 4:
		kind = packet.Random
	case len(s) >= 2 && s[1].hits >= 2 && s[0].addr.Addr() != s[1].addr.Addr():
		kind = packet.Consistent // two ways out
	}
	switch kind {
	case packet.Random:
		return kind, []netip.AddrPort{netip.AddrPortFrom(s[0].addr.Addr(), 0)}
	case packet.Consistent:
		var out []netip.AddrPort
		for i, x := range s {
			if x.hits >= 2 || i < 2 {
				out = append(out, x.addr)
			}
		}
		return kind, out
	}
	return kind, nil
}

const (
	// askNodes is how many nodes are asked where they see a socket.
	askNodes = 4
	// askTime is how long they have to answer.
	askTime = time.Second
	// sockets is how many are tried until one has a verdict.
	sockets = 3
	// fewTime is for how long others are looked for, every fewWait, where too few are known or
	// none answers: the network may have come back just now.
	fewTime = 5 * time.Second
	fewWait = 100 * time.Millisecond
)

// analyze asks nodes where they see the socket, until there is a verdict.
func (p *Puncher) analyze(ctx context.Context) {
	defer close(p.analyzed)
	late := time.Now().Add(fewTime)
	for tried := 0; tried < sockets; {
		p.mu.Lock()
		sock := p.sock
		p.mu.Unlock()
		asked := p.sampleAll(ctx, sock)
		if ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		kind, _ := p.seen.verdict()
		again := kind == packet.Unknown && !p.frozen && !p.closed
		if few := asked < askNodes || len(p.seen) == 0; again && few && time.Now().Before(late) {
			p.seen = nil
			p.mu.Unlock()
			select {
			case <-time.After(fewWait):
			case <-ctx.Done():
			}
			continue
		}
		tried++
		again = again && len(p.seen) > 0
		if again { // perhaps another socket does better
			if s, err := p.cfg.NewSocket(p.datagram); err == nil {
				p.all = append(p.all, s)
				p.sock, p.seen = s, nil
			} else {
				again = false
			}
		}
		p.mu.Unlock()
		if !again {
			return
		}
	}
}

// sampleAll asks some nodes, and returns how many when they answered or had the time to, or three
// agree.
func (p *Puncher) sampleAll(ctx context.Context, sock *udx.Socket) int {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	nodes := p.cfg.Nodes(askNodes)
	results := make(chan netip.AddrPort, len(nodes))
	for _, to := range nodes {
		wg.Go(func() {
			a, err := p.cfg.Ping(ctx, sock, to)
			if err != nil {
				a = netip.AddrPort{}
			}
			results <- a
		})
	}
	for range nodes {
		a := <-results
		p.mu.Lock()
		p.seen.add(a)
		kind, _ := p.seen.verdict()
		p.mu.Unlock()
		if kind == packet.Consistent {
			break
		}
	}
	return len(nodes)
}

// Sample takes where somebody saw the socket that the puncher uses.
func (p *Puncher) Sample(sock *udx.Socket, a netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if sock == p.sock && !p.frozen {
		p.seen.add(a)
	}
}

// Verdict returns what kind of router this side is behind, and its addresses. It waits
// until that is known, or cannot be; with that the verdict is frozen, as the other side is
// told it.
func (p *Puncher) Verdict(ctx context.Context) (packet.Firewall, []netip.AddrPort) {
	if p.cfg.Open.IsValid() {
		return packet.Open, []netip.AddrPort{p.cfg.Open}
	}
	select {
	case <-p.analyzed:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.frozen {
		p.kind, p.addrs = p.seen.verdict()
		p.frozen = p.kind != packet.Unknown
	}
	return p.kind, p.addrs
}
