package feed

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"syscall"
	"testing"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

var crashPoints = flag.Int("crashpoints", 100_000, "simulated crash points in TestCrash")

// buyer is what a buyer has of each feed, on a machine that never fails.
type buyer struct {
	key   [32]byte
	heads map[merkle.Hash]merkle.Head
}

// signedHead identifies a tree that a feed key signed.
type signedHead struct {
	key          merkle.Hash
	fork, length uint64
}

// world is a log that crashes, its buyers, and what was acknowledged.
type world struct {
	*env
	rng    *rand.Rand
	acked  [][]byte
	tried  map[uint64][][]byte
	buyers []*buyer
	signed map[signedHead]merkle.Hash
	lying  bool
	blind  bool         // heads are signed without asking the buyer
	saves  []savedSales // earlier states, for a card that lies
	broken error        // found while running
	cycle  int
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{
		env: newEnv(t, seed, 9*smallSegment), rng: rand.New(rand.NewPCG(seed, 7)), tried: map[uint64][][]byte{},
		signed: map[signedHead]merkle.Hash{},
	}
	for i := range 3 {
		w.buyers = append(w.buyers, &buyer{[32]byte{byte(i + 1)}, map[merkle.Hash]merkle.Head{}})
	}
	return w
}

func (w *world) tryOpen() (err error) {
	w.now = block.Stamp{Boot: w.now.Boot + 1}
	w.log, err = Open(w.cfg)
	return err
}

func expected(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, io.ErrShortWrite) || errors.Is(err, syscall.ENXIO) ||
		errors.Is(err, storage.ErrClosed)
}

// step appends a batch, or lets a buyer come.
func (w *world) step() error {
	if w.rng.IntN(3) == 0 {
		return w.visit(w.buyers[w.rng.IntN(len(w.buyers))])
	}
	var batch []block.Block
	at := uint64(len(w.acked))
	for i := range 1 + w.rng.IntN(12) {
		data := make([]byte, w.rng.IntN(150))
		if w.rng.IntN(20) == 0 {
			data = make([]byte, w.rng.IntN(9000))
		}
		for j := range data {
			data[j] = byte(w.rng.Uint32())
		}
		b := w.raw(data)
		batch = append(batch, b)
		w.tried[at+uint64(i)] = append(w.tried[at+uint64(i)], b.Data)
	}
	first, err := w.log.Append(context.Background(), batch...)
	durable := len(batch)
	if err != nil {
		durable = 0
		var partial *PartialError
		if errors.As(err, &partial) {
			durable, first = partial.Durable, at
		}
	}
	if w.lying { // damage that was met adds entries of its own
		w.acked = make([][]byte, w.log.Head().Length)
		return err
	}
	if durable > 0 && first != at {
		return fmt.Errorf("blocks went to %d, not %d", first, at)
	}
	for _, b := range batch[:durable] {
		w.acked = append(w.acked, b.Data)
	}
	return err
}

// visit is a buyer who comes, is compared with if need be, and takes the newest
// head.
func (w *world) visit(b *buyer) error {
	f, err := w.log.Rekey(b.key)
	if err != nil {
		return err
	}
	for {
		has := b.heads[f.Key()]
		if w.blind || f.Settled(has.Fork, has.Length) {
			break
		}
		answer := &has
		if w.rng.IntN(4) == 0 {
			answer = nil
		}
		if err = f.Settle(answer, has.Fork); errors.Is(err, ErrTooOld) {
			f, err = w.log.Renew(b.key)
		}
		if err != nil {
			return err
		}
	}
	head, _, err := f.Head()
	if w.blind && errors.Is(err, ErrUnsettled) {
		return nil
	}
	if err != nil {
		return err
	}
	return w.record(b, f.Key(), head)
}

// record checks that a feed key never signs two trees of one fork and length,
// and that what it signs was acknowledged.
func (w *world) record(b *buyer, key merkle.Hash, h merkle.Head) error {
	id := signedHead{key, h.Fork, h.Length}
	if old, ok := w.signed[id]; ok && old != h.TreeHash {
		return fmt.Errorf("two trees signed for length %d, fork %d", h.Length, h.Fork)
	}
	if h.Length > uint64(len(w.acked)) && !w.lying {
		return fmt.Errorf("head of %d blocks signed, %d are committed", h.Length, len(w.acked))
	}
	w.signed[id] = h.TreeHash
	b.heads[key] = h
	return nil
}

