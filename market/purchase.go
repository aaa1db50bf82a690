package market

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
)

// Times of a purchase.
const (
	// payTime bounds a payment, and then how long the seller may take to serve.
	payTime   = time.Minute
	serveTime = time.Minute
	// arriveTime is how long what was paid for may be on its way, when the seller says
	// that it is used up.
	arriveTime = 20 * time.Second
	// askAgain is how long one who follows waits when there is no invoice.
	askAgain = 10 * time.Second
	// settleTime is how long the seller may take to see a payment of before.
	settleTime = 3 * time.Second
	// minLeft is how long an invoice must be good, clockSkew how far the seller's
	// clock may be ahead.
	minLeft   = time.Minute
	clockSkew = 2 * time.Minute
)

// purchase is what a client is buying. The client's mu guards it.
type purchase struct {
	asked  uint64 // id of the request that waits for an answer; 0 is none
	msat   uint64 // what it asks for
	paying bool   // a wallet is at work
	giveUp func() // ends that
	since  time.Time
	paid   *purse.Receipt // paid, and the seller does not serve for it yet
	credit uint64         // msat that the seller said last
	total  uint64         // msat that the seller said were ever credited
	rises  uint64         // how often it said of a payment that it arrived
	last   uint64         // last id
	again  time.Time      // when to ask again, after a refusal
	need   bool           // nothing comes without a payment
	blocks uint64         // that had come when something was paid last
	price  *card.Payment  // what it costs, as the first step was bought
}

// stepMsat returns what one step costs. mu is held, and there is a card.
func (c *Client) stepMsat() (uint64, error) {
	if len(c.card.Payment) == 0 {
		return 0, errors.New("it is free, and asks for money")
	}
	p, err := c.card.Price(0)
	if err != nil {
		return 0, err
	}
	n := max(c.cfg.Step, 1)
	if p.Unit == meter.Once {
		n = 1
	}
	hi, lo := bits.Mul64(n, p.Amount)
	if hi > 0 || lo > meter.MaxNumber {
		return 0, fmt.Errorf("%d steps of %d msat are too many", n, p.Amount)
	}
	return lo, nil
}

// money looks after a purchase; it is called several times a second, and when the
// seller said something about it. mu is held.
func (c *Client) money(v *visit) error {
	b := &c.buying
	now := time.Now()
	switch {
	case c.why != nil:
		return c.why // the connection is about to end
	case c.moving:
		return nil
	case b.paying:
		return nil
	case b.paid != nil:
		if now.Sub(b.since) > serveTime {
			return fmt.Errorf("%w: %d msat were paid by invoice %x, and the seller does not serve; the receipt is kept", ErrUnserved, b.paid.Msat, b.paid.Invoice.Hash)
		}
		return nil
	case b.asked != 0:
		if now.Sub(b.since) > serveTime {
			return fmt.Errorf("%w: it does not answer to a request for an invoice", ErrBusy)
		}
		return nil
	case c.card == nil || !b.need && !c.low() || now.Before(b.again):
		return nil
	case c.empty() && now.Sub(b.since) < c.arriveTime:
		return nil
	}
	return c.order(v)
}

// low tells whether the next step should be bought before this one ends. mu is held.
func (c *Client) low() bool {
	if c.cfg.Wallet == nil || !c.cfg.Follow || c.valid == nil || c.valid.Type == "free" || c.valid.Type == "once" || c.valid.Type == "trial" {
		return false
	}
	step, err := c.stepMsat()
	return err == nil && c.buying.credit < step/5 && c.purse.Spent()+step <= c.cfg.Budget
}

// order asks for an invoice, or pays one again of which nobody knows what became of
// it. mu is held.
func (c *Client) order(v *visit) error {
	b := &c.buying
	step, err := c.stepMsat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if c.cfg.Wallet == nil {
		p := c.card.Payment[0]
		return fmt.Errorf("%w: it costs %s sat for %s %s, and there is no wallet to pay with", ErrUnpaid, p.Amount, p.Interval, p.Unit)
	}
	switch {
	case c.card.Terms == nil || c.terms != nil:
	case c.declined:
		return fmt.Errorf("%w: they must be accepted before anything is paid", ErrTerms)
	default:
		return nil // they are on their way
	}
	if r, ok := c.purse.InDoubt(); ok {
		c.pay(v, r, true)
		return nil
	}
	if err := c.worth(); err != nil {
		return err
	}
	if spent := c.purse.Spent(); spent+step > c.cfg.Budget {
		return fmt.Errorf("%w: %d msat of %d are spent, and the next step costs %d", ErrBudget, spent, c.cfg.Budget, step)
	}
	b.last++
	b.asked, b.msat, b.since = b.last, step, time.Now()
	return v.ch.InvoiceRequest(dazaar.InvoiceRequest{ID: b.asked, Msat: strconv.FormatUint(step, 10)})
}

