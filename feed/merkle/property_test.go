package merkle

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// The naive model: the tree straight from its definition, by recursion over
// ranges of blocks, sharing no code with the package.

type naiveLog [][]byte

func naiveHash(parts ...[]byte) Hash {
	var all []byte
	for _, p := range parts {
		all = append(all, p...)
	}
	return blake2b.Sum256(all)
}

func le(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

// node returns hash and size of the perfect tree over blocks [a, b).
func (l naiveLog) node(a, b uint64) (Hash, uint64) {
	if b-a == 1 {
		return naiveHash([]byte{0}, le(uint64(len(l[a]))), l[a]), uint64(len(l[a]))
	}
	m := (a + b) / 2
	lh, ls := l.node(a, m)
	rh, rs := l.node(m, b)
	return naiveHash([]byte{1}, le(ls+rs), lh[:], rh[:]), ls + rs
}

// ranges returns the ranges of the roots: the binary digits of the length.
func (l naiveLog) ranges() (out [][2]uint64) {
	at, n := uint64(0), uint64(len(l))
	for bit := 62; bit >= 0; bit-- {
		if w := uint64(1) << bit; n&w != 0 {
			out = append(out, [2]uint64{at, at + w})
			at += w
		}
	}
	return out
}

// flatIndex is the in-order number of the perfect tree over [a, b).
func flatIndex(a, b uint64) uint64 { return a + b - 1 }

func (l naiveLog) treeHash() Hash {
	parts := [][]byte{{2}}
	for _, r := range l.ranges() {
		h, s := l.node(r[0], r[1])
		parts = append(parts, h[:], le(flatIndex(r[0], r[1])), le(s))
	}
	return naiveHash(parts...)
}

// siblings returns what proves block i below its root, bottom up.
func (l naiveLog) siblings(i uint64) (out []Node) {
	for _, r := range l.ranges() {
		if i < r[0] || i >= r[1] {
			continue
		}
		for a, b := r[0], r[1]; b-a > 1; {
			m := (a + b) / 2
			oa, ob := m, b
			if i >= m {
				oa, ob = a, m
				a = m
			} else {
				b = m
			}
			h, s := l.node(oa, ob)
			out = append([]Node{{flatIndex(oa, ob), s, h}}, out...)
		}
	}
	return out
}

func randomBlocks(rng *rand.Rand, n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		size := rng.IntN(40)
		if rng.IntN(20) == 0 {
			size = 200 + rng.IntN(200) // both sides of the stack buffer
		}
		out[i] = make([]byte, size)
		for j := range out[i] {
			out[i][j] = byte(rng.Uint32())
		}
	}
	return out
}

// TestRandomLogs compares 10,000 random logs with the naive model: every node,
// root and tree hash, a block proof, and random requests verified by a reader
// at a random earlier head.
func TestRandomLogs(t *testing.T) {
	priv := seedKey(5)
	m := NewManifest(public(priv))
	key := m.Key()
	for seed := range uint64(10_000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := 1 + rng.IntN(40)
		blocks := randomBlocks(rng, n)
		log, naive := newMemory(blocks), naiveLog(blocks)
		if log.tree.Hash() != naive.treeHash() {
			t.Fatalf("seed %d: tree hash", seed)
		}
		for x, node := range log.nodes {
			a, b := Span(x)
			if h, s := naive.node(a, b); h != node.Hash || s != node.Size || flatIndex(a, b) != x {
				t.Fatalf("seed %d: node %d", seed, x)
			}
		}
		i := uint64(rng.IntN(n))
		want := naive.siblings(i)
		p, err := Prove(log, uint64(n), Request{Block: &NodeRequest{i, uint64(len(want))}})
		if err != nil || fmt.Sprint(p.Block.Nodes) != fmt.Sprint(want) {
			t.Fatalf("seed %d: block %d: %v, %v want %v", seed, i, err, p.Block, want)
		}
		var off uint64
		for _, b := range blocks[:i] {
			off += uint64(len(b))
		}
		if got, err := ByteOffset(log, uint64(n), i); err != nil || got != off {
			t.Fatalf("seed %d: offset of %d: %d, want %d (%v)", seed, i, got, off, err)
		}
		head := Head{Fork: seed % 3, Length: uint64(n), TreeHash: log.tree.Hash()}
		sig := m.Sign(priv, key, head)
		start := uint64(rng.IntN(n + 1))
		v := verifierAt(log, blocks, &m, start)
		v.Fork = head.Fork
		req := randomRequest(rng, v, uint64(n), naive)
		p, err = Prove(log, uint64(n), req)
		if err != nil {
			if errors.Is(err, ErrRequest) && req.Seek != nil {
				continue // the byte lies elsewhere
			}
			t.Fatalf("seed %d: %+v: %v", seed, req, err)
		}
		if p.Block != nil {
			p.Block.Value = blocks[p.Block.Index]
		}
		if p.Upgrade != nil {
			p.Upgrade.Signature = sig
		}
		got, err := v.Verify(&p, nil)
		if err != nil {
			t.Fatalf("seed %d: %+v at %d of %d: %v", seed, req, start, n, err)
		}
		for _, node := range got.Nodes {
			if log.nodes[node.Index] != node {
				t.Fatalf("seed %d: untrue node %d accepted", seed, node.Index)
			}
		}
		if got.Head != nil && *got.Head != head {
			t.Fatalf("seed %d: head %+v", seed, got.Head)
		}
		tamper(t, rng, v, &p, log, seed)
	}
}

