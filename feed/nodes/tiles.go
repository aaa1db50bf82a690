package nodes

import (
	"encoding/binary"
	"fmt"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// maxTiles is how many nodes of the lowest stored level a segment keeps. Below
// it, nodes are computed again from the blocks of one tile: about 8 KiB in a
// full segment of 4 MiB, whatever the size of the blocks.
const maxTiles = 512

// Tiles are the stored nodes of one segment: those that end in it, from a level
// on, by level and place. A copy shares what is there with the original, which may
// go on growing.
type Tiles struct {
	first uint64 // first block of the segment
	low   uint
	at    [MaxLevels][]tile
}

// tile is a stored node; its index follows from its place.
type tile struct {
	size uint64
	hash merkle.Hash
}

// count returns how many nodes of a level end in the blocks [first, end).
func count(first, end uint64, level uint) int { return int(end>>level - first>>level) }

// Start begins a segment at block first.
func (t *Tiles) Start(first uint64) { *t = Tiles{first: first} }

// First returns the first block of the segment.
func (t *Tiles) First() uint64 { return t.first }

// Low returns the lowest level of which there are nodes.
func (t *Tiles) Low() uint { return t.low }

// Add adds the next node of its level.
func (t *Tiles) Add(n merkle.Node) {
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

// Cut takes back all nodes that end behind end.
func (t *Tiles) Cut(end uint64) {
	for level := t.low; level < MaxLevels; level++ {
		if n := count(t.first, end, level); n < len(t.at[level]) {
			t.at[level] = t.at[level][:n:n]
		}
	}
}

// Find returns a stored node that ends in the segment.
func (t *Tiles) Find(x uint64) (merkle.Node, bool) {
	level := merkle.Level(x)
	first, _ := merkle.Span(x)
	i := first>>level - t.first>>level
	if level < t.low || i >= uint64(len(t.at[level])) {
		return merkle.Node{}, false
	}
	n := t.at[level][i]
	return merkle.Node{Index: x, Size: n.size, Hash: n.hash}, true
}

// Append appends the levels that fit into room bytes: the lowest one, then all
// nodes from that level up.
func (t *Tiles) Append(b []byte, room int) []byte {
	low := t.low
	total := 0
	for level := low; level < MaxLevels; level++ {
		total += len(t.at[level])
	}
	for total*Size+1 > room && low < MaxLevels-1 {
		total -= len(t.at[low])
		low++
	}
	b = append(b, byte(low))
	for level := low; level < MaxLevels; level++ {
		for _, n := range t.at[level] {
			b = appendNode(b, n.size, n.hash)
		}
	}
	return b
}

// ParseTiles takes what Append wrote for the blocks [first, end) off b.
func ParseTiles(b []byte, first, end uint64) (t *Tiles, rest []byte, err error) {
	if len(b) == 0 || b[0] >= MaxLevels {
		return nil, nil, fmt.Errorf("%w: tree summary", storage.ErrCorrupt)
	}
	t = &Tiles{first: first, low: uint(b[0])}
	b = b[1:]
	for level := t.low; level < MaxLevels; level++ {
		n := count(first, end, level)
		if n < 0 || n > len(b)/Size {
			return nil, nil, fmt.Errorf("%w: tree summary", storage.ErrCorrupt)
		}
		if n == 0 {
			continue
		}
		t.at[level] = make([]tile, n)
		for i := range t.at[level] {
			t.at[level][i] = tile{binary.LittleEndian.Uint64(b), merkle.Hash(b[8:Size])}
			b = b[Size:]
		}
	}
	return t, b, nil
}

// Check compares t with nodes of the same blocks that were computed anew, as far
// down as those go, and checks what lies below: each pair must give the node above.
func (t *Tiles) Check(computed *Tiles) error {
	for level := max(t.low, computed.low); level < MaxLevels; level++ {
		for i, n := range t.at[level] {
			if i >= len(computed.at[level]) || n != computed.at[level][i] {
				return fmt.Errorf("%w: kept node %d of level %d", storage.ErrCorrupt, i, level)
			}
		}
	}
	for level := t.low; level+1 < MaxLevels; level++ {
		base := t.first >> level
		for i := range t.at[level] {
			number := base + uint64(i)
			if number&1 == 0 || i == 0 {
				continue
			}
			left, right := t.at[level][i-1], t.at[level][i]
			x := merkle.Ancestor(number<<level, level)
			up := merkle.Join(merkle.Node{Index: merkle.Sibling(x), Size: left.size, Hash: left.hash}, merkle.Node{Index: x, Size: right.size, Hash: right.hash})
			if above, ok := t.Find(up.Index); !ok || above != up {
				return fmt.Errorf("%w: kept node of level %d", storage.ErrCorrupt, level+1)
			}
		}
	}
	return nil
}
