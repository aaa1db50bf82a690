package market

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/bill"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/payment"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/replicate/message"
	"dazaar-edge/protocol/secretstream"
)

// TestPaidWhileOff: what was paid while the seller was off is credited when it is back,
// beside what the newest mark says, and begins where the log then ends.
func TestPaidWhileOff(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true, Amount: "0"} })
	x.sense(5)
	c := x.rich(2)
	stop := c.start(x.shop)
	c.paper.wait(5)
	// Live blocks are charged, and the meter rides on the commits of the log.
	x.sense(4)
	c.paper.wait(9)
	x.log.CommitMarks()
	row, err := x.pays.Invoice(context.Background(), x.order(c.key(), 1000))
	if err != nil {
		t.Fatal(err)
	}
	x.crash()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	x.close()
	if _, err := x.node.Pay(row.Request, 0); err != nil {
		t.Fatal(err)
	}
	x.open()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		if r, err := x.books.Row(row.Hash); err != nil || time.Now().After(deadline) {
			t.Fatal("not credited", err)
		} else if r.State == ledger.Settled {
			break
		}
	}
	s, err := x.books.Sale("shop", c.key())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if st := s.State(); st.Msat != 2000 {
		t.Errorf("%d msat were credited of 2000: %+v", st.Msat, st)
	}
}

// order is what a buyer of the till asks for.
func (x *till) order(buyer [32]byte, msat uint64) cashier.Order {
	l := x.offer.listing()
	return cashier.Order{
		Offer: "shop", Buyer: buyer, Msat: msat, Price: l.price, History: l.history, Card: l.card.Version, Terms: l.hash,
		Description: bill.Description(x.offer.key(), buyer),
	}
}

// caller is a buyer's end that a test drives.
type caller struct {
	c      *secretstream.Conn
	m      *mux.Mux
	ch     *dazaar.Buyer
	heard  chan any // messages of the seller
	blocks atomic.Int64
	feed   chan merkle.Hash
}

func (c *caller) Opened(dazaar.Handshake) error          { return nil }
func (c *caller) UserMessage(m dazaar.UserMessage) error { c.hear(m); return nil }
func (c *caller) Closed(error)                           { c.m.Close() }
func (c *caller) SellerID([32]byte) error                { return nil }
func (c *caller) Terms(text []byte) error                { c.hear(string(text)); return nil }
func (c *caller) Card([]byte) error                      { return nil }
func (c *caller) Valid(v dazaar.Valid) error             { c.hear(v); return nil }
func (c *caller) Invalid(v dazaar.Invalid) error         { c.hear(v); return nil }
func (c *caller) Invoice(v dazaar.Invoice) error         { c.hear(v); return nil }
func (c *caller) FoundTime(v dazaar.FoundTime) error     { c.hear(v); return nil }
func (c *caller) Burned(v dazaar.Burned) error           { c.hear(v); return nil }

func (c *caller) OneTimeFeed(f dazaar.OneTimeFeed) error {
	select {
	case c.feed <- f.Key:
	default:
	}
	c.hear(f)
	return nil
}

func (c *caller) hear(v any) {
	select {
	case c.heard <- v:
	default:
	}
}

// call connects to a shop.
func call(address string, seller [32]byte, key ed25519.PrivateKey, from net.IP) (*caller, error) {
	return callWith(address, seller, key, from, dazaar.Handshake{Agent: "test"})
}

func callWith(address string, seller [32]byte, key ed25519.PrivateKey, from net.IP, hs dazaar.Handshake) (*caller, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != nil {
		d.LocalAddr = &net.TCPAddr{IP: from}
	}
	raw, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	conn, err := secretstream.Client(ctx, raw, secretstream.Config{Pattern: noise.XX, Static: key, Remote: seller, MaxMessage: replicate.MaxMessage})
	if err != nil {
		return nil, err
	}
	c := &caller{c: conn, heard: make(chan any, 64), feed: make(chan merkle.Hash, 1)}
	c.m = mux.New(conn, mux.Config{MaxChannels: 8})
	if c.ch, err = dazaar.OpenBuyer(c.m, seller, hs, c); err != nil {
		conn.Close()
		return nil, err
	}
	go c.m.Run() //nolint:errcheck // ends with the connection
	return c, nil
}

