package mux

import (
	"fmt"
	"slices"
	"time"

	"dazaar-edge/protocol/compact"
)

// Handler is one end of a channel. Its methods are called one at a time. An
// error that they return ends the connection.
type Handler interface {
	// Opened is called once both sides have opened, with what the other one
	// said when it did.
	Opened(handshake []byte) error
	// Message is called for each message; payload is valid during the call.
	// Types that are not known should be ignored.
	Message(typ uint64, payload []byte) error
	// Closed is called once, unless this side closed the channel: with
	// ErrRejected, ErrRemoteClosed, or why the connection ended.
	Closed(err error)
}

// Producer is a [Handler] that has bulk to send.
type Producer interface {
	Handler
	// Produce appends messages until b is full, or does not fit one, or there
	// is nothing to send. It is called by the writing goroutine, while
	// handlers may run. If it appends nothing, it is asked again after
	// [Channel.Wake], at the time it returns if that is not zero, or when the
	// transport may have room, if it lacked that.
	Produce(b *Batch) (next time.Time)
}

// ChannelConfig says which channel to open. Protocol and Handler are required.
type ChannelConfig struct {
	Protocol string
	// Aliases are other names by which the other side may open it.
	Aliases []string
	// ID tells channels of one protocol apart.
	ID        []byte
	Handshake []byte
	Handler   Handler
}

// Channel is a channel that this side opened.
type Channel struct {
	m        *Mux
	cfg      ChannelConfig
	handler  Handler
	producer Producer // handler, if it is one

	// All below is guarded by m.mu.
	local  uint64
	remote *remote // nil until the other side opened
	opened bool    // Opened was called, and early messages were delivered
	closed bool
	ready  bool      // has something to produce
	next   time.Time // or will then, if not zero
	spent  uint64    // bytes produced, since it caught up with the others
}

func (c *Channel) matches(r *remote) bool {
	return r.key == string(c.cfg.ID) && (r.protocol == c.cfg.Protocol || slices.Contains(c.cfg.Aliases, r.protocol))
}

// Open opens a channel. Messages may be sent at once; the handler is not called
// before Open returned, or the handler that calls it. It fails with [ErrExists]
// while there is one of the same protocol and id, and with [ErrTooMany].
func (m *Mux) Open(cfg ChannelConfig) (*Channel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return nil, m.err
	}
	open := 0
	for _, o := range m.locals {
		if o == nil {
			continue
		}
		open++
		if !o.closed && o.cfg.Protocol == cfg.Protocol && string(o.cfg.ID) == string(cfg.ID) {
			return nil, fmt.Errorf("%w: %s %x", ErrExists, cfg.Protocol, cfg.ID)
		}
	}
	if open >= m.cfg.MaxChannels {
		return nil, ErrTooMany
	}
	c := &Channel{m: m, cfg: cfg, handler: cfg.Handler}
	c.producer, _ = cfg.Handler.(Producer)
	if n := len(m.free); n > 0 {
		c.local, m.free = m.free[n-1], m.free[:n-1]
		m.locals[c.local-1] = c
	} else {
		m.locals = append(m.locals, c)
		c.local = uint64(len(m.locals))
	}
	b := compact.AppendUint(nil, c.local)
	b = compact.AppendString(b, cfg.Protocol)
	b = compact.AppendBuffer(b, cfg.ID)
	if err := m.send(control, typeOpen, append(b, cfg.Handshake...)); err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(m.held, c.matches); i >= 0 {
		r := m.held[i]
		m.held = slices.Delete(m.held, i, i+1)
		m.pair(c, r)
	} else {
		m.waiting = append(m.waiting, c)
	}
	return c, nil
}

// pair joins the two halves of a channel. mu is held.
func (m *Mux) pair(c *Channel, r *remote) {
	if c.closed { // this side closed before the other one opened
		// It is told again: a stock peer that asked its application first whether
		// to open forgets the first time, and the id may be used again.
		m.send(control, typeClose, compact.AppendUint(nil, c.local)) //nolint:errcheck // the connection ends
		m.remotes[r.id-1] = nil
		m.freeLocal(c)
		m.drop(r)
		return
	}
	c.remote, r.ch = r, c
	m.paired = append(m.paired, c)
	m.released.Broadcast()
	m.signal()
}

// freeLocal lets a local id be used again. mu is held.
func (m *Mux) freeLocal(c *Channel) {
	if m.locals[c.local-1] == c {
		m.locals[c.local-1] = nil
		m.free = append(m.free, c.local)
		m.limit(c, 0)
	}
}

// Send queues a small message, of at most 48 KiB. It never waits: when too much
// waits to be sent already, the connection ends with [ErrSlow].
func (c *Channel) Send(typ uint64, payload []byte) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	return c.m.send(c.local, typ, payload)
}

// SetMaxMessage raises the limit for the messages that are read on this
// connection to n bytes, until the channel is closed or asks for another; 0 is
// the usual limit of the stream.
func (c *Channel) SetMaxMessage(n int) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if !c.closed {
		c.m.limit(c, n)
	}
}

// limit sets what a channel asks for; the most that one asks for holds. mu is held.
func (m *Mux) limit(c *Channel, n int) {
	if m.limits[c] == n {
		return
	}
	m.limits[c] = n
	if n == 0 {
		delete(m.limits, c)
	}
	most := 0
	for _, n := range m.limits {
		most = max(most, n)
	}
	m.stream.SetMaxMessage(most)
}

