package dht

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/punch"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
)

// Errors of dialing.
var (
	// ErrUnknown says that nobody on the network knows the key: it is not announced.
	ErrUnknown = errors.New("dht: nobody announces this key")
	// ErrSilent says that the key is announced, and does not answer: it is gone, or does not
	// want this client.
	ErrSilent = errors.New("dht: the key is announced, and does not answer")
	// ErrNoPath says that both sides heard of each other, and no way leads from one to the
	// other: only a relay helps.
	ErrNoPath = errors.New("dht: no path to the other side")
)

// DialConfig says whom to connect to. Key and Remote are required.
type DialConfig struct {
	Key    ed25519.PrivateKey // who we are
	Remote [32]byte           // whom we want
	Stream udx.StreamConfig
	Secret secretstream.Config // but for what the handshake brings
	// Relays are nodes that knew the key before: they are asked first.
	Relays []netip.AddrPort
	// Through is the key of a blind relay to take until there is a direct way, where the
	// other side names none; zero is none. With NoRelay none is taken at all.
	Through [32]byte
	NoRelay bool
	// public tells that anybody can send to the other side, whatever it thinks of that: no
	// hole is made.
	public bool
	// Watch ends the connection when its path is dead: two seconds after data should have
	// come.
	Watch bool
}

// Dial connects to a key. It returns when packets go both ways.
func (n *Node) Dial(ctx context.Context, cfg DialConfig) (*secretstream.Conn, error) {
	c, _, err := n.dial(ctx, cfg)
	return c, err
}

func (n *Node) dial(ctx context.Context, cfg DialConfig) (*secretstream.Conn, *udx.Stream, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, nil, errors.New("dht: no key to dial with")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &dialing{n: n, cfg: cfg, target: packet.Target(cfg.Remote[:]), early: make(chan punch.Path, 1)}
	stream := cfg.Stream
	stream.OnPacket = d.onPacket
	var err error
	if d.stream, err = n.ep.NewStream(stream); err != nil {
		return nil, nil, err
	}
	conn, err := d.run(ctx)
	if err != nil {
		d.stream.Abort()
		return nil, nil, err
	}
	return conn, d.stream, nil
}

// dialing is a connection under way, on the side that dials.
type dialing struct {
	n      *Node
	cfg    DialConfig
	target packet.ID
	stream *udx.Stream
	early  chan punch.Path // by which the other side's first packet came

	greeting []byte
	hsMu     sync.Mutex
	hs       *noise.Handshake               // guarded by hsMu
	open     bool                           // we said that anybody can send to us
	by       *packet.RelayThrough           // the blind relay that we name
	near     atomic.Pointer[netip.AddrPort] // where the blind relay is
	detoured chan struct{}                  // closed when the way by it is made, or cannot be; nil without one

	// What the handshake brought.
	socket   *udx.Socket
	relay    netip.AddrPort // who was asked
	server   netip.AddrPort // where the server is, as that sees it
	client   netip.AddrPort // where we are
	relayed  bool
	theirs   packet.Payload
	secret   packet.Secret
	tokenKey [32]byte
}

// onPacket is called when a packet for the stream comes before it is bound.
func (d *dialing) onPacket(s *udx.Socket, from netip.AddrPort) {
	if at := d.near.Load(); at != nil && *at == from {
		return // that is no direct way
	}
	if d.stream.Bound() {
		return // it follows what is authentic
	}
	select {
	case d.early <- punch.Path{Socket: s, Remote: from}:
	default:
	}
}

