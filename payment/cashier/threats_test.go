package cashier

import (
	"context"
	"errors"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/ledger"
)

// The tests of this file are the rows of specs/lightning.md, section 3, that a cashier
// answers for. Others: S11 in payment/ledger, S12 in configs and cmd/edge, S13 and S14 in
// payment/lnd, B1 to B9 in market.

// newCounter is a desk with one puppet for a wallet.
func newCounter(t *testing.T) (*desk, *puppet) {
	t.Helper()
	p := newPuppet("p")
	d := newDesk(t, p)
	return d, p
}

// look has a wallet say something of an invoice, and the cashier look.
func (d *desk) look(p *puppet, hash [32]byte, state payment.State, paid uint64, preimage *[32]byte) {
	d.t.Helper()
	p.say(hash, state, paid, preimage)
	if err := d.c.Look(context.Background(), hash); err != nil {
		d.t.Fatal(err)
	}
}

// TestS1: a preimage is no payment, and a payment with another's preimage is none.
func TestS1(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	preimage := preimageOf("p", p.n)
	d.look(p, r.Hash, payment.Open, 5000, &preimage)
	d.look(p, r.Hash, payment.Settled, 5000, &[32]byte{9})
	if d.credit(1) != 0 {
		t.Errorf("%d msat", d.credit(1))
	}
	d.look(p, r.Hash, payment.Settled, 5000, &preimage)
	if d.credit(1) != 5000 {
		t.Errorf("%d msat", d.credit(1))
	}
}

// TestS2: what is accepted or was canceled has its full amount, and is nothing.
func TestS2(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	d.look(p, r.Hash, payment.Accepted, 5000, nil)
	d.look(p, r.Hash, payment.Canceled, 5000, nil)
	if d.credit(1) != 0 {
		t.Errorf("%d msat", d.credit(1))
	}
}

// TestS3: what came is credited, whatever was asked for; invoices without an amount are
// not made, nor taken from a wallet that makes them.
func TestS3(t *testing.T) {
	d, p := newCounter(t)
	over, under := d.invoice(order(1, 5000)), d.invoice(order(2, 5000))
	d.look(p, over.Hash, payment.Settled, 8777, nil)
	d.look(p, under.Hash, payment.Settled, 1234, nil)
	if d.credit(1) != 8777 || d.credit(2) != 1234 {
		t.Errorf("%d and %d msat", d.credit(1), d.credit(2))
	}
	if _, err := d.c.Invoice(context.Background(), order(3, 0)); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
	p.alter = func(v *bolt11.Invoice) { v.Msat = 0 }
	if r, err := d.c.Invoice(context.Background(), order(3, 5000)); err == nil && r.Gateway == "p" {
		t.Error("an invoice without an amount")
	}
}

// TestS4: however often a payment is told of, by whatever way, it is credited once.
func TestS4(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	st := payment.Status{Hash: r.Hash, State: payment.Settled, Paid: 5000}
	for range 3 {
		if err := d.c.take(d.c.wallets[0], st, "7"); err != nil {
			t.Fatal(err)
		}
		d.look(p, r.Hash, payment.Settled, 5000, nil)
		d.open(p)
	}
	if d.credit(1) != 5000 {
		t.Errorf("%d msat", d.credit(1))
	}
	if cursor, err := d.books.Cursor("p"); err != nil || cursor != "7" {
		t.Error(cursor, err)
	}
}

// TestS5: what was settled while nobody watched is found when the wallet is there again,
// and when the device is; the end of a stream is no error to stop at.
func TestS5(t *testing.T) {
	d, p := newCounter(t)
	a := d.invoice(order(1, 5000))
	p.say(a.Hash, payment.Settled, 5000, nil)
	d.c.Start()
	if r := <-d.told; r.Hash != a.Hash { // before it watched
		t.Errorf("%+v", r)
	}
	b := d.invoice(order(2, 5000))
	p.set(func() { p.fails = errors.New("connection refused") })
	p.events <- payment.Status{} // the stream ends, as when the node stops
	p.say(b.Hash, payment.Settled, 6000, nil)
	wait(t, "the trouble is known", func() bool { return d.c.Health() != nil })
	p.set(func() { p.fails = nil })
	if r := <-d.told; r.Hash != b.Hash || r.Paid != 6000 {
		t.Errorf("%+v", r)
	}
	wait(t, "it is well again", func() bool { return d.c.Health() == nil })
	// The device was off meanwhile.
	c := d.invoice(order(3, 5000))
	d.c.Close()
	p.say(c.Hash, payment.Settled, 7000, nil)
	d.open(p)
	d.c.Start()
	if r := <-d.told; r.Hash != c.Hash || r.Paid != 7000 {
		t.Errorf("%+v", r)
	}
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so: ", what)
		}
	}
}

