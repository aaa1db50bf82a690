package dht

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dazaar-edge/protocol/dht/doubt"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
)

// Times of announcing.
const (
	// announceEvery is how often a key is announced anew: nodes keep it 13 minutes at least.
	announceEvery = 9 * time.Minute
	// seekEvery is how often it is looked whether other nodes are closer by now.
	seekEvery = 40 * time.Minute
	// announceSoon is when it is tried again after it failed, at first, and announceLate at
	// last.
	announceSoon = time.Second
	announceLate = time.Minute
	// For announceEager it is tried again every announceNext at most, as what is gone now may
	// be back soon.
	announceEager = 10 * time.Minute
	announceNext  = 3 * time.Second
	// suspectEvery is how often it is looked whether buyers answer.
	suspectEvery = time.Second
	// busyEvery is how often one of the relays is asked where we are while buyers are served:
	// when at least busyPackets were sent since.
	busyEvery   = 3 * time.Second
	busyPackets = 5
	pingTries   = 3
	closeTime   = 2 * time.Second
)

// announce keeps the key announced until the listener is closed.
func (l *Listener) announce() {
	wait := announceSoon
	good := time.Now()
	for {
		err := l.announceOnce(l.ctx)
		l.mu.Lock()
		l.state.Err = err
		if err == nil {
			l.state.At = time.Now()
		}
		l.mu.Unlock()
		if err == nil {
			wait = announceSoon
			l.stay()
			good = time.Now()
		} else {
			l.n.log.Debug("dht: a key is not announced", "error", err, "again", wait)
			select {
			case <-time.After(wait):
			case <-l.again:
			case <-l.ctx.Done():
			}
			if wait = min(2*wait, announceLate); time.Since(good) < announceEager {
				wait = min(wait, announceNext)
			}
		}
		if l.ctx.Err() != nil {
			return
		}
	}
}

// announceOnce announces the key at the nodes that are closest to it.
func (l *Listener) announceOnce(ctx context.Context) error {
	n := l.n
	nodes := l.renew(ctx)
	if nodes == nil {
		var err error
		nodes, err = n.rpc.Query(ctx, rpc.Query{Target: l.target, Command: packet.FindPeer, Seeds: l.relayAddrs()})
		if err != nil {
			return err
		}
		l.soughtAt = time.Now()
	}
	doubt.Spread(nodes, func(r *rpc.Reply) netip.Addr { return r.From.Addr() })
	// Those that are closest and answer; others follow where one does not.
	var relays []packet.Relays
	nodes = slices.DeleteFunc(nodes, func(r *rpc.Reply) bool { return len(nodes) > packet.MaxRelays && l.doubts.Doubted(r.From) })
	for len(nodes) > 0 && len(relays) < packet.MaxRelays {
		k := min(packet.MaxRelays-len(relays), len(nodes))
		some := nodes[:k]
		nodes = nodes[k:]
		answers := n.writeTo(ctx, some, l.target, packet.Announce, func(r *rpc.Reply) []byte {
			a := packet.Announcement{Peer: packet.Peer{PublicKey: l.public}}
			a.Sign(l.cfg.Key, false, l.target, r.Node, r.Token)
			return a.Append(nil)
		})
		for i, a := range answers {
			if a != nil && a.Error == 0 {
				relays = append(relays, packet.Relays{Relay: some[i].From, Peer: a.To})
			}
		}
	}
	if len(relays) == 0 {
		return rpc.ErrTimeout
	}
	l.mu.Lock()
	former := l.former
	l.former, l.relays = l.relays, relays
	var left []netip.AddrPort // buyers who ask there would wait for nothing
	for _, r := range former {
		if !l.knows(r.Relay) {
			left = append(left, r.Relay)
		}
	}
	l.mu.Unlock()
	for _, to := range left {
		l.spawn(func() { l.unannounceAt(ctx, to) })
	}
	return nil
}

// renew asks the relays whether the key may be announced there again: it returns their answers,
// or nil if it is time to look for others that are closer.
func (l *Listener) renew(ctx context.Context) []*rpc.Reply {
	relays := l.relayAddrs()
	if !l.calm || len(relays) < packet.MaxRelays || time.Since(l.soughtAt) > seekEvery || slices.ContainsFunc(relays, l.doubts.Doubted) {
		return nil
	}
	out := make([]*rpc.Reply, len(relays))
	var wg sync.WaitGroup
	for i, to := range relays {
		wg.Go(func() {
			r, err := l.n.rpc.Ask(ctx, rpc.Ask{To: to, Command: packet.FindPeer, Target: &l.target})
			if err == nil && r.Error == 0 && r.Valid() && r.Flags&packet.HasToken != 0 {
				out[i] = r
			}
		})
	}
	wg.Wait()
	if slices.Contains(out, nil) {
		return nil
	}
	return out
}

