package nodes

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// grow returns the tiles of a segment [first, end) of a log of random blocks, and
// the roots before it.
func grow(seed, first, end uint64) (t Tiles, roots []byte, all map[uint64]merkle.Node) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var tree merkle.Tree
	all = map[uint64]merkle.Node{}
	for i := range end {
		if i == first {
			roots = AppendRoots(nil, tree.Roots())
			t.Start(first)
		}
		for _, n := range tree.Append(nil, merkle.Leaf(i, []byte{byte(rng.Uint32())})) {
			if all[n.Index] = n; i >= first {
				t.Add(n)
			}
		}
	}
	return t, roots, all
}

// TestTiles finds each node that ends in a segment, from the stored level on, and
// none besides; before and after the segment was written, and cut.
func TestTiles(t *testing.T) {
	for _, c := range []struct{ first, end uint64 }{{0, 1}, {0, 40}, {7, 100}, {64, 128}, {100, 5000}, {4095, 4097}} {
		tl, roots, all := grow(1, c.first, c.end)
		back, rest, err := ParseTiles(append(tl.Append(nil, 1<<20), "more"...), c.first, c.end)
		if err != nil || string(rest) != "more" {
			t.Fatal(err, rest)
		}
		if err := back.Check(&tl); err != nil {
			t.Error(err)
		}
		small, _, err := ParseTiles(tl.Append(nil, 2000), c.first, c.end)
		if err != nil || len(tl.Append(nil, 2000)) > 2000 {
			t.Fatal(err)
		}
		cut := tl
		half := (c.first + c.end) / 2
		cut.Cut(half)
		for _, s := range []struct {
			t   *Tiles
			end uint64
		}{{&tl, c.end}, {back, c.end}, {small, c.end}, {&cut, half}} {
			for x := range 2 * c.end {
				_, end := merkle.Span(x)
				n, ok := s.t.Find(x)
				there := end > c.first && end <= s.end && merkle.Level(x) >= s.t.Low()
				if ok != there || ok && n != all[x] {
					t.Fatalf("[%d, %d): node %d is %v, %v", c.first, s.end, x, n, ok)
				}
			}
		}
		tree, err := ParseRoots(roots, c.first)
		if err != nil || !bytes.Equal(AppendRoots(nil, tree.Roots()), roots) {
			t.Fatal(err)
		}
		for x := range 2*c.first + 1 {
			if n, ok := FindRoot(roots, c.first, x); ok && n != all[x] {
				t.Errorf("root %d", x)
			}
		}
	}
}

// TestCheck finds every changed byte of stored nodes, also of those below what was
// computed anew.
func TestCheck(t *testing.T) {
	whole, _, _ := grow(2, 30, 90)
	b := whole.Append(nil, 1<<20)
	high := whole
	high.low = 3
	for _, computed := range []*Tiles{&whole, &high} {
		for i := 1; i < len(b); i += 7 {
			bad := bytes.Clone(b)
			bad[i] ^= 1
			tl, _, err := ParseTiles(bad, 30, 90)
			if err == nil {
				err = tl.Check(computed)
			}
			// The first node of a level, if it is a right one, is below nothing that is here.
			if n := (i - 1) / Size; !errors.Is(err, storage.ErrCorrupt) && (computed == &whole || n != 60 && n != 90) {
				t.Errorf("byte %d of node %d changed: %v", i, n, err)
			}
		}
	}
}

// FuzzBytes parses any bytes as everything that this package writes.
func FuzzBytes(f *testing.F) {
	tl, roots, all := grow(1, 7, 40)
	f.Add(uint8(7), uint8(33), tl.Append(nil, 1<<16))
	f.Add(uint8(0), uint8(7), roots)
	f.Add(uint8(3), uint8(7), AppendKept(nil, all))
	f.Fuzz(func(t *testing.T, first, more uint8, b []byte) {
		from, end := uint64(first), uint64(first)+uint64(more)
		if tl, _, err := ParseTiles(b, from, end); err == nil {
			again := tl.Append(nil, 1<<20)
			if back, rest, err := ParseTiles(again, from, end); err != nil || len(rest) != 0 || back.low != tl.low {
				t.Fatalf("tiles do not survive: %v", err)
			}
			_ = tl.Check(tl)
			tl.Cut(from + uint64(more/2))
			_, _ = tl.Find(2 * from)
		}
		if tree, err := ParseRoots(b, end); err == nil && len(AppendRoots(nil, tree.Roots())) != len(b) {
			t.Fatal("roots do not survive")
		}
		if kept, err := ParseKept(b); err == nil && len(AppendKept(nil, kept)) > len(b) {
			t.Fatal("kept nodes grow")
		}
	})
}