// TestS6: another node behind the same name makes no invoices, its events begin nowhere,
// and the owner is told; when it is said to be right, it is used, and what was known of the
// old one's events is forgotten.
func TestS6(t *testing.T) {
	p := newPuppet("p")
	d := newDesk(t)
	d.c.cfg.Gateways = []payment.Gateway{p} // it alone
	d.reopen(p)
	d.c.Start()
	r := d.invoice(order(1, 5000))
	p.events <- payment.Status{Hash: r.Hash, State: payment.Settled, Paid: 5000}
	<-d.told
	other := newPuppet("another")
	p.set(func() { p.key, other.key = other.key, p.key })
	if _, err := d.c.Invoice(context.Background(), order(1, 6000)); !errors.Is(err, ErrReplaced) || !errors.Is(err, payment.ErrUnpayable) {
		t.Error(err)
	}
	p.events <- payment.Status{}
	wait(t, "it is known that it is another one", func() bool { return errors.Is(d.c.Health(), ErrReplaced) })
	watched := 0
	p.set(func() { watched = len(p.cursors) })
	if id, err := d.c.Trust(context.Background(), "p"); err != nil || id.Payee != [33]byte(p.key.PubKey().SerializeCompressed()) {
		t.Error(id, err)
	}
	wait(t, "it is watched again", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.cursors) > watched })
	p.set(func() {
		if cursor := p.cursors[len(p.cursors)-1]; cursor != "" {
			t.Errorf("it is watched from %q", cursor)
		}
	})
	d.invoice(order(1, 7000))
	if _, err := d.c.Trust(context.Background(), "nobody"); err == nil {
		t.Error("a wallet that is not there is trusted")
	}
}

// reopen begins anew with these wallets alone.
func (d *desk) reopen(gateways ...payment.Gateway) {
	d.t.Helper()
	var err error
	d.c.Close()
	if d.c, err = New(Config{Ledger: d.books, Gateways: gateways, Now: func() time.Time { return d.now }}); err != nil {
		d.t.Fatal(err)
	}
	d.c.Subscribe("air", func(r ledger.Row) { d.told <- r })
	d.c.Identify(context.Background()) //nolint:errcheck // a wallet may be broken
}

