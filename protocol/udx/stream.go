package udx

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Errors of a Stream. Those of reading and writing are wrapped in a [net.OpError].
var (
	// ErrReset says that the other side ended the stream at once.
	ErrReset error = syscall.ECONNRESET
	// ErrTimeout says that nothing came from the other side for too long.
	ErrTimeout error = syscall.ETIMEDOUT
)

// StreamConfig says how a stream behaves. All fields may be zero.
type StreamConfig struct {
	// Window is for how many bytes that were not read yet there is room at first, and
	// MaxWindow how far it grows by itself where the path needs it; 0 is 64 KiB, and not
	// at all.
	Window, MaxWindow int
	// SendBuffer is how many bytes Write takes that were not acknowledged; 0 is 256 KiB.
	SendBuffer int
	// Silence is for how long nothing may be heard of the other side while it owes an
	// acknowledgement; 0 is 30 s.
	Silence time.Duration
	// OnPacket is called when a packet for the stream comes by another way than that to
	// which it is bound, or before it is. It must not wait. It may call Bind or Move.
	OnPacket func(sock *Socket, from netip.AddrPort)
}

// Stream is a [net.Conn]. All methods are safe for concurrent use.
type Stream struct {
	ep  *Endpoint
	cfg StreamConfig
	id  uint32

	mu sync.Mutex // guards all below
	rd sync.Cond  // what a reader waits for may have changed
	wr sync.Cond  // what a writer waits for may have changed

	path  path
	first chan struct{} // closed when something came
	gone  chan struct{} // closed when err is set
	came  bool          // something did

	direct    uint32 // see Direct
	hasDirect bool
	left      path  // the junction that it has left: what still comes from there is late
	trusted   path  // see Trust
	err       error // why it is over
	timer     *time.Timer
	alarm     int64  // when the timer fires; 0 never
	hear      func() // to be called without mu

	readBy, writeBy time.Time // deadlines

	receiver
	sender

	closing bool  // nobody reads or writes any more
	closeBy int64 // when it ends even so
	over    bool  // ended in order
}

// path is where a stream's packets go.
type path struct {
	sock   *Socket // nil while it is not bound
	remote netip.AddrPort
	id     uint32 // of the other side's stream
}

func (p path) is(sock *Socket, from netip.AddrPort) bool { return p.sock == sock && p.remote == from }

const (
	// closeTime is how long a stream that was closed waits for the other side to take
	// what was written, and to close.
	closeTime = 5 * int64(time.Second)
	// lingerTime is how long one that ended in order answers late packets.
	lingerTime = 2 * int64(time.Second)
)

// NewStream returns a stream that is not bound yet: what is written waits, what comes is
// kept up to the window.
func (e *Endpoint) NewStream(cfg StreamConfig) (*Stream, error) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.Window, 64<<10)
	def(&cfg.MaxWindow, cfg.Window)
	def(&cfg.SendBuffer, 256<<10)
	if cfg.Silence == 0 {
		cfg.Silence = 30 * time.Second
	}
	s := &Stream{ep: e, cfg: cfg, first: make(chan struct{}), gone: make(chan struct{})}
	s.rd.L, s.wr.L = &s.mu, &s.mu
	s.receiver.window = cfg.Window
	s.sender.init(e.now())
	return s, e.register(s)
}

// ID returns the number by which the other side addresses the stream.
func (s *Stream) ID() uint32 { return s.id }

// Bind gives the stream the way to its other side: whose stream has the number id.
func (s *Stream) Bind(sock *Socket, remote netip.AddrPort, id uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path.sock != nil {
		return errors.New("udx: the stream is bound already")
	}
	if s.err != nil {
		return s.err
	}
	if !sock.use(1) {
		return s.failed("bind", net.ErrClosed)
	}
	s.path = path{sock, remote, id}
	s.settle()
	return nil
}

// Bound tells whether the stream is bound.
func (s *Stream) Bound() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.path.sock != nil
}

// Move sends all that follows another way. What was on the old one and got lost is sent
// again.
func (s *Stream) Move(sock *Socket, remote netip.AddrPort, id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.move(path{sock, remote, id})
	s.settle()
}

func (s *Stream) move(to path) {
	if s.path.sock == nil || s.err != nil || s.path == to || !to.sock.use(1) {
		return
	}
	if s.hasDirect && s.path.id != s.direct {
		s.left = s.path
	}
	s.path.sock.use(-1)
	s.path, s.trusted = to, path{}
	s.ackDue = true
	s.sender.moved(s.ep.now())
}

