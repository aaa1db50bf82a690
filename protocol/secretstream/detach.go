package secretstream

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// Detach ends the stream without closing what it runs on, and returns that: what follows
// there is neither encrypted nor authentic. Nobody may read or write meanwhile, and the
// connection must have been opened without keepalives. Both sides must agree on the message
// after which they detach; what came behind that is read first.
func (c *Conn) Detach() (net.Conn, error) {
	if c.timer != nil {
		return nil, errors.New("secretstream: a connection with keepalives cannot be detached")
	}
	err := c.Err()
	c.closeOnce.Do(func() {
		c.closeErr = ErrClosed
		close(c.closed)
		err = c.raw.SetDeadline(time.Time{})
	})
	if err != nil {
		c.raw.Close()
		return nil, err
	}
	setUserTimeout(c.raw, 0) // that is for who goes on to say
	rest := append([]byte(nil), c.in.buf[c.in.start:c.in.end]...)
	c.in.give()
	if len(rest) == 0 {
		return c.raw, nil
	}
	return &readAhead{c.raw, rest}, nil
}

// readAhead is a connection of which some was read already.
type readAhead struct {
	net.Conn
	rest []byte
}

func (r *readAhead) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// SyscallConn implements [syscall.Conn], for [Conn.Backlog].
func (r *readAhead) SyscallConn() (syscall.RawConn, error) {
	if c, ok := r.Conn.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// buffers is what a transport may have.
type buffers interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// SetReadBuffer sets how much the kernel holds that came, where the transport can.
func (r *readAhead) SetReadBuffer(n int) error {
	if c, ok := r.Conn.(buffers); ok {
		return c.SetReadBuffer(n)
	}
	return errors.ErrUnsupported
}

// SetWriteBuffer sets how much the kernel holds that goes, where the transport can.
func (r *readAhead) SetWriteBuffer(n int) error {
	if c, ok := r.Conn.(buffers); ok {
		return c.SetWriteBuffer(n)
	}
	return errors.ErrUnsupported
}

// CloseWrite closes the half that is written, where the transport can.
func (r *readAhead) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
