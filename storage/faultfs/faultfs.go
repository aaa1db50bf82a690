// Package faultfs is a simulated disk for tests: a [durable.FS] in memory whose
// writes stay in a cache until they are synced, and which can lose power, fail
// any call, or lie about having synced. One seed replays everything.
//
// # The model
//
//   - A write changes what readers see at once. The device gets it at the next
//     Datasync of that file, in units of 512-byte sectors.
//   - At a power cut every sector that was written and not synced holds, at
//     random, its old content or that of any write since: writes are lost,
//     reordered and torn, whole pages of 4 KiB more often than single sectors.
//   - Directory changes reach the device in order; a power cut keeps a random
//     number of those since the last SyncDir. A new size lasts with the sync of
//     the file; a file that grew unsynced keeps a random one of both sizes.
//   - A failed Datasync leaves a random part of the sectors on the device and
//     marks all of them clean: readers still see the new content, [File.Forget]
//     shows what is really there.
//   - With [Disk.Lie], Datasync and SyncDir return nil and do nothing.
package faultfs

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"syscall"

	"dazaar-edge/storage/durable"
)

const (
	sectorSize = 512
	pageSize   = 4096
)

// ErrPower is returned by every call after the power went.
var ErrPower = fmt.Errorf("faultfs: power cut: %w", syscall.ENXIO)

var errNoSpace error = syscall.ENOSPC

// Disk is a simulated disk with one file system. Safe for concurrent use.
type Disk struct {
	mu  sync.Mutex
	rng *rand.Rand // guarded by mu, like all below

	names   map[string]*inode // what readers see
	durable map[string]*inode // what a power cut leaves
	dirLog  []dirOp           // in order, not yet in durable
	dirs    map[string]bool
	locked  map[string]bool

	Trace   func(string)
	calls   int
	cutAt   int
	off     bool
	fail    func(call int, op, name string) error
	unread  func(name string, off int64, n int) bool
	lie     bool
	space   int64 // capacity in bytes, 0 = unlimited
	used    int64
	maxUsed int64
	written int64
	syncs   int
}

type dirOp struct {
	dir, from, to string // from "" creates, to "" removes
	node          *inode
}

type inode struct {
	cache   []byte
	device  []byte
	dirty   map[int64][][]byte // sector -> versions since the last sync
	pages   map[int64]bool     // dirty pages, for counting
	resized bool
}

// New returns an empty disk whose faults follow seed.
func New(seed uint64) *Disk {
	return &Disk{
		rng: rand.New(rand.NewPCG(seed, 0x0d15c)), names: map[string]*inode{}, durable: map[string]*inode{},
		dirs: map[string]bool{}, locked: map[string]bool{},
	}
}

// CutAfter makes the power go before the n-th call from now.
func (d *Disk) CutAfter(n int) { d.mu.Lock(); d.cutAt = d.calls + n; d.mu.Unlock() }

// Fail makes f decide, for every call that changes or syncs something, whether
// it fails, and how: syscall.EIO, ENOSPC, or io.ErrShortWrite for a write that
// stops halfway. nil ends it.
func (d *Disk) Fail(f func(call int, op, name string) error) {
	d.mu.Lock()
	d.fail = f
	d.mu.Unlock()
}

// FailReads makes every read fail with EIO for which f is true. nil ends it.
func (d *Disk) FailReads(f func(name string, off int64, n int) bool) {
	d.mu.Lock()
	d.unread = f
	d.mu.Unlock()
}

// Lie makes syncs do nothing and claim success.
func (d *Disk) Lie(on bool) { d.mu.Lock(); d.lie = on; d.mu.Unlock() }

// SetSpace sets the capacity in bytes; 0 is unlimited.
func (d *Disk) SetSpace(n int64) { d.mu.Lock(); d.space = n; d.mu.Unlock() }

// Stats are counters since New.
type Stats struct {
	Calls   int   // calls that change or sync something
	Syncs   int   // Datasync calls that reached the device
	Written int64 // bytes sent to the device, in whole pages of 4 KiB
	Used    int64 // bytes in files now
	MaxUsed int64 // the most at any moment
}

