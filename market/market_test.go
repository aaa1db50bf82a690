package market

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed/feedtest"
	"dazaar-edge/market/archive"
	"dazaar-edge/market/client"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/storage/durable"
)

func TestBuy(t *testing.T) {
	s := newShop(t, nil)
	s.append(5000, 100)
	c := newCustomer(t)
	for range 3 {
		if err := c.buy(context.Background(), s, false); err != nil {
			t.Fatal(err)
		}
		c.paper.check(t, 0, s.n, 100)
		s.append(700, 100)
	}
	stop := c.start(s)
	s.append(50, 100)
	c.paper.wait(s.n)
	s.append(50, 100)
	c.paper.wait(s.n)
	if err := stop(); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, s.n, 100)
}

// TestBuyTwoFeeds: each buyer has a feed of its own, and cannot have another's.
func TestBuyTwoFeeds(t *testing.T) {
	s := newShop(t, nil)
	s.append(100, 100)
	a, b := newCustomer(t), newCustomer(t)
	for _, c := range []*customer{a, b} {
		if err := c.buy(context.Background(), s, false); err != nil {
			t.Fatal(err)
		}
		c.paper.check(t, 0, 100, 100)
	}
	key := func(c *customer) string {
		b, err := os.ReadFile(filepath.Join(c.dir, "state.json"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), `"feed":`)
		return rest[:66]
	}
	if key(a) == key(b) {
		t.Error("two buyers have one feed")
	}
}

// TestBuyBroken cuts connections, restarts the seller, and loses what the buyer's
// output had not yet synced, at random.
func TestBuyBroken(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 4))
	s := newShop(t, nil)
	s.append(20_000, 100)
	c := newCustomer(t)
	for round := range 25 {
		stop := c.start(s)
		c.paper.wait(min(s.n, len(c.paper.lines)+rng.IntN(500)))
		switch rng.IntN(3) {
		case 0:
			s.offer.each(false, func(x *session) { x.conn.Close() })
		case 1:
			s.close()
			s.open()
		}
		s.append(100, 100)
		c.paper.wait(min(s.n, 1000*round))
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, s.n, 100)
}

// TestOutputFails: what the output did not take comes again.
func TestOutputFails(t *testing.T) {
	s := newShop(t, nil)
	s.append(3000, 100)
	c := newCustomer(t)
	full := errors.New("no space left on device")
	c.paper.fail = func(i uint64) error {
		if i == 1234 {
			return full
		}
		return nil
	}
	if err := c.buy(context.Background(), s, true); !errors.Is(err, client.ErrOutput) || !errors.Is(err, full) {
		t.Fatal(err)
	}
	if n := len(c.paper.lines); n != 1234 {
		t.Errorf("%d lines", n)
	}
	c.paper.fail = nil
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, s.n, 100)
}

