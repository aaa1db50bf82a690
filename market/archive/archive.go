// Package archive is the directory in which a buyer keeps what it must not forget
// of a feed: who it is, the newest head with its signature, how far its output
// is, and the newest blocks, to return them to a seller that lost them.
//
// # Files
//
//	buyer.key    the seed of the buyer's key in hex, mode of a secret
//	state.json   everything else but blocks, replaced as a whole
//	tail-N       a part of the tail, number N ever: each block as LE32 length,
//	             LE32 CRC32C of length and bytes, bytes
//
// The tail is synced before the state that speaks of it. What no state speaks of
// is removed, and a part of which one does is never written over.
package archive

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
)

// Names in the directory.
const (
	lockName  = "LOCK"
	keyName   = "buyer.key"
	stateName = "state.json"
	tailName  = "tail-"
)

// ErrCorrupt says that the directory is not as it was written. Removing it
// begins anew, as a new buyer.
var ErrCorrupt = errors.New("archive: damaged")

// State is what is kept besides blocks and the key.
type State struct {
	// Feed is the feed's key, Generation its number.
	Feed       merkle.Hash
	Generation uint64
	Kept       replicate.Kept
	// Output is how far the output is that belongs to Kept.Cursor, and Mark what
	// it is known by.
	Output int64
	Mark   string
	// Seller is whose feed it is.
	Seller [32]byte
}

// Archive is an open directory. Its methods are called one at a time.
type Archive struct {
	fsys    durable.FS
	dir     string
	lock    io.Closer
	key     ed25519.PrivateKey
	state   *State
	parts   []*part  // oldest first
	next    uint64   // number of the next part
	garbage []string // files that the saved state may speak of, and the next does not
}

// part is a file of the tail.
type part struct {
	name    string
	file    durable.File
	first   uint64
	offsets []uint32 // where each block's record begins
	size    int64    // with what is in buf
	buf     []byte   // not yet written
	dirty   bool     // written and not yet synced
}

const headSize = 8

// Open opens the directory, and makes it and a new key if need be. It fails with
// durable.ErrLocked while another process has it open.
func Open(fsys durable.FS, dir string) (a *Archive, err error) {
	if err := fsys.Mkdir(dir); err != nil {
		return nil, err
	}
	a = &Archive{fsys: fsys, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if a.lock, err = fsys.Lock(path.Join(dir, lockName)); err != nil {
		return a, err
	}
	if err := a.loadKey(); err != nil {
		return a, err
	}
	parts, err := a.loadState()
	if err != nil {
		return a, err
	}
	return a, a.openTail(parts)
}

func (a *Archive) loadKey() error {
	name := path.Join(a.dir, keyName)
	b, err := durable.ReadFile(a.fsys, name, 1024)
	if errors.Is(err, fs.ErrNotExist) {
		_, a.key, err = ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		return durable.WriteFile(a.fsys, name, []byte(hex.EncodeToString(a.key.Seed())+"\n"))
	} else if err != nil {
		return err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return fmt.Errorf("%w: %s is no key", ErrCorrupt, name)
	}
	a.key = ed25519.NewKeyFromSeed(seed)
	return nil
}

// Key returns the buyer's key.
func (a *Archive) Key() ed25519.PrivateKey { return a.key }

// State returns what was saved last, nil if nothing was.
func (a *Archive) State() *State { return a.state }

// Close closes the directory. What was not saved is forgotten.
func (a *Archive) Close() (err error) {
	for _, p := range a.parts {
		err = errors.Join(err, p.file.Close())
	}
	a.parts = nil
	if a.lock != nil {
		err = errors.Join(err, a.lock.Close())
	}
	return err
}

var table = crc32.MakeTable(crc32.Castagnoli)

// openTail reads the parts that the state speaks of and removes the others.
func (a *Archive) openTail(parts []filePart) error {
	names, err := a.fsys.ReadDir(a.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		n, ok := partNumber(name)
		if !ok {
			continue
		}
		a.next = max(a.next, n+1)
		if slices.ContainsFunc(parts, func(p filePart) bool { return p.File == name }) {
			continue
		}
		if err := a.fsys.Remove(path.Join(a.dir, name)); err != nil {
			return err
		}
	}
	for i, p := range parts {
		end := a.state.Kept.Cursor
		if i+1 < len(parts) {
			end = parts[i+1].First
		}
		if _, ok := partNumber(p.File); ok {
			err = a.openPart(p.File, p.First, end)
		} else {
			err = fmt.Errorf("%w: %s: %q is no part", ErrCorrupt, stateName, p.File)
		}
		if err != nil {
			// Without its blocks a tail is of no use; the feed goes on.
			for _, p := range a.parts {
				p.file.Close() //nolint:errcheck // nothing was written
			}
			a.parts, a.state.Kept.Parts = nil, nil
			for _, p := range parts {
				a.garbage = append(a.garbage, path.Join(a.dir, path.Base(p.File)))
			}
			return nil
		}
	}
	return nil
}

// partNumber returns the number of a part with this name.
func partNumber(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, tailName)
	n, err := strconv.ParseUint(digits, 10, 53)
	return n, ok && err == nil && strconv.FormatUint(n, 10) == digits
}

