package purse

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
)

// State is what became of a payment.
type State string

// States. What is in doubt may have been paid; what is credited was, as the seller says,
// by somebody who did not hand over the preimage.
const (
	Doubt    State = "doubt"
	Paid     State = "paid"
	Credited State = "credited"
	Failed   State = "failed" // and never will be paid
)

// Receipt is an invoice and what became of it, with what shows whom it pays and for what:
// the card names the keys that are paid, the seller's signature is on the invoice, which
// names the buyer, and whoever has the preimage paid it, or was paid.
type Receipt struct {
	State   State          `json:"state"`
	Seller  jcs.Hex32      `json:"seller"`
	Buyer   jcs.Hex32      `json:"buyer"`
	Invoice dazaar.Invoice `json:"invoice"`
	Msat    uint64         `json:"msat,string"`
	// Fee is what it cost besides, in msat; while in doubt, what it may cost.
	Fee uint64 `json:"fee,string"`
	// Preimage is there when it was paid.
	Preimage *jcs.Hex32 `json:"preimage,omitempty"`
	// Cursor is the block up to which all had come before.
	Cursor uint64 `json:"cursor"`
	// Shown: somebody was asked to pay it by hand.
	Shown bool      `json:"shown,omitempty"`
	At    time.Time `json:"at"` // when it was to be paid
	// Card is the seller's, as it signed it; Accepted the buyer's signature under the
	// terms that it names.
	Card     json.RawMessage     `json:"card"`
	Accepted *dazaar.AcceptTerms `json:"accepted,omitempty"`
	Error    string              `json:"error,omitempty"`
}

// ErrUnproven says that a receipt does not show that something was bought.
var ErrUnproven = errors.New("purse: the receipt proves nothing")

// ParseReceipt reads a receipt. What it says is not checked, but for the preimage.
func ParseReceipt(b []byte) (*Receipt, error) {
	var r Receipt
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	switch r.State {
	case Doubt, Failed, Credited:
	case Paid:
		if r.Preimage == nil || sha256.Sum256(r.Preimage[:]) != r.Invoice.Hash {
			return nil, errors.New("the preimage is not the invoice's")
		}
	default:
		return nil, fmt.Errorf("state %q", r.State)
	}
	return &r, nil
}

// Verify checks, with nothing but the receipt, that its buyer paid its seller: the card
// and the invoice are signed by the seller, the invoice is for this buyer, pays a key that
// the card names, and the preimage is there. named tells that the card names who is paid;
// if it does not, only the seller's own signature says that this invoice pays it. Errors
// wrap [ErrUnproven].
func (r *Receipt) Verify() (c *card.Card, named bool, err error) {
	bad := func(format string, args ...any) (*card.Card, bool, error) {
		return nil, false, fmt.Errorf("%w: "+format, append([]any{ErrUnproven}, args...)...)
	}
	if r.State != Paid || r.Preimage == nil || sha256.Sum256(r.Preimage[:]) != r.Invoice.Hash {
		return bad("there is no preimage: its state is %q", r.State)
	}
	seller := [32]byte(r.Seller)
	signed, err := jcs.Transform(r.Card)
	if err != nil {
		return bad("its card: %w", err)
	}
	if c, err = card.Parse(signed, &seller, 0); err != nil {
		return bad("its card: %w", err)
	}
	if err := r.Invoice.Verify(r.Seller, r.Buyer); err != nil {
		return bad("%w", err)
	}
	v, err := bolt11.Parse(r.Invoice.Request)
	if err != nil {
		return bad("%w", err)
	}
	named = c.Payee != ""
	switch {
	case v.Hash != r.Invoice.Hash:
		return bad("the seller signed hash %x, and the invoice has %x", r.Invoice.Hash, v.Hash)
	case strconv.FormatUint(v.Msat, 10) != r.Invoice.Msat || v.Msat != r.Msat:
		return bad("the invoice is for %d msat, the seller signed %s, and the receipt says %d", v.Msat, r.Invoice.Msat, r.Msat)
	case c.Version != r.Invoice.Card:
		return bad("the invoice is under version %d of the card, and this is %d", r.Invoice.Card, c.Version)
	case named && !c.Pays(v.Payee):
		return bad("the invoice pays %x, and the card names %s", v.Payee, c.Payee)
	case v.Network != c.Network:
		return bad("the invoice is on %s, and the card says %q", v.Network, c.Network)
	case c.Terms != nil && (r.Invoice.Terms == nil || c.Terms.SHA256 != fmt.Sprintf("%x", r.Invoice.Terms[:])):
		return bad("the invoice is under other terms than the card")
	case r.Accepted != nil && (r.Invoice.Terms == nil || r.Accepted.SHA256 != *r.Invoice.Terms):
		return bad("other terms were accepted than those of the invoice")
	}
	if r.Accepted != nil {
		if err := r.Accepted.Verify(r.Seller, r.Buyer); err != nil {
			return bad("%w", err)
		}
	}
	return c, named, nil
}
