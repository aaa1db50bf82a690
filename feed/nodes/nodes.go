// Package nodes has the nodes of a log's tree that lie on the disk, as bytes: the
// roots before a segment, the nodes that end in one, and those that are kept of
// what was dropped. A node is LE64 size and hash; its index follows from its place.
// What does not parse gives storage.ErrCorrupt.
package nodes

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// Size is how many bytes a node has whose index follows from its place, KeptSize
// one with its index before it.
const (
	Size     = 8 + merkle.HashSize
	KeptSize = 8 + Size
)

// MaxLevels is the number of levels a tree can have.
const MaxLevels = merkle.MaxRoots + 1

func appendNode(b []byte, size uint64, hash merkle.Hash) []byte {
	return append(binary.LittleEndian.AppendUint64(b, size), hash[:]...)
}

// read returns the node x that b begins with.
func read(b []byte, x uint64) merkle.Node {
	return merkle.Node{Index: x, Size: binary.LittleEndian.Uint64(b), Hash: merkle.Hash(b[8:Size])}
}

// AppendRoots appends roots without their indexes.
func AppendRoots(b []byte, roots []merkle.Node) []byte {
	for _, r := range roots {
		b = appendNode(b, r.Size, r.Hash)
	}
	return b
}

// ParseRoots returns the tree of a log of length blocks with these roots.
func ParseRoots(b []byte, length uint64) (*merkle.Tree, error) {
	var buf [64]uint64
	index := merkle.AppendRoots(buf[:0], length)
	if len(b) != len(index)*Size {
		return nil, fmt.Errorf("%w: %d bytes of roots for %d blocks", storage.ErrCorrupt, len(b), length)
	}
	roots := make([]merkle.Node, len(index))
	for i := range roots {
		roots[i] = read(b[i*Size:], index[i])
	}
	t, err := merkle.NewTree(length, roots)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", storage.ErrCorrupt, err)
	}
	return t, nil
}

// FindRoot returns the node x of the roots of a log of length blocks.
func FindRoot(b []byte, length, x uint64) (n merkle.Node, ok bool) {
	var buf [64]uint64
	index := merkle.AppendRoots(buf[:0], length)
	if len(b) != len(index)*Size {
		return n, false
	}
	i := slices.Index(index, x)
	if i < 0 {
		return n, false
	}
	return read(b[i*Size:], x), true
}

// AppendKept appends nodes with their indexes, in their order.
func AppendKept(b []byte, kept map[uint64]merkle.Node) []byte {
	b = slices.Grow(b, len(kept)*KeptSize)
	for _, x := range slices.Sorted(maps.Keys(kept)) {
		n := kept[x]
		b = appendNode(binary.LittleEndian.AppendUint64(b, x), n.Size, n.Hash)
	}
	return b
}

// ParseKept reads what AppendKept wrote.
func ParseKept(b []byte) (map[uint64]merkle.Node, error) {
	if len(b)%KeptSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes of kept nodes", storage.ErrCorrupt, len(b))
	}
	kept := map[uint64]merkle.Node{}
	for ; len(b) > 0; b = b[KeptSize:] {
		x := binary.LittleEndian.Uint64(b)
		kept[x] = read(b[8:], x)
	}
	return kept, nil
}
