// Package secretstream is the encrypted, authenticated stream of messages below
// Protomux: @hyperswarm/secret-stream over any [net.Conn].
//
// # Wire
//
//	frame     = uint24 LE length, bytes
//	handshake = the messages of package noise, one frame each
//	header    = streamId(32) || secretstream header(24), one frame from each side
//	message   = encrypted tag(1) || ciphertext || Poly1305 MAC(16), one frame
//
// streamId is BLAKE2b-256 of the sender's role, keyed with the handshake hash. A
// message is libsodium's secretstream_xchacha20poly1305, tag 0, with a state for
// each direction. A message without bytes is a keepalive and never delivered.
//
// # Memory
//
// A connection that waits keeps a read buffer of 4 KiB; while more comes, and for
// what it writes, it borrows a larger one. Above that a buffer grows only as the
// bytes of a frame come in, and no frame above the limit is read.
//
// Source: specs/hypercore.md, section 7.
package secretstream

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/protocol/noise"
)

// MaxMessage is the largest message that a frame can hold.
const MaxMessage = 1<<24 - 1 - overhead

// Config says how to open a connection. Static is required, and Remote for the
// initiator of IK.
type Config struct {
	// Pattern is noise.XX, or noise.IK for an initiator that knows Remote.
	Pattern noise.Pattern
	// Static is this side's identity.
	Static ed25519.PrivateKey
	// Remote, if not zero, is the key that the other side must prove to have.
	Remote [32]byte
	// Keys, if not nil, is the outcome of a handshake that took place elsewhere: there is
	// none here then, and Pattern means nothing.
	Keys *noise.Result
	// MaxMessage limits what is read, in bytes; 0 is 64 KiB. See
	// [Conn.SetMaxMessage].
	MaxMessage int
	// KeepAlive is how long this side is silent at most; 0 is 5 s, negative
	// for ever.
	KeepAlive time.Duration
	// HandshakeTimeout bounds [Client] and [Server]; 0 is 10 s.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long 64 KiB may wait for the other side to read; 0
	// is 30 s. Who is slower is cut off.
	WriteTimeout time.Duration
	// Rand makes ephemeral keys and headers; nil is crypto/rand.
	Rand io.Reader
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.KeepAlive, 5*time.Second)
	def(&c.HandshakeTimeout, 10*time.Second)
	def(&c.WriteTimeout, 30*time.Second)
	if c.MaxMessage == 0 {
		c.MaxMessage = 64 << 10
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	return c
}

// Conn is an authenticated connection. One goroutine may read while others
// write.
//
// As the responder of IK the first message of the handshake is all that was
// heard of the other side, and it may be a copy of an older one: only the first
// message that [Conn.ReadMessage] returns proves that [Conn.Remote] is there.
type Conn struct {
	raw       net.Conn
	cfg       Config
	initiator bool
	keys      noise.Result

	follow follower // raw, if it wants to know what was authentic

	in  reader // owned by the goroutine that reads
	rx  *state // nil until the header came; like in
	max atomic.Int64

	wmu    sync.Mutex
	tx     *state // guarded by wmu
	failed error  // guarded by wmu: why nothing can be written any more

	begun time.Time    // carries the monotonic clock
	last  atomic.Int64 // when something was written last, ns after begun
	timer *time.Timer  // of the keepalive; nil without

	closeOnce sync.Once
	closed    chan struct{}
	closeErr  error // read after closed
}

// Client opens the connection as the one that dialed. It closes raw if it fails.
func Client(ctx context.Context, raw net.Conn, cfg Config) (*Conn, error) {
	return open(ctx, raw, cfg, true)
}

// Server opens the connection as the one that was dialed. It closes raw if it
// fails.
func Server(ctx context.Context, raw net.Conn, cfg Config) (*Conn, error) {
	return open(ctx, raw, cfg, false)
}

