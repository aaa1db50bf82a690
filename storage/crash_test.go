package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/faultfs"
	"dazaar-edge/storage/page"
)

var crashPoints = flag.Int("crashpoints", 20_000, "simulated crash points in TestCrash")

// chain is the simplest owner: a running hash.
type chain struct {
	sum, saved [32]byte
}

func (c *chain) Restore(_ uint64, state, _ []byte, _ uint64) error {
	c.sum = [32]byte{}
	copy(c.sum[:], state)
	c.saved = c.sum
	return nil
}
func (c *chain) add(data []byte) { c.sum = sha256.Sum256(append(c.sum[:], data...)) }
func (c *chain) Replay(_ uint64, data []byte) error {
	c.add(data)
	return nil
}
func (c *chain) Keys(_ uint64, data []byte) [2]uint64 { return keysOf(data) }
func (c *chain) Digest() [32]byte                     { return c.sum }
func (c *chain) State() []byte                        { return c.sum[:] }
func (c *chain) Summary(int, bool) []byte             { return nil }
func (c *chain) Started(uint64)                       {}
func (c *chain) Committed()                           { c.saved = c.sum }
func (c *chain) RolledBack()                          { c.sum = c.saved }
func (c *chain) Dropping(uint64)                      {}

// keysOf makes the number of a test block its first key.
func keysOf(data []byte) (k [2]uint64) {
	if len(data) >= 8 {
		k[0] = binary.LittleEndian.Uint64(data)
	}
	return k
}

// testBlock is the content of the n-th block that a test ever made.
func testBlock(n uint64, size int) []byte {
	b := make([]byte, size)
	if size >= 8 {
		binary.LittleEndian.PutUint64(b, n)
	}
	for i := 8; i < size; i++ {
		b[i] = byte(n) + byte(i)*7
	}
	return b
}

// bench is a log under test with what it must hold.
type bench struct {
	t       testing.TB
	rng     *rand.Rand
	disk    *faultfs.Disk
	cfg     Config
	log     *Log
	owner   *chain
	made    uint64
	acked   [][]byte // by index; nil once it may be dropped
	tried   map[uint64][][]byte
	marks   map[string]byte   // durable
	setting map[string][]byte // values set since
}

func newBench(t testing.TB, seed uint64, maxSize int64) *bench {
	b := &bench{
		t: t, rng: rand.New(rand.NewPCG(seed, 2)), disk: faultfs.New(seed), tried: map[uint64][][]byte{},
		marks: map[string]byte{}, setting: map[string][]byte{},
	}
	b.cfg = Config{FS: b.disk, Dir: "/log", MaxSize: maxSize, SegmentSize: page.MinPages * page.Size, Rand: rand.NewChaCha8([32]byte{byte(seed)})}
	return b
}

func (b *bench) open() error {
	b.owner = &chain{}
	b.cfg.Owner = b.owner
	var err error
	b.log, err = Open(b.cfg)
	return err
}

func (b *bench) size() int {
	switch b.rng.IntN(12) {
	case 0:
		return 0
	case 1:
		return b.rng.IntN(9000)
	case 2:
		if b.rng.IntN(4) == 0 {
			return 8 + b.rng.IntN(b.log.MaxBlock()-8)
		}
	}
	return 8 + b.rng.IntN(200)
}

// step appends some blocks and commits. It reports whether that worked.
func (b *bench) step() error {
	for range 1 + b.rng.IntN(12) {
		data := testBlock(b.made, b.size())
		b.made++
		before := b.log.Length()
		i, err := b.log.Append(Record{Data: data, Weight: Weight{Readings: uint64(b.rng.IntN(3)), Span: uint64(b.rng.IntN(2)) * 1000}, Keys: keysOf(data)})
		b.commitTried(before)
		if err != nil {
			return err
		}
		b.owner.add(data)
		b.tried[i] = append(b.tried[i], data)
	}
	if b.rng.IntN(3) == 0 {
		key, v := fmt.Sprint("m", b.rng.IntN(30)), byte(b.rng.Uint32())
		if err := b.log.SetMark(key, []byte{v}); err != nil {
			return err
		}
		b.setting[key] = append(b.setting[key], v)
	}
	before := b.log.Length()
	err := b.log.Commit()
	b.commitTried(before)
	if err == nil {
		for k, v := range b.setting {
			b.marks[k] = v[len(v)-1]
		}
		clear(b.setting)
	}
	return err
}

// commitTried takes over what became committed since the length was before.
func (b *bench) commitTried(before uint64) {
	now := b.log.Length()
	for i := before; i < now; i++ {
		all := b.tried[i]
		b.acked = append(b.acked, all[len(all)-1])
	}
	if now > before {
		clear(b.tried)
	}
}

// check compares the log with what was acknowledged.
func (b *bench) check() error {
	length := b.log.Length()
	if length < uint64(len(b.acked)) {
		return fmt.Errorf("%d blocks acknowledged, %d there", len(b.acked), length)
	}
	first := b.log.First()
	want := first
	err := b.log.Range(first, length, func(i uint64, w Weight, data []byte) bool {
		if i != want {
			return false
		}
		want++
		if i < uint64(len(b.acked)) {
			return bytes.Equal(data, b.acked[i])
		}
		for _, t := range b.tried[i] { // not acknowledged, but whole
			if bytes.Equal(t, data) {
				b.acked = append(b.acked, t)
				return true
			}
		}
		return false
	})
	if err != nil {
		return err
	}
	if want != length || uint64(len(b.acked)) != length {
		return fmt.Errorf("block %d of %d is not what was appended", want-1, length)
	}
	clear(b.tried)
	return b.checkMarks()
}

