// Package punch makes holes through two routers, so that datagrams pass between two hosts of
// which neither can be reached (specs/hyperdht.md, section 5).
//
// A [Puncher] is one attempt of one side. It finds out what kind of router is before it, and
// sends datagrams of one byte so that both routers let answers in. What the two sides must
// tell each other for that passes by other ways.
package punch

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/udx"
)

// Config says what a puncher works with. All but Open are required.
type Config struct {
	// NewSocket opens a socket with little room, on which requests are answered, too; what
	// is no request is given to other.
	NewSocket func(other func(s *udx.Socket, b []byte, from netip.AddrPort)) (*udx.Socket, error)
	// Ping asks a node where it sees the socket.
	Ping func(ctx context.Context, s *udx.Socket, to netip.AddrPort) (netip.AddrPort, error)
	// Nodes returns some that answer.
	Nodes func(n int) []netip.AddrPort
	// Open is where anybody can send to, if that is so.
	Open netip.AddrPort
	// Initiator is the side that asked for the connection.
	Initiator bool
	Rand      io.Reader
}

// Puncher is one attempt. All methods are safe for concurrent use.
type Puncher struct {
	cfg      Config
	cancel   context.CancelFunc
	ctx      context.Context //nolint:containedctx // it ends what the puncher began
	wg       sync.WaitGroup
	found    chan Path // room for one
	analyzed chan struct{}

	mu       sync.Mutex
	sock     *udx.Socket   // guarded by mu, like all below
	all      []*udx.Socket // that were opened
	seen     samples
	frozen   bool
	kind     packet.Firewall
	addrs    []netip.AddrPort
	started  bool
	closed   bool
	verified map[netip.Addr]bool
	// remote are the other side's addresses.
	remote []netip.AddrPort
}

// Path is a way to the other side.
type Path struct {
	Socket *udx.Socket
	Remote netip.AddrPort
}

// TTL of a datagram that opens this side's router, and does not get to the other one.
const lowTTL = 5

// hello is what is sent through a hole.
var hello = []byte{0}

// New opens a socket and begins to find out what router is before it.
func New(cfg Config) (*Puncher, error) {
	p := &Puncher{cfg: cfg, found: make(chan Path, 1), analyzed: make(chan struct{}), verified: map[netip.Addr]bool{}}
	s, err := cfg.NewSocket(p.datagram)
	if err != nil {
		return nil, err
	}
	p.sock, p.all = s, []*udx.Socket{s}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if cfg.Open.IsValid() {
		close(p.analyzed)
	} else {
		p.wg.Go(func() { p.analyze(p.ctx) })
	}
	return p, nil
}

// Socket returns the socket that is seen by the other side.
func (p *Puncher) Socket() *udx.Socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sock
}

// Found yields the way to the other side, on the side that is the initiator.
func (p *Puncher) Found() <-chan Path { return p.found }

// datagram takes what came through a hole.
func (p *Puncher) datagram(s *udx.Socket, b []byte, from netip.AddrPort) {
	if len(b) > 1 {
		return
	}
	if !p.cfg.Initiator {
		s.Send(hello, from, 0) //nolint:errcheck // as if it were lost
		return
	}
	select {
	case p.found <- Path{s, from}:
	default:
	}
}

// Open sends a datagram that opens this side's router for what comes from an address.
func (p *Puncher) Open(to netip.AddrPort) { p.send(p.Socket(), to, lowTTL) }

// Hello sends one that is to arrive.
func (p *Puncher) Hello(to netip.AddrPort) { p.send(p.Socket(), to, 0) }

func (p *Puncher) send(s *udx.Socket, to netip.AddrPort, ttl int) {
	if to.IsValid() && to.Port() != 0 {
		s.Send(hello, to, ttl) //nolint:errcheck // as if it were lost
	}
}

// Remote says where the other side may be, in its own words.
func (p *Puncher) Remote(addrs []netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(addrs) > 0 {
		p.remote = addrs[:min(len(addrs), maxRemote)]
	}
}

// maxRemote is how many addresses of the other side are tried.
const maxRemote = 8

// Verify says that the other side does receive at a host.
func (p *Puncher) Verify(host netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.verified) < maxRemote {
		p.verified[host] = true
	}
}

// Times of punching.
const (
	// helloEvery is between datagrams to one address, and hellos how many there are.
	helloEvery = time.Second
	hellos     = 10
	// guessEvery is between datagrams where a port must be guessed, and guesses how many.
	guessEvery = 20 * time.Millisecond
	guesses    = 1750
	// birthday is how many sockets guess, and birthdayRest how long they rest when all
	// have opened their ports.
	birthday     = 256
	birthdayRest = 100 * time.Millisecond
)

