package feed

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// maxTiles is how many nodes of the lowest stored level a segment keeps. Below
// it, nodes are computed again from the blocks of one tile: about 8 KiB in a
// full segment of 4 MiB, whatever the size of the blocks.
const maxTiles = 512

// levels is the number of levels a tree can have.
const levels = merkle.MaxRoots + 1

// tile is a stored node; its index follows from its place.
type tile struct {
	size uint64
	hash merkle.Hash
}

const tileSize = 8 + merkle.HashSize

// tiles are the stored nodes of one segment: those that end in it, from level
// low on, by level and place.
type tiles struct {
	first uint64 // first block of the segment
	low   uint
	at    [levels][]tile
}

// count returns how many nodes of a level end in the blocks [first, end).
func count(first, end uint64, level uint) int { return int(end>>level - first>>level) }

func (t *tiles) start(first uint64) {
	*t = tiles{first: first}
}

func (t *tiles) add(n merkle.Node) {
	level := merkle.Level(n.Index)
	if level < t.low {
		return
	}
	t.at[level] = append(t.at[level], tile{n.Size, n.Hash})
	if level == t.low && len(t.at[level]) > maxTiles {
		t.at[level] = nil
		t.low++
	}
}

// cut takes back all nodes that end behind end.
func (t *tiles) cut(end uint64) {
	for level := t.low; level < levels; level++ {
		if n := count(t.first, end, level); n < len(t.at[level]) {
			t.at[level] = t.at[level][:n:n]
		}
	}
}

// find returns a stored node that ends in the segment.
func (t *tiles) find(x uint64) (merkle.Node, bool) {
	level := merkle.Level(x)
	first, _ := merkle.Span(x)
	i := first>>level - t.first>>level
	if level < t.low || i >= uint64(len(t.at[level])) {
		return merkle.Node{}, false
	}
	n := t.at[level][i]
	return merkle.Node{Index: x, Size: n.size, Hash: n.hash}, true
}

// encode appends the levels from low on that fit into room bytes: the lowest
// level, then all nodes from that level up.
func (t *tiles) encode(b []byte, room int) []byte {
	low := t.low
	total := 0
	for level := low; level < levels; level++ {
		total += len(t.at[level])
	}
	for total*tileSize+1 > room && low < levels-1 {
		total -= len(t.at[low])
		low++
	}
	b = append(b, byte(low))
	for level := low; level < levels; level++ {
		for _, n := range t.at[level] {
			b = binary.LittleEndian.AppendUint64(b, n.size)
			b = append(b, n.hash[:]...)
		}
	}
	return b
}

// parseTiles decodes what encode wrote for the blocks [first, end).
func parseTiles(b []byte, first, end uint64) (t *tiles, rest []byte, err error) {
	if len(b) == 0 || b[0] >= levels {
		return nil, nil, fmt.Errorf("%w: tree summary", storage.ErrCorrupt)
	}
	t = &tiles{first: first, low: uint(b[0])}
	b = b[1:]
	for level := t.low; level < levels; level++ {
		n := count(first, end, level)
		if n < 0 || n > len(b)/tileSize {
			return nil, nil, fmt.Errorf("%w: tree summary", storage.ErrCorrupt)
		}
		if n == 0 {
			continue
		}
		t.at[level] = make([]tile, n)
		for i := range t.at[level] {
			t.at[level][i].size = binary.LittleEndian.Uint64(b)
			copy(t.at[level][i].hash[:], b[8:])
			b = b[tileSize:]
		}
	}
	return t, b, nil
}

// encodeRoots appends size and hash of each root.
func encodeRoots(b []byte, roots []merkle.Node) []byte {
	for _, r := range roots {
		b = binary.LittleEndian.AppendUint64(b, r.Size)
		b = append(b, r.Hash[:]...)
	}
	return b
}

// parseRoots returns the tree of a log of length blocks with these roots.
func parseRoots(b []byte, length uint64) (*merkle.Tree, error) {
	var buf [64]uint64
	index := merkle.AppendRoots(buf[:0], length)
	if len(b) != len(index)*tileSize {
		return nil, fmt.Errorf("%w: %d bytes of roots for %d blocks", storage.ErrCorrupt, len(b), length)
	}
	roots := make([]merkle.Node, len(index))
	for i := range roots {
		roots[i] = merkle.Node{Index: index[i], Size: binary.LittleEndian.Uint64(b), Hash: merkle.Hash(b[8:])}
		b = b[tileSize:]
	}
	t, err := merkle.NewTree(length, roots)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
	}
	return t, nil
}