func open(ctx context.Context, raw net.Conn, cfg Config, initiator bool) (*Conn, error) {
	cfg = cfg.withDefaults()
	deadline := time.Now().Add(cfg.HandshakeTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	c := &Conn{raw: raw, cfg: cfg, initiator: initiator, closed: make(chan struct{}), begun: time.Now()}
	c.follow, _ = raw.(follower)
	err := raw.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	if err == nil {
		err = c.handshake()
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("secretstream: handshake: %w", err)
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		raw.Close()
		return nil, err
	}
	c.max.Store(int64(cfg.MaxMessage))
	setUserTimeout(raw, cfg.WriteTimeout)
	c.wrote()
	if cfg.KeepAlive > 0 {
		c.timer = time.AfterFunc(time.Hour, c.keepAlive)
		c.timer.Reset(cfg.KeepAlive) // not before timer is set
	}
	return c, nil
}

// maxHandshake is the longest handshake message.
const maxHandshake = 256

func (c *Conn) handshake() error {
	if c.cfg.Keys != nil {
		c.keys = *c.cfg.Keys
		return c.begin(nil)
	}
	h, err := noise.New(noise.Config{
		Pattern: c.cfg.Pattern, Initiator: c.initiator, Static: c.cfg.Static, Remote: c.cfg.Remote, Rand: c.cfg.Rand,
	})
	if err != nil {
		return err
	}
	var out []byte
	for mine := c.initiator; h.Result() == nil; mine = !mine {
		if !mine {
			m, err := c.in.next(c.raw, maxHandshake)
			if err != nil {
				return err
			}
			if _, err := h.Read(m); err != nil {
				return err
			}
			continue
		}
		if out, err = h.Write(make([]byte, 3, 3+maxHandshake), nil); err != nil {
			return err
		}
		putLength(out, len(out)-3)
		if h.Result() != nil {
			break // goes out with the header
		}
		if _, err := c.raw.Write(out); err != nil {
			return err
		}
		out = nil
	}
	c.keys = *h.Result()
	return c.begin(out)
}

// begin sends the header, behind what is left of the handshake.
func (c *Conn) begin(out []byte) (err error) {
	if c.cfg.Remote != [32]byte{} && c.keys.Remote != c.cfg.Remote {
		return fmt.Errorf("%w: %x", ErrIdentity, c.keys.Remote)
	}
	id := StreamID(c.keys.Hash, c.initiator)
	header := append(make([]byte, 3, 3+len(id)+headerSize), id[:]...)
	header = header[:cap(header)]
	putLength(header, len(header)-3)
	seed := header[len(header)-headerSize:]
	if _, err := io.ReadFull(c.cfg.Rand, seed); err != nil {
		return err
	}
	if c.tx, err = newState(c.keys.TX, seed); err != nil {
		return err
	}
	_, err = c.raw.Write(append(out, header...))
	return err
}

// StreamID returns what a side's header begins with.
func StreamID(handshakeHash [64]byte, initiator bool) [32]byte {
	role := byte(1)
	if initiator {
		role = 0
	}
	h, err := blake2b.New256(handshakeHash[:])
	if err != nil {
		panic(err) // a key of 64 bytes is allowed
	}
	ns := namespace("hyperswarm/secret-stream", role)
	h.Write(ns[:])
	return [32]byte(h.Sum(nil))
}

func namespace(name string, id byte) [32]byte {
	n := blake2b.Sum256([]byte(name))
	return blake2b.Sum256(append(n[:], id))
}

func putLength(b []byte, n int) { b[0], b[1], b[2] = byte(n), byte(n>>8), byte(n>>16) }

// Local returns this side's static public key.
func (c *Conn) Local() [32]byte { return [32]byte(c.cfg.Static[ed25519.SeedSize:]) }

// Remote returns the other side's static public key.
func (c *Conn) Remote() [32]byte { return c.keys.Remote }

// HandshakeHash returns the 64 bytes that are unique to this connection and the
// same on both sides.
func (c *Conn) HandshakeHash() [64]byte { return c.keys.Hash }

// Initiator tells whether this side began the handshake.
func (c *Conn) Initiator() bool { return c.initiator }

// RemoteAddr returns the address of the other side.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// SetMaxMessage changes the limit for the messages that are read from now on; 0
// is that of the Config.
func (c *Conn) SetMaxMessage(n int) {
	if n == 0 {
		n = c.cfg.MaxMessage
	}
	c.max.Store(int64(n))
}

// ReadMessage returns the next message. It is valid until the next call. At the
// end of the stream the error is [io.EOF]. After any error the connection is
// closed.
func (c *Conn) ReadMessage() ([]byte, error) {
	for {
		if err := c.Err(); err != nil {
			return nil, err
		}
		m, err := c.read()
		if err != nil {
			c.closeWith(err)
			return nil, c.closeErr
		}
		if len(m) > 0 {
			return m, nil
		}
	}
}

// read returns the next message, which may be a keepalive.
func (c *Conn) read() ([]byte, error) {
	if c.rx == nil {
		b, err := c.in.next(c.raw, 32+headerSize)
		if err != nil {
			return nil, err
		}
		if id := StreamID(c.keys.Hash, !c.initiator); len(b) != len(id)+headerSize || [32]byte(b) != id {
			return nil, ErrHeader
		}
		if c.rx, err = newState(c.keys.RX, b[32:]); err != nil {
			return nil, err
		}
	}
	b, err := c.in.next(c.raw, int(c.max.Load())+overhead)
	if err != nil {
		return nil, err
	}
	if len(b) < overhead {
		return nil, fmt.Errorf("%w: %d bytes", ErrFrame, len(b))
	}
	// The tag block takes the place of what was read before.
	tag := b[0]
	room := c.in.before(blockSize - 1)
	m, ok, err := c.rx.open(room, tag)
	if err == nil && !ok {
		err = ErrAuth
	}
	if err == nil && c.follow != nil {
		c.follow.Authenticated(c.in.taken)
	}
	return m, err
}

// frames lends buffers for frames of usual size.
var frames = sync.Pool{New: func() any { return new([poolFrame]byte) }}

// poolFrame is the size of a lent buffer: a batch of 16 KiB with a message more.
const poolFrame = 20 << 10

// WriteMessage encrypts and sends a message of at most [MaxMessage] bytes. It
// returns when the transport took it. Who does not read is cut off after the
// WriteTimeout.
func (c *Conn) WriteMessage(m []byte) error {
	if len(m) > MaxMessage {
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(m))
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return c.write(m)
}

// write sends a message. wmu is held.
func (c *Conn) write(m []byte) error {
	if c.failed != nil {
		return c.failed
	}
	var b []byte
	if n := blockSize + len(m) + macSize; n <= poolFrame {
		p := frames.Get().(*[poolFrame]byte)
		defer frames.Put(p)
		b = p[:]
	} else {
		b = make([]byte, n)
	}
	b = b[:blockSize+len(m)]
	clear(b[:blockSize])
	copy(b[blockSize:], m)
	b, err := c.tx.seal(b)
	if err == nil {
		// Of the tag block only the first byte travels, behind the length.
		b[blockSize-1] = b[0]
		b = b[blockSize-4:]
		putLength(b, len(b)-3)
		err = c.writeAll(b)
	}
	if err != nil {
		c.closeWith(err)
		c.failed = c.closeErr
		return c.failed
	}
	c.wrote()
	return nil
}

// wrote notes that something was written.
func (c *Conn) wrote() { c.last.Store(int64(time.Since(c.begun))) }

// CloseWrite says that nothing more will be written, where the transport can;
// the other side reads to the end, then [io.EOF].
func (c *Conn) CloseWrite() error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.failed != nil {
		return c.failed
	}
	c.failed = ErrClosed
	t, ok := c.raw.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return t.CloseWrite()
}

