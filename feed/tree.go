package feed

import (
	"fmt"
	"sync"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/feed/nodes"
	"dazaar-edge/storage"
)

// forest is the tree of the log as it grows; it is the [storage.Owner]. Only
// the goroutine that appends uses it, except for what published returns.
type forest struct {
	encoding block.Encoding
	sign     func(treeHash merkle.Hash, length uint64) []byte // at a segment's close
	drop     func(first uint64)

	tree    merkle.Tree
	tiles   nodes.Tiles
	scratch [nodes.MaxLevels]merkle.Node

	mu  sync.RWMutex
	pub head // guarded by mu

	change change
}

// head is a committed state of the tree.
type head struct {
	tree  merkle.Tree
	tiles nodes.Tiles
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
		f.tiles.Add(n)
	}
}

// Restore implements [storage.Owner].
func (f *forest) Restore(first uint64, state, summary []byte, at uint64) error {
	t, err := nodes.ParseRoots(state, at)
	if err != nil {
		return err
	}
	f.tree = *t
	f.tiles.Start(first)
	if summary != nil {
		tiles, _, err := nodes.ParseTiles(summary, first, at)
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
func (f *forest) State() []byte { return nodes.AppendRoots(nil, f.tree.Roots()) }

// Summary implements [storage.Owner]: the tiles and, when the segment is
// closed, the device's signature of the tree.
func (f *forest) Summary(room int, closed bool) []byte {
	var sig []byte
	if closed {
		sig = f.sign(f.tree.Hash(), f.tree.Length())
	}
	return append(f.tiles.Append(nil, room-len(sig)), sig...)
}

// Started implements [storage.Owner].
func (f *forest) Started(first uint64) {
	f.tiles.Start(first)
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
	f.tiles.Cut(f.tree.Length())
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
