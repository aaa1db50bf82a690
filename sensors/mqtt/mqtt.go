// Package mqtt takes readings from a broker, where sensors of any make already say
// theirs: Zigbee and LoRa bridges, Home Assistant, Tasmota.
//
// # Acknowledgement
//
// There is one connection with a fixed client id and a session that the broker keeps.
// A message of QoS 1 is acknowledged when its readings are durable; what was not comes
// again after a crash, with the flag "dup". A retained message was sent before anybody
// listened: "stale".
//
// # Payloads
//
// Of JSON, each field that was asked for, by its path ("a.b.0") and with its unit;
// else the whole payload as a number, true, false or text. A field that is missing in a
// message is not read: many devices send what changed. Names are what the wildcards of
// the topic filter stand for, then the field: of "zigbee2mqtt/+" and "kitchen" comes
// "kitchen/pm25".
//
// Source: MQTT 3.1.1, sections 4.3 and 4.7.
package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/sensors"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// Config says which broker.
type Config struct {
	// Broker is tcp://HOST:PORT, ssl://HOST:PORT or ws://…
	Broker             string
	Username, Password string
	TLS                *tls.Config // nil is the system's
	// ClientID is fixed for the device: the broker keeps what is not acknowledged
	// under it.
	ClientID string
	// Clean has the broker keep nothing: for a look at what is there.
	Clean bool
	Log   *slog.Logger // nil discards
}

// Limits.
const (
	maxPayload = 64 << 10
	// queue is how many messages wait for the device, and room how long the connection is
	// held up while there is no room for another.
	queue     = 256
	room      = 5 * time.Second
	keepAlive = 30 * time.Second
	// answer is how long the broker may take to answer, and a source waits for it before
	// it says so.
	answer = 10 * time.Second
	// Between attempts to connect.
	firstPause, lastPause = time.Second, 30 * time.Second
)

// Client is the connection that all sources share. It connects when a source streams,
// and stays connected. Each connection is a client of the library's of its own, which
// does not connect again by itself.
type Client struct {
	cfg Config
	log *slog.Logger

	again chan error // messages must be sent again; room for one
	stop  chan struct{}
	wg    sync.WaitGroup

	mu      sync.Mutex
	sources []*Source     // guarded by mu, like all below
	link    paho.Client   // nil while there is no connection
	number  int           // of the connection
	why     error         // why there is none
	moved   chan struct{} // closed when link, why or closed change, and replaced
	begun   bool
	closed  bool
}

// Errors of a connection.
var (
	errClosed   = errors.New("mqtt: closed")
	errSilent   = errors.New("the broker does not answer")
	errNotTried = errors.New("not connected yet")
)

// New returns a client; nothing is connected yet.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, log: cfg.Log, again: make(chan error, 1), stop: make(chan struct{}), why: errNotTried, moved: make(chan struct{})}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c
}

// SourceConfig says what to take from the broker.
type SourceConfig struct {
	// Topic is a filter, with + and #.
	Topic string
	// Fields are the paths in JSON payloads, each with its unit; none takes the whole
	// payload, as Name with Unit. What has a unit is a number.
	Fields     map[string]string
	Name, Unit string
}

// Source is one topic filter. It implements [sensors.Streamer]. From the time that it is
// made its messages are kept for it, or not acknowledged.
type Source struct {
	c   *Client
	cfg SourceConfig
	in  chan paho.Message
	// stalled: nobody takes what comes, and it is not waited for.
	stalled atomic.Bool
	left    atomic.Uint64 // messages that were left out

	on      int   // the connection on which it is subscribed; guarded by the client's mu
	refused error // why it is not, until that is said; likewise

	// Of the goroutine that streams: the connection for which it said that it works, 0 if
	// none; and whether it said that there is none.
	works int
	said  bool
}

// Source returns a source. The error is about the filter.
func (c *Client) Source(cfg SourceConfig) (*Source, error) {
	if err := CheckFilter(cfg.Topic); err != nil {
		return nil, err
	}
	s := &Source{c: c, cfg: cfg, in: make(chan paho.Message, queue)}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = append(c.sources, s)
	if c.link != nil && !c.closed {
		c.subscribe(s)
	}
	return s, nil
}

