package market

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/payment"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/secretstream"
)

// paths returns n addresses of a shop, the worst last: at that one it sells already.
func (s *shop) paths(n int) (addresses []string) {
	s.t.Helper()
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	for k := n; k > 0; k-- {
		addresses = append(addresses, fmt.Sprintf("127.0.0.%d:%s", k, port))
	}
	return addresses
}

// serves waits until a buyer is served at an address.
func (s *shop) serves(buyer [32]byte, address string) {
	s.t.Helper()
	for until := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		s.offer.mu.Lock()
		x := s.offer.buyers[buyer]
		s.offer.mu.Unlock()
		if x != nil && x.from.(*secretstream.Listener).Addr().String() == address {
			return
		}
		if time.Now().After(until) {
			s.t.Fatalf("the buyer is not served at %s", address)
		}
	}
}

// TestHandOver: a buyer that pays moves from one address to the next better one, again
// and again, much faster than others may replace one another. It gets each block once, in
// order, and what it got is what it paid for.
func TestHandOver(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	addresses := x.paths(8)
	c := x.rich(1000)
	config := c.config
	c.config = func(cfg *client.Config) { config(cfg); cfg.Ways = client.TCP(nil, addresses...) }
	c.times = client.Times{Look: 5 * time.Millisecond}
	x.offer.mu.Lock()
	x.offer.replaceAfter = time.Hour
	x.offer.mu.Unlock()
	x.sense(30)
	stop := c.start(x.shop)
	c.paper.wait(30)
	n := 30
	for k := len(addresses) - 1; ; k-- {
		x.serves(c.key(), addresses[k])
		x.sense(27)
		if k == 0 {
			break
		}
		if _, err := x.offer.Listen(addresses[k-1]); err != nil {
			t.Fatal(err)
		}
		n += 27
	}
	n += 27
	c.paper.wait(n)
	// Another machine with this key does not know which connection it would leave.
	thief, err := callWith(addresses[0], x.offer.key(), c.private(), nil, dazaar.Handshake{Features: dazaar.FeatureHandOver, HandOver: [64]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if v := next[dazaar.Invalid](t, thief); v.Code != dazaar.CodeBusy {
		t.Errorf("%+v", v)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, n, 50)
	var paid uint64
	err = x.books.Rows(func(r ledger.Row, _ error) bool { paid += r.Paid; return true })
	if err != nil {
		t.Fatal(err)
	}
	sale, err := x.books.Sale("shop", c.key())
	if err != nil {
		t.Fatal(err)
	}
	defer sale.Close()
	st := sale.State()
	left := uint64(0)
	for _, l := range st.Lots {
		left += l.Units()
	}
	if paid/100 != uint64(n)+left {
		t.Errorf("%d msat were paid for %d readings, and %d are left", paid, n, left)
	}
}

// stuck is a wallet that does not answer.
type stuck struct {
	money
	asked chan bool
}

func (w *stuck) Pay(ctx context.Context, _ payment.Payment) (payment.Proof, error) {
	w.asked <- true
	<-ctx.Done()
	return payment.Proof{}, ctx.Err()
}

// stuckBuyer returns a buyer whose wallet is asked and does not answer, and what it is
// with one that does.
func stuckBuyer(t *testing.T) (x *till, c *customer, config func(*client.Config), stop func() error) {
	t.Helper()
	x = newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(10)
	c = x.rich(5)
	config = c.config
	wallet := &stuck{money{node: x.node}, make(chan bool, 10)}
	c.config = func(cfg *client.Config) { config(cfg); cfg.Wallet = wallet }
	stop = c.start(x.shop)
	<-wallet.asked
	return x, c, config, stop
}

// TestStuckWallet: a buyer ends when it is told to, also while its wallet does not answer;
// what it was paying is in doubt, and paid again, once.
func TestStuckWallet(t *testing.T) {
	x, c, config, stop := stuckBuyer(t)
	began := time.Now()
	if err := stop(); err != nil || time.Since(began) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	c.config = config
	if err := c.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	c.paper.check(t, 0, 10, 50)
	if c.spent() != 1000 {
		t.Errorf("%d msat", c.spent())
	}
}

// TestStuckWalletAlone: also when the connection broke before.
func TestStuckWalletAlone(t *testing.T) {
	x, _, _, stop := stuckBuyer(t)
	x.offer.each(true, func(s *session) { s.conn.Close() })
	for x.offer.Stats().Connections > 0 {
		time.Sleep(time.Millisecond) // until it is gone
	}
	began := time.Now()
	if err := stop(); err != nil || time.Since(began) > 30*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// forgetful is a wallet that pays the first time, and does not say so.
type forgetful struct {
	money
	paid map[string]payment.Proof
}

func (w *forgetful) Pay(ctx context.Context, x payment.Payment) (payment.Proof, error) {
	if p, ok := w.paid[x.Request]; ok {
		return p, nil
	}
	p, err := w.money.Pay(ctx, x)
	if err != nil {
		return p, err
	}
	w.paid[x.Request] = p
	if len(w.paid) == 1 {
		err = errors.New("the line broke")
	}
	return p, err
}

// TestDoubtServed: a payment of which nobody knew was credited and used up: when the wallet
// says that it was paid, nothing more is due for it, and the next step is bought.
func TestDoubtServed(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(10)
	c := x.rich(5)
	config := c.config
	c.config = func(cfg *client.Config) {
		config(cfg)
		cfg.Wallet = &forgetful{money{node: x.node}, map[string]payment.Proof{}}
	}
	c.times = client.Times{Again: 100 * time.Millisecond}
	stop := c.start(x.shop)
	c.paper.wait(10)
	x.sense(20)
	c.paper.wait(30)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if c.spent() != 3000 {
		t.Errorf("%d msat", c.spent())
	}
}
