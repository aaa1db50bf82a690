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
	Log      *slog.Logger // nil discards
}

// Limits.
const (
	maxPayload = 64 << 10
	// queue is how many messages wait for the device.
	queue     = 256
	keepAlive = 30 * time.Second
	// lookEvery is how often a source looks whether there is a broker.
	lookEvery = 10 * time.Second
)

// Client is the connection that all sources share. It connects while a source
// streams, and stays connected.
type Client struct {
	cfg  Config
	log  *slog.Logger
	paho paho.Client

	mu      sync.Mutex
	sources []*Source // that stream; guarded by mu, like all below
	begun   bool
	closed  bool
	// resending: somebody connects anew.
	resending bool

	stop chan struct{}
	wg   sync.WaitGroup
}

// errClosed says that the client was closed.
var errClosed = errors.New("mqtt: closed")

// New returns a client; nothing is connected yet.
func New(cfg Config) *Client {
	c := &Client{cfg: cfg, log: cfg.Log, stop: make(chan struct{})}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	o := paho.NewClientOptions().AddBroker(cfg.Broker).SetClientID(cfg.ClientID).SetUsername(cfg.Username).SetPassword(cfg.Password)
	o.SetCleanSession(false).SetAutoAckDisabled(true).SetOrderMatters(true).SetResumeSubs(false)
	o.SetConnectRetry(true).SetConnectRetryInterval(5 * time.Second).SetAutoReconnect(true).SetMaxReconnectInterval(30 * time.Second)
	o.SetKeepAlive(keepAlive).SetPingTimeout(10 * time.Second).SetConnectTimeout(10 * time.Second).SetWriteTimeout(10 * time.Second)
	if cfg.TLS != nil {
		o.SetTLSConfig(cfg.TLS)
	}
	o.SetDefaultPublishHandler(c.received)
	o.SetOnConnectHandler(func(paho.Client) { c.connected() })
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { c.lost(err) })
	c.paho = paho.NewClient(o)
	return c
}

// SourceConfig says what to take from the broker.
type SourceConfig struct {
	// Topic is a filter, with + and #.
	Topic string
	// Fields are the paths in JSON payloads, each with its unit; none takes the whole
	// payload, as Name with Unit.
	Fields     map[string]string
	Name, Unit string
}

// Source is one topic filter. It implements [sensors.Streamer].
type Source struct {
	c     *Client
	cfg   SourceConfig
	in    chan paho.Message
	again chan error // the connection was lost, or messages were
}

// Source returns a source. The error is about the filter.
func (c *Client) Source(cfg SourceConfig) (*Source, error) {
	if err := CheckFilter(cfg.Topic); err != nil {
		return nil, err
	}
	return &Source{c: c, cfg: cfg, in: make(chan paho.Message, queue), again: make(chan error, 1)}, nil
}

// Stream implements [sensors.Streamer].
func (s *Source) Stream(ctx context.Context, emit func(sensors.Event)) error {
	defer s.c.leave(s)
	if err := s.c.join(s); err != nil {
		return err
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			if !s.c.paho.IsConnectionOpen() {
				return fmt.Errorf("%w: no broker at %s", sensors.ErrGone, s.c.cfg.Broker)
			}
		case err := <-s.again:
			return err
		case m := <-s.in:
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

// Close implements [sensors.Streamer]. The client is closed by whom it belongs to.
func (s *Source) Close() error { return nil }

// join has the source's messages come: it connects if need be, and subscribes.
func (c *Client) join(s *Source) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return errClosed
	}
	c.sources = append(c.sources, s)
	if !c.begun {
		c.begun = true
		c.paho.Connect() // tries for ever; connected subscribes
	}
	c.mu.Unlock()
	if c.paho.IsConnectionOpen() {
		return c.subscribe(s)
	}
	return nil
}

func (c *Client) leave(s *Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sources = slices.DeleteFunc(c.sources, func(x *Source) bool { return x == s })
}

func (c *Client) subscribe(s *Source) error {
	t := c.paho.Subscribe(s.cfg.Topic, 1, nil)
	if !t.WaitTimeout(10 * time.Second) {
		return fmt.Errorf("%w: the broker does not answer to a subscription", sensors.ErrGone)
	}
	if err := t.Error(); err != nil {
		return fmt.Errorf("%w: subscribe to %s: %w", sensors.ErrGone, s.cfg.Topic, err)
	}
	if sub, ok := t.(*paho.SubscribeToken); ok {
		for _, code := range sub.Result() {
			if code == 0x80 {
				return fmt.Errorf("%w: the broker refuses the subscription to %s: may this user read it?", sensors.ErrGone, s.cfg.Topic)
			}
		}
	}
	return nil
}

// connected subscribes all sources, as the broker may have forgotten them.
func (c *Client) connected() {
	c.log.Info("connected to the broker", "broker", c.cfg.Broker)
	for _, s := range c.all() {
		if err := c.subscribe(s); err != nil {
			s.poke(err)
		}
	}
}

func (c *Client) all() []*Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.sources)
}

// lost tells all sources that the connection broke: what comes next may be later.
func (c *Client) lost(err error) {
	c.log.Warn("the connection to the broker broke", "broker", c.cfg.Broker, "error", err)
	for _, s := range c.all() {
		s.poke(fmt.Errorf("%w: %w", sensors.ErrGone, err))
	}
}

func (s *Source) poke(err error) {
	select {
	case s.again <- err:
	default:
	}
}

// received hands a message to the sources that asked for it. It does not wait: the
// connection would die of it.
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
		select {
		case s.in <- shared:
		default: // not acknowledged, so that it comes again
			c.resend(fmt.Errorf("%d messages wait", len(s.in)))
		}
	}
}

// resend has the broker send again what was not acknowledged: it does so when one
// connects.
func (c *Client) resend(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.resending {
		return
	}
	c.resending = true
	c.log.Warn("messages were not kept, and are asked for again", "because", err)
	c.wg.Go(func() {
		select {
		case <-time.After(time.Second): // whatever is in the way may be gone then
			c.paho.Disconnect(250)
			c.paho.Connect()
		case <-c.stop:
		}
		c.mu.Lock()
		c.resending = false
		c.mu.Unlock()
	})
}

// Close ends the connection. The broker keeps what was not acknowledged.
func (c *Client) Close() error {
	c.mu.Lock()
	closed, begun := c.closed, c.begun
	c.closed = true
	c.mu.Unlock()
	if closed {
		return nil
	}
	close(c.stop)
	c.wg.Wait()
	if begun {
		c.paho.Disconnect(250)
	}
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
