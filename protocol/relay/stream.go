package relay

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/secretstream"
)

// Requests, and what is said on the connection of one who listens. All begin with one of
// these bytes; see docs/relay.md.
const (
	opListen   = 0 // who has the key of the connection can be reached here
	opDial     = 1 // key(32): a pipe to who listens under it
	opTake     = 2 // token(32): the other end of a pipe that somebody dialed
	opIncoming = 3 // token(32): somebody dialed
	opPing     = 4 // answered by the same
)

// Answers to a request.
const (
	statusOK      = 0
	statusUnknown = 1 // nobody listens under the key, or nobody waits with the token
	statusBusy    = 2 // as many pipes as there may be
)

// Times of streams.
const (
	// requestTime is how long a client may take to say what it wants.
	requestTime = 10 * time.Second
	// takeTime is how long who listens may take to come.
	takeTime = 10 * time.Second
	// pingEvery is how often who listens says that it is there; the relay forgets it
	// after idleTime without.
	pingEvery = 30 * time.Second
	idleTime  = 3*pingEvery + pongTime
	pongTime  = 5 * time.Second
	// paceTime is between looks whether there is room for what waits.
	paceTime = 10 * time.Millisecond
)

// pipeBuffer is how much is passed on at once, and socketBuffer what may wait in each
// direction of a socket, of which the kernel makes twice as much: what is in the relay comes
// to a buyer after its seller ended the sale.
const (
	pipeBuffer   = 16 << 10
	socketBuffer = 64 << 10
)

// seat is one who listens.
type seat struct {
	conn   *secretstream.Conn
	from   netip.Prefix
	guests map[*guest]bool // guarded by the server's mu
}

// guest is one who dialed: it waits for the other end, or has a pipe.
type guest struct {
	from  netip.Prefix
	since time.Time
	end   func() // guarded by the server's mu
}

// crowd returns how many guests are of a network. The server's mu is held.
func (x *seat) crowd(of netip.Prefix) (n int) {
	for g := range x.guests {
		if g.from == of {
			n++
		}
	}
	return n
}

// giveWay tells whether one of a network may have the place of the last who came of the network
// that has most, as that has more even then, and takes it. The server's mu is held.
func (s *Server) giveWay(x *seat, of netip.Prefix) bool {
	var worst *guest
	most := x.crowd(of) + 1
	for g := range x.guests {
		if k := x.crowd(g.from); k > most || k == most && worst != nil && g.since.After(worst.since) {
			worst, most = g, k
		}
	}
	if worst == nil {
		return false
	}
	delete(x.guests, worst)
	s.wg.Go(worst.end)
	return true
}

// meeting is one who dialed and waits for the other end.
type meeting struct {
	seat  *seat
	taken chan net.Conn // room for one
}

// hall is what a server knows of streams. The server's mu guards it.
type hall struct {
	conns    map[io.Closer]bool
	seats    map[[32]byte]*seat
	meetings map[[32]byte]*meeting
	by       map[netip.Prefix]int // pipes, and those who wait for one, by who dialed
	pipes    int
}

// ServeStreams relays between those who connect to l by TCP, where UDP does not pass: until l
// or the server is closed. l must be made with noise.IK and without keepalives, by
// [StreamConfig].
func (s *Server) ServeStreams(l *secretstream.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		s.mu.Lock()
		ok := !s.closed
		if ok {
			s.hall.conns[c] = true
			s.wg.Go(func() { s.stream(c, l) })
		}
		s.mu.Unlock()
		if !ok {
			c.Close()
			return net.ErrClosed
		}
	}
}

// forget closes a connection.
func (s *Server) forget(c io.Closer) {
	c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.hall.conns, c)
}

// stream serves one connection. The networks of those who listen, and of those whom one who
// listens takes, are known then: strangers cannot take their place at the door away.
func (s *Server) stream(c *secretstream.Conn, door *secretstream.Listener) {
	defer s.forget(c)
	late := time.AfterFunc(requestTime, func() { c.Close() })
	m, err := c.ReadMessage()
	if !late.Stop() || err != nil {
		return
	}
	switch {
	case len(m) >= 1 && m[0] == opListen:
		s.listen(c, door)
	case len(m) >= 33 && m[0] == opDial:
		s.dial(c, [32]byte(m[1:33]), door)
	case len(m) >= 33 && m[0] == opTake:
		s.take(c, [32]byte(m[1:33]))
	}
}

