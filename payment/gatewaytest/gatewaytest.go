// Package gatewaytest checks that a gateway keeps to what [payment.Gateway] says.
package gatewaytest

import (
	"context"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
)

// Payer pays invoices of the gateway that is tested.
type Payer interface {
	// Pay pays msat, 0 for what is asked for, and returns the preimage.
	Pay(request string, msat uint64) (preimage [32]byte, err error)
	// Accept pays msat that can still be taken back, by Cancel, or settled.
	Accept(request string, msat uint64) (hash [32]byte, err error)
	Settle(hash [32]byte) (preimage [32]byte, err error)
	Cancel(hash [32]byte) error
}

// event is what a watch reported.
type event struct {
	status payment.Status
	cursor string
}

// Options say what a gateway cannot do.
type Options struct {
	// NoEvents: it must be asked about each invoice.
	NoEvents bool
	// NoMemo: what invoices say, and how long they are good, is up to others.
	NoMemo bool
	// NoHold: its payer cannot take back what is accepted.
	NoHold bool
	// AsAsked: it does not know how much came, and says what was asked for.
	AsAsked bool
	// WholeSats: amounts are multiples of 1000 msat.
	WholeSats bool
}

// watch watches until the test ends.
func watch(t *testing.T, g payment.Gateway, cursor string) <-chan event {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events, done := make(chan event, 100), make(chan struct{})
	go func() {
		defer close(done)
		err := g.Watch(ctx, cursor, func(s payment.Status, cursor string) error {
			events <- event{s, cursor}
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Error("watch:", err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return events
}

// next returns the next event of a payment.
func next(t *testing.T, events <-chan event) event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("no event")
		return event{}
	}
}

// Run checks g, whose invoices p pays.
func Run(t *testing.T, g payment.Gateway, p Payer, o Options) {
	ctx := context.Background()
	handles := map[[32]byte]string{}
	create := func(t *testing.T, msat uint64) (payment.Issued, string) {
		t.Helper()
		v, err := g.Create(ctx, payment.Request{Msat: msat, Description: "dazaar: a sale", Expiry: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if len(v.Handle) > payment.MaxHandle {
			t.Errorf("a handle of %d bytes", len(v.Handle))
		}
		handles[v.Hash] = v.Handle
		return v, v.Request
	}
	is := func(t *testing.T, hash [32]byte, state payment.State) payment.Status {
		t.Helper()
		st, err := g.Lookup(ctx, hash, handles[hash])
		if err != nil || st.State != state || st.Hash != hash {
			t.Fatalf("%+v, %v; want it %s", st, err, state)
		}
		return st
	}
	// watching watches, and returns when what is settled comes: a watch takes its time to
	// begin, which shows with the first event.
	watching := func(t *testing.T) <-chan event {
		t.Helper()
		events := watch(t, g, "")
		for deadline := time.Now().Add(30 * time.Second); ; {
			_, text := create(t, 1000)
			if _, err := p.Pay(text, 0); err != nil {
				t.Fatal(err)
			}
			select {
			case <-events:
				return events
			case <-time.After(100 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatal("no event")
			}
		}
	}
	t.Run("invoice", func(t *testing.T) {
		before := time.Now().Add(-time.Second)
		v, text := create(t, 123_000)
		got, err := bolt11.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if !o.NoMemo && (got.Description != "dazaar: a sale" || got.Expiry != 10*time.Minute) || got.Hash != v.Hash || got.Payee != v.Payee || got.Msat != 123_000 ||
			got.Time.Before(before) || got.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v", got)
		}
		if again, _ := create(t, 123_000); again.Hash == v.Hash || again.Payee != v.Payee {
			t.Error("the next one has the same hash, or another payee")
		}
		if id, err := g.Identity(ctx); err != nil || id.Payee != v.Payee || id.Network != v.Network {
			t.Errorf("%+v, %v", id, err)
		}
		if err := g.Health(ctx); err != nil {
			t.Error(err)
		}
		is(t, v.Hash, payment.Open)
	})
	t.Run("refused", func(t *testing.T) {
		amounts := []uint64{0, bolt11.MaxMsat + 1, ^uint64(0)}
		if o.WholeSats {
			amounts = append(amounts, 1500)
		}
		for _, msat := range amounts {
			if v, err := g.Create(ctx, payment.Request{Msat: msat, Expiry: time.Minute}); err == nil {
				t.Errorf("%d msat: %s", msat, v.Request)
			}
		}
		if _, err := g.Lookup(ctx, [32]byte{1}, ""); !errors.Is(err, payment.ErrUnknown) {
			t.Error(err)
		}
	})
	t.Run("paid", func(t *testing.T) {
		var events <-chan event
		if !o.NoEvents {
			events = watching(t)
		} else if err := g.Watch(ctx, "", nil); !errors.Is(err, payment.ErrNoEvents) {
			t.Error(err)
		}
		v, text := create(t, 5000)
		preimage, err := p.Pay(text, 0)
		if err != nil || sha256.Sum256(preimage[:]) != v.Hash {
			t.Fatalf("%x, %v", preimage, err)
		}
		if st := is(t, v.Hash, payment.Settled); st.Paid != 5000 || st.Preimage != nil && *st.Preimage != preimage {
			t.Errorf("%+v", st)
		}
		for !o.NoEvents {
			e := next(t, events)
			if e.status.State != payment.Settled {
				t.Errorf("%+v", e)
			}
			if e.status.Hash == v.Hash {
				break
			}
		}
		if _, err := p.Pay(text, 0); err == nil {
			t.Error("it is paid twice")
		}
	})
	t.Run("too much and too little", func(t *testing.T) {
		v, text := create(t, 5000)
		if _, err := p.Pay(text, 4999); err == nil {
			t.Error("too little is taken")
		}
		is(t, v.Hash, payment.Open)
		if _, err := p.Pay(text, 8500); err != nil {
			t.Fatal(err)
		}
		if st := is(t, v.Hash, payment.Settled); st.Paid != 8500 && !(o.AsAsked && st.Paid == 5000) {
			t.Errorf("%+v", st)
		}
	})
	t.Run("accepted", func(t *testing.T) {
		if o.NoHold {
			return
		}
		v, text := create(t, 5000)
		hash, err := p.Accept(text, 0)
		if err != nil || hash != v.Hash {
			t.Fatal(err)
		}
		is(t, v.Hash, payment.Accepted)
		if err := p.Cancel(hash); err != nil {
			t.Fatal(err)
		}
		is(t, v.Hash, payment.Canceled)
		v, text = create(t, 5000)
		if _, err := p.Accept(text, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Settle(v.Hash); err != nil {
			t.Fatal(err)
		}
		is(t, v.Hash, payment.Settled)
	})
	if o.NoEvents {
		return
	}
	t.Run("cursor", func(t *testing.T) {
		first := watching(t)
		var hashes [][32]byte
		for range 4 {
			v, text := create(t, 5000)
			if _, err := p.Pay(text, 0); err != nil {
				t.Fatal(err)
			}
			hashes = append(hashes, v.Hash)
		}
		cursors := map[[32]byte]string{}
		for came := false; !came; {
			e := next(t, first)
			cursors[e.status.Hash] = e.cursor
			came = e.status.Hash == hashes[3]
		}
		if cursors[hashes[1]] == "" {
			return // what it missed must be looked up
		}
		// Behind the second one come the third and fourth, and no older one.
		again := watch(t, g, cursors[hashes[1]])
		for _, want := range hashes[2:] {
			if e := next(t, again); e.status.Hash != want {
				t.Errorf("%x came, want %x", e.status.Hash, want)
			}
		}
	})
}
