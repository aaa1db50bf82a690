package feed

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/faultfs"
)

// noSync is the real file system without syncs: what appending costs by itself.
type noSync struct{ durable.FS }

type noSyncFile struct{ durable.File }

func (noSyncFile) Datasync() error { return nil }

func (n noSync) Open(name string) (durable.File, error) {
	f, err := n.FS.Open(name)
	return noSyncFile{f}, err
}

func (n noSync) Create(name string) (durable.File, error) {
	f, err := n.FS.Create(name)
	return noSyncFile{f}, err
}

func (noSync) SyncDir(string) error { return nil }

func benchConfig(dir string) Config {
	c := realConfig(dir, newSales())
	c.MaxSize, c.SegmentSize = 1<<40, 0
	return c
}

// reading64 returns blocks of 64 bytes.
func reading64(n int) []block.Block {
	out := make([]block.Block, n)
	for i := range out {
		data := make([]byte, 64)
		binary.LittleEndian.PutUint64(data[21:], uint64(i))
		out[i] = block.Block{Data: data, Readings: 1, Stamp: block.Stamp{Boot: 1, Mono: time.Duration(i) * time.Second}}
	}
	return out
}

// BenchmarkAppendBatch appends 64-byte blocks, 1,000 a batch, and signs the head
// after each batch; no sync.
func BenchmarkAppendBatch(b *testing.B) {
	cfg := benchConfig(filepath.Join(b.TempDir(), "log"))
	cfg.FS = noSync{durable.OS()}
	cfg.MaxSize = 256 << 20
	l, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	f, err := l.Rekey([32]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	batch := reading64(1000)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, err := l.Append(context.Background(), batch...); err != nil {
			b.Fatal(err)
		}
		if _, _, err := f.Head(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "blocks/s")
}

// BenchmarkAppendDurable appends with 64 writers who each wait until their
// reading is durable, to a real file; beside it, what one fdatasync of a page
// takes in the same directory.
func BenchmarkAppendDurable(b *testing.B) {
	dir := b.TempDir()
	cfg := benchConfig(filepath.Join(dir, "log"))
	cfg.MaxSize = 256 << 20
	l, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	const writers = 64
	sync1 := fdatasyncTime(b, dir)
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			blk := reading64(1)
			for left.Add(-1) >= 0 {
				if _, err := l.Append(context.Background(), blk...); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	rate := float64(b.N) / b.Elapsed().Seconds()
	sync2 := fdatasyncTime(b, dir)
	sync := (sync1 + sync2) / 2
	b.ReportMetric(rate, "readings/s")
	b.ReportMetric(sync.Seconds()*1e6, "µs/fdatasync")
	b.ReportMetric(100*rate/(writers/sync.Seconds()), "%of64/fdatasync")
}

// fdatasyncTime returns the median time of writing and syncing one page of a
// preallocated file.
func fdatasyncTime(b *testing.B, dir string) time.Duration {
	f, err := durable.OS().Create(filepath.Join(dir, "probe"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, storage.PageSize)
	if _, err := f.WriteAt(make([]byte, 256*storage.PageSize), 0); err != nil {
		b.Fatal(err)
	}
	if err := f.Datasync(); err != nil {
		b.Fatal(err)
	}
	var times []time.Duration
	for i := range 256 {
		start := time.Now()
		page[0]++
		if _, err := f.WriteAt(page, int64(i)*storage.PageSize); err != nil {
			b.Fatal(err)
		}
		if err := f.Datasync(); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// BenchmarkDeviceBytes counts what the simulated disk sends to the device, and
// what the files take, for 64-byte readings: in full pages, and as the defaults
// commit them, ten at a time.
func BenchmarkDeviceBytes(b *testing.B) {
	for _, c := range []struct {
		name  string
		batch int
	}{{"full-pages", 4000}, {"default", 10}} {
		b.Run(c.name, func(b *testing.B) {
			disk := faultfs.New(1)
			cfg := benchConfig("/log")
			cfg.FS, cfg.MaxSize = disk, 32<<20
			l, err := Open(cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			batch := reading64(c.batch)
			write := func(n int) (device float64) {
				before := disk.Stats().Written
				for range n / c.batch {
					if _, err := l.Append(context.Background(), batch...); err != nil {
						b.Fatal(err)
					}
				}
				return float64(disk.Stats().Written-before) / float64(n)
			}
			var growing, steady float64
			growing = write(240_000) // while the ring grows, files are made first
			write(240_000)
			for range b.N {
				steady = write(240_000)
			}
			blocks := l.Head().Length - l.Head().First
			b.ReportMetric(growing, "B/reading-growing")
			b.ReportMetric(steady, "B/reading")
			b.ReportMetric(steady*86400/1e6, "MB/day")
			b.ReportMetric(float64(l.Size())/float64(blocks), "B-disk/reading")
		})
	}
}

// BenchmarkProof proves a random block of 1,000,000 with its whole path.
func BenchmarkProof(b *testing.B) {
	cfg := benchConfig(filepath.Join(scratch(b), "log"))
	l, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	appendMany(b, l, 1_000_000)
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		i := rng.Uint64N(1_000_000)
		if _, _, err := l.Proof(merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, 1_000_000, nil)}}); err != nil {
			b.Fatal(err)
		}
	}
}

func appendMany(b testing.TB, l *Log, n int) {
	batch := reading64(1000)
	for range n / len(batch) {
		if _, err := l.Append(context.Background(), batch...); err != nil {
			b.Fatal(err)
		}
	}
}

// hundredMillion makes a log of n 64-byte blocks. Above a million its old
// segments are sparse files with heads and feet only: the tree over them is as
// if all blocks were zeros.
func hundredMillion(b testing.TB, n int) string {
	dir := filepath.Join(scratch(b), "log")
	cfg := benchConfig(dir)
	cfg.FS = noSync{durable.OS()}
	l, err := Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	const real = 1_000_000
	if n > real {
		punch := newPuncher(b, dir)
		for done := 0; done < n-real; done += real {
			appendMany(b, l, min(real, n-real-done))
			punch()
		}
	}
	appendMany(b, l, min(real, n))
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	return dir
}

// newPuncher returns a function that makes holes of the data pages of all
// closed segments: their heads and feet stay.
func newPuncher(b testing.TB, dir string) func() {
	done := map[string]bool{}
	return func() {
		entries, err := os.ReadDir(dir)
		if err != nil {
			b.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".seg") && !done[e.Name()] {
				names = append(names, e.Name())
			}
		}
		slices.Sort(names)
		for _, name := range names[:max(len(names)-2, 0)] {
			punchHole(b, filepath.Join(dir, name))
			done[name] = true
		}
	}
}

// BenchmarkOpen opens a log that was closed in order, and one that was not.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1_000_000, 100_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			dir := hundredMillion(b, n)
			for _, clean := range []bool{true, false} {
				b.Run(map[bool]string{true: "clean", false: "after-a-cut"}[clean], func(b *testing.B) {
					cfg := benchConfig(dir)
					var spent time.Duration
					for range b.N {
						if !clean {
							l, err := Open(cfg)
							if err != nil {
								b.Fatal(err)
							}
							if _, err := l.Append(context.Background(), reading64(1)...); err != nil {
								b.Fatal(err)
							}
							l.Abort()
						}
						start := time.Now()
						l, err := Open(cfg)
						spent += time.Since(start)
						if err != nil {
							b.Fatal(err)
						}
						if l.Recovery().Clean != clean || l.Head().Length < uint64(n) {
							b.Fatalf("%+v", l.Recovery())
						}
						if clean {
							l.Close()
						} else {
							l.Abort()
						}
					}
					b.ReportMetric(spent.Seconds()*1e3/float64(b.N), "ms")
				})
			}
		})
	}
}

