package market

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/dazaar"
)

// lose takes what came from a customer, as if it had been lost on the way.
func (c *customer) lose() {
	c.t.Helper()
	c.paper = newPaper()
	if err := os.Remove(filepath.Join(c.dir, "state.json")); err != nil {
		c.t.Fatal(err)
	}
}

// TestLostOnTheWay: what was paid for and did not arrive is sent again, also when nothing is
// left: once, and to who pays nothing more. Who only comes for that makes place for who pays,
// and takes nobody's.
func TestLostOnTheWay(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.close()
	config := x.shop.config
	x.shop.config = func(c *OfferConfig) { config(c); c.Buyers = 1 }
	x.open()
	x.sense(20)
	c, other := x.rich(2), x.rich(100)
	c.times = client.Times{Arrive: 100 * time.Millisecond}
	buys := func(c *customer, want error) {
		t.Helper()
		if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, want) {
			t.Fatal(err)
		}
		if want != nil {
			return
		}
		c.paper.check(t, 0, 20, 50)
		if c.spent() != 2000 || x.left(c.key()) != 0 {
			t.Fatalf("%d msat were spent for 20 readings, %d are left", c.spent(), x.left(c.key()))
		}
	}
	buys(c, nil)
	c.lose()
	buys(c, nil)
	c.lose()
	buys(c, client.ErrUnserved) // twice is enough

	buys(other, nil)
	other.lose()
	stay := other.config
	other.config = func(cfg *client.Config) { stay(cfg); cfg.Budget.Total = 2000 }
	stop := other.start(x.shop) // and stays
	other.paper.wait(20)
	third := x.rich(100)
	third.times = c.times
	buys(third, nil)
	third.lose()
	third.config = other.config
	if err := stop(); err != nil && !errors.Is(err, client.ErrBudget) {
		t.Error(err)
	}
	fourth := x.rich(3)
	stop = fourth.start(x.shop)
	fourth.paper.wait(20)
	buys(third, client.ErrBusy) // there is no place, and a payment would not make one
	if err := stop(); err != nil {
		t.Error(err)
	}
	buys(third, nil)
	// What is new is not paid for.
	x.sense(5)
	fourth.lose()
	fourth.config = other.config
	if err := fourth.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrBudget) {
		t.Error(err)
	}
	fourth.paper.check(t, 0, 20, 50)
}

// far is an address that leads to another one, a while later each way.
func far(t *testing.T, to string, delay time.Duration) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	carry := func(from, to net.Conn) {
		defer to.Close()
		for b := make([]byte, 64<<10); ; {
			n, err := from.Read(b)
			time.Sleep(delay)
			if _, e := to.Write(b[:n]); err != nil || e != nil {
				return
			}
		}
	}
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				a.Close()
				continue
			}
			go carry(a, b)
			go carry(b, a)
		}
	}()
	return ln.Addr().String()
}

// bought returns a seller under terms, and a customer who bought all that there is of it.
func bought(t *testing.T, terms string) (*till, *customer) {
	t.Helper()
	x := newTill(t, func(l *Listing) { l.Card.History, l.Terms = &card.History{All: true}, terms })
	x.sense(20)
	c := x.rich(100)
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	return x, c
}

// TestOwedLate: one who follows, has lost what it paid for last and could not reach the seller
// for longer than that may take to come gets it, and goes on.
func TestOwedLate(t *testing.T) {
	x, c := bought(t, "")
	c.lose()
	c.times = client.Times{Arrive: 3 * time.Second}
	rich, way := c.config, far(t, x.address, 250*time.Millisecond)
	c.config = func(cfg *client.Config) { rich(cfg); cfg.Ways = client.TCP(nil, way) }
	x.close()
	stop := c.start(x.shop)
	time.Sleep(c.times.Arrive) // that is what is looked at
	x.open()
	x.sense(5)
	c.paper.wait(25)
	if err := stop(); err != nil {
		t.Error(err)
	}
	c.paper.check(t, 0, 25, 50)
}

// TestOwedSoon: who comes back before its old connection is known to be dead is told to come
// again, and not to pay.
func TestOwedSoon(t *testing.T) {
	x, c := bought(t, "")
	var calls [2]*caller
	for i := range calls {
		var err error
		if calls[i], err = call(x.address, x.seller, c.private(), nil); err != nil {
			t.Fatal(err)
		}
		defer calls[i].m.Close()
		if i == 0 {
			next[dazaar.OneTimeFeed](t, calls[i])
		} else if v := next[dazaar.Invalid](t, calls[i]); v.Code != dazaar.CodeBusy {
			t.Errorf("%+v", v)
		}
	}
}