// Stats returns the counters.
func (d *Disk) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	return Stats{Calls: d.calls, Syncs: d.syncs, Written: d.written, Used: d.used, MaxUsed: d.maxUsed}
}

// ResetMaxUsed makes MaxUsed start again from what is used now.
func (d *Disk) ResetMaxUsed() { d.mu.Lock(); d.maxUsed = d.used; d.mu.Unlock() }

// PowerOff cuts the power now.
func (d *Disk) PowerOff() { d.mu.Lock(); d.off = true; d.mu.Unlock() }

// Off tells whether the power is off.
func (d *Disk) Off() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.off }

// Reboot ends a power cut: what was not synced is lost, kept or mixed. Locks
// are free again.
func (d *Disk) Reboot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.dirLog); n > 0 {
		d.applyDir(d.rng.IntN(n + 1))
	}
	d.dirLog = nil
	d.names = map[string]*inode{}
	seen := map[*inode]bool{}
	d.used = 0
	for _, name := range sortedKeys(d.durable) {
		n := d.durable[name]
		if !seen[n] {
			seen[n] = true
			d.settle(n)
			d.used += int64(len(n.cache))
		}
		d.names[name] = n
	}
	d.maxUsed = max(d.maxUsed, d.used)
	d.locked = map[string]bool{}
	d.off, d.cutAt = false, 0
}

