package replicate

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/secretstream"
)

// memory is a Feed in memory. A test may cut, change, fork and prune it.
type memory struct {
	priv     ed25519.PrivateKey
	manifest merkle.Manifest

	mu      sync.Mutex
	blocks  [][]byte
	nodes   map[uint64]merkle.Node
	tree    merkle.Tree
	first   uint64
	fork    uint64
	signed  uint64 // longest length signed on this fork
	unsure  bool   // must be settled
	settled []string
	lost    map[uint64][]byte // blocks that were returned
	changed func()
}

func newMemory(seed byte) *memory {
	m := &memory{priv: key(seed), nodes: map[uint64]merkle.Node{}, lost: map[uint64][]byte{}}
	m.manifest = merkle.NewManifest(m.priv.Public().(ed25519.PublicKey))
	return m
}

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func (m *memory) append(blocks ...[]byte) {
	m.mu.Lock()
	m.add(blocks)
	changed := m.changed
	m.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// add appends blocks. mu is held.
func (m *memory) add(blocks [][]byte) {
	for _, b := range blocks {
		for _, n := range m.tree.Append(nil, merkle.Leaf(m.tree.Length(), b)) {
			m.nodes[n.Index] = n
		}
		m.blocks = append(m.blocks, b)
	}
}

// cut takes the log back to n blocks. mu is held.
func (m *memory) cut(n uint64) {
	kept := m.blocks[:n]
	m.blocks, m.nodes, m.tree = nil, map[uint64]merkle.Node{}, merkle.Tree{}
	m.add(kept)
}

// truncate takes the log back to n blocks, as a power cut would.
func (m *memory) truncate(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut(n)
	m.unsure = true
}

// raise goes on from n blocks with a higher fork.
func (m *memory) raise(fork, n uint64, blocks ...[]byte) {
	m.mu.Lock()
	m.cut(n)
	m.add(blocks)
	m.fork, m.signed = fork, 0
	changed := m.changed
	m.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// prune drops the blocks before i.
func (m *memory) prune(i uint64) {
	m.mu.Lock()
	m.first = i
	changed := m.changed
	m.mu.Unlock()
	if changed != nil {
		changed()
	}
}

func (m *memory) Key() merkle.Hash          { return m.manifest.Key() }
func (m *memory) Manifest() merkle.Manifest { return m.manifest }
func (m *memory) CanUpgrade(uint64) bool    { return true }
func (m *memory) Recover(i, fork uint64, b []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost[i] = b
	return nil
}

func (m *memory) Fork() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fork
}

func (m *memory) Bounds() (first, length uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.first, m.tree.Length()
}

func (m *memory) node(x uint64) (merkle.Node, error) {
	if n, ok := m.nodes[x]; ok {
		return n, nil
	}
	return merkle.Node{}, merkle.ErrMissing
}

func (m *memory) Node(x uint64) (merkle.Node, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node(x)
}

// blocks reads one block after the other by its proof.
type blocks struct{ m *memory }

func (blocks) Release() {}
func (b blocks) Read(i, levels uint64) ([]byte, []merkle.Node, error) {
	p, _, err := b.m.Proof(merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: levels}})
	if err != nil {
		return nil, nil, err
	}
	return p.Block.Value, p.Block.Nodes, nil
}

type reader struct{ m *memory }

func (r reader) Node(x uint64) (merkle.Node, error) { return r.m.node(x) }

func (m *memory) Proof(req merkle.Request) (merkle.Proof, merkle.Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, err := merkle.Prove(reader{m}, m.tree.Length(), req)
	if err != nil {
		return p, merkle.Head{}, err
	}
	if p.Block != nil {
		if p.Block.Index < m.first {
			return p, merkle.Head{}, merkle.ErrMissing
		}
		p.Block.Value = m.blocks[p.Block.Index]
	}
	h := merkle.Head{Fork: m.fork, Length: m.tree.Length(), TreeHash: m.tree.Hash()}
	if p.Upgrade != nil {
		if m.unsure {
			return p, h, errors.New("not settled")
		}
		m.signed = max(m.signed, h.Length)
		p.Upgrade.Signature = m.manifest.Sign(m.priv, m.manifest.Key(), h)
	}
	return p, h, nil
}

func (m *memory) Settled(fork, length uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.unsure && fork <= m.fork && (fork < m.fork || length <= m.signed)
}