// checkMarks compares the marks with what was set, and takes them over.
func (b *bench) checkMarks() error {
	for k, v := range b.marks {
		if got := b.log.Mark(k); len(got) != 1 || got[0] != v && !bytes.Contains(b.setting[k], got) {
			return fmt.Errorf("mark %s is %v, want %d", k, got, v)
		}
	}
	b.marks = map[string]byte{}
	b.log.Marks(func(k string, v []byte) bool { b.marks[k] = v[0]; return true })
	clear(b.setting)
	return nil
}

// fault makes one random call from now on fail, or all calls for a while.
func (b *bench) fault() {
	kinds := []error{syscall.EIO, syscall.ENOSPC, io.ErrShortWrite}
	kind, from, n := kinds[b.rng.IntN(3)], b.disk.Stats().Calls+b.rng.IntN(30), 1+b.rng.IntN(3)
	b.disk.Fail(func(call int, op, name string) error {
		if call < from || call >= from+n {
			return nil
		}
		if op != "write" && errors.Is(kind, io.ErrShortWrite) {
			return syscall.EIO
		}
		return kind
	})
}

// crash runs the log into one crash and opens it again.
func (b *bench) crash() error {
	b.disk.CutAfter(1 + b.rng.IntN(60))
	if b.rng.IntN(3) == 0 {
		b.fault()
	}
	for !b.disk.Off() {
		if b.log == nil {
			if b.open() != nil {
				b.log = nil // a fault hit it; it is tried again
			} else if err := b.check(); err != nil {
				return err
			}
			continue
		}
		if b.rng.IntN(40) == 0 {
			_ = b.log.Close() // a fault may hit it
			b.log = nil
			continue
		}
		if b.rng.IntN(60) == 0 {
			if _, err := b.log.Drop(); err != nil && !b.disk.Off() && !errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ENOSPC) {
				return err
			}
		}
		if err := b.step(); err != nil && !b.disk.Off() &&
			!errors.Is(err, syscall.EIO) && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, io.ErrShortWrite) {
			return err
		}
	}
	b.disk.Fail(nil)
	if b.log != nil {
		b.log.Abort()
	}
	if b.rng.IntN(4) == 0 {
		b.disk.Kill()
	} else {
		b.disk.Reboot()
	}
	if err := b.open(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if d := b.log.Recovery().Damaged; len(d) > 0 {
		return fmt.Errorf("honest disk, but %v set aside", d)
	}
	if used := b.disk.Stats().MaxUsed; used > b.cfg.MaxSize {
		return fmt.Errorf("%d bytes on the disk, at most %d", used, b.cfg.MaxSize)
	}
	return b.check()
}

// TestCrash cuts the power at random calls and checks that nothing
// acknowledged is lost.
func TestCrash(t *testing.T) {
	const perSeed = 100
	for seed := range uint64(*crashPoints / perSeed) {
		b := newBench(t, seed, 7*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		for n := range perSeed {
			if err := b.crash(); err != nil {
				t.Fatalf("seed %d, crash %d: %v", seed, n, err)
			}
		}
		b.log.Abort()
	}
}

var _ durable.FS = (*faultfs.Disk)(nil)

// sabotage is a file system with a fault in it that TestCrash must find.
type sabotage struct {
	durable.FS
	noSync  bool // fdatasync does nothing
	inPlace bool // the tail is rewritten in one place instead of two in turn
}

type sabotagedFile struct {
	durable.File
	s sabotage
}

func (s sabotage) Open(name string) (durable.File, error)   { return s.wrap(s.FS.Open(name)) }
func (s sabotage) Create(name string) (durable.File, error) { return s.wrap(s.FS.Create(name)) }
func (s sabotage) wrap(f durable.File, err error) (durable.File, error) {
	return sabotagedFile{f, s}, err
}

func (f sabotagedFile) Datasync() error {
	if f.s.noSync {
		return nil
	}
	return f.File.Datasync()
}

func (f sabotagedFile) place(off int64) int64 {
	if f.s.inPlace && off == (slotPage+1)*page.Size {
		return slotPage * page.Size
	}
	return off
}

func (f sabotagedFile) WriteAt(b []byte, off int64) (int, error) {
	return f.File.WriteAt(b, f.place(off))
}

func (f sabotagedFile) ReadAt(b []byte, off int64) (int, error) {
	return f.File.ReadAt(b, f.place(off))
}

// TestCrashFindsFaults proves that TestCrash can fail: without the sync, and
// with the only copy of acknowledged bytes rewritten in place, it does.
func TestCrashFindsFaults(t *testing.T) {
	for name, s := range map[string]sabotage{"no fdatasync": {noSync: true}, "rewritten in place": {inPlace: true}} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1, 7*page.MinPages*page.Size)
			s.FS = b.disk
			b.cfg.FS = s
			if err := b.open(); err != nil {
				t.Fatal(err)
			}
			for range 1000 {
				if err := b.crash(); err != nil {
					t.Log("found:", err)
					return
				}
			}
			t.Fatal("1000 crashes did not show the fault")
		})
	}
}
