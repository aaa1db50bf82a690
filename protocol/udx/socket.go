package udx

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"
)

// Endpoint holds the streams of a process, which sockets find by their ids: a packet may
// arrive on any of them. All methods are safe for concurrent use.
type Endpoint struct {
	rand  io.Reader
	begun time.Time // carries the monotonic clock

	mu      sync.RWMutex
	streams map[uint32]*Stream // guarded by mu, like legs
	legs    map[uint32]*leg
}

// NewEndpoint returns an Endpoint without streams; random makes stream ids and may be nil
// for crypto/rand.
func NewEndpoint(random io.Reader) *Endpoint {
	if random == nil {
		random = rand.Reader
	}
	return &Endpoint{rand: random, begun: time.Now(), streams: map[uint32]*Stream{}, legs: map[uint32]*leg{}}
}

// now returns the time in nanoseconds since the endpoint began, never 0.
func (e *Endpoint) now() int64 { return int64(time.Since(e.begun)) + 1 }

// Streams returns how many streams there are.
func (e *Endpoint) Streams() int {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return len(e.streams)
}

// claim calls take, with mu held, with a number that is free.
func (e *Endpoint) claim(take func(id uint32)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for {
		var b [4]byte
		if _, err := io.ReadFull(e.rand, b[:]); err != nil {
			return err
		}
		id := binary.LittleEndian.Uint32(b[:])
		if e.streams[id] == nil && e.legs[id] == nil {
			take(id)
			return nil
		}
	}
}

// register gives a stream a number that is free.
func (e *Endpoint) register(s *Stream) error {
	return e.claim(func(id uint32) { s.id, e.streams[id] = id, s })
}

func (e *Endpoint) unregister(s *Stream) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.streams[s.id] == s {
		delete(e.streams, s.id)
	}
}

func (e *Endpoint) find(id uint32) (*Stream, *leg) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.streams[id], e.legs[id]
}

// Close ends all streams at once.
func (e *Endpoint) Close() error {
	e.mu.RLock()
	all := make([]*Stream, 0, len(e.streams))
	for _, s := range e.streams {
		all = append(all, s)
	}
	e.mu.RUnlock()
	for _, s := range all {
		s.Abort()
	}
	return nil
}

// Socket is a datagram socket that streams share among themselves and with another
// protocol. All methods are safe for concurrent use.
type Socket struct {
	ep    *Endpoint
	conn  PacketConn
	other func(s *Socket, b []byte, from netip.AddrPort)
	done  chan struct{}

	mu     sync.Mutex
	closed bool // guarded by mu
	users  int  // streams that are bound to it; guarded by mu
	retire bool // it closes when no stream is bound to it; guarded by mu
}

// NewSocket reads from conn until Close. What is no packet of a stream is given to other,
// from the goroutine that reads; b is valid during the call. lean sockets have buffers of
// one datagram.
func (e *Endpoint) NewSocket(conn PacketConn, lean bool, other func(s *Socket, b []byte, from netip.AddrPort)) *Socket {
	s := &Socket{ep: e, conn: conn, other: other, done: make(chan struct{})}
	size := 64 << 10
	if lean {
		size = 2048
	}
	go s.read(make([]byte, size))
	return s
}

// Endpoint returns whose streams the socket carries.
func (s *Socket) Endpoint() *Endpoint { return s.ep }

// LocalAddr returns where the socket is bound.
func (s *Socket) LocalAddr() netip.AddrPort { return s.conn.LocalAddr() }

// Send sends one datagram; ttl 0 is the usual one.
func (s *Socket) Send(b []byte, to netip.AddrPort, ttl int) error {
	return s.conn.Write(b, max(1, len(b)), to, ttl)
}

// Close closes the socket and returns when nothing reads from it any more. Streams that
// are bound to it hear nothing. It must not be called by what it calls.
func (s *Socket) Close() error {
	err := s.shut()
	<-s.done
	return err
}

// shut closes the socket; it does not wait.
func (s *Socket) shut() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.conn.Close()
}

// Retire closes the socket when the last stream that is bound to it has ended or moved
// away.
func (s *Socket) Retire() {
	s.mu.Lock()
	s.retire = true
	idle := s.users == 0
	s.mu.Unlock()
	if idle {
		s.shut() //nolint:errcheck // it is gone either way
	}
}

// use counts the streams that are bound, and tells whether the socket is not closed.
func (s *Socket) use(n int) bool {
	s.mu.Lock()
	if s.closed && n > 0 {
		s.mu.Unlock()
		return false
	}
	s.users += n
	idle := s.users == 0 && s.retire
	s.mu.Unlock()
	if idle {
		s.shut() //nolint:errcheck // it is gone either way
	}
	return true
}

// read is the goroutine of a socket.
func (s *Socket) read(buf []byte) {
	defer close(s.done)
	var cur *Stream // locked
	release := func() {
		if cur != nil {
			cur.settle()
			hear := cur.hear
			cur.hear = nil
			cur.mu.Unlock()
			if hear != nil {
				hear()
			}
			cur = nil
		}
	}
	for {
		n, size, from, err := s.conn.Read(buf)
		if err != nil {
			if !s.broken(err) {
				continue
			}
			return
		}
		for b := buf[:n]; ; {
			k := len(b)
			if size > 0 {
				k = min(k, size)
			}
			p := b[:k]
			b = b[k:]
			id, ok := IsPacket(p)
			if !ok {
				release()
				if s.other != nil {
					s.other(s, p, from)
				}
			} else {
				if cur == nil || cur.id != id {
					release()
					var l *leg
					if cur, l = s.ep.find(id); cur != nil {
						cur.mu.Lock()
					} else if l != nil {
						l.pass(s, from, p)
					}
				}
				if cur != nil {
					cur.packet(s, from, p)
				}
			}
			if len(b) == 0 {
				break
			}
		}
		release()
	}
}

// broken tells whether err is the end of a socket; if not, it may pass.
func (s *Socket) broken(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var temporary interface{ Temporary() bool }
	return s.closed || !errors.As(err, &temporary) || !temporary.Temporary()
}