// stay pings the relays until the key must be announced again: because it is time, because
// a relay is gone, or because our address is another one.
func (l *Listener) stay() {
	n := l.n
	l.calm = false
	end := time.NewTimer(announceEvery)
	defer end.Stop()
	every := n.pace.Every()
	t := time.NewTimer(every)
	defer t.Stop()
	look := time.NewTicker(suspectEvery)
	defer look.Stop()
	asked := time.Now()
	for looked := asked; ; {
		suspicious := false
		select {
		case <-end.C:
			l.calm = true
			return
		case <-l.again:
			return
		case <-l.ctx.Done():
			return
		case <-l.look:
			suspicious = true
		case <-look.C:
			suspicious = l.suspect()
			if !suspicious && time.Since(looked) >= busyEvery && l.busy() {
				looked, suspicious = time.Now(), l.strays()
			}
			if !suspicious {
				continue
			}
		case <-t.C:
		}
		l.mu.Lock()
		relays := slices.Clone(l.relays)
		l.mu.Unlock()
		if !suspicious && n.pace.Rest(asked, every) {
			for _, r := range relays {
				n.rpc.Touch(r.Relay)
			}
			t.Reset(every)
			continue
		}
		quiet := time.Since(looked) >= every
		asked, looked = time.Now(), time.Now()
		var wg sync.WaitGroup
		var mu sync.Mutex
		alive := 0
		var moved []netip.AddrPort
		for _, r := range relays {
			wg.Go(func() {
				reply, err := n.rpc.Ask(l.ctx, rpc.Ask{To: r.Relay, Internal: true, Command: packet.Ping, Tries: pingTries})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					alive++
					if reply.To != r.Peer {
						moved = append(moved, r.Relay)
					}
				}
			})
		}
		wg.Wait()
		if l.ctx.Err() != nil {
			return
		}
		if len(moved) > 0 && l.doubts.Believe(time.Now(), moved, len(relays)) {
			if len(moved) == len(relays) { // else some lie
				n.pace.Asked(every, false)
				n.lookAll(l)
			}
			l.calm = alive == len(relays)
			return // relays forward to where we are no longer
		}
		if alive < len(relays) {
			return
		}
		if suspicious {
			continue
		}
		if quiet {
			n.pace.Asked(every, true)
		}
		every = n.pace.Every()
		t.Reset(every)
	}
}

// busy tells whether much was sent to buyers since it was looked.
func (l *Listener) busy() bool {
	var sent uint64
	l.mu.Lock()
	for s := range l.streams {
		sent += s.Stats().Sent
	}
	l.mu.Unlock()
	much := sent >= l.sent+busyPackets
	if much || sent < l.sent { // some are gone
		l.sent = sent
	}
	return much
}

// strays tells whether one of the relays does not answer, or sees us elsewhere.
func (l *Listener) strays() bool {
	l.mu.Lock()
	r := l.relays[rand.IntN(len(l.relays))]
	l.mu.Unlock()
	reply, err := l.n.rpc.Ask(l.ctx, rpc.Ask{To: r.Relay, Internal: true, Command: packet.Ping, Tries: 1})
	return err != nil || reply.To != r.Peer && !l.doubts.Doubted(r.Relay)
}

// announceAll announces all keys again at once: others see the node at another address.
func (n *Node) announceAll() {
	for _, l := range n.allListeners() {
		l.Announce()
	}
}

// lookAll makes all listeners ask their relays where we are, but the one that saw that we moved.
func (n *Node) lookAll(but *Listener) {
	for _, l := range n.allListeners() {
		if l != but {
			nudge(l.look)
		}
	}
}

func (n *Node) allListeners() []*Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.listeners))
}

// Announce announces the key again, at once.
func (l *Listener) Announce() { nudge(l.again) }

// nudge sends where there is room.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// unannounce takes the announcement back, if that is possible at once.
func (l *Listener) unannounce() {
	relays := l.relayAddrs()
	l.mu.Lock()
	for _, r := range l.former {
		if !slices.Contains(relays, r.Relay) {
			relays = append(relays, r.Relay)
		}
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(l.n.ctx, closeTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, to := range relays {
		wg.Go(func() { l.unannounceAt(ctx, to) })
	}
	wg.Wait()
}

func (l *Listener) unannounceAt(ctx context.Context, to netip.AddrPort) {
	n := l.n
	r, err := n.rpc.Ask(ctx, rpc.Ask{To: to, Command: packet.FindPeer, Target: &l.target, Tries: 2})
	if err != nil || r.Flags&packet.HasToken == 0 || !r.Valid() {
		return
	}
	a := packet.Announcement{Peer: packet.Peer{PublicKey: l.public}}
	a.Sign(l.cfg.Key, true, l.target, r.Node, r.Token)
	n.rpc.Ask(ctx, rpc.Ask{To: to, Command: packet.Unannounce, Target: &l.target, Token: &r.Token, Value: a.Append(nil), Tries: 2}) //nolint:errcheck // it ends by itself
}
