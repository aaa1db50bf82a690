package monitor

import (
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"github.com/mochi-mqtt/server/v2/packets"
)

type said struct {
	topic, payload string
	retain         bool
}

// house is a broker, with what was said there.
func house(t *testing.T) (*broker.Server, string, chan said) {
	t.Helper()
	s := broker.New(&broker.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := s.AddHook(new(auth.AllowHook), nil); err != nil {
		t.Fatal(err)
	}
	l := listeners.NewTCP(listeners.Config{ID: "t", Address: "127.0.0.1:0"})
	if err := s.AddListener(l); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	heard := make(chan said, 100)
	err := s.Subscribe("#", 1, func(_ *broker.Client, _ packets.Subscription, p packets.Packet) {
		heard <- said{p.TopicName, string(p.Payload), p.FixedHeader.Retain}
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, l.Address(), heard
}

// line carries connections to a broker.
type line struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func newLine(t *testing.T, address, to string) *line {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	l := &line{Listener: ln}
	go func() {
		for {
			here, err := ln.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", to)
			if err != nil {
				here.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, here, there)
			l.mu.Unlock()
			go func() { io.Copy(there, here); there.Close() }()
			go func() { io.Copy(here, there); here.Close() }()
		}
	}()
	return l
}

// cut breaks what it carries.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// until reads on to what is said of the topic, and where payload is not empty, to that.
func until(t *testing.T, heard chan said, topic, payload string) said {
	t.Helper()
	for timeout := time.After(60 * time.Second); ; {
		select {
		case x := <-heard:
			if x.topic == topic && (payload == "" || x.payload == payload) {
				return x
			}
		case <-timeout:
			t.Fatalf("%q is not said of %s", payload, topic)
		}
	}
}

// TestMonitor: online and health at once and again and again, offline when it is closed
// and when it is cut off, online again when the last will comes late.
func TestMonitor(t *testing.T) {
	const availability = "edge/1234/availability"
	s, address, heard := house(t)
	line := newLine(t, "127.0.0.1:0", address)
	start := func() *Monitor {
		return New(Config{Broker: "tcp://" + line.Addr().String(), Prefix: "edge", ID: "1234", Every: 20 * time.Millisecond, Health: func() any { return map[string]int{"readings": 7} }})
	}
	m := start()
	if x := until(t, heard, availability, ""); x.payload != "online" {
		t.Errorf("%+v", x)
	}
	for range 3 {
		var h struct{ Readings int }
		if x := until(t, heard, "edge/1234/health", ""); json.Unmarshal([]byte(x.payload), &h) != nil || h.Readings != 7 {
			t.Errorf("%+v", x)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, heard, availability, "offline")
	m = start()
	until(t, heard, availability, "online")
	line.Close() // as when the power is cut: it cannot come back at once
	line.cut()
	until(t, heard, availability, "offline")
	line = newLine(t, line.Addr().String(), address)
	until(t, heard, availability, "online") // it comes back by itself
	if err := s.Publish(availability, []byte("offline"), true, 1); err != nil {
		t.Fatal(err)
	}
	until(t, heard, availability, "offline")
	until(t, heard, availability, "online")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if kept := s.Topics.Messages(availability); len(kept) != 1 || string(kept[0].Payload) != "offline" {
		t.Errorf("%+v is retained", kept)
	}
}
