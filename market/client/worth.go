package client

import (
	"fmt"
	"time"

	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/replicate"
)

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
	if c.early() {
		return fmt.Errorf("%w: the time that was paid for is said to be over, %v after that", ErrUnserved, time.Since(c.buying.bought).Round(time.Second))
	}
	step, _ := c.stepMsat() // it was asked for before
	if worth, slack, known := c.scale.Worth(); known && c.buying.spent > worth+slack+step {
		return fmt.Errorf("%w: %d msat were paid since it began, and what came for it is worth %d", ErrUnserved, c.buying.spent, worth)
	}
	if c.empty() {
		return fmt.Errorf("%w: nothing came for the last payment; one block may cost more than a step: buy more at a time", ErrUnserved)
	}
	return nil
}

// empty tells whether nothing came yet for the last payment. mu is held.
func (c *Client) empty() bool {
	b := &c.buying
	if len(c.card.Payment) == 0 || c.card.Payment[0].Clock == "wall" || b.mark == 0 {
		return false
	}
	var got replicate.BuyerStats
	if c.buyer != nil {
		got = c.buyer.Stats()
	}
	// What a fork replaced comes again; what begins later than with 0 begins with nothing.
	return got.Forks == b.forks && (c.progress() < b.mark || b.fresh && got.Blocks == 0)
}

// progress returns how far what came reaches. mu is held.
func (c *Client) progress() uint64 {
	if c.buyer == nil {
		return 0
	}
	_, next := c.buyer.Head()
	return next
}

// early tells whether time that was bought by the clock is said to be over when most of it
// cannot have passed. mu is held.
func (c *Client) early() bool {
	p, err := c.card.Price(0)
	if err != nil || p.Unit != meter.Wall || c.buying.bought.IsZero() {
		return false
	}
	lasts := time.Duration(float64(c.buying.msat) / float64(p.Amount) * float64(p.Interval) * float64(time.Millisecond))
	since := time.Since(c.buying.bought)
	return since >= 0 && since < lasts/2
}

// weigh begins to weigh what comes, by the price of the card. mu is held.
func (c *Client) weigh() {
	if len(c.card.Payment) > 0 {
		if p, err := c.card.Price(0); err == nil {
			c.scale.Set(p)
		}
	}
}