// TestOwedNoMore: who asks for more than it paid for does not get it, and who asks for nothing
// does not stay.
func TestOwedNoMore(t *testing.T) {
	x, c := bought(t, "")
	x.sense(5)
	thief, err := call(x.address, x.seller, c.private(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer thief.m.Close()
	feed := next[dazaar.OneTimeFeed](t, thief).Key
	next[dazaar.Valid](t, thief)
	x.offer.mu.Lock()
	s := x.offer.buyers[c.key()]
	x.offer.mu.Unlock()
	s.tick(time.Now().Add(freeStay - time.Minute))
	thief.grab(feed, 0, 25)
	if v := next[dazaar.Invalid](t, thief); v.Code != dazaar.CodeCreditEnded || thief.blocks.Load() != 20 {
		t.Errorf("%d blocks, then %+v", thief.blocks.Load(), v)
	}
	s.tick(time.Now().Add(freeStay + time.Minute))
	if v := next[dazaar.Invalid](t, thief); v.Code != dazaar.CodePaymentRequired || thief.blocks.Load() != 20 {
		t.Errorf("%d blocks, then %+v", thief.blocks.Load(), v)
	}
}

// TestOwedTerms: what was paid for was paid for under terms of its day.
func TestOwedTerms(t *testing.T) {
	x, c := bought(t, "one")
	l := x.listing
	l.Terms = "two"
	if err := x.offer.SetListing(l); err != nil {
		t.Fatal(err)
	}
	again, err := call(x.address, x.seller, c.private(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer again.m.Close()
	next[dazaar.OneTimeFeed](t, again)
}

// TestWhoMakesPlace: who pays takes the place of one whose credit or trial has ended before that of
// one who still tries, and nobody else does.
func TestWhoMakesPlace(t *testing.T) {
	type is struct{ trying, paused, spent bool }
	for _, c := range []struct {
		there   [2]is
		comes   is
		leaves  int // 0 is nobody
		refusal string
	}{
		{[2]is{{}, {}}, is{}, 0, dazaar.CodeBusy},
		{[2]is{{}, {paused: true}}, is{}, 2, ""},
		{[2]is{{}, {spent: true}}, is{}, 2, ""},
		{[2]is{{}, {trying: true}}, is{}, 2, ""},
		{[2]is{{trying: true}, {paused: true}}, is{}, 2, ""},
		{[2]is{{trying: true}, {spent: true}}, is{}, 2, ""},
		{[2]is{{trying: true}, {trying: true, paused: true}}, is{}, 2, ""},
		{[2]is{{}, {}}, is{spent: true}, 0, dazaar.CodeBusy},
		{[2]is{{}, {paused: true}}, is{spent: true}, 0, dazaar.CodePaymentRequired},
		{[2]is{{}, {paused: true}}, is{trying: true}, 0, dazaar.CodeBusy},
	} {
		for range 20 { // maps have no order
			o := &Offer{cfg: OfferConfig{Buyers: 2}, all: map[*session]bool{}, buyers: map[[32]byte]*session{}}
			var all []*session
			for i, x := range append(c.there[:], c.comes) {
				s := &session{o: o, buyer: [32]byte{byte(i)}}
				s.trying.Store(x.trying)
				s.paused.Store(x.paused)
				s.spent.Store(x.spent)
				all, o.all[s] = append(all, s), true
			}
			o.buyers[all[0].buyer], o.buyers[all[1].buyer] = all[0], all[1]
			old, refusal := o.claim(all[2])
			if refusal != c.refusal || c.leaves == 0 && old != nil || c.leaves > 0 && old != all[c.leaves-1] {
				t.Fatalf("%+v: %q, %v", c, refusal, old != nil)
			}
		}
	}
}

// TestNotOwned: where it costs once and was not paid, nothing looks as if it were.
func TestNotOwned(t *testing.T) {
	for owned, want := range map[bool]string{false: "readings", true: "once"} {
		var v dazaar.Valid
		if describe(&v, meter.State{Begun: true, Owned: owned}, meter.Once); v.Type != want || (v.Remaining == nil) != owned {
			t.Errorf("%+v", v)
		}
	}
}
