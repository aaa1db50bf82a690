// Package monitor says by MQTT how a device does.
//
// # Topics
//
//	PREFIX/ID/availability  "online", and "offline" as last will: retained, QoS 1
//	PREFIX/ID/health        JSON
//
// Both are said at once and every minute: a broker may deliver the last will of a broken
// connection after the "online" of the next, and the retained "offline" would stand for
// as long as nobody says otherwise.
//
// The client id is that of the device: where two devices have one, as two copies of a
// card do, the broker throws out one for the other, which shows as one that comes and
// goes. Sessions are clean; what cannot be said now is not said later.
package monitor

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// Config says where to, and what.
type Config struct {
	// Broker is tcp://HOST:PORT, ssl://HOST:PORT or ws://…
	Broker             string
	Username, Password string
	TLS                *tls.Config // nil is the system's
	Prefix, ID         string
	// Every is how often; 0 is a minute.
	Every time.Duration
	// Health returns what is said, which becomes JSON.
	Health func() any
	Log    *slog.Logger // nil discards
}

// Monitor says how a device does, from New until Close.
type Monitor struct {
	cfg  Config
	log  *slog.Logger
	stop chan struct{}
	wg   sync.WaitGroup
}

// States of availability.
const (
	online  = "online"
	offline = "offline"
)

// How long it waits for a broker: to answer, at first until it tries again, at most, and
// for the last word.
const (
	answer = 10 * time.Second
	pause  = time.Second
	rest   = time.Minute
	adieu  = 500 * time.Millisecond
)

var errSilent = errors.New("the broker does not answer")

// New begins; a broker that is not there is tried again and again.
func New(cfg Config) *Monitor {
	m := &Monitor{cfg: cfg, log: cfg.Log, stop: make(chan struct{})}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.cfg.Every == 0 {
		m.cfg.Every = time.Minute
	}
	m.wg.Go(m.run)
	return m
}

// Close says that the device goes, and ends.
func (m *Monitor) Close() error {
	close(m.stop)
	m.wg.Wait()
	return nil
}

func (m *Monitor) topic(name string) string { return m.cfg.Prefix + "/" + m.cfg.ID + "/" + name }

// run connects for as long as it may, each time with a client of its own: that of the
// library, when it connects again by itself, writes into a message that it is sending.
func (m *Monitor) run() {
	for wait := pause; ; wait = min(2*wait, rest) {
		lost := make(chan error, 1)
		c := m.client(lost)
		err := m.connect(c)
		if err == nil {
			wait = pause
			err = m.speak(c, lost)
		}
		c.Disconnect(0)
		if err == nil {
			return
		}
		m.log.Warn("monitoring: no connection to the broker", "error", err)
		select {
		case <-m.stop:
			return
		case <-time.After(wait + rand.N(wait/4)):
		}
	}
}

func (m *Monitor) client(lost chan<- error) paho.Client {
	cfg := m.cfg
	o := paho.NewClientOptions().AddBroker(cfg.Broker).SetClientID(cfg.ID + "-monitor").SetUsername(cfg.Username).SetPassword(cfg.Password)
	o.SetCleanSession(true).SetOrderMatters(false).SetAutoReconnect(false)
	o.SetKeepAlive(45 * time.Second).SetConnectTimeout(answer).SetWriteTimeout(answer)
	o.SetWill(m.topic("availability"), offline, 1, true)
	if cfg.TLS != nil {
		o.SetTLSConfig(cfg.TLS)
	}
	o.SetConnectionLostHandler(func(_ paho.Client, err error) { lost <- err })
	return paho.NewClient(o)
}

func (m *Monitor) connect(c paho.Client) error {
	t := c.Connect()
	select {
	case <-t.Done():
		return t.Error()
	case <-time.After(2 * answer):
		return errSilent
	case <-m.stop:
		return nil // speak has the last word
	}
}

// speak says what is to be said, until the connection breaks or it is to end: then nil.
func (m *Monitor) speak(c paho.Client, lost <-chan error) error {
	tick := time.NewTicker(m.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			if c.IsConnectionOpen() {
				c.Publish(m.topic("availability"), 1, true, offline).WaitTimeout(adieu)
			}
			return nil
		default:
		}
		c.Publish(m.topic("availability"), 1, true, online)
		if b, err := json.Marshal(m.cfg.Health()); err != nil {
			m.log.Error("monitoring: health", "error", err)
		} else {
			c.Publish(m.topic("health"), 0, false, b)
		}
		select {
		case <-m.stop:
		case err := <-lost:
			return err
		case <-tick.C:
		}
	}
}