// worth tells whether another step should be bought: at the price of the first one,
// and not before something came for the last. mu is held.
func (c *Client) worth() error {
	p := c.card.Payment[0]
	if old := c.buying.price; old == nil {
		c.buying.price = &p
	} else if *old != p {
		return fmt.Errorf("%w: the price was %s sat for %s %s, and is %s sat for %s %s now: start anew if that is all right", ErrUnpaid,
			old.Amount, old.Interval, old.Unit, p.Amount, p.Interval, p.Unit)
	}
	if c.empty() {
		return fmt.Errorf("%w: nothing came for the last payment; one block may cost more than a step: buy more at a time", ErrUnserved)
	}
	return nil
}

// empty tells whether nothing came yet for the last payment. mu is held.
func (c *Client) empty() bool {
	return len(c.card.Payment) > 0 && c.card.Payment[0].Clock != "wall" && c.buying.blocks > 0 && c.blocks() < c.buying.blocks
}

// blocks returns how many came, and one. mu is held.
func (c *Client) blocks() uint64 {
	if c.buyer == nil {
		return 1
	}
	return c.before + c.buyer.Stats().Blocks + 1
}

// busy tells whether an invoice or a payment is on its way.
func (p *purchase) busy() bool { return p.asked != 0 || p.paying || p.paid != nil }

// invoiced takes the answer to a request. mu is held.
func (c *Client) invoiced(v *visit, x dazaar.Invoice) error {
	b := &c.buying
	if b.asked == 0 || x.ID != b.asked {
		return nil // nobody asked for it
	}
	b.asked = 0
	if x.Code != "" {
		err := fmt.Errorf("%w: no invoice: %s: %q", ErrBusy, x.Code, x.Error)
		switch x.Code {
		case dazaar.CodeRevoked, dazaar.CodeTerms:
			return fmt.Errorf("%w: no invoice: %s: %q", ErrRefused, x.Code, x.Error)
		case dazaar.CodeUnpayable, dazaar.CodeBusy, dazaar.CodeChargeLimit:
			if c.cfg.Follow {
				c.log.Warn("the seller has no invoice; asking again", "in", c.askAgain, "error", err)
				b.again = time.Now().Add(c.askAgain)
				return nil
			}
		}
		return err
	}
	if err := c.check(x, b.msat, time.Now()); err != nil {
		return fmt.Errorf("%w: the seller's invoice: %w", ErrInvoice, err)
	}
	if err := c.purse.Begin(x, b.msat, c.card, c.purse.Card(), time.Now()); err != nil {
		if errors.Is(err, purse.ErrHash) {
			return fmt.Errorf("%w: %w", ErrInvoice, err)
		}
		return outputError(err)
	}
	c.pay(v, purse.Receipt{State: purse.Doubt, Invoice: x, Msat: b.msat}, false)
	return nil
}

// check tells whether an invoice is what was asked for, from whom, and for what. mu
// is held. Source: specs/lightning.md, B1 to B5.
func (c *Client) check(x dazaar.Invoice, msat uint64, now time.Time) error {
	buyer := [32]byte(c.cfg.Archive.Key()[32:])
	if err := x.Verify(c.cfg.Seller, buyer); err != nil {
		return err
	}
	v, err := bolt11.Parse(x.Request)
	if err != nil {
		return err
	}
	description := Description(c.cfg.Seller, buyer)
	hash := sha256.Sum256([]byte(description))
	switch {
	case c.card.Payee == "":
		return errors.New("the card does not say who is paid")
	case fmt.Sprintf("%x", v.Payee) != c.card.Payee:
		return fmt.Errorf("it pays %x, and the card says %s", v.Payee, c.card.Payee)
	case v.Msat != msat || x.Msat != strconv.FormatUint(msat, 10):
		return fmt.Errorf("it is for %d msat, and %d were asked for", v.Msat, msat)
	case v.Network != c.card.Network || v.Network != c.cfg.Wallet.Network():
		return fmt.Errorf("it is on %s; the card says %s, and the wallet pays on %s", v.Network, c.card.Network, c.cfg.Wallet.Network())
	case v.Hash != x.Hash:
		return fmt.Errorf("its hash is %x, and the seller signed %x", v.Hash, x.Hash)
	case v.Description != description && (v.DescriptionHash == nil || *v.DescriptionHash != hash):
		return fmt.Errorf("it is for %q, and not for this sale", v.Description)
	case v.ExpiresAt().Sub(now) < minLeft:
		return fmt.Errorf("it ends at %v: is this clock right?", v.ExpiresAt().UTC().Format(time.RFC3339))
	case v.Time.Sub(now) > clockSkew:
		return fmt.Errorf("it was made at %v, which is to come: is this clock right?", v.Time.UTC().Format(time.RFC3339))
	case x.Card != c.card.Version:
		return fmt.Errorf("it is for version %d of the card, and %d is the newest", x.Card, c.card.Version)
	case !x.Terms.Same(c.terms):
		return errors.New("it is under other terms than those that were accepted")
	}
	return nil
}

