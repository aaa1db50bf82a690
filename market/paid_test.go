package market

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
)

// till is a shop that is paid: 1,000 msat for ten readings.
type till struct {
	*shop
	node  *devnet.Node
	pays  *cashier.Cashier
	books *ledger.Ledger
	// now is the seller's clock.
	now func() time.Time
	// listing is what it asks for.
	listing Listing
}

// tenReadings is the price of the tests.
var tenReadings = card.Payment{Method: "lnd", Currency: "LightningSats", Unit: "readings", Interval: "10", Amount: "1"}

func newTill(t testing.TB, change func(*Listing)) *till {
	t.Helper()
	x := &till{shop: &shop{t: t, dir: t.TempDir(), sales: newSales(), address: "127.0.0.1:0"}, now: time.Now}
	var err error
	if x.node, err = devnet.Open(durable.OS(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	x.listing = Listing{Card: card.Card{
		Name: "shop", Payment: []card.Payment{tenReadings}, Network: bolt11.Regtest, Payee: fmt.Sprintf("%x", x.node.Payee()),
	}}
	if change != nil {
		change(&x.listing)
	}
	x.shop.config = func(c *OfferConfig) {
		x.books = c.Ledger
		if x.pays, err = cashier.New(cashier.Config{
			Ledger: x.books, Gateways: []payment.Gateway{x.node}, Now: func() time.Time { return x.now() }, Log: testLog(),
		}); err != nil {
			t.Fatal(err)
		}
		if err := x.pays.Identify(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.Cashier, c.Listing, c.Now = x.pays, x.listing, func() time.Time { return x.now() }
	}
	x.open()
	t.Cleanup(x.close)
	return x
}

// open opens the shop, and then the till.
func (x *till) open() {
	x.t.Helper()
	x.shop.open()
	x.pays.Start()
}

func (x *till) close() {
	if x.offer != nil {
		x.shop.close()
		x.pays.Close()
	}
}

// crash ends the seller as a power cut does: nothing more is written.
func (x *till) crash() {
	x.t.Helper()
	x.log.Abort()
	// What the books had in memory alone is lost with them: the database is copied
	// before anything else can write to it.
	copied, gone := filepath.Join(x.t.TempDir(), "edge.db"), errors.New("gone")
	err := x.shop.db.Update(func(*db.Tx) error { // nobody else writes meanwhile
		b, err := durable.ReadFile(durable.OS(), x.dbFile, 64<<20)
		if err == nil {
			err = durable.WriteFile(durable.OS(), copied, b)
		}
		x.offer.each(true, func(s *session) { s.conn.Close() }) // nobody hears of what comes after
		return errors.Join(gone, err)
	})
	if err.Error() != gone.Error() {
		x.t.Fatal(err)
	}
	x.offer.Close() //nolint:errcheck // its disk is gone
	x.pays.Close()
	x.shop.db.Close()
	x.dbFile = copied
	if x.shop.db, err = db.Open(copied, 64<<20, false); err != nil {
		x.t.Fatal(err)
	}
	x.open()
}

// sense appends n packs of one reading each, a second apart.
func (x *till) sense(n int) {
	x.t.Helper()
	var batch []block.Block
	for range n {
		batch = append(batch, block.Block{Data: testBlock(x.n, 50), Readings: 1, Stamp: block.Stamp{Boot: 1, Mono: time.Duration(x.n) * time.Second}})
		x.n++
	}
	x.write(batch)
}

// settled returns what came in, by the ledger.
func (x *till) settled() (msat uint64) {
	x.t.Helper()
	if err := x.books.Rows(func(r ledger.Row, err error) bool {
		if err != nil {
			x.t.Fatal(err)
		}
		msat += r.Paid
		return true
	}); err != nil {
		x.t.Fatal(err)
	}
	return msat
}

// money is a buyer's wallet, in the same node; it may fail.
type money struct {
	node *devnet.Node
	fail func(request string) error
	n    int
}

func (m *money) Network() bolt11.Network { return bolt11.Regtest }

func (m *money) Pay(_ context.Context, p payment.Payment) (payment.Proof, error) {
	m.n++
	if m.fail != nil {
		if err := m.fail(p.Request); err != nil {
			return payment.Proof{}, err
		}
	}
	preimage, err := m.node.Pay(p.Request, 0)
	if err != nil {
		err = fmt.Errorf("%w: %w", payment.ErrDeclined, err)
	}
	return payment.Proof{Preimage: preimage}, err
}

// rich is a customer with so many steps to spend.
func (x *till) rich(steps uint64) *customer {
	c := newCustomer(x.t)
	c.config = func(cfg *client.Config) {
		cfg.Wallet, cfg.Budget = &money{node: x.node}, purse.Budget{Total: steps * 1000}
		cfg.Accept = func(string, [32]byte) bool { return true }
	}
	return c
}

// payments is how many invoices a customer paid, or may have.
func (c *customer) payments() (n int64) {
	p, err := purse.Open(durable.OS(), c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	p.Receipts(func(*purse.Receipt, error) bool { n++; return true })
	return n
}

// spent is what a customer paid, or may have.
func (c *customer) spent() (msat uint64) {
	p, err := purse.Open(durable.OS(), c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	p.Receipts(func(r *purse.Receipt, err error) bool {
		if err != nil {
			c.t.Fatal(err)
		}
		if r.State != purse.Failed {
			msat += r.Msat
		}
		return true
	})
	return msat
}

// TestPaid: a buyer pays step by step, in its budget, and gets what it paid for to
// the reading; then no more, until its budget is raised.
func TestPaid(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(35)
	c := x.rich(3)
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrBudget) {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 30, 50)
	if c.spent() != 3000 || x.settled() != 3000 {
		t.Errorf("%d msat were spent, %d came", c.spent(), x.settled())
	}
	c2 := x.rich(100)
	c.config = c2.config
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 35, 50)
	stop := c.start(x.shop)
	for range 10 {
		x.sense(7)
		c.paper.wait(x.n)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, 105, 50)
	if c.spent() != x.settled() || c.spent() > 13_000 {
		t.Errorf("%d msat were spent, %d came", c.spent(), x.settled())
	}
}

// TestUnpaid: who pays nothing gets nothing, and is told what it costs.
func TestUnpaid(t *testing.T) {
	x := newTill(t, nil)
	x.sense(5)
	c := newCustomer(t)
	if err := c.buy(context.Background(), x.shop, true); !errors.Is(err, client.ErrUnpaid) || !bytes.Contains([]byte(err.Error()), []byte("1 sat for 10 readings")) {
		t.Error(err)
	}
	c.paper.check(t, 0, 0, 50)
}

// TestHistory: what a purchase includes from before it.
func TestHistory(t *testing.T) {
	for _, k := range []struct {
		history *card.History
		from    int
		steps   uint64
	}{
		{nil, 50, 2}, {&card.History{All: true}, 0, 7}, {&card.History{All: true, Amount: "0"}, 0, 2}, {&card.History{All: true, Amount: "0.5"}, 0, 5},
	} {
		t.Run(fmt.Sprintf("%+v", k.history), func(t *testing.T) {
			x := newTill(t, func(l *Listing) { l.Card.History = k.history })
			x.sense(50)
			c := x.rich(k.steps)
			stop := c.start(x.shop)
			for x.settled() == 0 {
				time.Sleep(time.Millisecond) // until the purchase began
			}
			x.sense(20)
			c.paper.wait(70 - k.from)
			if err := stop(); err != nil && !errors.Is(err, client.ErrBudget) {
				t.Error(err)
			}
			c.paper.mu.Lock()
			c.paper.notes = nil // what is not included is said to be missing
			c.paper.mu.Unlock()
			c.paper.check(t, k.from, 70, 50)
			if got, want := x.settled(), k.steps*1000; got != want {
				t.Errorf("%d msat were paid, want %d", got, want)
			}
		})
	}
}

// TestTrial: once a key, of what comes from now on, and then it costs.
func TestTrial(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.Trial = &card.Trial{Seconds: 10, Bytes: 1 << 20} })
	x.sense(5)
	c := newCustomer(t)
	done := make(chan error, 1)
	go func() { done <- c.buy(context.Background(), x.shop, true) }()
	for x.offer.Stats().Buyers == 0 {
		time.Sleep(time.Millisecond) // until it is there
	}
	x.sense(30)
	if err := <-done; !errors.Is(err, client.ErrUnpaid) {
		t.Fatal(err)
	}
	c.paper.notes = nil
	c.paper.check(t, 5, 15, 50)
	if err := c.buy(context.Background(), x.shop, true); !errors.Is(err, client.ErrUnpaid) {
		t.Error(err)
	}
	c.paper.check(t, 5, 15, 50)
}

// TestTerms: nothing is had, nor paid, before they are accepted; the signature is
// kept.
func TestTerms(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Terms, l.Card.History = "Do no harm.", &card.History{All: true} })
	x.sense(5)
	c := newCustomer(t)
	c.config = func(cfg *client.Config) { cfg.Wallet, cfg.Budget = &money{node: x.node}, purse.Budget{Total: 5000} }
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrTerms) {
		t.Fatal(err)
	}
	if c.paper.check(t, 0, 0, 50); x.settled() != 0 {
		t.Error("it paid before it accepted")
	}
	c.config = x.rich(5).config
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 5, 50)
	n := 0
	if err := x.books.Accounts("shop", func(a ledger.Account, err error) bool {
		if err != nil || a.Contract.Terms == nil || *a.Contract.Terms != *x.offer.listing().hash {
			t.Errorf("%+v, %v", a, err)
		}
		n++
		return true
	}); err != nil || n != 1 {
		t.Error(n, err)
	}
	// New terms: what was paid before goes on, a new invoice needs them accepted.
	l := x.listing
	l.Terms = "Do some good."
	if err := x.offer.SetListing(l); err != nil {
		t.Fatal(err)
	}
	x.sense(3)
	c.config = func(cfg *client.Config) { cfg.Wallet, cfg.Budget = &money{node: x.node}, purse.Budget{Total: 5000} }
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 8, 50)
	x.sense(10)
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrRefused) {
		t.Error(err)
	}
}

