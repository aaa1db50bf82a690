package udx

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Read reads what came; [io.EOF] when the other side has closed.
func (s *Stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closing:
			return 0, s.failed("read", net.ErrClosed)
		case passed(s.readBy):
			return 0, s.failed("read", os.ErrDeadlineExceeded)
		case s.in.n > 0:
			n := s.in.pop(p)
			if s.consumed(int64(n), s.ep.now(), s.cfg.MaxWindow) && s.err == nil && !s.over {
				s.ackDue = true
				s.settle()
			}
			return n, nil
		case len(p) == 0:
			return 0, nil
		case s.ended:
			return 0, io.EOF
		case s.err != nil:
			return 0, s.failed("read", s.err)
		}
		wait(&s.rd, s.readBy)
	}
}

// Write returns when the stream took all of p: see [StreamConfig.SendBuffer].
func (s *Stream) Write(p []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closing:
			return n, s.failed("write", net.ErrClosed)
		case s.err != nil:
			return n, s.failed("write", s.err)
		case s.finish:
			return n, s.failed("write", syscall.EPIPE)
		case passed(s.writeBy):
			return n, s.failed("write", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return n, nil
		}
		if room := s.cfg.SendBuffer - s.out.n; room > 0 {
			k := min(room, len(p))
			s.out.push(p[:k])
			n, p = n+k, p[k:]
			s.settle()
			continue
		}
		wait(&s.wr, s.writeBy)
	}
}

// passed tells whether a deadline has.
func passed(by time.Time) bool { return !by.IsZero() && time.Until(by) <= 0 }

// wait waits for c until a deadline.
func wait(c *sync.Cond, by time.Time) {
	if by.IsZero() {
		c.Wait()
		return
	}
	t := time.AfterFunc(time.Until(by), func() {
		c.L.Lock()
		defer c.L.Unlock()
		c.Broadcast()
	})
	defer t.Stop()
	c.Wait()
}

func (s *Stream) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "udx", Addr: net.UDPAddrFromAddrPort(s.path.remote), Err: err}
}

// Backlog returns how many bytes were written and not yet acknowledged.
func (s *Stream) Backlog() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.n
}

// LocalAddr returns where the socket is bound that the stream uses.
func (s *Stream) LocalAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path.sock == nil {
		return &net.UDPAddr{}
	}
	return net.UDPAddrFromAddrPort(s.path.sock.LocalAddr())
}

// RemoteAddr returns where packets are sent to.
func (s *Stream) RemoteAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return net.UDPAddrFromAddrPort(s.path.remote)
}

// SetDeadline is for reading and writing.
func (s *Stream) SetDeadline(t time.Time) error { return s.deadline(t, &s.readBy, &s.writeBy) }

// SetReadDeadline is for reads, also those that wait.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.deadline(t, &s.readBy) }

// SetWriteDeadline is for writes, also those that wait.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.deadline(t, &s.writeBy) }

func (s *Stream) deadline(t time.Time, all ...*time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range all {
		*d = t
	}
	s.rd.Broadcast()
	s.wr.Broadcast()
	return nil
}
