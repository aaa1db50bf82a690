package mux

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pipe is one direction of an in-memory stream.
type pipe struct {
	mu     sync.Mutex
	cond   sync.Cond
	queue  [][]byte
	room   int // messages; a writer waits when there are more
	closed bool
	eof    bool // reads end when the queue is empty
}

func newPipe(room int) *pipe {
	p := &pipe{room: room}
	p.cond.L = &p.mu
	return p
}

func (p *pipe) read() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) == 0 && !p.closed && !p.eof {
		p.cond.Wait()
	}
	if len(p.queue) == 0 {
		return nil, io.EOF
	}
	b := p.queue[0]
	p.queue = p.queue[1:]
	p.cond.Broadcast()
	return b, nil
}

func (p *pipe) write(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) >= p.room && !p.closed {
		p.cond.Wait()
	}
	if p.closed {
		return io.ErrClosedPipe
	}
	p.queue = append(p.queue, slices.Clone(b))
	p.cond.Broadcast()
	return nil
}

func (p *pipe) close() {
	p.mu.Lock()
	p.closed = true
	p.cond.Broadcast()
	p.mu.Unlock()
}

// end lets the reader read to the end.
func (p *pipe) end() {
	p.mu.Lock()
	p.eof = true
	p.cond.Broadcast()
	p.mu.Unlock()
}

// memory is a Stream over two pipes.
type memory struct{ in, out *pipe }

func (s *memory) ReadMessage() ([]byte, error) { return s.in.read() }
func (s *memory) WriteMessage(m []byte) error  { return s.out.write(m) }
func (s *memory) Close() error                 { s.in.close(); s.out.close(); return nil }
func (s *memory) CloseWrite() error            { s.out.end(); return nil }
func (s *memory) SetMaxMessage(int)            {}
func (s *memory) Backlog() (int, bool) {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	n := 0
	for _, b := range s.out.queue {
		n += len(b)
	}
	return n, true
}

func streams(room int) (a, b *memory) {
	x, y := newPipe(room), newPipe(room)
	return &memory{x, y}, &memory{y, x}
}

// recorder is a Handler that notes what happens.
type recorder struct {
	mu      sync.Mutex
	cond    *sync.Cond
	log     []string
	message func(typ uint64, payload []byte) error
}

func newRecorder() *recorder {
	r := &recorder{}
	r.cond = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) add(format string, a ...any) {
	r.mu.Lock()
	r.log = append(r.log, fmt.Sprintf(format, a...))
	r.cond.Broadcast()
	r.mu.Unlock()
}

// wait returns the log when it has n entries.
func (r *recorder) wait(n int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.log) < n {
		r.cond.Wait()
	}
	return slices.Clone(r.log)
}

func (r *recorder) Opened(h []byte) error { r.add("opened %s", h); return nil }
func (r *recorder) Closed(err error)      { r.add("closed %v", err) }
func (r *recorder) Message(typ uint64, p []byte) error {
	r.add("%d %s", typ, p)
	if r.message != nil {
		return r.message(typ, p)
	}
	return nil
}

