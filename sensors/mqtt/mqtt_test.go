package mqtt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/sensors"

	paho "github.com/eclipse/paho.mqtt.golang"
	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
)

// gate lets users in, and lets them read what does not begin with "secret", unless it is
// open.
type gate struct {
	auth.AllowHook
	open *atomic.Bool
}

func (g *gate) OnACLCheck(_ *broker.Client, topic string, write bool) bool {
	return write || len(topic) < 6 || topic[:6] != "secret" || g.open.Load()
}

// house is a broker and a device that publishes there.
type house struct {
	t       *testing.T
	address string
	server  *broker.Server
	allowed atomic.Bool
}

func newHouse(t *testing.T) *house {
	h := &house{t: t, address: "127.0.0.1:0"}
	h.open()
	t.Cleanup(func() { h.server.Close() })
	return h
}

func (h *house) open() {
	h.t.Helper()
	h.server = broker.New(&broker.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := h.server.AddHook(&gate{open: &h.allowed}, nil); err != nil {
		h.t.Fatal(err)
	}
	l := listeners.NewTCP(listeners.Config{ID: "t", Address: h.address})
	if err := h.server.AddListener(l); err != nil {
		h.t.Fatal(err)
	}
	if err := h.server.Serve(); err != nil {
		h.t.Fatal(err)
	}
	h.address = l.Address()
}

func (h *house) say(topic, payload string, retain bool) {
	h.t.Helper()
	if err := h.server.Publish(topic, []byte(payload), retain, 1); err != nil {
		h.t.Fatal(err)
	}
}

// unacknowledged waits until the broker has n messages on their way to the client.
func (h *house) unacknowledged(n int) {
	h.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		got := -1
		if c, ok := h.server.Clients.Get("edge-test"); ok {
			got = c.State.Inflight.Len()
		}
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%d messages are not acknowledged, want %d", got, n)
		}
	}
}

// ear streams one source.
type ear struct {
	t      *testing.T
	c      *Client
	events chan sensors.Event
	stop   func() error
}

func (h *house) listen(cfg SourceConfig) *ear {
	h.t.Helper()
	var log *slog.Logger
	if os.Getenv("EDGE_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		paho.ERROR = slog.NewLogLogger(log.Handler(), slog.LevelError)
	}
	e := &ear{t: h.t, c: New(Config{Broker: "tcp://" + h.address, ClientID: "edge-test", Log: log}), events: make(chan sensors.Event, 1000)}
	e.add(cfg)
	return e
}

func (e *ear) add(cfg SourceConfig) {
	e.t.Helper()
	s, err := e.c.Source(cfg)
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		for {
			err := s.Stream(ctx, func(x sensors.Event) {
				if x.Done != nil {
					e.events <- x
				}
			})
			if ctx.Err() != nil || errors.Is(err, errClosed) {
				done <- err
				return
			}
		}
	}()
	var once sync.Once
	e.stop = func() (err error) {
		once.Do(func() { cancel(); err = <-done; err = errors.Join(err, e.c.Close()) })
		return err
	}
	e.t.Cleanup(func() { e.stop() })
	for s.c.state(s).number == 0 {
		time.Sleep(time.Millisecond) // until it is there
	}
}

func (e *ear) next() sensors.Event {
	e.t.Helper()
	select {
	case x := <-e.events:
		return x
	case <-time.After(60 * time.Second):
		e.t.Fatal("no message")
	}
	return sensors.Event{}
}

// subscribed waits until messages of a topic come.
func (h *house) subscribed(filter string) {
	h.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); len(h.server.Topics.Subscribers(filter).Subscriptions) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatal("nobody subscribed")
		}
	}
}

// TestAcknowledged: a message is acknowledged when its readings are durable and not
// before; after a crash what was not comes again, and says so.
func TestAcknowledged(t *testing.T) {
	h := newHouse(t)
	e := h.listen(SourceConfig{Topic: "zigbee2mqtt/+", Fields: map[string]string{"pm25": "ug/m3"}})
	h.subscribed("zigbee2mqtt/street")
	for i := range 5 {
		h.say("zigbee2mqtt/street", fmt.Sprintf(`{"pm25":%d}`, i), false)
	}
	h.unacknowledged(5)
	for i := range 5 {
		x := e.next()
		want := []sensors.Reading{{Name: "street/pm25", Unit: "ug/m3", Value: float64(i)}}
		if !reflect.DeepEqual(x.Readings, want) {
			t.Errorf("%+v, want %+v", x.Readings, want)
		}
		if i < 3 {
			x.Done(nil)
		}
	}
	h.unacknowledged(2)
	e.stop() // with two that were not kept
	again := h.listen(SourceConfig{Topic: "zigbee2mqtt/+", Fields: map[string]string{"pm25": "ug/m3"}})
	left := map[any]bool{3.: true, 4.: true} // this broker sends them again in any order
	for range 2 {
		x := again.next()
		want := []sensors.Reading{{Name: "street/pm25", Unit: "ug/m3", Value: x.Readings[0].Value, Quality: []string{"dup"}}}
		if !reflect.DeepEqual(x.Readings, want) || !left[x.Readings[0].Value] {
			t.Errorf("%+v, want %+v", x.Readings, want)
		}
		delete(left, x.Readings[0].Value)
		x.Done(nil)
	}
	h.unacknowledged(0)
}

