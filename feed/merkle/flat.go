package merkle

import "math/bits"

// The flat tree numbers the nodes of a forest of perfect binary trees in
// order: leaf i of block i is index 2i, and the parent of two siblings lies
// halfway between them. Lengths are counts of blocks. Indexes stay far below
// 2^63, as lengths are at most compact.MaxUint.

// Level returns the height of index x above the leaves: 0 for a leaf.
func Level(x uint64) uint { return uint(bits.TrailingZeros64(^x)) }

// Sibling returns the other child of x's parent.
func Sibling(x uint64) uint64 {
	factor := uint64(2) << Level(x)
	if x&factor == 0 {
		return x + factor
	}
	return x - factor
}

// Parent returns the node above x.
func Parent(x uint64) uint64 {
	half := uint64(1) << Level(x)
	return (x | half) &^ (half << 1)
}

// Children returns the two nodes below x, left first. x must not be a leaf.
func Children(x uint64) (left, right uint64) {
	quarter := uint64(1) << (Level(x) - 1)
	return x - quarter, x + quarter
}

// Span returns the blocks below x: the first one and the one past the last.
func Span(x uint64) (first, end uint64) {
	n := uint64(1) << Level(x)
	first = (x + 1 - n) / 2
	return first, first + n
}

// Ancestor returns the node at the given level above block i.
func Ancestor(i uint64, level uint) uint64 {
	return i>>level<<(level+1) + 1<<level - 1
}

// contains tells whether index y lies strictly below x or is x. y may be an
// inner node or one past the end.
func contains(x, y uint64) bool {
	half := uint64(1) << Level(x)
	return y+half > x && y < x+half
}

// AppendRoots appends the indexes of the roots of a log of length blocks, left
// to right: at most 53.
func AppendRoots(dst []uint64, length uint64) []uint64 {
	off := uint64(0)
	for length > 0 {
		p := uint64(1) << (bits.Len64(length) - 1)
		dst = append(dst, off+p-1)
		off += 2 * p
		length -= p
	}
	return dst
}

// completed returns how many parents the append that made a log this long
// completes.
func completed(length uint64) int { return bits.TrailingZeros64(length) }
