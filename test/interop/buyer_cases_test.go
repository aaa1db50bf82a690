//go:build interop

package interop

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"dazaar-edge/protocol/replicate"
)

// paced is a sink that takes its time, or takes nothing from a block on.
type paced struct {
	*inbox
	each time.Duration
	stop uint64 // 0 for never
}

var errStop = errors.New("stop")

func (s *paced) Block(i uint64, b []byte) error {
	if s.stop > 0 && i >= s.stop {
		return errStop
	}
	time.Sleep(s.each)
	return s.inbox.Block(i, b)
}

// TestStockSellerSparseLog: a stock seller that cleared every second block, and
// one that cleared all of them. What is there is had, the rest is told of.
func TestStockSellerSparseLog(t *testing.T) {
	_, port, k := stockSeller(t, `await more(0, a.sizes); for (let i = 0; i < 2000; i += 2) await s.c.clear(i)`, map[string]any{"sizes": sizes(2000, 64)})
	in := newInbox()
	dial(t, port, newBuyer(t, k, in, nil))
	in.wait(t, "every second block", func() bool { return in.blocks[1999] != nil })
	if len(in.blocks) != 1000 || len(in.gaps) != 1000 || fmt.Sprint(in.gaps[:2]) != "[0-1 2-3]" {
		t.Errorf("%d blocks, %d gaps, first %v", len(in.blocks), len(in.gaps), in.gaps[:2])
	}
	p, port, k := stockSeller(t, `await more(0, a.sizes); await s.c.clear(0, 100)`, map[string]any{"sizes": sizes(100, 64)})
	in = newInbox()
	dial(t, port, newBuyer(t, k, in, nil))
	in.wait(t, "all cleared", func() bool { return len(in.gaps) > 0 })
	if fmt.Sprint(in.gaps) != "[0-100]" {
		t.Error(in.gaps)
	}
	p.do(`await s.more(100, [64])`, nil, nil)
	in.wait(t, "one more", func() bool { return in.blocks[100] != nil })
}

// TestStockSellerTruncatesBehind: a stock writer truncates its last blocks while
// the buyer is far behind: nothing of what is left is lost.
func TestStockSellerTruncatesBehind(t *testing.T) {
	p, port, k := stockSeller(t, `await more(0, a.sizes)`, map[string]any{"sizes": sizes(5000, 64)})
	in := newInbox()
	b, err := replicate.NewBuyer(replicate.BuyerConfig{Key: k, Sink: &paced{inbox: in, each: 300 * time.Microsecond}})
	if err != nil {
		t.Fatal(err)
	}
	dial(t, port, b)
	in.wait(t, "a third", func() bool { return len(in.blocks) >= 1500 })
	p.do(`await s.c.truncate(4990); await s.more(4990, a.sizes)`, map[string]any{"sizes": sizes(20, 64)}, nil)
	in.wait(t, "the rest", func() bool { return in.blocks[5009] != nil })
	in.check(t, 0, 5010, func(int) int { return 64 })
	if len(in.gaps) > 0 {
		t.Error(in.gaps)
	}
}

// TestStockSellerLowerFork: a stock seller that was restored from an old copy is on
// a lower fork, until it follows what we have; nothing is lost with it, nor with
// the right one after it.
func TestStockSellerLowerFork(t *testing.T) {
	p, port, k := stockSeller(t, `await more(0, a.sizes); await s.c.truncate(90); await more(90, [64,64,64,64,64,64,64,64,64,64])`, map[string]any{"sizes": sizes(100, 64)})
	in := newInbox()
	sink := &paced{inbox: in, stop: 50}
	b, err := replicate.NewBuyer(replicate.BuyerConfig{Key: k, Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	v := dial(t, port, b)
	if err := <-v.done; !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	v.done <- nil
	sink.stop = 0
	var old struct{ Port int }
	p.do(`
		const c = new s.Hypercore(s.tmp(), null, { keyPair: s.c.keyPair, manifest: s.c.manifest })
		await c.ready()
		for (let i = 0; i < 100; i++) await c.append(s.block(i, 64))
		const { port } = await s.listen((stream) => s.replicate(c, stream))
		if (s.hex(c.key) !== s.hex(s.c.key)) throw new Error('other key')
		return { port }`, nil, &old)
	v = dial(t, old.Port, b)
	time.Sleep(1500 * time.Millisecond) // longer than a refusal holds a buyer back
	in.mu.Lock()
	if len(in.gaps) > 0 {
		t.Errorf("with the old copy: gaps %v", in.gaps)
	}
	in.mu.Unlock()
	v.close()
	dial(t, port, b)
	in.wait(t, "the right one", func() bool { return in.blocks[99] != nil })
	in.check(t, 0, 100, func(int) int { return 64 })
	if len(in.gaps) > 0 || in.twice > 0 {
		t.Errorf("gaps %v, %d twice", in.gaps, in.twice)
	}
}

// TestStockSellerFromFork: one who wants a feed from a block on gets no more when
// the feed is on a higher fork.
func TestStockSellerFromFork(t *testing.T) {
	_, port, k := stockSeller(t, `await more(0, a.sizes); await s.c.truncate(90); await more(90, [64,64])`, map[string]any{"sizes": sizes(100, 64)})
	in := newInbox()
	dial(t, port, newBuyer(t, k, in, func(c *replicate.BuyerConfig) { c.From = 80 }))
	in.wait(t, "the end", func() bool { return in.blocks[91] != nil })
	if len(in.blocks) != 12 {
		t.Errorf("%d blocks", len(in.blocks))
	}
}
