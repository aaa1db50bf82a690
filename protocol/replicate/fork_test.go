package replicate

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// TestForks takes a seller back in every way: it lost its tail, came back
// diverged, shorter or longer, and the buyer has all, follows, and returns what
// was lost.
func TestForks(t *testing.T) {
	for _, c := range []struct {
		name                   string
		had, kept, now, pruned int
	}{
		{"lost tail", 100, 60, 60, 0},
		{"lost tail by one", 64, 63, 63, 0},
		{"lost tail to a root", 96, 64, 64, 0},
		{"diverged and shorter", 100, 60, 80, 0},
		{"diverged, same length", 100, 60, 100, 0},
		{"diverged and longer", 100, 60, 170, 0},
		{"lost all", 10, 0, 0, 0},
		{"lost all and began again", 10, 0, 20, 0},
		{"nothing lost", 100, 100, 100, 0},
		{"nothing lost, more appended", 100, 100, 150, 0},
		{"pruned, lost tail", 100, 60, 60, 40},
		{"pruned, diverged", 100, 60, 120, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(1)
			m.append(testBlocks(0, c.had, 50)...)
			m.first = uint64(c.pruned)
			in := newInbox()
			b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
			l := connect(t, sale{feed: m, buyer: b})
			in.wait(func() bool { return len(in.blocks) == c.had-c.pruned })
			l.close()

			old := append([][]byte(nil), m.blocks...)
			m.truncate(uint64(c.kept))
			m.append(testBlocks(100000+c.kept, c.now-c.kept, 51)...)
			connect(t, sale{feed: m, buyer: b})
			if c.kept == c.had {
				in.wait(func() bool { return len(in.blocks) == c.now-c.pruned })
				same(t, in, m, uint64(c.pruned))
				if m.fork != 0 || len(in.forks) > 0 {
					t.Errorf("fork %d, %v", m.fork, in.forks)
				}
				return
			}
			if c.now == 0 { // there is no head to wait for
				for m.Fork() == 0 {
					time.Sleep(time.Millisecond)
				}
			} else {
				in.wait(func() bool { return in.head.Fork == 1 && in.head.Length == uint64(c.now) })
			}
			m.append(testBlocks(200000, 20, 52)...)
			in.wait(func() bool {
				return in.head.Length == uint64(len(m.blocks)) && bytes.Equal(in.blocks[uint64(len(m.blocks)-1)], m.blocks[len(m.blocks)-1])
			})
			same(t, in, m, uint64(c.pruned))
			if want := fmt.Sprintf("1@%d", c.kept); len(in.forks) != 1 || in.forks[0] != want {
				t.Errorf("forks %v, want %s", in.forks, want)
			}
			for i := c.kept; i < c.had; i++ {
				if !bytes.Equal(m.lost[uint64(i)], old[i]) {
					t.Errorf("block %d was not returned", i)
				}
			}
			if len(m.lost) != c.had-c.kept {
				t.Errorf("%d blocks were returned, %d were lost", len(m.lost), c.had-c.kept)
			}
		})
	}
}

// TestReturnsLargeBlocks: what was lost is returned, though its blocks are larger
// than any message of a buyer is otherwise.
func TestReturnsLargeBlocks(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 12, 600_000)...)
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	l := connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 12 })
	l.close()
	old := append([][]byte(nil), m.blocks...)
	m.truncate(8)
	m.append(testBlocks(900, 10, 70_000)...)
	connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return in.head.Fork == 1 && len(in.blocks) == 18 })
	same(t, in, m, 0)
	for i := 8; i < 12; i++ {
		if !bytes.Equal(m.lost[uint64(i)], old[i]) {
			t.Errorf("block %d was not returned", i)
		}
	}
}

// full is an inbox that takes no block after a fork, until it has room again.
type full struct{ *inbox }

func (f full) Fork(fork, from uint64) error {
	f.mu.Lock()
	f.err = errors.New("no space left")
	f.mu.Unlock()
	return f.inbox.Fork(fork, from)
}

// TestForkAndNewBuyer: a buyer that is made anew over the same store, right after
// it followed a fork and before the next block, begins a new part of its tail.
func TestForkAndNewBuyer(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 92, 50)...)
	in, store := newInbox(), newShelf()
	b := newBuyer(t, m, full{in}, func(c *BuyerConfig) { c.Store = store })
	l := connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 92 })
	l.close()
	m.truncate(73)
	m.append(testBlocks(900, 40, 50)...)
	l = connect(t, sale{feed: m, buyer: b})
	l.wg.Wait()
	if _, cursor := b.Head(); cursor != 73 || len(in.forks) != 1 {
		t.Fatal(cursor, in.forks, l.errB)
	}
	in.err = nil
	var kept Kept
	if err := b.Checkpoint(func(k Kept) error { kept = k; return nil }); err != nil {
		t.Fatal(err)
	}
	l = connect(t, sale{feed: m, buyer: newBuyer(t, m, in, func(c *BuyerConfig) { c.Store, c.Kept = store, &kept })})
	in.wait(func() bool { return len(in.blocks) == 113 })
	l.close()
	same(t, in, m, 0)
	for i, data := range m.blocks {
		if got, err := store.Block(uint64(i)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("block %d is not kept", i)
		}
	}
}

// TestForksTwice raises the fork again and again, with one buyer that is always
// there and one that comes now and then.
func TestForksTwice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 9))
	m := newMemory(1)
	in, now := newInbox(), newInbox()
	often := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	seldom := newBuyer(t, m, now, func(c *BuyerConfig) { c.Store = newShelf() })
	m.append(testBlocks(0, 50, 20)...)
	for round := range 12 {
		l := connect(t, sale{feed: m, buyer: often})
		done := func(in *inbox) func() bool {
			return func() bool {
				n := uint64(len(m.blocks))
				return in.head.Fork == m.Fork() && in.head.Length == n && bytes.Equal(in.blocks[n-1], m.blocks[n-1])
			}
		}
		in.wait(done(in))
		same(t, in, m, 0)
		l.close()
		if round%3 == 2 {
			l := connect(t, sale{feed: m, buyer: seldom})
			now.wait(done(now))
			same(t, now, m, 0)
			l.close()
		}
		m.truncate(uint64(len(m.blocks) - 1 - rng.IntN(len(m.blocks)/2)))
		m.append(testBlocks(1000*(round+1), 1+rng.IntN(60), 21)...)
	}
}

// TestConflict: a seller that goes on with another log on the same fork.
func TestConflict(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 100, 50)...)
	in := newInbox()
	b := newBuyer(t, m, in, nil)
	l := connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 100 })
	l.close()
	m.truncate(60)
	m.append(testBlocks(1000, 80, 50)...)
	m.unsure = false
	m.signed = 140 // it does not know what it did
	l = connect(t, sale{feed: m, buyer: b})
	l.wg.Wait()
	var conflict *ConflictError
	if !errors.As(l.errB, &conflict) {
		t.Fatal(l.errB)
	}
	man := m.Manifest()
	if man.Verify(m.Key(), conflict.Ours, conflict.OurSignature) != nil || man.Verify(m.Key(), conflict.Theirs, conflict.TheirSignature) != nil {
		t.Error("the evidence does not verify")
	}
	if len(in.blocks) != 100 {
		t.Errorf("%d blocks", len(in.blocks))
	}
}
