package feed

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

func (e *env) rekey(b byte) *Feed {
	e.t.Helper()
	f, err := e.log.Rekey([32]byte{b})
	if err != nil {
		e.t.Fatal(err)
	}
	return f
}

func (e *env) head(f *Feed) merkle.Head {
	e.t.Helper()
	h, sig, err := f.Head()
	if err != nil {
		e.t.Fatal(err)
	}
	m := f.Manifest()
	if err := m.Verify(f.Key(), h, sig); err != nil {
		e.t.Fatal(err)
	}
	return h
}

// cut ends the process without notice and opens the log again.
func (e *env) cut() {
	e.t.Helper()
	e.log.Abort()
	e.disk.Kill()
	e.open()
}

// TestRekey checks that feeds share a tree and nothing else, and that they stay
// as they were over an orderly restart.
func TestRekey(t *testing.T) {
	e := newEnv(t, 1, 40*smallSegment)
	e.open()
	e.fill(rand.New(rand.NewPCG(1, 1)), 20)
	a, b := e.rekey(1), e.rekey(2)
	ha, hb := e.head(a), e.head(b)
	if a.Key() == b.Key() || ha != hb {
		t.Fatalf("keys %x and %x, heads %+v and %+v", a.Key(), b.Key(), ha, hb)
	}
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
	e.open()
	defer func() { e.log.Close() }()
	again := e.rekey(1)
	if again.Key() != a.Key() || !again.Settled(0, ha.Length) || again.Settled(0, ha.Length+1) || again.Settled(1, 1) {
		t.Error("an orderly restart changed the feed")
	}
	if e.head(again) != ha {
		t.Error("another head")
	}
}

// TestSettle goes through the rule of forks after an unclean start.
func TestSettle(t *testing.T) {
	for name, c := range map[string]struct {
		answer  func(merkle.Head) *merkle.Head
		claimed uint64
		fork    uint64
	}{
		"equal":         {func(h merkle.Head) *merkle.Head { return &h }, 0, 0},
		"older":         {func(h merkle.Head) *merkle.Head { h.Length = 10; return &h }, 0, 0},
		"different":     {func(h merkle.Head) *merkle.Head { h.TreeHash[0]++; return &h }, 0, 1},
		"longer":        {func(h merkle.Head) *merkle.Head { h.Length += 5; return &h }, 0, 1},
		"no answer":     {func(merkle.Head) *merkle.Head { return nil }, 0, 1},
		"empty head":    {func(merkle.Head) *merkle.Head { return &merkle.Head{} }, 0, 1},
		"claims a fork": {func(h merkle.Head) *merkle.Head { return &h }, 7, 8},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t, 1, 40*smallSegment)
			e.open()
			rng := rand.New(rand.NewPCG(1, 1))
			e.fill(rng, 10)
			at10, _ := e.log.TreeHashAt(10)
			e.fill(rng, 10)
			h := e.head(e.rekey(1))
			e.cut()
			defer func() { e.log.Close() }()
			f := e.rekey(1)
			if f.Settled(0, 0) {
				t.Fatal("settled after a cut")
			}
			if _, _, err := f.Head(); !errors.Is(err, ErrUnsettled) {
				t.Fatalf("signed before it was settled: %v", err)
			}
			answer := c.answer(h)
			if answer != nil && answer.Length == 10 {
				answer.TreeHash = at10
			}
			if err := f.Settle(answer, c.claimed); err != nil {
				t.Fatal(err)
			}
			if got := e.head(f); got.Fork != c.fork || f.Fork() != c.fork {
				t.Errorf("fork %d, want %d", got.Fork, c.fork)
			}
			if again := e.rekey(1); again.Fork() != c.fork || !again.Settled(c.fork, 5) {
				t.Error("not durable")
			}
		})
	}
}

