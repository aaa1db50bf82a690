//go:build e2e

// Package broker runs edge with mosquitto, the broker that most people have.
package broker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// house is mosquitto, with a directory for it and for edge.
type house struct {
	t      *testing.T
	dir    string
	port   string
	broker *exec.Cmd
	// clients counts those of the test: two of one name throw each other out.
	clients int
}

func newHouse(t *testing.T) *house {
	h := &house{t: t, dir: t.TempDir(), port: freePort(t)}
	// mosquitto gives up root's rights: it must be able to write here.
	config := fmt.Sprintf("listener %s 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location %s/\nautosave_interval 1\nautosave_on_changes true\nuser root\n", h.port, h.dir)
	h.write("mosquitto.conf", config)
	h.write("edge.yaml", fmt.Sprintf(`device: {name: house, clock: system}
storage: {path: data, max_size: 32MiB}
mqtt: {broker: "tcp://127.0.0.1:%s"}
monitor: {mqtt: {broker: "tcp://127.0.0.1:%s", prefix: edge}}
feeds:
  - name: air
    price: free
    tcp: "127.0.0.1:0"
    sensors: [{name: street, driver: mqtt, topic: "zigbee2mqtt/+", fields: {n: count}}]
`, h.port, h.port))
	h.open()
	t.Cleanup(h.close)
	return h
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// build returns the program.
func (h *house) build() string {
	h.t.Helper()
	edge := filepath.Join(h.dir, "edge")
	if out, err := exec.Command("go", "build", "-o", edge, "dazaar-edge/cmd/edge").CombinedOutput(); err != nil {
		h.t.Fatalf("%v: %s", err, out)
	}
	return edge
}

func (h *house) write(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) open() {
	h.t.Helper()
	h.broker = exec.Command("mosquitto", "-c", filepath.Join(h.dir, "mosquitto.conf"))
	if err := h.broker.Start(); err != nil {
		h.t.Fatalf("apt-get install mosquitto: %v", err)
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+h.port)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatal(err)
		}
	}
}

func (h *house) close() {
	h.broker.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
	h.broker.Wait()                          //nolint:errcheck // likewise
}

// client connects to the broker.
func (h *house) client() paho.Client {
	h.t.Helper()
	h.clients++
	c := paho.NewClient(paho.NewClientOptions().AddBroker("tcp://127.0.0.1:" + h.port).SetClientID(fmt.Sprint("test", h.clients)).SetCleanSession(true))
	if t := c.Connect(); !t.WaitTimeout(10*time.Second) || t.Error() != nil {
		h.t.Fatal(t.Error())
	}
	return c
}

// say publishes numbers, at QoS 1.
func (h *house) say(from, to int) {
	h.t.Helper()
	c := h.client()
	defer c.Disconnect(100)
	for n := from; n < to; n++ {
		if t := c.Publish("zigbee2mqtt/street", 1, false, fmt.Sprintf(`{"n":%d}`, n)); !t.WaitTimeout(10*time.Second) || t.Error() != nil {
			h.t.Fatal(t.Error())
		}
	}
}

// station is edge run.
type station struct {
	h            *house
	cmd          *exec.Cmd
	stderr       log
	key, address string
}

// log is what a process says.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (s *station) said() string {
	s.stderr.mu.Lock()
	defer s.stderr.mu.Unlock()
	return s.stderr.b.String()
}

func (h *house) start(edge string) *station {
	h.t.Helper()
	s := &station{h: h, cmd: exec.Command(edge, "run", "-c", "edge.yaml")}
	s.cmd.Dir, s.cmd.Stderr = h.dir, &s.stderr
	out, err := s.cmd.StdoutPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { s.cmd.Process.Kill() })
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	if !sc.Scan() {
		h.t.Fatalf("edge run: %s", s.said())
	}
	var up struct {
		Feeds []struct{ SellerKey, TCP string }
	}
	if err := json.Unmarshal(sc.Bytes(), &up); err != nil {
		h.t.Fatal(err)
	}
	s.key, s.address = up.Feeds[0].SellerKey, up.Feeds[0].TCP
	return s
}

// TestMosquitto: messages come while edge runs, while it is killed in the middle, and
// while the broker restarts. In the end each is in the log, in order; what came twice is
// flagged; and the last will says when edge was gone.
func TestMosquitto(t *testing.T) {
	h := newHouse(t)
	edge := h.build()
	will := make(chan string, 100)
	watch := func() paho.Client {
		c := h.client()
		c.Subscribe("edge/+/availability", 1, func(_ paho.Client, m paho.Message) { will <- string(m.Payload()) })
		return c
	}
	expect := func(want string) {
		t.Helper()
		for timeout := time.After(30 * time.Second); ; {
			select {
			case got := <-will:
				if got == want {
					return
				}
			case <-timeout:
				t.Fatalf("it is not said to be %s", want)
			}
		}
	}
	h.start(edge).stop() // the broker knows its session from now on
	c := watch()
	s := h.start(edge)
	expect("online")
	h.say(0, 200)
	s.cmd.Process.Kill() // with some that are not acknowledged
	s.cmd.Wait()         //nolint:errcheck // it was killed
	expect("offline")
	h.say(200, 300) // while it is off
	s = h.start(edge)
	expect("online")
	h.say(300, 400)
	c.Disconnect(100)
	h.close()
	h.open()
	h.say(400, 500)
	until(t, func() bool {
		got := h.numbers(s, edge)
		if len(got) > 0 {
			t.Logf("%d readings, the last one is %d", len(got), got[len(got)-1].n)
		}
		return len(got) >= 500 && got[len(got)-1].n == 499
	})
	seen := map[int]bool{}
	last, dups := -1, 0
	for _, x := range h.numbers(s, edge) {
		switch {
		case seen[x.n] && !x.dup:
			t.Errorf("%d comes twice, and does not say so", x.n)
		case seen[x.n]:
			dups++
		case x.n != last+1:
			t.Errorf("%d follows %d", x.n, last)
		}
		seen[x.n] = true
		last = max(last, x.n)
	}
	t.Logf("500 messages over a kill and a restart of the broker: all there, %d twice and flagged", dups)
	s.stop()
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatal("not in time")
		}
	}
}

func (s *station) stop() {
	s.h.t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // Wait tells
	if err := s.cmd.Wait(); err != nil {  // it says so where it had to be cut short
		s.h.t.Errorf("%v: %s", err, s.said())
	}
}

type number struct {
	n   int
	dup bool
}

// numbers returns what a new buyer gets.
func (h *house) numbers(s *station, edge string) (out []number) {
	h.t.Helper()
	dir, err := os.MkdirTemp(h.dir, "buyer")
	if err != nil {
		h.t.Fatal(err)
	}
	b, err := exec.Command(edge, "buy", s.key, "--seller", s.address, "--state", dir).Output()
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var x struct {
			Name    string
			Value   float64
			Quality []string
		}
		if json.Unmarshal([]byte(line), &x) == nil && x.Name == "street/street/n" {
			out = append(out, number{int(x.Value), len(x.Quality) > 0 && x.Quality[0] == "dup"})
		}
	}
	return out
}
