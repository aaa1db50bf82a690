package replicate

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"dazaar-edge/feed/merkle"
)

// same checks that the inbox has exactly the feed's blocks from first on.
func same(t *testing.T, in *inbox, m *memory, first uint64) {
	t.Helper()
	in.mu.Lock()
	defer in.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := first; i < uint64(len(m.blocks)); i++ {
		if got, ok := in.blocks[i]; !ok || !bytes.Equal(got, m.blocks[i]) {
			t.Fatalf("block %d is %x, %v; want %x", i, got, ok, m.blocks[i])
		}
	}
}

func TestDownload(t *testing.T) {
	m := newMemory(1)
	m.append(nil, []byte{1}, testBlock(2, 64), testBlock(3, 64<<10), testBlock(4, 1<<20))
	m.append(testBlocks(5, 3000, 64)...)
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	l := connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 3005 })
	same(t, in, m, 0)
	// Live.
	for i := range 200 {
		m.append(testBlock(3005+i, i))
	}
	in.wait(func() bool { return len(in.blocks) == 3205 })
	same(t, in, m, 0)
	if !slices.IsSorted(in.order) || len(in.order) != 3205 {
		t.Error("out of order, or twice")
	}
	got, err := b.Get(context.Background(), 4)
	if err != nil || !bytes.Equal(got, m.blocks[4]) {
		t.Errorf("get: %d bytes, %v", len(got), err)
	}
	if st := l.seller.Stats(); st.NoData > 0 || st.Blocks != 3206 {
		t.Errorf("%+v", st)
	}
}

// TestResume goes on where another process ended.
func TestResume(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 500, 1000)...)
	in, sh := newInbox(), newShelf()
	var kept *Kept
	for round := range 20 {
		b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store, c.Kept = sh, kept })
		l := connect(t, sale{feed: m, buyer: b})
		want := 100 + 173*round
		m.append(testBlocks(500+200*round, 200, 300)...)
		in.wait(func() bool { return len(in.blocks) >= want })
		l.close()
		if err := b.Checkpoint(func(k Kept) error { kept = &k; return nil }); err != nil {
			t.Fatal(err)
		}
		if kept.Cursor != uint64(len(in.order)) {
			t.Fatalf("cursor %d behind %d blocks", kept.Cursor, len(in.order))
		}
	}
	same(t, &inbox{blocks: in.blocks}, &memory{blocks: m.blocks[:kept.Cursor]}, 0)
	if !slices.IsSorted(in.order) {
		t.Error("out of order")
	}
	// The tail is whole: it proves each of its blocks.
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store, c.Kept = sh, kept })
	if len(kept.Parts) == 0 {
		t.Fatal("no tail")
	}
	v := &merkle.Verifier{Key: m.Key(), Manifest: kept.Manifest, Length: kept.Head.Length, Roots: kept.Roots}
	for i := kept.Parts[0].First; i < kept.Cursor; i++ {
		p, err := merkle.Prove(b.newTail(), kept.Head.Length, merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, kept.Head.Length, nil)}})
		if err != nil {
			t.Fatal(i, err)
		}
		p.Block.Value, _ = sh.Block(i)
		if _, err := v.Verify(&p, nil); err != nil {
			t.Fatal(i, err)
		}
		if i == kept.Parts[0].First+50 {
			i = max(i, kept.Cursor-50)
		}
	}
}

func TestPruned(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 1000, 100)...)
	m.prune(300)
	in := newInbox()
	b := newBuyer(t, m, in, nil)
	connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 700 })
	same(t, in, m, 300)
	if !slices.Equal(in.gaps, []string{"0-300"}) {
		t.Error(in.gaps)
	}
	m.append(testBlocks(1000, 10, 100)...)
	m.prune(600)
	in.wait(func() bool { return len(in.blocks) == 710 })
	same(t, in, m, 300)
}