// Authenticated says that the first n bytes that were read are really from the other
// side. If the last of them came from another address than the one that the stream is
// bound to, it moves there: the other side did.
func (s *Stream) Authenticated(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.candidate; c.sock != nil && n > c.since {
		s.candidate = candidate{}
		s.move(path{c.sock, c.remote, c.id})
		s.settle()
	}
}

// Trust says that the other side is at an address as well, as other messages have shown: what
// it says from there of what arrived is believed, before the stream follows it there.
func (s *Stream) Trust(sock *Socket, remote netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trusted = path{sock, remote, s.peerID()}
}

// Probe sends a packet that the other side answers to where it came from, without moving:
// the answer comes to OnPacket. Both ends must be of this package.
func (s *Stream) Probe(sock *Socket, remote netip.AddrPort, id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.control(path{sock, remote, id}, flagHeartbeat)
	}
}

// Heartbeat asks the other side for a sign of life, see [Stream.Heard].
func (s *Stream) Heartbeat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && s.path.sock != nil {
		s.control(s.path, flagHeartbeat)
	}
}

// First returns what is closed when the first packet for the stream came, or when it is over.
func (s *Stream) First() <-chan struct{} { return s.first }

// Done returns what is closed when nothing passes any more.
func (s *Stream) Done() <-chan struct{} { return s.gone }

// Alive tells whether the stream is not over.
func (s *Stream) Alive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil && !s.over
}

// Heard returns how long ago something came from the other side, but for copies of what came
// before: those show no way to it.
func (s *Stream) Heard() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Duration(s.ep.now() - s.heardAt)
}

// packet takes a packet. mu is held, and settle follows.
func (s *Stream) packet(sock *Socket, from netip.AddrPort, b []byte) {
	h, blocks, payload, err := parseHeader(b)
	if err != nil || s.err != nil {
		return
	}
	known := s.path.is(sock, from)
	if !known && s.cfg.OnPacket != nil {
		s.hear = func() {
			s.cfg.OnPacket(sock, from) // which may bind the stream: before who waits for the first closes the socket
			s.mu.Lock()
			defer s.mu.Unlock()
			s.hearFirst()
		}
	}
	if s.over {
		s.ackDue = s.ackDue || h.flags&(flagData|flagEnd) != 0
		return
	}
	now, una := s.ep.now(), s.una
	if s.hear == nil {
		s.hearFirst()
	}
	if h.flags&flagDestroy != 0 {
		if !before(h.seq, s.expect) && (known || s.path.sock == nil || s.candidate.is(sock, from)) {
			s.fail(ErrReset)
		}
		return
	}
	if known || s.left.is(sock, from) || s.trusted.is(sock, from) { // from elsewhere anybody may say what arrived
		s.acknowledged(h, blocks, now)
	}
	// Who sends the same again and again does not hear us.
	if again := h.flags&(flagData|flagEnd) != 0 && before(h.seq, s.expect); !again || s.una != una {
		s.heardAt = now
	}
	switch {
	case h.flags&(flagData|flagEnd) != 0:
		s.ackDue = true
		taken := s.take(h, payload, s.closing)
		if !known && s.path.sock != nil { // else who has moved sends the same again and again
			s.control(s.back(sock, from), 0)
		}
		if taken && len(payload) > 0 {
			s.candidate = candidate{}
			if s.path.sock != nil && !known && !s.left.is(sock, from) {
				s.candidate = candidate{s.back(sock, from), s.taken - int64(len(payload))}
			}
		}
		if s.in.n > 0 || s.ended {
			s.rd.Broadcast()
		}
		if s.unsaid++; s.path.sock != nil && (s.unsaid >= saidOften || s.unsaid >= saidFirst && s.expect < 64) {
			s.acknowledge()
		}
	case h.flags&flagHeartbeat != 0:
		s.ackDue = s.ackDue || known
		if !known && s.path.sock != nil {
			s.control(s.back(sock, from), 0)
		}
	}
}

// Direct says which number the other side's stream has where that is not behind a junction:
// with it the stream follows the other side to another address. Without it that is the one
// that it was bound with.
func (s *Stream) Direct(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.direct, s.hasDirect = id, true
}

// peerID is the number of the other side's stream when it is addressed directly.
func (s *Stream) peerID() uint32 {
	if s.hasDirect {
		return s.direct
	}
	return s.path.id
}

