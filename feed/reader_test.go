package feed

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"dazaar-edge/feed/merkle"
)

// TestReader reads blocks with their paths in order, here and there and in runs,
// by several readers of one log that grows and drops, and compares all with a
// tree in memory.
func TestReader(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 8))
		segments := int64(60)
		if seed%3 == 1 {
			segments = 9 // part of it is dropped
		}
		e := newEnv(t, seed, segments*smallSegment)
		e.open()
		ref := newReference()
		var blocks [][]byte
		f, err := e.log.Rekey([32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		readers := []*Reader{f.Reader(), f.Reader(), f.Reader()}
		for range 6 {
			var more [][]byte
			if seed%2 == 0 {
				more = e.fill(rng, 100+rng.IntN(900))
			} else { // small ones, so that tiles are large
				more = e.fillSmall(rng, 500+rng.IntN(1500))
			}
			blocks = append(blocks, more...)
			ref.add(more...)
			next := make([]uint64, len(readers))
			for range 4000 {
				k := rng.IntN(len(readers))
				h := e.log.Head()
				i := next[k]
				if rng.IntN(4) == 0 || i >= h.Length {
					i = rng.Uint64N(h.Length)
				}
				next[k] = i + 1
				levels := rng.Uint64N(merkle.MissingNodes(2*i, h.Length, nil) + 1)
				data, path, err := readers[k].Read(i, levels)
				if err != nil {
					if i >= h.First || !errors.Is(err, merkle.ErrMissing) {
						t.Fatalf("seed %d: block %d of [%d, %d): %v", seed, i, h.First, h.Length, err)
					}
					continue
				}
				if !bytes.Equal(data, blocks[i]) || uint64(len(path)) != levels {
					t.Fatalf("seed %d: block %d: %d bytes, %d nodes", seed, i, len(data), len(path))
				}
				x := 2 * i
				for _, n := range path {
					if n != ref.nodes[merkle.Sibling(x)] {
						t.Fatalf("seed %d: block %d: node %d is wrong", seed, i, n.Index)
					}
					x = merkle.Parent(x)
				}
				if rng.IntN(500) == 0 {
					readers[k].Release()
				}
			}
		}
		if n := len(e.log.crowns.all); n > maxCrowns || seed%2 == 1 && n == 0 {
			t.Errorf("seed %d: %d crowns", seed, n)
		}
		if _, _, err := readers[0].Read(1<<40, 0); !errors.Is(err, merkle.ErrRequest) {
			t.Error(err)
		}
		e.log.Close()
	}
}

// TestReaderWhileDropping reads the oldest blocks, forwards and in leaps, while
// appends drop them: each is right, or missing.
func TestReaderWhileDropping(t *testing.T) {
	e := newEnv(t, 1, 10*smallSegment)
	e.open()
	defer e.log.Close()
	f, err := e.log.Rekey([32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all [][]byte
	rng := rand.New(rand.NewPCG(1, 2))
	more := func(n int) {
		mu.Lock() // so that what is committed is known
		defer mu.Unlock()
		all = append(all, e.fill(rng, n)...)
	}
	more(500)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for leap := range uint64(3) {
		wg.Go(func() {
			r := f.Reader()
			defer r.Release()
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, n := f.Bounds()
				for i := first; i < min(n, first+60*(1+leap)); i += 1 + leap {
					data, _, err := r.Read(i, 0)
					if now, _ := f.Bounds(); err != nil && (i >= now || !errors.Is(err, merkle.ErrMissing)) {
						t.Errorf("block %d of [%d, %d), now from %d: %v", i, first, n, now, err)
						return
					}
					if err != nil {
						continue
					}
					data = bytes.Clone(data)
					mu.Lock()
					same := bytes.Equal(data, all[i])
					mu.Unlock()
					if !same {
						t.Errorf("block %d is wrong", i)
						return
					}
				}
			}
		})
	}
	for first, _ := f.Bounds(); first < 20000; first, _ = f.Bounds() {
		more(200)
	}
	close(stop)
	wg.Wait()
}

// fillSmall appends small blocks.
func (e *env) fillSmall(rng *rand.Rand, n int) (out [][]byte) {
	e.t.Helper()
	for range n {
		out = append(out, []byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
	}
	return e.appendRaw(out)
}
