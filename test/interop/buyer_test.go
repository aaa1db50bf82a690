//go:build interop

package interop

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/storage/durable"
)

// inbox is a Sink that keeps everything.
type inbox struct {
	mu     sync.Mutex
	cond   *sync.Cond
	blocks map[uint64][]byte
	twice  int
	gaps   []string
	forks  []string
	head   merkle.Head
}

func newInbox() *inbox {
	in := &inbox{blocks: map[uint64][]byte{}}
	in.cond = sync.NewCond(&in.mu)
	return in
}

func (in *inbox) Block(i uint64, b []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if _, ok := in.blocks[i]; ok {
		in.twice++
	}
	in.blocks[i] = bytes.Clone(b)
	in.cond.Broadcast()
	return nil
}

func (in *inbox) Gap(from, to uint64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.gaps = append(in.gaps, fmt.Sprintf("%d-%d", from, to))
	in.cond.Broadcast()
	return nil
}

func (in *inbox) Fork(fork, from uint64) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.forks = append(in.forks, fmt.Sprintf("%d@%d", fork, from))
	in.cond.Broadcast()
	return nil
}

func (in *inbox) Head(h merkle.Head) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.head = h
	in.cond.Broadcast()
	return nil
}

// wait waits until f is true.
func (in *inbox) wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	late := time.AfterFunc(patience, func() { in.cond.Broadcast() })
	defer late.Stop()
	end := time.Now().Add(patience)
	in.mu.Lock()
	defer in.mu.Unlock()
	for !f() {
		if time.Now().After(end) {
			t.Fatalf("%s: have %d blocks, head %+v, gaps %v, forks %v", what, len(in.blocks), in.head, in.gaps, in.forks)
		}
		in.cond.Wait()
	}
}

// check compares blocks [from, to) with what genBlock makes.
func (in *inbox) check(t *testing.T, from, to int, size func(i int) int) {
	t.Helper()
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := from; i < to; i++ {
		if b, ok := in.blocks[uint64(i)]; !ok || !bytes.Equal(b, genBlock(i, size(i))) {
			t.Fatalf("block %d: %d bytes, %v", i, len(b), ok)
		}
	}
}

// visit connects a buyer to a stock seller.
type visit struct {
	m    *mux.Mux
	done chan error
}

func dial(t *testing.T, port int, b *replicate.Buyer) *visit {
	t.Helper()
	c, err := secretstream.Dial(context.Background(), fmt.Sprintf("127.0.0.1:%d", port), secretstream.Config{Static: key(9), MaxMessage: replicate.MaxMessage})
	if err != nil {
		t.Fatal(err)
	}
	var s replicate.Session
	v := &visit{done: make(chan error, 1)}
	v.m = mux.New(c, mux.Config{Accept: func(string, []byte) bool {
		b.Attach(s) //nolint:errcheck // the connection ends
		return false
	}})
	s = replicate.Session{Mux: v.m, HandshakeHash: c.HandshakeHash(), Initiator: true}
	go func() { v.done <- v.m.Run() }()
	if err := b.Attach(s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.m.Close)
	return v
}

func (v *visit) close() error {
	v.m.Close()
	return <-v.done
}

// stockSeller starts a stock hypercore with a port and returns its key.
func stockSeller(t *testing.T, code string, args map[string]any) (p *peer, port int, k merkle.Hash) {
	t.Helper()
	p = startPeer(t)
	var out struct {
		Port int
		Key  string
	}
	p.do(`
		s.c = await s.core(a.dir || s.tmp())
		const more = async (from, sizes) => { await s.c.append(sizes.map((n, j) => s.block(from + j, n))) }
		s.more = more
		`+code+`
		const { port } = await s.listen((stream) => s.replicate(s.c, stream))
		return { port, key: s.hex(s.c.key) }
	`, args, &out)
	b, err := hex.DecodeString(out.Key)
	if err != nil {
		t.Fatal(err)
	}
	return p, out.Port, merkle.Hash(b)
}

