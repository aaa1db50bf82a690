package feed

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"math/rand/v2"
	"testing"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/feed/nodes"
	"dazaar-edge/storage"
)

// TestTree compares every node that can be asked for, and random proofs of a
// rekeyed feed, with a tree in memory: over many segments, after reopening and
// with a dropped part.
func TestTree(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 3))
		segments := int64(40)
		if seed%3 == 1 {
			segments = 9 // part of it is dropped
		}
		e := newEnv(t, seed, segments*smallSegment)
		e.open()
		ref := newReference()
		var blocks [][]byte
		for round := range 4 {
			more := e.fill(rng, 300+rng.IntN(1200))
			blocks = append(blocks, more...)
			ref.add(more...)
			if round%2 == 1 {
				if seed%2 == 0 {
					if err := e.log.Close(); err != nil {
						t.Fatal(err)
					}
				} else {
					e.log.Abort()
					e.disk.Kill()
				}
				e.open()
			}
			h := e.log.Head()
			if h.Length != ref.tree.Length() || h.TreeHash != ref.tree.Hash() || h.ByteLength != ref.tree.ByteLength() {
				t.Fatalf("seed %d: head %+v", seed, h)
			}
			e.checkNodes(ref, seed)
			e.checkProofs(rng, ref, blocks, seed)
		}
		e.log.Close()
	}
}

// checkNodes asks for all nodes: those of which the log has all blocks, or that
// are roots of the dropped part, must be there and right.
func (e *env) checkNodes(ref *reference, seed uint64) {
	e.t.Helper()
	h := e.log.tree.published()
	r := nodeReader{e.log, h}
	first := e.log.st.First()
	for x, want := range ref.nodes {
		got, err := r.Node(x)
		if err == nil && got != want {
			e.t.Fatalf("seed %d: node %d is wrong", seed, x)
		}
		if from, _ := merkle.Span(x); err != nil && (from >= first || !errors.Is(err, merkle.ErrMissing)) {
			e.t.Fatalf("seed %d: node %d (blocks from %d, log from %d): %v", seed, x, from, first, err)
		}
	}
}

func (e *env) checkProofs(rng *rand.Rand, ref *reference, blocks [][]byte, seed uint64) {
	e.t.Helper()
	f, err := e.log.Rekey([32]byte{byte(seed), 9})
	if err != nil {
		e.t.Fatal(err)
	}
	if !f.Settled(0, 0) {
		if err := f.Settle(&merkle.Head{}, 0); err != nil {
			e.t.Fatal(err)
		}
	}
	m := f.Manifest()
	h := e.log.Head()
	for range 30 {
		start := h.First + uint64(rng.IntN(int(h.Length-h.First)))
		old := ref.at(start)
		v := &merkle.Verifier{
			Key: f.Key(), Manifest: &m, Fork: f.Fork(), Length: start, Roots: old.tree.Roots(),
			Node: func(x uint64) (merkle.Node, bool) { n, ok := old.nodes[x]; return n, ok },
		}
		i := h.First + uint64(rng.IntN(int(h.Length-h.First)))
		req := merkle.Request{
			Block:   &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, start, nil)},
			Upgrade: &merkle.UpgradeRequest{Start: start, Length: h.Length - start},
		}
		if !e.log.CanUpgrade(start) {
			e.t.Fatalf("seed %d: cannot upgrade from %d of [%d, %d)", seed, start, h.First, h.Length)
		}
		p, head, err := f.Proof(req)
		if err != nil {
			e.t.Fatalf("seed %d: proof of %d from %d: %v", seed, i, start, err)
		}
		got, err := v.Verify(&p, nil)
		if err != nil {
			e.t.Fatalf("seed %d: proof of %d from %d does not verify: %v", seed, i, start, err)
		}
		if *got.Head != head || !bytes.Equal(p.Block.Value, blocks[i]) {
			e.t.Fatalf("seed %d: head %+v, block %d", seed, got.Head, i)
		}
	}
}

