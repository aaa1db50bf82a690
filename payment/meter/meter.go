// Package meter counts what a buyer paid and what each block takes of it. It knows
// no clock, no disk and no network; its caller keeps the [State].
//
// Everything is an integer: a lot of credit is held in msat times the interval of
// its price, so that a block that costs a third of a msat takes a third. A block
// that was sent once is free to send again, as far as the meter remembers it and as
// many bytes as were paid for.
//
// Source: DESIGN.md, "Money"; specs/lightning.md, S3, S9 to S11.
package meter

import (
	"errors"
	"fmt"
	"slices"
)

// Bounds of a State.
const (
	// MaxRanges is how many ranges of delivered blocks are remembered.
	MaxRanges = 256
	// MaxLots is how many prices may have credit at once.
	MaxLots = 64
)

// ErrLots says that credit of too many prices is left.
var ErrLots = errors.New("meter: credit of too many prices")

// Lot is credit that was bought at one price.
type Lot struct {
	Price  Price
	credit money
}

// Units returns how many units of live blocks are left.
func (l Lot) Units() uint64 { return l.credit.over(l.Price.Amount) }

// Msat returns what is left, rounded down.
func (l Lot) Msat() uint64 { return l.credit.over(l.Price.Interval) }

// Range is the blocks [From, To).
type Range struct{ From, To uint64 }

// Trial is what may be had for nothing: blocks from From on, so many ms of sensed
// time and bytes.
type Trial struct{ From, Span, Bytes uint64 }

// State is a sale's meter. The zero value has no credit.
type State struct {
	// Begun: something was paid once, and From and Start are known. From is the
	// first block that the sale includes, Start the first one that costs the live
	// price: the length of the log at the first payment. Blocks between cost that
	// of history.
	Begun       bool
	From, Start uint64
	// Lots are what is left, oldest first.
	Lots []Lot
	// Msat is what was ever credited.
	Msat uint64
	// Owned: it was paid once, and everything is free.
	Owned bool
	// Tried: there was a trial, whatever is left of it.
	Tried bool
	Trial Trial
	// Clock is the seller's clock, in ms, when [State.Advance] was called last.
	Clock uint64
	// Delivered are the blocks that were paid for and sent, in order; the newest
	// one is at Last.
	Delivered []Range
	Last      int
	// Paid is how many bytes were sent and paid for, Again how many were sent
	// once more for nothing.
	Paid, Again uint64
}

// Clone returns a copy that shares nothing with s.
func (s *State) Clone() State {
	c := *s
	c.Lots, c.Delivered = slices.Clone(s.Lots), slices.Clone(s.Delivered)
	return c
}

// Credit adds a payment at a price. Nothing is added if it fails.
func (s *State) Credit(p Price, msat uint64) error {
	if err := p.Check(); err != nil {
		return err
	}
	if msat > MaxNumber {
		return fmt.Errorf("%w: a payment of %d msat", ErrPrice, msat)
	}
	i := slices.IndexFunc(s.Lots, func(l Lot) bool { return l.Price == p })
	if i < 0 {
		if len(s.Lots) >= MaxLots {
			return fmt.Errorf("%w: %d", ErrLots, len(s.Lots))
		}
		i = len(s.Lots)
		s.Lots = append(s.Lots, Lot{Price: p})
	}
	s.Lots[i].credit = s.Lots[i].credit.plus(times(msat, p.Interval))
	s.Msat = min(s.Msat+msat, MaxNumber)
	if p.Unit == Once && !s.Lots[i].credit.less(money{0, p.Amount}) {
		s.Owned = true
		s.Lots[i].credit = s.Lots[i].credit.minus(money{0, p.Amount})
	}
	s.tidy()
	return nil
}

// tidy forgets lots that are used up.
func (s *State) tidy() {
	if s.Lots = slices.DeleteFunc(s.Lots, func(l Lot) bool { return l.credit.isZero() }); len(s.Lots) == 0 {
		s.Lots = nil
	}
}

// Begin says what the first payment includes. Later calls change nothing.
func (s *State) Begin(from, start uint64) {
	if !s.Begun {
		s.Begun, s.From, s.Start = true, from, start
	}
}

// First returns the first block that may be sent.
func (s *State) First() uint64 {
	switch {
	case s.Begun && s.Trial.Bytes > 0:
		return min(s.From, s.Trial.From)
	case s.Begun:
		return s.From
	}
	return s.Trial.From
}

// Timed tells whether there is credit that runs by the clock.
func (s *State) Timed() bool {
	return slices.ContainsFunc(s.Lots, func(l Lot) bool { return l.Price.Unit == Wall })
}

