package merkle

import "fmt"

// Verifier holds what a reader of a feed trusts already. Verify never changes
// it: the caller stores what a [Verified] says, durably if need be, and then
// asks again with the new state.
type Verifier struct {
	// Key is the 32-byte feed key.
	Key Hash
	// Manifest is nil until one was verified.
	Manifest *Manifest
	// Fork is the fork that Length and Roots belong to.
	Fork uint64
	// Length and Roots are the newest trusted head; 0 and none at first.
	Length uint64
	Roots  []Node
	// Node looks up a trusted node that is no root; nil means there are none.
	Node func(index uint64) (Node, bool)
}

// Verified is what a valid proof adds to a [Verifier].
type Verified struct {
	// Nodes may be trusted from now on: their hashes are proved. Of two
	// siblings that both came without what is below them only the sum of the
	// sizes is; a proof down to the leaves proves each, and its nodes take the
	// place of older ones.
	Nodes []Node
	// Head is the new head; nil if the proof had no upgrade.
	Head *Head
	// Roots are those of Head.
	Roots []Node
	// Manifest is what was given to Verify, if it was needed and fits the key.
	Manifest *Manifest
}

// Verify checks a proof that belongs to fork v.Fork. manifest is what came with
// the proof, nil if nothing did. Errors wrap [ErrProof], [ErrSignature] or
// [ErrManifest].
func (v *Verifier) Verify(p *Proof, manifest *Manifest) (*Verified, error) {
	out := &Verified{}
	m := v.Manifest
	if m == nil && manifest != nil {
		if manifest.Key() != v.Key {
			return nil, fmt.Errorf("%w: it hashes to another key", ErrManifest)
		}
		m, out.Manifest = manifest, manifest
	}
	top, err := v.subtree(p, out)
	if err != nil {
		return nil, err
	}
	if p.Upgrade != nil {
		used, err := v.upgrade(p.Upgrade, top, m, out)
		if err != nil {
			return nil, err
		}
		if used {
			top = nil
		}
	}
	if top != nil {
		known, ok := v.trusted(top.Index)
		if !ok || known.Hash != top.Hash {
			return nil, fmt.Errorf("%w: node %d is not the trusted one", ErrProof, top.Index)
		}
		if len(out.Nodes) == 1 && p.Block == nil {
			out.Nodes[0] = known // a bare node: nothing proves the size it came with
		}
	}
	return out, nil
}

func (v *Verifier) trusted(index uint64) (Node, bool) {
	for _, r := range v.Roots {
		if r.Index == index {
			return r, true
		}
	}
	if v.Node == nil {
		return Node{}, false
	}
	return v.Node(index)
}

// subtree folds the block, hash and seek parts into one node, nil if there are
// none of them.
func (v *Verifier) subtree(p *Proof, out *Verified) (*Node, error) {
	var seek *Node
	if p.Seek != nil && len(p.Seek.Nodes) > 0 {
		n, err := fold(p.Seek.Nodes[0], p.Seek.Nodes[1:], nil, out)
		if err != nil {
			return nil, fmt.Errorf("seek: %w", err)
		}
		seek = &n
	}
	var start Node
	var rest []Node
	switch {
	case p.Block != nil && p.Hash != nil:
		return nil, fmt.Errorf("%w: block and hash at once", ErrProof)
	case p.Block != nil:
		start, rest = Leaf(p.Block.Index, p.Block.Value), p.Block.Nodes
	case p.Hash != nil:
		if len(p.Hash.Nodes) == 0 || p.Hash.Nodes[0].Index != p.Hash.Index {
			return nil, fmt.Errorf("%w: hash part does not begin with node %d", ErrProof, p.Hash.Index)
		}
		start, rest = p.Hash.Nodes[0], p.Hash.Nodes[1:]
	default:
		return seek, nil
	}
	n, err := fold(start, rest, seek, out)
	if err != nil {
		return nil, err
	}
	return &n, nil
}

// fold climbs from x: each further node must be the sibling; extra takes the
// place of the one it is. All nodes are collected.
func fold(x Node, rest []Node, extra *Node, out *Verified) (Node, error) {
	out.Nodes = append(out.Nodes, x)
	for len(rest) > 0 || extra != nil {
		want := Sibling(x.Index)
		var s Node
		switch {
		case extra != nil && extra.Index == want:
			s, extra = *extra, nil
		case len(rest) > 0 && rest[0].Index == want:
			s, rest = rest[0], rest[1:]
			out.Nodes = append(out.Nodes, s)
		default:
			return x, fmt.Errorf("%w: no sibling of node %d", ErrProof, x.Index)
		}
		if s.Size > maxBytes-x.Size {
			return x, fmt.Errorf("%w: sizes overflow", ErrProof)
		}
		x = Join(x, s)
		out.Nodes = append(out.Nodes, x)
	}
	return x, nil
}

