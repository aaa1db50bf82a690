package dht

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
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

// session is a connection under way, on the side that listens.
type session struct {
	l     *Listener
	id    uint64
	key   [32]byte
	first way
	heard chan struct{} // closed when a packet of the stream came
	stop  chan struct{} // closed when the other side gave up
	met   chan struct{} // closed when the way by a blind relay is made, or cannot be

	// Constant once noise is set, which is guarded by the listener's mu.
	stream   *udx.Stream
	theirs   packet.Payload
	secret   packet.Secret
	tokenKey [32]byte
	socket   *udx.Socket                    // that answers what came by a relay
	noise    []byte                         // the answer
	through  *packet.RelayThrough           // a blind relay
	named    bool                           // by us
	near     atomic.Pointer[netip.AddrPort] // where that is
	proved   atomic.Pointer[netip.Addr]     // where the client has shown that it is

	// Guarded by the listener's mu.
	puncher *punch.Puncher
	rounds  int
	copies  int // of its first message
	network netip.Prefix
	last    time.Time // when it was heard of
	stopped bool
	thrice  bool // it has taken the throttle
}

// way is by which a message came, and its answer goes.
type way struct {
	in     rpc.Incoming
	mode   packet.Mode
	client netip.AddrPort
	relay  netip.AddrPort // the first of two
}

// Times of a session.
const (
	// connectTime is how long a client may take from one sign to the next.
	connectTime = 10 * time.Second
	// callTime is between packets to a relay that does not know yet where we are.
	callTime = 300 * time.Millisecond
	// guessTime is how long guessing ports may take.
	guessTime = 40 * time.Second
	// maxRounds is how many rounds of punching a client may ask for, and maxCopies how
	// many of its first messages are answered.
	maxRounds = 10
	maxCopies = 32
	// sessionTime bounds all of it.
	sessionTime = 60 * time.Second
)

// run takes a handshake, and hands a connection on if it becomes one, which it tells.
func (s *session) run(message []byte) (ok bool) {
	l, n := s.l, s.l.n
	h, err := noise.New(noise.Config{Pattern: noise.IK, Static: l.cfg.Key, Prologue: packet.Prologue(), Rand: n.cfg.Rand})
	if err != nil {
		return false
	}
	payload, err := h.Read(message)
	if err != nil {
		return false
	}
	remote, _ := h.Remote()
	if l.cfg.Accept != nil && !l.cfg.Accept(remote) {
		return false
	}
	ours := packet.Payload{UDX: true, Stream: true}
	s.theirs, err = packet.ParsePayload(payload)
	switch {
	case err == packet.ErrVersion: //nolint:errorlint // it is never wrapped
		ours.Error = packet.VersionMismatch
	case err != nil:
		return false
	case !s.theirs.UDX || !s.theirs.Stream:
		ours.Error = packet.Aborted
	}
	if ours.Error != packet.NoError {
		s.reply(h, &ours, n.rpc.Socket())
		s.wait(nil)
		return false
	}
	cfg := l.cfg.Stream
	cfg.OnPacket = s.onPacket
	if s.stream, err = n.ep.NewStream(cfg); err != nil {
		return false
	}
	ours.StreamID = s.stream.ID()
	if !s.prepare(&ours) {
		s.stream.Abort()
		return false
	}
	keys := s.reply(h, &ours, s.socket)
	if keys == nil {
		s.stream.Abort()
		return false
	}
	if s.through != nil {
		l.spawn(func() { s.detour() })
	}
	if s.direct() {
		s.bind(s.first.in.Socket, s.first.client)
	} else if s.theirs.Firewall == packet.Open {
		s.bind(n.rpc.Socket(), s.first.client)
		l.spawn(s.beat) // else our router lets nobody in
	}
	return s.wait(keys)
}

// beat sends signs of life until one comes back: by them others learn where we are.
func (s *session) beat() {
	t := time.NewTicker(callTime)
	defer t.Stop()
	for end := time.Now().Add(connectTime); time.Now().Before(end); {
		s.stream.Heartbeat()
		select {
		case <-t.C:
		case <-s.stream.First():
			return
		case <-s.l.ctx.Done():
			return
		}
	}
}

// direct tells whether the client asked without a relay.
func (s *session) direct() bool { return s.first.mode == packet.FromClient }

