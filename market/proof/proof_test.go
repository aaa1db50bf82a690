package proof

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/replicate"
)

// feed is a log of n blocks, signed for a buyer; its proofs are made without a wire.
type feed struct {
	t      *testing.T
	seller ed25519.PrivateKey
	signer ed25519.PrivateKey
	one    dazaar.OneTimeFeed
	m      merkle.Manifest
	blocks [][]byte
}

var buyer = [32]byte{7}

func newFeed(t *testing.T, n int) *feed {
	t.Helper()
	key := func(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }
	f := &feed{t: t, seller: key(1), signer: key(2)}
	f.m = merkle.NewManifest(ed25519.PublicKey(f.signer[32:]))
	f.one = dazaar.OneTimeFeed{Key: f.m.Key(), Generation: 3}
	f.one.Sign(f.seller, buyer)
	for i := range n {
		f.blocks = append(f.blocks, []byte{byte(i), byte(i >> 8), 1})
	}
	return f
}

// roots returns those of the log's first n blocks.
func (f *feed) roots(n int) []merkle.Node {
	f.t.Helper()
	tree, err := merkle.NewTree(0, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for i, b := range f.blocks[:n] {
		tree.Append(nil, merkle.Leaf(uint64(i), b))
	}
	return tree.Roots()
}

// section writes blocks [from, to), signed by a head of to blocks.
func (f *feed) section(w *Writer, from, to int, fork uint64) {
	f.t.Helper()
	if err := w.Begin(uint64(from), f.roots(from)); err != nil {
		f.t.Fatal(err)
	}
	for i := from; i < to; i++ {
		if _, err := w.Block(uint64(i), f.blocks[i]); err != nil {
			f.t.Fatal(err)
		}
	}
	h := merkle.Head{Fork: fork, Length: uint64(to), TreeHash: merkle.TreeHash(f.roots(to))}
	e := replicate.Evidence{Until: uint64(to), Manifest: f.m, Head: h, Signature: f.m.Sign(f.signer, f.m.Key(), h)}
	if err := w.End(e); err != nil {
		f.t.Fatal(err)
	}
}

func (f *feed) open(name string) *Writer {
	f.t.Helper()
	w, err := Open(name)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := errors.Join(w.For([32]byte(f.seller[32:]), buyer), w.Feed(f.one, nil)); err != nil {
		f.t.Fatal(err)
	}
	return w
}

// verify returns what a file shows, and the blocks as they come.
func verify(t *testing.T, name string) (sum Summary, got []uint64, err error) {
	t.Helper()
	r, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sum, err = Verify(r, func(i uint64, _ []byte) error { got = append(got, i); return nil })
	return sum, got, err
}

// TestFile: sections that were written by several processes, of which one was killed, show
// what is in them, once; what is missing is said.
func TestFile(t *testing.T) {
	f := newFeed(t, 40)
	name := filepath.Join(t.TempDir(), "proof")
	w := f.open(name)
	f.section(w, 0, 10, 0)
	f.section(w, 10, 17, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, append(b, `{"from":17,"left":[{"index":15,"si`...), 0o600); err != nil { // it was killed
		t.Fatal(err)
	}
	w = f.open(name)
	f.section(w, 10, 17, 0) // it did not know that it had written them
	f.section(w, 20, 30, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	sum, got, err := verify(t, name)
	if err != nil || sum.Blocks != 27 || sum.First != 0 || sum.Last != 29 || sum.Missing != 3 || sum.Broken != 1 || sum.Unproven != 0 || sum.Forks != 0 || len(got) != 27 {
		t.Errorf("%+v, %v, %d blocks", sum, err, len(got))
	}
	// A fork replaces blocks: both are shown.
	f.blocks[29] = []byte("another")
	w = f.open(name)
	f.section(w, 28, 31, 1)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if sum, got, err = verify(t, name); err != nil || sum.Forks != 1 || len(got) != 30 || sum.Missing != 3 {
		t.Errorf("%+v, %v, %d blocks", sum, err, len(got))
	}
}

// TestOthers: a file is of one buyer of one seller, and is not mixed with something else.
func TestOthers(t *testing.T) {
	f := newFeed(t, 5)
	dir := t.TempDir()
	name := filepath.Join(dir, "proof")
	w := f.open(name)
	f.section(w, 0, 5, 0)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "letter")
	if err := os.WriteFile(other, []byte("Dear sir,\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, who := range map[string][32]byte{name: {8}, other: buyer} {
		w, err := Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.For([32]byte(f.seller[32:]), who); !errors.Is(err, ErrFile) {
			t.Errorf("%s: %v", file, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(dir); !errors.Is(err, ErrFile) {
		t.Error(err)
	}
}

// TestNothing: what has no signed block proves nothing.
func TestNothing(t *testing.T) {
	for _, text := range []string{"", "\n\n", "nonsense", `{"from":0}`, `{"index":0,"block":"AA=="}`, `{"seller":"00"}`, strings.Repeat("x", 5000)} {
		if sum, err := Verify(strings.NewReader(text), func(uint64, []byte) error { return nil }); !errors.Is(err, ErrUnproven) {
			t.Errorf("%.20q: %+v, %v", text, sum, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	x := newFeed(&testing.T{}, 6)
	var b bytes.Buffer
	w := NewWriter(&b)
	w.For([32]byte(x.seller[32:]), buyer) //nolint:errcheck // it is nobody's
	w.Feed(x.one, nil)                    //nolint:errcheck // to a buffer
	x.section(w, 0, 4, 0)
	x.section(w, 5, 6, 0)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		sum, err := Verify(bytes.NewReader(b), func(i uint64, data []byte) error {
			if i >= uint64(len(x.blocks)) || !bytes.Equal(data, x.blocks[i]) {
				t.Errorf("block %d is %x", i, data)
			}
			return nil
		})
		if err == nil && (sum.Buyer != buyer || sum.Blocks == 0) {
			t.Errorf("%+v", sum)
		}
	})
}