// run runs m until the test ends.
func run(t testing.TB, m *Mux) *Mux {
	t.Helper()
	done := make(chan struct{})
	go func() { m.Run(); close(done) }() //nolint:errcheck // ends with the test
	t.Cleanup(func() { m.Close(); <-done })
	return m
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectors replays a recorded stock Protomux: the same calls write the same
// bytes, and what was fed to it has the same effect.
func TestVectors(t *testing.T) {
	var v struct {
		Log []struct{ Dir, Label, Hex string }
	}
	b, err := os.ReadFile("testdata/protomux.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	m := New(&memory{newPipe(1), newPipe(1)}, Config{})
	next := 0
	// out checks that what is queued is the next recorded frame.
	out := func() {
		t.Helper()
		e := v.Log[next]
		if next++; e.Dir != "out" {
			t.Fatalf("%q is not ours", e.Label)
		}
		m.mu.Lock()
		got := hex.EncodeToString(m.queue[0].frame())
		m.queue = nil
		m.mu.Unlock()
		if got != e.Hex {
			t.Fatalf("%s: %s, want %s", e.Label, got, e.Hex)
		}
	}
	in := func() {
		t.Helper()
		e := v.Log[next]
		if next++; e.Dir != "in" {
			t.Fatalf("%q is ours", e.Label)
		}
		if err := m.frame(unhex(t, e.Hex)); err != nil {
			t.Fatalf("%s: %v", e.Label, err)
		}
	}
	str := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	ra, rb, rd := newRecorder(), newRecorder(), newRecorder()
	a, err := m.Open(ChannelConfig{Protocol: "test/a", ID: []byte{0xaa, 0xbb}, Handshake: str("hello"), Handler: ra})
	if err != nil {
		t.Fatal(err)
	}
	out()
	ch, _ := m.Open(ChannelConfig{Protocol: "test/b", Handler: rb})
	out()
	a.Send(0, str("hi"))
	out()
	a.Send(1, []byte{0xff, 0xee})
	out()
	a.Send(0, str("one"))
	a.Send(0, str("two"))
	ch.Send(0, str("three"))
	a.Send(1, []byte{9})
	out()
	d, _ := m.Open(ChannelConfig{Protocol: "test/d", Handler: rd})
	d.Send(0, str("x"))
	out()
	for range 4 {
		in()
	}
	out() // the reject of an unknown protocol
	a.Close()
	out()
	in()
	if _, err := m.Open(ChannelConfig{Protocol: "test/e", Handler: newRecorder()}); err != nil {
		t.Fatal(err)
	}
	out()
	if next != len(v.Log) {
		t.Errorf("%d of %d frames", next, len(v.Log))
	}
	if got := fmt.Sprintf("%q %q", ra.log, rb.log); got != `["opened \x02yo" "0 \vfrom remote"] ["closed mux: channel was rejected"]` {
		t.Error(got)
	}
}

func TestPairing(t *testing.T) {
	sa, sb := streams(100)
	// The one side sends at once; the other decides later, from elsewhere.
	accepted := make(chan string, 10)
	a := run(t, New(sa, Config{}))
	b := run(t, New(sb, Config{Accept: func(protocol string, id []byte) bool {
		accepted <- protocol + string(id)
		return protocol != "no"
	}}))
	ra, rb, rn := newRecorder(), newRecorder(), newRecorder()
	ch, err := a.Open(ChannelConfig{Protocol: "yes", Aliases: []string{"other name"}, ID: []byte("1"), Handshake: []byte("from a"), Handler: ra})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Open(ChannelConfig{Protocol: "yes", ID: []byte("1"), Handler: ra}); !errors.Is(err, ErrExists) {
		t.Errorf("opened twice: %v", err)
	}
	ch.Send(1, []byte("early"))
	ch.Send(2, []byte("bird"))
	if _, err := a.Open(ChannelConfig{Protocol: "no", Handler: rn}); err != nil {
		t.Fatal(err)
	}
	if got := rn.wait(1)[0]; got != "closed mux: channel was rejected" {
		t.Error(got)
	}
	if x, y := <-accepted, <-accepted; x != "yes1" || y != "no" {
		t.Error(x, y)
	}
	rb.message = func(typ uint64, p []byte) error {
		if typ == 2 { // opening from inside a handler
			_, err := b.Open(ChannelConfig{Protocol: "inner", Handler: newRecorder()})
			return err
		}
		return nil
	}
	_, err = b.Open(ChannelConfig{Protocol: "other name", Aliases: []string{"yes"}, ID: []byte("1"), Handshake: []byte("from b"), Handler: rb})
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%q", rb.wait(3)); got != `["opened from a" "1 early" "2 bird"]` {
		t.Error(got)
	}
	if got := ra.wait(1)[0]; got != "opened from b" {
		t.Error(got)
	}
}

// TestEarlyCap sees that early messages beyond the cap keep the connection from
// reading on, until somebody opens the channel, and that none is lost.
func TestEarlyCap(t *testing.T) {
	sa, sb := streams(4)
	a := run(t, New(sa, Config{}))
	b := New(sb, Config{Accept: func(string, []byte) bool { return true }})
	run(t, b)
	p := &producer{recorder: newRecorder(), total: 1000, size: 1000}
	ch, err := a.Open(ChannelConfig{Protocol: "x", Handler: p})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := ch.Send(uint64(i), make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	// The reader waits when 21 messages of 1,513 bytes are held.
	for {
		b.mu.Lock()
		early := b.early
		b.mu.Unlock()
		if early > maxEarly-2000 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	r := newRecorder()
	if _, err := b.Open(ChannelConfig{Protocol: "x", Handler: r}); err != nil {
		t.Fatal(err)
	}
	log := r.wait(101)
	for i := range 100 {
		if log[i+1][:1] != fmt.Sprint(i)[:1] {
			t.Fatalf("message %d is %.10s", i, log[i+1])
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.early != 0 {
		t.Errorf("%d bytes are still counted as early", b.early)
	}
}

// producer sends total messages of one size.
type producer struct {
	*recorder
	total, size int
	sent        int
	look        atomic.Pointer[chan int]
	stop        func() bool
}

func (p *producer) Produce(b *Batch) time.Time {
	for p.sent < p.total && !b.Full() && b.Fits(p.size) {
		if p.stop != nil && p.stop() {
			return time.Time{}
		}
		buf := b.Begin(7, p.size)
		buf = append(buf, bytes.Repeat([]byte{byte(p.sent)}, p.size)...)
		b.End(buf, p.size)
		p.sent++
	}
	return time.Time{}
}

// TestWindow sees that what is on its way never exceeds the window, or one
// message, and that everything arrives in order, fairly.
func TestWindow(t *testing.T) {
	for _, size := range []int{10, 251, 252, 1000, 70000, 100000} {
		sa, sb := streams(1 << 20)
		peak := 0
		tap := &tapped{memory: sa, seen: func(n int) { peak = max(peak, n) }}
		a := run(t, New(tap, Config{Window: 64 << 10}))
		b := run(t, New(sb, Config{Accept: func(string, []byte) bool { return true }}))
		total := 200
		var got [2]int
		var order []int
		done := make(chan struct{})
		for i := range 2 {
			p := &producer{recorder: newRecorder(), total: total, size: size}
			r := newRecorder()
			r.message = func(typ uint64, m []byte) error {
				if typ != 7 || len(m) != size || m[0] != byte(got[i]) {
					t.Errorf("message %d: type %d, %d bytes", got[i], typ, len(m))
				}
				got[i]++
				order = append(order, i)
				if got[0] == total && got[1] == total {
					close(done)
				}
				return nil
			}
			ca, err := a.Open(ChannelConfig{Protocol: fmt.Sprint(i), Handler: p})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Open(ChannelConfig{Protocol: fmt.Sprint(i), Handler: r}); err != nil {
				t.Fatal(err)
			}
			ca.Wake()
		}
		<-done
		if limit := max(64<<10, size+32); peak > limit {
			t.Errorf("messages of %d: %d bytes on their way", size, peak)
		}
		if n := 0; size >= 1000 {
			for _, i := range order[:total] {
				n += i
			}
			if n < total/4 || n > 3*total/4 {
				t.Errorf("messages of %d: of the first %d, %d were the second channel's", size, total, n)
			}
		}
	}
}

type tapped struct {
	*memory
	seen func(int)
}

func (s *tapped) WriteMessage(m []byte) error {
	n, _ := s.Backlog()
	s.seen(n + len(m))
	return s.memory.WriteMessage(m)
}

// TestPace checks the cap on what producers charge.
func TestPace(t *testing.T) {
	sa, sb := streams(1 << 20)
	pace := &fakePace{start: time.Now()}
	a := run(t, New(sa, Config{Pace: pace}))
	b := run(t, New(sb, Config{Accept: func(string, []byte) bool { return true }}))
	p, r := &producer{recorder: newRecorder(), total: 100, size: 1000}, newRecorder()
	ca, _ := a.Open(ChannelConfig{Protocol: "x", Handler: p})
	b.Open(ChannelConfig{Protocol: "x", Handler: r})
	ca.Wake()
	r.wait(101)
	if took := time.Since(pace.start); took < 80*time.Millisecond {
		t.Errorf("100 kB at 1 MB/s took %v", took)
	}
}

// fakePace allows 1 MB/s.
type fakePace struct {
	start time.Time
	n     int
}

func (p *fakePace) Spend(n int) time.Time {
	p.n += n
	return p.start.Add(time.Duration(p.n) * time.Microsecond)
}

// TestSlow cuts a peer off that does not read.
func TestSlow(t *testing.T) {
	sa, _ := streams(1)
	a := New(sa, Config{MaxQueue: 10000})
	done := make(chan error, 1)
	go func() { done <- a.Run() }()
	ch, _ := a.Open(ChannelConfig{Protocol: "x", Handler: newRecorder()})
	for range 100 {
		if err := ch.Send(0, make([]byte, 1000)); errors.Is(err, ErrSlow) {
			if err := <-done; !errors.Is(err, ErrSlow) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("100 kB are queued")
}

func TestViolations(t *testing.T) {
	open := func(id byte) string { return "0001" + hex.EncodeToString([]byte{id, 1, 'x', 0}) }
	for name, frames := range map[string][]string{
		"sparse id":            {open(2)},
		"open twice":           {open(1), open(1)},
		"reject of nothing":    {"000205"},
		"empty message":        {"01"},
		"empty control":        {"00"},
		"batch cut":            {"00000105"},
		"batch without a body": {"000001"},
		"long name":            {"000101fd0102" + hex.EncodeToString(make([]byte, 260)) + "00"},
		"open cut":             {"00010105"},
	} {
		m := New(&memory{newPipe(1), newPipe(1)}, Config{Accept: func(string, []byte) bool { return true }})
		var err error
		for _, f := range frames {
			err = m.frame(unhex(t, f))
		}
		if name == "batch without a body" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An id of zero and too many channels are refused without further ado.
	m := New(&memory{newPipe(1), newPipe(1)}, Config{MaxChannels: 3, Accept: func(string, []byte) bool { return true }})
	for i := range byte(4) {
		if err := m.frame(unhex(t, open(i))); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := m.frame(unhex(t, open(4))); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(m.queue[0].frame()); got != "0000000202000202"+"04" {
		t.Errorf("rejects: %s", got)
	}
}

// TestSchedules opens, closes, sends and accepts at random on both sides and
// checks that the two agree: what one got is in the order in which the other one
// sent it, of a channel that nobody closes all of it, and none is of another
// channel.
func TestSchedules(t *testing.T) {
	for seed := range uint64(300) {
		schedule(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func schedule(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	sa, sb := streams(1000)
	ms := [2]*Mux{New(sa, Config{Accept: func(p string, _ []byte) bool { return p[0]%2 == 0 }}),
		New(sb, Config{Accept: func(p string, _ []byte) bool { return p[0]%2 == 0 }})}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, m := range ms {
		wg.Add(1)
		go func() { defer wg.Done(); errs[i] = m.Run() }()
	}
	var open [2][]*Channel
	sent := uint32(0)
	// hear returns a handler that checks what comes on the channel of this name.
	hear := func(name string) *recorder {
		r, last := newRecorder(), uint32(0)
		r.message = func(_ uint64, m []byte) error {
			if n := binary.LittleEndian.Uint32(m[1:]); m[0] != name[0] || n <= last {
				t.Errorf("on %s comes %q, number %d after %d", name, m[0], n, last)
			} else {
				last = n
			}
			return nil
		}
		return r
	}
	say := func(c *Channel) error {
		sent++
		m := binary.LittleEndian.AppendUint32([]byte(c.cfg.Protocol), sent)
		return c.Send(uint64(r.IntN(3)), append(m, make([]byte, r.IntN(300))...))
	}
	for range 200 {
		i := r.IntN(2)
		switch k := r.IntN(4); {
		case k < 2:
			name := string(rune('a' + r.IntN(6)))
			if c, err := ms[i].Open(ChannelConfig{Protocol: name, Handler: hear(name)}); err == nil {
				open[i] = append(open[i], c)
			} else if !errors.Is(err, ErrExists) {
				t.Error(err)
			}
		case len(open[i]) == 0:
		case k == 2:
			open[i][r.IntN(len(open[i]))].Close()
		default:
			say(open[i][r.IntN(len(open[i]))]) //nolint:errcheck // may be closed
		}
	}
	// Both sides hear each other out: a last channel each.
	var last [2]*recorder
	for i, m := range ms {
		last[i] = hear("z")
		c, err := m.Open(ChannelConfig{Protocol: "z", Handler: last[i]})
		if err != nil {
			t.Error(i, err)
		}
		for range 20 {
			if err := say(c); err != nil {
				t.Error(i, err)
			}
		}
	}
	last[0].wait(21)
	last[1].wait(21)
	ms[0].Close()
	wg.Wait()
	for i, err := range errs {
		if errors.Is(err, ErrProtocol) {
			t.Errorf("side %d: %v", i, err)
		}
	}
}

func FuzzFrame(f *testing.F) {
	var v struct{ Log []struct{ Dir, Hex string } }
	b, err := os.ReadFile("testdata/protomux.json")
	if err != nil {
		f.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		f.Fatal(err)
	}
	for _, e := range v.Log {
		f.Add(unhex(f, e.Hex), unhex(f, v.Log[0].Hex))
	}
	f.Fuzz(func(t *testing.T, x, y []byte) {
		m := New(&memory{newPipe(1), newPipe(1)}, Config{MaxChannels: 8, Accept: func(p string, _ []byte) bool { return len(p)%2 == 0 }})
		if _, err := m.Open(ChannelConfig{Protocol: "test/a", ID: []byte{0xaa, 0xbb}, Handler: newRecorder()}); err != nil {
			t.Fatal(err)
		}
		for _, b := range [][]byte{x, y, x, y} {
			if len(b) > 4096 { // more early messages would wait for ever
				return
			}
			if m.frame(b) != nil {
				break
			}
		}
		if m.early > maxEarly || len(m.remotes) > 8 || len(m.locals) > 8 {
			t.Fatalf("%d early, %d and %d channels", m.early, len(m.remotes), len(m.locals))
		}
	})
}
