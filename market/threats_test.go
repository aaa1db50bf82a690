package market

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/durable"
)

// The tests of this file are rows B6 to B9 of specs/lightning.md, section 3; the others are
// tested with package client.

// TestB6: what is kept of a payment shows that it was made; shown to the seller, it has it
// look at its node.
func TestB6(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History, l.Terms = &card.History{All: true}, "Do no harm." })
	x.sense(5)
	c := x.rich(5)
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	p, err := purse.Open(durable.OS(), c.dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	p.Receipts(func(r *purse.Receipt, err error) bool {
		if err != nil {
			t.Fatal(err)
		}
		n++
		got, named, err := r.Verify()
		if err != nil || !named || got.Name != "shop" || r.Accepted == nil {
			t.Errorf("%+v, %v, %v", got, named, err)
		}
		for name, change := range map[string]func(*purse.Receipt){
			"buyer":    func(r *purse.Receipt) { r.Buyer[0]++ },
			"seller":   func(r *purse.Receipt) { r.Seller[0]++ },
			"amount":   func(r *purse.Receipt) { r.Msat++ },
			"signed":   func(r *purse.Receipt) { r.Invoice.Msat = "2000" },
			"units":    func(r *purse.Receipt) { r.Invoice.Units++ },
			"preimage": func(r *purse.Receipt) { r.Preimage = &jcs.Hex32{} },
			"no proof": func(r *purse.Receipt) { r.State, r.Preimage = purse.Credited, nil },
			"card":     func(r *purse.Receipt) { r.Card = []byte(strings.Replace(string(r.Card), "shop", "show", 1)) },
			"terms":    func(r *purse.Receipt) { r.Accepted.SHA256[0]++ },
			"request":  func(r *purse.Receipt) { r.Invoice.Request = strings.Replace(r.Invoice.Request, "lnbcrt", "lnbc", 1) },
		} {
			y := *r
			accepted := *r.Accepted
			y.Accepted = &accepted
			change(&y)
			if _, _, err := y.Verify(); !errors.Is(err, purse.ErrUnproven) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return true
	})
	if n == 0 {
		t.Fatal("no receipt")
	}
	// The seller hears of a payment only from a receipt.
	y := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	y.pays.Close()
	y.sense(5)
	stranger, err := call(y.address, y.offer.key(), buyerKey(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.m.Close()
	next[dazaar.Invalid](t, stranger)
	stranger.ch.InvoiceRequest(dazaar.InvoiceRequest{ID: 1, Msat: "1000"}) //nolint:errcheck // the shop may have closed
	v := next[dazaar.Invoice](t, stranger)
	preimage, err := y.node.Pay(v.Request, 0)
	if err != nil {
		t.Fatal(err)
	}
	if y.settled() != 0 {
		t.Fatal("it is known already")
	}
	stranger.ch.Receipt(dazaar.Receipt{Invoice: v, Preimage: preimage}) //nolint:errcheck // as above
	next[dazaar.Valid](t, stranger)
	if y.settled() != 1000 {
		t.Errorf("%d msat", y.settled())
	}
}

// TestB7: no more than one step is at risk: what is bought while some is left makes it
// whole again, and a seller that takes money and sends nothing gets one step.
func TestB7(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(200)
	c := x.rich(100)
	rich := c.config
	most := uint64(0)
	c.config = func(cfg *client.Config) {
		rich(cfg)
		cfg.Step = 5
		m := cfg.Wallet.(*money)
		m.fail = func(string) error { // before each payment: what is not delivered yet
			sale, err := x.books.Sale("shop", c.key())
			if err != nil {
				return err
			}
			defer sale.Close()
			left := uint64(0)
			for _, l := range sale.State().Lots {
				left += l.Msat()
			}
			most = max(most, left)
			return nil
		}
	}
	stop := c.start(x.shop)
	c.paper.wait(200)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	// What was left and what was bought are a step at most.
	p, err := purse.Open(durable.OS(), c.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.Receipts(func(r *purse.Receipt, _ error) bool {
		if r.Msat > 5000 {
			t.Errorf("%d msat at once", r.Msat)
		}
		return true
	})
	if most >= 5000/5 {
		t.Errorf("%d msat were left when more was paid", most)
	}
	// For one step nothing comes, here since a block costs more: there is no second one.
	dear := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	dear.write([]block.Block{{Data: testBlock(0, 50), Readings: 25, Stamp: block.Stamp{Boot: 1, Mono: time.Second}}})
	v := dear.rich(100)
	v.times = client.Times{Arrive: 100 * time.Millisecond}
	if err := v.buy(context.Background(), dear.shop, false); !errors.Is(err, client.ErrUnserved) {
		t.Error(err)
	}
	// Nor is there one when it is started again.
	for range 3 {
		if err := v.buy(context.Background(), dear.shop, false); !errors.Is(err, client.ErrUnserved) {
			t.Error(err)
		}
	}
	if v.spent() != 1000 {
		t.Errorf("%d msat for nothing", v.spent())
	}
	// A seller that charges ten times what it delivers gets two steps.
	cheat := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	var blocks []block.Block
	for i := range 50 {
		p := block.Pack{Stamp: block.Stamp{Boot: 1, Mono: time.Duration(i) * time.Second}}
		for k := range 5 {
			p.Readings = append(p.Readings, block.Reading{Name: "a", Value: block.Number(float64(k)), Offset: time.Duration(k) * time.Millisecond})
		}
		b, err := block.SenMLJSON.Pack(&p)
		if err != nil {
			t.Fatal(err)
		}
		b.Readings = 50
		blocks = append(blocks, b)
	}
	cheat.write(blocks)
	y := cheat.rich(1000)
	some := y.config
	y.config = func(cfg *client.Config) { some(cfg); cfg.Step = 10 }
	if err := y.buy(context.Background(), cheat.shop, false); !errors.Is(err, client.ErrUnserved) || y.spent() != 20_000 {
		t.Errorf("%d msat, %v", y.spent(), err)
	}
	// Time by the clock cannot be over at once.
	wall := newTill(t, func(l *Listing) {
		l.Card.Payment = []card.Payment{{Method: "lnd", Currency: "LightningSats", Unit: "hours", Interval: "1", Amount: "1", Clock: "wall"}}
	})
	wall.sense(5)
	w := wall.rich(20)
	config := w.config
	w.config = func(cfg *client.Config) {
		config(cfg)
		cfg.Wallet.(*money).fail = func(request string) error { // the seller says that it is used up
			go wall.robs(w.key(), request)
			return nil
		}
	}
	err = w.buy(context.Background(), wall.shop, true)
	if !errors.Is(err, client.ErrUnserved) || w.spent() > 2000 {
		t.Errorf("%d msat, %v", w.spent(), err)
	}
}

// robs takes what a buyer bought with an invoice, as soon as it is there.
func (x *till) robs(buyer [32]byte, request string) {
	v, err := bolt11.Parse(request)
	for deadline := time.Now().Add(60 * time.Second); err == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		r, e := x.books.Row(v.Hash)
		if e != nil || r.State != ledger.Settled {
			continue
		}
		s, e := x.books.Sale("shop", buyer)
		if e != nil {
			return
		}
		s.Change(func(m *meter.State) { m.Lots = nil }) //nolint:errcheck // the test sees it
		s.Close()                                       //nolint:errcheck // as above
		return
	}
}

// slow is a wallet that makes invoices when it is told to.
type slow struct {
	payment.Gateway
	asked, go1 chan bool
}

func (s *slow) Create(ctx context.Context, r payment.Request) (payment.Issued, error) {
	s.asked <- true
	<-s.go1
	return s.Gateway.Create(ctx, r)
}

// TestChangeInFlight: the card, or the terms, change while an invoice is on its way: a buyer
// who follows asks again, and goes on; also when terms are taken back.
func TestChangeInFlight(t *testing.T) {
	for name, c := range map[string]struct {
		before string // terms
		change func(*Listing)
	}{
		"description": {"", func(l *Listing) { l.Card.Description = "without the mistake" }},
		"new terms":   {"Do no harm.", func(l *Listing) { l.Terms = "Do some good." }},
		"no terms":    {"Do no harm.", func(l *Listing) { l.Terms = "" }},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true}; l.Terms = c.before })
			g := &slow{x.node, make(chan bool, 100), make(chan bool, 100)}
			x.close()
			config := x.shop.config
			x.shop.config = func(o *OfferConfig) {
				config(o)
				var err error
				if x.pays, err = cashier.New(cashier.Config{Ledger: x.books, Gateways: []payment.Gateway{g}, Now: time.Now}); err != nil {
					t.Fatal(err)
				}
				if err := x.pays.Identify(context.Background()); err != nil {
					t.Fatal(err)
				}
				o.Cashier = x.pays
			}
			x.open()
			x.sense(5)
			b := x.rich(5)
			stop := b.start(x.shop)
			<-g.asked
			l := x.listing
			c.change(&l)
			if err := x.offer.SetListing(l); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				g.go1 <- true
			}
			b.paper.wait(5)
			x.sense(20)
			b.paper.wait(25)
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestB8: while it is not known whether one was paid, no other is.
func TestB8(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(5)
	c := x.rich(5)
	m := &money{node: x.node}
	requests := map[string]bool{}
	m.fail = func(request string) error {
		requests[request] = true
		if m.n < 4 {
			return errors.New("connection reset")
		}
		return nil
	}
	rich := c.config
	c.config = func(cfg *client.Config) { rich(cfg); cfg.Wallet = m }
	for range 3 {
		if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrUnpaid) {
			t.Fatal(err)
		}
	}
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	rows := 0
	if err := x.books.Rows(func(ledger.Row, error) bool { rows++; return true }); err != nil {
		t.Fatal(err)
	}
	if len(requests) != 1 || rows != 1 || c.spent() != 1000 {
		t.Errorf("%d invoices were tried, %d made, %d msat spent", len(requests), rows, c.spent())
	}
}

