// Package bill says what an invoice of a sale must be, for who makes it and for who pays.
//
// Source: specs/lightning.md, B1 to B4; specs/exchange.md, message 9.
package bill

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
)

// Limits of an invoice.
const (
	// minLeft is how long it must be good, maxExpiry how long it may, and clockSkew how far
	// the seller's clock may be ahead.
	minLeft   = time.Minute
	maxExpiry = 7 * 24 * time.Hour
	clockSkew = 2 * time.Minute
)

// MaxMsat bounds an invoice: 1,000,000 satoshi.
const MaxMsat = 1_000_000_000

// Description is what the invoices of a sale say, so that both wallets know what was paid
// for.
func Description(seller, buyer [32]byte) string { return fmt.Sprintf("dazaar: %x %x", seller, buyer) }

// ShortDescription is the same for wallets that have no room, or are somebody else's.
func ShortDescription(seller, buyer [32]byte) string {
	sum := sha256.Sum256([]byte(Description(seller, buyer)))
	return fmt.Sprintf("dazaar: %x", sum[:16])
}

// Want is what a buyer asked for.
type Want struct {
	Seller, Buyer [32]byte
	Card          *card.Card // the newest
	Terms         *jcs.Hex32 // that were accepted; nil if there are none
	Msat          uint64
	Network       bolt11.Network // of the buyer's wallet; "" if it does not say
	Now           time.Time
}

// Check tells whether an invoice is what was asked for, from whom, and for what. Where the
// card names no payee, who is paid is the caller's to see.
func Check(x dazaar.Invoice, w Want) (*bolt11.Invoice, error) {
	if err := x.Verify(w.Seller, w.Buyer); err != nil {
		return nil, err
	}
	v, err := bolt11.Parse(x.Request)
	if err != nil {
		return nil, err
	}
	switch {
	case w.Card.Payee != "" && !w.Card.Pays(v.Payee):
		err = fmt.Errorf("it pays %x, and the card says %s", v.Payee, w.Card.Payee)
	case v.Msat != w.Msat || x.Msat != strconv.FormatUint(w.Msat, 10):
		err = fmt.Errorf("it is for %d msat, and %d were asked for", v.Msat, w.Msat)
	case v.Network != w.Card.Network || w.Network != "" && v.Network != w.Network:
		err = fmt.Errorf("it is on %s; the card says %s, and the wallet pays on %s", v.Network, w.Card.Network, w.Network)
	case v.Hash != x.Hash:
		err = fmt.Errorf("its hash is %x, and the seller signed %x", v.Hash, x.Hash)
	case x.ExpiresAt != v.ExpiresAt().Unix():
		err = fmt.Errorf("it ends at %v, and the seller says another time", v.ExpiresAt().UTC().Format(time.RFC3339))
	case !w.Names(v):
		err = fmt.Errorf("it is for %q, and not for this sale", v.Description)
	case v.ExpiresAt().Sub(w.Now) < minLeft:
		err = fmt.Errorf("it ends at %v: is this clock right?", v.ExpiresAt().UTC().Format(time.RFC3339))
	case v.Expiry > maxExpiry:
		err = fmt.Errorf("it is good for %v, which is more than %v: nobody needs as long, and who made it may think of something by then", v.Expiry, maxExpiry)
	case v.Time.Sub(w.Now) > clockSkew:
		err = fmt.Errorf("it was made at %v, which is to come: is this clock right?", v.Time.UTC().Format(time.RFC3339))
	case x.Card != w.Card.Version:
		err = fmt.Errorf("it is for version %d of the card, and %d is the newest", x.Card, w.Card.Version)
	case !x.Terms.Same(w.Terms):
		err = errors.New("it is under other terms than those that were accepted")
	}
	return v, err
}

// Names tells whether an invoice says what it is for, or need not.
func (w Want) Names(v *bolt11.Invoice) bool {
	text := Description(w.Seller, w.Buyer)
	hash := sha256.Sum256([]byte(text))
	return w.Card.Memo == card.MemoSigned || v.Description == text || v.Description == ShortDescription(w.Seller, w.Buyer) ||
		v.DescriptionHash != nil && *v.DescriptionHash == hash
}

// Amount returns what a request asks for in msat, and how many whole intervals of
// the price that is.
func Amount(r dazaar.InvoiceRequest, p meter.Price) (msat, units uint64, err error) {
	switch {
	case (r.Msat == "") == (r.Units == ""):
		return 0, 0, errors.New("ask for msat or for units")
	case r.Units != "":
		if units, err = strconv.ParseUint(r.Units, 10, 53); err != nil || units == 0 {
			return 0, 0, fmt.Errorf("%q units", r.Units)
		}
		hi, lo := bits.Mul64(units, p.Amount)
		if hi > 0 || lo > MaxMsat {
			return 0, 0, fmt.Errorf("%d units cost too much for one invoice: at most %d msat", units, uint64(MaxMsat))
		}
		msat = lo
	default:
		if msat, err = strconv.ParseUint(r.Msat, 10, 53); err != nil || msat == 0 {
			return 0, 0, fmt.Errorf("%q msat", r.Msat)
		}
		units = msat / p.Amount
	}
	if p.Unit == meter.Once && units != 1 {
		return 0, 0, fmt.Errorf("it is bought once, for %d msat", p.Amount)
	}
	return msat, units, nil
}

// Signed returns the row of an invoice whose books were lost, as its signature says; the
// price and what it includes are those of today where the signature does not say them.
func Signed(offer string, v dazaar.Invoice, buyer [32]byte, p meter.Price, h ledger.History) ledger.Row {
	msat, _ := strconv.ParseUint(v.Msat, 10, 53) // it was signed
	if v.Units > 0 && msat%v.Units == 0 && p.History == p.Amount {
		p.Amount = msat / v.Units
		p.History = p.Amount
	}
	return ledger.Row{Hash: v.Hash, Offer: offer, Buyer: buyer, Request: v.Request, Msat: msat, Price: p, History: h, Card: v.Card, Terms: v.Terms}
}