// prepare decides how the connection is to be made, and says so.
func (s *session) prepare(ours *packet.Payload) bool {
	l, n := s.l, s.l.n
	s.socket = n.rpc.Socket()
	ours.Addrs = n.local()
	ours.RelayList = l.relayAddrs()
	open := n.public().IsValid()
	if open {
		ours.Firewall = packet.Open
	}
	if open || s.direct() {
		return true
	}
	l.mu.Lock()
	relays := slices.Clone(l.relays)
	l.mu.Unlock()
	if s.theirs.Firewall == packet.Open {
		// We call it; a stock client waits for that only where a hole could be made.
		ours.Punch, ours.PunchID, ours.Relays = true, s.id, relays
		return true
	}
	if !s.nameRelay(ours) {
		return false
	}
	if l.cfg.NoPunch {
		return true
	}
	p, err := punch.New(punch.Config{NewSocket: n.rpc.NewSocket, Ping: n.seenAt, Nodes: n.someNodes, Rand: n.cfg.Rand})
	if err != nil {
		n.log.Warn("dht: no socket to punch a hole with", "error", err)
		return false
	}
	if _, err := n.cfg.Rand.Read(s.tokenKey[:]); err != nil {
		p.Close()
		return false
	}
	l.mu.Lock()
	s.puncher = p
	l.mu.Unlock()
	ours.Punch, ours.PunchID, ours.Relays = true, s.id, relays
	if !s.sameNetwork() {
		s.socket = p.Socket()
	}
	return true
}

// nameRelay names a blind relay, or takes the one that the client names.
func (s *session) nameRelay(ours *packet.Payload) bool {
	l := s.l
	if len(l.cfg.Relays) == 0 {
		s.through = s.theirs.Through
		return true
	}
	var b [33]byte
	if _, err := io.ReadFull(l.n.cfg.Rand, b[:]); err != nil {
		return false
	}
	s.through = &packet.RelayThrough{PublicKey: l.cfg.Relays[int(b[32])%len(l.cfg.Relays)], Token: [32]byte(b[:])}
	s.named, ours.Through = true, s.through
	return true
}

// detour makes the way by the blind relay, and takes it if there is no other yet.
func (s *session) detour() {
	n := s.l.n
	ctx, cancel := context.WithTimeout(s.l.ctx, connectTime)
	defer cancel()
	met := sync.OnceFunc(func() { close(s.met) })
	defer met()
	x, err := n.detour(ctx, *s.through, s.named, s.stream.ID(), func(at netip.AddrPort) { s.near.Store(&at) })
	if err != nil {
		n.log.Debug("dht: no way by the relay", "relay", fmt.Sprintf("%x", s.through.PublicKey[:4]), "error", err)
		return
	}
	s.stream.Direct(s.theirs.StreamID)
	if s.stream.Bind(x.sock, x.at, x.id) != nil || !n.spawn(func() { x.follow(s.stream) }) {
		x.end()
		return
	}
	met()
	s.beat() // the relay learns from our packets where we are
}

// detoured tells whether the stream still goes by a blind relay.
func (s *session) detoured() bool {
	at := s.near.Load()
	if at == nil || !s.stream.Alive() {
		return false
	}
	_, is := s.stream.Way()
	return is == *at
}

// sameNetwork tells whether the client is behind the same router, and says where: then it
// asks by itself at the addresses that we say.
func (s *session) sameNetwork() bool {
	return s.first.client.Addr() == s.first.in.To.Addr() && len(s.theirs.Addrs) > 0
}

// reply answers the first message, and keeps the answer for its copies.
func (s *session) reply(h *noise.Handshake, ours *packet.Payload, from *udx.Socket) *noise.Result {
	b, err := h.Write(nil, ours.Append(nil))
	if err != nil {
		return nil
	}
	keys := h.Result()
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.secret = packet.PunchSecret(keys.Hash)
	s.socket, s.noise = from, b
	s.answer(s.first)
	return keys
}

// answer sends the answer by which a message came. The listener's mu is held.
func (s *session) answer(w way) {
	h := packet.Handshake{Noise: s.noise}
	n := s.l.n
	switch w.mode {
	case packet.FromClient:
		h.Mode = packet.Reply
		n.rpc.Answer(&w.in, rpc.Answer{Value: h.Append(nil)})
		return
	case packet.FromRelay, packet.FromSecondRelay, packet.FromServer, packet.Reply:
	}
	h.Mode, h.Peer = packet.FromServer, w.client
	to := w.in.From
	if w.mode == packet.FromSecondRelay && w.relay.IsValid() {
		to = w.relay
	}
	n.send(s.socket, &w.in, to, h.Append(nil))
}

// onPacket is called when a packet for the stream comes by another way than that to which
// it is bound.
func (s *session) onPacket(sock *udx.Socket, from netip.AddrPort) {
	if at := s.near.Load(); at != nil && *at == from {
		return // that is no direct way
	}
	if !s.stream.Bound() {
		s.bind(sock, from)
	} else if at := s.proved.Load(); at != nil && *at == from.Addr() {
		s.stream.Trust(sock, from) // a stock client moves, and says so five seconds later
	}
}

func (s *session) bind(sock *udx.Socket, to netip.AddrPort) {
	s.stream.Bind(sock, to, s.theirs.StreamID) //nolint:errcheck // it was bound meanwhile
}

