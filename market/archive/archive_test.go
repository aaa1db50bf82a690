package archive

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/faultfs"
)

func testBlock(rng *rand.Rand) []byte {
	b := make([]byte, rng.IntN(300))
	if rng.IntN(20) == 0 {
		b = make([]byte, bufferSize)
	}
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// buyer stands for the one that uses an archive: it appends, goes back to an
// earlier block, drops what is old and saves.
type buyer struct {
	a      *Archive
	blocks map[uint64][]byte
	parts  []replicate.Part
	next   uint64
	fork   uint64
}

func (b *buyer) state() State {
	var tree merkle.Tree
	tree.Append(nil, merkle.Leaf(0, []byte{byte(b.next)}))
	h := merkle.Head{Fork: b.fork, Length: 1, TreeHash: tree.Hash()}
	return State{
		Feed: merkle.Hash{1, 2}, Generation: 3, Output: int64(b.next * 7),
		Kept: replicate.Kept{Head: h, Roots: tree.Roots(), Signature: []byte{9}, Cursor: b.next, Parts: slices.Clone(b.parts)},
	}
}

// step does one thing, and tells what is saved if that may have changed.
func (b *buyer) step(rng *rand.Rand) (saved *State, err error) {
	switch k := rng.IntN(30); {
	case k == 0:
		st := b.state()
		return &st, b.a.Save(st)
	case k == 1 && b.next > 10:
		// A fork: from some block on everything is another.
		b.next -= rng.Uint64N(10)
		b.fork++
		for n := len(b.parts); n > 0 && b.parts[n-1].First >= b.next; n-- {
			b.parts = b.parts[:n-1]
		}
		fallthrough
	case k == 2 || len(b.parts) == 0:
		if n := len(b.parts); n > 0 && b.parts[n-1].First == b.next {
			return nil, nil
		}
		if err := b.a.Begin(b.next); err != nil {
			return nil, err
		}
		b.parts = append(b.parts, replicate.Part{First: b.next})
	case k == 3 && len(b.parts) > 1:
		b.parts = b.parts[1:]
		return nil, b.a.Drop(b.parts[0].First)
	default:
		data := testBlock(rng)
		if err := b.a.Append(b.next, data); err != nil {
			return nil, err
		}
		b.blocks[b.next] = data
		b.next++
	}
	return nil, nil
}

// check compares what an archive has with what was saved.
func check(t *testing.T, a *Archive, want *State, blocks map[uint64][]byte) {
	t.Helper()
	got := a.State()
	if want == nil || got == nil {
		if want != nil || got != nil {
			t.Fatalf("state %+v, want %+v", got, want)
		}
		return
	}
	if got.Output != want.Output || got.Kept.Cursor != want.Kept.Cursor || got.Kept.Head != want.Kept.Head || got.Feed != want.Feed || got.Generation != want.Generation {
		t.Fatalf("state %+v, want %+v", got, want)
	}
	if len(got.Kept.Parts) != len(want.Kept.Parts) {
		t.Fatalf("%d parts, want %d", len(got.Kept.Parts), len(want.Kept.Parts))
	}
	if len(want.Kept.Parts) == 0 {
		return
	}
	for i := want.Kept.Parts[0].First; i < want.Kept.Cursor; i++ {
		if b, err := a.Block(i); err != nil || !bytes.Equal(b, blocks[i]) {
			t.Fatalf("block %d: %d bytes, %v", i, len(b), err)
		}
	}
}

// TestCrash cuts the power at any call: what was saved is there, with every block
// that it speaks of.
func TestCrash(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		disk := faultfs.New(seed)
		var saved *State
		at := map[uint64][]byte{} // blocks when it was saved
		b := &buyer{blocks: map[uint64][]byte{}}
		var err error
		if b.a, err = Open(disk, "d"); err != nil {
			t.Fatal(err)
		}
		key := string(b.a.Key())
		for range 4 {
			disk.CutAfter(1 + rng.IntN(200))
			var maybe *State // a save that was under way
			var then map[uint64][]byte
			for !disk.Off() {
				st, err := b.step(rng)
				switch {
				case err != nil && st != nil:
					maybe, then = st, clone(b.blocks)
				case err != nil && !disk.Off():
					t.Fatal(err)
				case st != nil:
					saved, at = st, clone(b.blocks)
				}
			}
			disk.Reboot()
			if b.a, err = Open(disk, "d"); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if string(b.a.Key()) != key {
				t.Fatalf("seed %d: another key", seed)
			}
			if maybe != nil && b.a.State() != nil && same(b.a.State(), maybe) {
				saved, at = maybe, then
			}
			check(t, b.a, saved, at)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
			// It goes on from there.
			b.blocks, b.parts, b.next, b.fork = clone(at), nil, 0, 0
			if saved != nil {
				b.parts, b.next, b.fork = slices.Clone(saved.Kept.Parts), saved.Kept.Cursor, saved.Kept.Head.Fork
			}
			if len(b.parts) > 0 && b.parts[len(b.parts)-1].First != b.next { // as a buyer does
				if err := b.a.Begin(b.next); err != nil {
					t.Fatal(err)
				}
				b.parts = append(b.parts, replicate.Part{First: b.next})
			}
		}
	}
}

func same(a, b *State) bool {
	return a.Output == b.Output && a.Kept.Head == b.Kept.Head && slices.EqualFunc(a.Kept.Parts, b.Kept.Parts, func(x, y replicate.Part) bool { return x.First == y.First })
}

