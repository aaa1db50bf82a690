package feed

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"dazaar-edge/feed/block"
)

// clockwork makes a log as a board with a bad clock would: boots with and
// without a clock, the clock found late, lost and found again, set back and
// forth by up to two weeks.
type clockwork struct {
	rng    *rand.Rand
	now    block.Stamp
	truth  time.Time // the real time
	offset time.Duration
	known  bool
	blocks []block.Block
}

func (c *clockwork) add(b block.Block, err error) {
	if err != nil {
		panic(err)
	}
	c.blocks = append(c.blocks, b)
}

func (c *clockwork) tick(d time.Duration) {
	c.truth = c.truth.Add(d)
	c.now.Mono += d
}

// set makes the clock known, wrong by jump.
func (c *clockwork) set(jump time.Duration) {
	c.tick(time.Millisecond)
	c.known = true
	c.offset = time.Duration(c.truth.UnixMicro())*time.Microsecond - c.now.Mono + jump
	c.add(block.SenMLJSON.Entry(&block.Entry{Kind: block.Clock, Stamp: c.now, Offset: c.offset, OffsetErr: time.Millisecond}))
}

func (c *clockwork) boot() {
	c.tick(time.Duration(c.rng.IntN(5000)) * time.Second)
	c.now = block.Stamp{Boot: c.now.Boot + 1}
	c.known = false
	c.add(block.SenMLJSON.Entry(&block.Entry{Kind: block.Boot, Stamp: c.now}))
}

func (c *clockwork) pack() {
	c.tick(time.Duration(1+c.rng.IntN(20_000)) * time.Millisecond)
	p := &block.Pack{Stamp: c.now, Readings: []block.Reading{{Name: "t", Value: block.Number(1)}}}
	if c.known {
		p.Stamp.Wall, p.Stamp.Err = time.UnixMicro((c.now.Mono + c.offset).Microseconds()).UTC(), time.Millisecond
	}
	c.add(block.SenMLJSON.Pack(p))
}

// run makes n steps; jumps says whether the clock may be wrong.
func (c *clockwork) run(n int, jumps bool) {
	c.boot()
	for range n {
		switch c.rng.IntN(60) {
		case 0:
			c.boot()
		case 1, 2:
			jump := time.Duration(0)
			if jumps {
				jump = time.Duration(c.rng.IntN(28*86400)-14*86400) * time.Second
			}
			c.set(jump)
		case 3:
			c.add(block.SenMLJSON.Entry(&block.Entry{Kind: block.GapEntry, Stamp: c.now, Cause: "sensor"}))
		default:
			c.pack()
		}
	}
}

// naiveTimes resolves every block by looking at all clock entries of its boot.
func naiveTimes(blocks []block.Block) []time.Time {
	fixes := map[uint32][]block.Fix{}
	for _, b := range blocks {
		if _, n, _ := block.SenMLJSON.Parse(b.Data); n != nil {
			if f, ok := n.Fix(); ok {
				fixes[n.Stamp.Boot] = append(fixes[n.Stamp.Boot], f)
			}
		}
	}
	out := make([]time.Time, len(blocks))
	for i, b := range blocks {
		out[i], _ = block.Resolve(b.Stamp, fixes[b.Stamp.Boot])
	}
	return out
}

// TestSeek compares the time index with a search through everything.
func TestSeek(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 5))
		c := &clockwork{rng: rng, truth: time.Unix(1_790_000_000, 0)}
		jumps := seed%2 == 1
		c.run(200+rng.IntN(2500), jumps)
		e := newEnv(t, seed, 100*smallSegment)
		e.cfg.Encoding = block.SenMLJSON
		e.open()
		for rest := c.blocks; len(rest) > 0; {
			n := min(1+rng.IntN(60), len(rest))
			if _, err := e.log.Append(context.Background(), rest[:n]...); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
			if rng.IntN(10) == 0 {
				e.log.Abort()
				e.disk.Kill()
				e.open()
			}
		}
		times := naiveTimes(c.blocks)
		naive := func(at time.Time) uint64 {
			for i, r := range times {
				if !r.IsZero() && !r.Before(at) {
					return uint64(i)
				}
			}
			return uint64(len(times))
		}
		for range 60 {
			at := time.Unix(1_790_000_000, 0).Add(time.Duration(rng.Int64N(int64(c.truth.Sub(time.Unix(1_789_990_000, 0))))))
			if rng.IntN(3) == 0 { // exactly at a block
				if r := times[rng.IntN(len(times))]; !r.IsZero() {
					at = r
				}
			}
			got, err := e.log.Seek(at)
			if err != nil {
				t.Fatal(err)
			}
			if want := naive(at); got != want {
				t.Fatalf("seed %d (jumps %v): seek %v = %d, want %d of %d", seed, jumps, at, got, want, len(times))
			}
		}
		for range 50 {
			i := rng.IntN(len(times))
			got, _, err := e.log.Resolve(uint64(i))
			if err != nil || !got.Equal(times[i]) {
				t.Fatalf("seed %d: block %d resolves to %v, want %v (%v)", seed, i, got, times[i], err)
			}
		}
		e.log.Close()
	}
}