// fees is a wallet that notes what it may pay besides, and pays so much.
type fees struct {
	money
	limits []uint64
	fee    uint64
}

func (w *fees) Pay(ctx context.Context, p payment.Payment) (payment.Proof, error) {
	w.limits = append(w.limits, p.MaxFee)
	proof, err := w.money.Pay(ctx, p)
	proof.Fee = min(w.fee, p.MaxFee)
	return proof, err
}

// TestB9: there is always a limit for fees, within what may be spent at all; fees are
// counted, and budgets for a day, a purchase and in all hold with them.
func TestB9(t *testing.T) {
	for name, c := range map[string]struct {
		budget purse.Budget
		fee    uint64
		limits []uint64
		spent  uint64
	}{
		"default":    {purse.Budget{Total: 100_000}, 0, []uint64{5000, 5000, 5000}, 3000},
		"given":      {purse.Budget{Total: 100_000, Fee: 70}, 70, []uint64{70, 70, 70}, 3210},
		"total":      {purse.Budget{Total: 2500}, 300, []uint64{1500, 200}, 2500},
		"day":        {purse.Budget{Total: 100_000, Day: 2100}, 100, []uint64{1100, 0}, 2100},
		"purchase":   {purse.Budget{Total: 100_000, Purchase: 1050}, 100, []uint64{50, 50, 50}, 3150},
		"too little": {purse.Budget{Total: 100_000, Purchase: 999}, 0, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
			x.sense(25)
			w := &fees{money: money{node: x.node}, fee: c.fee}
			b := newCustomer(t)
			b.config = func(cfg *client.Config) { cfg.Wallet, cfg.Budget = w, c.budget }
			err := b.buy(context.Background(), x.shop, false)
			if enough := len(c.limits) == 3; enough != (err == nil) || !enough && !errors.Is(err, client.ErrBudget) {
				t.Error(err)
			}
			if fmt.Sprint(w.limits) != fmt.Sprint(c.limits) {
				t.Errorf("limits %v, want %v", w.limits, c.limits)
			}
			p, err := purse.Open(durable.OS(), b.dir)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Spent(time.Time{}); got != c.spent {
				t.Errorf("%d msat spent, want %d", got, c.spent)
			}
		})
	}
}
