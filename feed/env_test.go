package feed

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
	"dazaar-edge/storage/faultfs"

	"golang.org/x/crypto/blake2b"
)

// testKeys derive from a fixed master.
type testKeys struct{ master byte }

func (k testKeys) FeedSeed(buyer [32]byte, generation uint64) ([32]byte, error) {
	return blake2b.Sum256(binary.LittleEndian.AppendUint64(append([]byte{k.master}, buyer[:]...), generation)), nil
}

func (k testKeys) device() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(append(make([]byte, 31), k.master))
}

func (k testKeys) SignDevice(m []byte) []byte { return ed25519.Sign(k.device(), m) }

// memorySales is a perfect store: what is saved survives every power cut.
type memorySales struct {
	mu    sync.Mutex
	sales map[[32]byte]SaleState
	epoch Epoch
}

func newSales() *memorySales { return &memorySales{sales: map[[32]byte]SaleState{}} }

func (m *memorySales) Load(b [32]byte) (SaleState, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.sales[b]
	return s, ok, nil
}

func (m *memorySales) Save(states map[[32]byte]SaleState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b, s := range states {
		m.sales[b] = s
	}
	return nil
}

func (m *memorySales) Each(f func([32]byte, SaleState) bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b, s := range m.sales {
		if !f(b, s) {
			break
		}
	}
	return nil
}

func (m *memorySales) Epoch() (Epoch, error) { return m.epoch, nil }

func (m *memorySales) SetEpoch(e Epoch) error { m.epoch = e; return nil }

// env is a log on a simulated disk.
type env struct {
	t     testing.TB
	disk  *faultfs.Disk
	sales *memorySales
	cfg   Config
	log   *Log
	now   block.Stamp
}

const smallSegment = 16 * storage.PageSize

func newEnv(t testing.TB, seed uint64, maxSize int64) *env {
	e := &env{t: t, disk: faultfs.New(seed), sales: newSales(), now: block.Stamp{Boot: 1}}
	e.cfg = Config{
		FS: e.disk, Dir: "/log", MaxSize: maxSize, SegmentSize: smallSegment, Name: "air", Encoding: block.Raw, Keys: testKeys{1},
		Sales: e.sales, Now: func() block.Stamp { return e.now },
	}
	if os.Getenv("EDGE_TEST_LOG") != "" {
		e.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return e
}

func (e *env) open() {
	e.t.Helper()
	var err error
	if e.log, err = Open(e.cfg); err != nil {
		e.t.Fatal(err)
	}
}

// raw returns a raw block with this content, sensed a second after the last.
func (e *env) raw(data []byte) block.Block {
	e.now.Mono += time.Second
	b, err := block.Raw.Pack(&block.Pack{Stamp: e.now, Readings: []block.Reading{{Value: block.Value{Kind: block.Data, Data: data}}}})
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

func (e *env) fill(rng *rand.Rand, n int) (out [][]byte) {
	e.t.Helper()
	for len(out) < n {
		var batch []block.Block
		for range min(1+rng.IntN(50), n-len(out)) {
			data := make([]byte, rng.IntN(120))
			if rng.IntN(50) == 0 {
				data = make([]byte, rng.IntN(9000))
			}
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			b := e.raw(data)
			batch = append(batch, b)
			out = append(out, b.Data)
		}
		if _, err := e.log.Append(context.Background(), batch...); err != nil {
			e.t.Fatal(err)
		}
	}
	return out
}

// reference is the tree of a log in memory, for comparison.
type reference struct {
	tree  merkle.Tree
	nodes map[uint64]merkle.Node
}

func newReference() *reference { return &reference{nodes: map[uint64]merkle.Node{}} }

func (r *reference) add(blocks ...[]byte) {
	for _, b := range blocks {
		for _, n := range r.tree.Append(nil, merkle.Leaf(r.tree.Length(), b)) {
			r.nodes[n.Index] = n
		}
	}
}

func (r *reference) at(length uint64) *reference {
	old := newReference()
	for i := range length {
		for _, n := range old.tree.Append(nil, r.nodes[2*i]) {
			old.nodes[n.Index] = n
		}
	}
	return old
}

func stamp(boot uint32, second float64) block.Stamp {
	return block.Stamp{Boot: boot, Mono: time.Duration(second * float64(time.Second))}
}

// appendRaw appends raw blocks with this content and returns them as they are in
// the log.
func (e *env) appendRaw(data [][]byte) (out [][]byte) {
	e.t.Helper()
	var batch []block.Block
	for _, d := range data {
		b := e.raw(d)
		batch, out = append(batch, b), append(out, b.Data)
	}
	if _, err := e.log.Append(context.Background(), batch...); err != nil {
		e.t.Fatal(err)
	}
	return out
}