func (m *memory) Settle(head *merkle.Head, claimed uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsure = false
	if head != nil && head.Fork == m.fork && head.Length <= m.tree.Length() && claimed <= m.fork && m.signed <= m.tree.Length() {
		var t merkle.Tree
		for i := range head.Length {
			t.Append(nil, merkle.Leaf(i, m.blocks[i]))
		}
		if t.Hash() == head.TreeHash {
			m.signed = max(m.signed, head.Length)
			m.settled = append(m.settled, "same")
			return nil
		}
	}
	m.fork = max(m.fork, claimed) + 1
	m.signed = 0
	m.settled = append(m.settled, fmt.Sprintf("fork %d", m.fork))
	return nil
}

// inbox is a Sink that keeps everything.
type inbox struct {
	mu     sync.Mutex
	cond   *sync.Cond
	blocks map[uint64][]byte
	order  []uint64
	gaps   []string
	forks  []string
	head   merkle.Head
	err    error // why Block takes nothing
	stuck  bool  // nobody need wait any more
}

// missed tells whether a gap was told of that covers block i. mu is held.
func (b *inbox) missed(i uint64) bool {
	return slices.ContainsFunc(b.gaps, func(g string) bool {
		var from, to uint64
		fmt.Sscanf(g, "%d-%d", &from, &to)
		return from <= i && i < to
	})
}

func newInbox() *inbox {
	b := &inbox{blocks: map[uint64][]byte{}}
	b.cond = sync.NewCond(&b.mu)
	return b
}

func (b *inbox) Block(i uint64, data []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	b.blocks[i] = bytes.Clone(data)
	b.order = append(b.order, i)
	b.cond.Broadcast()
	return nil
}

func (b *inbox) Gap(from, to uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gaps = append(b.gaps, fmt.Sprintf("%d-%d", from, to))
	b.cond.Broadcast()
	return nil
}

func (b *inbox) Fork(fork, from uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forks = append(b.forks, fmt.Sprintf("%d@%d", fork, from))
	maps.DeleteFunc(b.blocks, func(i uint64, _ []byte) bool { return i >= from })
	b.cond.Broadcast()
	return nil
}

func (b *inbox) Head(h merkle.Head) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.head = h
	b.cond.Broadcast()
	return nil
}

// wait waits until f is true. If that takes a minute, it never will be.
func (b *inbox) wait(f func() bool) {
	timer := time.AfterFunc(time.Minute, func() {
		debug.SetTraceback("all")
		panic("nothing comes any more")
	})
	defer timer.Stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	for !f() {
		b.cond.Wait()
	}
}

// shelf is a Store in memory.
type shelf struct {
	blocks map[uint64][]byte
	next   uint64
	drops  int
}

func newShelf() *shelf { return &shelf{blocks: map[uint64][]byte{}} }

func (s *shelf) Begin(i uint64) error {
	for k := range s.blocks {
		if k >= i {
			delete(s.blocks, k)
		}
	}
	s.next = i
	return nil
}

func (s *shelf) Next() uint64 { return s.next }

func (s *shelf) Append(i uint64, data []byte) error {
	if i != s.next {
		return fmt.Errorf("block %d follows %d", i, s.next)
	}
	s.next++
	s.blocks[i] = bytes.Clone(data)
	return nil
}

func (s *shelf) Block(i uint64) ([]byte, error) {
	if b, ok := s.blocks[i]; ok {
		return b, nil
	}
	return nil, errors.New("no such block")
}

func (s *shelf) Drop(i uint64) error {
	s.drops++
	for k := range s.blocks {
		if k < i {
			delete(s.blocks, k)
		}
	}
	return nil
}

// link is a connection between a seller's and a buyer's side.
type link struct {
	t      testing.TB
	a, b   *secretstream.Conn // the seller's and the buyer's
	ma, mb *mux.Mux
	wg     sync.WaitGroup
	errA   error
	errB   error
	ended  chan error

	mu     sync.Mutex
	seller *Seller // guarded by mu
}

// sale is what a link sells.
type sale struct {
	feed   *memory
	buyer  *Buyer
	config func(*SellerConfig)
	rate   float64
	up     *Uplink // nil is one that announces at once
	pipe   bool    // joins them in memory, where a test has a clock of its own
}