// listen serves one who listens, until it goes, or comes again.
func (s *Server) listen(c *secretstream.Conn, door *secretstream.Listener) {
	key, x := c.Remote(), &seat{conn: c, from: bucket.Network(c.RemoteAddr()), guests: map[*guest]bool{}}
	s.mu.Lock()
	old := s.hall.seats[key]
	crowd := 0
	for _, y := range s.hall.seats {
		if y.from == x.from {
			crowd++
		}
	}
	full := old == nil && (len(s.hall.seats) >= s.cfg.Pairs || crowd >= s.cfg.Share)
	if full {
		s.stats.Refused++
	} else {
		s.hall.seats[key] = x
	}
	s.mu.Unlock()
	if full {
		c.WriteMessage([]byte{statusBusy}) //nolint:errcheck // it goes
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.hall.seats[key] == x {
			delete(s.hall.seats, key)
		}
	}()
	if old != nil {
		old.conn.Close()
	}
	door.Favor(c.RemoteAddr())
	if c.WriteMessage([]byte{statusOK}) != nil {
		return
	}
	idle := time.AfterFunc(idleTime, func() { c.Close() })
	defer idle.Stop()
	for {
		m, err := c.ReadMessage()
		if err != nil {
			return
		}
		idle.Reset(idleTime)
		if m[0] == opPing && c.WriteMessage([]byte{opPing}) != nil {
			return
		}
	}
}

// dial serves one who wants who listens under a key.
func (s *Server) dial(c *secretstream.Conn, key [32]byte, door *secretstream.Listener) {
	var token [32]byte
	rand.Read(token[:]) //nolint:errcheck // it never fails
	m := &meeting{taken: make(chan net.Conn, 1)}
	status := byte(statusOK)
	from := bucket.Network(c.RemoteAddr())
	g := &guest{from: from, since: time.Now(), end: func() { c.Close() }}
	s.mu.Lock()
	m.seat = s.hall.seats[key]
	switch {
	case m.seat == nil:
		status = statusUnknown
	case m.seat.crowd(from) >= max(s.cfg.PairsPerClient/4, 1) || s.hall.by[from] >= s.cfg.Share || s.used() >= s.cfg.Pairs,
		len(m.seat.guests) >= s.cfg.PairsPerClient && !s.giveWay(m.seat, from):
		status = statusBusy
	default:
		m.seat.guests[g] = true
		s.hall.by[from]++
		s.hall.meetings[token] = m
	}
	if status != statusOK {
		s.stats.Refused++
	}
	s.mu.Unlock()
	if status != statusOK {
		c.WriteMessage([]byte{status}) //nolint:errcheck // it goes
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(m.seat.guests, g)
		if s.hall.by[from]--; s.hall.by[from] == 0 {
			delete(s.hall.by, from)
		}
	}()
	other := s.meet(m, token)
	if other == nil {
		c.WriteMessage([]byte{statusUnknown}) //nolint:errcheck // it goes
		return
	}
	defer s.forget(other)
	door.Favor(c.RemoteAddr())
	if c.WriteMessage([]byte{statusOK}) != nil {
		return
	}
	raw, err := detach(c)
	if err != nil {
		return
	}
	defer s.forget(raw)
	s.mu.Lock()
	s.stats.Paired++
	s.hall.pipes++
	closed := s.closed || !m.seat.guests[g]
	s.hall.conns[raw] = true
	g.end = func() {
		raw.Close()
		other.Close()
	}
	s.mu.Unlock()
	if !closed {
		s.pipe(raw, other)
	}
	s.mu.Lock()
	s.hall.pipes--
	s.mu.Unlock()
}

// meet calls who listens, and waits until it comes; nil if it does not.
func (s *Server) meet(m *meeting, token [32]byte) net.Conn {
	err := m.seat.conn.WriteMessage(append([]byte{opIncoming}, token[:]...))
	t := time.NewTimer(takeTime)
	defer t.Stop()
	if err == nil {
		select {
		case other := <-m.taken:
			return other
		case <-t.C:
		case <-s.stop:
		}
	}
	s.mu.Lock()
	waits := s.hall.meetings[token] == m
	delete(s.hall.meetings, token)
	s.mu.Unlock()
	if waits {
		return nil
	}
	return <-m.taken // it is just coming
}

// take serves one who comes for somebody who dialed.
func (s *Server) take(c *secretstream.Conn, token [32]byte) {
	s.mu.Lock()
	m := s.hall.meetings[token]
	ok := m != nil && m.seat.conn.Remote() == c.Remote()
	if ok {
		delete(s.hall.meetings, token)
	}
	s.mu.Unlock()
	if !ok {
		c.WriteMessage([]byte{statusUnknown}) //nolint:errcheck // it goes
		return
	}
	var raw net.Conn
	defer func() { m.taken <- raw }()
	if c.WriteMessage([]byte{statusOK}) != nil {
		return
	}
	other, err := detach(c)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hall.conns[other] = true
	if raw = other; s.closed {
		other.Close()
	}
}

