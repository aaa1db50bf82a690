package merkle

import (
	"encoding/binary"
	"math"

	"golang.org/x/crypto/blake2b"
)

// HashSize is the length of a hash in bytes.
const HashSize = 32

// MaxRoots is the largest number of roots a log can have.
const MaxRoots = 53

// Hash is a BLAKE2b-256 digest.
type Hash [HashSize]byte

// Node is a node of the flat tree.
type Node struct {
	Index uint64 // position in the flat tree
	Size  uint64 // bytes of all blocks below
	Hash  Hash
}

// Hash domains, the first byte that is hashed.
const (
	domainLeaf   = 0
	domainParent = 1
	domainRoots  = 2
)

// maxOnStack is the largest block that Leaf hashes from a stack buffer.
const maxOnStack = 256

// Leaf returns the node of block i: the hash of 0, LE64(len(block)), block.
func Leaf(i uint64, block []byte) Node {
	n := Node{Index: 2 * i, Size: uint64(len(block))}
	var buf [9 + maxOnStack]byte
	buf[0] = domainLeaf
	binary.LittleEndian.PutUint64(buf[1:], n.Size)
	if len(block) <= maxOnStack {
		n.Hash = blake2b.Sum256(buf[:9+copy(buf[9:], block)])
		return n
	}
	h, _ := blake2b.New256(nil) // fails only for a key that is too long
	h.Write(buf[:9])
	h.Write(block)
	h.Sum(n.Hash[:0])
	return n
}

// Join returns the parent of two siblings, in either order: the hash of 1,
// LE64(size), left hash, right hash.
func Join(a, b Node) Node {
	if a.Index > b.Index {
		a, b = b, a
	}
	n := Node{Index: Parent(a.Index), Size: a.Size + b.Size}
	var buf [9 + 2*HashSize]byte
	buf[0] = domainParent
	binary.LittleEndian.PutUint64(buf[1:], n.Size)
	copy(buf[9:], a.Hash[:])
	copy(buf[9+HashSize:], b.Hash[:])
	n.Hash = blake2b.Sum256(buf[:])
	return n
}

// TreeHash returns the hash of a head: of 2 and, for each root from left to
// right, its hash, LE64(index) and LE64(size). No key goes into it, so that
// every rekeyed feed of a log has the same.
func TreeHash(roots []Node) Hash {
	var buf [1 + MaxRoots*(HashSize+16)]byte
	buf[0] = domainRoots
	b := buf[:1]
	for i := range roots {
		b = append(b, roots[i].Hash[:]...)
		b = binary.LittleEndian.AppendUint64(b, roots[i].Index)
		b = binary.LittleEndian.AppendUint64(b, roots[i].Size)
	}
	return blake2b.Sum256(b)
}

// Tree is the growing edge of a log: its roots and nothing else. The zero
// value is the empty log. Not safe for concurrent use.
type Tree struct {
	length     uint64
	byteLength uint64
	n          int
	roots      [MaxRoots]Node
}

// NewTree returns the tree of a log of length blocks with these roots, left to
// right. It fails if they are not the roots of that length.
func NewTree(length uint64, roots []Node) (*Tree, error) {
	var buf [64]uint64
	want := AppendRoots(buf[:0], length)
	if len(want) != len(roots) || len(roots) > MaxRoots {
		return nil, ErrShape
	}
	t := &Tree{length: length}
	for i, r := range roots {
		if r.Index != want[i] || r.Size > math.MaxInt64-t.byteLength {
			return nil, ErrShape
		}
		t.byteLength += r.Size
		t.roots[i] = r
	}
	t.n = len(roots)
	return t, nil
}

// Length returns the number of blocks.
func (t *Tree) Length() uint64 { return t.length }

// ByteLength returns the number of bytes in all blocks.
func (t *Tree) ByteLength() uint64 { return t.byteLength }

// Roots returns the roots from left to right; they are valid until the next
// Append.
func (t *Tree) Roots() []Node { return t.roots[:t.n] }

// Hash returns the tree hash.
func (t *Tree) Hash() Hash { return TreeHash(t.roots[:t.n]) }

// Append adds the next leaf, which must be the node of block Length(). It
// appends the leaf and each parent it completed to dst, lowest first, and
// allocates nothing if dst has room for 54 nodes.
func (t *Tree) Append(dst []Node, leaf Node) []Node {
	t.length++
	t.byteLength += leaf.Size
	dst = append(dst, leaf)
	for range completed(t.length) {
		t.n--
		leaf = Join(t.roots[t.n], leaf)
		dst = append(dst, leaf)
	}
	t.roots[t.n] = leaf
	t.n++
	return dst
}
