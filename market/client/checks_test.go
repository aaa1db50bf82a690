package client

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/market/bill"
	"dazaar-edge/market/card"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/storage/durable"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// The tests of this file are rows B1 to B5 of specs/lightning.md, section 3.

var tenReadings = card.Payment{Method: "lnd", Currency: "LightningSats", Unit: "readings", Interval: "10", Amount: "1"}

// nothing is an Output that keeps nothing.
type nothing struct{}

func (nothing) Block(uint64, []byte) error   { return nil }
func (nothing) Gap(uint64, uint64) error     { return nil }
func (nothing) Fork(uint64, uint64) error    { return nil }
func (nothing) Head(merkle.Head) error       { return nil }
func (nothing) Sync() (int64, string, error) { return 0, "", nil }
func (nothing) Resume(int64, string) error   { return nil }

// broke is a wallet that pays nothing.
type broke struct{}

func (broke) Network() bolt11.Network { return bolt11.Regtest }
func (broke) Pay(context.Context, payment.Payment) (payment.Proof, error) {
	return payment.Proof{}, payment.ErrDeclined
}

// desk is a buyer before an invoice, with what the invoice is made of.
type desk struct {
	t      *testing.T
	c      *Client
	seller ed25519.PrivateKey
	node   *secp256k1.PrivateKey
	now    time.Time
	v      bolt11.Invoice
	x      dazaar.Invoice // what goes around it
}

func newBuyersDesk(t *testing.T, change func(*card.Card)) *desk {
	t.Helper()
	d := &desk{t: t, seller: ed25519.NewKeyFromSeed([]byte(strings.Repeat("M", 32))), now: time.Unix(1_800_000_000, 0)}
	seed := sha256.Sum256([]byte("node"))
	d.node = secp256k1.PrivKeyFromBytes(seed[:])
	a, err := archive.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	c := card.Card{Name: "shop", Payment: []card.Payment{tenReadings}, Network: bolt11.Regtest, Version: 3, Updated: d.now}
	c.SetPayees([][33]byte{d.payee()})
	if change != nil {
		change(&c)
	}
	signed, err := c.Sign(d.seller)
	if err != nil {
		t.Fatal(err)
	}
	p, err := purse.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetCard(signed); err != nil {
		t.Fatal(err)
	}
	d.c, err = New(Config{
		Seller: [32]byte(d.seller[32:]), Ways: TCP(nil, "127.0.0.1:1"), Archive: a, Purse: p, Output: nothing{}, Wallet: broke{}, Budget: purse.Budget{Total: 1e9},
	})
	if err != nil {
		t.Fatal(err)
	}
	d.v = bolt11.Invoice{
		Network: bolt11.Regtest, Msat: 5000, Time: d.now, Expiry: 15 * time.Minute, Hash: sha256.Sum256([]byte("preimage")), CLTV: 80, Features: []byte{0x41, 0},
		Description: bill.Description(d.c.cfg.Seller, d.buyer()),
	}
	d.x = dazaar.Invoice{ID: 1, Msat: "5000", Units: 5, Card: 3}
	return d
}

func (d *desk) buyer() [32]byte { return [32]byte(d.c.cfg.Archive.Key()[32:]) }
func (d *desk) payee() [33]byte { return [33]byte(d.node.PubKey().SerializeCompressed()) }

// invoice signs what there is.
func (d *desk) invoice() dazaar.Invoice {
	d.t.Helper()
	text, err := d.v.Sign(d.node)
	if err != nil {
		d.t.Fatal(err)
	}
	x := d.x
	x.Request, x.Hash, x.ExpiresAt = text, d.v.Hash, d.v.ExpiresAt().Unix()
	if err := x.Sign(d.seller, d.buyer()); err != nil {
		d.t.Fatal(err)
	}
	return x
}

// check tells what the buyer thinks of it.
func (d *desk) check() error {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	return d.c.check(d.invoice(), 5000, d.now)
}

// refused fails if an invoice is taken that was changed.
func (d *desk) refused(what string, change func()) {
	d.t.Helper()
	v, x, node, now, seller := d.v, d.x, d.node, d.now, d.seller
	change()
	if err := d.check(); err == nil {
		d.t.Errorf("%s: it is paid", what)
	} else {
		d.t.Logf("%s: %v", what, err)
	}
	d.v, d.x, d.node, d.now, d.seller = v, x, node, now, seller
	if err := d.check(); err != nil {
		d.t.Fatal(err)
	}
}