// check compares the log with what was acknowledged and signed.
func (w *world) check() error {
	h := w.log.Head()
	if h.Length < uint64(len(w.acked)) && !w.lying {
		return fmt.Errorf("%d blocks acknowledged, %d there", len(w.acked), h.Length)
	}
	if w.lying {
		w.acked = nil
		err := w.log.Range(h.First, h.Length, func(i uint64, _ storage.Weight, data []byte) bool { return true })
		if err != nil && !errors.Is(err, storage.ErrCorrupt) {
			return err
		}
		if err := w.log.Flush(context.Background()); err != nil && !expected(err) { // gap entries
			return err
		}
		w.acked = make([][]byte, w.log.Head().Length)
		clear(w.tried)
		return nil
	}
	want := h.First
	err := w.log.Range(h.First, h.Length, func(i uint64, _ storage.Weight, data []byte) bool {
		if i < uint64(len(w.acked)) {
			if !bytes.Equal(w.acked[i], data) {
				return false
			}
		} else {
			ok := false
			for _, t := range w.tried[i] {
				ok = ok || bytes.Equal(t, data)
			}
			if !ok {
				return false
			}
			w.acked = append(w.acked, bytes.Clone(data))
		}
		want++
		return true
	})
	if err != nil || want != h.Length {
		return fmt.Errorf("block %d is not what was appended: %v", want, err)
	}
	clear(w.tried)
	for id, hash := range w.signed {
		if id.length < h.First {
			delete(w.signed, id)
			continue
		}
		if w.cycle%16 != 0 && id.length+100 < h.Length {
			continue // old ones are checked now and then
		}
		if got, err := w.log.TreeHashAt(id.length); err != nil || got != hash {
			return fmt.Errorf("a signed head of %d blocks is not in the log: %v", id.length, err)
		}
	}
	return nil
}

func (w *world) fault() {
	kinds := []error{syscall.EIO, syscall.ENOSPC, io.ErrShortWrite}
	kind, from, n := kinds[w.rng.IntN(3)], w.disk.Stats().Calls+w.rng.IntN(30), 1+w.rng.IntN(3)
	w.disk.Fail(func(call int, op, _ string) error {
		if call < from || call >= from+n {
			return nil
		}
		if op != "write" && errors.Is(kind, io.ErrShortWrite) {
			return syscall.EIO
		}
		return kind
	})
}