// wait waits for the client, and hands the connection on.
func (s *session) wait(keys *noise.Result) bool {
	l, n := s.l, s.l.n
	defer func() {
		l.mu.Lock()
		p, took := s.puncher, s.thrice
		s.puncher = nil
		l.mu.Unlock()
		if p != nil {
			p.Close()
		}
		if took {
			n.throttle.Free()
		}
	}()
	t := time.NewTicker(connectTime / 4)
	defer t.Stop()
	end := time.Now().Add(sessionTime)
	stop := s.stop
	var came <-chan struct{}
	if keys != nil {
		came = s.stream.First()
	}
	for {
		select {
		case <-came:
			if !s.open(keys) {
				return false
			}
			s.stay()
			return true
		case <-stop:
			if stop = nil; s.through != nil {
				continue // no hole, but there is the relay
			}
		case <-l.ctx.Done():
		case <-t.C:
			l.mu.Lock()
			limit := connectTime
			if s.thrice {
				limit = guessTime
			}
			late := time.Since(s.last) > limit || time.Now().After(end)
			l.mu.Unlock()
			if !late {
				continue
			}
		}
		if keys != nil {
			s.stream.Abort()
		}
		return false
	}
}

// stay keeps the attempt to make a hole while the stream goes by a relay.
func (s *session) stay() {
	t := time.NewTicker(connectTime / 40)
	defer t.Stop()
	for end := time.Now().Add(guessTime); s.detoured() && time.Now().Before(end); {
		select {
		case <-t.C:
		case <-s.stop:
			return
		case <-s.l.ctx.Done():
			return
		}
	}
}

// open makes the connection and hands it on.
func (s *session) open(keys *noise.Result) bool {
	l := s.l
	cfg := l.cfg.Secret
	cfg.Static, cfg.Keys, cfg.Remote = l.cfg.Key, keys, [32]byte{}
	c, err := secretstream.Server(l.ctx, s.stream, cfg)
	if err != nil {
		return false
	}
	if err := c.WriteMessage(nil); err != nil { // the first that is authentic
		return false
	}
	select {
	case l.accept <- accepted{c, s.stream}:
		l.mu.Lock()
		defer l.mu.Unlock()
		for x := range l.streams {
			if !x.Alive() {
				delete(l.streams, x)
			}
		}
		l.streams[s.stream] = true
		return true
	default:
		c.Close() // nobody accepts
		return false
	}
}

// token proves to us that who has it receives at a host.
func (s *session) token(host netip.Addr) *[32]byte { return punchToken(s.tokenKey, host) }

// round takes one round of punching, and answers it.
func (s *session) round(w way, r packet.Round) {
	l, n := s.l, s.l.n
	l.mu.Lock()
	p := s.puncher
	s.last = time.Now()
	if r.Error != packet.NoError && !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	l.mu.Unlock()
	if p == nil || r.Error != packet.NoError {
		return
	}
	out := packet.Round{Round: r.Round, RemoteToken: r.Token}
	byRelay := w.mode == packet.FromRelay && l.isRelay(w.in.From)
	if byRelay {
		out.Token = s.token(w.client.Addr())
		if r.RemoteToken != nil && *r.RemoteToken == *out.Token {
			p.Verify(w.client.Addr())
			host := w.client.Addr()
			s.proved.Store(&host)
		}
	}
	p.Sample(w.in.Socket, w.in.To)
	p.Remote(r.Addrs)
	ctx, cancel := context.WithTimeout(l.ctx, connectTime)
	defer cancel()
	kind, addrs := p.Verdict(ctx)
	if kind == packet.Random && s.through != nil {
		// A stock client gives all up when it learns that both sides are random, unless they
		// have met at the relay already.
		select {
		case <-s.met:
		case <-ctx.Done():
		}
	}
	out.Firewall, out.Addrs = kind, addrs
	if kind == packet.Consistent || kind == packet.Open {
		// Where our router keeps its port, what is sent now makes a hole for the client.
		for _, a := range addrs {
			if a == r.Remote && !r.Punching {
				p.Hello(w.client)
			}
		}
	}
	if r.Punching {
		switch err := punch.Possible(kind, r.Firewall); {
		case err != nil:
			out.Error = packet.Aborted
		case punch.Guesses(kind, r.Firewall) && !s.mayGuess():
			out.Error = packet.TryLater
		default:
			out.Punching = true
			p.Punch(r.Firewall)
		}
	}
	h := packet.Holepunch{Mode: packet.FromServer, Payload: s.secret.Seal(&out), Peer: w.client}
	if w.mode == packet.FromClient {
		h.Mode, h.Peer = packet.Reply, netip.AddrPort{}
		n.rpc.Answer(&w.in, rpc.Answer{Value: h.Append(nil)})
		return
	}
	n.send(p.Socket(), &w.in, w.in.From, h.Append(nil))
}

// mayGuess tells whether ports may be guessed now.
func (s *session) mayGuess() bool {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	// Who is over gives nothing back any more.
	s.thrice = s.thrice || s.puncher != nil && s.l.n.throttle.Take()
	return s.thrice
}
