package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// TestErrors checks that a caller can tell what to do.
func TestErrors(t *testing.T) {
	t.Run("locked", func(t *testing.T) {
		b := newBench(t, 1, 60*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		defer b.log.Close()
		if _, err := Open(b.cfg); !errors.Is(err, ErrLocked) {
			t.Error(err)
		}
	})
	t.Run("newer format", func(t *testing.T) {
		b := filled(t, 1, 100)
		found, _ := list(b.disk, b.cfg.Dir)
		f, _ := b.disk.Open(join(b.cfg.Dir, found.segments[len(found.segments)-1].name()))
		head, _ := page.Read(f, 0, 1)
		head[6] = page.Version + 1
		binary.LittleEndian.PutUint32(head, crc32.Checksum(head[4:], page.Castagnoli()))
		if _, err := f.WriteAt(head, 0); err != nil {
			t.Fatal(err)
		}
		before := b.disk.Stats().Written
		if err := b.open(); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "update the program") {
			t.Error(err)
		}
		if b.disk.Stats().Written > before+page.Size {
			t.Error("a newer log was written to")
		}
	})
	t.Run("read-only", func(t *testing.T) {
		b := newBench(t, 1, 60*page.MinPages*page.Size)
		b.disk.Fail(func(int, string, string) error { return syscall.EROFS })
		if err := b.open(); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), "remount") {
			t.Error(err)
		}
	})
	t.Run("full disk", func(t *testing.T) {
		b := newBench(t, 1, 60*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		b.disk.SetSpace(3 * page.MinPages * page.Size)
		var err error
		for err == nil {
			err = b.step()
		}
		if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "free space or lower max_size") {
			t.Fatal(err)
		}
		if err := b.step(); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		held := len(b.acked)
		b.disk.SetSpace(0)
		for range 50 {
			if err := b.step(); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.check(); err != nil || len(b.acked) <= held {
			t.Fatal(err)
		}
		b.log.Close()
	})
	t.Run("too large and too small", func(t *testing.T) {
		b := newBench(t, 1, 60*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		defer b.log.Close()
		if _, err := b.log.Append(Record{Data: make([]byte, b.log.MaxBlock()+1)}); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
		if _, _, err := b.log.Get(0); !errors.Is(err, ErrRange) {
			t.Error(err)
		}
		c := b.cfg
		c.Dir, c.MaxSize = "/other", 2*page.MinPages*page.Size
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "needs at least") {
			t.Error(err)
		}
	})
}

