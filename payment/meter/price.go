package meter

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

// Unit is what a price counts.
type Unit uint8

// Units of a price. Time and Wall are in milliseconds.
const (
	Readings Unit = 1 + iota
	Bytes
	Time // of sensing: what is not sensed, or not delivered, costs nothing
	Wall // by the seller's clock, from the payment on
	Once // everything, for good
)

var unitNames = [...]string{Readings: "readings", Bytes: "bytes", Time: "time", Wall: "wall", Once: "once"}

func (u Unit) String() string {
	if u < Readings || u > Once {
		return fmt.Sprintf("unit %d", uint8(u))
	}
	return unitNames[u]
}

// MaxNumber bounds amounts and counts: what JSON numbers hold exactly.
const MaxNumber = 1<<53 - 1

// ErrPrice says that a price cannot be.
var ErrPrice = errors.New("meter: impossible price")

// Price is Amount msat for Interval units, and History msat for as many of blocks
// from before the purchase.
type Price struct {
	Unit            Unit
	Interval        uint64
	Amount, History uint64 // msat
}

// priceJSON is a price as programs read it.
type priceJSON struct {
	Unit     string `json:"unit"`
	Interval uint64 `json:"interval"`
	Amount   uint64 `json:"amount,string"`
	History  uint64 `json:"history,string,omitempty"`
}

// MarshalJSON implements [json.Marshaler]: unit by name, interval, amount and history in
// msat as text.
func (p Price) MarshalJSON() ([]byte, error) {
	return json.Marshal(priceJSON{p.Unit.String(), p.Interval, p.Amount, p.History})
}

// UnmarshalJSON implements [json.Unmarshaler].
func (p *Price) UnmarshalJSON(b []byte) error {
	var x priceJSON
	if err := json.Unmarshal(b, &x); err != nil {
		return err
	}
	unit := slices.Index(unitNames[:], x.Unit)
	if unit < int(Readings) {
		return fmt.Errorf("%w: unit %q", ErrPrice, x.Unit)
	}
	*p = Price{Unit(unit), x.Interval, x.Amount, x.History}
	return nil
}

// Check returns an error that wraps [ErrPrice] if p cannot be.
func (p Price) Check() error {
	switch {
	case p.Unit < Readings || p.Unit > Once:
		return fmt.Errorf("%w: %s", ErrPrice, p.Unit)
	case p.Interval == 0 || p.Interval > MaxNumber || p.Unit == Once && p.Interval != 1:
		return fmt.Errorf("%w: for %d %s", ErrPrice, p.Interval, p.Unit)
	case p.Amount == 0 || p.Amount > MaxNumber || p.History > MaxNumber:
		return fmt.Errorf("%w: %d msat, %d for history", ErrPrice, p.Amount, p.History)
	}
	return nil
}

// Weight is what of a block is paid for.
type Weight struct {
	Readings uint64
	Span     uint64 // ms of sensed time since the pack before
	Bytes    uint64
}

// units returns how many units a block has. Time by the seller's clock, and what
// is paid once, have none.
func (u Unit) units(w Weight) uint64 {
	switch u {
	case Readings:
		return w.Readings
	case Bytes:
		return w.Bytes
	case Time:
		return w.Span
	}
	return 0
}

// money is an amount in msat times the interval of its price, so that whatever a
// unit costs, nothing is rounded.
type money struct{ hi, lo uint64 }

func times(a, b uint64) (m money) {
	m.hi, m.lo = bits.Mul64(a, b)
	return m
}

func (m money) plus(n money) money {
	lo, carry := bits.Add64(m.lo, n.lo, 0)
	hi, _ := bits.Add64(m.hi, n.hi, carry)
	return money{hi, lo}
}

func (m money) minus(n money) money {
	lo, borrow := bits.Sub64(m.lo, n.lo, 0)
	hi, _ := bits.Sub64(m.hi, n.hi, borrow)
	return money{hi, lo}
}

func (m money) less(n money) bool { return m.hi < n.hi || m.hi == n.hi && m.lo < n.lo }

func (m money) isZero() bool { return m == money{} }

// over returns m / d rounded down, at most MaxNumber; d is not 0.
func (m money) over(d uint64) uint64 {
	if m.hi >= d {
		return MaxNumber
	}
	q, _ := bits.Div64(m.hi, m.lo, d)
	return min(q, MaxNumber)
}
