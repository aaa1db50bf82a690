package purse

import (
	"errors"
	"fmt"
	"time"
)

// Errors of a budget.
var (
	// ErrBudget says that the next step would cost more than may be spent.
	ErrBudget = errors.New("the budget is spent")
	// ErrDay says that tomorrow more may be.
	ErrDay = fmt.Errorf("%w for today", ErrBudget)
)

// Budget is what may be spent with one seller, in msat, fees included.
type Budget struct {
	Total uint64 // ever
	// Day is for 24 hours, Purchase for one invoice, and Fee of it for those on the way;
	// 0 has no limit of its own, but for the fee: [DefaultFee].
	Day, Purchase, Fee uint64
}

// DefaultFee is the limit of fees where none is given: a hundredth of the amount, or 5
// satoshi.
func DefaultFee(msat uint64) uint64 { return max(msat/100, 5000) }

const day = 24 * time.Hour

// Allows tells whether so much may be spent now. The error wraps [ErrBudget].
func (b Budget) Allows(p *Purse, msat uint64, now time.Time) error {
	spent := p.Spent(time.Time{})
	switch {
	case spent+msat > b.Total:
		return fmt.Errorf("%w: %d msat of %d are spent, and the next step costs %d", ErrBudget, spent, b.Total, msat)
	case b.Purchase > 0 && msat > b.Purchase:
		return fmt.Errorf("%w: one step costs %d msat, and %d may be spent at once", ErrBudget, msat, b.Purchase)
	}
	if today := p.Spent(now.Add(-day)); b.Day > 0 && today+msat > b.Day {
		return fmt.Errorf("%w: %d msat of %d for a day are spent, and the next step costs %d", ErrDay, today, b.Day, msat)
	}
	return nil
}

// MaxFee returns what may be paid to those on the way of a payment now.
func (b Budget) MaxFee(p *Purse, msat uint64, now time.Time) uint64 {
	fee := b.Fee
	if fee == 0 {
		fee = DefaultFee(msat)
	}
	fee = min(fee, b.Total-min(b.Total, p.Spent(time.Time{})+msat))
	if b.Day > 0 {
		fee = min(fee, b.Day-min(b.Day, p.Spent(now.Add(-day))+msat))
	}
	if b.Purchase > 0 {
		fee = min(fee, b.Purchase-min(b.Purchase, msat))
	}
	return fee
}