// ErrRandom says that both routers give each address another port: no hole can be found.
var ErrRandom = errors.New("punch: both routers take another port for each address")

// Possible tells whether a hole can be punched between two kinds of routers.
func Possible(ours, theirs packet.Firewall) error {
	switch {
	case ours == packet.Random && theirs == packet.Random:
		return ErrRandom
	case ours == packet.Unknown || theirs == packet.Unknown:
		return errors.New("punch: what kind a router is could not be found out")
	}
	return nil
}

// Guesses tells whether one of the sides must guess ports, which takes many datagrams.
func Guesses(ours, theirs packet.Firewall) bool {
	return (ours == packet.Random) != (theirs == packet.Random)
}

// Punch begins to send, as long as it is worth it; it does not wait. The verdict must be
// known, and Possible.
func (p *Puncher) Punch(theirs packet.Firewall) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.started || p.closed {
		return
	}
	p.started = true
	ours := p.kind
	if p.cfg.Open.IsValid() {
		ours = packet.Open
	}
	p.wg.Go(func() {
		switch {
		case ours == packet.Random:
			p.manySockets()
		case theirs == packet.Random:
			p.manyPorts()
		default:
			p.steady()
		}
	})
}

// targets returns the addresses of the other side; those that are not verified only where
// all are wanted.
func (p *Puncher) targets(all bool) []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []netip.AddrPort
	for _, a := range p.remote {
		if all || p.verified[a.Addr()] {
			out = append(out, a)
		}
	}
	return out
}

// pause waits, and tells whether to go on.
func (p *Puncher) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.ctx.Done():
		return false
	}
}

// steady is for two routers that keep their ports.
func (p *Puncher) steady() {
	if !p.cfg.Initiator && !p.pause(helloEvery) {
		return
	}
	sock := p.Socket()
	for i := range hellos {
		for _, a := range p.targets(i%4 == 0) {
			p.send(sock, a, 0)
		}
		if !p.pause(helloEvery) {
			return
		}
	}
}

// manyPorts is for a router before the other side that takes any port.
func (p *Puncher) manyPorts() {
	sock := p.Socket()
	for range guesses {
		if t := p.targets(false); len(t) > 0 {
			p.send(sock, netip.AddrPortFrom(t[0].Addr(), p.port()), 0)
		}
		if !p.pause(guessEvery) {
			return
		}
	}
}

// port returns a port that a router may take.
func (p *Puncher) port() uint16 {
	var b [4]byte
	io.ReadFull(p.cfg.Rand, b[:]) //nolint:errcheck // any port will do
	return uint16(1000 + binary.LittleEndian.Uint32(b[:])%64536)
}

// manySockets is for a router before this side that takes any port: the other side guesses
// one of many.
func (p *Puncher) manySockets() {
	targets := p.targets(false)
	if len(targets) == 0 {
		return
	}
	to := targets[0]
	var socks []*udx.Socket
	for range birthday {
		s, err := p.cfg.NewSocket(p.datagram)
		if err != nil {
			break // as many as there may be
		}
		p.mu.Lock()
		closed := p.closed
		p.all = append(p.all, s)
		p.mu.Unlock()
		if closed {
			s.Retire()
			return
		}
		socks = append(socks, s)
		p.send(s, to, lowTTL)
	}
	if len(socks) == 0 || !p.pause(birthdayRest) {
		return
	}
	for i := range guesses {
		ttl := 0
		if i < len(socks) {
			ttl = lowTTL
		}
		p.send(socks[i%len(socks)], to, ttl)
		if !p.pause(guessEvery) {
			return
		}
	}
}

// Close ends the attempt. Sockets that a stream is bound to stay until it ends.
func (p *Puncher) Close() {
	p.mu.Lock()
	p.closed = true
	all := p.all
	p.all = nil
	p.mu.Unlock()
	p.cancel()
	for _, s := range all {
		s.Retire()
	}
	p.wg.Wait()
}

// Throttle allows few attempts that guess ports: they are a burst of datagrams that routers,
// and their owners, do not like.
type Throttle struct {
	mu   sync.Mutex
	busy bool      // guarded by mu
	last time.Time // guarded by mu
}

// guessRest is between two attempts that guess.
const guessRest = 20 * time.Second

// Take tells whether an attempt may begin; Free must follow when it has ended.
func (t *Throttle) Take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.busy || !t.last.IsZero() && time.Since(t.last) < guessRest {
		return false
	}
	t.busy, t.last = true, time.Now()
	return true
}

// Free says that the attempt has ended.
func (t *Throttle) Free() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.busy, t.last = false, time.Now()
}
