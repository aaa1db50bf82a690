package market

import (
	"context"
	"fmt"
	"strconv"

	"dazaar-edge/feed"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/dazaar"
)

// refusal is a block that the meter did not let pass.
type refusal struct {
	index  uint64
	weight meter.Weight
	gone   bool // it was dropped meanwhile
}

// toll is the meter as the seller of the feed asks it.
type toll struct {
	s      *session
	sale   *ledger.Sale
	blocks *feed.Reader
}

// Admit implements replicate.Meter.
func (g toll) Admit(i uint64, size int) bool {
	w, err := g.blocks.Weight(i)
	if err == nil && g.sale.Admit(i, meter.Weight{Readings: w.Readings, Span: w.Span, Bytes: uint64(size)}) {
		g.s.o.passed(size)
		return true
	}
	g.s.refused.Store(&refusal{i, meter.Weight{Readings: w.Readings, Span: w.Span, Bytes: uint64(size)}, err != nil})
	g.s.dry.Store(true) // the seller's lock is held: the rest is for the offer's goroutine
	g.s.o.poke()
	return false
}

// charge says that nothing comes without a payment. mu is held.
func (s *session) charge() error {
	st := s.sale.State()
	return s.ch.Invalid(dazaar.Invalid{Error: "pay first: ask for an invoice", Code: dazaar.CodePaymentRequired, PaidMsat: strconv.FormatUint(st.Msat, 10)})
}

// recharge charges, after the books were lost and credit was restored, what its buyer has
// of it already, as it showed. It takes none of the session's locks.
func (s *session) recharge(sale *ledger.Sale, blocks *feed.Reader) {
	length := s.peer.Load()
	if length == 0 || !s.restored.CompareAndSwap(true, false) {
		return
	}
	st := sale.State()
	for i := st.First(); i+1 < length; i++ {
		w, err := blocks.Weight(i)
		data, _, e := blocks.Read(i, 0)
		if err == nil && e == nil && !sale.Admit(i, meter.Weight{Readings: w.Readings, Span: w.Span, Bytes: uint64(len(data))}) {
			break // all of it is used up
		}
	}
	s.o.spawn(func(context.Context) {
		err := sale.Change(func(*meter.State) {}) // it is written down first
		if err == nil {
			err = s.o.cfg.Ledger.ChangeContract(s.o.cfg.Name, s.buyer, func(c *ledger.Contract) { c.Restored = false })
		}
		if err != nil {
			s.o.log.Error("what was delivered before the books were lost is not noted", "buyer", s.name(), "error", err)
		}
	})
}

// describe says what is left on a meter, of the credit that was bought first; where
// there is none, in the unit of today's price.
func describe(v *dazaar.Valid, st meter.State, unit meter.Unit) {
	left, msat := uint64(0), uint64(0)
	if len(st.Lots) > 0 {
		unit = st.Lots[0].Price.Unit
	}
	for _, l := range st.Lots {
		msat += l.Msat()
		if l.Price.Unit == unit {
			left += l.Units()
		}
	}
	v.CreditMsat, v.PaidMsat = fmt.Sprint(msat), fmt.Sprint(st.Msat)
	switch {
	case st.Owned:
		v.Type = "once"
		return
	case len(st.Lots) == 0 && st.Trial.Bytes > 0:
		v.Type, left = "trial", st.Trial.Span
	case unit == meter.Wall:
		v.Type = "time"
	case unit == meter.Once: // not yet paid whole
		v.Type, left = meter.Readings.String(), 0
	default:
		v.Type = unit.String()
	}
	n := int64(min(left, meter.MaxNumber))
	v.Remaining = &n
}
