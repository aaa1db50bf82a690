package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"dazaar-edge/market/bill"
	"dazaar-edge/market/card"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
)

// Times of a purchase.
const (
	// payTime bounds a payment, and then how long the seller may take to serve.
	payTime   = time.Minute
	serveTime = time.Minute
	// lateTime is how long after its end what is to be paid by hand may still arrive.
	lateTime = time.Minute
	// mostAgain is how long at most, after payments that failed.
	mostAgain = 5 * time.Minute
	// calmTime is how long one who does not follow is put off, after it bought something.
	calmTime = time.Minute
	// settleTime is how long the seller may take to see a payment of before.
	settleTime = 3 * time.Second
)

// purchase is what a client is buying. The client's mu guards it.
type purchase struct {
	asked  uint64 // id of the request that waits for an answer; 0 is none
	msat   uint64 // what it asks for
	card   uint64 // version of the card, when it was asked
	paying bool   // a wallet is at work
	giveUp func() // ends that
	since  time.Time
	paid   *purse.Receipt // paid, and the seller does not serve for it yet
	shown  *purse.Receipt // somebody was asked to pay it
	// A seller that knows of less than was paid is reminded: with these, newest last.
	reminded bool
	shows    []dazaar.Receipt
	shown1   time.Time     // when one was, last
	failed   int           // payments that failed, one after the other
	credit   uint64        // msat that the seller said last
	total    uint64        // msat that the seller said were ever credited
	told     bool          // it said so
	rises    uint64        // how often it said of a payment that it arrived
	last     uint64        // last id
	again    time.Time     // when to ask again, after a refusal
	refused  time.Time     // since when there is no invoice
	need     bool          // nothing comes without a payment
	mark     uint64        // how far what comes must reach before more is paid; 0 is anywhere
	forks    uint64        // that had been when it was set
	fresh    bool          // nothing had come then
	bought   time.Time     // when something was paid last
	spent    uint64        // msat, since the client began
	terms    time.Time     // since when they are waited for
	price    *card.Payment // what it costs, as the first step was bought
}

// stepMsat returns what one step costs. mu is held, and there is a card.
func (c *Client) stepMsat() (uint64, error) { return c.card.Cost(max(c.cfg.Step, 1)) }

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
	case b.shown != nil:
		if end := time.Unix(b.shown.Invoice.ExpiresAt, 0).Add(lateTime); now.After(end) && b.told {
			err := fmt.Errorf("%w: nobody paid the invoice that was shown, and it has ended", ErrUnpaid)
			return errors.Join(err, outputError(c.purse.Fail(b.shown.Invoice.Hash, err)))
		}
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
	case c.empty() && now.Sub(b.since) < c.cfg.Times.Arrive:
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
	return err == nil && c.buying.credit < step/topUp && c.topUp(step) > 0 && c.within(c.topUp(step)) == nil
}

// topUp: when a topUp-th of a step is left, the rest of it is bought.
const topUp = 5

// topUp returns what to buy of a step while some of the last is left, in whole satoshi, as
// many wallets want it: 0 if it is too little. mu is held.
func (c *Client) topUp(step uint64) uint64 {
	return (step - min(step, c.buying.credit)) / 1000 * 1000
}

// within tells whether so much may be spent now. mu is held.
func (c *Client) within(msat uint64) error {
	if err := c.cfg.Budget.Allows(c.purse, msat, time.Now()); err != nil {
		return fmt.Errorf("%w: %w", ErrBudget, err)
	}
	return nil
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
	case b.terms.IsZero():
		b.terms = time.Now()
		return nil // they are on their way
	case time.Since(b.terms) > serveTime:
		return fmt.Errorf("%w: its card names terms of use, and it does not send them", ErrBusy)
	default:
		return nil
	}
	b.terms = time.Time{}
	if err := c.byHand(); err != nil {
		return err
	}
	if r, ok, err := c.purse.InDoubt(); err != nil {
		return outputError(err)
	} else if ok {
		c.pay(v, r, true)
		return nil
	}
	if more, err := c.remind(v); more || err != nil {
		return err
	}
	if err := c.worth(); err != nil {
		return err
	}
	if !b.need { // some is left
		step = c.topUp(step)
	}
	if err := c.within(step); errors.Is(err, purse.ErrDay) && c.cfg.Follow {
		c.log.Warn("nothing more is bought for now", "error", err)
		b.again = time.Now().Add(mostAgain)
		return nil
	} else if err != nil {
		return err
	}
	b.last++
	b.asked, b.msat, b.since, b.card = b.last, step, time.Now(), c.card.Version
	return v.ch.InvoiceRequest(dazaar.InvoiceRequest{ID: b.asked, Msat: strconv.FormatUint(step, 10)})
}