// next returns the next message of a type.
func next[T any](t *testing.T, c *caller) (v T) {
	t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		select {
		case x := <-c.heard:
			if v, ok := x.(T); ok {
				return v
			}
		case <-timeout:
			t.Fatalf("no %T", v)
		}
	}
}

// grab asks for blocks of a feed on its channel, without being let in.
func (c *caller) grab(feed merkle.Hash, from, to uint64) {
	id := merkle.DiscoveryKey(feed)
	capability := message.Capability(feed, c.c.HandshakeHash(), true)
	ch, err := c.m.Open(mux.ChannelConfig{
		Protocol: message.Protocol, ID: id[:], Handler: (*taker)(c), Handshake: message.Handshake{Seeks: true, Capability: capability}.Append(nil),
	})
	if err != nil {
		return
	}
	ch.Send(0, message.Sync{Downloading: true, CanUpgrade: true}.Append(nil)) //nolint:errcheck // the shop may have closed
	for i := from; i < to; i++ {
		r := message.Request{ID: i + 1}
		r.Block = &merkle.NodeRequest{Index: i, Nodes: 0}
		ch.Send(1, r.Append(nil)) //nolint:errcheck // likewise
	}
}

// taker counts the blocks that a caller is given.
type taker caller

func (h *taker) Opened([]byte) error { return nil }
func (h *taker) Closed(error)        {}
func (h *taker) Message(typ uint64, b []byte) error {
	if d, _, err := message.ParseData(b); typ == 3 && err == nil && d.Block != nil {
		h.blocks.Add(1)
	}
	return nil
}

// wide sells on another address, too, where everybody is admitted.
func (x *till) wide() string {
	x.t.Helper()
	x.offer.admission = secretstream.ListenConfig{PerSecond: 1e6, Burst: 1e6, NetworkPerSecond: 1e6, NetworkBurst: 1e6}
	addr, err := x.offer.Listen("127.0.0.1:0")
	if err != nil {
		x.t.Fatal(err)
	}
	return addr.String()
}

func buyerKey(n int) ed25519.PrivateKey {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(n)+1)
	seed[31] = 77
	return ed25519.NewKeyFromSeed(seed[:])
}

// TestUnauthorised: thousands of buyers without a right to anything: who paid nothing,
// whose credit is used up and all it brought was sent twice, who is revoked, who shows
// another's feed, another's receipt or acceptance, or replays. They get no block and no feed
// key. (-unauthorised N)
func TestUnauthorised(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(20)
	honest := x.rich(5)
	if err := honest.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	s, err := x.log.Rekey(honest.key())
	if err != nil {
		t.Fatal(err)
	}
	feed := s.Key() // which everybody knows, in this test
	row := ledger.Row{}
	if err := x.books.Rows(func(r ledger.Row, _ error) bool { row = r; return false }); err != nil {
		t.Fatal(err)
	}
	seller := x.offer.key()
	// Some keys have a past.
	for i := range 8 {
		key := [32]byte(buyerKey(8000 + i)[32:])
		sale, err := x.books.Sale("shop", key)
		if err != nil {
			t.Fatal(err)
		}
		if err := sale.Change(func(m *meter.State) {
			m.Begin(0, 20)
			if i%2 == 0 { // it was paid, and is used up
				m.Delivered, m.Paid, m.Again = []meter.Range{{From: 0, To: 10}}, 500, 500
			} else {
				m.Credit(meter.Price{Unit: meter.Readings, Interval: 1, Amount: 1, History: 1}, 1000) //nolint:errcheck // it is a price
			}
		}); err != nil {
			t.Fatal(err)
		}
		if err := sale.Close(); err != nil {
			t.Fatal(err)
		}
		if i%2 == 1 {
			if err := x.offer.Revoke(key); err != nil {
				t.Fatal(err)
			}
		}
	}
	address := x.wide()
	var got, feeds, met atomic.Int64
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range *unauthorised {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			key := buyerKey(i)
			if i%10 == 9 {
				key = buyerKey(8000 + i/10%8)
			}
			c, err := call(address, seller, key, anywhere(i))
			if err != nil {
				return // too many at once: it is not let in
			}
			defer c.m.Close()
			met.Add(1)
			switch i % 5 {
			case 1: // the receipt of another
				v := dazaar.Invoice{ID: 1, Request: row.Request, Msat: strconv.FormatUint(row.Msat, 10), Hash: row.Hash, Units: 1, Card: row.Card}
				v.Sign(x.offer.cfg.Key, honest.key())    //nolint:errcheck // as it was
				c.ch.Receipt(dazaar.Receipt{Invoice: v}) //nolint:errcheck // the shop may have closed
				c.ch.Receipt(dazaar.Receipt{Invoice: v}) //nolint:errcheck // likewise
			case 2: // an acceptance that another signed
				c.ch.AcceptTerms(dazaar.NewAcceptTerms("x", seller, buyerKey(1))) //nolint:errcheck // likewise
			case 3: // an invoice, which is not paid
				c.ch.InvoiceRequest(dazaar.InvoiceRequest{ID: 1, Units: "1"}) //nolint:errcheck // likewise
			}
			c.grab(feed, 0, 20)
			timeout := time.After(300 * time.Millisecond)
			for refused := false; !refused; {
				select {
				case m := <-c.heard:
					if v, ok := m.(dazaar.Invalid); ok && v.Code != "" && i%5 == 0 {
						refused = true
					}
				case <-timeout:
					refused = true
				}
			}
			got.Add(c.blocks.Load())
			feeds.Add(int64(len(c.feed)))
		})
	}
	wg.Wait()
	if got.Load() != 0 || feeds.Load() != 0 {
		t.Errorf("%d blocks and %d feed keys went to those who have no right to them", got.Load(), feeds.Load())
	}
	if met.Load() == 0 {
		t.Error("nobody got as far as to ask")
	}
	t.Logf("%d came, %d got as far as to ask: 0 blocks, 0 feed keys", *unauthorised, met.Load())
	// The one who paid is served all the same.
	x.sense(2)
	if err := honest.buy(context.Background(), x.shop, false); err != nil {
		t.Error(err)
	}
	honest.paper.check(t, 0, 22, 50)
}

