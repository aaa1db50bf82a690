package market

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/feedtest"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
)

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func testLog() *slog.Logger {
	if os.Getenv("EDGE_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func testPurse(t testing.TB) *purse.Purse {
	p, err := purse.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// shop is an offer over a log on disk.
type shop struct {
	t       testing.TB
	dir     string
	sales   *feedtest.Sales
	db      *db.DB
	dbFile  string
	config  func(*OfferConfig)
	log     *feed.Log
	offer   *Offer
	address string
	fsys    durable.FS // nil is the real one
	n       int        // blocks that were appended
	offers  int        // that were opened
	seller  [32]byte
}

func newShop(t testing.TB, config func(*OfferConfig)) *shop {
	t.Helper()
	s := &shop{t: t, dir: t.TempDir(), sales: newSales(), config: config, address: "127.0.0.1:0"}
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *shop) open() {
	s.t.Helper()
	if s.fsys == nil {
		s.fsys = durable.OS()
	}
	var err error
	if s.db == nil {
		s.dbFile = filepath.Join(s.t.TempDir(), "edge.db")
		if s.db, err = db.Open(s.dbFile, 64<<20, false); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { s.db.Close() })
	}
	if s.log, err = feed.Open(feed.Config{
		FS: s.fsys, Dir: s.dir, MaxSize: 256 << 20, Name: "shop", Encoding: block.Raw, Keys: feedtest.Keys{}, Sales: s.sales,
		Now: func() block.Stamp { return block.Stamp{Boot: 1} }, CommitEvery: time.Millisecond, CommitBytes: 1 << 20, Log: testLog(),
	}); err != nil {
		s.t.Fatal(err)
	}
	books, err := ledger.New(ledger.Config{DB: s.db})
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := OfferConfig{Name: "shop", Feed: s.log, Key: key(1), Ledger: books, Listing: Listing{Card: card.Card{Name: "shop"}}, Uplink: &replicate.Uplink{Coalesce: time.Millisecond}, Log: testLog()}
	if s.config != nil {
		s.config(&cfg)
	}
	if s.offer, err = NewOffer(cfg); err != nil {
		s.t.Fatal(err)
	}
	addr, err := s.offer.Listen(s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.offers++; s.offers == 1 {
		s.address, s.seller = addr.String(), s.offer.key() // they stay: buyers look at them
	}
}

func (s *shop) close() {
	if s.offer == nil {
		return
	}
	if err := s.offer.Close(); err != nil {
		s.t.Error(err)
	}
	if err := s.log.Close(); err != nil {
		s.t.Error(err)
	}
	s.offer = nil
}

func newSales() *feedtest.Sales { return &feedtest.Sales{} }

func testBlock(i, n int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(i*31 + j*7 + j>>8)
	}
	return b
}

// append appends n blocks of a size.
func (s *shop) append(n, size int) {
	s.t.Helper()
	var batch []block.Block
	for range n {
		batch = append(batch, block.Block{Data: testBlock(s.n, size)})
		if s.n++; len(batch) == 1000 {
			s.write(batch)
			batch = nil
		}
	}
	s.write(batch)
}

func (s *shop) write(batch []block.Block) {
	s.t.Helper()
	if len(batch) == 0 {
		return
	}
	if _, err := s.log.Append(context.Background(), batch...); err != nil {
		s.t.Fatal(err)
	}
}

// paper is an Output in memory.
type paper struct {
	mu    sync.Mutex
	cond  *sync.Cond
	lines [][]byte // blocks as they came
	index []uint64
	notes []string // gaps and forks
	fail  func(i uint64) error
}

func newPaper() *paper {
	p := &paper{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *paper) Block(i uint64, b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		if err := p.fail(i); err != nil {
			return err
		}
	}
	p.lines, p.index = append(p.lines, bytes.Clone(b)), append(p.index, i)
	p.cond.Broadcast()
	return nil
}

func (p *paper) note(format string, args ...any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
	p.cond.Broadcast()
	return nil
}

func (p *paper) Gap(from, to uint64) error  { return p.note("gap %d-%d", from, to) }
func (p *paper) Fork(fork, at uint64) error { return p.note("fork %d@%d", fork, at) }
func (p *paper) Head(merkle.Head) error     { return nil }

func (p *paper) Sync() (int64, string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(len(p.lines)), "paper", nil
}

func (p *paper) Resume(at int64, mark string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if int(at) > len(p.lines) {
		return fmt.Errorf("%d lines of %d", len(p.lines), at)
	}
	p.lines, p.index = p.lines[:at], p.index[:at]
	return nil
}

// wait waits until there are n blocks; check tells if they do not come.
func (p *paper) wait(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	over := false
	defer time.AfterFunc(2*time.Minute, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		over = true
		p.cond.Broadcast()
	}).Stop()
	for len(p.lines) < n {
		if over {
			p.notes = append(p.notes, fmt.Sprintf("%d of %d blocks came in two minutes", len(p.lines), n))
			return
		}
		p.cond.Wait()
	}
}

// check compares what came with what testBlock makes.
func (p *paper) check(t testing.TB, from, to, size int) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) != to-from {
		t.Errorf("%d blocks, want [%d, %d)", len(p.lines), from, to)
		return
	}
	for k, i := range p.index {
		if i != uint64(from+k) || !bytes.Equal(p.lines[k], testBlock(from+k, size)) {
			t.Fatalf("line %d is block %d: %x", k, i, p.lines[k])
		}
	}
	if len(p.notes) > 0 {
		t.Error(p.notes)
	}
}

// customer is a client with its directory.
type customer struct {
	t     testing.TB
	dir   string
	paper *paper
	a     *archive.Archive
	// config changes what is asked for.
	config func(*client.Config)
	times  client.Times
}

func newCustomer(t testing.TB) *customer {
	return &customer{t: t, dir: filepath.Join(t.TempDir(), "state"), paper: newPaper()}
}

// buy runs a client to its end.
func (c *customer) buy(ctx context.Context, s *shop, follow bool) error {
	a, err := archive.Open(durable.OS(), c.dir)
	if err != nil {
		return err
	}
	defer a.Close()
	p, err := purse.Open(durable.OS(), c.dir)
	if err != nil {
		return err
	}
	cfg := client.Config{
		Seller: s.seller, Ways: client.TCP(nil, s.address), Archive: a, Purse: p, Output: c.paper, Follow: follow, Log: testLog(), Times: c.times,
	}
	if c.config != nil {
		c.config(&cfg)
	}
	x, err := client.New(cfg)
	if err != nil {
		return err
	}
	return x.Run(ctx)
}

// key returns who the customer is.
func (c *customer) key() [32]byte { return [32]byte(c.private()[ed25519.SeedSize:]) }

func (c *customer) private() ed25519.PrivateKey {
	b, err := os.ReadFile(filepath.Join(c.dir, "buyer.key"))
	if err != nil {
		c.t.Fatal(err)
	}
	seed, err := hex.DecodeString(string(bytes.TrimSpace(b)))
	if err != nil {
		c.t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}

// start runs a client that follows until stop is called, which returns why it
// ended.
func (c *customer) start(s *shop) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.buy(ctx, s, true) }()
	return func() error { cancel(); return <-done }
}
