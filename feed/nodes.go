package feed

import (
	"errors"
	"fmt"
	"sync"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/feed/nodes"
	"dazaar-edge/storage"
)

// leafLevels is how many levels a cached tile has above its leaves at most.
const leafLevels = 8

// cachedTiles is how many tiles are kept: about 25 KiB each.
const cachedTiles = 8

// leafTile is the tree over up to 256 blocks, computed from them.
type leafTile struct {
	seq    uint64 // of the segment whose blocks it was computed from
	number uint64 // of the tile on its level
	level  uint
	end    uint64 // blocks behind it were not there
	nodes  []merkle.Node
	have   []bool
}

// nodeCache keeps tiles and stored trees that were computed or read lately.
type nodeCache struct {
	mu     sync.Mutex
	leaves []*leafTile    // newest first; guarded by mu
	stored []*nodes.Tiles // newest first; guarded by mu
	ends   []uint64       // of stored
}

// nodeReader looks up nodes of the log as it was at a committed head. It
// implements [merkle.NodeReader].
type nodeReader struct {
	l *Log
	h head
}

// Node implements [merkle.NodeReader].
func (r nodeReader) Node(x uint64) (merkle.Node, error) {
	_, end := merkle.Span(x)
	if end > r.h.tree.Length() {
		return merkle.Node{}, fmt.Errorf("%w: node %d of %d blocks", merkle.ErrMissing, x, r.h.tree.Length())
	}
	for _, n := range r.h.tree.Roots() {
		if n.Index == x {
			return n, nil
		}
	}
	if first := r.l.st.First(); end <= first {
		return r.dropped(x, first)
	}
	if end > r.h.tiles.First() { // in the open segment
		if n, ok := r.h.tiles.Find(x); ok {
			return n, nil
		}
	}
	seg, err := r.l.st.SegmentAt(end - 1)
	if err != nil {
		return merkle.Node{}, missing(x, err)
	}
	return r.in(&seg, x)
}

// missing turns what dropping and damage cause into [merkle.ErrMissing].
func missing(x uint64, err error) error {
	if errors.Is(err, storage.ErrDropped) || errors.Is(err, storage.ErrCorrupt) {
		return fmt.Errorf("%w: node %d: %w", merkle.ErrMissing, x, err)
	}
	return err
}

// dropped returns a node of the part that was dropped: a root there, or one
// that was kept.
func (r nodeReader) dropped(x, first uint64) (merkle.Node, error) {
	seg, err := r.l.st.SegmentAt(first)
	if err != nil {
		return merkle.Node{}, missing(x, err)
	}
	if n, ok := nodes.FindRoot(seg.State, seg.First, x); ok {
		return n, nil
	}
	if n, ok := r.l.pins.node(x); ok {
		return n, nil
	}
	return merkle.Node{}, fmt.Errorf("%w: node %d was dropped", merkle.ErrMissing, x)
}

// in returns a node that ends in the segment: one that is stored, one from a
// tile, or the join of its children. Of a node that begins before the segment
// the left part is a root there.
func (r nodeReader) in(seg *storage.Segment, x uint64) (merkle.Node, error) {
	first, end := merkle.Span(x)
	if end <= seg.First {
		n, ok := nodes.FindRoot(seg.State, seg.First, x)
		if !ok {
			return n, fmt.Errorf("%w: node %d: head of segment %d is damaged", merkle.ErrMissing, x, seg.Seq)
		}
		return n, nil
	}
	low := uint(leafLevels)
	if !seg.Open {
		t, err := r.storedTiles(seg)
		if err != nil {
			return merkle.Node{}, missing(x, err)
		}
		if n, ok := t.Find(x); ok {
			return n, nil
		}
		low = t.Low()
	} else if r.h.tiles.First() == seg.First {
		if n, ok := r.h.tiles.Find(x); ok {
			return n, nil
		}
		low = r.h.tiles.Low()
	}
	level := merkle.Level(x)
	if unit := min(low, leafLevels); level <= unit {
		return r.fromTile(seg, first>>unit, unit, x)
	}
	left, right := merkle.Children(x)
	a, err := r.in(seg, left)
	if err != nil {
		return a, err
	}
	b, err := r.in(seg, right)
	if err != nil {
		return b, err
	}
	return merkle.Join(a, b), nil
}

