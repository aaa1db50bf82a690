package monitor

import (
	"encoding/json"
	"io"
	"log/slog"
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
	return s, "tcp://" + l.Address(), heard
}

func next(t *testing.T, heard chan said, topic string) said {
	t.Helper()
	for timeout := time.After(10 * time.Second); ; {
		select {
		case x := <-heard:
			if x.topic == topic {
				return x
			}
		case <-timeout:
			t.Fatal("nothing is said of ", topic)
		}
	}
}

// TestMonitor: online and health at once, health again and again, offline when it is
// closed, and when it is cut off.
func TestMonitor(t *testing.T) {
	s, address, heard := house(t)
	start := func() *Monitor {
		return New(Config{Broker: address, Prefix: "edge", ID: "1234", Every: 20 * time.Millisecond, Health: func() any { return map[string]int{"readings": 7} }})
	}
	m := start()
	if x := next(t, heard, "edge/1234/availability"); x.payload != "online" {
		t.Errorf("%+v", x)
	}
	for range 3 {
		var h struct{ Readings int }
		if x := next(t, heard, "edge/1234/health"); json.Unmarshal([]byte(x.payload), &h) != nil || h.Readings != 7 {
			t.Errorf("%+v", x)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if x := next(t, heard, "edge/1234/availability"); x.payload != "offline" {
		t.Errorf("%+v", x)
	}
	m = start()
	next(t, heard, "edge/1234/availability")
	c, ok := s.Clients.Get("1234-monitor")
	if !ok {
		t.Fatal("it is not there")
	}
	c.Net.Conn.Close() // as when the power is cut
	if x := next(t, heard, "edge/1234/availability"); x.payload != "offline" {
		t.Errorf("the last will is %+v", x)
	}
	// It comes back by itself.
	if x := next(t, heard, "edge/1234/availability"); x.payload != "online" {
		t.Errorf("%+v", x)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if kept := s.Topics.Messages("edge/1234/availability"); len(kept) != 1 || string(kept[0].Payload) != "offline" {
		t.Errorf("%+v is retained", kept)
	}
}
