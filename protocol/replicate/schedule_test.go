package replicate

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"dazaar-edge/protocol/mux"
)

var (
	schedules = flag.Int("schedules", 30, "how many random schedules to run")
	firstSeed = flag.Uint64("seed", 1, "seed of the first random schedule")
)

// paidFor is a Meter that passes what is paid for, and nothing to who was
// revoked.
type paidFor struct {
	mu      sync.Mutex
	credit  int
	revoked bool
	bad     []string
}

func (p *paidFor) Admit(i uint64, _ int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.revoked {
		p.bad = append(p.bad, fmt.Sprintf("block %d after it was revoked", i))
	}
	if p.credit == 0 {
		return false
	}
	p.credit--
	return true
}

func (p *paidFor) pay(n int) {
	p.mu.Lock()
	p.credit += n
	p.mu.Unlock()
}

// delayed is a stream that holds frames back at random and cuts the connection
// when its time has come.
type delayed struct {
	mux.Stream
	mu   sync.Mutex
	rng  *rand.Rand
	left int // frames until it is cut; never if negative
}

func (d *delayed) WriteMessage(m []byte) error {
	d.mu.Lock()
	d.left--
	cut, wait := d.left == 0, d.rng.IntN(8) == 0
	us := d.rng.IntN(400)
	d.mu.Unlock()
	if cut {
		d.Stream.Close()
		return errors.New("cut")
	}
	if wait {
		time.Sleep(time.Duration(us) * time.Microsecond) // a slow network, not a wait for something
	}
	return d.Stream.WriteMessage(m)
}

// TestSchedules sells to one buyer while everything happens at random: appends,
// drops, pauses, payments, single gets, revocations, broken connections, buyers
// that start again from what they kept, and sellers that lost their tail. At the
// end the buyer must have the log, in order, nothing unpaid, nothing twice but
// after a fork or a crash of its own.
func TestSchedules(t *testing.T) {
	for k := range *schedules {
		seed := *firstSeed + uint64(k)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { schedule(t, seed) })
	}
}

// party is the state of one schedule.
type party struct {
	t     *testing.T
	rng   *rand.Rand
	m     *memory
	in    *inbox
	store *shelf
	kept  *Kept
	b     *Buyer
	l     *link
	meter *paidFor
	lost  int
}

func (p *party) buyer() {
	p.b = newBuyer(p.t, p.m, p.in, func(c *BuyerConfig) {
		c.Store, c.Kept = p.store, p.kept
		if p.rng.IntN(3) == 0 {
			c.InFlight = 1 + p.rng.IntN(4000)
		}
	})
}

func (p *party) connect(calm bool) {
	seed := p.rng.Uint64()
	left := -1
	if !calm && p.rng.IntN(3) == 0 {
		left = 1 + p.rng.IntN(60)
	}
	p.meter.mu.Lock()
	p.meter.revoked = false
	p.meter.mu.Unlock()
	rate := 0.
	if p.rng.IntN(4) == 0 && !calm {
		rate = 1 << 20
	}
	p.l = connectBy(p.t, sale{feed: p.m, buyer: p.b, rate: rate, config: func(c *SellerConfig) { c.Meter = p.meter }}, func(s mux.Stream, sells bool) mux.Stream {
		return &delayed{Stream: s, rng: rand.New(rand.NewPCG(seed, 1)), left: left}
	})
}

// append appends blocks of odd sizes.
func (p *party) append() {
	n := 1 + p.rng.IntN(40)
	var blocks [][]byte
	for range n {
		size := p.rng.IntN(200)
		switch p.rng.IntN(30) {
		case 0:
			size = 0
		case 1:
			size = 30000
		}
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(p.rng.Uint32())
		}
		blocks = append(blocks, b)
	}
	p.m.append(blocks...)
}

