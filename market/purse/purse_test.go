package purse

import (
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/storage/durable"
)

func open(t *testing.T, dir string) *Purse {
	t.Helper()
	p, err := Open(durable.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func invoice(n byte) (dazaar.Invoice, [32]byte) {
	preimage := [32]byte{n}
	return dazaar.Invoice{ID: uint64(n), Request: "lnbcrt", Msat: "1000", Hash: sha256.Sum256(preimage[:])}, preimage
}

func receipt(v dazaar.Invoice, at time.Time) Receipt {
	return Receipt{Invoice: v, Msat: 1000, Fee: 7, At: at, Card: []byte(`{"version":3}`)}
}

// TestReceipts: an invoice is in doubt until it is known what became of it, over
// restarts; what may have been paid counts as spent; nothing is begun twice.
func TestReceipts(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	a, paid := invoice(1)
	b, _ := invoice(2)
	for i, v := range []dazaar.Invoice{a, b} {
		if err := p.Begin(receipt(v, time.Unix(int64(1e9+i), 0))); err != nil {
			t.Fatal(err)
		}
	}
	p = open(t, dir)
	if r, ok, err := p.InDoubt(); !ok || err != nil || r.Invoice.Hash != a.Hash || p.Spent(time.Time{}) != 2014 || p.Spent(time.Unix(1e9, 0)) != 1007 {
		t.Errorf("%+v, %v, %d", r, err, p.Spent(time.Time{}))
	}
	if err := p.Done(a.Hash, [32]byte{9}, 3); err == nil {
		t.Error("a preimage that is another's")
	}
	if err := p.Done(a.Hash, paid, 3); err != nil {
		t.Fatal(err)
	}
	if err := p.Fail(b.Hash, errors.New("no route")); err != nil {
		t.Fatal(err)
	}
	p = open(t, dir)
	if _, ok, err := p.InDoubt(); ok || err != nil || p.Spent(time.Time{}) != 1003 || p.Received() != 1000 {
		t.Error("after both are known", p.Spent(time.Time{}), err)
	}
	if err := p.Begin(receipt(a, time.Now())); !errors.Is(err, ErrHash) {
		t.Error(err)
	}
	if err := p.Begin(receipt(b, time.Now())); err != nil { // it never was paid
		t.Error(err)
	}
	// A receipt that was changed is not taken for one.
	if err := os.WriteFile(filepath.Join(dir, receiptsDir, receiptName(a.Hash)), []byte(`{"state":"paid"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(durable.OS(), dir); err == nil {
		t.Error("a damaged receipt")
	}
}

func TestTermsAndCard(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir)
	text := "Do no harm."
	hash := sha256.Sum256([]byte(text))
	if p.Accepted(hash) || p.Card() != nil {
		t.Error("before")
	}
	if err := errors.Join(p.Accept(text), p.SetCard([]byte("{}"))); err != nil {
		t.Fatal(err)
	}
	if p = open(t, dir); !p.Accepted(hash) || p.Accepted([32]byte{1}) || string(p.Card()) != "{}" {
		t.Error("after")
	}
}

func FuzzReceipt(f *testing.F) {
	f.Add([]byte(`{"state":"doubt","invoice":{"id":1,"hash":"00"},"msat":"5","at":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := ParseReceipt(b); err == nil && r.State == Paid && sha256.Sum256(r.Preimage[:]) != r.Invoice.Hash {
			t.Error("paid, and the preimage is another's")
		}
	})
}