// TestReplaced: a second connection of one key takes over from one that is
// settled, and is told to wait while the first is new.
func TestReplaced(t *testing.T) {
	s := newShop(t, nil)
	s.append(10, 100)
	one, two := newCustomer(t), newCustomer(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- one.buy(ctx, s, true) }()
	one.paper.wait(10)
	// The same key in another directory.
	if err := os.MkdirAll(two.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k, err := os.ReadFile(filepath.Join(one.dir, "buyer.key"))
	if err == nil {
		err = os.WriteFile(filepath.Join(two.dir, "buyer.key"), k, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := two.buy(ctx, s, false); !errors.Is(err, client.ErrBusy) {
		t.Errorf("while the first is new: %v", err)
	}
	s.offer.mu.Lock()
	s.offer.replaceAfter = 0
	s.offer.mu.Unlock()
	if err := two.buy(ctx, s, false); err != nil {
		t.Errorf("when the first is settled: %v", err)
	}
	two.paper.check(t, 0, 10, 100)
	// The first does not fight for it.
	if err := <-done; !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), dazaar.CodeReplaced) {
		t.Errorf("the first: %v", err)
	}
}

func TestBusy(t *testing.T) {
	s := newShop(t, func(c *OfferConfig) { c.Buyers = 2 })
	s.append(10, 100)
	var stops []func() error
	for range 2 {
		c := newCustomer(t)
		stops = append(stops, c.start(s))
		c.paper.wait(10)
	}
	c := newCustomer(t)
	if err := c.buy(context.Background(), s, false); !errors.Is(err, client.ErrBusy) {
		t.Error(err)
	}
	// One who follows waits for a place.
	stop := c.start(s)
	if err := stops[0](); err != nil {
		t.Error(err)
	}
	c.paper.wait(10)
	if err := errors.Join(stop(), stops[1]()); err != nil {
		t.Error(err)
	}
}

// TestIdentity: whoever has not the key that is wanted gets nothing said.
func TestIdentity(t *testing.T) {
	s := newShop(t, nil)
	c := newCustomer(t)
	other := newShop(t, func(c *OfferConfig) { c.Key = key(3) })
	other.append(10, 10)
	s.address, other.address = other.address, s.address
	if err := c.buy(context.Background(), s, true); !errors.Is(err, secretstream.ErrIdentity) {
		t.Error(err)
	}
	if n := other.offer.Stats().Buyers; n > 0 {
		t.Errorf("%d buyers", n)
	}
}

// TestUnreachable: one who does not follow is told at once.
func TestUnreachable(t *testing.T) {
	s := newShop(t, nil)
	s.append(10, 10)
	c := newCustomer(t)
	address := s.address
	s.close()
	s.offer = &Offer{cfg: OfferConfig{Key: key(1)}}
	defer func() { s.offer = nil }()
	s.address = address
	if err := c.buy(context.Background(), s, false); !errors.Is(err, client.ErrUnreachable) {
		t.Error(err)
	}
}

// TestSilentStrangers: connections that ask for nothing make place for buyers.
func TestSilentStrangers(t *testing.T) {
	s := newShop(t, nil)
	s.append(10, 10)
	for i := range maxStrangers + 10 {
		x := &stranger{to: s.address, from: anywhere(i)}
		raw, err := x.dial()
		if err != nil {
			t.Fatal(err)
		}
		k := key(byte(100 + i))
		conn, err := secretstream.Client(context.Background(), raw, secretstream.Config{Static: k})
		if err != nil {
			t.Fatal(i, err)
		}
		defer conn.Close()
		time.Sleep(15 * time.Millisecond) // as the common bucket lets them in
	}
	if n := s.offer.Stats().Connections; n > maxStrangers {
		t.Errorf("%d connections", n)
	}
	c := newCustomer(t)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 10, 10)
}

// TestClosing: buyers are told when a seller closes, and come again.
func TestClosing(t *testing.T) {
	s := newShop(t, nil)
	s.append(10, 100)
	c := newCustomer(t)
	stop := c.start(s)
	c.paper.wait(10)
	s.close()
	s.open()
	s.append(10, 100)
	c.paper.wait(20)
	if err := stop(); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, 20, 100)
	if fmt.Sprint(c.paper.notes) != "[]" {
		t.Error(c.paper.notes)
	}
}

// gate is a disk whose syncs wait while it is shut.
type gate struct {
	durable.FS
	mu sync.RWMutex // held for writing while shut
}

func (g *gate) Open(name string) (durable.File, error)   { return g.wrap(g.FS.Open(name)) }
func (g *gate) Create(name string) (durable.File, error) { return g.wrap(g.FS.Create(name)) }
func (g *gate) wrap(f durable.File, err error) (durable.File, error) {
	if err != nil {
		return nil, err
	}
	return gated{f, g}, nil
}

type gated struct {
	durable.File
	g *gate
}

func (f gated) Datasync() error {
	f.g.mu.RLock()
	defer f.g.mu.RUnlock()
	return f.File.Datasync()
}

// TestNotBeforeCommit: what is not yet durable is neither announced nor served.
func TestNotBeforeCommit(t *testing.T) {
	g := &gate{FS: durable.OS()}
	s := &shop{t: t, dir: t.TempDir(), sales: &feedtest.Sales{}, address: "127.0.0.1:0", fsys: g}
	s.open()
	t.Cleanup(s.close)
	s.append(10, 100)
	c := newCustomer(t)
	stop := c.start(s)
	c.paper.wait(10)
	for range 5 {
		n := s.n
		g.mu.Lock()
		done := make(chan struct{})
		go func() { s.append(20, 100); close(done) }()
		time.Sleep(50 * time.Millisecond) // long enough for a seller that does not wait
		c.paper.mu.Lock()
		if got := len(c.paper.lines); got != n {
			t.Errorf("%d blocks are bought, %d are durable", got, n)
		}
		c.paper.mu.Unlock()
		g.mu.Unlock()
		<-done
		c.paper.wait(n + 20)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, s.n, 100)
}