func randomRequest(rng *rand.Rand, v *Verifier, n uint64, l naiveLog) (req Request) {
	start := v.Length
	if start < n {
		req.Upgrade = &UpgradeRequest{start, 1 + uint64(rng.IntN(int(n-start)))}
	}
	switch rng.IntN(4) {
	case 0:
		if start > 0 {
			i := uint64(rng.IntN(int(start)))
			req.Block = &NodeRequest{i, MissingNodes(2*i, start, func(uint64) bool { return rng.IntN(3) == 0 })}
		}
	case 1:
		if req.Upgrade != nil {
			req.Block = &NodeRequest{start + uint64(rng.IntN(int(req.Upgrade.Length))), 0}
		}
	case 2:
		if start > 0 {
			i := uint64(rng.IntN(int(start)))
			req.Upgrade = nil
			req.Hash = &NodeRequest{2 * i, MissingNodes(2*i, start, nil)}
			_, end := Span(Ancestor(i, uint(req.Hash.Nodes)))
			var bytes uint64
			for _, b := range l[:end] {
				bytes += uint64(len(b))
			}
			req.Seek = &SeekRequest{Bytes: uint64(rng.IntN(int(bytes) + 1))}
		}
	case 3:
		if req.Upgrade != nil {
			var bytes uint64
			for _, b := range l[:req.Upgrade.Start+req.Upgrade.Length] {
				bytes += uint64(len(b))
			}
			req.Seek = &SeekRequest{Bytes: uint64(rng.IntN(int(bytes) + 1))}
		}
	}
	return req
}

// tamper flips one bit somewhere in the proof: it must not verify, or must not
// make an untrue node trusted.
func tamper(t *testing.T, rng *rand.Rand, v *Verifier, p *Proof, log *memory, seed uint64) {
	raw := p.Append(nil)
	if len(raw) == 0 {
		return // nothing was asked for
	}
	raw[rng.IntN(len(raw))] ^= 1 << rng.IntN(8)
	bad, _, err := ParseProof(p.Flags(), raw)
	if err != nil {
		return
	}
	got, err := v.Verify(&bad, nil)
	if err != nil {
		return
	}
	for _, node := range got.Nodes {
		if log.nodes[node.Index] != node {
			t.Fatalf("seed %d: tampered proof makes node %d trusted", seed, node.Index)
		}
	}
	if got.Head != nil && got.Head.TreeHash != log.tree.Hash() {
		t.Fatalf("seed %d: tampered head accepted", seed)
	}
}

// TestAppendAllocates pins that the append path allocates nothing.
func TestAppendAllocates(t *testing.T) {
	var tree Tree
	block := make([]byte, 64)
	scratch := make([]Node, 0, MaxRoots+1)
	if n := testing.AllocsPerRun(1000, func() { tree.Append(scratch, Leaf(tree.Length(), block)) }); n != 0 {
		t.Errorf("%v allocations a block", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = tree.Hash() }); n != 0 {
		t.Errorf("%v allocations a tree hash", n)
	}
}

