// Package mux runs many channels over one encrypted stream: Protomux.
//
// # Wire
//
// One message of the stream is one frame:
//
//	message: uint channel (>= 1), uint type, payload
//	batch:   00 00, uint channel, then entries: uint length, uint type, payload;
//	         length 0 is followed by the uint channel of the entries after it
//	open:    00 01, uint id, string protocol, optional buffer id, handshake
//	reject:  00 02, uint id of the receiver
//	close:   00 03, uint id of the sender
//
// Each side numbers its channels itself, densely, reusing freed numbers. Both
// sides open; a channel is usable when both did. What is sent behind an open that
// was not yet answered waits at the other side, up to a cap.
//
// # Goroutines
//
// [Mux.Run] reads on the goroutine that calls it and writes on one more.
// Handlers are called one at a time, in the order of the wire, mostly by the
// first. They must not block: while one does, nothing is read.
//
// # Backpressure
//
// Bulk is not queued. When the transport can take more, the writing goroutine
// asks the channels that have something, in turn, to [Producer.Produce] it.
// [Channel.Send] is for small messages: they go into a queue with a cap, at which
// a peer that does not read is cut off. What was sent before something is produced
// is before it on the wire.
//
// Source: specs/hypercore.md, section 8.
package mux

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/protocol/compact"
)

// Stream is what a Mux runs on: *secretstream.Conn.
type Stream interface {
	// ReadMessage returns the next message, valid until the next call.
	ReadMessage() ([]byte, error)
	WriteMessage(m []byte) error
	// Backlog returns how much the other side has not yet acknowledged, if
	// that is known.
	Backlog() (n int, ok bool)
	// SetMaxMessage limits the messages that are read; 0 is the usual limit.
	SetMaxMessage(n int)
	// CloseWrite ends what is sent: the other side reads it to the end.
	CloseWrite() error
	Close() error
}

// Pacer limits the bytes that producers charge.
type Pacer interface {
	// Spend books n bytes that were sent and returns when more may follow.
	Spend(n int) time.Time
}

// Config says how to run channels. All fields may be zero.
type Config struct {
	// Accept is called when the other side opens a channel that this one has
	// not. It may call [Mux.Open] for it. If it does not, the channel is
	// rejected, or kept waiting for a later Open if Accept returns true.
	Accept func(protocol string, id []byte) (wait bool)
	// MaxChannels bounds the channels of each side; 0 is 128.
	MaxChannels int
	// MaxQueue bounds the bytes of small messages that wait to be sent, besides
	// those of the frame that is being written; 0 is 128 KiB.
	MaxQueue int
	// Window, if not 0, bounds the bytes that are sent and not acknowledged
	// when producers are asked: see [Batch.Fits].
	Window int
	// Pace limits producers; nil does not.
	Pace Pacer
	// Stall is how long the other side may acknowledge nothing while there is
	// more to send than the Window lets, and how long this side may leave a
	// channel unopened for which more came than is kept; 0 is 30 s.
	Stall time.Duration
}

// maxSend is the largest message that Send takes: what every peer reads.
const maxSend = 48 << 10

// lastWords is how long Finish waits for the other side.
const lastWords = 2 * time.Second

// maxEarly bounds what waits for channels that this side has not opened, with
// earlyCost for each message.
const (
	maxEarly  = 32 << 10
	earlyCost = 512
)

// Mux is a connection with its channels. All methods are safe for concurrent
// use.
type Mux struct {
	stream Stream
	cfg    Config
	wake   chan struct{} // capacity 1: the writer has something to look at

	mu        sync.Mutex
	released  sync.Cond        // on mu: fewer early messages, or the end
	locals    []*Channel       // by local id - 1; guarded by mu, like all below
	free      []uint64         // local ids to be used again, last first
	remotes   []*remote        // by remote id - 1
	held      []*remote        // opened by the other side alone, in order
	waiting   []*Channel       // opened by this side alone, in order
	paired    []*Channel       // opened by both, Opened not yet called
	early     int              // cost of the early messages
	queue     []Batch          // small messages, in frames
	queued    int              // bytes in them; also in pending
	hold      time.Time        // producers are not asked before
	level     uint64           // bytes produced by whose turn it was last
	limits    map[*Channel]int // what channels asked of SetMaxMessage
	err       error            // why it ended
	finishing bool             // it ends when the queue is written

	pending atomic.Int64

	calls sync.Mutex // held while a handler is called
}