// busy tells whether an invoice or a payment is on its way.
func (p *purchase) busy() bool { return p.asked != 0 || p.paying || p.paid != nil || p.shown != nil }

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
			if b.refused.IsZero() {
				b.refused = time.Now()
			}
			// Who buys much in small steps may be faster than invoices are made.
			if c.cfg.Follow || x.Code != dazaar.CodeUnpayable && b.rises > 0 && time.Since(b.refused) < calmTime {
				c.log.Warn("the seller has no invoice; asking again", "in", c.cfg.Times.Again, "error", err)
				b.again = time.Now().Add(c.cfg.Times.Again)
				return nil
			}
		}
		return err
	}
	if x.Card != c.card.Version && x.Card == b.card {
		b.again = time.Now().Add(time.Second) // the card changed meanwhile: it is asked for again
		return nil
	}
	if err := c.check(x, b.msat, time.Now()); err != nil {
		return fmt.Errorf("%w: the seller's invoice: %w", ErrInvoice, err)
	}
	b.refused = time.Time{}
	r := purse.Receipt{
		Seller: c.cfg.Seller, Buyer: jcs.Hex32(c.cfg.Archive.Key()[32:]), Invoice: x, Msat: b.msat, Fee: c.cfg.Budget.MaxFee(c.purse, b.msat, time.Now()), At: time.Now(), Cursor: c.progress(), Card: c.purse.Card(), Accepted: c.accepted,
	}
	if err := c.purse.Begin(r); err != nil {
		if errors.Is(err, purse.ErrHash) {
			return fmt.Errorf("%w: %w", ErrInvoice, err)
		}
		return outputError(err)
	}
	c.pay(v, r, false)
	return nil
}

// check tells whether an invoice is what was asked for. mu is held.
func (c *Client) check(x dazaar.Invoice, msat uint64, now time.Time) error {
	v, err := bill.Check(x, bill.Want{
		Seller: c.cfg.Seller, Buyer: [32]byte(c.cfg.Archive.Key()[32:]), Card: c.card, Terms: c.terms, Msat: msat, Network: c.cfg.Wallet.Network(), Now: now,
	})
	if err == nil && c.card.Payee == "" {
		err = c.pinned(v.Payee)
	}
	return err
}

// pinned compares who is paid with who was, where the card names nobody. mu is held.
func (c *Client) pinned(payee [33]byte) error {
	first, ok := c.purse.Payee()
	switch {
	case !ok:
		c.log.Warn("the card does not say who is paid: the key of this first invoice is remembered, and no other will be paid", "payee", fmt.Sprintf("%x", payee))
	case first != payee && !slices.Contains(c.cfg.Payees, payee):
		return fmt.Errorf("it pays %x, and before %x was paid: the card names nobody; if the seller says that this is right, allow it: --payee %x", payee, first, payee)
	}
	return nil
}