func (d *dialing) run(ctx context.Context) (*secretstream.Conn, error) {
	n := d.n
	var err error
	d.hs, err = noise.New(noise.Config{
		Pattern: noise.IK, Initiator: true, Static: d.cfg.Key, Remote: d.cfg.Remote, Prologue: packet.Prologue(), Rand: n.cfg.Rand,
	})
	if err != nil {
		return nil, err
	}
	ours := packet.Payload{UDX: true, Stream: true, StreamID: d.stream.ID(), Addrs: n.local()}
	if n.public().IsValid() {
		d.open, ours.Firewall = true, packet.Open
	}
	if d.cfg.Through != ([32]byte{}) && !d.cfg.NoRelay {
		d.by = &packet.RelayThrough{PublicKey: d.cfg.Through}
		if _, err := io.ReadFull(n.cfg.Rand, d.by.Token[:]); err != nil {
			return nil, err
		}
		ours.Through = d.by
	}
	if d.greeting, err = d.hs.Write(nil, ours.Append(nil)); err != nil {
		return nil, err
	}
	keys, err := d.handshake(ctx)
	if err != nil {
		return nil, err
	}
	d.secret = packet.PunchSecret(keys.Hash)
	if _, err := n.cfg.Rand.Read(d.tokenKey[:]); err != nil {
		return nil, err
	}
	cfg := d.cfg.Secret
	cfg.Static, cfg.Keys, cfg.Remote = d.cfg.Key, keys, d.cfg.Remote
	w, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := secretstream.Client(ctx, d.stream, cfg)
	if err != nil {
		w.end()
		return nil, err
	}
	if w != nil && !n.spawn(func() { w.improve(conn) }) {
		w.end()
	}
	if err := conn.WriteMessage(nil); err != nil { // the first that is authentic
		conn.Close()
		return nil, err
	}
	t := time.NewTimer(connectTime)
	defer t.Stop()
	select {
	case <-d.stream.First():
		if d.stream.Alive() {
			if d.cfg.Watch {
				n.spawn(func() { n.watch(conn, d.stream) })
			}
			return conn, nil
		}
		err = ErrNoPath
	case <-t.C:
		err = ErrNoPath
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	conn.Close()
	return nil, err
}

// wideHandshake is how many relays are asked at once.
const wideHandshake = 2

// handshake finds relays that know the key, and shakes hands through the first that brings
// an answer.
func (d *dialing) handshake(ctx context.Context) (*noise.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := d.n
	type outcome struct {
		keys *noise.Result
		err  error
	}
	results := make(chan outcome, 2*maxAsked)
	slots := make(chan struct{}, wideHandshake)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var mu sync.Mutex
	asked := map[netip.AddrPort]bool{}
	try := func(relay netip.AddrPort) {
		mu.Lock()
		defer mu.Unlock()
		if asked[relay] || len(asked) >= maxAsked {
			return
		}
		asked[relay] = true
		wg.Go(func() {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				results <- outcome{nil, ctx.Err()}
				return
			}
			keys, err := d.through(ctx, relay)
			results <- outcome{keys, err}
		})
	}
	for _, r := range d.cfg.Relays[:min(len(d.cfg.Relays), packet.MaxRelays)] {
		try(r)
	}
	found := make(chan error, 1)
	wg.Go(func() {
		_, err := n.rpc.Query(ctx, rpc.Query{Target: d.target, Command: packet.FindPeer, Tries: 4, Each: func(r *rpc.Reply) bool {
			if p, _, err := packet.ParsePeer(r.Value); err == nil && p.PublicKey == d.cfg.Remote {
				try(r.From)
			}
			return true
		}})
		found <- err
	})
	searching, done, why := true, 0, error(nil)
	for {
		mu.Lock()
		left := len(asked) - done
		mu.Unlock()
		if !searching && left == 0 {
			if why == nil {
				why = ErrUnknown
			}
			return nil, why
		}
		select {
		case r := <-results:
			done++
			if r.err == nil {
				return r.keys, nil
			}
			if why = ErrSilent; errors.Is(r.err, errFatal) {
				return nil, r.err
			}
		case err := <-found:
			searching = false
			if err != nil && why == nil {
				why = err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// maxAsked is how many relays are asked at most.
const maxAsked = 20

// errFatal is of an answer that is from the other side, and bad.
var errFatal = errors.New("dht: the other side refuses")

// through shakes hands through one relay.
func (d *dialing) through(ctx context.Context, relay netip.AddrPort) (*noise.Result, error) {
	h := packet.Handshake{Mode: packet.FromClient, Noise: d.greeting}
	socket := d.n.rpc.Socket()
	r, err := d.n.rpc.Ask(ctx, rpc.Ask{To: relay, Command: packet.PeerHandshake, Target: &d.target, Value: h.Append(nil), Socket: socket, Tries: 3})
	if err != nil {
		return nil, err
	}
	h, err = packet.ParseHandshake(r.Value)
	if err != nil || h.Mode != packet.Reply {
		return nil, ErrSilent
	}
	d.hsMu.Lock()
	defer d.hsMu.Unlock()
	if d.hs.Result() != nil {
		return nil, ErrSilent // another relay was faster
	}
	payload, err := d.hs.Read(h.Noise)
	if err != nil {
		return nil, err
	}
	p, err := packet.ParsePayload(payload)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errFatal, err)
	case p.Error != packet.NoError || !p.UDX || !p.Stream:
		return nil, fmt.Errorf("%w: error %d", errFatal, p.Error)
	}
	d.theirs, d.socket, d.relay, d.client = p, socket, relay, r.To
	d.server, d.relayed = relay, h.Peer.IsValid()
	if d.relayed {
		d.server = h.Peer
	}
	return d.hs.Result(), nil
}

// relayable tells whether a blind relay was named, by either side.
func (d *dialing) relayable() bool {
	return !d.cfg.NoRelay && (d.theirs.Through != nil || d.by != nil)
}

// bind makes a path that of the stream.
func (d *dialing) bind(p punch.Path) error {
	return d.stream.Bind(p.Socket, p.Remote, d.theirs.StreamID)
}