// remote is a channel as the other side opened it.
type remote struct {
	id        uint64
	protocol  string
	key       string
	handshake []byte
	ch        *Channel // nil while held
	early     [][]byte // type and payload
}

// New returns a Mux on the stream. Channels may be opened before Run.
func New(s Stream, cfg Config) *Mux {
	if cfg.MaxChannels == 0 {
		cfg.MaxChannels = 128
	}
	if cfg.MaxQueue == 0 {
		cfg.MaxQueue = 128 << 10
	}
	if cfg.Stall == 0 {
		cfg.Stall = 30 * time.Second
	}
	m := &Mux{stream: s, cfg: cfg, wake: make(chan struct{}, 1), limits: map[*Channel]int{}}
	m.released.L = &m.mu
	if cfg.Pace != nil {
		m.hold = cfg.Pace.Spend(0) // no frame is free
	}
	return m
}

// Run reads and writes until the connection ends and returns why. Then all
// channels are closed.
func (m *Mux) Run() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.fail(m.write())
	}()
	m.fail(m.read())
	<-done
	m.mu.Lock()
	err := m.err
	var all []*Channel
	for _, c := range m.locals {
		if c != nil && !c.closed {
			c.closed = true
			all = append(all, c)
		}
	}
	m.locals, m.remotes, m.held, m.waiting, m.paired = nil, nil, nil, nil, nil
	m.mu.Unlock()
	m.calls.Lock()
	defer m.calls.Unlock()
	for _, c := range all {
		c.handler.Closed(err)
	}
	return err
}

// Close ends the connection; Run returns.
func (m *Mux) Close() { m.fail(ErrClosed) }

// Finish ends the connection when what is queued was written and the other side
// had time to read it; producers are not asked, and handlers not called, any more.
func (m *Mux) Finish() {
	m.mu.Lock()
	m.finishing = true
	m.mu.Unlock()
	m.signal()
}

// Fail ends the connection with an error, which Run returns.
func (m *Mux) Fail(err error) { m.fail(err) }

// fail ends the connection with the first error.
func (m *Mux) fail(err error) {
	m.mu.Lock()
	if m.err == nil {
		m.err = err
	}
	m.released.Broadcast()
	m.mu.Unlock()
	m.signal()
	m.stream.Close()
}

func (m *Mux) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// send queues a message. mu is held.
func (m *Mux) send(ch, typ uint64, payload []byte) error {
	switch {
	case m.err != nil:
		return m.err
	case len(payload) > maxSend:
		return fmt.Errorf("%w: %d bytes", ErrTooLarge, len(payload))
	case m.queued+len(payload) > m.cfg.MaxQueue:
		m.err = ErrSlow
		m.released.Broadcast()
		m.signal()
		m.stream.Close()
		return m.err
	}
	if n := len(m.queue); n == 0 || m.queue[n-1].Full() || len(m.queue[n-1].buf)+len(payload) > maxMerged {
		m.queue = slices.Grow(m.queue, 1)[:n+1]
		m.queue[n].reset()
	}
	q := &m.queue[len(m.queue)-1]
	before := len(q.buf)
	q.close(append(q.open(ch, typ, len(payload)), payload...))
	m.setQueued(m.queued + len(q.buf) - before)
	m.signal()
	return nil
}

// setQueued notes how many bytes are queued. mu is held.
func (m *Mux) setQueued(n int) {
	m.queued = n
	m.pending.Store(int64(n))
}

func (m *Mux) read() error {
	for {
		b, err := m.stream.ReadMessage()
		if err != nil {
			return err
		}
		if m.isFinishing() {
			continue // what it still says is of no interest
		}
		if err := m.frame(b); err != nil {
			return err
		}
	}
}

func (m *Mux) isFinishing() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.finishing
}

