package feed

import (
	"bufio"
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

var (
	kills = flag.Int("kills", 200, "kill -9 in TestKill")
	years = flag.Float64("years", 1, "simulated years in TestYears")
)

const writerVariable = "EDGE_TEST_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerVariable); dir != "" {
		fmt.Fprintln(os.Stderr, writeUntilKilled(dir))
		os.Exit(1)
	}
	if dir := os.Getenv(rssVariable); dir != "" {
		if err := useLog(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func realConfig(dir string, sales Sales) Config {
	return Config{
		FS: durable.OS(), Dir: dir, MaxSize: 12 * smallSegment, SegmentSize: smallSegment, Name: "air", Encoding: block.Raw,
		Keys: testKeys{1}, Sales: sales, Now: func() block.Stamp { return block.Stamp{Boot: 1} },
	}
}

// writeUntilKilled appends with eight goroutines and says on standard output,
// after each append returned, which block it was and what its sum is.
func writeUntilKilled(dir string) error {
	l, err := Open(realConfig(dir, newSales()))
	if err != nil {
		return err
	}
	failed := make(chan error)
	for n := range 8 {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(n), uint64(time.Now().UnixNano())))
			for {
				data := make([]byte, 21+rng.IntN(300))
				for i := 21; i < len(data); i++ {
					data[i] = byte(rng.Uint32())
				}
				i, err := l.Append(context.Background(), block.Block{Data: data})
				if err != nil {
					failed <- err
					return
				}
				// One write call: it is whole or not there.
				os.Stdout.WriteString(fmt.Sprintf("%d %d\n", i, crc32.ChecksumIEEE(data)))
			}
		}()
	}
	return <-failed
}

// TestKill kills a writing process at random moments; what it acknowledged to
// this process must be in the log.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	rng := rand.New(rand.NewPCG(1, 2))
	acked := map[uint64]uint32{}
	for n := range *kills {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerVariable+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 1 + rng.IntN(400)
		r := bufio.NewScanner(out)
		for i := 0; r.Scan(); i++ {
			if i == lines {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			index, sum, ok := strings.Cut(r.Text(), " ")
			at, err1 := strconv.ParseUint(index, 10, 64)
			crc, err2 := strconv.ParseUint(sum, 10, 32)
			if !ok || err1 != nil || err2 != nil {
				t.Fatalf("kill %d: line %q", n, r.Text())
			}
			if old, ok := acked[at]; ok && old != uint32(crc) {
				t.Fatalf("kill %d: block %d was acknowledged twice", n, at)
			}
			acked[at] = uint32(crc)
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("kill %d: %v", n, err)
		}
		checkAcked(t, dir, acked, n)
	}
	t.Logf("%d kills, the last log has %d blocks to check", *kills, len(acked))
}

// checkAcked opens the log and compares; it forgets what was dropped.
func checkAcked(t *testing.T, dir string, acked map[uint64]uint32, n int) {
	t.Helper()
	l, err := Open(realConfig(dir, newSales()))
	if err != nil {
		t.Fatalf("kill %d: %v", n, err)
	}
	defer l.Abort()
	h := l.Head()
	seen := 0
	if err := l.Range(h.First, h.Length, func(i uint64, _ storage.Weight, data []byte) bool {
		if sum, ok := acked[i]; ok {
			if sum != crc32.ChecksumIEEE(data) {
				t.Fatalf("kill %d: block %d is not what was acknowledged", n, i)
			}
			seen++
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for i := range acked {
		if i < h.First {
			delete(acked, i)
		}
	}
	if seen != len(acked) {
		t.Fatalf("kill %d: %d of %d acknowledged blocks are missing", n, len(acked)-seen, len(acked))
	}
}

// rss returns the resident memory of this process in bytes.
func rss(t testing.TB) int64 {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var total, resident int64
	if _, err := fmt.Sscan(string(b), &total, &resident); err != nil {
		t.Fatal(err)
	}
	return resident * int64(os.Getpagesize())
}

func descriptors(t testing.TB) int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// dirSize returns how many bytes the files in dir have.
func dirSize(t testing.TB, dir string) (total int64) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil { // it may have been renamed meanwhile
			total += info.Size()
		}
	}
	return total
}

// TestYears writes years of one reading a second, in packs of ten, one commit a
// pack, into a log of 64 MiB: memory, disk, descriptors and goroutines stay.
func TestYears(t *testing.T) {
	dir := filepath.Join(scratch(t), "log")
	const maxSize = 64 << 20
	cfg := realConfig(dir, newSales())
	cfg.MaxSize, cfg.SegmentSize = maxSize, 0
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	packs := int(*years * 365.25 * 86400 / 10)
	data := make([]byte, 21+10*24)
	stamp := block.Stamp{Boot: 1}
	const parts = 10
	var peak [parts]int64 // RSS in each tenth of the time
	var maxDisk int64
	var baseFD, baseGo int
	for n := range packs {
		stamp.Mono += 10 * time.Second
		binary.LittleEndian.PutUint64(data[21:], uint64(n))
		if _, err := l.Append(context.Background(), block.Block{Data: data, Stamp: stamp, Readings: 10}); err != nil {
			t.Fatal(err)
		}
		if n == packs/parts { // the ring is full by now
			baseFD, baseGo = descriptors(t), runtime.NumGoroutine()
		}
		if n%1000 == 0 {
			maxDisk = max(maxDisk, dirSize(t, dir))
			peak[n*parts/packs] = max(peak[n*parts/packs], rss(t))
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	early, late := slices.Max(peak[1:4]), slices.Max(peak[parts-3:])
	t.Logf("%.1f years: %d blocks, first kept %d; RSS at most %.1f MiB early, %.1f MiB late; disk at most %.1f of %d MiB",
		*years, packs, l.st.First(), float64(early)/(1<<20), float64(late)/(1<<20), float64(maxDisk)/(1<<20), maxSize>>20)
	if l.st.First() == 0 {
		t.Error("nothing was dropped: the test is too short")
	}
	if maxDisk > maxSize {
		t.Errorf("%d bytes on the disk", maxDisk)
	}
	if late > early+early/20+(1<<20) {
		t.Errorf("RSS grew from %d to %d: %v", early, late, peak)
	}
	if d, g := descriptors(t), runtime.NumGoroutine(); d > baseFD || g > baseGo {
		t.Errorf("%d descriptors, were %d; %d goroutines, were %d", d, baseFD, g, baseGo)
	}
}

// scratch returns a directory in memory, where there is one: TestYears is about
// sizes, not about a disk.
func scratch(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "edge")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