// maxBytes bounds the size of a log: what a JavaScript peer can count.
const maxBytes = 1<<53 - 1

// grow is a set of roots to which an upgrade appends.
type grow struct {
	roots []Node
	out   *Verified
}

func (g *grow) last() Node { return g.roots[len(g.roots)-1] }

// append adds a node to the right and merges siblings.
func (g *grow) append(n Node) error {
	if len(g.roots) >= 2*MaxRoots || n.Size > maxBytes {
		return fmt.Errorf("%w: too large a tree", ErrProof)
	}
	g.out.Nodes = append(g.out.Nodes, n)
	g.roots = append(g.roots, n)
	for len(g.roots) > 1 {
		a, b := g.roots[len(g.roots)-2], g.last()
		if a.Index != Sibling(b.Index) || a.Index > b.Index {
			break
		}
		if a.Size > maxBytes-b.Size {
			return fmt.Errorf("%w: sizes overflow", ErrProof)
		}
		up := Join(a, b)
		g.roots = append(g.roots[:len(g.roots)-2], up)
		g.out.Nodes = append(g.out.Nodes, up)
	}
	return nil
}

// upgrade checks the upgrade part, with top as one node that it may need, and
// tells whether it did.
func (v *Verifier) upgrade(u *UpgradePart, top *Node, m *Manifest, out *Verified) (used bool, err error) {
	if u.Start > maxBytes || u.Length == 0 || u.Length > maxBytes-u.Start || u.Start+u.Length <= v.Length {
		return false, fmt.Errorf("%w: upgrade from %d by %d of a head of %d", ErrProof, u.Start, u.Length, v.Length)
	}
	nodes := u.Nodes
	take := func(index uint64) (Node, error) {
		if top != nil && !used && top.Index == index {
			used = true
			return *top, nil
		}
		if len(nodes) == 0 || nodes[0].Index != index {
			return Node{}, fmt.Errorf("%w: upgrade lacks node %d", ErrProof, index)
		}
		n := nodes[0]
		nodes = nodes[1:]
		return n, nil
	}
	g := &grow{roots: append([]Node(nil), v.Roots...), out: out}
	var buf [64]uint64
	i := 0
	for _, r := range AppendRoots(buf[:0], u.Start+u.Length) {
		if i < len(g.roots) && g.roots[i].Index == r {
			i++
			continue
		}
		if i < len(g.roots) { // the remaining trusted roots lie inside r
			for g.last().Index != r {
				n, err := take(Sibling(g.last().Index))
				if err != nil {
					return used, err
				}
				if n.Index < g.last().Index {
					return used, fmt.Errorf("%w: node %d comes too late", ErrProof, n.Index)
				}
				if err := g.append(n); err != nil {
					return used, err
				}
			}
		} else {
			n, err := take(r)
			if err != nil {
				return used, err
			}
			if err := g.append(n); err != nil {
				return used, err
			}
		}
		i = len(g.roots)
	}
	if len(nodes) > 0 {
		return used, fmt.Errorf("%w: upgrade has %d nodes too many", ErrProof, len(nodes))
	}
	if err := g.additional(u.Additional); err != nil {
		return used, err
	}
	return used, v.finish(g, u.Signature, m, out)
}

// additional appends what leads from the asked length to the signed one.
func (g *grow) additional(nodes []Node) error {
	for len(nodes) > 0 && nodes[0].Index == Sibling(g.last().Index) {
		if nodes[0].Index < g.last().Index {
			return fmt.Errorf("%w: additional node %d comes too late", ErrProof, nodes[0].Index)
		}
		if err := g.append(nodes[0]); err != nil {
			return err
		}
		nodes = nodes[1:]
	}
	if len(nodes) == 0 {
		return nil
	}
	c := Sibling(g.last().Index)
	for _, n := range nodes {
		for c != n.Index {
			if Level(c) == 0 {
				return fmt.Errorf("%w: additional node %d does not follow", ErrProof, n.Index)
			}
			c, _ = Children(c)
		}
		if err := g.append(n); err != nil {
			return err
		}
		c = Sibling(g.last().Index)
	}
	return nil
}

// finish checks that the roots are those of a log and that its head is signed.
func (v *Verifier) finish(g *grow, signature []byte, m *Manifest, out *Verified) error {
	_, length := Span(g.last().Index)
	t, err := NewTree(length, g.roots)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProof, err)
	}
	if t.ByteLength() > maxBytes {
		return fmt.Errorf("%w: sizes overflow", ErrProof)
	}
	if m == nil {
		c := CompatManifest(v.Key)
		m = &c
	}
	head := Head{Fork: v.Fork, Length: length, TreeHash: t.Hash()}
	if err := m.Verify(v.Key, head, signature); err != nil {
		return err
	}
	out.Head, out.Roots = &head, g.roots
	return nil
}