// TestKeptNodes checks that buyers whose head was dropped can be upgraded, if
// it was signed for them, and that others are told that they cannot.
func TestKeptNodes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	e := newEnv(t, 1, 40*smallSegment)
	e.open()
	defer func() { e.log.Close() }()
	ref := newReference()
	type old struct {
		head  merkle.Head
		roots []merkle.Node
		feed  *Feed
	}
	var buyers []old
	for e.log.Head().First < 2000 {
		ref.add(e.fill(rng, 100+rng.IntN(300))...)
		if len(buyers) < 12 {
			f, err := e.log.Rekey([32]byte{byte(len(buyers))})
			if err != nil {
				t.Fatal(err)
			}
			h, _, err := f.Head()
			if err != nil {
				t.Fatal(err)
			}
			buyers = append(buyers, old{h, append([]merkle.Node(nil), ref.tree.Roots()...), f})
		}
	}
	first := e.log.Head().First
	checked := 0
	for i, b := range buyers {
		if b.head.Length >= first {
			continue
		}
		checked++
		if !e.log.CanUpgrade(b.head.Length) {
			t.Fatalf("buyer %d: head of %d blocks cannot be upgraded (log from %d)", i, b.head.Length, first)
		}
		p, head, err := b.feed.Proof(merkle.Request{Upgrade: &merkle.UpgradeRequest{Start: b.head.Length, Length: ref.tree.Length() - b.head.Length}})
		if err != nil {
			t.Fatal(err)
		}
		m := b.feed.Manifest()
		v := merkle.Verifier{Key: b.feed.Key(), Manifest: &m, Length: b.head.Length, Roots: b.roots}
		if got, err := v.Verify(&p, nil); err != nil || *got.Head != head {
			t.Fatalf("buyer %d: %v", i, err)
		}
	}
	if checked < 3 {
		t.Fatalf("only %d buyers were left behind", checked)
	}
	cannot := 0
	for length := uint64(1); length < first; length++ {
		if !e.log.CanUpgrade(length) {
			cannot++
		}
	}
	if cannot < int(first)/2 {
		t.Errorf("only %d of %d dropped heads cannot be upgraded: nodes are not dropped", cannot, first)
	}
}

// TestWeights checks what blocks weigh: readings and sensed time, which does not
// run over gaps, boots and entries.
func TestWeights(t *testing.T) {
	e := newEnv(t, 1, 10*smallSegment)
	e.cfg.Encoding = block.SenMLJSON
	e.open()
	var blocks []block.Block
	pack := func(boot uint32, second float64, n int) {
		p := &block.Pack{Stamp: stamp(boot, second)}
		for range n {
			p.Readings = append(p.Readings, block.Reading{Name: "x", Value: block.Number(1)})
		}
		b, err := block.SenMLJSON.Pack(p)
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	entry := func(kind block.Kind, boot uint32, second float64) {
		b, err := block.SenMLJSON.Entry(&block.Entry{Kind: kind, Stamp: stamp(boot, second)})
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	pack(1, 1, 2)
	pack(1, 3.5, 1)
	entry(block.Clock, 1, 4)
	pack(1, 5, 1)
	entry(block.GapEntry, 1, 90)
	pack(1, 100, 3)
	entry(block.Boot, 2, 0)
	pack(2, 1, 1)
	pack(2, 2, 1)
	want := []storage.Weight{{Readings: 2}, {Readings: 1, Span: 2500}, {}, {Readings: 1, Span: 1500}, {}, {Readings: 3}, {}, {Readings: 1}, {Readings: 1, Span: 1000}}
	for i, b := range blocks {
		if _, err := e.log.Append(context.Background(), b); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 { // the last pack is found again
			e.log.Close()
			e.open()
		}
	}
	for i, w := range want {
		if _, got, err := e.log.Get(uint64(i)); err != nil || got != w {
			t.Errorf("block %d: %+v, want %+v (%v)", i, got, w, err)
		}
	}
	e.log.Close()
}

// TestSegmentSignature checks the device's signature at a segment's close.
func TestSegmentSignature(t *testing.T) {
	e := newEnv(t, 1, 20*smallSegment)
	e.open()
	defer e.log.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	e.fill(rng, 2000)
	seg, err := e.log.st.SegmentAt(0)
	if err != nil || seg.Open {
		t.Fatal(err, seg.Open)
	}
	_, sig, err := nodes.ParseTiles(seg.Summary, seg.First, seg.End)
	if err != nil {
		t.Fatal(err)
	}
	h, err := e.log.TreeHashAt(seg.End)
	if err != nil {
		t.Fatal(err)
	}
	pub := testKeys{1}.device().Public().(ed25519.PublicKey)
	if !ed25519.Verify(pub, SegmentSignable("air", h, seg.End), sig) {
		t.Error("device signature does not verify")
	}
}
