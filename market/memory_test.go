package market

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/market/client"
	"dazaar-edge/storage/durable"
)

// crowd is many buyers that follow the feed of a shop in another process.
type crowd struct {
	t      *testing.T
	cancel context.CancelFunc
	wg     sync.WaitGroup
	blocks atomic.Int64
	heads  atomic.Int64
}

// newCrowd begins n buyers at block first. Each delivers only as fast as pace lets
// it, if it is not nil.
func newCrowd(t *testing.T, address string, n int, first uint64, pace func()) *crowd {
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{t: t, cancel: cancel}
	t.Cleanup(c.leave)
	for i := range n {
		a, err := archive.Open(durable.OS(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		x, err := client.New(client.Config{
			Seller: [32]byte(key(1)[32:]), Ways: client.TCP(&net.Dialer{LocalAddr: &net.TCPAddr{IP: anywhere(i)}}, address), Archive: a, Purse: testPurse(t), Output: &member{c: c, pace: pace}, From: first, Follow: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		c.wg.Go(func() {
			defer a.Close()
			if err := x.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(25 * time.Millisecond) // as the common bucket lets them in
	}
	return c
}

func (c *crowd) leave() {
	c.cancel()
	c.wg.Wait()
}

// member is the Output of one of a crowd.
type member struct {
	tally
	c    *crowd
	pace func()
}

func (m *member) Block(uint64, []byte) error {
	m.c.blocks.Add(1)
	if m.pace != nil {
		m.pace()
	}
	return nil
}

func (m *member) Head(merkle.Head) error { m.c.heads.Add(1); return nil }

// TestMemory measures what a buyer costs the seller in memory: one that waits for
// news, and one that downloads.
func TestMemory(t *testing.T) {
	o := startShop(t, "1")
	const idle, busy = 200, 40
	address := o.report("").Address
	one := newCrowd(t, address, 20, 199_000, nil) // what is made once is made
	for one.blocks.Load() < 20*1000 {
		time.Sleep(10 * time.Millisecond)
	}
	one.leave()
	before := o.report("memory")
	for range 5 {
		before.RSS = min(before.RSS, o.report("memory").RSS)
	}
	c := newCrowd(t, address, idle, 199_000, nil)
	for c.blocks.Load() < idle*1000 {
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(11 * time.Second) // until they are known to be idle
	// Each collection halves the stacks that are not used: a few later they are
	// what they are for good.
	after := o.report("memory")
	each := func() int { return (after.RSS - before.RSS) / idle }
	for i := 0; i < 30 && (i < 5 || after.Stats.Buyers != idle || each() > 40); i++ {
		if i >= 5 {
			time.Sleep(time.Second) // some of them came late, as this machine was busy
		}
		r := o.report("memory")
		r.RSS = min(r.RSS, after.RSS)
		after = r
	}
	if n := after.Stats.Buyers; n != idle {
		t.Fatalf("%d buyers", n)
	}
	t.Logf("a buyer that waits takes %d KiB", each())
	if each() > 40 {
		t.Errorf("a buyer that waits takes %d KiB", each())
	}
	c.leave()

	before = o.report("memory")
	c = newCrowd(t, address, busy, 0, func() { time.Sleep(20 * time.Microsecond) })
	for c.blocks.Load() < busy*1000 {
		time.Sleep(10 * time.Millisecond)
	}
	// Between the collection and the look more or less garbage is made, as the machine
	// has time: the middle one of several is what is needed.
	var sizes []int
	for range 15 {
		sizes = append(sizes, o.report("memory").RSS)
	}
	slices.Sort(sizes)
	if n := c.blocks.Load(); n >= busy*200_000 {
		t.Fatal("they are done")
	}
	down := (sizes[len(sizes)/2] - before.RSS) / busy
	t.Logf("a buyer that downloads takes %d KiB", down)
	if down > 160 {
		t.Errorf("a buyer that downloads takes %d KiB", down)
	}
}