// TestLargeBlocks appends the largest blocks and reads them back in any order.
func TestLargeBlocks(t *testing.T) {
	b := newBench(t, 1, 60*64*page.Size)
	b.cfg.SegmentSize = 64 * page.Size
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	for n := range 60 {
		data := testBlock(uint64(n), []int{0, 1, page.BodyMax - 2, page.BodyMax, page.BodyMax + 1, b.log.MaxBlock(), b.log.MaxBlock() - 1}[n%7])
		if _, err := b.log.Append(Record{Data: data, Weight: Weight{Readings: 1, Span: uint64(n)}}); err != nil {
			t.Fatal(err)
		}
		b.owner.add(data)
		b.acked = append(b.acked, data)
		if n%4 == 0 {
			if err := b.log.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	defer b.log.Close()
	first := b.log.First()
	for n := range uint64(200) {
		i := first + n*37%(60-first)
		data, w, err := b.log.Get(i)
		if err != nil || !bytes.Equal(data, b.acked[i]) || w.Span != i {
			t.Fatalf("block %d: %v", i, err)
		}
	}
}

// TestFindKey compares the search with a look at everything.
func TestFindKey(t *testing.T) {
	for seed := range uint64(20) {
		b := newBench(t, seed, 60*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		var keys []uint64
		for n := range 1500 {
			k := uint64(n) * 10
			if b.rng.IntN(4) == 0 {
				k = uint64(b.rng.IntN(15_000))
			}
			data := testBlock(k, 8+b.rng.IntN(100))
			if _, err := b.log.Append(Record{Data: data, Keys: keysOf(data)}); err != nil {
				t.Fatal(err)
			}
			b.owner.add(data)
			keys = append(keys, k)
			if b.rng.IntN(9) == 0 {
				if err := b.log.Commit(); err != nil {
					t.Fatal(err)
				}
			}
			if b.rng.IntN(300) == 0 {
				if err := b.log.Close(); err != nil {
					t.Fatal(err)
				}
				if err := b.open(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := b.log.Commit(); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			target := uint64(b.rng.IntN(16_000))
			want := len(keys)
			for i, k := range keys {
				if k >= target {
					want = i
					break
				}
			}
			from, err := b.log.FindKey(0, target)
			if err != nil || from > uint64(want) || want-int(from) > 600 {
				t.Fatalf("seed %d: key %d: search from %d, it is at %d (%v)", seed, target, from, want, err)
			}
			at, k, err := b.log.KeysBefore(min(uint64(want), uint64(len(keys))))
			if err != nil || at > uint64(want) {
				t.Fatal(err)
			}
			top := uint64(0)
			for _, v := range keys[:at] {
				top = max(top, v)
			}
			if k[0] != top {
				t.Fatalf("seed %d: keys before %d are %d, want %d", seed, at, k[0], top)
			}
		}
		b.log.Close()
	}
}

// TestReadersAndDrops reads while segments are written, closed and recycled.
func TestReadersAndDrops(t *testing.T) {
	b := newBench(t, 1, 6*page.MinPages*page.Size)
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	defer b.log.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, length := b.log.First(), b.log.Length()
				if length == first {
					continue
				}
				i := first + uint64(rng.IntN(int(length-first)))
				data, _, err := b.log.Get(i)
				if err == nil && len(data) >= 8 && binary.LittleEndian.Uint64(data) != i {
					t.Errorf("block %d is %d", i, binary.LittleEndian.Uint64(data))
					return
				}
				if err != nil && !errors.Is(err, ErrDropped) {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range uint64(20_000) {
		data := testBlock(i, 8+int(i%90))
		if _, err := b.log.Append(Record{Data: data}); err != nil {
			t.Fatal(err)
		}
		b.owner.add(data)
		if i%7 == 0 {
			if err := b.log.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	wg.Wait()
}

// TestMaxSizeShrinks opens a log with a smaller budget.
func TestMaxSizeShrinks(t *testing.T) {
	b := filled(t, 1, 2500)
	b.cfg.MaxSize = 6 * page.MinPages * page.Size
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	if err := b.log.Trim(); err != nil {
		t.Fatal(err)
	}
	b.disk.ResetMaxUsed()
	for range 300 {
		if err := b.step(); err != nil {
			t.Fatal(err)
		}
	}
	if used := b.disk.Stats().MaxUsed; used > b.cfg.MaxSize {
		t.Errorf("%d bytes, at most %d", used, b.cfg.MaxSize)
	}
	if err := b.check(); err != nil {
		t.Fatal(err)
	}
	b.log.Close()
}

// TestMarksFull fills the marks and makes room.
func TestMarksFull(t *testing.T) {
	b := newBench(t, 1, 60*page.MinPages*page.Size)
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		err := b.log.SetMark(fmt.Sprint("key", n), make([]byte, 100))
		if errors.Is(err, ErrMarksFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n < 30 {
		t.Errorf("room for %d marks only", n)
	}
	b.log.RemoveMark("key0")
	if err := b.log.SetMark("again", make([]byte, 90)); err != nil {
		t.Error(err)
	}
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	defer b.log.Close()
	if b.log.Mark("key0") != nil || b.log.Mark("again") == nil || b.log.Mark("key1") == nil {
		t.Error("marks after reopening")
	}
}

// TestRealFiles runs the log on the real file system.
func TestRealFiles(t *testing.T) {
	b := newBench(t, 1, 20*page.MinPages*page.Size)
	b.cfg.FS, b.cfg.Dir = durable.OS(), filepath.Join(t.TempDir(), "a", "log")
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if err := b.step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.open(); err != nil || !b.log.Recovery().Clean {
		t.Fatal(err, b.log.Recovery())
	}
	if err := b.check(); err != nil {
		t.Fatal(err)
	}
	b.log.Abort()
	if err := b.open(); err != nil || !b.log.Recovery().Clean {
		t.Fatal("nothing was written, the open is clean", err)
	}
	if err := b.step(); err != nil {
		t.Fatal(err)
	}
	b.log.Abort()
	if err := b.open(); err != nil || b.log.Recovery().Clean {
		t.Fatal("the open is not clean", err)
	}
	if err := b.check(); err != nil {
		t.Fatal(err)
	}
	b.log.Close()
	var size int64
	entries, _ := os.ReadDir(b.cfg.Dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
	}
	if size > b.cfg.MaxSize {
		t.Errorf("%d bytes in files, at most %d", size, b.cfg.MaxSize)
	}
}