// frame takes one frame apart.
func (m *Mux) frame(b []byte) error {
	ch, b, err := compact.ParseUint(b)
	if err != nil {
		return fmt.Errorf("%w: frame: %w", ErrProtocol, err)
	}
	if ch != control || len(b) == 0 || b[0] != typeBatch {
		return m.message(ch, b)
	}
	if ch, b, err = compact.ParseUint(b[1:]); err != nil {
		return fmt.Errorf("%w: batch: %w", ErrProtocol, err)
	}
	for len(b) > 0 {
		var n uint64
		if n, b, err = compact.ParseUint(b); err != nil {
			return fmt.Errorf("%w: batch: %w", ErrProtocol, err)
		}
		if n == 0 {
			if ch, b, err = compact.ParseUint(b); err != nil {
				return fmt.Errorf("%w: batch: %w", ErrProtocol, err)
			}
			continue
		}
		if n > uint64(len(b)) {
			return fmt.Errorf("%w: batch: a message of %d bytes in %d", ErrProtocol, n, len(b))
		}
		if err := m.message(ch, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// message handles type and payload of one message.
func (m *Mux) message(ch uint64, b []byte) error {
	typ, payload, err := compact.ParseUint(b)
	if err != nil {
		return fmt.Errorf("%w: message: %w", ErrProtocol, err)
	}
	if ch == control {
		return m.control(typ, payload)
	}
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return m.err
	}
	var c *Channel
	if ch <= uint64(len(m.remotes)) && m.remotes[ch-1] != nil {
		r := m.remotes[ch-1]
		var timer *time.Timer
		for c = r.ch; c == nil || !c.opened; c = r.ch {
			if r.ch != nil && r.ch.closed {
				break
			}
			if cost := len(b) + earlyCost; m.early+cost <= maxEarly {
				r.early = append(r.early, slices.Clone(b))
				m.early += cost
				break
			}
			if timer == nil {
				timer = time.AfterFunc(m.cfg.Stall, func() { m.fail(fmt.Errorf("%w: nobody opens channel %d", ErrSlow, ch)) })
				defer timer.Stop()
			}
			if len(m.paired) > 0 { // it was opened, and is not yet told so
				m.mu.Unlock()
				if err := m.open(); err != nil {
					return err
				}
				m.mu.Lock()
			} else {
				m.released.Wait() // until somebody opens it
			}
			if m.err != nil {
				m.mu.Unlock()
				return m.err
			}
		}
		if c != nil && !c.opened {
			c = nil
		}
	}
	m.mu.Unlock()
	if c == nil {
		return nil // it waits, or was closed meanwhile
	}
	return m.call(func() error {
		if c.isClosed() {
			return nil
		}
		return c.handler.Message(typ, payload)
	})
}

// call runs f as a handler, and what became due meanwhile.
func (m *Mux) call(f func() error) error {
	m.calls.Lock()
	err := f()
	m.calls.Unlock()
	if err != nil {
		return err
	}
	return m.open()
}

// open calls Opened of channels that were paired, with their early messages,
// unless another handler runs: then that goroutine does.
func (m *Mux) open() error {
	for {
		m.mu.Lock()
		pending := len(m.paired) > 0
		m.mu.Unlock()
		if !pending || !m.calls.TryLock() {
			return nil
		}
		err := m.openAll()
		m.calls.Unlock()
		if err != nil {
			return err
		}
	}
}

// openAll runs with calls held.
func (m *Mux) openAll() error {
	for {
		m.mu.Lock()
		if len(m.paired) == 0 {
			m.mu.Unlock()
			return nil
		}
		c := m.paired[0]
		m.paired = m.paired[1:]
		r, closed, err := c.remote, c.closed, m.err
		m.mu.Unlock()
		if err != nil {
			return err
		}
		if r == nil || closed {
			continue
		}
		if err := c.handler.Opened(r.handshake); err != nil {
			return err
		}
		for {
			m.mu.Lock()
			if len(r.early) == 0 || c.closed {
				c.opened = true
				m.drop(r)
				m.mu.Unlock()
				m.signal() // it may have something to produce
				break
			}
			b := r.early[0]
			r.early = r.early[1:]
			m.early -= len(b) + earlyCost
			m.mu.Unlock()
			typ, payload, err := compact.ParseUint(b)
			if err != nil {
				return fmt.Errorf("%w: message: %w", ErrProtocol, err)
			}
			if err := c.handler.Message(typ, payload); err != nil {
				return err
			}
		}
	}
}

// drop forgets the early messages of a channel. mu is held.
func (m *Mux) drop(r *remote) {
	for _, b := range r.early {
		m.early -= len(b) + earlyCost
	}
	r.early = nil
	m.released.Broadcast()
}