// crash runs into one crash, opens the log again and checks it.
func (w *world) crash() error {
	w.cycle++
	w.disk.CutAfter(1 + w.rng.IntN(50))
	if w.rng.IntN(3) == 0 && !w.lying {
		w.fault()
	}
	for !w.disk.Off() {
		if w.log == nil {
			if w.tryOpen() != nil {
				w.log = nil // a fault hit it; it is tried again
			} else if err := w.check(); err != nil && !w.disk.Off() {
				return err
			}
			continue
		}
		if w.rng.IntN(30) == 0 {
			_ = w.log.Close() // a fault may hit it
			w.log = nil
			continue
		}
		if err := w.step(); err != nil && !expected(err) {
			return err
		}
		if w.lying { // gap entries come by themselves: one seed replays everything
			if err := w.log.Flush(context.Background()); err != nil && !expected(err) {
				return err
			}
		}
		if w.broken != nil {
			return w.broken
		}
	}
	w.disk.Fail(nil)
	if w.log != nil {
		w.log.Abort()
	}
	if w.rng.IntN(4) == 0 {
		w.disk.Kill()
	} else {
		w.disk.Reboot()
		if w.lying {
			w.rollbackSales()
		}
	}
	if err := w.tryOpen(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if used := w.disk.Stats().MaxUsed; used > w.cfg.MaxSize {
		return fmt.Errorf("%d bytes on the disk, at most %d", used, w.cfg.MaxSize)
	}
	return w.check()
}

type savedSales struct {
	sales map[[32]byte]SaleState
	epoch Epoch
}

// rollbackSales lets the sales' store lose its newest states too.
func (w *world) rollbackSales() {
	now := savedSales{maps.Clone(w.sales.sales), w.sales.epoch}
	w.saves = append(w.saves, now)
	back := w.saves[max(0, len(w.saves)-1-w.rng.IntN(3))]
	w.sales.sales, w.sales.epoch = maps.Clone(back.sales), back.epoch
}

// runCrashes runs points crashes, perSeed with each seed; part of parts.
func runCrashes(t *testing.T, points, perSeed, part, parts int, setup func(*world)) error {
	for seed := uint64(part); seed < uint64(max(1, points/perSeed)); seed += uint64(parts) {
		w := newWorld(t, seed)
		if setup != nil {
			setup(w)
		}
		if err := w.tryOpen(); err != nil {
			t.Fatal(err)
		}
		for n := range perSeed {
			if err := w.crash(); err != nil {
				if w.log != nil {
					w.log.Abort()
				}
				return fmt.Errorf("seed %d, crash %d: %w", seed, n, err)
			}
		}
		w.log.Abort()
	}
	return nil
}

// inParts runs crashes on all cores.
func inParts(t *testing.T, points, perSeed int, setup func(*world)) {
	const parts = 4
	for part := range parts {
		t.Run(fmt.Sprint("part", part), func(t *testing.T) {
			t.Parallel()
			if err := runCrashes(t, points, perSeed, part, parts, setup); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestCrash is promises 1 to 3 on a card that keeps what it acknowledged: power
// cuts, kills and failing calls at every place lose no acknowledged block, no
// signed head, no start, and not a byte of the budget.
func TestCrash(t *testing.T) {
	inParts(t, *crashPoints, 200, nil)
}

// TestLyingCard is promise 2 on a card that acknowledges syncs and does nothing,
// whose database goes back in time as well: the log opens, shorter, and no key
// signs two trees, since buyers are asked first.
func TestLyingCard(t *testing.T) {
	lie := func(w *world) {
		w.lying = true
		w.disk.Lie(true)
	}
	inParts(t, *crashPoints/20, 50, lie)
}

// syncHook runs before every sync, which it can also leave out.
type syncHook struct {
	durable.FS
	before func() (skip bool)
}

type syncHookFile struct {
	durable.File
	before func() bool
}

func (s syncHook) Open(name string) (durable.File, error) {
	f, err := s.FS.Open(name)
	return syncHookFile{f, s.before}, err
}

func (f syncHookFile) Datasync() error {
	if f.before() {
		return nil
	}
	return f.File.Datasync()
}

// TestCrashFindsFaults proves that TestCrash can fail. (That the only copy of
// acknowledged bytes is not rewritten in place is proved in package storage.)
func TestCrashFindsFaults(t *testing.T) {
	for name, setup := range map[string]func(*world){
		"no fdatasync": func(w *world) {
			w.cfg.FS = syncHook{w.disk, func() bool { return true }}
		},
		"signed before the commit": func(w *world) {
			f := &Feed{key: merkle.Hash{1}}
			w.cfg.FS = syncHook{w.disk, func() bool {
				if w.log != nil && w.broken == nil { // runs in the committer, which owns the tree
					tree := &w.log.tree.tree
					w.signed[signedHead{f.key, 0, tree.Length()}] = tree.Hash()
				}
				return false
			}}
		},
		"no settling": func(w *world) {
			w.lying, w.blind = true, true
			w.disk.Lie(true)
			w.cfg.Sales = blindSales{w.sales}
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := runCrashes(t, 1000, 1000, 0, 1, setup)
			if err == nil {
				t.Fatal("1000 crashes did not show the fault")
			}
			t.Log("found:", err)
		})
	}
}

// blindSales say that every sale was settled just now and saw everything.
type blindSales struct{ *memorySales }

func (b blindSales) Load(buyer [32]byte) (SaleState, bool, error) {
	s, ok, err := b.memorySales.Load(buyer)
	s.Settled, s.Signed = b.memorySales.epoch.Number, 0
	return s, ok, err
}
