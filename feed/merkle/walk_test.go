package merkle

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
)

// asked is a block that was asked for when the log had a certain length.
type asked struct{ block, levels, length uint64 }

// TestWalk walks random logs that grow meanwhile, with many blocks asked for
// ahead, and tampers.
func TestWalk(t *testing.T) {
	for seed := range uint64(3000) {
		walk(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func walk(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 77))
	n := uint64(1 + rng.IntN(70))
	blocks := randomBlocks(rng, int(n))
	log := newMemory(blocks)
	rootsAt := func(length uint64) []Node {
		var tree Tree
		for i := range length {
			tree.Append(nil, Leaf(i, blocks[i]))
		}
		return append([]Node(nil), tree.Roots()...)
	}
	length := 1 + rng.Uint64N(n)
	begin := rng.Uint64N(length)
	var w Walk
	w.Reset(begin, length, rootsAt(length))
	var queue []asked
	next := begin
	for w.Next() < n {
		switch k := rng.IntN(10); {
		case k < 4 && next < length:
			queue = append(queue, asked{next, Levels(next, begin, length), length})
			next++
		case k < 5 && next == length && length < n:
			grown := length + 1 + rng.Uint64N(n-length)
			p, err := Prove(log, grown, Request{Upgrade: &UpgradeRequest{length, grown - length}})
			if err != nil {
				t.Fatal(err)
			}
			out := &Verified{}
			v := &Verifier{Length: length, Roots: rootsAt(length)}
			// Without a key there is no signature; the nodes are there all the same.
			if _, err := v.upgrade(p.Upgrade, nil, nil, out); !errors.Is(err, ErrSignature) {
				t.Fatal(err)
			}
			length = grown
			w.Grow(length, rootsAt(length), out.Nodes)
		case len(queue) > 0:
			a := queue[0]
			p, err := Prove(log, a.length, Request{Block: &NodeRequest{a.block, a.levels}})
			if err != nil {
				t.Fatalf("block %d, %d levels of %d: %v", a.block, a.levels, a.length, err)
			}
			if rng.IntN(4) == 0 {
				bad := append([]Node(nil), p.Block.Nodes...)
				value := append([]byte(nil), blocks[a.block]...)
				switch {
				case len(bad) > 0 && rng.IntN(2) == 0:
					bad[rng.IntN(len(bad))].Hash[3] ^= 4
				case len(bad) > 0 && rng.IntN(2) == 0:
					bad = bad[:len(bad)-1]
				default:
					value = append(value, 'x')
				}
				if err := w.Verify(value, bad); !errors.Is(err, ErrProof) {
					t.Errorf("tampered block %d: %v", a.block, err)
				}
			}
			if err := w.Verify(blocks[a.block], p.Block.Nodes); err != nil {
				t.Fatalf("block %d from %d, %d levels of %d, now %d: %v", a.block, begin, a.levels, a.length, length, err)
			}
			if w.Next() != a.block+1 {
				t.Fatalf("next is %d behind block %d", w.Next(), a.block)
			}
			queue = queue[1:]
			left, ok := w.Left(nil)
			if want := rootsAt(w.Next()); !ok || !slices.Equal(left, want) {
				t.Fatalf("roots of %d from %d, %d blocks: %v %v, want %v", w.Next(), begin, length, left, ok, want)
			}
		}
	}
	if err := w.Verify(nil, nil); w.Next() == length && !errors.Is(err, ErrProof) {
		t.Errorf("a block behind the end: %v", err)
	}
}

// TestWalkTravels counts the nodes of a whole log: each travels once.
func TestWalkTravels(t *testing.T) {
	const n = 1 << 12
	total := uint64(0)
	for i := range uint64(n) {
		total += Levels(i, 0, n)
	}
	if total != n-1 {
		t.Errorf("%d nodes for %d blocks", total, n)
	}
}

func TestWalkAllocates(t *testing.T) {
	blocks := make([][]byte, 256)
	log := newMemory(blocks)
	var tree Tree
	for i := range blocks {
		tree.Append(nil, Leaf(uint64(i), nil))
	}
	paths := make([][]Node, len(blocks))
	for i := range paths {
		p, err := Prove(log, 256, Request{Block: &NodeRequest{uint64(i), Levels(uint64(i), 0, 256)}})
		if err != nil {
			t.Fatal(err)
		}
		paths[i] = p.Block.Nodes
	}
	var w Walk
	if n := testing.AllocsPerRun(10, func() {
		w.Reset(0, 256, tree.Roots())
		for _, p := range paths {
			if err := w.Verify(nil, p); err != nil {
				t.Fatal(err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
