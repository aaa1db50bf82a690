package feed

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/faultfs"
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

// countReads counts reads of files.
type countReads struct {
	durable.FS
	n *int
}

type countedFile struct {
	durable.File
	n *int
}

func (c countReads) Open(name string) (durable.File, error) {
	f, err := c.FS.Open(name)
	return countedFile{f, c.n}, err
}

func (c countReads) OpenRead(name string) (durable.File, error) {
	f, err := c.FS.OpenRead(name)
	return countedFile{f, c.n}, err
}

func (f countedFile) ReadAt(b []byte, off int64) (int, error) {
	*f.n++
	return f.File.ReadAt(b, off)
}

// TestSeekReads pins that a search reads O(log n) pages: with boots, with late
// clocks, and with many clock entries.
func TestSeekReads(t *testing.T) {
	for _, n := range []int{2_000, 50_000} {
		for name, steps := range map[string]func(c *clockwork, i int){
			"boots": func(c *clockwork, i int) {
				if i%997 == 0 {
					c.boot()
				}
				if i%997 == 300 {
					c.set(0)
				}
			},
			"never a clock": func(c *clockwork, i int) {
				if i%500 == 0 {
					c.boot()
				}
			},
			"set often": func(c *clockwork, i int) {
				if i == 0 {
					c.boot()
				}
				if i%100 == 50 {
					c.set(0)
				}
			},
		} {
			t.Run(fmt.Sprint(name, " ", n), func(t *testing.T) {
				c := &clockwork{rng: rand.New(rand.NewPCG(1, 1)), truth: time.Unix(1_790_000_000, 0)}
				for i := range n {
					steps(c, i)
					c.pack()
				}
				reads := 0
				e := newEnv(t, 1, 1<<30)
				e.disk = faultfs.New(1)
				e.cfg.FS = countReads{e.disk, &reads}
				e.cfg.Encoding, e.cfg.SegmentSize = block.SenMLJSON, 64*4096
				e.open()
				defer e.log.Abort()
				for rest := c.blocks; len(rest) > 0; rest = rest[min(500, len(rest)):] {
					if _, err := e.log.Append(context.Background(), rest[:min(500, len(rest))]...); err != nil {
						t.Fatal(err)
					}
				}
				worst := 0
				for i := range 100 {
					reads = 0
					if _, err := e.log.Seek(time.Unix(1_790_000_000, 0).Add(c.truth.Sub(time.Unix(1_790_000_000, 0)) * time.Duration(i) / 100)); err != nil {
						t.Fatal(err)
					}
					worst = max(worst, reads)
				}
				limit := int(12 * math.Log2(float64(len(c.blocks))))
				t.Logf("%d blocks: at most %d reads", len(c.blocks), worst)
				if worst > limit {
					t.Errorf("%d reads for %d blocks, at most %d", worst, len(c.blocks), limit)
				}
			})
		}
	}
}

// TestFarTimes asks for times that no block can have.
func TestFarTimes(t *testing.T) {
	c := &clockwork{rng: rand.New(rand.NewPCG(1, 1)), truth: time.Unix(1_790_000_000, 0)}
	c.boot()
	for range 20 {
		c.pack()
	}
	c.set(0)
	for range 20 {
		c.pack()
	}
	e := newEnv(t, 1, 100*smallSegment)
	e.cfg.Encoding = block.SenMLJSON
	e.open()
	defer e.log.Abort()
	if _, err := e.log.Append(context.Background(), c.blocks...); err != nil {
		t.Fatal(err)
	}
	for year, want := range map[int]uint64{-500: 0, 1970: 0, 2105: 42, 2300: 42, 9999: 42} {
		if got, err := e.log.Seek(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)); err != nil || got != want {
			t.Errorf("year %d: %d, want %d (%v)", year, got, want, err)
		}
	}
}

// TestRetain drops what is older than the limit, and nothing whose age nobody
// knows.
func TestRetain(t *testing.T) {
	c := &clockwork{rng: rand.New(rand.NewPCG(1, 1)), truth: time.Unix(1_790_000_000, 0)}
	c.boot()
	c.set(0)
	for range 3000 {
		c.pack()
	}
	e := newEnv(t, 1, 100*smallSegment)
	e.cfg.Encoding, e.cfg.MaxAge = block.SenMLJSON, time.Hour
	e.open()
	defer e.log.Abort()
	for rest := c.blocks; len(rest) > 0; rest = rest[min(100, len(rest)):] {
		if _, err := e.log.Append(context.Background(), rest[:min(100, len(rest))]...); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.log.Retain(); err != nil || e.log.Head().First != 0 {
		t.Fatalf("dropped without knowing the time: %v", err)
	}
	e.now.Wall = c.truth
	if err := e.log.Retain(); err != nil {
		t.Fatal(err)
	}
	first := e.log.Head().First
	oldest, err := e.log.Seek(c.truth.Add(-time.Hour))
	if err != nil || first == 0 || first > oldest || oldest-first > 700 {
		t.Errorf("kept from %d, the limit lies at %d (%v)", first, oldest, err)
	}
}
