package merkle

import "fmt"

// A Request says what a proof shall cover. Block and Hash exclude each other;
// the others combine as in specs/hypercore.md, section 11.
type Request struct {
	Block   *NodeRequest
	Hash    *NodeRequest
	Seek    *SeekRequest
	Upgrade *UpgradeRequest
}

// NodeRequest asks for a block (Index counts blocks) or for a hash (Index is a
// flat-tree index). Nodes is how many levels above it the asker has nothing.
type NodeRequest struct{ Index, Nodes uint64 }

// SeekRequest asks for the node that holds byte number Bytes, with Padding
// bytes of each block left out of the count.
type SeekRequest struct{ Bytes, Padding uint64 }

// UpgradeRequest asks for a head of at least Start+Length blocks by one who
// knows the head of Start blocks.
type UpgradeRequest struct{ Start, Length uint64 }

// Proof is the answer to a [Request]; parts that were not asked for are nil.
type Proof struct {
	Block   *BlockPart
	Hash    *HashPart
	Seek    *SeekPart
	Upgrade *UpgradePart
}

// BlockPart proves a block. Prove leaves Value nil: the caller fills it in.
type BlockPart struct {
	Index uint64
	Value []byte
	Nodes []Node
}

// HashPart proves a node; Nodes begins with it.
type HashPart struct {
	Index uint64
	Nodes []Node
}

// SeekPart proves where a byte lies.
type SeekPart struct {
	Bytes uint64
	Nodes []Node
}

// UpgradePart proves a head of Start+Length blocks; Additional leads from there
// to the signed head. Prove leaves Signature nil: the caller fills it in.
type UpgradePart struct {
	Start, Length uint64
	Nodes         []Node
	Additional    []Node
	Signature     []byte
}

// NodeReader looks nodes up by flat-tree index. It returns an error that wraps
// [ErrMissing] for a node that is not available.
type NodeReader interface {
	Node(index uint64) (Node, error)
}

// none stands for a tree index that no node contains.
const none = ^uint64(0)

// prover carries one request through the walk.
type prover struct {
	r      NodeReader
	length uint64

	hasTarget bool
	isHash    bool
	target    uint64 // tree index asked for, if hasTarget
	seek      uint64 // tree index a seek leads to, or none

	out      *Proof
	targetIn []Node
	seekIn   []Node
	hasSeek  bool
	err      error
}

// Prove builds the proof that req asks for of a log of length blocks. Requests
// that no log can answer fail with [ErrRequest], nodes that r has not with
// what r returned.
func Prove(r NodeReader, length uint64, req Request) (Proof, error) {
	var out Proof
	if length == 0 {
		return out, nil
	}
	if req.Block != nil && req.Hash != nil {
		return out, fmt.Errorf("%w: block and hash at once", ErrRequest)
	}
	head := 2 * length
	from, to := uint64(0), head
	if u := req.Upgrade; u != nil {
		if u.Length == 0 || u.Start > length || u.Length > length-u.Start {
			return out, fmt.Errorf("%w: upgrade from %d by %d of %d blocks", ErrRequest, u.Start, u.Length, length)
		}
		from, to = 2*u.Start, 2*(u.Start+u.Length)
	}
	p := prover{r: r, length: length, seek: none, out: &out}
	var climb, last uint64
	switch {
	case req.Block != nil:
		if req.Block.Index >= length {
			return out, fmt.Errorf("%w: block %d of %d", ErrRequest, req.Block.Index, length)
		}
		p.hasTarget, p.target = true, 2*req.Block.Index
		climb, last = req.Block.Nodes, req.Block.Index
	case req.Hash != nil:
		_, end := Span(req.Hash.Index)
		if req.Hash.Index >= head || end > length {
			return out, fmt.Errorf("%w: node %d of %d blocks", ErrRequest, req.Hash.Index, length)
		}
		p.hasTarget, p.isHash, p.target = true, true, req.Hash.Index
		climb, last = req.Hash.Nodes, end-1
	}
	if req.Seek != nil && req.Upgrade != nil && p.hasTarget && p.target >= from {
		return out, fmt.Errorf("%w: seek, upgrade and a new node at once", ErrRequest)
	}

	placed := !p.hasTarget
	if p.hasTarget && (req.Upgrade == nil || last < req.Upgrade.Start) {
		top, err := climbTo(p.target, climb, to)
		if err != nil {
			return out, err
		}
		if req.Seek != nil {
			if p.seek, err = p.seekBelow(top, *req.Seek); err != nil {
				return out, err
			}
		}
		p.path(top)
		placed = true
	} else if req.Seek != nil && req.Upgrade != nil {
		var err error
		if p.seek, err = p.seekFromHead(to/2, *req.Seek); err != nil {
			return out, err
		}
	}
	if req.Upgrade != nil {
		up := &UpgradePart{Start: req.Upgrade.Start, Length: req.Upgrade.Length}
		up.Nodes = p.upgrade(from, to, &placed)
		if !placed && p.err == nil {
			return out, fmt.Errorf("%w: node %d lies outside the upgrade", ErrRequest, p.target)
		}
		if head > to {
			done := true
			p.seek = none
			up.Additional = p.upgrade(to, head, &done)
		}
		out.Upgrade = up
	}
	if p.err != nil {
		return Proof{}, p.err
	}
	switch {
	case req.Block != nil:
		out.Block = &BlockPart{Index: req.Block.Index, Nodes: p.targetIn}
	case req.Hash != nil:
		out.Hash = &HashPart{Index: req.Hash.Index, Nodes: p.targetIn}
	}
	if p.hasSeek {
		out.Seek = &SeekPart{Bytes: req.Seek.Bytes, Nodes: p.seekIn}
	}
	return out, nil
}