func clone(m map[uint64][]byte) map[uint64][]byte {
	out := make(map[uint64][]byte, len(m))
	for k, v := range m {
		out[k] = v
	}
	return out
}

// TestFiles: nothing is left over of parts that nobody speaks of.
func TestFiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	disk := faultfs.New(1)
	b := &buyer{blocks: map[uint64][]byte{}}
	var err error
	if b.a, err = Open(disk, "d"); err != nil {
		t.Fatal(err)
	}
	for range 5000 {
		if _, err := b.step(rng); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.a.Save(b.state()); err != nil {
		t.Fatal(err)
	}
	names, err := disk.ReadDir("d")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range names {
		if strings.HasPrefix(name, tailName) {
			n++
		}
	}
	if n != len(b.parts) {
		t.Errorf("%d files for %d parts", n, len(b.parts))
	}
}

func TestLocked(t *testing.T) {
	disk := faultfs.New(1)
	a, err := Open(disk, "d")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(disk, "d"); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if a, err = Open(disk, "d"); err != nil {
		t.Fatal(err)
	}
	a.Close()
}

// TestDamaged: a damaged state or key is told of, and nothing is removed; a
// damaged tail is given up, and the rest goes on.
func TestDamaged(t *testing.T) {
	fill := func() (*faultfs.Disk, State) {
		disk := faultfs.New(1)
		a, err := Open(disk, "d")
		if err != nil {
			t.Fatal(err)
		}
		b := &buyer{a: a, blocks: map[uint64][]byte{}}
		rng := rand.New(rand.NewPCG(3, 3))
		for b.next < 50 {
			if _, err := b.step(rng); err != nil {
				t.Fatal(err)
			}
		}
		st := b.state()
		if err := errors.Join(a.Save(st), a.Close()); err != nil {
			t.Fatal(err)
		}
		return disk, st
	}
	for _, name := range []string{stateName, keyName} {
		disk, _ := fill()
		if err := durable.WriteFile(disk, path.Join("d", name), []byte("{not what it was")); err != nil {
			t.Fatal(err)
		}
		_, err := Open(disk, "d")
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	disk, st := fill()
	names, err := disk.ReadDir("d")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, tailName) {
			disk.Flip(path.Join("d", name), 100)
		}
	}
	a, err := Open(disk, "d")
	if err != nil {
		t.Fatal(err)
	}
	if got := a.State(); got.Output != st.Output || got.Kept.Cursor != st.Kept.Cursor || len(got.Kept.Parts) > 0 {
		t.Errorf("%+v", got)
	}
	if err := errors.Join(a.Begin(60), a.Append(60, []byte("x"))); err != nil {
		t.Error(err)
	}
	disk, _ = fill()
	if err := durable.WriteFile(disk, "d/"+stateName, []byte(`{"version":2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(disk, "d"); !errors.Is(err, durable.ErrNewer) {
		t.Error(err)
	}
}

// FuzzState reads any bytes as a state, and what it read is written and read
// again.
func FuzzState(f *testing.F) {
	disk := faultfs.New(1)
	a, err := Open(disk, "d")
	if err != nil {
		f.Fatal(err)
	}
	var tree merkle.Tree
	for i := range uint64(7) {
		tree.Append(nil, merkle.Leaf(i, []byte{byte(i)}))
	}
	st := State{Feed: merkle.Hash{1}, Kept: replicate.Kept{
		Head: merkle.Head{Length: 7, TreeHash: tree.Hash()}, Roots: tree.Roots(), Signature: []byte{1}, Cursor: 3, Left: tree.Roots(),
	}}
	m := merkle.NewManifest(make([]byte, 32))
	st.Kept.Manifest = &m
	if err := errors.Join(a.Begin(2), a.Append(2, nil)); err != nil {
		f.Fatal(err)
	}
	st.Kept.Parts = []replicate.Part{{First: 2, Roots: tree.Roots()[:1]}}
	if err := a.Save(st); err != nil {
		f.Fatal(err)
	}
	b, err := durable.ReadFile(disk, "d/"+stateName, maxState)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(e.State))
	f.Add([]byte(`{"cursor":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseState(b); err == nil {
			return
		}
		// With the right checksum it is read.
		b, err := json.Marshal(envelope{1, checksum(compacted(b)), compacted(b)})
		if err != nil {
			return
		}
		s, err := parseState(b)
		if err != nil {
			return
		}
		st, err := s.state()
		if err != nil {
			return
		}
		st.Kept.Parts = nil
		disk := faultfs.New(1)
		a := &Archive{fsys: disk, dir: ".", key: make([]byte, 64)}
		if err := a.Save(*st); err != nil {
			t.Skip(err) // too large for a number of JavaScript, say
		}
		if _, err := a.loadState(); err != nil {
			t.Fatal(err)
		}
		x, _ := json.Marshal(fmt.Sprint(*st))
		y, _ := json.Marshal(fmt.Sprint(*a.state))
		if st.Kept.Manifest == nil && !bytes.Equal(x, y) {
			t.Errorf("%s\n%s", x, y)
		}
	})
}

func compacted(b []byte) []byte {
	var out bytes.Buffer
	if json.Compact(&out, b) != nil {
		return []byte("null")
	}
	return out.Bytes()
}
