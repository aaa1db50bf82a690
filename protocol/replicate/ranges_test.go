package replicate

import (
	"math/rand/v2"
	"testing"
)

// TestRanges compares with a set of blocks.
func TestRanges(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		var r ranges
		set := [64]bool{}
		for range 30 {
			from := uint64(rng.IntN(64))
			to := from + uint64(rng.IntN(int(64-from)+1))
			if rng.IntN(3) == 0 {
				var spans []span
				for i := from; i < to; i++ {
					if set[i] = rng.IntN(2) == 0; set[i] {
						spans = append(spans, span{i, i + 1})
					}
				}
				r.replace(from, to, spans)
			} else {
				have := rng.IntN(2) == 0
				for i := from; i < to; i++ {
					set[i] = have
				}
				r.set(from, to, have)
			}
			for i := range uint64(64) {
				if r.has(i) != set[i] {
					t.Fatalf("block %d is %v in %v", i, r.has(i), r)
				}
			}
			for i, s := range r {
				if s.from >= s.to || i > 0 && r[i-1].to >= s.from {
					t.Fatalf("%v", r)
				}
			}
		}
		if from := r.forgetHigh(3); len(r) > 3 || from != ^uint64(0) && len(r) != 3 {
			t.Fatal(from, r)
		}
		if r.forgetShort(1); len(r) > 1 {
			t.Fatal(r)
		}
	}
}