// TestOnce: paid once, it is the buyer's for good.
func TestOnce(t *testing.T) {
	x := newTill(t, func(l *Listing) {
		l.Card.Payment[0].Unit, l.Card.Payment[0].Interval = "once", "1"
		l.Card.History = &card.History{All: true}
	})
	x.sense(50)
	c := x.rich(10)
	for range 3 {
		if err := c.buy(context.Background(), x.shop, false); err != nil {
			t.Fatal(err)
		}
		c.paper.check(t, 0, x.n, 50)
		x.sense(100)
	}
	if x.settled() != 1000 {
		t.Errorf("%d msat", x.settled())
	}
}

// TestManySteps: who buys what was before in more steps than invoices are made at once waits
// for them, though it does not follow.
func TestManySteps(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(600)
	c := x.rich(60)
	config := c.config
	c.config = func(cfg *client.Config) { config(cfg); cfg.Times.Again = 300 * time.Millisecond }
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 600, 50)
	if x.settled() != 60_000 {
		t.Errorf("%d msat", x.settled())
	}
}

// TestWallClock: what is bought by the clock ends by the clock, and a payment goes
// on with it.
func TestWallClock(t *testing.T) {
	x := newTill(t, func(l *Listing) {
		l.Card.Payment[0].Unit, l.Card.Payment[0].Interval, l.Card.Payment[0].Clock = "seconds", "2", "wall"
	})
	c := x.rich(3)
	done := make(chan error, 1)
	begun := time.Now()
	go func() { done <- c.buy(context.Background(), x.shop, true) }()
	err := <-done
	if took := time.Since(begun); !errors.Is(err, client.ErrBudget) || took < 5500*time.Millisecond || took > time.Minute {
		t.Errorf("%v after %v", err, took)
	}
	if x.settled() != 3000 {
		t.Errorf("%d msat", x.settled())
	}
}