// TestTrialBudget: fresh keys that ask for a trial get no more than there is for all.
func TestTrialBudget(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.Trial = &card.Trial{Seconds: 60, Bytes: 64 << 10} })
	x.sense(5)
	seller, address := x.offer.key(), x.wide()
	var feeds, met atomic.Int64
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	start := time.Now()
	for i := range *unauthorised {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c, err := call(address, seller, buyerKey(20_000+i), anywhere(i))
			if err != nil {
				return
			}
			defer c.m.Close()
			met.Add(1)
			timeout := time.After(time.Second)
			for {
				select {
				case m := <-c.heard:
					switch m.(type) {
					case dazaar.OneTimeFeed:
						feeds.Add(1)
						return
					case dazaar.Invalid:
						return
					}
				case <-timeout:
					return
				}
			}
		})
	}
	wg.Wait()
	if limit := int64(trialsBurst + trialsPerSecond*time.Since(start).Seconds() + 1); feeds.Load() > limit || feeds.Load() == 0 {
		t.Errorf("%d trials of %d who asked, at most %d", feeds.Load(), met.Load(), limit)
	}
}

// TestFreeThenPaid: who came while it was free pays when it is not.
func TestFreeThenPaid(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.Payment, l.Terms = nil, "Do no harm." })
	x.sense(5)
	c, err := call(x.address, x.offer.key(), buyerKey(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.m.Close()
	next[string](t, c)
	l := x.listing
	l.Card.Payment = []card.Payment{tenReadings}
	if err := x.offer.SetListing(l); err != nil {
		t.Fatal(err)
	}
	c.ch.AcceptTerms(dazaar.NewAcceptTerms("Do no harm.", x.offer.key(), buyerKey(1))) //nolint:errcheck // the shop may have closed
	if v := next[dazaar.Invalid](t, c); v.Code == dazaar.CodeTerms {
		v = next[dazaar.Invalid](t, c)
		if v.Code != dazaar.CodeClosing {
			t.Errorf("%+v", v)
		}
	}
	if len(c.feed) > 0 {
		t.Error("a feed for nothing")
	}
}

// TestNothingCame: a buyer does not pay again when nothing came for the last payment,
// after it gave that time to arrive.
func TestNothingCame(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.write([]block.Block{{Data: testBlock(0, 50), Readings: 1_000_000, Stamp: block.Stamp{Boot: 1}}})
	x.n = 1
	c := x.rich(1000)
	c.times = client.Times{Arrive: 2 * time.Second}
	began := time.Now()
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, client.ErrUnserved) {
		t.Error(err)
	}
	if c.spent() > 2000 || time.Since(began) < 2*time.Second {
		t.Errorf("%d msat for nothing, in %v", c.spent(), time.Since(began))
	}
}