// TestB1: only a key that the card names is paid; where it names none, the first one, and
// those that the buyer allows.
func TestB1(t *testing.T) {
	seed := sha256.Sum256([]byte("somebody else"))
	other := secp256k1.PrivKeyFromBytes(seed[:])
	d := newBuyersDesk(t, nil)
	d.refused("somebody else's invoice", func() { d.node = other })
	two := newBuyersDesk(t, func(c *card.Card) {
		c.SetPayees([][33]byte{[33]byte(other.PubKey().SerializeCompressed()), [33]byte(keyOf("node"))})
	})
	if err := two.check(); err != nil {
		t.Error(err)
	}
	floating := newBuyersDesk(t, func(c *card.Card) { c.SetPayees(nil) })
	if err := floating.check(); err != nil {
		t.Error(err)
	}
	err := floating.c.purse.Begin(purse.Receipt{Seller: floating.c.cfg.Seller, Buyer: floating.buyer(), Invoice: floating.invoice(), Msat: 5000, At: floating.now, Card: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	floating.refused("another one than the first", func() { floating.node = other })
	floating.c.cfg.Payees = [][33]byte{[33]byte(other.PubKey().SerializeCompressed())}
	floating.node = other
	if err := floating.check(); err != nil {
		t.Error(err)
	}
}

// keyOf returns the public key of a node.
func keyOf(name string) []byte {
	seed := sha256.Sum256([]byte(name))
	return secp256k1.PrivKeyFromBytes(seed[:]).PubKey().SerializeCompressed()
}

// TestB2: amount and network are those that were agreed on, to the msat.
func TestB2(t *testing.T) {
	d := newBuyersDesk(t, nil)
	for _, msat := range []uint64{0, 4999, 5001, 5_000_000} {
		d.refused(fmt.Sprint(msat, " msat"), func() { d.v.Msat = msat })
		d.refused(fmt.Sprint(msat, " msat, and said so"), func() { d.v.Msat = msat; d.x.Msat = strconv.FormatUint(msat, 10) })
	}
	d.refused("the seller says less", func() { d.x.Msat = "4000" })
	for _, n := range []bolt11.Network{bolt11.Bitcoin, bolt11.Testnet, bolt11.Signet} {
		d.refused(string(n), func() { d.v.Network = n })
	}
}

// TestB3: what has ended, or nearly, or is of a time to come, is not paid; a seller's clock
// may be two minutes ahead.
func TestB3(t *testing.T) {
	d := newBuyersDesk(t, nil)
	d.refused("it ended", func() { d.now = d.now.Add(15 * time.Minute) })
	d.refused("59 s are left", func() { d.now = d.now.Add(14*time.Minute + time.Second) })
	d.refused("made in three minutes", func() { d.now = d.now.Add(-3 * time.Minute) })
	d.now = d.now.Add(-time.Minute)
	if err := d.check(); err != nil {
		t.Error(err)
	}
	d.refused("good for a year", func() { d.v.Expiry = 365 * 24 * time.Hour })
}

// TestB4: it says what it is for: the sale in full, its hash, or the short form; else the
// card must say that the seller's signature alone does.
func TestB4(t *testing.T) {
	d := newBuyersDesk(t, nil)
	d.refused("another text", func() { d.v.Description = "coffee" })
	d.refused("another buyer", func() { d.v.Description = bill.Description(d.c.cfg.Seller, [32]byte{1}) })
	hash := sha256.Sum256([]byte(d.v.Description))
	for _, change := range []func(){
		func() { d.v.Description = bill.ShortDescription(d.c.cfg.Seller, d.buyer()) },
		func() { d.v.Description, d.v.DescriptionHash = "", &hash },
	} {
		change()
		if err := d.check(); err != nil {
			t.Error(err)
		}
	}
	d.refused("another hash", func() { d.v.DescriptionHash = &[32]byte{1} })
	d.refused("signed by another seller", func() { d.seller = ed25519.NewKeyFromSeed([]byte(strings.Repeat("78", 16))) })
	free := newBuyersDesk(t, func(c *card.Card) { c.Memo = card.MemoSigned })
	free.v.Description = "the roof"
	if err := free.check(); err != nil {
		t.Error(err)
	}
	if n := len(bill.ShortDescription([32]byte{}, [32]byte{})); n > 128 {
		t.Errorf("the short form has %d characters", n)
	}
}

// TestB5: an invoice that was paid, or may have been, is never paid again, nor one with
// the same hash.
func TestB5(t *testing.T) {
	d := newBuyersDesk(t, nil)
	begin := func() error {
		return d.c.purse.Begin(purse.Receipt{Seller: d.c.cfg.Seller, Buyer: d.buyer(), Invoice: d.invoice(), Msat: 5000, At: d.now, Card: d.c.purse.Card()})
	}
	if err := begin(); err != nil {
		t.Fatal(err)
	}
	d.v.Time = d.v.Time.Add(time.Second) // another invoice, the same hash
	if err := begin(); !errors.Is(err, purse.ErrHash) {
		t.Error(err)
	}
	if err := d.c.purse.Done(d.v.Hash, [32]byte([]byte("preimage"+strings.Repeat("\x00", 24))), 0); err == nil {
		t.Error("a preimage that is not its own")
	}
	if err := d.c.purse.Fail(d.v.Hash, errors.New("no route")); err != nil {
		t.Fatal(err)
	}
	if err := begin(); err != nil { // that one never was paid
		t.Error(err)
	}
}