// climbTo returns the node that many levels above x, unless it reaches index
// end.
func climbTo(x, levels, end uint64) (uint64, error) {
	for range levels {
		x = Parent(x)
		if contains(x, end) {
			return 0, fmt.Errorf("%w: more levels than the tree has", ErrRequest)
		}
	}
	return x, nil
}

// get appends a node to dst and remembers the first failure.
func (p *prover) get(dst []Node, index uint64) []Node {
	if p.err != nil {
		return dst
	}
	n, err := p.r.Node(index)
	if err != nil {
		p.err = fmt.Errorf("merkle: node %d: %w", index, err)
		return dst
	}
	return append(dst, n)
}

// path puts the siblings from the target up to top into the target's list, and
// those of a seek in a sibling subtree into the seek's.
func (p *prover) path(top uint64) {
	x := p.target
	if p.isHash {
		p.targetIn = p.get(p.targetIn, x)
	}
	for x != top && p.err == nil {
		s := Sibling(x)
		if p.seek != none && s != p.seek && contains(s, p.seek) {
			p.seekPath(s)
		} else {
			p.targetIn = p.get(p.targetIn, s)
		}
		x = Parent(x)
	}
}

// seekPath puts the seek's node and its siblings up to top into the seek list.
func (p *prover) seekPath(top uint64) {
	p.hasSeek = true
	x := p.seek
	p.seekIn = p.get(p.seekIn, x)
	for x != top && p.err == nil {
		p.seekIn = p.get(p.seekIn, Sibling(x))
		x = Parent(x)
	}
}

// upgrade walks the roots of the log of to/2 blocks and returns what one who
// knows the log of from/2 blocks lacks. The target or seek that lies below a
// node takes that node's place.
func (p *prover) upgrade(from, to uint64, placed *bool) []Node {
	var nodes []Node
	emit := func(x uint64) {
		switch {
		case !*placed && contains(x, p.target):
			*placed = true
			p.path(x)
		case p.seek != none && !p.hasSeek && contains(x, p.seek):
			p.seekPath(x)
		default:
			nodes = p.get(nodes, x)
		}
	}
	var buf [64]uint64
	joined := from == 0
	for _, root := range AppendRoots(buf[:0], to/2) {
		_, end := Span(root)
		if 2*end <= from {
			continue // the other side has it
		}
		if !joined && contains(root, from-2) {
			joined = true
			for x := from - 2; x != root; x = Parent(x) {
				if s := Sibling(x); s > from-2 {
					emit(s)
				}
			}
			continue
		}
		joined = true
		emit(root)
	}
	return nodes
}

