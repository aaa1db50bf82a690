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
		if most := tap.most.Load(); most > maxMerged+maxSend {
			t.Errorf("seed %d: a frame of %d bytes", seed, most)
		}
	}
}
