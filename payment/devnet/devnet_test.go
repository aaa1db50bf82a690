package devnet

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/gatewaytest"
	"dazaar-edge/storage/durable"
)

func open(t *testing.T, dir string) *Node {
	t.Helper()
	n, err := Open(durable.OS(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestGateway(t *testing.T) {
	n := open(t, t.TempDir())
	gatewaytest.Run(t, n, n, gatewaytest.Options{})
}

// TestKept: what was made and paid is there after a restart, under the same key.
func TestKept(t *testing.T) {
	dir := t.TempDir()
	n := open(t, dir)
	ctx := context.Background()
	r := payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute}
	unpaid, err := n.Create(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	paid, err := n.Create(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Pay(paid.Request, 1500); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir)
	if again.Payee() != n.Payee() {
		t.Error("another key")
	}
	if st, err := again.Lookup(ctx, unpaid.Hash, ""); err != nil || st.State != payment.Open {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := again.Lookup(ctx, paid.Hash, ""); err != nil || st.State != payment.Settled || st.Paid != 1500 {
		t.Errorf("%+v, %v", st, err)
	}
	// A watch from the beginning brings it again.
	enough := errors.New("enough")
	err = again.Watch(ctx, "0", func(s payment.Status, cursor string) error {
		if s.Hash != paid.Hash || cursor != "1" {
			t.Errorf("%+v at %q", s, cursor)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, fileName), []byte(`{"key":"00"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(durable.OS(), dir); err == nil || !strings.Contains(err.Error(), fileName) {
		t.Error(err)
	}
}

// TestExpires: what was not paid in time cannot be paid, and is canceled.
func TestExpires(t *testing.T) {
	n := open(t, t.TempDir())
	now := time.Unix(1_800_000_000, 0)
	n.now = func() time.Time { return now }
	v, err := n.Create(context.Background(), payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if _, err := n.Pay(v.Request, 0); !errors.Is(err, errExpired) {
		t.Error(err)
	}
	if st, err := n.Lookup(context.Background(), v.Hash, ""); err != nil || st.State != payment.Canceled {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestWallet pays by HTTP.
func TestWallet(t *testing.T) {
	n, other := open(t, t.TempDir()), open(t, t.TempDir())
	server := httptest.NewServer(n)
	defer server.Close()
	w := &Wallet{URL: server.URL}
	ctx := context.Background()
	v, err := n.Create(ctx, payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	pay := payment.Payment{Request: v.Request, Msat: 1000}
	proof, err := w.Pay(ctx, pay)
	if err != nil || proof.Check(v.Hash) != nil {
		t.Fatalf("%+v, %v", proof, err)
	}
	if again, err := w.Pay(ctx, pay); err != nil || again != proof { // its answer may have got lost
		t.Error(err)
	}
	// A payment whose second half was cut off is finished, not refused.
	half, err := n.Create(ctx, payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Accept(half.Request, 0); err != nil {
		t.Fatal(err)
	}
	if proof, err := w.Pay(ctx, payment.Payment{Request: half.Request}); err != nil || proof.Check(half.Hash) != nil {
		t.Error(err)
	}
	foreign, err := other.Create(ctx, payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pay(ctx, payment.Payment{Request: foreign.Request}); !errors.Is(err, payment.ErrDeclined) || !strings.Contains(err.Error(), "no such invoice") {
		t.Error(err)
	}
	if _, err := (&Wallet{URL: server.URL + "/x"}).Pay(ctx, pay); err == nil || !strings.Contains(err.Error(), "no test wallet") {
		t.Error(err)
	}
}
