package cashier

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
)

var perReading = meter.Price{Unit: meter.Readings, Interval: 1, Amount: 1, History: 1}

// desk is a cashier with books and a wallet.
type desk struct {
	t     *testing.T
	db    *db.DB
	file  string
	books *ledger.Ledger
	node  *devnet.Node
	c     *Cashier
	now   time.Time
	told  chan ledger.Row
}

func newDesk(t *testing.T, gateways ...payment.Gateway) *desk {
	d := &desk{t: t, now: time.Now(), told: make(chan ledger.Row, 1000)}
	var err error
	d.file = filepath.Join(t.TempDir(), "edge.db")
	if d.db, err = db.Open(d.file, 32<<20, false); err != nil {
		t.Fatal(err)
	}
	if d.node, err = devnet.Open(durable.OS(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	d.open(gateways...)
	t.Cleanup(func() { d.c.Close(); d.db.Close() })
	return d
}

func (d *desk) open(gateways ...payment.Gateway) {
	d.t.Helper()
	var err error
	if d.books, err = ledger.New(ledger.Config{DB: d.db}); err != nil {
		d.t.Fatal(err)
	}
	d.books.Register("air", ledger.Offer{})
	if d.c, err = New(Config{Ledger: d.books, Gateways: append(gateways, d.node), Now: func() time.Time { return d.now }}); err != nil {
		d.t.Fatal(err)
	}
	d.c.Subscribe("air", func(r ledger.Row) { d.told <- r })
	d.c.Identify(context.Background()) //nolint:errcheck // a wallet may be broken
}

func order(buyer byte, msat uint64) Order {
	return Order{Offer: "air", Buyer: [32]byte{buyer}, Msat: msat, Price: perReading, Description: "dazaar: a sale"}
}

func (d *desk) invoice(o Order) ledger.Row {
	d.t.Helper()
	r, err := d.c.Invoice(context.Background(), o)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// credit returns what a buyer has.
func (d *desk) credit(buyer byte) uint64 {
	d.t.Helper()
	s, err := d.books.Sale("air", [32]byte{buyer})
	if err != nil {
		d.t.Fatal(err)
	}
	defer s.Close()
	st := s.State()
	return st.Msat
}

// TestInvoices: unpaid ones are given out again, few to a buyer, and none for amounts
// that are not taken or while the clock is not set.
func TestInvoices(t *testing.T) {
	d := newDesk(t)
	a := d.invoice(order(1, 5000))
	if again := d.invoice(order(1, 5000)); again.Hash != a.Hash {
		t.Error("another invoice for the same")
	}
	if other := d.invoice(order(2, 5000)); other.Hash == a.Hash {
		t.Error("two buyers have one invoice")
	}
	b, c := d.invoice(order(1, 6000)), order(1, 5000)
	c.Card = 2
	if d.invoice(c).Hash == a.Hash || b.Hash == a.Hash {
		t.Error("one invoice for two things")
	}
	if _, err := d.c.Invoice(context.Background(), order(1, 7000)); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
	for _, msat := range []uint64{0, MinMsat - 1, MaxMsat + 1} {
		if _, err := d.c.Invoice(context.Background(), order(3, msat)); !errors.Is(err, ErrLimit) {
			t.Errorf("%d msat: %v", msat, err)
		}
	}
	d.now = time.Time{}
	if _, err := d.c.Invoice(context.Background(), order(3, 5000)); !errors.Is(err, ErrClock) || !errors.Is(err, payment.ErrUnpayable) {
		t.Error(err)
	}
	// One that is nearly over is not given out again.
	d.now = time.Now().Add(Expiry - reuseFor + time.Minute)
	if d.invoice(order(2, 5000)).Hash == a.Hash {
		t.Error("an invoice that is nearly over")
	}
}

// TestAll: all together they have few, and those who paid before have some of their own.
func TestAll(t *testing.T) {
	d := newDesk(t)
	at := time.Now()
	d.c.mono = func() time.Time { return at }
	for i := range maxTotal {
		if i%strangerBurst == 0 { // not all at once
			at = at.Add(strangerBurst / strangerRate * time.Second)
		}
		o := order(0, 5000)
		o.Buyer = [32]byte{byte(i), byte(i >> 8), 1}
		d.invoice(o)
	}
	if _, err := d.c.Invoice(context.Background(), order(9, 5000)); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
	at = at.Add(time.Hour)
	known := order(9, 5000)
	known.Known = true
	d.invoice(known)
}

// TestSettled: what is paid is credited once and told once: by an event, by a look, or
// at the next start, also when it was paid while nobody watched.
func TestSettled(t *testing.T) {
	d := newDesk(t)
	d.c.Start()
	a := d.invoice(order(1, 5000))
	if _, err := d.node.Pay(a.Request, 7000); err != nil {
		t.Fatal(err)
	}
	for range 2 { // an event may come before anybody watches
		if err := d.c.Look(context.Background(), a.Hash); err != nil {
			t.Fatal(err)
		}
	}
	if r := <-d.told; r.Hash != a.Hash || r.Paid != 7000 || d.credit(1) != 7000 {
		t.Errorf("%+v, %d", r, d.credit(1))
	}
	b := d.invoice(order(1, 5000))
	d.c.Close()
	if _, err := d.node.Pay(b.Request, 0); err != nil {
		t.Fatal(err)
	}
	d.open()
	d.c.Start()
	if r := <-d.told; r.Hash != b.Hash || d.credit(1) != 12_000 || len(d.told) > 0 {
		t.Errorf("%+v, %d", r, d.credit(1))
	}
	if err := d.c.Look(context.Background(), [32]byte{1}); !errors.Is(err, ledger.ErrUnknown) {
		t.Error(err)
	}
}

// broken is a wallet that cannot be paid.
type broken struct{ payment.Gateway }

func (broken) Name() string { return "broken" }
func (broken) Create(context.Context, payment.Request) (payment.Issued, error) {
	return payment.Issued{}, payment.ErrUnpayable
}
func (broken) Identity(context.Context) (payment.Identity, error) {
	return payment.Identity{}, errors.New("connection refused")
}
func (broken) Watch(ctx context.Context, _ string, _ func(payment.Status, string) error) error {
	return errors.New("connection refused")
}

// TestFailover: the next wallet makes the invoice, and the trouble is told.
func TestFailover(t *testing.T) {
	d := newDesk(t, broken{})
	d.c.Start()
	if r := d.invoice(order(1, 5000)); r.Gateway != d.node.Name() {
		t.Errorf("%+v", r)
	}
	for deadline := time.Now().Add(60 * time.Second); d.c.Health() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a wallet that does not answer is healthy")
		}
	}
	if p := d.c.Payees(); p.Network != bolt11.Regtest || len(p.Keys) != 1 || p.Keys[0] != d.node.Payee() || p.Floats || p.Unbound {
		t.Errorf("%+v", p)
	}
}

// TestOfferNotOpen: a payment for an offer whose log is not open waits for it.
func TestOfferNotOpen(t *testing.T) {
	d := newDesk(t)
	o := order(1, 5000)
	o.Offer = "water"
	r := d.invoice(o)
	if _, err := d.node.Pay(r.Request, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.c.Look(context.Background(), r.Hash); err != nil {
		t.Fatal(err)
	}
	if row, err := d.books.Row(r.Hash); err != nil || row.State != ledger.Open {
		t.Errorf("%+v, %v", row, err)
	}
	d.books.Register("water", ledger.Offer{})
	if err := d.c.Look(context.Background(), r.Hash); err != nil {
		t.Fatal(err)
	}
	if row, err := d.books.Row(r.Hash); err != nil || row.State != ledger.Settled {
		t.Errorf("%+v, %v", row, err)
	}
}