// openPart reads the blocks [first, end).
func (a *Archive) openPart(name string, first, end uint64) error {
	p := &part{name: path.Join(a.dir, name), first: first}
	var err error
	if p.file, err = a.fsys.Open(p.name); err != nil {
		return err
	}
	a.parts = append(a.parts, p)
	for i := first; i < end; i++ {
		data, err := p.read(p.size)
		if err != nil {
			return err
		}
		p.offsets = append(p.offsets, uint32(p.size))
		p.size += headSize + int64(len(data))
	}
	return nil
}

// maxBlock bounds a record.
const maxBlock = 16 << 20

// read returns the block whose record is at this place.
func (p *part) read(at int64) ([]byte, error) {
	var head [headSize]byte
	if _, err := p.file.ReadAt(head[:], at); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxBlock {
		return nil, ErrCorrupt
	}
	data := make([]byte, n)
	if _, err := p.file.ReadAt(data, at+headSize); err != nil && !(err == io.EOF && n == 0) {
		return nil, err
	}
	if sum(data) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, fmt.Errorf("%w: %s at %d", ErrCorrupt, p.name, at)
	}
	return data, nil
}

// sum is the checksum of a block with its length; that of none is not zero.
func sum(data []byte) uint32 {
	head := binary.LittleEndian.AppendUint32(nil, uint32(len(data)))
	return crc32.Update(crc32.Checksum(head, table), table, data)
}

// bufferSize is how much of a part waits in memory.
const bufferSize = 64 << 10

// flush writes what waits.
func (p *part) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	p.dirty = true
	if _, err := p.file.WriteAt(p.buf, p.size-int64(len(p.buf))); err != nil {
		return err // what waits still does
	}
	p.buf = p.buf[:0]
	return nil
}

// Begin implements replicate.Store.
func (a *Archive) Begin(i uint64) error {
	for n := len(a.parts); n > 0 && a.parts[n-1].first >= i; n-- {
		p := a.parts[n-1]
		a.parts = a.parts[:n-1]
		if err := a.discard(p); err != nil {
			return err
		}
	}
	if n := len(a.parts); n > 0 {
		p := a.parts[n-1]
		if err := p.flush(); err != nil {
			return err
		}
		p.buf = nil
		if k := i - p.first; k < uint64(len(p.offsets)) {
			p.size, p.offsets = int64(p.offsets[k]), p.offsets[:k]
		}
	}
	p := &part{name: path.Join(a.dir, tailName+strconv.FormatUint(a.next, 10)), first: i}
	a.next++
	var err error
	if p.file, err = a.fsys.Create(p.name); err != nil {
		return err
	}
	a.parts = append(a.parts, p)
	return nil
}

// Append implements replicate.Store.
func (a *Archive) Append(i uint64, data []byte) error {
	if len(a.parts) == 0 {
		return fmt.Errorf("archive: block %d: no part was begun", i)
	}
	p := a.parts[len(a.parts)-1]
	if i != p.first+uint64(len(p.offsets)) {
		return fmt.Errorf("archive: block %d does not follow", i)
	}
	p.offsets = append(p.offsets, uint32(p.size))
	p.buf = binary.LittleEndian.AppendUint32(p.buf, uint32(len(data)))
	p.buf = binary.LittleEndian.AppendUint32(p.buf, sum(data))
	p.buf = append(p.buf, data...)
	p.size += headSize + int64(len(data))
	if len(p.buf) >= bufferSize {
		return p.flush()
	}
	return nil
}

// Next implements replicate.Store.
func (a *Archive) Next() uint64 {
	if len(a.parts) == 0 {
		return 0
	}
	p := a.parts[len(a.parts)-1]
	return p.first + uint64(len(p.offsets))
}

// Block implements replicate.Store.
func (a *Archive) Block(i uint64) ([]byte, error) {
	for _, p := range slices.Backward(a.parts) {
		if i < p.first {
			continue
		}
		if k := i - p.first; k < uint64(len(p.offsets)) {
			if err := p.flush(); err != nil {
				return nil, err
			}
			return p.read(int64(p.offsets[k]))
		}
		break
	}
	return nil, fmt.Errorf("archive: block %d is not there", i)
}

// Drop implements replicate.Store.
func (a *Archive) Drop(i uint64) (err error) {
	for len(a.parts) > 1 && a.parts[0].first < i {
		p := a.parts[0]
		a.parts = slices.Delete(a.parts, 0, 1)
		err = errors.Join(err, a.discard(p))
	}
	return err
}

// discard closes a part, to be removed when no saved state speaks of it any more.
func (a *Archive) discard(p *part) error {
	a.garbage = append(a.garbage, p.name)
	return p.file.Close()
}

// sync makes the tail durable.
func (a *Archive) sync() error {
	for _, p := range a.parts {
		if err := p.flush(); err != nil {
			return err
		}
		if !p.dirty {
			continue
		}
		if err := p.file.Datasync(); err != nil {
			return err
		}
		p.dirty = false
	}
	return a.fsys.SyncDir(a.dir)
}