func testLog() *slog.Logger {
	if os.Getenv("EDGE_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// byTCP returns the two ends of a connection through the kernel.
func byTCP(t testing.TB) (ra, rb net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if rb, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if ra, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return ra, rb
}

// byMemory returns the two ends of a connection that holds some writes a side, as
// a kernel would. Nothing of it takes time by the clock of a test.
func byMemory() (ra, rb net.Conn) {
	ra, a := net.Pipe()
	b, rb := net.Pipe()
	carry := func(to, from net.Conn) {
		held := make(chan []byte, 16)
		go func() {
			defer close(held)
			for buf := make([]byte, 64<<10); ; {
				n, err := from.Read(buf)
				if err != nil {
					return
				}
				held <- bytes.Clone(buf[:n])
			}
		}()
		for p := range held {
			to.Write(p) //nolint:errcheck // an end that is closed takes nothing
		}
		to.Close()
	}
	go carry(b, a)
	go carry(a, b)
	return ra, rb
}

// streams encrypts a connection and returns its two ends, the seller's and the
// buyer's.
func streams(t testing.TB, ra, rb net.Conn) (sells, buys *secretstream.Conn) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		var err error
		sells, err = secretstream.Server(context.Background(), ra, secretstream.Config{Static: key(100)})
		done <- err
	}()
	buys, err := secretstream.Client(context.Background(), rb, secretstream.Config{Static: key(101), MaxMessage: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return sells, buys
}

// connect joins a feed and a buyer.
func connect(t testing.TB, s sale) *link {
	t.Helper()
	return connectBy(t, s, func(s mux.Stream, _ bool) mux.Stream { return s })
}

// connectBy is connect with something between the streams and the channels.
func connectBy(t testing.TB, s sale, wrap func(s mux.Stream, sells bool) mux.Stream) *link {
	t.Helper()
	l := &link{t: t, ended: make(chan error, 4)}
	var ra, rb net.Conn
	if s.pipe {
		ra, rb = byMemory()
	} else {
		ra, rb = byTCP(t)
	}
	l.a, l.b = streams(t, ra, rb)
	up := s.up
	if up == nil {
		up = &Uplink{Coalesce: 1}
	}
	share := up.Share(s.rate)
	var session Session
	l.ma = mux.New(wrap(l.a, true), mux.Config{Window: share.Window(), Pace: share, Accept: func(string, []byte) bool {
		cfg := SellerConfig{Session: session, Feed: s.feed, Blocks: blocks{s.feed}, Uplink: up, Log: testLog(), Ended: func(err error) { l.ended <- err }}
		if s.config != nil {
			s.config(&cfg)
		}
		x, err := NewSeller(cfg)
		if errors.Is(err, mux.ErrClosed) {
			return false
		} else if err != nil {
			t.Error(err)
		}
		l.mu.Lock()
		l.seller = x
		l.mu.Unlock()
		s.feed.mu.Lock()
		s.feed.changed = x.Update
		s.feed.mu.Unlock()
		return false
	}})
	session = Session{Mux: l.ma, HandshakeHash: l.a.HandshakeHash()}
	var other Session
	l.mb = mux.New(wrap(l.b, false), mux.Config{Accept: func(string, []byte) bool {
		if err := s.buyer.Attach(other); err != nil && !errors.Is(err, mux.ErrClosed) {
			t.Error(err)
		}
		return false
	}})
	other = Session{Mux: l.mb, HandshakeHash: l.b.HandshakeHash(), Initiator: true}
	l.wg.Add(2)
	go func() { defer l.wg.Done(); l.errA = l.ma.Run() }()
	go func() { defer l.wg.Done(); l.errB = l.mb.Run() }()
	if err := s.buyer.Attach(other); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

// with calls f with the present seller, if there is one yet.
func (l *link) with(f func(*Seller)) {
	l.mu.Lock()
	s := l.seller
	l.mu.Unlock()
	if s != nil {
		f(s)
	}
}

func (l *link) close() {
	l.ma.Close()
	l.mb.Close()
	l.wg.Wait()
}

func newBuyer(t testing.TB, feed *memory, sink Sink, f func(*BuyerConfig)) *Buyer {
	t.Helper()
	cfg := BuyerConfig{Key: feed.Key(), Sink: sink, Log: testLog()}
	if f != nil {
		f(&cfg)
	}
	b, err := NewBuyer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func testBlock(i, n int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(i*31 + j*7 + j>>8)
	}
	return b
}

func testBlocks(from, n, size int) (out [][]byte) {
	for i := range n {
		out = append(out, testBlock(from+i, size))
	}
	return out
}