// TestClockUnset: a board that does not know the time makes no invoices, says so, and
// serves who has paid before.
func TestClockUnset(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(5)
	c, late := x.rich(5), x.rich(5)
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	x.close()
	x.now = func() time.Time { return time.Time{} }
	x.open()
	x.sense(5)
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, 10, 50)
	if err := late.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrBusy) || !bytes.Contains([]byte(err.Error()), []byte("clock")) {
		t.Error(err)
	}
	if late.spent() != 0 {
		t.Error("it paid")
	}
}

// TestPaymentInDoubt: a wallet that does not say whether it paid is asked about the
// same invoice again, and about no other.
func TestPaymentInDoubt(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(5)
	c := x.rich(5)
	first := ""
	fail := errors.New("connection reset")
	m := &money{node: x.node}
	m.fail = func(request string) error {
		if first == "" {
			first = request
			x.node.Pay(request, 0) //nolint:errcheck // it did pay; its answer is lost
			return fail
		}
		return nil
	}
	rich := c.config
	c.config = func(cfg *client.Config) { rich(cfg); cfg.Wallet = m }
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrUnpaid) || !errors.Is(err, fail) {
		t.Fatal(err)
	}
	// The seller knows of the payment; the buyer gets what it has, and pays no more.
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 5, 50)
	if c.spent() != 1000 || x.settled() != 1000 || m.n != 1 {
		t.Errorf("%d spent, %d came, %d payments", c.spent(), x.settled(), m.n)
	}
}