// sizeOf returns a node's size without the padding of its blocks.
func (p *prover) sizeOf(x, padding uint64) (uint64, error) {
	n, err := p.r.Node(x)
	if err != nil {
		return 0, fmt.Errorf("merkle: node %d: %w", x, err)
	}
	first, end := Span(x)
	if pad := padding * (end - first); padding == 0 || pad/(end-first) == padding && pad <= n.Size {
		return n.Size - pad, nil
	}
	return 0, fmt.Errorf("%w: padding of %d", ErrRequest, padding)
}

// seekFromHead finds byte s.Bytes in a log of length blocks; 2*length, which no
// node contains, if it lies behind.
func (p *prover) seekFromHead(length uint64, s SeekRequest) (uint64, error) {
	var buf [64]uint64
	bytes := s.Bytes
	for _, root := range AppendRoots(buf[:0], length) {
		size, err := p.sizeOf(root, s.Padding)
		if err != nil {
			return 0, err
		}
		if bytes == size {
			return root, nil
		}
		if bytes < size {
			return p.descend(root, bytes, s.Padding)
		}
		bytes -= size
	}
	return none, nil
}

// seekBelow finds byte s.Bytes below x for one who knows x's place only.
func (p *prover) seekBelow(x uint64, s SeekRequest) (uint64, error) {
	first, _ := Span(x)
	off, err := byteOffset(p.r, p.length, first)
	if err != nil {
		return 0, err
	}
	pad := s.Padding * first
	if s.Padding != 0 && (pad/s.Padding != first || pad > off) {
		return 0, fmt.Errorf("%w: padding of %d", ErrRequest, s.Padding)
	}
	off -= pad
	size, err := p.sizeOf(x, s.Padding)
	if err != nil {
		return 0, err
	}
	switch {
	case off > s.Bytes || size <= s.Bytes-off && off != s.Bytes:
		return 0, fmt.Errorf("%w: byte %d is not below node %d", ErrRequest, s.Bytes, x)
	case off == s.Bytes:
		return x, nil
	}
	return p.descend(x, s.Bytes-off, s.Padding)
}

// descend follows the byte count down from x as far as nodes are available.
func (p *prover) descend(x, bytes, padding uint64) (uint64, error) {
	if bytes == 0 {
		return x, nil
	}
	for Level(x) > 0 {
		left, right := Children(x)
		size, err := p.sizeOf(left, padding)
		if err != nil {
			return x, nil //nolint:nilerr // an asker can be led no deeper than we know
		}
		switch {
		case size == bytes:
			return left, nil
		case size > bytes:
			x = left
		default:
			bytes -= size
			x = right
		}
	}
	return x, nil
}

// byteOffset returns how many bytes lie before block i of a log of length
// blocks.
func byteOffset(r NodeReader, length, i uint64) (uint64, error) {
	var buf [64]uint64
	var off uint64
	for _, root := range AppendRoots(buf[:0], length) {
		first, end := Span(root)
		if i >= end {
			n, err := r.Node(root)
			if err != nil {
				return 0, fmt.Errorf("merkle: node %d: %w", root, err)
			}
			off += n.Size
			continue
		}
		for x := root; i > first; {
			left, right := Children(x)
			_, mid := Span(left)
			if i < mid {
				x = left
				continue
			}
			n, err := r.Node(left)
			if err != nil {
				return 0, fmt.Errorf("merkle: node %d: %w", left, err)
			}
			off += n.Size
			x, first = right, mid
		}
		break
	}
	return off, nil
}

// ByteOffset returns how many bytes lie before block i of a log of length
// blocks.
func ByteOffset(r NodeReader, length, i uint64) (uint64, error) {
	if i > length {
		return 0, fmt.Errorf("%w: offset of block %d of %d", ErrRequest, i, length)
	}
	return byteOffset(r, length, i)
}

// MissingNodes returns how many levels above node x are unknown to one who
// knows the roots of a log of length blocks, and which nodes known says: the
// Nodes of a [NodeRequest]. known may be nil.
func MissingNodes(x, length uint64, known func(index uint64) bool) uint64 {
	_, end := Span(x)
	if end > length {
		return 0
	}
	var buf [64]uint64
	roots := AppendRoots(buf[:0], length)
	count := uint64(0)
	for {
		for _, r := range roots {
			if r == x {
				return count
			}
		}
		if known != nil && known(x) {
			return count
		}
		x = Parent(x)
		count++
	}
}
