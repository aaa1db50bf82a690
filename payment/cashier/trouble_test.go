package cashier

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"

	"go.etcd.io/bbolt"
)

// filled is a desk whose invoices of strangers have used up the room for them, all made by
// the first wallet.
func filled(t *testing.T) (*desk, *puppet) {
	t.Helper()
	d, p := newCounter(t)
	at := time.Now()
	d.c.mono = func() time.Time { return at }
	for i := range maxTotal {
		at = at.Add(time.Second)
		o := order(0, 5000)
		o.Buyer = [32]byte{byte(i), byte(i >> 8), 1}
		d.invoice(o)
	}
	if _, err := d.c.Invoice(context.Background(), order(9, 5000)); !errors.Is(err, ErrLimit) {
		t.Fatal(err)
	}
	return d, p
}

// TestRoom: only invoices that can still be paid take room, whatever their wallet says, or
// whether it is there at all.
func TestRoom(t *testing.T) {
	for name, f := range map[string]func(*desk, *puppet){
		"canceled": func(d *desk, _ *puppet) {},
		"down":     func(d *desk, p *puppet) { p.fails = errors.New("connection refused") },
		"gone":     func(d *desk, _ *puppet) { d.open() },
	} {
		t.Run(name, func(t *testing.T) {
			d, p := filled(t)
			f(d, p)
			d.now = d.now.Add(Expiry + time.Minute)
			d.invoice(order(9, 5000))
			if name != "gone" {
				return
			}
			d.now = d.now.Add(forgetAfter)
			if err := d.c.reconcile(context.Background(), d.c.wallets[0], 0); err != nil || len(d.c.open) != 0 {
				t.Errorf("%d are open, %v", len(d.c.open), err)
			}
		})
	}
	// One that is good for a day takes room for no longer than others.
	d, p := newCounter(t)
	p.alter = func(v *bolt11.Invoice) { v.Expiry = 24 * time.Hour }
	for i := range maxOpen {
		d.invoice(order(1, uint64(1000*(i+1))))
	}
	d.now = d.now.Add(Expiry + time.Minute)
	d.invoice(order(1, 9000))
}