// forest is the tree of the log as it grows; it is the [storage.Owner]. Only
// the goroutine that appends uses it, except for what published returns.
type forest struct {
	encoding block.Encoding
	sign     func(treeHash merkle.Hash, length uint64) []byte // at a segment's close
	drop     func(first uint64)

	tree    merkle.Tree
	tiles   tiles
	scratch [levels]merkle.Node

	mu  sync.RWMutex
	pub head // guarded by mu

	change change
}

// head is a committed state of the tree.
type head struct {
	tree  merkle.Tree
	tiles tiles
}

// published returns the committed state. Its slices must not be changed.
func (f *forest) published() head {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.pub
}

// length returns the committed length.
func (f *forest) length() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.pub.tree.Length()
}

// add appends the leaf of the next block.
func (f *forest) add(leaf merkle.Node) {
	leaf.Index = 2 * f.tree.Length()
	for _, n := range f.tree.Append(f.scratch[:0], leaf) {
		f.tiles.add(n)
	}
}

// Restore implements [storage.Owner].
func (f *forest) Restore(first uint64, state, summary []byte, at uint64) error {
	t, err := parseRoots(state, at)
	if err != nil {
		return err
	}
	f.tree = *t
	f.tiles.start(first)
	if summary != nil {
		tiles, _, err := parseTiles(summary, first, at)
		if err != nil {
			return err
		}
		f.tiles = *tiles
	}
	return nil
}

// Replay implements [storage.Owner].
func (f *forest) Replay(i uint64, data []byte) error {
	if i != f.tree.Length() {
		return fmt.Errorf("%w: block %d follows %d", storage.ErrCorrupt, i, f.tree.Length())
	}
	f.add(merkle.Leaf(i, data))
	return nil
}

// Keys implements [storage.Owner].
func (f *forest) Keys(i uint64, data []byte) [2]uint64 {
	b, err := f.encoding.Inspect(data)
	if err != nil {
		return [2]uint64{}
	}
	return keys(i, b, f.encoding)
}

// Digest implements [storage.Owner].
func (f *forest) Digest() [32]byte { return f.tree.Hash() }

// State implements [storage.Owner].
func (f *forest) State() []byte { return encodeRoots(nil, f.tree.Roots()) }

// Summary implements [storage.Owner]: the tiles and, when the segment is
// closed, the device's signature of the tree.
func (f *forest) Summary(room int, closed bool) []byte {
	var sig []byte
	if closed {
		sig = f.sign(f.tree.Hash(), f.tree.Length())
	}
	return append(f.tiles.encode(nil, room-len(sig)), sig...)
}

// Started implements [storage.Owner].
func (f *forest) Started(first uint64) {
	f.tiles.start(first)
	f.Committed()
}

// Committed implements [storage.Owner].
func (f *forest) Committed() {
	f.mu.Lock()
	f.pub = head{f.tree, f.tiles}
	f.mu.Unlock()
	f.change.tell()
}

// RolledBack implements [storage.Owner].
func (f *forest) RolledBack() {
	f.mu.RLock()
	f.tree = f.pub.tree
	f.mu.RUnlock()
	f.tiles.cut(f.tree.Length())
}

// Dropping implements [storage.Owner].
func (f *forest) Dropping(first uint64) { f.drop(first) }

// keys returns what a block is found by: its wall time in µs, if it says one,
// and its own place, if it is a clock entry.
func keys(i uint64, b block.Block, enc block.Encoding) (k [2]uint64) {
	wall := b.Stamp.Wall
	if b.Entry == block.Clock {
		k[1] = i + 1
		if _, n, err := enc.Parse(b.Data); err == nil && n != nil {
			fix, _ := n.Fix()
			wall = fix.Apply(n.Stamp.Mono)
		}
	}
	if !wall.IsZero() {
		k[0] = timeKey(wall)
	}
	return k
}

// timeKey is a time in µs since 1970 as a key, within what a block can say.
func timeKey(t time.Time) uint64 {
	const last = 1 << 32 // seconds, see package block
	return uint64(min(max(t.Unix(), 0), last))*1e6 + uint64(t.Nanosecond()/1e3)
}