// detach makes a pipe of a connection.
func detach(c *secretstream.Conn) (net.Conn, error) {
	raw, err := c.Detach()
	if err != nil {
		return nil, err
	}
	t, ok := raw.(interface {
		SetReadBuffer(bytes int) error
		SetWriteBuffer(bytes int) error
	})
	if !ok {
		err = errors.ErrUnsupported
	} else {
		err = errors.Join(t.SetReadBuffer(socketBuffer), t.SetWriteBuffer(socketBuffer))
	}
	if err != nil {
		raw.Close()
	}
	return raw, err
}

// used returns how many pairs there are, and who waits for one. mu is held.
func (s *Server) used() int {
	return len(s.pairs) + len(s.waiting) + len(s.hall.meetings) + s.hall.pipes
}

// pipe passes on what two connections say, until both have ended.
func (s *Server) pipe(a, b net.Conn) {
	p := s.newPace(byTCP)
	if s.cfg.Time > 0 {
		defer time.AfterFunc(s.cfg.Time, func() { a.Close(); b.Close() }).Stop()
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.pass(p, a, b) })
	wg.Go(func() { s.pass(p, b, a) })
	wg.Wait()
}

// pass passes on what one side says, to its end.
func (s *Server) pass(p *pace, from, to net.Conn) {
	err := s.copy(p, from, to)
	if half, ok := to.(interface{ CloseWrite() error }); !errors.Is(err, io.EOF) || !ok || half.CloseWrite() != nil {
		from.Close()
		to.Close()
	}
}

func (s *Server) copy(p *pace, from, to net.Conn) error {
	b := make([]byte, pipeBuffer)
	for {
		if err := from.SetReadDeadline(time.Now().Add(quietTime)); err != nil {
			return err
		}
		n, err := from.Read(b)
		if n > 0 {
			if err := s.wait(p, n); err != nil {
				return err
			}
			if err := to.SetWriteDeadline(time.Now().Add(quietTime)); err != nil {
				return err
			}
			if _, err := to.Write(b[:n]); err != nil {
				return err
			}
			s.mu.Lock()
			s.stats.Bytes += uint64(n)
			s.mu.Unlock()
		}
		if err != nil {
			return err
		}
	}
}

// wait waits until so many bytes may be passed on.
func (s *Server) wait(p *pace, n int) error {
	for !p.allow(n) {
		select {
		case <-time.After(paceTime):
		case <-s.stop:
			return net.ErrClosed
		}
	}
	return nil
}

// Kinds of pairs. Each has half of what the relay passes on, and what the other leaves.
const (
	byUDX = iota
	byTCP
)

// pace is how fast may be passed on between two ends.
type pace struct {
	s    *Server
	kind int
	mu   sync.Mutex
	rate *bucket.Bucket // nil is no limit; guarded by mu
}

func (s *Server) newPace(kind int) *pace {
	p := &pace{s: s, kind: kind}
	if s.cfg.PairRate > 0 {
		p.rate = bucket.New(s.cfg.PairRate, burst(s.cfg.PairRate), time.Now())
	}
	return p
}

// allow tells whether so many bytes may be passed on now.
func (p *pace) allow(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.rate != nil && !p.rate.Ready(now) || !p.s.allow(now, p.kind, float64(n)) {
		return false
	}
	return p.rate == nil || p.rate.TakeN(now, float64(n))
}

// allow tells whether so many bytes of a kind may be passed on now.
func (s *Server) allow(now time.Time, kind int, n float64) bool {
	s.allMu.Lock()
	defer s.allMu.Unlock()
	own, other := s.all[kind], s.all[1-kind]
	return own == nil || own.TakeN(now, n) || other.Unused(now) && other.TakeN(now, n)
}

// errStream is of an answer that says nothing.
var errStream = errors.New("relay: not an answer")

// ask says what is wanted, and reads whether that is done.
func ask(ctx context.Context, c *secretstream.Conn, m []byte) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	err := c.WriteMessage(m)
	var answer []byte
	if err == nil {
		answer, err = c.ReadMessage()
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil:
	case len(answer) != 1:
		err = errStream
	case answer[0] == statusUnknown:
		err = ErrUnknown
	case answer[0] != statusOK:
		err = ErrRefused
	}
	return err
}