// TestForkUnseen: one who does not follow sees a fork all the same, also one that
// changes nothing about the length.
func TestForkUnseen(t *testing.T) {
	s := newShop(t, nil)
	s.append(100, 100)
	c := newCustomer(t)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	// The disk as it was is restored, and other blocks follow.
	s.close()
	image := t.TempDir()
	if err := os.CopyFS(filepath.Join(image, "log"), os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.append(50, 100)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	s.close()
	s.dir = filepath.Join(image, "log")
	s.open()
	s.n = 100
	s.append(50, 101)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	if len(c.paper.notes) != 1 || c.paper.notes[0] != "fork 1@100" {
		t.Errorf("%q", c.paper.notes)
	}
	// What it returned of the lost blocks is appended meanwhile, and may be there
	// the next time only.
	for changed := s.log.Changed(); s.log.Head().Length < 200; changed = s.log.Changed() {
		<-changed
	}
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	last := len(c.paper.lines) - 1
	if n := s.log.Head().Length; c.paper.index[last] != n-1 || last+1 != 150+int(n)-100 {
		t.Errorf("%d blocks, the last one is %d of %d", last+1, c.paper.index[last], n)
	}
}

// TestNewGeneration: a new feed of a log that parted from what was had is looked
// into, and what differs comes again.
func TestNewGeneration(t *testing.T) {
	s := newShop(t, nil)
	s.append(40, 100)
	s.close()
	image := t.TempDir()
	if err := os.CopyFS(filepath.Join(image, "log"), os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
	s.open()
	s.append(60, 100)
	c := newCustomer(t)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 100, 100)
	// The same log under a new key: nothing comes twice.
	if _, err := s.log.Renew(c.key()); err != nil {
		t.Fatal(err)
	}
	s.append(10, 100)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 110, 100)
	// Another log from block 40 on, under a newer key.
	if _, err := s.log.Renew(c.key()); err != nil {
		t.Fatal(err)
	}
	s.close()
	s.dir = filepath.Join(image, "log")
	s.open()
	s.n = 40
	s.append(80, 101)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	if len(c.paper.notes) != 1 || !strings.HasSuffix(c.paper.notes[0], "@40") {
		t.Errorf("%q", c.paper.notes)
	}
	n := int(s.log.Head().Length)
	if len(c.paper.lines) != 110+n-40 {
		t.Errorf("%d blocks of %d", len(c.paper.lines), 110+n-40)
	}
}

// TestSilentSeller: a seller that says nothing of use does not hold a buyer up for
// ever.
func TestSilentSeller(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := secretstream.Listen(ln, secretstream.ListenConfig{Config: secretstream.Config{Static: key(1)}})
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			go mux.New(c, mux.Config{Accept: func(string, []byte) bool { return true }}).Run() //nolint:errcheck // it ends with the test
		}
	}()
	a, err := archive.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c, err := client.New(client.Config{Seller: [32]byte(key(1)[32:]), Ways: client.TCP(nil, ln.Addr().String()), Archive: a, Purse: testPurse(t), Output: newPaper(), Times: client.Times{Patience: time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(context.Background()); !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "said nothing") {
		t.Error(err)
	}
}

// TestInterrupted: a purchase that was to end is not done when it is stopped.
func TestInterrupted(t *testing.T) {
	s := newShop(t, func(c *OfferConfig) { c.BuyerRate = 50_000 })
	s.append(5000, 1000)
	c := newCustomer(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.buy(ctx, s, false) }()
	c.paper.wait(5)
	cancel()
	if err := <-done; !errors.Is(err, client.ErrInterrupted) {
		t.Error(err)
	}
}

// TestOtherSeller: a state of one seller is not used for another.
func TestOtherSeller(t *testing.T) {
	s := newShop(t, nil)
	s.append(10, 10)
	c := newCustomer(t)
	if err := c.buy(context.Background(), s, false); err != nil {
		t.Fatal(err)
	}
	other := newShop(t, func(c *OfferConfig) { c.Key = key(3) })
	other.append(10, 10)
	if err := c.buy(context.Background(), other, false); err == nil || !strings.Contains(err.Error(), "a directory of its own") {
		t.Error(err)
	}
}