// TestRevokePaid: a revocation is for now and later; what is burned is published.
func TestRevokePaid(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History, l.Card.Burnable = &card.History{All: true}, true })
	x.sense(25)
	c := x.rich(5)
	done := make(chan error, 1)
	go func() { done <- c.buy(context.Background(), x.shop, true) }()
	c.paper.wait(25)
	buyer := c.key()
	if err := x.offer.Revoke(buyer); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, client.ErrRefused) {
		t.Error(err)
	}
	x.sense(2)
	if err := c.buy(context.Background(), x.shop, true); !errors.Is(err, client.ErrRefused) {
		t.Error(err)
	}
	x.close()
	x.open()
	if err := c.buy(context.Background(), x.shop, true); !errors.Is(err, client.ErrRefused) {
		t.Error(err)
	}
	c.paper.check(t, 0, 25, 50)
	if err := x.offer.Restore(buyer); err != nil {
		t.Fatal(err)
	}
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, 27, 50)
	if err := x.offer.Burn(buyer); err != nil {
		t.Fatal(err)
	}
	b := x.offer.burnedKeys()
	if len(b) != 1 || b[0].Verify() != nil {
		t.Fatal(b)
	}
	if err := x.offer.Restore(buyer); err != nil {
		t.Fatal(err)
	}
	f, err := x.log.Rekey(buyer)
	if err != nil || f.Key() == [32]byte(b[0].FeedKey) {
		t.Error("a burned key is used again", err)
	}
}

// TestBurnAll: all feed keys that a sale had are burned, also those that were replaced; one whose
// buyer was ever told that this does not happen is not.
func TestBurnAll(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History, l.Card.Burnable = &card.History{All: true}, true })
	x.sense(25)
	c, other := x.rich(5), x.rich(5)
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	f, err := x.log.Rekey(c.key())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.log.Renew(c.key()); err != nil { // as where it was too old, or a burn was cut short
		t.Fatal(err)
	}
	relist := func(burnable bool) {
		l := x.listing
		l.Card.Burnable = burnable
		if err := x.offer.SetListing(l); err != nil {
			t.Fatal(err)
		}
	}
	relist(false)
	if err := other.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	relist(true)
	if err := x.offer.Burn(c.key()); err != nil {
		t.Fatal(err)
	}
	burned := func() (keys [][32]byte) {
		for _, b := range x.offer.burnedKeys() {
			keys = append(keys, b.FeedKey)
		}
		return keys
	}
	if keys := burned(); len(keys) != 2 || !slices.Contains(keys, [32]byte(f.Key())) {
		t.Errorf("%x", keys)
	}
	if err := x.offer.Burn(other.key()); err == nil || len(burned()) != 2 {
		t.Errorf("a sale that was said to last was burned: %v", err)
	}
	if err := x.offer.Burn(c.key()); err != nil { // those that are known are not told again
		t.Error(err)
	}
	if keys := burned(); len(keys) != 3 {
		t.Errorf("%x", keys)
	}
}

// TestPaidCrashes: the seller crashes at any moment, while buyers pay and download.
// In the end each has everything in order; at most what was sent since the last
// checkpoints was unpaid, and never was more paid than what it costs.
func TestPaidCrashes(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	var all []*customer
	for range 3 {
		all = append(all, x.rich(1000))
	}
	x.sense(200)
	for range 12 {
		var stops []func() error
		for _, c := range all {
			stops = append(stops, c.start(x.shop))
		}
		x.sense(rng.IntN(150))
		goal := rng.IntN(x.n)
		all[rng.IntN(3)].paper.wait(goal)
		x.crash()
		for _, stop := range stops {
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, c := range all {
		if err := c.buy(context.Background(), x.shop, false); err != nil {
			t.Fatal(err)
		}
		c.paper.check(t, 0, x.n, 50)
		if worth := uint64(x.n) * 100; c.spent() > worth+1000 {
			t.Errorf("buyer %d paid %d msat for what costs %d", i, c.spent(), worth)
		}
	}
	spent := uint64(0)
	for _, c := range all {
		spent += c.spent()
	}
	if x.settled() != spent {
		t.Errorf("%d msat came, and %d were spent", x.settled(), spent)
	}
	t.Logf("3 buyers of %d readings paid %d msat over 12 crashes", x.n, spent)
}