// Wake says that the handler, a [Producer], has something to send.
func (c *Channel) Wake() {
	c.m.mu.Lock()
	c.ready = true
	c.m.mu.Unlock()
	c.m.signal()
}

// Close closes the channel. When it has returned, the handler's messages and
// what is queued are still sent, but nothing more is delivered or produced after
// the call that may be running.
func (c *Channel) Close() {
	m := c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.closed || m.err != nil {
		return
	}
	c.closed = true
	if m.send(control, typeClose, compact.AppendUint(nil, c.local)) != nil {
		return
	}
	if r := c.remote; r != nil {
		m.remotes[r.id-1] = nil
		m.drop(r)
		m.freeLocal(c)
	}
}

func (c *Channel) isClosed() bool {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	return c.closed
}

// control handles a control message.
func (m *Mux) control(typ uint64, b []byte) error {
	if typ != typeOpen && typ != typeReject && typ != typeClose {
		return nil
	}
	id, rest, err := compact.ParseUint(b)
	if err != nil {
		return fmt.Errorf("%w: control message %d: %w", ErrProtocol, typ, err)
	}
	switch typ {
	case typeOpen:
		return m.remoteOpen(id, rest)
	case typeReject:
		return m.remoteReject(id)
	default:
		return m.remoteClose(id)
	}
}

// maxName bounds the protocol's name and the id of a channel, maxOpening what is
// said with it.
const (
	maxName    = 256
	maxOpening = 4096
)

func (m *Mux) remoteOpen(id uint64, b []byte) error {
	protocol, b, err := compact.ParseBuffer(b)
	var key []byte
	if err == nil {
		key, b, err = compact.ParseBuffer(b)
	}
	if err == nil && (len(protocol) > maxName || len(key) > maxName || len(b) > maxOpening) {
		err = compact.ErrRange
	}
	if err != nil {
		return fmt.Errorf("%w: open: %w", ErrProtocol, err)
	}
	m.mu.Lock()
	if id == 0 || id > uint64(m.cfg.MaxChannels) {
		defer m.mu.Unlock()
		return m.send(control, typeReject, compact.AppendUint(nil, id))
	}
	switch n := uint64(len(m.remotes)); {
	case id > n+1:
		err = fmt.Errorf("%w: channel %d is opened, %d are in use", ErrProtocol, id, n)
	case id == n+1:
		m.remotes = append(m.remotes, nil)
	case m.remotes[id-1] != nil:
		err = fmt.Errorf("%w: channel %d is opened twice", ErrProtocol, id)
	}
	if err != nil {
		m.mu.Unlock()
		return err
	}
	r := &remote{id: id, protocol: string(protocol), key: string(key), handshake: slices.Clone(b)}
	m.remotes[id-1] = r
	if i := slices.IndexFunc(m.waiting, func(c *Channel) bool { return c.matches(r) }); i >= 0 {
		c := m.waiting[i]
		m.waiting = slices.Delete(m.waiting, i, i+1)
		m.pair(c, r)
		m.mu.Unlock()
		return m.open()
	}
	m.held = append(m.held, r)
	m.mu.Unlock()
	wait := false
	if m.cfg.Accept != nil {
		if err := m.call(func() error { wait = m.cfg.Accept(r.protocol, []byte(r.key)); return nil }); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.held, r); i >= 0 && !wait {
		m.held = slices.Delete(m.held, i, i+1)
		m.remotes[id-1] = nil
		return m.send(control, typeReject, compact.AppendUint(nil, id))
	}
	return nil
}

func (m *Mux) remoteReject(id uint64) error {
	m.mu.Lock()
	if id == 0 || id > uint64(len(m.locals)) || m.locals[id-1] == nil || m.locals[id-1].remote != nil {
		m.mu.Unlock()
		return fmt.Errorf("%w: channel %d is rejected and was not waiting", ErrProtocol, id)
	}
	c := m.locals[id-1]
	if i := slices.Index(m.waiting, c); i >= 0 {
		m.waiting = slices.Delete(m.waiting, i, i+1)
	}
	return m.closed(c, ErrRejected)
}

func (m *Mux) remoteClose(id uint64) error {
	m.mu.Lock()
	if id == 0 || id > uint64(len(m.remotes)) || m.remotes[id-1] == nil {
		m.mu.Unlock()
		return nil // closed by this side meanwhile
	}
	r := m.remotes[id-1]
	if r.ch != nil && !r.ch.opened && !r.ch.closed {
		// It was opened, and said something, before it was closed.
		m.mu.Unlock()
		m.calls.Lock()
		err := m.openAll()
		m.calls.Unlock()
		if err != nil {
			return err
		}
		m.mu.Lock()
		if m.remotes == nil || m.remotes[id-1] != r {
			m.mu.Unlock()
			return nil
		}
	}
	m.remotes[id-1] = nil
	m.drop(r)
	if i := slices.Index(m.held, r); i >= 0 {
		m.held = slices.Delete(m.held, i, i+1)
	}
	if r.ch == nil {
		// The other side keeps the number until it hears of it.
		defer m.mu.Unlock()
		return m.send(control, typeReject, compact.AppendUint(nil, id))
	}
	return m.closed(r.ch, ErrRemoteClosed)
}

// closed ends a channel as the other side wants it. mu is held, and released.
func (m *Mux) closed(c *Channel, why error) error {
	tell := !c.closed
	c.closed = true
	m.freeLocal(c)
	m.mu.Unlock()
	if !tell {
		return nil
	}
	return m.call(func() error { c.handler.Closed(why); return nil })
}