// back returns the way to where a packet came from: the junction that it has left may still
// be the other side's way, on which it waits for acknowledgements.
func (s *Stream) back(sock *Socket, from netip.AddrPort) path {
	if s.left.is(sock, from) {
		return s.left
	}
	return path{sock, from, s.peerID()}
}

// Way returns the socket and the address that the stream is bound to.
func (s *Stream) Way() (*Socket, netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.path.sock, s.path.remote
}

// settle does what follows from packets, calls or the timer: it sends, acknowledges, ends
// the stream if it is done, and sets the timer. mu is held.
func (s *Stream) settle() {
	if s.err != nil {
		return
	}
	now := s.ep.now()
	if !s.over {
		s.conclude(now)
		s.pump(now)
		if s.err != nil {
			return
		}
		if s.done && (s.ended || s.closing && s.closeBy <= now) {
			s.over = true
			s.alarm = 0
			s.rd.Broadcast()
		}
	}
	if s.ackDue && s.path.sock != nil {
		s.acknowledge()
	}
	s.arm(now)
}

// arm sets the timer. mu is held.
func (s *Stream) arm(now int64) {
	at := int64(0)
	sooner := func(t int64) {
		if t != 0 && (at == 0 || t < at) {
			at = t
		}
	}
	if s.over {
		sooner(now + lingerTime)
	} else {
		if s.closing {
			sooner(s.closeBy)
		}
		if s.path.sock != nil {
			sooner(s.wakeAt(now))
		}
	}
	if at == 0 || s.alarm != 0 && s.alarm <= at {
		return // an alarm that is too early does nothing
	}
	s.alarm = at
	if s.timer == nil {
		s.timer = time.AfterFunc(time.Duration(at-now), s.ring)
	} else {
		s.timer.Reset(time.Duration(at - now))
	}
}

// ring runs when the timer fires.
func (s *Stream) ring() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.ep.now()
	if s.err != nil || s.alarm == 0 {
		return
	}
	if now < s.alarm { // it was set again while it fired
		s.timer.Reset(time.Duration(s.alarm - now))
		return
	}
	s.alarm = 0
	switch {
	case s.over:
		s.fail(net.ErrClosed)
		return
	case s.closing && now >= s.closeBy && !(s.done && s.ended):
		s.abort()
		return
	}
	s.expire(now)
	s.settle()
}

func (s *Stream) hearFirst() {
	if !s.came {
		s.came = true
		close(s.first)
	}
}

// fail ends the stream. mu is held.
func (s *Stream) fail(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.gone)
	s.hearFirst()
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.path.sock != nil {
		s.path.sock.use(-1)
	}
	s.out.drop(s.out.n)
	s.dropEarly()
	if s.closing {
		s.in.drop(s.in.n)
	}
	s.rd.Broadcast()
	s.wr.Broadcast()
	s.ep.unregister(s)
}

// abort tells the other side and fails. mu is held.
func (s *Stream) abort() {
	if s.err != nil {
		return
	}
	if s.path.sock != nil && !s.over {
		s.control(s.path, flagDestroy)
	}
	s.fail(net.ErrClosed)
}

// Abort ends the stream at once, on both sides; what was not acknowledged may be lost.
func (s *Stream) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.abort()
}

// Close ends the stream: what was written is still sent, for some seconds, and what comes
// is dropped. It does not wait.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil
	}
	if s.err != nil {
		s.closing = true
		s.in.drop(s.in.n)
		return nil
	}
	if s.path.sock == nil {
		s.fail(net.ErrClosed)
		return nil
	}
	s.closing, s.closeBy = true, s.ep.now()+closeTime
	s.finish = true
	s.in.drop(s.in.n)
	s.rd.Broadcast()
	s.wr.Broadcast()
	s.settle()
	return nil
}

// CloseWrite says that nothing more will be written; the other side reads to the end.
func (s *Stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.failed("close", s.err)
	}
	s.finish = true
	s.wr.Broadcast()
	s.settle()
	return nil
}

// Stats say how a stream does.
type Stats struct {
	Sent, Resent uint64 // packets with data, and those of them that were sent before
	Received     uint64 // bytes, in order
	RTT, MinRTT  time.Duration
	Rate         float64 // bytes a second that the path is taken to carry
	Window       int     // bytes that may be on their way
	MTU          int
}

// Stats returns how the stream does.
func (s *Stream) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Sent: s.sent, Resent: s.resent, Received: uint64(s.taken), RTT: time.Duration(s.srtt), MinRTT: time.Duration(s.bbr.minRTT),
		Rate: s.bbr.bw.max(), Window: int(s.bbr.window), MTU: s.mtu,
	}
}