// Stream implements [sensors.Streamer]. An event without readings says that it works
// again.
func (s *Source) Stream(ctx context.Context, emit func(sensors.Event)) error {
	s.c.begin()
	patience := time.NewTimer(answer)
	defer patience.Stop()
	for {
		st := s.c.state(s)
		switch {
		case st.err != nil:
			s.works, s.said = 0, true
			return st.err
		case s.works != 0 && s.works != st.number:
			s.works, s.said = 0, true
			return fmt.Errorf("%w: the connection to the broker at %s broke: %w", sensors.ErrGone, s.c.cfg.Broker, st.why)
		case s.works == 0 && st.number != 0:
			s.works, s.said = st.number, false
			emit(sensors.Event{})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.moved:
		case <-patience.C:
			if s.works == 0 && !s.said { // else it waits until there is news
				s.said = true
				return fmt.Errorf("%w: no connection to the broker at %s: %w", sensors.ErrGone, s.c.cfg.Broker, st.why)
			}
		case m := <-s.in:
			s.stalled.Store(false)
			readings, err := s.cfg.parse(m)
			if err != nil {
				s.c.log.Debug("a message has nothing to read", "topic", m.Topic(), "error", err)
			}
			emit(sensors.Event{Readings: readings, Done: func(err error) {
				if err == nil {
					m.Ack()
				} else {
					s.c.resend(err)
				}
			}})
		}
	}
}

// Close implements [sensors.Streamer]: its messages are not acknowledged any more. The
// client is closed by whom it belongs to.
func (s *Source) Close() error { return nil }

// state is what a source sees of its client.
type state struct {
	number int // of the connection on which it is subscribed; 0 is none
	why    error
	moved  <-chan struct{}
	err    error // it cannot go on
}

func (c *Client) state(s *Source) (st state) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st = state{why: c.why, moved: c.moved}
	switch {
	case c.closed:
		st.err = errClosed
	case c.link == nil:
	case s.refused != nil:
		st.err, s.refused = s.refused, nil
	case s.on == c.number:
		st.number = c.number
	}
	return st
}

// begin connects, if that did not begin.
func (c *Client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.begun && !c.closed {
		c.begun = true
		c.wg.Go(c.run)
	}
}

// set takes down that there is a connection, or why not.
func (c *Client) set(link paho.Client, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link = link; link != nil {
		c.number++
		for _, s := range c.sources {
			c.subscribe(s)
		}
	} else {
		c.why = why
	}
	c.move()
}

// move tells those who wait that something changed. mu is held.
func (c *Client) move() {
	close(c.moved)
	c.moved = make(chan struct{})
}

// run connects for as long as it may.
func (c *Client) run() {
	pause, rest := firstPause, firstPause
	for {
		select {
		case <-c.again: // that is what happens
		default:
		}
		lost := make(chan error, 1)
		link := c.client(lost)
		err := c.connect(link)
		if err == nil {
			c.log.Info("connected to the broker", "broker", c.cfg.Broker)
			pause = firstPause
			c.set(link, nil)
			began := time.Now()
			select {
			case err = <-lost:
			case err = <-c.again:
				if time.Since(began) > lastPause {
					rest = firstPause
				}
				pause, rest = rest, min(2*rest, lastPause) // what is in the way may be there still
			case <-c.stop:
			}
		}
		select {
		case <-c.stop:
			link.Disconnect(250) // what was acknowledged goes out
			return
		default:
		}
		c.set(nil, err)
		link.Disconnect(0)
		c.log.Warn("no connection to the broker; trying again", "broker", c.cfg.Broker, "in", pause, "error", err)
		select {
		case <-time.After(pause): // whatever is in the way may be gone then
		case <-c.stop:
			return
		}
		pause = min(2*pause, lastPause)
	}
}

func (c *Client) client(lost chan<- error) paho.Client {
	o := paho.NewClientOptions().AddBroker(c.cfg.Broker).SetClientID(c.cfg.ClientID).SetUsername(c.cfg.Username).SetPassword(c.cfg.Password)
	o.SetCleanSession(c.cfg.Clean).SetAutoAckDisabled(true).SetOrderMatters(true).SetResumeSubs(false).SetAutoReconnect(false)
	o.SetKeepAlive(keepAlive).SetPingTimeout(answer).SetConnectTimeout(answer).SetWriteTimeout(answer)
	if c.cfg.TLS != nil {
		o.SetTLSConfig(c.cfg.TLS)
	}
	o.SetDefaultPublishHandler(c.received)
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { lost <- err })
	return paho.NewClient(o)
}