// Kill ends the process and keeps the machine: all writes stay, locks go.
func (d *Disk) Kill() {
	d.mu.Lock()
	d.locked = map[string]bool{}
	d.off, d.cutAt = false, 0
	d.mu.Unlock()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// settle decides what of the unsynced sectors of n reached the device.
func (d *Disk) settle(n *inode) {
	if n.resized && d.rng.IntN(2) == 0 {
		n.device = resize(n.device, len(n.cache))
	}
	sectors := make([]int64, 0, len(n.dirty))
	for s := range n.dirty {
		sectors = append(sectors, s)
	}
	slices.Sort(sectors)
	keepAll, keepNone := d.rng.IntN(8) == 0, d.rng.IntN(8) == 0
	byPage := d.rng.IntN(4) > 0 // whole pages, mostly: else one survives too seldom
	page, fate := int64(-1), 0
	for _, s := range sectors {
		versions := n.dirty[s]
		pick := d.rng.IntN(len(versions) + 1) // 0 is the old content
		if p := s * sectorSize / pageSize; p != page {
			page, fate = p, d.rng.IntN(5)
		}
		if byPage && fate < 4 {
			pick = fate % 2 * len(versions)
		}
		if keepAll {
			pick = len(versions)
		} else if keepNone {
			pick = 0
		}
		if pick > 0 && s*sectorSize < int64(len(n.device)) {
			copy(n.device[s*sectorSize:], versions[pick-1])
		}
	}
	n.cache = slices.Clone(n.device)
	n.clean()
}

func (n *inode) clean() { clear(n.dirty); clear(n.pages); n.resized = false }

func resize(b []byte, n int) []byte {
	if n <= len(b) {
		return b[:n]
	}
	return append(b, make([]byte, n-len(b))...)
}

// begin counts a call and decides whether it happens.
func (d *Disk) begin(op, name string) error {
	if d.off {
		return ErrPower
	}
	d.calls++
	if d.cutAt > 0 && d.calls >= d.cutAt {
		d.off = true
		return ErrPower
	}
	if d.fail != nil {
		if err := d.fail(d.calls, op, name); err != nil {
			return err
		}
	}
	return nil
}

// do runs one call that changes or syncs something.
func (d *Disk) do(op, name string, f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := d.begin(op, name)
	if err == nil {
		err = f()
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

// Create implements [durable.FS].
func (d *Disk) Create(name string) (durable.File, error) {
	name = path.Clean(name)
	err := d.do("create", name, func() error {
		if n := d.names[name]; n != nil {
			d.used -= int64(len(n.cache))
			n.cache, n.resized = nil, true
			clear(n.dirty)
			return nil
		}
		n := &inode{dirty: map[int64][][]byte{}, pages: map[int64]bool{}}
		d.names[name] = n
		d.logDir(dirOp{dir: path.Dir(name), to: name, node: n})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d.handle(name)
}

func (d *Disk) handle(name string) (durable.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name = path.Clean(name)
	if d.off {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrPower}
	}
	n := d.names[name]
	if n == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &file{d: d, n: n, name: name}, nil
}

// Open implements [durable.FS].
func (d *Disk) Open(name string) (durable.File, error) { return d.handle(name) }

// OpenRead implements [durable.FS].
func (d *Disk) OpenRead(name string) (durable.File, error) { return d.handle(name) }

// logDir records a directory change; a lying disk never forgets to.
func (d *Disk) logDir(op dirOp) { d.dirLog = append(d.dirLog, op) }

// applyDir makes the first n pending directory changes durable.
func (d *Disk) applyDir(n int) {
	for _, op := range d.dirLog[:n] {
		if op.from != "" {
			delete(d.durable, op.from)
		}
		if op.to != "" {
			d.durable[op.to] = op.node
		}
	}
	d.dirLog = slices.Clone(d.dirLog[n:])
}

// Rename implements [durable.FS].
func (d *Disk) Rename(from, to string) error {
	from, to = path.Clean(from), path.Clean(to)
	return d.do("rename", from, func() error {
		n := d.names[from]
		if n == nil {
			return fs.ErrNotExist
		}
		if old := d.names[to]; old != nil {
			d.used -= int64(len(old.cache))
		}
		delete(d.names, from)
		d.names[to] = n
		d.logDir(dirOp{dir: path.Dir(to), from: from, to: to, node: n})
		return nil
	})
}

// Remove implements [durable.FS].
func (d *Disk) Remove(name string) error {
	name = path.Clean(name)
	return d.do("remove", name, func() error {
		n := d.names[name]
		if n == nil {
			return fs.ErrNotExist
		}
		d.used -= int64(len(n.cache))
		delete(d.names, name)
		d.logDir(dirOp{dir: path.Dir(name), from: name})
		return nil
	})
}

// ReadDir implements [durable.FS].
func (d *Disk) ReadDir(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir = path.Clean(dir)
	if d.off {
		return nil, ErrPower
	}
	if !d.dirs[dir] {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: fs.ErrNotExist}
	}
	var out []string
	for _, name := range sortedKeys(d.names) {
		if path.Dir(name) == dir {
			out = append(out, path.Base(name))
		}
	}
	return out, nil
}

// Mkdir implements [durable.FS].
func (d *Disk) Mkdir(dir string) error {
	return d.do("mkdir", dir, func() error { d.dirs[path.Clean(dir)] = true; return nil })
}

// SyncDir implements [durable.FS].
func (d *Disk) SyncDir(dir string) error {
	return d.do("syncdir", dir, func() error {
		if !d.lie {
			d.applyDir(len(d.dirLog))
		}
		return nil
	})
}

// Lock implements [durable.FS].
func (d *Disk) Lock(name string) (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.locked[name] {
		return nil, fmt.Errorf("%w: %s", durable.ErrLocked, name)
	}
	d.locked[name] = true
	return unlocker{d, name}, nil
}

type unlocker struct {
	d    *Disk
	name string
}

func (u unlocker) Close() error {
	u.d.mu.Lock()
	delete(u.d.locked, u.name)
	u.d.mu.Unlock()
	return nil
}

// Flip inverts one bit of a file, in the cache and on the device.
func (d *Disk) Flip(name string, bit int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[path.Clean(name)]
	n.cache[bit/8] ^= 1 << (bit % 8)
	if int(bit/8) < len(n.device) {
		n.device[bit/8] ^= 1 << (bit % 8)
	}
}

// Clone returns a disk with what readers see now, durable: an image of the card.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := New(0)
	for name, n := range d.names {
		copied := &inode{cache: slices.Clone(n.cache), device: slices.Clone(n.cache), dirty: map[int64][][]byte{}, pages: map[int64]bool{}}
		c.names[name], c.durable[name] = copied, copied
		c.used += int64(len(n.cache))
	}
	for dir := range d.dirs {
		c.dirs[dir] = true
	}
	return c
}
