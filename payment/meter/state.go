package meter

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrState says that bytes are no state of a meter.
var ErrState = errors.New("meter: damaged state")

const stateVersion = 1

// Append appends the state: a version, then numbers as uvarints, first flags (1
// owned, 2 begun, 4 tried); each lot is unit,
// interval, amount, history and the two halves of its credit, each range its
// distance from the one before and its length.
func (s *State) Append(b []byte) []byte {
	b = append(b, stateVersion)
	flags := uint64(0)
	for i, set := range []bool{s.Owned, s.Begun, s.Tried} {
		if set {
			flags |= 1 << i
		}
	}
	for _, n := range []uint64{flags, s.From, s.Start, s.Trial.From, s.Trial.Span, s.Trial.Bytes, s.Clock, s.Msat, s.Paid, s.Again, uint64(len(s.Lots))} {
		b = binary.AppendUvarint(b, n)
	}
	for _, l := range s.Lots {
		for _, n := range []uint64{uint64(l.Price.Unit), l.Price.Interval, l.Price.Amount, l.Price.History, l.credit.hi, l.credit.lo} {
			b = binary.AppendUvarint(b, n)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(s.Delivered)))
	b = binary.AppendUvarint(b, uint64(s.Last))
	at := uint64(0)
	for _, r := range s.Delivered {
		b = binary.AppendUvarint(b, r.From-at)
		b = binary.AppendUvarint(b, r.To-r.From)
		at = r.To
	}
	return b
}

// Parse reads what Append wrote, all of b.
func Parse(b []byte) (s State, err error) {
	if len(b) == 0 || b[0] != stateVersion {
		return s, fmt.Errorf("%w: version", ErrState)
	}
	b = b[1:]
	bad := false
	next := func(most uint64) uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > most {
			bad, b = true, nil
			return 0
		}
		b = b[size:]
		return n
	}
	const any64 = ^uint64(0)
	flags := next(7)
	s.Owned, s.Begun, s.Tried = flags&1 != 0, flags&2 != 0, flags&4 != 0
	s.From, s.Start = next(MaxNumber), next(MaxNumber)
	s.Trial = Trial{next(MaxNumber), next(MaxNumber), next(MaxNumber)}
	s.Clock, s.Msat, s.Paid, s.Again = next(MaxNumber), next(MaxNumber), next(MaxNumber), next(MaxNumber)
	for range next(MaxLots) {
		var l Lot
		l.Price = Price{Unit(next(uint64(Once))), next(MaxNumber), next(MaxNumber), next(MaxNumber)}
		l.credit = money{next(any64), next(any64)}
		if bad || l.Price.Check() != nil || l.credit.isZero() {
			return State{}, fmt.Errorf("%w: credit", ErrState)
		}
		s.Lots = append(s.Lots, l)
	}
	count, last := next(MaxRanges), next(MaxRanges)
	at := uint64(0)
	for k := range count {
		from := at + next(MaxNumber)
		to := from + next(MaxNumber)
		if bad || from >= to || to > MaxNumber || k > 0 && from == at {
			return State{}, fmt.Errorf("%w: ranges", ErrState)
		}
		s.Delivered = append(s.Delivered, Range{from, to})
		at = to
	}
	if s.Last = int(last); bad || len(b) > 0 || last > 0 && last >= count {
		return State{}, fmt.Errorf("%w: %d bytes behind it", ErrState, len(b))
	}
	return s, nil
}