func TestNewTree(t *testing.T) {
	log := newMemory(randomBlocks(rand.New(rand.NewPCG(1, 1)), 13))
	again, err := NewTree(13, log.tree.Roots())
	if err != nil || again.Hash() != log.tree.Hash() || again.ByteLength() != log.tree.ByteLength() {
		t.Fatal(err)
	}
	for _, length := range []uint64{0, 12, 14, 1 << 52} {
		if _, err := NewTree(length, log.tree.Roots()); !errors.Is(err, ErrShape) {
			t.Errorf("roots of 13 taken for %d: %v", length, err)
		}
	}
}

// TestForgedManifest checks that a manifest which names the feed key as its
// signer, and pins a forged tree in its prologue, is not taken for the feed's.
func TestForgedManifest(t *testing.T) {
	m := NewManifest(public(seedKey(1)))
	key := m.Key()
	log := newMemory(randomBlocks(rand.New(rand.NewPCG(1, 1)), 5))
	p, err := Prove(log, 5, Request{Upgrade: &UpgradeRequest{0, 5}})
	if err != nil {
		t.Fatal(err)
	}
	forged := Manifest{
		Version: 1, Quorum: 1, Signers: []Signer{{DefaultNamespace(), key}}, Prologue: &Prologue{TreeHash: log.tree.Hash(), Length: 5},
	}
	v := Verifier{Key: key}
	if got, err := v.Verify(&p, &forged); err == nil {
		t.Fatalf("forged head accepted: %+v", got.Head)
	}
	if err := forged.Verify(key, Head{Length: 5, TreeHash: log.tree.Hash()}, nil); !errors.Is(err, ErrSignature) {
		t.Fatal(err)
	}
}

func FuzzProof(f *testing.F) {
	blocks := randomBlocks(rand.New(rand.NewPCG(3, 3)), 13)
	log := newMemory(blocks)
	priv := seedKey(5)
	m := NewManifest(public(priv))
	for _, req := range []Request{
		{Upgrade: &UpgradeRequest{5, 4}}, {Block: &NodeRequest{3, 2}}, {Hash: &NodeRequest{2, 1}},
		{Block: &NodeRequest{9, 0}, Upgrade: &UpgradeRequest{5, 8}}, {Seek: &SeekRequest{Bytes: 40}, Upgrade: &UpgradeRequest{0, 13}},
	} {
		p, err := Prove(log, 13, req)
		if err != nil {
			f.Fatal(err)
		}
		if p.Upgrade != nil {
			p.Upgrade.Signature = m.Sign(priv, m.Key(), Head{Length: 13, TreeHash: log.tree.Hash()})
		}
		f.Add(byte(p.Flags()), byte(5), p.Append(nil))
	}
	f.Fuzz(func(t *testing.T, flags, start byte, raw []byte) {
		p, _, err := ParseProof(uint64(flags&15), raw)
		if err != nil {
			return
		}
		v := verifierAt(log, blocks, &m, uint64(start%14))
		if got, err := v.Verify(&p, nil); err == nil && got.Head != nil && got.Head.TreeHash != log.tree.Hash() {
			t.Fatal("forged head")
		}
	})
}

func FuzzRequest(f *testing.F) {
	log := newMemory(randomBlocks(rand.New(rand.NewPCG(3, 3)), 13))
	f.Add(byte(9), (&Request{Block: &NodeRequest{9, 0}, Upgrade: &UpgradeRequest{5, 8}}).Append(nil))
	f.Fuzz(func(t *testing.T, flags byte, raw []byte) {
		req, _, err := ParseRequest(uint64(flags&15), raw)
		if err != nil {
			return
		}
		if _, err := Prove(log, 13, req); errors.Is(err, ErrMissing) {
			t.Fatalf("%+v asks for a node that does not exist: %v", req, err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	m := NewManifest(public(seedKey(1)))
	f.Add(m.Append(nil))
	m.Version, m.UserData, m.Linked, m.Prologue = 2, []byte("x"), []Hash{{1}}, &Prologue{Length: 3}
	f.Add(m.Append(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, _, err := ParseManifest(raw)
		if err != nil {
			return
		}
		again, rest, err := ParseManifest(m.Append(nil))
		if err != nil || len(rest) != 0 || again.Key() != m.Key() {
			t.Fatalf("manifest does not survive: %v", err)
		}
		_ = m.Verify(m.Key(), Head{Length: 5}, raw)
	})
}
