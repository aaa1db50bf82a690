// Package monitor says by MQTT how a device does.
//
// # Topics
//
//	PREFIX/ID/availability  "online", and "offline" as last will: retained, QoS 1
//	PREFIX/ID/health        JSON, at once and every minute
//
// The client id is that of the device: where two devices have one, as two copies of a
// card do, the broker throws out one for the other, which shows as one that comes and
// goes. Sessions are clean; what cannot be said now is not said later.
package monitor

import (
	"crypto/tls"
	"encoding/json"
	"log/slog"
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
	paho paho.Client
	said chan struct{} // one token: connected
	stop chan struct{}
	wg   sync.WaitGroup
}

// States of availability.
const (
	online  = "online"
	offline = "offline"
)

// New begins; a broker that is not there is tried again and again.
func New(cfg Config) *Monitor {
	m := &Monitor{cfg: cfg, log: cfg.Log, said: make(chan struct{}, 1), stop: make(chan struct{})}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if m.cfg.Every == 0 {
		m.cfg.Every = time.Minute
	}
	o := paho.NewClientOptions().AddBroker(cfg.Broker).SetClientID(cfg.ID + "-monitor").SetUsername(cfg.Username).SetPassword(cfg.Password)
	o.SetCleanSession(true).SetOrderMatters(false).SetConnectRetry(true).SetConnectRetryInterval(5 * time.Second).SetAutoReconnect(true)
	o.SetMaxReconnectInterval(time.Minute).SetKeepAlive(45 * time.Second).SetConnectTimeout(10 * time.Second).SetWriteTimeout(10 * time.Second)
	o.SetWill(m.topic("availability"), offline, 1, true)
	if cfg.TLS != nil {
		o.SetTLSConfig(cfg.TLS)
	}
	o.SetOnConnectHandler(func(paho.Client) {
		select {
		case m.said <- struct{}{}:
		default:
		}
	})
	o.SetConnectionLostHandler(func(_ paho.Client, err error) {
		m.log.Warn("monitoring: the connection to the broker broke", "error", err)
	})
	m.paho = paho.NewClient(o)
	m.paho.Connect()
	m.wg.Go(m.run)
	return m
}

func (m *Monitor) topic(name string) string { return m.cfg.Prefix + "/" + m.cfg.ID + "/" + name }

func (m *Monitor) run() {
	tick := time.NewTicker(m.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			return
		case <-m.said:
			m.paho.Publish(m.topic("availability"), 1, true, online)
		case <-tick.C:
		}
		if !m.paho.IsConnectionOpen() {
			continue
		}
		b, err := json.Marshal(m.cfg.Health())
		if err != nil {
			m.log.Error("monitoring: health", "error", err)
			continue
		}
		m.paho.Publish(m.topic("health"), 0, false, b)
	}
}

// Close says that the device goes, and ends.
func (m *Monitor) Close() error {
	close(m.stop)
	m.wg.Wait()
	if m.paho.IsConnectionOpen() {
		m.paho.Publish(m.topic("availability"), 1, true, offline).WaitTimeout(500 * time.Millisecond)
	}
	m.paho.Disconnect(100)
	return nil
}