// TestS7: a payment of somebody else's invoice with our text is not ours.
func TestS7(t *testing.T) {
	d, _ := newCounter(t)
	foreign := newPuppet("p")
	foreign.n = 1000
	v, err := foreign.Create(context.Background(), payment.Request{Msat: 5000, Description: "dazaar: a sale", Expiry: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.c.take(d.c.wallets[0], payment.Status{Hash: v.Hash, State: payment.Settled, Paid: 5000}, "9"); err != nil {
		t.Fatal(err)
	}
	if d.credit(1) != 0 {
		t.Errorf("%d msat", d.credit(1))
	}
	if cursor, err := d.books.Cursor("p"); err != nil || cursor != "9" {
		t.Error(cursor, err)
	}
	// Nor is what one wallet says of another one's.
	r := d.invoice(order(1, 5000))
	if err := d.c.take(d.c.wallets[1], payment.Status{Hash: r.Hash, State: payment.Settled, Paid: 5000}, ""); err != nil {
		t.Fatal(err)
	}
	if d.credit(1) != 0 {
		t.Errorf("%d msat", d.credit(1))
	}
}

// TestS8: unpaid invoices are given out again, few to a buyer, few to all; what is asked
// for too often is refused before the wallet hears of it.
func TestS8(t *testing.T) {
	d, p := newCounter(t)
	at := time.Now()
	d.c.mono = func() time.Time { return at }
	a := d.invoice(order(1, 5000))
	for range 100 {
		if again := d.invoice(order(1, 5000)); again.Hash != a.Hash {
			t.Fatal("another invoice for the same")
		}
	}
	d.invoice(order(1, 6000))
	d.invoice(order(1, 7000))
	if _, err := d.c.Invoice(context.Background(), order(1, 8000)); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
	refused := 0
	for i := range 10_000 {
		o := order(0, 5000)
		o.Buyer = [32]byte{byte(i), byte(i >> 8), 2}
		if _, err := d.c.Invoice(context.Background(), o); errors.Is(err, ErrLimit) {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if p.creates > strangerBurst || refused < 10_000-strangerBurst {
		t.Errorf("%d invoices were made, %d refused", p.creates, refused)
	}
	// Who paid before has room of its own.
	known := order(9, 5000)
	known.Known = true
	d.invoice(known)
	// A buyer who pays each at once is held to a pace, too.
	made := 0
	for i := range uint64(200) {
		o := known
		o.Buyer, o.Msat = [32]byte{8}, 5000+1000*i
		r, err := d.c.Invoice(context.Background(), o)
		if err == nil {
			made++
			d.look(p, r.Hash, payment.Settled, r.Msat, nil)
		}
	}
	if made != buyerBurst {
		t.Errorf("%d at once", made)
	}
}

// TestS9: price and amount are those of the day on which the invoice was made; what comes
// after its end, or after it was given up, is credited all the same.
func TestS9(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	dearer := order(1, 5000)
	dearer.Price.Amount = 1000
	if other := d.invoice(dearer); other.Hash == r.Hash {
		t.Error("one invoice at two prices")
	}
	d.now = d.now.Add(forgetAfter + time.Hour)
	p.say(r.Hash, payment.Canceled, 0, nil)
	if err := d.c.reconcile(context.Background(), d.c.wallets[0], 0); err != nil {
		t.Fatal(err)
	}
	if row, err := d.books.Row(r.Hash); err != nil || row.State != ledger.Expired {
		t.Errorf("%+v, %v", row, err)
	}
	d.look(p, r.Hash, payment.Settled, 5000, nil)
	s, err := d.books.Sale("air", [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if st := s.State(); len(st.Lots) != 1 || st.Lots[0].Price.Amount != 1 || st.Lots[0].Units() != 5000 {
		t.Errorf("%+v", st.Lots)
	}
}

// TestS10: without the time there are no invoices, nor with one that cannot be; what was
// bought does not depend on the clock's jumps.
func TestS10(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	for _, now := range []time.Time{{}, time.Unix(0, 0), time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)} {
		d.now = now
		if _, err := d.c.Invoice(context.Background(), order(2, 5000)); !errors.Is(err, ErrClock) {
			t.Errorf("%v: %v", now, err)
		}
		if err := d.c.reconcile(context.Background(), d.c.wallets[0], 0); err != nil {
			t.Error(err)
		}
	}
	d.look(p, r.Hash, payment.Settled, 5000, nil)
	d.now = time.Now().Add(1000 * time.Hour)
	if d.credit(1) != 5000 {
		t.Errorf("%d msat", d.credit(1))
	}
}

// TestS15: what was settled is for good: a wallet that takes it back later takes nothing.
func TestS15(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	d.look(p, r.Hash, payment.Settled, 5000, nil)
	d.look(p, r.Hash, payment.Canceled, 0, nil)
	if err := d.c.take(d.c.wallets[0], payment.Status{Hash: r.Hash, State: payment.Settled, Paid: 9000}, ""); err != nil {
		t.Fatal(err)
	}
	if row, err := d.books.Row(r.Hash); err != nil || row.State != ledger.Settled || row.Paid != 5000 || d.credit(1) != 5000 {
		t.Errorf("%+v, %v, %d msat", row, err, d.credit(1))
	}
}

// TestS16: credit stays with the buyer's key, for as long as it wants; nothing here could
// pay it back: a gateway has no way to pay.
func TestS16(t *testing.T) {
	d, p := newCounter(t)
	r := d.invoice(order(1, 5000))
	d.look(p, r.Hash, payment.Settled, 5000, nil)
	d.now = d.now.Add(10 * 365 * 24 * time.Hour)
	d.open(p)
	if d.credit(1) != 5000 || d.credit(2) != 0 {
		t.Errorf("%d and %d msat", d.credit(1), d.credit(2))
	}
	if _, pays := payment.Gateway(p).(interface {
		Pay(context.Context, payment.Payment) (payment.Proof, error)
	}); pays {
		t.Error("a gateway pays")
	}
}

// TestS17: two devices with one wallet: each credits its own invoices.
func TestS17(t *testing.T) {
	a, p := newCounter(t)
	b := newDesk(t, p)
	ra, rb := a.invoice(order(1, 5000)), b.invoice(order(1, 7000))
	for _, r := range []ledger.Row{ra, rb} {
		for _, d := range []*desk{a, b} {
			if err := d.c.take(d.c.wallets[0], payment.Status{Hash: r.Hash, State: payment.Settled, Paid: r.Msat}, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if a.credit(1) != 5000 || b.credit(1) != 7000 {
		t.Errorf("%d and %d msat", a.credit(1), b.credit(1))
	}
}