// pay has the wallet pay; doubt tells that it may have done so before. mu is held.
func (c *Client) pay(v *visit, r purse.Receipt, doubt bool) {
	ctx, cancel := context.WithTimeout(context.Background(), payTime)
	c.buying.paying, c.buying.giveUp, c.buying.since = true, cancel, time.Now()
	c.log.Info("paying", "msat", r.Msat, "hash", r.Invoice.Hash)
	rises, blocks := c.buying.rises, c.blocks()
	c.wg.Go(func() {
		defer cancel()
		preimage, err := c.cfg.Wallet.Pay(ctx, r.Invoice.Request)
		c.mu.Lock()
		defer c.mu.Unlock()
		b := &c.buying
		b.paying, b.since = false, time.Now()
		switch {
		case errors.Is(err, payment.ErrDeclined):
			err = errors.Join(fmt.Errorf("%w: %w", ErrUnpaid, err), outputError(c.purse.Fail(r.Invoice.Hash, err)))
		case err != nil:
			err = fmt.Errorf("%w: whether invoice %x was paid is not known; it is tried again, and no other: %w", ErrUnpaid, r.Invoice.Hash, err)
			if c.cfg.Follow {
				c.log.Warn("payment in doubt", "error", err)
				b.again = time.Now().Add(c.askAgain)
				return
			}
		default:
			r.Preimage = (*jcs.Hex32)(&preimage)
			err = outputError(c.purse.Done(r.Invoice.Hash, preimage))
			if !doubt { // what comes for that one may have come
				b.blocks = blocks + 1
			}
		}
		if err != nil {
			c.why = err
			v.mux.Fail(err)
			return
		}
		switch {
		case doubt: // it may be credited long since, and used up
			b.again = time.Now().Add(settleTime)
		case b.rises == rises: // else the seller was faster than the wallet's answer
			b.paid, b.need = &r, false
		}
		// The seller hears of it from its wallet; this is in case it does not.
		v.ch.Receipt(dazaar.Receipt{Invoice: r.Invoice, Preimage: *r.Preimage}) //nolint:errcheck // the connection ends
	})
}

// resume shows the seller of a new connection what was paid for, and not yet served. mu
// is held.
func (c *Client) resume(v *visit) error {
	b := &c.buying
	if b.paid == nil {
		return nil
	}
	b.since = time.Now()
	return v.ch.Receipt(dazaar.Receipt{Invoice: b.paid.Invoice, Preimage: *b.paid.Preimage})
}

// credited takes note of what the seller says is left. mu is held.
func (c *Client) credited(x dazaar.Valid) {
	b := &c.buying
	credit, _ := strconv.ParseUint(x.CreditMsat, 10, 64)
	total, _ := strconv.ParseUint(x.PaidMsat, 10, 64)
	rose := x.PaidMsat == "" && credit > b.credit || total > b.total
	b.total = total
	if rose || x.Type == "once" || x.Type == "free" {
		b.paid, b.need = nil, false
		b.rises++
	}
	b.credit = credit
}

// carded takes a card. mu is held.
func (c *Client) carded(signed []byte) error {
	seen := uint64(0)
	if c.card != nil {
		seen = c.card.Version
	}
	x, err := card.Parse(signed, &c.cfg.Seller, seen)
	if err != nil {
		return err
	}
	if c.card != nil && x.Version == c.card.Version && x.Sig != c.card.Sig {
		return fmt.Errorf("%w: version %d was another one before", card.ErrCard, x.Version)
	}
	if err := c.purse.SetCard(signed); err != nil {
		return outputError(err)
	}
	c.card = x
	return nil
}

// termed takes the terms of use, and accepts them if that is wanted. mu is held.
func (c *Client) termed(v *visit, text string) error {
	hash := jcs.Hex32(sha256.Sum256([]byte(text)))
	if c.card == nil || c.card.Terms == nil || c.card.Terms.SHA256 != fmt.Sprintf("%x", hash) {
		return fmt.Errorf("%w: the terms of use are not those of the card", ErrRefused)
	}
	if !c.purse.Accepted(hash) {
		if c.cfg.Accept == nil || !c.cfg.Accept(text, hash) {
			c.declined = true
			return nil // if the seller insists, it says so
		}
		if err := c.purse.Accept(text); err != nil {
			return outputError(err)
		}
	}
	c.terms = &hash
	return v.ch.AcceptTerms(dazaar.NewAcceptTerms(text, c.cfg.Seller, c.cfg.Archive.Key()))
}
