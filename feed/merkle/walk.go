package merkle

import (
	"fmt"
	"slices"
)

// Walk verifies the blocks of a log from left to right, one after the other, and
// keeps but the trusted nodes right of where it is: at most one for each level.
// One who walks and has asked for every block before i needs, for block i, the
// nodes of [Walk.Nodes] levels, and each node travels once.
//
// A Walk allocates only in Grow and is not safe for concurrent use. The zero
// value is of the empty log.
type Walk struct {
	length uint64
	roots  [MaxRoots]Node
	n      int
	next   uint64 // the block that is verified next
	// right[k] is the trusted node of level k that was proved last, if bit k
	// of known is set. It begins at next or behind it.
	right [MaxRoots + 1]Node
	known uint64
	// left[k] is the left child of level k that was completed last, if bit k
	// of passed is set: what the roots of the blocks before next consist of.
	left   [MaxRoots + 1]Node
	passed uint64
	// extra are trusted nodes from when the log grew, of which some blocks are
	// still to come.
	extra []Node
}

// Reset begins to walk at block i in the log with these roots.
func (w *Walk) Reset(i, length uint64, roots []Node) {
	w.length, w.n = length, copy(w.roots[:], roots)
	w.next, w.known, w.passed, w.extra = i, 0, 0, w.extra[:0]
	w.passAll(roots)
}

// Grow goes on in a log that became longer: roots are the new ones, nodes those
// that were proved with them. What was asked for before stays verifiable.
func (w *Walk) Grow(length uint64, roots, nodes []Node) {
	w.passAll(nodes)
	for _, list := range [][]Node{w.roots[:w.n], nodes} {
		for _, n := range list {
			if _, end := Span(n.Index); end > w.next {
				w.extra = append(w.extra, n)
			}
		}
	}
	w.length, w.n = length, copy(w.roots[:], roots)
}

// Trust takes nodes that were trusted when the walk stood here before: those of
// Left and Right.
func (w *Walk) Trust(nodes []Node) {
	w.passAll(nodes)
	for _, n := range nodes {
		if w.ahead(n) {
			w.extra = append(w.extra, n)
		}
	}
}

// Next returns the index of the block that Verify takes.
func (w *Walk) Next() uint64 { return w.next }

// Levels returns how many levels of nodes above block i are unknown to one who
// walks and has verified all blocks from the one where the walk began up to i,
// in a log of length blocks; at the beginning of the walk, to one who knows the
// roots only.
func Levels(i, begin, length uint64) uint64 {
	var buf [64]uint64
	level := uint64(0)
	for _, r := range AppendRoots(buf[:0], length) {
		if first, end := Span(r); i >= first && i < end {
			level = uint64(Level(r))
			if i == begin {
				return level
			}
			break
		}
	}
	// The lowest ancestor that is a right child has a sibling, left of it,
	// whose path proved it.
	k := uint64(0)
	for k < level && i>>k&1 == 0 {
		k++
	}
	return k
}

// Verify checks the next block with the nodes of its path, lowest first, and
// steps behind it. Errors wrap [ErrProof]; then nothing has changed.
func (w *Walk) Verify(value []byte, nodes []Node) error {
	if w.next >= w.length {
		return fmt.Errorf("%w: block %d of %d", ErrProof, w.next, w.length)
	}
	if len(nodes) > MaxRoots {
		return fmt.Errorf("%w: a path of %d nodes", ErrProof, len(nodes))
	}
	x := Leaf(w.next, value)
	var path [MaxRoots + 1]Node
	path[0] = x
	for i, n := range nodes {
		if n.Index != Sibling(x.Index) {
			return fmt.Errorf("%w: no sibling of node %d", ErrProof, x.Index)
		}
		if n.Size > maxBytes-x.Size {
			return fmt.Errorf("%w: sizes overflow", ErrProof)
		}
		x = Join(x, n)
		path[i+1] = x
	}
	known, ok := w.trusted(x.Index)
	if !ok {
		return fmt.Errorf("%w: nothing is known of node %d", ErrProof, x.Index)
	}
	if known.Hash != x.Hash {
		return fmt.Errorf("%w: node %d is not the trusted one", ErrProof, x.Index)
	}
	w.pass(path[0])
	for i, n := range nodes {
		w.pass(n)
		w.pass(path[i+1])
		if first, _ := Span(n.Index); first > w.next {
			k := Level(n.Index)
			w.right[k] = n
			w.known |= 1 << k
		}
	}
	w.next++
	// What begins before the next block is no longer needed.
	for k := uint(0); w.known>>k != 0; k++ {
		if w.known>>k&1 != 0 && !w.ahead(w.right[k]) {
			w.known &^= 1 << k
		}
	}
	if len(w.extra) > 0 {
		w.extra = slices.DeleteFunc(w.extra, func(n Node) bool {
			_, end := Span(n.Index)
			if end <= w.next {
				w.pass(n)
			}
			return end <= w.next
		})
	}
	return nil
}

// pass notes a trusted node for Left, if it is a left child.
func (w *Walk) pass(n Node) {
	if k := Level(n.Index); n.Index < Sibling(n.Index) && k < uint(len(w.left)) {
		w.left[k] = n
		w.passed |= 1 << k
	}
}

// passAll notes those nodes that the blocks before next consist of.
func (w *Walk) passAll(nodes []Node) {
	var buf [64]uint64
	for _, x := range AppendRoots(buf[:0], w.next) {
		if i := slices.IndexFunc(nodes, func(n Node) bool { return n.Index == x }); i >= 0 {
			w.pass(nodes[i])
		}
	}
}

// Left appends to dst the roots of the log of the blocks before the next one. It
// tells whether it knows all of them: always, once a block was verified.
func (w *Walk) Left(dst []Node) ([]Node, bool) {
	var buf [64]uint64
	for _, x := range AppendRoots(buf[:0], w.next) {
		k := Level(x)
		if w.passed>>k&1 != 0 && w.left[k].Index == x {
			dst = append(dst, w.left[k])
		} else if i := slices.IndexFunc(w.roots[:w.n], func(n Node) bool { return n.Index == x }); i >= 0 {
			dst = append(dst, w.roots[i])
		} else {
			return dst, false
		}
	}
	return dst, true
}

// ahead tells whether all blocks below n are still to come.
func (w *Walk) ahead(n Node) bool {
	first, _ := Span(n.Index)
	return first >= w.next
}

// trusted returns a node that is a root or was proved.
func (w *Walk) trusted(x uint64) (Node, bool) {
	if k := Level(x); k < uint(len(w.right)) && w.known>>k&1 != 0 && w.right[k].Index == x {
		return w.right[k], true
	}
	for _, list := range [][]Node{w.roots[:w.n], w.extra} {
		for _, n := range list {
			if n.Index == x {
				return n, true
			}
		}
	}
	return Node{}, false
}

// Right appends to dst the trusted nodes all of whose blocks are still to come.
func (w *Walk) Right(dst []Node) []Node {
	for k := range w.right {
		if w.known>>k&1 != 0 {
			dst = append(dst, w.right[k])
		}
	}
	for _, r := range w.roots[:w.n] {
		if w.ahead(r) {
			dst = append(dst, r)
		}
	}
	for _, n := range w.extra {
		if w.ahead(n) {
			dst = append(dst, n)
		}
	}
	return dst
}
