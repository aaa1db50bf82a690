package feed

import (
	"errors"
	"fmt"
	"sync"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// Reader reads blocks with the nodes that prove them: it keeps one tile of blocks,
// with the tree over them, at a time. When blocks are read in order the tile is as
// large as those of the stored tree; else it is a sixteenth, if the log remembers
// what is above. It is not safe for concurrent use.
type Reader struct {
	l     *Log
	first uint64 // block that the tile begins with
	from  uint64 // blocks [from, to) are in data
	to    uint64
	data  []byte
	ends  []uint32 // of each block in data
	heft  []storage.Weight
	tree  []merkle.Node // by place in the tile; the index of those not there is none
	upper *merkle.Crown // what is above the tile; nil if that is stored
	path  []merkle.Node
}

// maxCrowns bounds what a log remembers: 0.8 MB, of 131,072 small blocks.
const maxCrowns = 512

// crowns are the newest that were made, by the tile's root.
type crowns struct {
	mu   sync.Mutex
	all  map[uint64]*merkle.Crown // guarded by mu, like all below
	ring []uint64
	next int
}

func (c *crowns) get(root uint64) *merkle.Crown {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[root]
}

func (c *crowns) put(root uint64, x *merkle.Crown) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[uint64]*merkle.Crown{}
	}
	if _, ok := c.all[root]; ok {
		return
	}
	if len(c.ring) < maxCrowns {
		c.ring = append(c.ring, root)
	} else {
		delete(c.all, c.ring[c.next])
		c.ring[c.next] = root
		c.next = (c.next + 1) % maxCrowns
	}
	c.all[root] = x
}

// Reader returns a new Reader.
func (f *Feed) Reader() *Reader { return &Reader{l: f.l} }

// maxTile is how many bytes of blocks a tile may have.
const maxTile = 16 << 10

// Release gives back the memory of the tile.
func (r *Reader) Release() { *r = Reader{l: r.l} }

// Read returns block i and its siblings on the lowest levels of its path; both
// are valid until the next call. Errors wrap [merkle.ErrRequest] for what cannot
// be, and [merkle.ErrMissing] for what was dropped or damaged.
func (r *Reader) Read(i, levels uint64) ([]byte, []merkle.Node, error) {
	h := r.l.tree.published()
	length := h.tree.Length()
	if i >= length {
		return nil, nil, fmt.Errorf("%w: block %d of %d", merkle.ErrRequest, i, length)
	}
	if i < r.from || i >= r.to {
		if err := r.load(h, i); err != nil {
			return nil, nil, missing(2*i, err)
		}
	}
	r.path = r.path[:0]
	x := 2 * i
	for range levels {
		s := merkle.Sibling(x)
		if _, end := merkle.Span(merkle.Parent(x)); end > length {
			return nil, nil, fmt.Errorf("%w: %d levels above block %d of %d", merkle.ErrRequest, levels, i, length)
		}
		n, ok := r.node(s)
		if !ok {
			n, ok = r.upper.Node(s)
		}
		if !ok {
			var err error
			if n, err = (nodeReader{r.l, h}).Node(s); err != nil {
				return nil, nil, err
			}
		}
		r.path = append(r.path, n)
		x = merkle.Parent(x)
	}
	start := uint32(0)
	if k := i - r.from; k > 0 {
		start = r.ends[k-1]
	}
	return r.data[start:r.ends[i-r.from]], r.path, nil
}

// Weight returns what block i weighs. It is cheap for a block that was just read.
// Errors are those of [Log.Get].
func (r *Reader) Weight(i uint64) (storage.Weight, error) {
	if i >= r.from && i < r.to {
		return r.heft[i-r.from], nil
	}
	_, w, err := r.l.Get(i)
	return w, err
}

// none is the index of no node.
const none = ^uint64(0)

// node returns a node of the tile.
func (r *Reader) node(x uint64) (merkle.Node, bool) {
	k := x - 2*r.first
	if x < 2*r.first || k >= uint64(len(r.tree)) || r.tree[k].Index != x {
		return merkle.Node{}, false
	}
	return r.tree[k], true
}

// load reads the tile of block i. Nodes above tiles are stored with the segment,
// so a tile is the least that must be read to prove a block.
func (r *Reader) load(h head, i uint64) error {
	inOrder := i == r.to
	r.to, r.upper = 0, nil
	seg, err := r.l.st.SegmentAt(i)
	if err != nil {
		return err
	}
	level := h.tiles.Low()
	if !seg.Open {
		t, err := (nodeReader{r.l, h}).storedTiles(&seg)
		if err != nil {
			return err
		}
		level = t.Low()
	}
	if level = min(level, leafLevels); level > 0 {
		root, part := merkle.Ancestor(i, level), level
		if level > merkle.CrownLevels && !inOrder {
			if r.upper = r.l.crowns.get(root); r.upper != nil {
				part = r.upper.Low
			}
		}
		if err := r.fill(h, i, part); err != nil {
			return err
		}
		if r.from <= i && i < r.to {
			if level > merkle.CrownLevels && part == level {
				r.remember(root, level)
			}
			return nil
		}
	}
	// It is large, or its neighbours are: alone, its tree is of no use.
	there := false
	r.data, r.heft = r.data[:0], r.heft[:0]
	err = r.l.Range(i, i+1, func(_ uint64, w storage.Weight, data []byte) bool {
		r.data, r.heft, there = append(r.data, data...), append(r.heft, w), true
		return true
	})
	if err != nil || !there {
		r.to = 0
		return errors.Join(err, fmt.Errorf("%w: block %d", merkle.ErrMissing, i))
	}
	r.first, r.from, r.to, r.tree = i, i, i+1, r.tree[:0]
	r.ends = append(r.ends[:0], uint32(len(r.data)))
	return nil
}

// remember keeps the upper part of the tile's tree, if all of it is there.
func (r *Reader) remember(root uint64, level uint) {
	if _, ok := r.node(root); !ok || r.l.crowns.get(root) != nil {
		return
	}
	if c := merkle.NewCrown(root, r.node); c != nil {
		r.l.crowns.put(root, c)
	}
}

// fill reads the tile of this level; if it is too large, r.to tells how far.
func (r *Reader) fill(h head, i uint64, level uint) error {
	r.first = i >> level << level
	r.from = max(r.first, r.l.st.First())
	end := min(r.first+1<<level, h.tree.Length())
	if cap(r.data) > 4*maxTile {
		r.data = nil
	}
	r.data, r.ends, r.heft = r.data[:0], r.ends[:0], r.heft[:0]
	size := 2<<level - 1
	if cap(r.tree) < size {
		r.tree = make([]merkle.Node, size)
	}
	r.tree = r.tree[:size]
	for k := range r.tree {
		r.tree[k].Index = none
	}
	to := r.from
	err := r.l.Range(r.from, end, func(k uint64, w storage.Weight, data []byte) bool {
		r.data, r.heft = append(r.data, data...), append(r.heft, w)
		r.ends = append(r.ends, uint32(len(r.data)))
		r.tree[2*(k-r.first)] = merkle.Leaf(k, data)
		to = k + 1
		return len(r.data) < 4*maxTile
	})
	if err != nil && to <= i {
		return err
	}
	r.to = to
	for up := uint(1); up <= level; up++ {
		for k := 1<<up - 1; k < size; k += 2 << up {
			x := 2*r.first + uint64(k)
			left, right := merkle.Children(x)
			a, ok := r.node(left)
			b, okb := r.node(right)
			if ok && okb {
				r.tree[k] = merkle.Join(a, b)
			}
		}
	}
	return nil
}