// TestRestoredCopy checks that a log that comes back with another head than it
// was closed with is not trusted, though it was closed in order.
func TestRestoredCopy(t *testing.T) {
	e := newEnv(t, 1, 40*smallSegment)
	e.open()
	rng := rand.New(rand.NewPCG(1, 1))
	e.fill(rng, 10)
	at10 := e.head(e.rekey(1))
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
	old := e.disk.Clone()
	e.open()
	e.fill(rng, 10)
	was := e.head(e.rekey(1))
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
	e.cfg.FS = old
	e.open()
	defer func() { e.log.Close() }()
	if !e.log.Recovery().Clean || e.rekey(1).Settled(0, 0) {
		t.Error("an old image signs without asking")
	}
	// A buyer that shows an older head, which is still true, does not settle it:
	// a longer one was signed.
	f := e.rekey(1)
	if err := f.Settle(&at10, 0); err != nil {
		t.Fatal(err)
	}
	e.fill(rng, 10)
	if is := e.head(f); is.Fork == was.Fork {
		t.Errorf("two heads of fork %d: %+v, %+v", is.Fork, was, is)
	}
}

// TestUnreadableFiles opens a log whose small files cannot be read: they are
// not worth a refusal.
func TestUnreadableFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := newEnv(t, 1, 9*smallSegment)
	e.open()
	e.head(e.rekey(1))
	e.fill(rng, 2500)
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
	e.disk.FailReads(func(name string, _ int64, _ int) bool {
		return filepath.Base(name) == pinsName || filepath.Base(name) == lostName
	})
	e.open()
	e.fill(rng, 10)
	e.log.Close()
}

// TestLostSales checks that a mark which is ahead of the sales' store counts.
func TestLostSales(t *testing.T) {
	e := newEnv(t, 1, 40*smallSegment)
	e.open()
	e.fill(rand.New(rand.NewPCG(1, 1)), 20)
	f := e.rekey(1)
	if err := f.Settle(nil, 4); err != nil {
		t.Fatal(err)
	}
	e.head(f)
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
	clear(e.sales.sales)
	e.open()
	defer func() { e.log.Close() }()
	if f := e.rekey(1); f.Fork() != 5 || f.Settled(5, 20) {
		t.Errorf("fork %d, settled %v", f.Fork(), f.Settled(5, 20))
	}
}

// TestRenew checks that an old key never comes back, whatever runs beside.
func TestRenew(t *testing.T) {
	e := newEnv(t, 1, 40*smallSegment)
	e.open()
	e.fill(rand.New(rand.NewPCG(1, 1)), 20)
	f := e.rekey(1)
	e.head(f)
	next, err := e.log.Renew([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	e.head(f) // an old Feed that is still around
	if err := e.log.spill(); err != nil {
		t.Fatal(err)
	}
	e.cut()
	defer func() { e.log.Close() }()
	if again := e.rekey(1); again.Key() != next.Key() || again.Generation() != 1 || again.Key() == f.Key() {
		t.Error("the old key is back")
	}
}

// TestManySales signs for more buyers than there is room for marks: none is
// forgotten and memory stays.
func TestManySales(t *testing.T) {
	e := newEnv(t, 1, 40*smallSegment)
	e.open()
	e.fill(rand.New(rand.NewPCG(1, 1)), 20)
	const buyers = 3000
	for i := range buyers {
		f, err := e.log.Rekey([32]byte{byte(i), byte(i >> 8), 1})
		if err != nil {
			t.Fatal(err)
		}
		e.head(f)
		if i%500 == 0 {
			e.fill(rand.New(rand.NewPCG(uint64(i), 1)), 1)
		}
	}
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(e.log.signed); n > 2*maxUnsaved {
		t.Errorf("%d signed heads in memory", n)
	}
	e.open()
	defer func() { e.log.Close() }()
	for i := range buyers {
		f, err := e.log.Rekey([32]byte{byte(i), byte(i >> 8), 1})
		if err != nil {
			t.Fatal(err)
		}
		if f.signedLength() < 20 {
			t.Fatalf("what was signed for buyer %d is forgotten", i)
		}
	}
}

// TestParallel appends, signs, settles and drops at the same time: nothing
// waits for ever.
func TestParallel(t *testing.T) {
	e := newEnv(t, 1, 9*smallSegment)
	e.open()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	loop := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil && !errors.Is(err, ErrUnsettled) && !errors.Is(err, ErrTooOld) {
					t.Error(err)
					return
				}
			}
		})
	}
	f, g := e.rekey(1), e.rekey(2)
	data := bytes.Repeat([]byte{0}, 100)
	loop(func() error { _, err := e.log.Append(context.Background(), block.Block{Data: data}); return err })
	loop(func() error { _, err := e.log.st.Drop(); return err })
	loop(func() error { _, _, err := f.Head(); return err })
	loop(func() error { return g.Settle(nil, 0) })
	loop(func() error { return e.log.spill() })
	done := make(chan struct{})
	go func() { // ends with the loops
		wg.Wait()
		close(done)
	}()
	timer := time.AfterFunc(500*time.Millisecond, func() { close(stop) })
	defer timer.Stop()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		t.Fatal("something waits for ever")
	}
	if err := e.log.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestPartialFailure fails a commit behind a segment's end: the ticket says how