func newBuyer(t *testing.T, k merkle.Hash, in *inbox, f func(*replicate.BuyerConfig)) *replicate.Buyer {
	t.Helper()
	cfg := replicate.BuyerConfig{Key: k, Sink: in}
	if f != nil {
		f(&cfg)
	}
	b, err := replicate.NewBuyer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestStockSeller: everything from a stock hypercore, then live, then single
// blocks.
func TestStockSeller(t *testing.T) {
	all := append([]int{0, 1, 64, 64 << 10, 1 << 20, 0, 5}, sizes(300, 64)...)
	p, port, k := stockSeller(t, `await more(0, a.sizes)`, map[string]any{"sizes": all})
	in := newInbox()
	b := newBuyer(t, k, in, nil)
	dial(t, port, b)
	in.wait(t, "download", func() bool { return len(in.blocks) == len(all) })
	in.check(t, 0, len(all), func(i int) int { return all[i] })
	p.do(`for (let i = 0; i < 200; i++) { await s.more(a.from + i, [64]); await s.sleep(5) }`, map[string]any{"from": len(all)}, nil)
	in.wait(t, "live", func() bool { return len(in.blocks) == len(all)+200 })
	in.check(t, len(all), len(all)+200, func(int) int { return 64 })
	if in.twice > 0 || len(in.gaps) > 0 {
		t.Errorf("%d blocks came twice, gaps %v", in.twice, in.gaps)
	}
	got, err := b.Get(context.Background(), 3)
	if err != nil || !bytes.Equal(got, genBlock(3, 64<<10)) {
		t.Errorf("get: %d bytes, %v", len(got), err)
	}
	var errs []string
	if p.do(`return s.errors`, nil, &errs); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestStockSellerLarge downloads large blocks, of which a stock seller puts many
// into one message, at once and behind small ones.
func TestStockSellerLarge(t *testing.T) {
	for name, all := range map[string][]int{
		"large": sizes(150, 100<<10), "larger": sizes(40, 900<<10), "behind small ones": append(sizes(3000, 10), sizes(150, 100<<10)...),
	} {
		t.Run(name, func(t *testing.T) {
			_, port, k := stockSeller(t, `await more(0, a.sizes)`, map[string]any{"sizes": all})
			in := newInbox()
			dial(t, port, newBuyer(t, k, in, nil))
			in.wait(t, "download", func() bool { return len(in.blocks) == len(all) })
			in.check(t, 0, len(all), func(i int) int { return all[i] })
		})
	}
}

// TestStockSellerSparse: single blocks by one who downloads nothing.
func TestStockSellerSparse(t *testing.T) {
	_, port, k := stockSeller(t, `await more(0, a.sizes)`, map[string]any{"sizes": sizes(5000, 64)})
	b := newBuyer(t, k, newInbox(), func(c *replicate.BuyerConfig) { c.From = replicate.FromEnd })
	dial(t, port, b)
	for _, i := range []uint64{4999, 0, 1, 2500, 4096, 4095, 17} {
		got, err := b.Get(context.Background(), i)
		if err != nil || !bytes.Equal(got, genBlock(int(i), 64)) {
			t.Errorf("block %d: %x, %v", i, got, err)
		}
	}
	if st := b.Stats(); st.Blocks != 0 {
		t.Errorf("%+v", st)
	}
}

// TestStockSellerResume: 100,000 blocks, with a buyer that ends again and again
// and a directory that it goes on from.
func TestStockSellerResume(t *testing.T) {
	n := 100000
	_, port, k := stockSeller(t, `for (let i = 0; i < a.n; i += 1000) await more(i, new Array(1000).fill(64))`, map[string]any{"n": n})
	in := newInbox()
	dir := t.TempDir()
	for round := 1; ; round++ {
		a, err := archive.Open(durable.OS(), dir)
		if err != nil {
			t.Fatal(err)
		}
		b := newBuyer(t, k, in, func(c *replicate.BuyerConfig) {
			if c.Store = a; a.State() != nil {
				c.Kept = &a.State().Kept
			}
		})
		v := dial(t, port, b)
		want := min(n, 20000*round)
		in.wait(t, "resume", func() bool { return len(in.blocks) >= want })
		v.close()
		if err := b.Checkpoint(func(kept replicate.Kept) error {
			return a.Save(archive.State{Feed: k, Kept: kept})
		}); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if len(in.blocks) == n {
			break
		}
	}
	in.check(t, 0, n, func(int) int { return 64 })
	if in.twice > 0 {
		t.Errorf("%d blocks came twice", in.twice)
	}
}

// TestStockSellerCleared: what a stock seller has cleared is a gap.
func TestStockSellerCleared(t *testing.T) {
	p, port, k := stockSeller(t, `await more(0, a.sizes); await s.c.clear(0, 300); await s.c.clear(500, 600)`, map[string]any{"sizes": sizes(1000, 64)})
	in := newInbox()
	b := newBuyer(t, k, in, nil)
	dial(t, port, b)
	in.wait(t, "cleared", func() bool { return in.blocks[999] != nil })
	if len(in.blocks) != 600 || fmt.Sprint(in.gaps) != "[0-300 500-600]" {
		t.Errorf("%d blocks, gaps %v", len(in.blocks), in.gaps)
	}
	in.check(t, 300, 500, func(int) int { return 64 })
	var errs []string
	if p.do(`return s.errors`, nil, &errs); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestStockSellerForks: a stock writer truncates, which raises its fork, once
// and again.
func TestStockSellerForks(t *testing.T) {
	p, port, k := stockSeller(t, `await more(0, a.sizes)`, map[string]any{"sizes": sizes(100, 64)})
	in := newInbox()
	a, err := archive.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b := newBuyer(t, k, in, func(c *replicate.BuyerConfig) { c.Store = a })
	v := dial(t, port, b)
	in.wait(t, "download", func() bool { return len(in.blocks) == 100 })
	// While connected.
	p.do(`await s.c.truncate(60); await s.more(60, a.sizes)`, map[string]any{"sizes": sizes(30, 65)}, nil)
	in.wait(t, "fork 1", func() bool {
		return in.head.Fork == 1 && in.head.Length == 90 && bytes.Equal(in.blocks[89], genBlock(89, 65))
	})
	in.check(t, 60, 90, func(int) int { return 65 })
	v.close()
	// While away, twice.
	p.do(`await s.c.truncate(80); await s.more(80, a.sizes); await s.c.truncate(50); await s.more(50, a.sizes)`, map[string]any{"sizes": sizes(90, 66)}, nil)
	dial(t, port, b)
	in.wait(t, "fork 3", func() bool { return in.head.Fork == 3 && bytes.Equal(in.blocks[139], genBlock(139, 66)) })
	in.check(t, 0, 50, func(int) int { return 64 })
	in.check(t, 50, 140, func(int) int { return 66 })
	if fmt.Sprint(in.forks) != "[1@60 3@50]" {
		t.Error(in.forks)
	}
}

// TestStockSellerUnderAnotherKey is refused.
func TestStockSellerUnderAnotherKey(t *testing.T) {
	_, port, _ := stockSeller(t, `await more(0, [1,2,3])`, map[string]any{})
	in := newInbox()
	b := newBuyer(t, merkle.Hash{1}, in, nil)
	v := dial(t, port, b)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := b.Get(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	v.close()
	if len(in.blocks) > 0 {
		t.Error("blocks of an unknown feed")
	}
}
