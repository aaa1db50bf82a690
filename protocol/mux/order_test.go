package mux

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"
)

// teller is a producer that numbers what it says, whether it sends or produces.
type teller struct {
	*recorder
	mu    sync.Mutex
	ch    *Channel
	rng   *rand.Rand
	next  int
	limit int
	todo  int // messages to produce
}

func (s *teller) line() []byte {
	size := s.rng.IntN(200)
	if s.rng.IntN(20) == 0 {
		size = s.rng.IntN(20_000)
	}
	b := fmt.Appendf(nil, "%d ", s.next)
	s.next++
	return append(b, make([]byte, size)...)
}

// say sends some, and leaves some to be produced.
func (s *teller) say() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range s.rng.IntN(4) {
		if s.ch.Send(1, s.line()) != nil {
			return false
		}
	}
	s.todo += s.rng.IntN(4)
	s.ch.Wake()
	return s.next < s.limit
}

func (s *teller) Produce(b *Batch) (none time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; s.todo > 0 && !b.Full(); s.todo-- {
		if s.rng.IntN(8) == 0 {
			s.ch.Send(1, s.line()) //nolint:errcheck // the test would wait for it
		}
		if s.rng.IntN(8) == 0 {
			b.Begin(1, 10) // and thinks better of it
		}
		m := s.line()
		b.End(append(b.Begin(1, len(m)), m...), len(m))
	}
	return none
}

// TestOrder: what a side sends and what it produces arrives in the order in which
// it did so, whatever the writing goroutine does meanwhile, and in frames that
// everybody reads.
func TestOrder(t *testing.T) {
	for seed := range uint64(20) {
		sa, sb := streams(8)
		tap := &sized{memory: sa}
		a, b := New(tap, Config{MaxQueue: 8 << 20}), run(t, New(sb, takeAll))
		r := newRecorder()
		var got []int
		r.message = func(_ uint64, p []byte) error {
			var n int
			fmt.Sscanf(string(p[:min(len(p), 10)]), "%d", &n) //nolint:errcheck // then it is 0
			r.mu.Lock()
			got = append(got, n)
			r.cond.Broadcast()
			r.mu.Unlock()
			return nil
		}
		s := &teller{recorder: newRecorder(), rng: rand.New(rand.NewPCG(seed, 4)), limit: 2000}
		s.ch, _ = pairUp(t, a, b, "x", s, r)
		run(t, a)
		for s.say() {
		}
		for more := true; more; { // what was left
			s.mu.Lock()
			more = s.todo > 0
			s.mu.Unlock()
			s.ch.Wake()
		}
		s.mu.Lock()
		n := s.next
		s.mu.Unlock()
		r.mu.Lock()
		for len(got) < n {
			r.cond.Wait()
		}
		r.mu.Unlock()
		if !slices.IsSorted(got) || len(got) != n {
			for i := range got {
				if got[i] != i {
					t.Fatalf("seed %d: %d came as message %d", seed, got[i], i)
				}
			}
		}
		if most := tap.most.Load(); most > 64<<10 {
			t.Errorf("seed %d: a frame of %d bytes", seed, most)
		}
	}
}

// once is a producer whose f is called the first time that it is asked.
type once struct {
	*recorder
	f    func(b *Batch)
	done bool
}

func (p *once) Produce(b *Batch) (none time.Time) {
	if !p.done {
		p.done = true
		p.f(b)
	}
	return none
}

// TestLastWords: what a channel still produces while it is closed arrives on no
// channel that got its number.
func TestLastWords(t *testing.T) {
	sa, sb := streams(1000)
	a, b := New(sa, Config{}), run(t, New(sb, takeAll))
	asked, closed, said := make(chan bool), make(chan bool), make(chan bool)
	p := &once{recorder: newRecorder(), f: func(b *Batch) {
		asked <- true
		<-closed
		b.End(append(b.Begin(7, 3), "old"...), 3)
		close(said)
	}}
	x, y := newRecorder(), newRecorder()
	cx, _ := pairUp(t, a, b, "x", p, x)
	run(t, a)
	cx.Wake()
	<-asked
	cx.Close()
	cy, _ := pairUp(t, a, b, "y", newRecorder(), y)
	if cy.local != cx.local {
		t.Fatal("the number is not used again")
	}
	closed <- true
	<-said
	if err := cy.Send(1, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if got, want := y.wait(2), []string{"opened ", "1 new"}; !slices.Equal(got, want) {
		t.Errorf("heard %q, want %q", got, want)
	}
	if got := x.wait(2); got[1] != "7 old" {
		t.Errorf("heard %q before the close", got)
	}
}

// TestFullByOthers: a producer that found the frame full of what others sent is
// asked again.
func TestFullByOthers(t *testing.T) {
	sa, sb := streams(1000)
	a, b := New(sa, Config{}), run(t, New(sb, takeAll))
	r := newRecorder()
	todo := 3
	var ch *Channel
	p := &again{recorder: newRecorder()}
	p.f = func(b *Batch) {
		if todo == 3 {
			ch.Send(1, make([]byte, 20_000)) //nolint:errcheck // the test would wait for it
			b.Begin(7, 3)                    // and thinks better of it
		}
		for ; todo > 0 && !b.Full(); todo-- {
			b.End(append(b.Begin(7, 3), "new"...), 3)
		}
	}
	ch, _ = pairUp(t, a, b, "x", p, r)
	run(t, a)
	ch.Wake()
	r.wait(1 + 1 + 3)
}

// again is a producer that calls f each time.
type again struct {
	*recorder
	f func(b *Batch)
}

func (p *again) Produce(b *Batch) (none time.Time) {
	p.f(b)
	return none
}

// TestFramesAreRead: no frame of messages that everybody reads is larger than what
// everybody reads.
func TestFramesAreRead(t *testing.T) {
	for name, f := range map[string]func(ch *Channel, b *Batch){
		"sent and produced": func(ch *Channel, b *Batch) {
			ch.Send(1, make([]byte, maxSend)) //nolint:errcheck // the test would wait for it
			b.End(append(b.Begin(7, 40<<10), make([]byte, 40<<10)...), 0)
		},
		"sent twice": func(ch *Channel, b *Batch) {
			ch.Send(1, make([]byte, frameTarget-8)) //nolint:errcheck // likewise
			ch.Send(1, make([]byte, maxSend))       //nolint:errcheck // likewise
		},
	} {
		t.Run(name, func(t *testing.T) {
			sa, sb := streams(1000)
			tap := &sized{memory: sa}
			a, b := New(tap, Config{}), run(t, New(sb, takeAll))
			r := newRecorder()
			p := &once{recorder: newRecorder()}
			ch, _ := pairUp(t, a, b, "x", p, r)
			p.f = func(b *Batch) { f(ch, b) }
			run(t, a)
			ch.Wake()
			r.wait(3)
			if n := tap.most.Load(); n > 64<<10 {
				t.Errorf("a frame of %d bytes", n)
			}
		})
	}
}