func schedule(t *testing.T, seed uint64) {
	p := &party{t: t, rng: rand.New(rand.NewPCG(seed, 77)), m: newMemory(1), in: newInbox(), store: newShelf()}
	p.meter = &paidFor{}
	p.append()
	p.buyer()
	p.connect(false)
	var gets sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 60 {
		switch p.rng.IntN(13) {
		case 0, 1, 2:
			p.append()
		case 3:
			p.meter.pay(p.rng.IntN(100))
			p.l.with((*Seller).Resume)
		case 4:
			p.l.with((*Seller).Pause)
		case 5:
			p.l.with((*Seller).Resume)
		case 6:
			_, n := p.m.Bounds()
			i := p.rng.Uint64N(n)
			short, stop := context.WithTimeout(ctx, time.Duration(p.rng.IntN(3000))*time.Microsecond)
			gets.Go(func() {
				defer stop()
				b, err := p.b.Get(short, i)
				p.m.mu.Lock()
				defer p.m.mu.Unlock()
				if err == nil && p.lost == 0 && !bytes.Equal(b, p.m.blocks[i]) {
					t.Errorf("get(%d) is %x", i, b)
				}
			})
		case 7:
			first, n := p.m.Bounds()
			p.m.prune(min(n-1, first+p.rng.Uint64N(20)))
		case 8:
			// No block after a revocation. (Where the buyer has not come yet, nobody is revoked.)
			p.l.with(func(s *Seller) {
				s.Revoke()
				p.meter.mu.Lock()
				p.meter.revoked = true
				p.meter.mu.Unlock()
			})
			p.l.close()
			p.connect(false)
		case 9:
			p.l.close()
			p.connect(false)
		case 10:
			// The buyer starts again from what it kept last.
			gets.Wait()
			p.l.close()
			if err := p.b.Checkpoint(func(k Kept) error { p.kept = &k; return nil }); err != nil {
				t.Fatal(err)
			}
			p.buyer()
			p.connect(false)
		case 11:
			if p.rng.IntN(3) > 0 {
				continue
			}
			// The seller loses its tail, and blocks that were to be sold again.
			gets.Wait()
			p.l.close()
			first, n := p.m.Bounds()
			p.lost++
			p.m.truncate(first + 1 + p.rng.Uint64N(n-first))
			p.append()
			p.connect(false)
		case 12:
			// The output takes nothing for a while.
			p.output(errors.New("no space left"))
			time.Sleep(time.Millisecond)
			p.l.close()
			p.output(nil)
			p.connect(false)
		}
		time.Sleep(time.Duration(p.rng.IntN(300)) * time.Microsecond) // lets the sides act between steps
	}
	// Now all is paid for, and nothing is in the way.
	gets.Wait()
	p.l.close()
	p.meter.pay(1 << 20)
	p.append()
	p.connect(true)
	timer := time.AfterFunc(20*time.Second, func() {
		h, cursor := p.b.Head()
		first, n := p.m.Bounds()
		t.Errorf("it is stuck: the log has [%d, %d) on fork %d; the buyer is at %d of %d on fork %d; the seller's %+v", first, n, p.m.Fork(), cursor, h.Length, h.Fork, p.l.seller.Stats())
		p.in.mu.Lock()
		p.in.stuck = true
		p.in.cond.Broadcast()
		p.in.mu.Unlock()
	})
	defer timer.Stop()
	p.in.wait(func() bool {
		// The seller may not know yet that the buyer has other blocks, as many, of before its loss.
		n := uint64(len(p.m.blocks))
		last, ok := p.in.blocks[n-1]
		return p.in.stuck || ok && bytes.Equal(last, p.m.blocks[n-1]) && p.in.head.Length == n && p.in.head.Fork == p.m.Fork()
	})
	p.l.close()
	p.check()
}

func (p *party) output(err error) {
	p.in.mu.Lock()
	p.in.err = err
	p.in.mu.Unlock()
}

// check looks at what the buyer has got.
func (p *party) check() {
	t := p.t
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	if p.in.stuck {
		return
	}
	first, _ := p.m.Bounds()
	for i := first; i < uint64(len(p.m.blocks)); i++ {
		got, ok := p.in.blocks[i]
		if ok && !bytes.Equal(got, p.m.blocks[i]) {
			t.Errorf("block %d is wrong", i)
		} else if !ok && !p.in.missed(i) {
			t.Fatalf("block %d is not there, and no gap tells of it: %v", i, p.in.gaps)
		}
	}
	if p.lost == 0 {
		if !slices.IsSorted(p.in.order) {
			t.Error("out of order")
		}
		if n := len(slices.Compact(slices.Clone(p.in.order))); n != len(p.in.order) {
			t.Errorf("%d blocks came twice", len(p.in.order)-n)
		}
		if len(p.in.forks) > 0 {
			t.Error("forks without need:", p.in.forks)
		}
	}
	for _, s := range p.meter.bad {
		t.Error(s)
	}
}