// writeAll writes in pieces, each in time.
func (c *Conn) writeAll(b []byte) error {
	const piece = 64 << 10
	for len(b) > 0 {
		if c.cfg.WriteTimeout > 0 {
			if err := c.raw.SetWriteDeadline(time.Now().Add(c.cfg.WriteTimeout)); err != nil {
				return err
			}
		}
		n, err := c.raw.Write(b[:min(len(b), piece)])
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// keepAlive runs when the timer fires.
func (c *Conn) keepAlive() {
	quiet := time.Since(c.begun) - time.Duration(c.last.Load())
	if quiet >= c.cfg.KeepAlive {
		if c.Touch() != nil {
			return
		}
		quiet = 0
	}
	select {
	case <-c.closed:
	default:
		c.timer.Reset(c.cfg.KeepAlive - quiet)
	}
}

// Touch sends an empty message, by which the other side hears of this one, unless something
// is being written anyway.
func (c *Conn) Touch() error {
	if !c.wmu.TryLock() {
		return nil
	}
	defer c.wmu.Unlock()
	return c.write(nil)
}

// ErrClosed says that the connection was closed by this side.
var ErrClosed = errors.New("secretstream: connection is closed")

// Close closes the connection. Reads and writes that wait return.
func (c *Conn) Close() error {
	c.closeWith(ErrClosed)
	return nil
}

// Done is closed when the connection is.
func (c *Conn) Done() <-chan struct{} { return c.closed }

// Err returns why the connection was closed, nil while it is not.
func (c *Conn) Err() error {
	select {
	case <-c.closed:
		return c.closeErr
	default:
		return nil
	}
}

func (c *Conn) closeWith(err error) {
	c.closeOnce.Do(func() {
		c.closeErr = err
		close(c.closed)
		if c.timer != nil {
			c.timer.Stop()
		}
		c.raw.Close()
	})
}

// A follower is a transport that wants to know that the first n bytes that were read of it
// are from the other side: by that it knows where that is.
type follower interface{ Authenticated(n int64) }

// A Transport is a [net.Conn] that knows what the other side has not yet
// acknowledged. TCP connections need not implement it on Linux.
type Transport interface {
	net.Conn
	// Backlog returns how many bytes were written and not yet acknowledged.
	Backlog() int
}

// Backlog returns how many bytes were written and not yet acknowledged by the
// other side, if the transport can tell.
func (c *Conn) Backlog() (n int, ok bool) {
	if t, ok := c.raw.(Transport); ok {
		return t.Backlog(), true
	}
	return tcpBacklog(c.raw)
}