// many blocks are durable, and no sensed time is counted twice.
func TestPartialFailure(t *testing.T) {
	e := newEnv(t, 1, 20*smallSegment)
	e.open()
	defer func() { e.log.Close() }()
	var blocks []block.Block
	for range 60 {
		blocks = append(blocks, e.raw(make([]byte, 900)))
	}
	e.disk.Fail(func(_ int, op, name string) error {
		if op == "rename" && filepath.Base(name) == "spare" && e.log.Head().Length > 0 {
			return syscall.EIO
		}
		return nil
	})
	_, err := e.log.Append(context.Background(), blocks...)
	var partial *PartialError
	if !errors.As(err, &partial) || partial.Durable < 10 || partial.Durable >= 60 {
		t.Fatalf("%v", err)
	}
	e.disk.Fail(nil)
	if _, err := e.log.Append(context.Background(), blocks[partial.Durable:]...); err != nil {
		t.Fatal(err)
	}
	var span uint64
	if err := e.log.Range(0, 60, func(i uint64, w storage.Weight, data []byte) bool {
		span += w.Span
		return bytes.Equal(data, blocks[i].Data)
	}); err != nil || span != 59_000 {
		t.Errorf("%d ms sensed, want 59000 (%v)", span, err)
	}
}

// TestSalvage cuts the power at every call while the blocks behind damage are
// being recovered: each is there in the end, as a block or as an entry.
func TestSalvage(t *testing.T) {
	for at := 1; ; at++ {
		e := newEnv(t, 7, 40*smallSegment)
		e.open()
		rng := rand.New(rand.NewPCG(7, 1))
		blocks := e.fill(rng, 320)
		e.log.Abort()
		e.disk.Kill()
		names, _ := e.disk.ReadDir("/log")
		var last string
		for _, n := range names {
			if filepath.Ext(n) == ".seg" {
				last = n
			}
		}
		e.disk.Flip("/log/"+last, 5*storage.PageSize*8+6000) // its first data page
		e.disk.CutAfter(at)
		l, err := Open(e.cfg)
		if err == nil {
			l.Abort()
		}
		finished := !e.disk.Off()
		e.disk.PowerOff()
		e.disk.Reboot()
		e.open()
		e.log.Abort()
		e.open()
		seen := map[uint64]bool{}
		lost := uint64(0)
		if err := e.log.Range(0, e.log.Head().Length, func(i uint64, _ storage.Weight, data []byte) bool {
			_, n, err := block.Raw.Parse(data)
			switch {
			case err == nil && n != nil && n.Kind == block.Recovered:
				if !bytes.Equal(n.Data, blocks[n.Index]) || seen[n.Index] {
					t.Fatalf("cut %d: recovered block %d is wrong or there twice", at, n.Index)
				}
				seen[n.Index] = true
			case err == nil && n != nil && n.Lost != nil:
				lost += n.Lost.Count
			default:
				seen[i] = bytes.Equal(data, blocks[i])
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if uint64(len(seen))+lost < 320 || lost > 80 {
			t.Fatalf("cut %d: %d blocks there, %d lost, of 320", at, len(seen), lost)
		}
		e.log.Abort()
		if finished {
			break
		}
	}
}
