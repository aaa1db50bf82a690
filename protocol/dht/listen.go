package dht

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/protocol/dht/doubt"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
)

// ListenConfig says how to listen. Key is required.
type ListenConfig struct {
	Key ed25519.PrivateKey
	// Accept decides by its key who may connect; nil lets everybody. It must not wait. Who
	// may not gets no answer.
	Accept func(remote [32]byte) bool
	Stream udx.StreamConfig
	Secret secretstream.Config // but for what the handshake brings
	// Pending is how many connections may be under way, or wait for Accept; 0 is 64.
	Pending int
	// Relays are the keys of blind relays: of one of them each client is told, who takes it
	// until there is a direct way. None is for those who can be reached without.
	Relays [][32]byte
	// NoPunch makes no holes: only who can reach the node directly connects.
	NoPunch bool
}

// Listener makes a key reachable. All methods are safe for concurrent use.
type Listener struct {
	n        *Node
	cfg      ListenConfig
	public   [32]byte
	target   packet.ID
	accept   chan accepted
	ctx      context.Context //nolint:containedctx // it ends what the listener began
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	again    chan struct{} // announce at once; room for one
	look     chan struct{} // ask the relays where we are; room for one
	doubts   doubt.Doubts  // of those who say that we moved; owned by the goroutine that announces
	soughtAt time.Time     // when the relays were looked for; likewise
	calm     bool          // it is announced anew only because it is time; likewise
	sent     uint64        // packets to buyers when it was looked how many that are; likewise

	mu       sync.Mutex
	closed   bool // guarded by mu, like all below
	sessions map[[32]byte]*session
	byID     map[uint64]*session
	relays   []packet.Relays // where it is announced
	former   []packet.Relays // and was before that
	state    Announced
	counts   secretstream.Counts
	streams  map[*udx.Stream]bool // of those who connected
}

// Counts returns what became of those who wanted to connect.
func (l *Listener) Counts() secretstream.Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Announced says how a listener is announced.
type Announced struct {
	Relays []netip.AddrPort // nodes that pass on what buyers say
	At     time.Time        // of the last announcement that was taken; zero is none
	Err    error            // of the last that was not
}

const maxPending = 64

// Listen makes a key reachable, from now on, for as long as the node is part of the network.
func (n *Node) Listen(cfg ListenConfig) (*Listener, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("dht: no key to listen with")
	}
	if cfg.Pending == 0 {
		cfg.Pending = maxPending
	}
	l := &Listener{
		n: n, cfg: cfg, public: [32]byte(cfg.Key[ed25519.SeedSize:]), accept: make(chan accepted, cfg.Pending), again: make(chan struct{}, 1), look: make(chan struct{}, 1),
		sessions: map[[32]byte]*session{}, byID: map[uint64]*session{}, streams: map[*udx.Stream]bool{},
	}
	l.target = packet.Target(l.public[:])
	l.ctx, l.cancel = context.WithCancel(n.ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, rpc.ErrClosed
	}
	if n.listeners[l.target] != nil {
		return nil, fmt.Errorf("dht: %x listens already", l.public)
	}
	n.listeners[l.target] = l
	l.wg.Go(l.announce)
	return l, nil
}

// Accept returns the next connection. The error is [net.ErrClosed] after Close.
func (l *Listener) Accept() (*secretstream.Conn, error) {
	a, err := l.next()
	return a.conn, err
}

// accepted is a connection, and what it runs on.
type accepted struct {
	conn   *secretstream.Conn
	stream *udx.Stream
}

func (l *Listener) next() (accepted, error) {
	select {
	case a := <-l.accept:
		return a, nil
	case <-l.ctx.Done():
		return accepted{}, net.ErrClosed
	}
}

// Close takes the announcement back, and ends what is not accepted yet. Connections that
// were go on.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
	l.unannounce()
	l.n.mu.Lock()
	delete(l.n.listeners, l.target)
	l.n.mu.Unlock()
	for {
		select {
		case c := <-l.accept:
			c.conn.Close()
		default:
			return nil
		}
	}
}