// storedTiles returns the stored nodes of a closed segment; if its foot is
// damaged they are computed from its blocks.
func (r nodeReader) storedTiles(seg *storage.Segment) (*nodes.Tiles, error) {
	c := &r.l.nodes
	c.mu.Lock()
	for i, t := range c.stored {
		if t.First() == seg.First && c.ends[i] == seg.End {
			c.mu.Unlock()
			return t, nil
		}
	}
	c.mu.Unlock()
	t, _, err := nodes.ParseTiles(seg.Summary, seg.First, seg.End)
	if err != nil {
		if t, err = r.l.rebuildTiles(seg); err != nil {
			r.l.noteError(err)
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stored = prepend(c.stored, t, 4)
	c.ends = prepend(c.ends, seg.End, 4)
	return t, nil
}

func prepend[T any](s []T, v T, limit int) []T {
	if len(s) >= limit {
		s = s[:limit-1]
	}
	return append([]T{v}, s...)
}

// rebuildTiles computes the stored nodes of a closed segment from its blocks.
func (l *Log) rebuildTiles(seg *storage.Segment) (*nodes.Tiles, error) {
	tree, err := nodes.ParseRoots(seg.State, seg.First)
	if err != nil {
		return nil, err
	}
	f := forest{tree: *tree}
	f.tiles.Start(seg.First)
	err = l.st.Range(seg.First, seg.End, func(i uint64, _ storage.Weight, data []byte) bool {
		f.add(merkle.Leaf(i, data))
		return true
	})
	return &f.tiles, err
}

// fromTile returns a node of the tile with this number and level.
func (r nodeReader) fromTile(seg *storage.Segment, number uint64, level uint, x uint64) (merkle.Node, error) {
	c := &r.l.nodes
	base := number << (level + 1)
	_, end := merkle.Span(x)
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, t := range c.leaves {
		if t.seq == seg.Seq && t.number == number && t.level == level && t.end >= end {
			copy(c.leaves[1:i+1], c.leaves[:i])
			c.leaves[0] = t
			return t.node(x, base)
		}
	}
	t, err := r.l.computeTile(seg, number, level, r.h.tree.Length())
	if err != nil {
		r.l.noteError(err)
		return merkle.Node{}, missing(x, err)
	}
	c.leaves = prepend(c.leaves, t, cachedTiles)
	return t.node(x, base)
}

func (t *leafTile) node(x, base uint64) (merkle.Node, error) {
	if i := x - base; i < uint64(len(t.nodes)) && t.have[i] {
		return t.nodes[i], nil
	}
	return merkle.Node{}, fmt.Errorf("%w: node %d", merkle.ErrMissing, x)
}

// computeTile hashes the blocks of a tile that lie in the segment; what lies
// before it comes from the roots there.
func (l *Log) computeTile(seg *storage.Segment, number uint64, level uint, length uint64) (*leafTile, error) {
	t := &leafTile{
		seq: seg.Seq, number: number, level: level, nodes: make([]merkle.Node, 2<<level-1), have: make([]bool, 2<<level-1),
	}
	base := number << (level + 1)
	put := func(n merkle.Node) {
		i := n.Index - base
		t.nodes[i], t.have[i] = n, true
	}
	from, to := number<<level, (number+1)<<level
	if from < seg.First {
		tree, err := nodes.ParseRoots(seg.State, seg.First)
		if err != nil {
			return nil, err
		}
		for _, n := range tree.Roots() {
			if first, _ := merkle.Span(n.Index); first >= from {
				put(n)
			}
		}
		from = seg.First
	}
	t.end = min(to, seg.End, length)
	err := l.st.Range(from, t.end, func(i uint64, _ storage.Weight, data []byte) bool {
		put(merkle.Leaf(i, data))
		return true
	})
	if err != nil {
		return nil, err
	}
	for up := uint(1); up <= level; up++ {
		for x := base + 1<<up - 1; x < base+uint64(len(t.nodes)); x += 2 << up {
			left, right := merkle.Children(x)
			if t.have[left-base] && t.have[right-base] && !t.have[x-base] {
				put(merkle.Join(t.nodes[left-base], t.nodes[right-base]))
			}
		}
	}
	return t, nil
}
