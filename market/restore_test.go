package market

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/storage/db"
)

// lose ends the seller and begins it again with empty books; recorded says whether the
// loss is known.
func (x *till) lose(recorded bool) {
	x.t.Helper()
	x.close()
	if err := x.shop.db.Close(); err != nil {
		x.t.Fatal(err)
	}
	x.dbFile = filepath.Join(x.t.TempDir(), "edge.db")
	var err error
	if x.shop.db, err = db.Open(x.dbFile, 64<<20, false); err != nil {
		x.t.Fatal(err)
	}
	if recorded {
		if err := ledger.RecordLoss(x.shop.db, ledger.Loss{At: time.Now().Add(time.Hour), Why: "a test"}); err != nil {
			x.t.Fatal(err)
		}
	}
	x.open()
}

// left returns what a buyer has left, in msat.
func (x *till) left(buyer [32]byte) (msat uint64) {
	x.t.Helper()
	s, err := x.books.Sale("shop", buyer)
	if err != nil {
		x.t.Fatal(err)
	}
	defer s.Close()
	for _, l := range s.State().Lots {
		msat += l.Msat()
	}
	return msat
}

// TestLostBooks: the seller loses its books. A buyer shows what it paid, and has it credited
// once, less what it has of it already; it gets what is new for the rest, and pays no more
// than before. Without a recorded loss nothing comes back.
func TestLostBooks(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(25)
	c := x.rich(100)
	rich := c.config
	c.config = func(cfg *client.Config) { rich(cfg); cfg.Step = 4 }
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	paid := c.spent()
	if paid != 4000 || x.left(c.key()) != 1500 {
		t.Fatalf("%d msat paid, %d left", paid, x.left(c.key()))
	}
	for range 2 { // it may happen again
		x.lose(true)
		x.sense(5)
		if err := c.buy(context.Background(), x.shop, false); err != nil {
			t.Fatal(err)
		}
		if c.spent() != paid {
			t.Errorf("%d msat were paid again", c.spent()-paid)
		}
	}
	c.paper.check(t, 0, 35, 50)
	if n := x.left(c.key()); n > 500 {
		t.Errorf("%d msat are left after 35 readings", n)
	}
	restored := 0
	if err := x.books.Rows(func(r ledger.Row, err error) bool {
		if err == nil && r.Restored && r.State == ledger.Settled && r.Paid == 4000 {
			restored++
		}
		return true
	}); err != nil || restored != 1 {
		t.Errorf("%d restored, %v", restored, err)
	}
	// Nothing was lost, as far as anybody knows: what is shown is nobody's.
	x.lose(false)
	x.sense(10)
	c.config = func(cfg *client.Config) { rich(cfg); cfg.Budget.Total = paid }
	c.times = client.Times{Arrive: 100 * time.Millisecond}
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrBudget) && !errors.Is(err, card.ErrOlder) {
		t.Error(err)
	}
	if n := x.left(c.key()); n != 0 {
		t.Errorf("%d msat came back", n)
	}
}