const rssVariable = "EDGE_TEST_RSS"

// BenchmarkRSS opens logs of different lengths in a process of their own,
// appends 10,000 blocks, proves 1,000 and reads how much memory it has.
func BenchmarkRSS(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000, 100_000_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			dir := hundredMillion(b, n)
			var worst float64
			b.ResetTimer()
			for range b.N {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), rssVariable+"="+dir)
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err != nil {
					b.Fatal(err)
				}
				bytes, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
				if err != nil {
					b.Fatal(err)
				}
				worst = max(worst, bytes/(1<<20))
			}
			b.ReportMetric(worst, "MiB")
		})
	}
}

// useLog is what BenchmarkRSS does in its own process.
func useLog(dir string) error {
	l, err := Open(benchConfig(dir))
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		if _, err := l.Append(context.Background(), reading64(100)...); err != nil {
			return err
		}
	}
	n := l.Head().Length
	for range 1000 {
		i := n - 1 - rng.Uint64N(min(n, 500_000))
		if _, _, err := l.Proof(merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, n, nil)}}); err != nil {
			return err
		}
	}
	runtime.GC()
	debug.FreeOSMemory()
	if _, err := os.Stdout.WriteString(strconv.FormatInt(rss(nil), 10) + "\n"); err != nil {
		return err
	}
	l.Abort()
	return nil
}
