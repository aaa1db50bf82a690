package mux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var takeAll = Config{Accept: func(string, []byte) bool { return true }}

// pairUp opens a channel from both sides.
func pairUp(t *testing.T, a, b *Mux, name string, ha, hb Handler) (ca, cb *Channel) {
	t.Helper()
	ca, err := a.Open(ChannelConfig{Protocol: name, Handler: ha})
	if err != nil {
		t.Fatal(err)
	}
	if cb, err = b.Open(ChannelConfig{Protocol: name, Handler: hb}); err != nil {
		t.Fatal(err)
	}
	return ca, cb
}

// sized notes the largest frame.
type sized struct {
	*memory
	most atomic.Int64
}

func (s *sized) WriteMessage(m []byte) error {
	s.most.Store(max(s.most.Load(), int64(len(m))))
	return s.memory.WriteMessage(m)
}

// TestQueueInFrames: what was queued goes out in frames that everybody reads.
func TestQueueInFrames(t *testing.T) {
	sa, sb := streams(1000)
	tap := &sized{memory: sa}
	a, b := New(tap, Config{}), run(t, New(sb, takeAll))
	r := newRecorder()
	ca, _ := pairUp(t, a, b, "x", newRecorder(), r)
	for i := range 80 {
		if err := ca.Send(uint64(i), make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	run(t, a)
	r.wait(81)
	if n := tap.most.Load(); n > frameTarget+2000 {
		t.Errorf("a frame of %d bytes", n)
	}
	if err := ca.Send(0, make([]byte, 129<<10)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if err := ca.Send(0, make([]byte, maxSend)); err != nil {
		t.Error("the connection is gone:", err)
	}
	r.wait(82)
}

// TestProducerBehindQueue: a producer is asked again when the queue left no room
// in a frame.
func TestProducerBehindQueue(t *testing.T) {
	sa, sb := streams(1000)
	a, b := run(t, New(sa, Config{})), run(t, New(sb, takeAll))
	p, r := &producer{recorder: newRecorder(), total: 100, size: 10}, newRecorder()
	ca, _ := pairUp(t, a, b, "x", p, r)
	p.wait(1)
	for range 40 {
		ca.Send(1, make([]byte, 1000)) //nolint:errcheck // it fits
		ca.Wake()
	}
	r.wait(1 + 40 + 100)
}

// TestStall cuts a peer off that takes frames and acknowledges nothing.
func TestStall(t *testing.T) {
	sa, sb := streams(1 << 20)
	a := New(sa, Config{Window: 64 << 10, Stall: 100 * time.Millisecond})
	p := &producer{recorder: newRecorder(), total: 1 << 20, size: 1000}
	ca, err := a.Open(ChannelConfig{Protocol: "x", Handler: p})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"0001010178" + "00"} {
		if err := sb.WriteMessage(unhex(t, f)); err != nil {
			t.Fatal(err)
		}
	}
	ca.Wake()
	if err := a.Run(); !errors.Is(err, ErrSlow) {
		t.Error(err)
	}
	if n, _ := sa.Backlog(); n > 64<<10 {
		t.Errorf("%d bytes on their way", n)
	}
}

// TestEarlyForever ends when a channel is not opened for which more came than is
// kept, and the other side is gone.
func TestEarlyForever(t *testing.T) {
	sa, sb := streams(1000)
	a := New(sa, Config{})
	b := New(sb, Config{Accept: takeAll.Accept, Stall: 50 * time.Millisecond})
	ca, err := a.Open(ChannelConfig{Protocol: "x", Handler: newRecorder()})
	if err != nil {
		t.Fatal(err)
	}
	ca.Send(0, make([]byte, 20000)) //nolint:errcheck // it fits
	ca.Send(0, make([]byte, 20000)) //nolint:errcheck // likewise
	run(t, a)
	if err := b.Run(); !errors.Is(err, ErrSlow) {
		t.Error(err)
	}
}

// TestTrim: an idle connection keeps nothing of a large frame, also if its
// producer wants to be asked again some time.
func TestTrim(t *testing.T) {
	sa, sb := streams(1000)
	a, b := run(t, New(sa, Config{})), run(t, New(sb, takeAll))
	p, r := &later{producer{recorder: newRecorder(), total: 3, size: 1 << 20}}, newRecorder()
	ca, _ := pairUp(t, a, b, "x", p, r)
	ca.Wake()
	r.wait(4)
	w := make(chan int, 1)
	p.look.Store(&w)
	ca.Wake()
	if n := <-w; n > frameTarget {
		t.Errorf("it keeps %d bytes", n)
	}
}

// later is a producer that wants to be asked again in an hour. It tells how large
// a buffer it is given.
type later struct{ producer }

func (p *later) Produce(b *Batch) time.Time {
	if w := p.look.Load(); w != nil {
		*w <- cap(b.buf)
	}
	p.producer.Produce(b)
	return time.Now().Add(time.Hour)
}

// TestFinish: what was queued before Finish arrives, also if the other side is in
// the middle of sending.
func TestFinish(t *testing.T) {
	for range 50 {
		sa, sb := streams(4)
		a, b := New(sa, Config{}), New(sb, takeAll)
		heard := make(chan string, 1)
		ra, rb := newRecorder(), newRecorder()
		pb := &producer{recorder: rb, total: 1 << 20, size: 1000}
		rb.message = func(_ uint64, m []byte) error { heard <- string(m); return nil }
		ca, cb := pairUp(t, a, b, "x", ra, pb)
		n := 0
		ra.message = func(uint64, []byte) error {
			if n++; n == 20 {
				ca.Send(9, []byte("why")) //nolint:errcheck // it fits
				a.Finish()
			}
			return nil
		}
		var wg sync.WaitGroup
		wg.Go(func() { a.Run() })
		wg.Go(func() { b.Run() })
		cb.Wake()
		if got := <-heard; got != "why" {
			t.Errorf("%q", got)
		}
		wg.Wait()
	}
}

// TestHeldClose: a channel that waits for this side and is closed by the other
// one can be opened again, and its number is free.
func TestHeldClose(t *testing.T) {
	sa, sb := streams(1000)
	a, b := run(t, New(sa, Config{})), run(t, New(sb, takeAll))
	for range 500 {
		c, err := a.Open(ChannelConfig{Protocol: "x", Handler: newRecorder()})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		// Until both have forgotten it.
		for a.count() > 0 || b.count() > 0 {
			time.Sleep(10 * time.Microsecond)
		}
	}
	ra, rb := newRecorder(), newRecorder()
	pairUp(t, a, b, "x", ra, rb)
	ra.wait(1)
	rb.wait(1)
}

// count returns how many channels there are, of either side.
func (m *Mux) count() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.locals {
		if c != nil {
			n++
		}
	}
	for _, r := range m.remotes {
		if r != nil {
			n++
		}
	}
	return n
}

// TestManyOpens: channels above the limit are rejected, however many are opened at
// once.
func TestManyOpens(t *testing.T) {
	sa, sb := streams(1000)
	a := New(sa, Config{})
	var all []*recorder
	for i := range 20 {
		r := newRecorder()
		all = append(all, r)
		if _, err := a.Open(ChannelConfig{Protocol: fmt.Sprint(i), Handler: r}); err != nil {
			t.Fatal(err)
		}
	}
	run(t, a)
	run(t, New(sb, Config{MaxChannels: 8, Accept: takeAll.Accept}))
	for _, r := range all[8:] {
		if log := r.wait(1); log[0] != "closed "+ErrRejected.Error() {
			t.Error(log)
		}
	}
}

// TestOpenedThenClosed: what a handler hears is in order: opened, what came, then
// closed; and nothing of a channel that this side closed before.
func TestOpenedThenClosed(t *testing.T) {
	m := New(&memory{newPipe(10), newPipe(10)}, takeAll)
	r := newRecorder()
	for _, f := range []string{"000101017800", "01056869"} { // open x, a message to it
		if err := m.frame(unhex(t, f)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Open(ChannelConfig{Protocol: "x", Handler: r}); err != nil {
		t.Fatal(err)
	}
	if err := m.frame(unhex(t, "000301")); err != nil {
		t.Fatal(err)
	}
	if want := []string{"opened ", "5 hi", "closed " + ErrRemoteClosed.Error()}; !slices.Equal(r.log, want) {
		t.Errorf("%q", r.log)
	}
	r = newRecorder()
	m = New(&memory{newPipe(10), newPipe(10)}, Config{})
	m.cfg.Accept = func(string, []byte) bool {
		c, err := m.Open(ChannelConfig{Protocol: "x", Handler: r})
		if err != nil {
			t.Error(err)
		}
		c.Close()
		return false
	}
	if err := m.frame(unhex(t, "000101017800")); err != nil {
		t.Fatal(err)
	}
	if len(r.log) > 0 {
		t.Errorf("%q", r.log)
	}
}

// TestLateOpen: a channel that is opened late is served although nothing can be
// written.
func TestLateOpen(t *testing.T) {
	sb := &memory{newPipe(1000), newPipe(0)} // whoever writes waits for ever
	b := run(t, New(sb, takeAll))
	other := &memory{sb.out, sb.in}
	if err := other.WriteMessage(unhex(t, "000101017800")); err != nil {
		t.Fatal(err)
	}
	for range 10 { // more than is kept
		if err := other.WriteMessage(append([]byte{1, 5}, make([]byte, 10000)...)); err != nil {
			t.Fatal(err)
		}
	}
	for full := false; !full; time.Sleep(time.Millisecond) {
		b.mu.Lock()
		full = b.early > maxEarly-10600
		b.mu.Unlock()
	}
	r := newRecorder()
	if _, err := b.Open(ChannelConfig{Protocol: "x", Handler: r}); err != nil {
		t.Fatal(err)
	}
	r.wait(11)
}

// TestBigBesideSmall: a message larger than the window is sent although small
// ones are on their way all the time.
func TestBigBesideSmall(t *testing.T) {
	b := Batch{window: 64 << 10, backlog: 300}
	if !b.Fits(110 << 10) {
		t.Error("it waits for silence")
	}
	b.backlog = 10 << 10
	if b.Fits(110 << 10) {
		t.Error("it exceeds the window")
	}
}

// TestNothingAfterFail: no message is delivered after a handler ended the
// connection.
func TestNothingAfterFail(t *testing.T) {
	m := New(&memory{newPipe(10), newPipe(10)}, takeAll)
	r := newRecorder()
	r.message = func(uint64, []byte) error { m.Fail(errors.New("enough")); return nil }
	if err := m.frame(unhex(t, "000101017800")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Open(ChannelConfig{Protocol: "x", Handler: r}); err != nil {
		t.Fatal(err)
	}
	if err := m.open(); err != nil {
		t.Fatal(err)
	}
	batch := append(unhex(t, "000001"), bytes.Repeat([]byte{2, 5, 'x'}, 100)...)
	if err := m.frame(batch); err == nil {
		t.Error("no error")
	}
	if len(r.log) != 2 {
		t.Errorf("%d calls", len(r.log))
	}
}

// TestShares: channels share by bytes, not by messages.
func TestShares(t *testing.T) {
	sa, sb := streams(8)
	a, b := run(t, New(sa, Config{})), run(t, New(sb, takeAll))
	var bytes [2]int
	done := make(chan [2]int, 1)
	var wake []*Channel
	for i, size := range []int{1 << 20, 1000} {
		p := &producer{recorder: newRecorder(), total: 1 << 30, size: size}
		r := newRecorder()
		r.message = func(_ uint64, m []byte) error {
			if bytes[i] += len(m); bytes[0]+bytes[1] > 100<<20 {
				done <- bytes
				return errors.New("enough")
			}
			return nil
		}
		ca, _ := pairUp(t, a, b, fmt.Sprint(i), p, &quiet{r})
		wake = append(wake, ca)
		p.wait(1)
	}
	for _, c := range wake {
		c.Wake()
	}
	got := <-done
	if s := float64(got[1]) / float64(got[0]+got[1]); s < 0.4 || s > 0.6 {
		t.Errorf("%d bytes in large messages, %d in small ones", got[0], got[1])
	}
}

// quiet notes nothing.
type quiet struct{ *recorder }

func (q *quiet) Message(typ uint64, m []byte) error { return q.message(typ, m) }

// TestAbandoned: a message that was begun and not ended is not sent.
func TestAbandoned(t *testing.T) {
	var b Batch
	b.from = 3
	b.End(append(b.Begin(1, 5), "hello"...), 0)
	want := slices.Clone(b.frame())
	b.Begin(2, 9)
	b.abandon()
	if !bytes.Equal(b.frame(), want) {
		t.Errorf("%x, want %x", b.frame(), want)
	}
	b.Begin(2, 9)
	b.End(append(b.Begin(1, 5), "again"...), 0)
	if n := bytes.Count(b.frame(), []byte("again")); n != 1 || b.n != 2 {
		t.Errorf("%x", b.frame())
	}
}