// Dry tells whether no block that weighs something can be sent.
func (s *State) Dry() bool {
	return !s.Owned && (s.Trial.Bytes == 0 || s.Trial.Span == 0) && !slices.ContainsFunc(s.Lots, func(l Lot) bool { return l.Price.Unit != Once && l.Units() > 0 })
}

// Owes tells whether something that was paid for may be sent again for nothing.
func (s *State) Owes() bool { return len(s.Delivered) > 0 && s.Again < s.Paid }

// Admit tells whether block i may be sent, and takes what it costs.
func (s *State) Admit(i uint64, w Weight) bool {
	if s.delivered(i) && s.Again+w.Bytes <= s.Paid {
		s.Again += w.Bytes
		return true
	}
	if !s.charge(i, w) {
		return false
	}
	s.Paid += w.Bytes
	s.deliver(i)
	return true
}

// charge takes what block i costs, from a trial before credit, and from the oldest
// credit that suffices.
func (s *State) charge(i uint64, w Weight) bool {
	if s.Owned && i >= s.From {
		return true
	}
	if t := &s.Trial; t.Bytes > 0 && i >= t.From && w.Span <= t.Span && w.Bytes <= t.Bytes {
		t.Span, t.Bytes = t.Span-w.Span, t.Bytes-w.Bytes
		return true
	}
	if i < s.From {
		return false
	}
	for k, l := range s.Lots {
		if slices.IndexFunc(s.Lots[:k], func(o Lot) bool { return o.Price.Unit == l.Price.Unit }) < 0 && s.take(i, l.Price.Unit, w) {
			s.tidy()
			return true
		}
	}
	return false
}

// take takes the units of block i from the lots of one unit, the oldest first.
func (s *State) take(i uint64, unit Unit, w Weight) bool {
	switch unit {
	case Once:
		return false // not yet paid whole
	case Wall:
		return slices.ContainsFunc(s.Lots, func(l Lot) bool { return l.Price.Unit == Wall && l.Units() > 0 })
	}
	left := unit.units(w)
	for pass := range 2 { // first look, then take
		need := left
		for k := range s.Lots {
			l := &s.Lots[k]
			if l.Price.Unit != unit || need == 0 {
				continue
			}
			rate := l.Price.Amount
			if i < s.Start {
				rate = l.Price.History
			}
			n := need
			if rate > 0 {
				n = min(need, l.credit.over(rate))
			}
			need -= n
			if pass == 1 {
				l.credit = l.credit.minus(times(n, rate))
			}
		}
		if need > 0 {
			return false
		}
	}
	return true
}

// Advance sets the seller's clock: what passed since it was set last is taken from
// what was bought by the clock, the oldest first. A clock that goes back stands
// still.
func (s *State) Advance(clock uint64) {
	if clock <= s.Clock {
		return
	}
	ms := clock - s.Clock
	s.Clock = clock
	for k := range s.Lots {
		l := &s.Lots[k]
		if l.Price.Unit != Wall || ms == 0 {
			continue
		}
		n := min(ms, l.Units())
		l.credit = l.credit.minus(times(n, l.Price.Amount))
		if ms -= n; ms > 0 { // less than a unit is left, and its time has passed
			l.credit = money{}
		}
	}
	s.tidy()
}

// find returns the first range that ends behind i.
func (s *State) find(i uint64) (int, bool) {
	k, _ := slices.BinarySearchFunc(s.Delivered, i, func(r Range, i uint64) int {
		if r.To <= i {
			return -1
		}
		return 1
	})
	return k, k < len(s.Delivered) && s.Delivered[k].From <= i
}

func (s *State) delivered(i uint64) bool {
	_, ok := s.find(i)
	return ok
}

// deliver remembers that block i was sent.
func (s *State) deliver(i uint64) {
	k, ok := s.find(i)
	if ok {
		s.Last = k
		return
	}
	before := k > 0 && s.Delivered[k-1].To == i
	behind := k < len(s.Delivered) && s.Delivered[k].From == i+1
	switch {
	case before && behind:
		s.Delivered[k-1].To = s.Delivered[k].To
		s.Delivered = slices.Delete(s.Delivered, k, k+1)
		s.Last = k - 1
	case before:
		s.Delivered[k-1].To++
		s.Last = k - 1
	case behind:
		s.Delivered[k].From--
		s.Last = k
	default:
		s.Delivered = slices.Insert(s.Delivered, k, Range{i, i + 1})
		s.Last = k
	}
	if len(s.Delivered) <= MaxRanges {
		return
	}
	// The smallest of the others is forgotten, the oldest block first.
	least := -1
	for k, r := range s.Delivered {
		if k != s.Last && (least < 0 || r.To-r.From < s.Delivered[least].To-s.Delivered[least].From) {
			least = k
		}
	}
	s.Delivered = slices.Delete(s.Delivered, least, least+1)
	if s.Last > least {
		s.Last--
	}
}