func (c *Client) connect(link paho.Client) error {
	t := link.Connect()
	select {
	case <-t.Done():
		return t.Error()
	case <-time.After(2 * answer):
		return errSilent
	case <-c.stop:
		return errClosed
	}
}

// subscribe has a source's messages come by the connection that there is, or takes down
// why they do not, and tries again. mu is held.
func (c *Client) subscribe(s *Source) {
	link, number := c.link, c.number
	c.wg.Go(func() {
		for {
			err := c.ask(link, s.cfg.Topic)
			c.mu.Lock()
			if c.number != number || c.link == nil || c.closed {
				c.mu.Unlock()
				return
			}
			if err == nil {
				s.on = number
			} else {
				c.log.Warn("a subscription failed", "topic", s.cfg.Topic, "error", err)
				s.refused = err
			}
			c.move()
			c.mu.Unlock()
			if err == nil {
				return
			}
			select {
			case <-time.After(answer): // it may be allowed then
			case <-c.stop:
				return
			}
		}
	})
}

func (c *Client) ask(link paho.Client, topic string) error {
	t := link.Subscribe(topic, 1, nil)
	select {
	case <-t.Done():
	case <-c.stop:
		return errClosed
	case <-time.After(answer):
		return fmt.Errorf("%w: the broker does not answer to a subscription to %s", sensors.ErrGone, topic)
	}
	if err := t.Error(); err != nil {
		return fmt.Errorf("%w: subscribe to %s: %w", sensors.ErrGone, topic, err)
	}
	if sub, ok := t.(*paho.SubscribeToken); ok {
		for _, code := range sub.Result() {
			if code == 0x80 {
				return fmt.Errorf("%w: the broker refuses the subscription to %s: may this user read it?", sensors.ErrGone, topic)
			}
		}
	}
	return nil
}

func (c *Client) all() []*Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sources)
}

// received hands a message to the sources that asked for it. It waits a little for those
// that have no room, and no more comes from the broker meanwhile.
func (c *Client) received(_ paho.Client, m paho.Message) {
	var to []*Source
	for _, s := range c.all() {
		if Match(s.cfg.Topic, m.Topic()) {
			to = append(to, s)
		}
	}
	if len(to) == 0 || len(m.Payload()) > maxPayload {
		if len(to) > 0 {
			c.log.Warn("a message is too large, and left out", "topic", m.Topic(), "bytes", len(m.Payload()))
		}
		m.Ack() // of an earlier configuration, or nothing that will ever be kept
		return
	}
	shared := &message{Message: m, left: len(to)}
	for _, s := range to {
		switch {
		case c.give(s, shared):
		case m.Qos() > 0: // not acknowledged, so that it comes again
			c.resend(fmt.Errorf("%d messages wait", len(s.in)))
		default:
			if n := s.left.Add(1); n&(n-1) == 0 {
				c.log.Error("messages of QoS 0 are left out: they come faster than they are taken", "topic", s.cfg.Topic, "so far", n)
			}
		}
	}
}

// give hands a message to a source, and tells whether it found room.
func (c *Client) give(s *Source, m paho.Message) bool {
	select {
	case s.in <- m:
		return true
	default:
	}
	if s.stalled.Load() {
		return false
	}
	select {
	case s.in <- m:
		return true
	case <-time.After(room):
		s.stalled.Store(true)
	case <-c.stop:
	}
	return false
}

// resend has the broker send again what was not acknowledged: it does so when one
// connects.
func (c *Client) resend(err error) {
	select {
	case c.again <- fmt.Errorf("messages were not kept, and are asked for again: %w", err):
	default: // that is on its way
	}
}

// Close ends the connection. The broker keeps what was not acknowledged.
func (c *Client) Close() error {
	c.mu.Lock()
	closed := c.closed
	if c.closed = true; !closed {
		close(c.stop)
		c.move()
	}
	c.mu.Unlock()
	c.wg.Wait()
	return nil
}

// message is acknowledged when all sources did.
type message struct {
	paho.Message
	mu   sync.Mutex
	left int
}

func (m *message) Ack() {
	m.mu.Lock()
	m.left--
	last := m.left == 0
	m.mu.Unlock()
	if last {
		m.Message.Ack()
	}
}
