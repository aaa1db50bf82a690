package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"dazaar-edge/protocol/mux"
)

// Errors of a [Client].
var (
	// ErrRefused says that the relay does not relay, or not this.
	ErrRefused = errors.New("relay: refused")
	// ErrExists says that a token is in use already.
	ErrExists = errors.New("relay: this token is waited for already")
)

// Client asks a relay for pairings, on one connection. All methods are safe for concurrent
// use.
type Client struct {
	mux *mux.Mux
	ch  *mux.Channel

	mu      sync.Mutex
	waiting map[[32]byte]chan<- uint32 // by token; guarded by mu
	over    error                      // guarded by mu
	done    chan struct{}
}

// NewClient opens the channel on a connection with a relay; self is the public key that this
// side has there.
func NewClient(m *mux.Mux, self [32]byte) (*Client, error) {
	c := &Client{mux: m, waiting: map[[32]byte]chan<- uint32{}, done: make(chan struct{})}
	var err error
	c.ch, err = m.Open(mux.ChannelConfig{Protocol: Protocol, ID: self[:], Handler: (*clientHandler)(c)})
	return c, err
}

// Pair waits until both ends have named a token, and returns the number by which the stream
// of the other end is addressed at the relay. initiator is the end that chose the token.
func (c *Client) Pair(ctx context.Context, token [32]byte, initiator bool, stream uint32) (uint32, error) {
	paired := make(chan uint32, 1)
	c.mu.Lock()
	if c.over != nil {
		c.mu.Unlock()
		return 0, c.over
	}
	if c.waiting[token] != nil {
		c.mu.Unlock()
		return 0, ErrExists
	}
	c.waiting[token] = paired
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, token)
		c.mu.Unlock()
	}()
	if err := c.ch.Send(typePair, pair{initiator, token, stream}.append(nil)); err != nil {
		return 0, err
	}
	select {
	case id := <-paired:
		return id, nil
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return 0, c.over
	case <-ctx.Done():
		c.Unpair(token)
		return 0, context.Cause(ctx)
	}
}

// Unpair ends a pairing, or the wait for one.
func (c *Client) Unpair(token [32]byte) {
	c.ch.Send(typeUnpair, append([]byte{0}, token[:]...)) //nolint:errcheck // the connection ends
}

// Done is closed when the connection is over.
func (c *Client) Done() <-chan struct{} { return c.done }

// clientHandler is a Client as its channel sees it.
type clientHandler Client

// Opened implements mux.Handler.
func (h *clientHandler) Opened([]byte) error { return nil }

// Message implements mux.Handler.
func (h *clientHandler) Message(typ uint64, m []byte) error {
	if typ != typePair {
		return nil
	}
	p, err := parsePair(m)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if w := h.waiting[p.token]; w != nil {
		w <- p.id
		delete(h.waiting, p.token)
	}
	return nil
}

// Closed implements mux.Handler.
func (h *clientHandler) Closed(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over == nil {
		h.over = fmt.Errorf("%w: %w", ErrRefused, err)
		close(h.done)
	}
}