// TestKnownRoom: who paid before always has one invoice, however many others like him ask.
func TestKnownRoom(t *testing.T) {
	d, _ := newCounter(t)
	at := time.Now()
	d.c.mono = func() time.Time { return at }
	refused := 0
	for i := range 400 {
		at = at.Add(time.Second)
		for k := range uint64(3) {
			o := order(0, 1000*(k+1))
			o.Buyer, o.Known = [32]byte{byte(i), byte(i >> 8), 1}, true
			if _, err := d.c.Invoice(context.Background(), o); errors.Is(err, ErrLimit) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	o := order(9, 5000)
	o.Known = true
	d.invoice(o)
	if refused == 0 {
		t.Error("nobody was refused")
	}
}

// TestForgotten: invoices that a wallet cannot look up any more end by our clock, and hide
// none that was paid.
func TestForgotten(t *testing.T) {
	for _, n := range []int{1, 3, 20} {
		d, p := newCounter(t)
		at := time.Now()
		d.c.mono = func() time.Time { return at }
		var old []ledger.Row
		for i := range n {
			old = append(old, d.invoice(order(byte(i+1), 5000)))
		}
		d.now = d.now.Add(forgetAfter + time.Hour)
		paid := d.invoice(order(99, 5000))
		p.say(paid.Hash, payment.Settled, 5000, nil)
		x := &amnesia{p, map[[32]byte]bool{}}
		for _, r := range old {
			x.forgot[r.Hash] = true
		}
		d.c.wallets[0].Gateway = x
		if err := d.c.reconcile(context.Background(), d.c.wallets[0], 0); err != nil {
			t.Fatal(err)
		}
		if d.credit(99) != 5000 {
			t.Errorf("%d forgotten: %d msat", n, d.credit(99))
		}
		for _, r := range old {
			if row, err := d.books.Row(r.Hash); err != nil || row.State != ledger.Expired {
				t.Errorf("%+v, %v", row, err)
			}
		}
	}
}

// amnesia is a wallet that has errors for some invoices.
type amnesia struct {
	*puppet
	forgot map[[32]byte]bool
}

func (a *amnesia) Lookup(ctx context.Context, hash [32]byte, handle string) (payment.Status, error) {
	if a.forgot[hash] {
		return payment.Status{}, errors.New("the service says \"expired\"")
	}
	return a.puppet.Lookup(ctx, hash, handle)
}

// TestReplacedIsTold: a wallet that pays somebody else is said to, also when another one
// makes the invoice instead.
func TestReplacedIsTold(t *testing.T) {
	d, p := newCounter(t)
	d.invoice(order(1, 5000))
	other := newPuppet("another")
	p.set(func() { p.key = other.key })
	for i := range 5 {
		if r := d.invoice(order(byte(2+i), 5000)); r.Gateway == "p" {
			t.Fatal("it makes invoices")
		}
	}
	if err := d.c.Health(); !errors.Is(err, ErrReplaced) || p.creates > 2 {
		t.Errorf("%v, %d invoices were made", err, p.creates)
	}
	if _, err := d.c.Trust(context.Background(), "p"); err != nil {
		t.Fatal(err)
	}
	if r := d.invoice(order(1, 6000)); r.Gateway != "p" {
		t.Errorf("%+v", r)
	}
}

// damage changes a value behind the database's back.
func (d *desk) damage(bucket string, key []byte) {
	d.t.Helper()
	d.c.Close()
	if err := d.db.Close(); err != nil {
		d.t.Fatal(err)
	}
	b, err := bbolt.Open(d.file, 0o600, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	err = b.Update(func(tx *bbolt.Tx) error {
		v := append([]byte{}, tx.Bucket([]byte(bucket)).Get(key)...)
		v[len(v)/2] ^= 1
		return tx.Bucket([]byte(bucket)).Put(key, v)
	})
	if err := errors.Join(err, b.Close()); err != nil {
		d.t.Fatal(err)
	}
	if d.db, err = db.Open(d.file, 32<<20, false); err != nil {
		d.t.Fatal(err)
	}
}

// TestDamaged: one damaged value does not disable a wallet for good.
func TestDamaged(t *testing.T) {
	t.Run("payee", func(t *testing.T) {
		d, p := newCounter(t)
		d.damage("payees", []byte("p"))
		d.open(p)
		if _, err := d.c.Trust(context.Background(), "p"); err != nil {
			t.Fatal(err)
		}
		if r := d.invoice(order(1, 5000)); r.Gateway != "p" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("cursor", func(t *testing.T) {
		d, p := newCounter(t)
		r := d.invoice(order(1, 5000))
		if err := d.c.take(d.c.wallets[0], payment.Status{Hash: r.Hash, State: payment.Settled, Paid: 5000}, "a cursor"); err != nil {
			t.Fatal(err)
		}
		d.damage("cursors", []byte("p"))
		d.open(p)
		d.c.Start()
		wait(t, "it watches from the beginning", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.cursors) == 1 && p.cursors[0] == "" })
	})
	t.Run("row", func(t *testing.T) {
		d, p := newCounter(t)
		a, b := d.invoice(order(1, 5000)), d.invoice(order(2, 5000))
		d.damage("invoices", a.Hash[:])
		d.open(p)
		for _, r := range []ledger.Row{a, b} {
			if err := d.c.take(d.c.wallets[0], payment.Status{Hash: r.Hash, State: payment.Settled, Paid: 5000}, "c"); err != nil {
				t.Error(err)
			}
		}
		if d.credit(2) != 5000 {
			t.Errorf("%d msat", d.credit(2))
		}
	})
	t.Run("file", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "edge.db")
		if kept, err := db.Aside(name, 1<<20); kept != "" || err != nil {
			t.Error(kept, err)
		}
		if err := os.WriteFile(name, make([]byte, 65536), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Open(name, 1<<20, false); !errors.Is(err, durable.ErrCorrupt) {
			t.Error(err)
		}
		kept, err := db.Aside(name, 1<<20)
		if _, gone := os.Stat(name); kept == "" || err != nil || gone == nil {
			t.Error(kept, err, gone)
		}
	})
}

// mute is a wallet that tells nothing by itself.
type mute struct {
	*puppet
	asked chan bool
}

func (m *mute) Watch(context.Context, string, func(payment.Status, string) error) error {
	close(m.asked)
	return payment.ErrNoEvents
}

// TestClose: it ends at once, also while it follows a wallet that tells nothing, and nothing
// is open.
func TestClose(t *testing.T) {
	d, p := newCounter(t)
	m := &mute{p, make(chan bool)}
	d.c.wallets[0].Gateway = m
	d.c.Start()
	<-m.asked
	begun := time.Now()
	d.c.Close()
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v", took)
	}
}