// spawn runs f, for whose end Close waits.
func (l *Listener) spawn(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.wg.Go(f)
	}
}

// onHandshake takes the first message of a client: the same one may come several times, by
// several relays, and is answered the same each time.
func (l *Listener) onHandshake(in *rpc.Incoming, h *packet.Handshake, client netip.AddrPort) {
	key := blake2b.Sum256(h.Noise)
	back := way{in: *in, mode: h.Mode, client: client, relay: h.Relay}
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.sessions[key]; s != nil {
		if s.noise != nil && s.copies < maxCopies {
			s.copies++
			s.answer(back)
		}
		return
	}
	// Anybody may say that he passes on what another one says.
	charged := []netip.Addr{client.Addr()}
	if in.From.Addr() != client.Addr() && !l.knows(in.From) {
		charged = append(charged, in.From.Addr())
	}
	if l.closed || len(l.sessions) >= l.cfg.Pending || l.crowd(client.Addr()) >= max(l.cfg.Pending/4, 4) || !l.n.allow(charged...) {
		l.counts.Refused++
		return
	}
	l.counts.Admitted++
	s := &session{l: l, id: l.newID(), network: network(client.Addr()), key: key, first: back, heard: make(chan struct{}), stop: make(chan struct{}), met: make(chan struct{}), last: time.Now()}
	l.sessions[key], l.byID[s.id] = s, s
	message := append([]byte(nil), h.Noise...)
	l.wg.Go(func() {
		ok := s.run(message)
		l.mu.Lock()
		defer l.mu.Unlock()
		if !ok {
			l.counts.Failed++
		}
		delete(l.sessions, key)
		delete(l.byID, s.id)
	})
}

// newID returns a number for a session, which nobody guesses. mu is held.
func (l *Listener) newID() uint64 {
	for {
		id := uint64(1<<31 | rand.Uint32()>>1)
		if l.byID[id] == nil {
			return id
		}
	}
}

// crowd returns how many sessions a host's network has. mu is held.
func (l *Listener) crowd(host netip.Addr) (n int) {
	of := network(host)
	for _, s := range l.sessions {
		if s.network == of {
			n++
		}
	}
	return n
}

// network returns that of a host.
func network(host netip.Addr) netip.Prefix {
	p, _ := host.Prefix(24)
	return p
}

// onRound takes a round of hole punching.
func (l *Listener) onRound(in *rpc.Incoming, h *packet.Holepunch, client netip.AddrPort) {
	l.mu.Lock()
	s := l.byID[h.ID]
	if s == nil || s.rounds >= maxRounds || s.puncher == nil || s.noise == nil {
		l.mu.Unlock()
		return
	}
	r, err := s.secret.Open(h.Payload)
	if err != nil {
		l.mu.Unlock()
		return // it is not from who shook hands
	}
	s.rounds++
	l.mu.Unlock()
	back := way{in: *in, mode: h.Mode, client: client}
	l.spawn(func() { s.round(back, r) })
}

// relayAddrs returns where the key is announced.
func (l *Listener) relayAddrs() (out []netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.relays {
		out = append(out, r.Relay)
	}
	return out
}

// isRelay tells whether a node is one of those at which the key is announced, or was.
func (l *Listener) isRelay(a netip.AddrPort) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.knows(a)
}

// knows is isRelay with mu held.
func (l *Listener) knows(a netip.AddrPort) bool {
	is := func(r packet.Relays) bool { return r.Relay == a }
	return slices.ContainsFunc(l.relays, is) || slices.ContainsFunc(l.former, is)
}

// Announced returns how the key is announced.
func (l *Listener) Announced() Announced {
	l.mu.Lock()
	st := l.state
	l.mu.Unlock()
	st.Relays = l.relayAddrs()
	return st
}
