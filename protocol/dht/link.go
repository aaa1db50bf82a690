package dht

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
)

// link is a connection with a blind relay, for all streams that need it.
type link struct {
	key   [32]byte
	ready chan struct{} // closed when it is made, or failed

	// Constant once ready is closed.
	err     error
	foreign bool // others named it
	conn    *secretstream.Conn
	stream  *udx.Stream
	client  *relay.Client

	users int       // guarded by links.mu
	idle  time.Time // when the last one left; guarded by links.mu
}

// links are the connections of a node with blind relays.
type links struct {
	mu  sync.Mutex
	all map[[32]byte]*link // guarded by mu
	key ed25519.PrivateKey // that relays see; guarded by mu
}

const (
	// linkTime is how long connecting to a relay may take.
	linkTime = 5 * time.Second
	// linkIdle is how long a connection with a relay stays that nobody uses.
	linkIdle = 30 * time.Second
	// detourTime is how long a relay may take until both ends have met there.
	detourTime = 15 * time.Second
	// maxForeign is with how many relays there may be connections that others name.
	maxForeign = 8
)

// use returns a connection with a relay; leave must follow.
func (n *Node) useRelay(ctx context.Context, key [32]byte, foreign bool) (*link, error) {
	s := &n.links
	s.mu.Lock()
	l := s.all[key]
	if l != nil && l.over() {
		delete(s.all, key)
		l = nil
	}
	if l == nil {
		if foreign && !s.mayFollow() {
			s.mu.Unlock()
			return nil, errForeign
		}
		if s.key == nil { // relays learn nothing by it
			var seed [ed25519.SeedSize]byte
			if _, err := io.ReadFull(n.cfg.Rand, seed[:]); err != nil {
				s.mu.Unlock()
				return nil, err
			}
			s.key = ed25519.NewKeyFromSeed(seed[:])
		}
		l = &link{key: key, foreign: foreign, ready: make(chan struct{})}
		if s.all == nil {
			s.all = map[[32]byte]*link{}
		}
		s.all[key] = l
		own := s.key
		if !n.spawn(func() { n.runLink(l, own) }) {
			s.mu.Unlock()
			return nil, context.Canceled
		}
	}
	l.users++
	s.mu.Unlock()
	select {
	case <-l.ready:
	case <-ctx.Done():
		n.leaveRelay(l)
		return nil, context.Cause(ctx)
	}
	if l.err != nil {
		n.leaveRelay(l)
		return nil, l.err
	}
	return l, nil
}

// over tells whether a connection with a relay ended, or was never made.
func (l *link) over() bool {
	select {
	case <-l.ready:
	default:
		return false
	}
	if l.err != nil {
		return true
	}
	select {
	case <-l.client.Done():
		return true
	default:
		return false
	}
}

func (n *Node) leaveRelay(l *link) {
	n.links.mu.Lock()
	defer n.links.mu.Unlock()
	l.users--
	l.idle = time.Now()
}

// runLink connects to a relay, and stays connected while somebody uses it.
func (n *Node) runLink(l *link, own ed25519.PrivateKey) {
	ctx, cancel := context.WithTimeout(n.ctx, linkTime)
	l.conn, l.stream, l.err = n.dial(ctx, DialConfig{Key: own, Remote: l.key, NoRelay: true, public: true})
	cancel()
	if l.err == nil {
		m := mux.New(l.conn, mux.Config{Accept: func(string, []byte) bool { return false }, MaxChannels: 4})
		if l.client, l.err = relay.NewClient(m, [32]byte(own[ed25519.SeedSize:])); l.err == nil {
			n.spawn(func() { m.Run() }) //nolint:errcheck // the client's Done tells
		} else {
			l.conn.Close()
		}
	}
	close(l.ready)
	defer n.forgetLink(l)
	if l.err != nil {
		return
	}
	defer l.conn.Close()
	t := time.NewTicker(linkIdle / 4)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-l.client.Done():
			return
		case <-n.ctx.Done():
			return
		}
		n.links.mu.Lock()
		done := l.users == 0 && time.Since(l.idle) > linkIdle
		if done { // before anybody comes
			delete(n.links.all, l.key)
		}
		n.links.mu.Unlock()
		if done {
			return
		}
	}
}

// errForeign says that a relay that the other side names is not used.
var errForeign = errors.New("dht: too many relays of others")

// mayFollow tells whether one more relay may be used that others name. mu is held.
func (s *links) mayFollow() bool {
	k := 0
	for _, l := range s.all {
		if l.foreign {
			k++
		}
	}
	return k < maxForeign
}

// forgetLink forgets a connection with a relay that is over.
func (n *Node) forgetLink(l *link) {
	n.links.mu.Lock()
	defer n.links.mu.Unlock()
	if n.links.all[l.key] == l {
		delete(n.links.all, l.key)
	}
}

// detour is the way of one stream by a relay.
type detour struct {
	n     *Node
	link  *link
	token [32]byte
	sock  *udx.Socket
	at    netip.AddrPort
	id    uint32 // of the other end's stream there
}

// detour asks a relay for a way to the other end, who must do the same. near is told where
// the relay is, before packets may come from there. Who is initiator named the relay.
func (n *Node) detour(ctx context.Context, through packet.RelayThrough, initiator bool, stream uint32, near func(netip.AddrPort)) (*detour, error) {
	ctx, cancel := context.WithTimeout(ctx, detourTime)
	defer cancel()
	l, err := n.useRelay(ctx, through.PublicKey, !initiator)
	if err != nil {
		return nil, err
	}
	d := &detour{n: n, link: l, token: through.Token}
	d.sock, d.at = l.stream.Way()
	near(d.at)
	if d.id, err = l.client.Pair(ctx, through.Token, initiator, stream); err != nil {
		n.leaveRelay(l)
		return nil, err
	}
	return d, nil
}

// end gives the way by the relay up.
func (d *detour) end() {
	d.link.client.Unpair(d.token)
	d.n.leaveRelay(d.link)
}

// follow waits until a stream has left the detour, or ends, and gives it up then.
func (d *detour) follow(s *udx.Stream) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for alive := true; alive; {
		select {
		case <-t.C:
			if _, at := s.Way(); at != d.at {
				// What is on its way there may still arrive.
				select {
				case <-time.After(linkTime):
				case <-d.n.ctx.Done():
				}
				alive = false
			}
		case <-s.Done():
			alive = false
		case <-d.n.ctx.Done():
			alive = false
		}
	}
	d.end()
}