// TestCut: a connection that breaks is told, once; what is said while the device rests
// from that is not acknowledged before it is kept.
func TestCut(t *testing.T) {
	h := newHouse(t)
	c := New(Config{Broker: "tcp://" + h.address, ClientID: "edge-test"})
	defer c.Close()
	s, err := c.Source(SourceConfig{Topic: "a", Name: "value"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	works := make(chan bool, 10)
	got := make(chan sensors.Event, 100)
	stream := func() error {
		return s.Stream(ctx, func(x sensors.Event) {
			if x.Done == nil {
				works <- true
			} else {
				got <- x
			}
		})
	}
	done := make(chan error, 1)
	go func() { done <- stream() }()
	<-works
	cl, ok := h.server.Clients.Get("edge-test")
	if !ok {
		t.Fatal("it is not there")
	}
	cl.Net.Conn.Close()
	if err := <-done; !errors.Is(err, sensors.ErrGone) {
		t.Fatal(err)
	}
	for i := range 20 {
		h.say("a", fmt.Sprint(i), false)
	}
	h.unacknowledged(20)
	for st := c.state(s); st.number == 0; st = c.state(s) {
		<-st.moved // it is connected again, and nobody streams
	}
	h.unacknowledged(20)
	go func() { done <- stream() }()
	<-works
	seen := map[any]bool{}
	for len(seen) < 20 {
		x := <-got
		seen[x.Readings[0].Value] = true
		x.Done(nil)
	}
	h.unacknowledged(0)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestNotKeptWhileDown: what the device could not keep while the broker is away does not
// keep it from coming back.
func TestNotKeptWhileDown(t *testing.T) {
	h := newHouse(t)
	e := h.listen(SourceConfig{Topic: "a", Name: "value"})
	h.subscribed("a")
	h.say("a", "1", false)
	x := e.next()
	h.server.Close()
	x.Done(errors.New("the card is full"))
	h.open()
	h.subscribed("a")
	h.say("a", "2", false)
	for x := e.next(); x.Readings[0].Value != 2.; x = e.next() {
		x.Done(nil)
	}
}

// TestNotKept: what the device could not keep is asked for again.
func TestNotKept(t *testing.T) {
	h := newHouse(t)
	e := h.listen(SourceConfig{Topic: "a", Name: "value"})
	h.subscribed("a")
	h.say("a", "1", false)
	e.next().Done(errors.New("the card is full"))
	x := e.next()
	if len(x.Readings) != 1 || x.Readings[0].Value != 1. || len(x.Readings[0].Quality) != 1 || x.Readings[0].Quality[0] != "dup" {
		t.Errorf("%+v", x.Readings)
	}
	x.Done(nil)
	h.unacknowledged(0)
}

// TestBrokerRestarts: when the broker comes back, so do its messages.
func TestBrokerRestarts(t *testing.T) {
	h := newHouse(t)
	e := h.listen(SourceConfig{Topic: "a/#", Name: "value"})
	h.subscribed("a/b")
	h.say("a/b", "1", false)
	e.next().Done(nil)
	h.server.Close()
	h.open()
	h.subscribed("a/b") // it forgot everything
	h.say("a/b", "2", false)
	if x := e.next(); len(x.Readings) != 1 || x.Readings[0].Value != 2. || x.Readings[0].Name != "b/value" {
		t.Errorf("%+v", x.Readings)
	}
}

// TestTwoFilters: a message of two sources is acknowledged when both kept it.
func TestTwoFilters(t *testing.T) {
	h := newHouse(t)
	e := h.listen(SourceConfig{Topic: "a/b", Fields: map[string]string{"x": "Cel"}})
	s, err := e.c.Source(SourceConfig{Topic: "a/+", Fields: map[string]string{"y.0": "V"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	other := make(chan sensors.Event, 10)
	go s.Stream(ctx, func(x sensors.Event) { //nolint:errcheck // ends with the test
		if x.Done != nil {
			other <- x
		}
	})
	h.subscribed("a/b")
	h.subscribed("a/other")
	h.say("a/b", `{"x":"21.5","y":[3.3,4]}`, false)
	one, two := e.next(), <-other
	if one.Readings[0].Value != 21.5 || two.Readings[0].Value != 3.3 || two.Readings[0].Name != "b/y.0" {
		t.Errorf("%+v, %+v", one, two)
	}
	one.Done(nil)
	h.unacknowledged(1)
	two.Done(nil)
	h.unacknowledged(0)
}

// TestRetained: what was said before anybody listened is stale.
func TestRetained(t *testing.T) {
	h := newHouse(t)
	h.say("a", "open", true)
	e := h.listen(SourceConfig{Topic: "a", Name: "door"})
	if x := e.next(); !reflect.DeepEqual(x.Readings, []sensors.Reading{{Name: "door", Value: "open", Quality: []string{"stale"}}}) {
		t.Errorf("%+v", x.Readings)
	}
}

// TestRefused: a subscription that the broker refuses is an error that says so.
func TestRefused(t *testing.T) {
	h := newHouse(t)
	e := h.listen(SourceConfig{Topic: "a", Name: "value"})
	s, err := e.c.Source(SourceConfig{Topic: "secret/x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stream(context.Background(), func(sensors.Event) {}); !errors.Is(err, sensors.ErrGone) {
		t.Error(err)
	}
}

// TestAllowedLater: a subscription that is refused is no sensor that works; when it is
// allowed, that is said, although nothing comes.
func TestAllowedLater(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	c := New(Config{Broker: "tcp://" + h.address, ClientID: "edge-test"})
	defer c.Close()
	s, err := c.Source(SourceConfig{Topic: "secret/x"})
	if err != nil {
		t.Fatal(err)
	}
	works := make(chan bool, 10)
	emit := func(sensors.Event) { works <- true }
	if err := s.Stream(context.Background(), emit); !errors.Is(err, sensors.ErrGone) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.Stream(ctx, emit); !errors.Is(err, context.DeadlineExceeded) || len(works) > 0 {
		t.Errorf("%v; it works %d times", err, len(works))
	}
	h.allowed.Store(true)
	ctx, cancel = context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Stream(ctx, emit) }()
	select {
	case <-works:
	case <-time.After(60 * time.Second):
		t.Error("it does not say that it works")
	}
	cancel()
	<-done
}

// TestMute: a broker that says nothing after it let one in does not hold up the end.
func TestMute(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	in := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte{0x20, 2, 0, 0}) //nolint:errcheck // CONNACK; the test sees it
			in <- conn
		}
	}()
	c := New(Config{Broker: "tcp://" + ln.Addr().String(), ClientID: "x"})
	var sources []*Source
	for range 3 {
		s, err := c.Source(SourceConfig{Topic: "a"})
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sources[0].Stream(ctx, func(sensors.Event) {}) }()
	conn := <-in
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for began := false; !began; {
		c.mu.Lock()
		began = c.link != nil
		c.mu.Unlock()
		time.Sleep(time.Millisecond) // until it thinks that it is connected
	}
	cancel()
	<-done
	start := time.Now()
	if c.Close(); time.Since(start) > 8*time.Second {
		t.Errorf("Close takes %v", time.Since(start))
	}
}

// TestBurst: more retained messages than there is room for come once each, and the
// connection stands.
func TestBurst(t *testing.T) {
	h := newHouse(t)
	const n = 3000
	for i := range n {
		if err := h.server.Publish(fmt.Sprintf("a/%d", i), []byte(fmt.Sprint(i)), true, 0); err != nil {
			t.Fatal(err)
		}
	}
	c := New(Config{Broker: "tcp://" + h.address, ClientID: "edge-test"})
	defer c.Close()
	s, err := c.Source(SourceConfig{Topic: "a/+", Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	seen, connections := map[any]bool{}, 0
	err = s.Stream(ctx, func(x sensors.Event) {
		if x.Done == nil {
			connections++
			return
		}
		if seen[x.Readings[0].Value] {
			t.Errorf("%v comes twice", x.Readings[0].Value)
		}
		seen[x.Readings[0].Value] = true
		if len(seen) == 300 {
			time.Sleep(500 * time.Millisecond) // the card is slow
		}
		x.Done(nil)
		if len(seen) == n {
			cancel()
		}
	})
	if len(seen) != n || connections != 1 {
		t.Errorf("%d of %d messages, %d connections: %v", len(seen), n, connections, err)
	}
}

// TestNoBroker: where nobody answers, it says so, and Close does not wait.
func TestNoBroker(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	c := New(Config{Broker: "tcp://" + ln.Addr().String(), ClientID: "x"})
	s, err := c.Source(SourceConfig{Topic: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Stream(context.Background(), func(sensors.Event) {}); !errors.Is(err, sensors.ErrGone) {
		t.Error(err)
	}
	start := time.Now()
	if c.Close(); time.Since(start) > 8*time.Second {
		t.Error("Close waits")
	}
}

func TestFilters(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
		wild          []string
	}{
		{"a/b", "a/b", true, nil}, {"a/b", "a", false, nil}, {"a", "a/b", false, nil}, {"+", "a", true, []string{"a"}}, {"+", "a/b", false, nil},
		{"a/+/c", "a/b/c", true, []string{"b"}}, {"#", "a/b", true, []string{"a", "b"}}, {"a/#", "a", true, nil}, {"a/#", "a/b/c", true, []string{"b", "c"}},
		{"#", "$SYS/x", false, nil}, {"+/x", "$SYS/x", false, nil}, {"$SYS/#", "$SYS/x", true, []string{"x"}}, {"a/+", "a/", true, []string{""}}, {"+/+", "/finance", true, []string{"", "finance"}},
	} {
		levels, ok := wild(c.filter, c.topic)
		if ok != c.want || ok && !reflect.DeepEqual(append([]string{}, levels...), append([]string{}, c.wild...)) {
			t.Errorf("%s of %s: %v, %q", c.topic, c.filter, ok, levels)
		}
	}
	for filter, ok := range map[string]bool{"a/b": true, "#": true, "a/#": true, "+/a/+": true, "": false, "a#": false, "#/a": false, "a+/b": false} {
		if err := CheckFilter(filter); (err == nil) != ok {
			t.Errorf("%q: %v", filter, err)
		}
	}
}

// said is a message without a connection.
type said struct {
	paho.Message
	topic, payload string
}

func (m said) Topic() string   { return m.topic }
func (m said) Payload() []byte { return []byte(m.payload) }
func (m said) Duplicate() bool { return false }
func (m said) Retained() bool  { return false }

func TestPayloads(t *testing.T) {
	fields := SourceConfig{Topic: "home/+/state", Fields: map[string]string{"a": "Cel", "b.c": "V", "on": ""}}
	value := SourceConfig{Topic: "t", Name: "value", Unit: "Pa"}
	for _, c := range []struct {
		cfg            SourceConfig
		topic, payload string
		want           []sensors.Reading
	}{
		{fields, "home/küche 1/state", `{"a":1.5,"b":{"c":2},"on":true,"z":9}`, []sensors.Reading{
			{Name: "k__che_1/a", Unit: "Cel", Value: 1.5}, {Name: "k__che_1/b.c", Unit: "V", Value: 2.}, {Name: "k__che_1/on", Value: true},
		}},
		{fields, "home/x/state", `{"z":1}`, nil}, {fields, "home/x/state", `nonsense`, nil}, {fields, "home/x/state", `{"a":null,"b":7}`, nil},
		{value, "t", " 101325.2 ", []sensors.Reading{{Name: "value", Unit: "Pa", Value: 101325.2}}}, {value, "t", "true", []sensors.Reading{{Name: "value", Unit: "Pa", Value: true}}},
		{value, "t", `"7"`, []sensors.Reading{{Name: "value", Unit: "Pa", Value: 7.}}}, {value, "t", "", nil}, {value, "t", `{"a":1}`, nil}, {value, "t", "NaN", nil},
		{value, "t", "unavailable", nil}, {fields, "home/x/state", `{"a":"unavailable"}`, nil}, {value, "t", "gr\xfcn", nil},
		{SourceConfig{Topic: "t", Name: "door"}, "t", "open", []sensors.Reading{{Name: "door", Value: "open"}}},
		{SourceConfig{Topic: "t", Fields: map[string]string{"pm2.5": "ug/m3", "a.pm2.5.1": ""}}, "t", `{"pm2.5":7,"a":{"pm2.5":[1,"x"]}}`, []sensors.Reading{
			{Name: "a.pm2.5.1", Value: "x"}, {Name: "pm2.5", Unit: "ug/m3", Value: 7.},
		}},
		{value, "t", "\x00\x01", nil},
	} {
		got, err := c.cfg.parse(said{topic: c.topic, payload: c.payload})
		if !reflect.DeepEqual(got, c.want) || (err == nil) != (c.want != nil) {
			t.Errorf("%s: %+v, %v", c.payload, got, err)
		}
		for _, r := range got {
			if !sensors.ValidName(r.Name) {
				t.Errorf("%q is no name", r.Name)
			}
		}
	}
}

// FuzzPayload reads any bytes.
func FuzzPayload(f *testing.F) {
	f.Add("a/b", `{"a":{"b":[1,"2"]}}`)
	f.Add("x", "21.5")
	f.Fuzz(func(t *testing.T, topic, payload string) {
		for _, c := range []SourceConfig{{Topic: "#", Fields: map[string]string{"a.b.1": "", "c": ""}}, {Topic: "+", Name: "value"}} {
			got, err := c.parse(said{topic: topic, payload: payload})
			if (err == nil) != (len(got) > 0) {
				t.Error(got, err)
			}
			for _, r := range got {
				if !sensors.ValidName(r.Name) {
					t.Errorf("%q", r.Name)
				}
			}
		}
	})
}