// pay has the wallet pay; doubt tells that it may have done so before. mu is held.
func (c *Client) pay(v *visit, r purse.Receipt, doubt bool) {
	ctx, cancel := context.WithTimeout(context.Background(), payTime)
	c.buying.paying, c.buying.giveUp, c.buying.since = true, cancel, time.Now()
	c.log.Info("paying", "msat", r.Msat, "hash", r.Invoice.Hash)
	rises := c.buying.rises
	c.wg.Go(func() {
		defer cancel()
		proof, err := c.cfg.Wallet.Pay(ctx, payment.Payment{Request: r.Invoice.Request, Msat: r.Msat, MaxFee: r.Fee})
		c.mu.Lock()
		defer c.mu.Unlock()
		b := &c.buying
		b.paying, b.since = false, time.Now()
		switch {
		case errors.Is(err, payment.ErrShown):
			if err := outputError(c.purse.Show(r.Invoice.Hash)); err != nil {
				c.why = err
				v.mux.Fail(err)
				return
			}
			if b.rises == rises {
				b.shown, b.need = &r, false
			}
			if err := c.byHand(); err != nil {
				c.why = err
				v.mux.Fail(err)
			}
			return
		case errors.Is(err, payment.ErrDeclined) && r.Shown:
			err = fmt.Errorf("%w: invoice %x was shown to somebody, who may have paid it, and the wallet does not: %w", ErrUnpaid, r.Invoice.Hash, err)
		case errors.Is(err, payment.ErrDeclined):
			kept := outputError(c.purse.Fail(r.Invoice.Hash, err))
			if err = fmt.Errorf("%w: %w", ErrUnpaid, err); c.cfg.Follow && kept == nil {
				wait := min(c.cfg.Times.Again<<min(b.failed, 16), mostAgain)
				c.log.Warn("the wallet did not pay; trying again", "in", wait, "error", err)
				b.failed++
				b.again = time.Now().Add(wait)
				return
			}
			err = errors.Join(err, kept)
		case err != nil:
			err = fmt.Errorf("%w: whether invoice %x was paid is not known; it is tried again, and no other: %w", ErrUnpaid, r.Invoice.Hash, err)
			if c.cfg.Follow {
				c.log.Warn("payment in doubt", "error", err)
				b.again = time.Now().Add(c.cfg.Times.Again)
				return
			}
		default:
			b.failed = 0
			if !doubt { // else what it brought may have come before
				b.spent += r.Msat
			}
			r.Preimage = (*jcs.Hex32)(&proof.Preimage)
			err = outputError(c.purse.Done(r.Invoice.Hash, proof.Preimage, proof.Fee))
			b.mark, b.bought, b.forks, b.fresh = r.Cursor+1, time.Now(), 0, c.buyer == nil
			if c.buyer != nil {
				b.forks = c.buyer.Stats().Forks
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

// remind shows a seller that knows of less than was paid the newest receipts, one after the
// other: it may have lost its books. It tells whether there is more to show. mu is held.
func (c *Client) remind(v *visit) (more bool, err error) {
	b := &c.buying
	if !b.told || b.total >= c.purse.Received() || b.shows == nil && b.reminded {
		return false, nil
	}
	if !b.reminded {
		b.reminded = true
		c.purse.Receipts(func(r *purse.Receipt, e error) bool {
			if err = e; e == nil && r.State == purse.Paid {
				b.shows = append(b.shows, dazaar.Receipt{Invoice: r.Invoice, Preimage: *r.Preimage})
			}
			return e == nil
		})
		b.shows = b.shows[max(0, len(b.shows)-mostShown):]
		c.log.Warn("the seller knows of less than was paid: it is shown the receipts", "paid", c.purse.Received(), "known", b.total)
	}
	if err != nil || len(b.shows) == 0 || time.Since(b.shown1) < time.Second {
		return len(b.shows) > 0 || time.Since(b.shown1) < settleTime, outputError(err)
	}
	r := b.shows[len(b.shows)-1]
	b.shows, b.shown1 = b.shows[:len(b.shows)-1], time.Now()
	return true, v.ch.Receipt(r)
}

// mostShown is how many receipts are shown to one who forgot.
const mostShown = 20

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
	b.told = b.told || x.PaidMsat != ""
	rose := x.PaidMsat == "" && credit > b.credit || total > b.total
	b.total = total
	if rose || x.Type == "once" || x.Type == "free" {
		b.paid, b.shown, b.need = nil, nil, false
		b.rises++
	}
	b.credit = credit
}

// byHand takes note of what somebody paid by hand, as the seller says: no wallet says
// it. mu is held.
func (c *Client) byHand() error {
	b := &c.buying
	if !b.told {
		return nil
	}
	r, ok, err := c.purse.InDoubt()
	if err == nil && ok && r.Shown && b.total >= c.purse.Received()+r.Msat {
		b.shown, b.need = nil, false
		err = c.purse.Credit(r.Invoice.Hash)
	}
	return outputError(err)
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
	c.weigh()
	if x.Terms == nil || c.terms != nil && x.Terms.SHA256 != fmt.Sprintf("%x", *c.terms) {
		c.terms, c.accepted = nil, nil // there are others, or none
	}
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
	accepted := dazaar.NewAcceptTerms(text, c.cfg.Seller, c.cfg.Archive.Key())
	c.terms, c.accepted = &hash, &accepted
	return v.ch.AcceptTerms(accepted)
}