// TestPriceRises: a buyer who follows pays what it was when it began, and no more.
func TestPriceRises(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(5)
	c := x.rich(1000)
	done := make(chan error, 1)
	go func() { done <- c.buy(context.Background(), x.shop, true) }()
	c.paper.wait(5)
	l := x.listing
	dear := tenReadings
	dear.Amount = "500"
	l.Card.Payment = []card.Payment{dear}
	if err := x.offer.SetListing(l); err != nil {
		t.Fatal(err)
	}
	x.sense(10)
	if err := <-done; !errors.Is(err, client.ErrUnpaid) || c.spent() > 1000 {
		t.Error(err, c.spent())
	}
	// Started anew, it pays the new price.
	if err := c.buy(context.Background(), x.shop, false); err != nil || c.spent() != 501_000 {
		t.Error(err, c.spent())
	}
	c.paper.check(t, 0, 15, 50)
}

// TestDeclined: a wallet that declines once is asked again, with the same invoice.
func TestDeclined(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.History = &card.History{All: true} })
	x.sense(5)
	c := x.rich(5)
	m := &money{node: x.node}
	m.fail = func(string) error {
		if m.n == 1 {
			return fmt.Errorf("%w: no route", payment.ErrDeclined)
		}
		return nil
	}
	rich := c.config
	c.config = func(cfg *client.Config) { rich(cfg); cfg.Wallet = m }
	if err := c.buy(context.Background(), x.shop, false); !errors.Is(err, payment.ErrDeclined) || c.spent() != 0 {
		t.Fatal(err)
	}
	if err := c.buy(context.Background(), x.shop, false); err != nil || c.spent() != 1000 {
		t.Error(err)
	}
	c.paper.check(t, 0, 5, 50)
}

// TestOldPlugin: what the old Lightning plugin's buyers say is understood.
func TestOldPlugin(t *testing.T) {
	x := newTill(t, nil)
	x.sense(5)
	c, err := call(x.address, x.offer.key(), buyerKey(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.m.Close()
	next[dazaar.Invalid](t, c)
	c.ch.UserMessage(dazaar.UserMessage{Name: "lnd-pay-request", Message: []byte(`{"amount":3}`)}) //nolint:errcheck // the shop may have closed
	if m := next[dazaar.UserMessage](t, c); m.Name != "lnd-invoice" || len(m.Message) < 100 {
		t.Errorf("%s", m.Message)
	}
}

// TestPlaces: one on trial, or whose credit has ended, makes place for one who paid.
func TestPlaces(t *testing.T) {
	x := newTill(t, func(l *Listing) {
		l.Card.Trial, l.Card.History = &card.Trial{Seconds: 60, Bytes: 1 << 16}, &card.History{All: true}
	})
	x.offer.cfg.Buyers = 1
	x.sense(5)
	c, err := call(x.address, x.offer.key(), buyerKey(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.m.Close()
	next[dazaar.OneTimeFeed](t, c)
	x.listing.Card.Trial = nil
	if err := x.offer.SetListing(x.listing); err != nil {
		t.Fatal(err)
	}
	rich := x.rich(5)
	if err := rich.buy(context.Background(), x.shop, false); err != nil {
		t.Fatal(err)
	}
	rich.paper.check(t, 0, 5, 50)
}

// TestLateFollower: a buyer that opens the feed's channel late, after its stack
// rejected the seller's open, is served all the same: stock peers do that.
func TestLateFollower(t *testing.T) {
	x := newTill(t, func(l *Listing) { l.Card.Payment = nil })
	x.sense(5)
	c, err := call(x.address, x.offer.key(), buyerKey(1), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.m.Close()
	feed := next[dazaar.OneTimeFeed](t, c).Key
	next[dazaar.Valid](t, c)
	time.Sleep(50 * time.Millisecond) // the seller's open is there, and rejected
	c.grab(feed, 0, 5)
	for deadline := time.Now().Add(60 * time.Second); c.blocks.Load() < 5; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d blocks", c.blocks.Load())
		}
	}
}
