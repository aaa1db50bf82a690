package nostr

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Limits of a connection.
const (
	maxMessage = 256 << 10
	// pingEvery keeps the ways of the network open; deadAfter is when a relay that says
	// nothing, not even to a ping, is gone.
	pingEvery = 25 * time.Second
	deadAfter = 70 * time.Second
	dialTime  = 15 * time.Second
	writeTime = 10 * time.Second
	// kindAuth is the event by which one says who one is (NIP-42).
	kindAuth = 22242
)

// Conn is a connection to a relay, with one subscription. Publish is safe for concurrent
// use.
type Conn struct {
	url string
	key *Key
	ws  *websocket.Conn
	f   func(*Event)
	sub []Filter

	write sync.Mutex // one writer at a time
	wg    sync.WaitGroup
	done  chan struct{} // closed with the connection

	mu    sync.Mutex
	err   error                 // why it ended; guarded by mu, like all below
	acks  map[string]chan error // by event
	ready chan struct{}         // closed when what was stored has come
	auth  string                // id of the event that says who we are
	known bool                  // it was taken
	sure  chan struct{}         // closed when it was taken or refused
}

// needsAuth tells whether a relay refuses something because it does not know who we are.
func needsAuth(why string) bool { return strings.HasPrefix(why, "auth-required") }

// Dial connects to a relay, ws:// or wss://, and subscribes. f is called for each event,
// by one goroutine; it is verified, and may have come before. Dial returns when what the
// relay had stored has come.
func Dial(ctx context.Context, url string, key *Key, f func(*Event), filters ...Filter) (*Conn, error) {
	d := websocket.Dialer{HandshakeTimeout: dialTime, Proxy: http.ProxyFromEnvironment}
	ws, _, err := d.DialContext(ctx, url, nil)
	if err != nil {
		return nil, fmt.Errorf("nostr: %s: %w", url, err)
	}
	c := &Conn{url: url, key: key, ws: ws, f: f, sub: filters, done: make(chan struct{}), acks: map[string]chan error{}, ready: make(chan struct{}), sure: make(chan struct{})}
	ws.SetReadLimit(maxMessage)
	alive := func(string) error { return ws.SetReadDeadline(time.Now().Add(deadAfter)) }
	ws.SetPongHandler(alive)
	err = errors.Join(alive(""), c.subscribe())
	c.wg.Go(c.read)
	c.wg.Go(c.ping)
	if err == nil {
		select {
		case <-c.ready:
		case <-c.done:
			err = c.Err()
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-time.After(dialTime):
			err = fmt.Errorf("nostr: %s does not answer", url)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// subscription is the name of the only one.
const subscription = "edge"

func (c *Conn) subscribe() error {
	message := []any{"REQ", subscription}
	for _, f := range c.sub {
		message = append(message, f)
	}
	return c.send(message)
}

func (c *Conn) send(message []any) error {
	b, err := json.Marshal(message)
	if err != nil {
		return err
	}
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.ws.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	return c.ws.WriteMessage(websocket.TextMessage, b)
}

// fail ends the connection.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = fmt.Errorf("%w: %s: %w", ErrClosed, c.url, err)
	close(c.done)
	c.ws.Close()
}

// Done is closed when the connection has ended; Err says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended; nil while it stands.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection.
func (c *Conn) Close() {
	c.fail(errors.New("closed"))
	c.wg.Wait()
}

func (c *Conn) ping() {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
			if err := c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTime)); err != nil {
				c.fail(err)
				return
			}
		}
	}
}

func (c *Conn) read() {
	for {
		_, b, err := c.ws.ReadMessage()
		if err == nil {
			err = c.ws.SetReadDeadline(time.Now().Add(deadAfter))
		}
		if err == nil {
			err = c.message(b)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// message takes what the relay says. What is not understood is passed over.
func (c *Conn) message(b []byte) error {
	var parts []json.RawMessage
	if json.Unmarshal(b, &parts) != nil || len(parts) < 2 {
		return nil
	}
	text := func(i int) (s string) {
		if i < len(parts) {
			json.Unmarshal(parts[i], &s) //nolint:errcheck // "" is none
		}
		return s
	}
	switch text(0) {
	case "EVENT":
		var e Event
		if len(parts) > 2 && json.Unmarshal(parts[2], &e) == nil && e.Verify() == nil {
			c.f(&e)
		}
	case "EOSE":
		c.settled()
	case "OK":
		var taken bool
		if len(parts) > 2 {
			json.Unmarshal(parts[2], &taken) //nolint:errcheck // false is not taken
		}
		return c.acked(text(1), taken, text(3))
	case "AUTH":
		return c.authenticate(text(1))
	case "CLOSED":
		c.mu.Lock()
		waits := c.auth != "" && !c.known && needsAuth(text(2))
		c.mu.Unlock()
		if !waits { // else it subscribes again when the relay knows who we are
			return fmt.Errorf("%w: %s", ErrRefused, text(2))
		}
	}
	return nil
}

// settled says that what was stored has come.
func (c *Conn) settled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ready:
	default:
		close(c.ready)
	}
}

// authenticate says who we are, to a relay that wants to know.
func (c *Conn) authenticate(challenge string) error {
	e, err := NewEvent(c.key, kindAuth, "", []string{"relay", c.url}, []string{"challenge", challenge})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.auth = e.ID
	c.mu.Unlock()
	return c.send([]any{"AUTH", e})
}

// acked takes note that an event was taken, or not.
func (c *Conn) acked(id string, taken bool, why string) error {
	c.mu.Lock()
	ack, auth := c.acks[id], c.auth == id && id != ""
	delete(c.acks, id)
	c.mu.Unlock()
	if auth {
		c.mu.Lock()
		first := !c.known
		c.known = taken
		select {
		case <-c.sure:
		default:
			close(c.sure)
		}
		c.mu.Unlock()
		if taken && first {
			return c.subscribe()
		}
		return nil // if it insists, it says so
	}
	if ack != nil {
		var err error
		if !taken {
			err = &refusal{why}
		}
		ack <- err
	}
	return nil
}

// refusal is why a relay does not take an event. It is an [ErrRefused].
type refusal struct{ why string }

func (r *refusal) Error() string { return fmt.Sprintf("%v: %s", ErrRefused, r.why) }
func (r *refusal) Unwrap() error { return ErrRefused }

// URL returns where the relay is.
func (c *Conn) URL() string { return c.url }

// Publish sends an event, and waits until the relay has taken it.
func (c *Conn) Publish(ctx context.Context, e *Event) error {
	err := c.publish(ctx, e)
	var r *refusal
	if !errors.As(err, &r) || !needsAuth(r.why) {
		return err
	}
	select { // it wants to know who we are, and asked for it just now
	case <-c.sure:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(dialTime):
		return err
	}
	return c.publish(ctx, e)
}

func (c *Conn) publish(ctx context.Context, e *Event) error {
	ack := make(chan error, 1)
	c.mu.Lock()
	c.acks[e.ID] = ack
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.acks, e.ID)
	}()
	if err := c.send([]any{"EVENT", e}); err != nil {
		c.fail(err)
		return c.Err()
	}
	select {
	case err := <-ack:
		return err
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
