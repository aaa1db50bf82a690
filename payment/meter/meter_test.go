package meter

import (
	"flag"
	"math/big"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

var steps = flag.Int("steps", 200_000, "how many random steps the meter is compared with its model")

// model is the meter as one would write it with rational numbers and sets.
type model struct {
	from     uint64
	start    uint64
	prices   []Price
	credit   []*big.Rat // msat
	owned    bool
	trial    Trial
	sent     [2000]bool
	paid, in uint64 // bytes paid for, bytes sent again
}

func (m *model) pay(p Price, msat int64) {
	k := slices.Index(m.prices, p)
	if k < 0 {
		m.prices, m.credit, k = append(m.prices, p), append(m.credit, new(big.Rat)), len(m.prices)
	}
	m.credit[k].Add(m.credit[k], big.NewRat(msat, 1))
	if p.Unit == Once && m.credit[k].Cmp(big.NewRat(int64(p.Amount), 1)) >= 0 {
		m.owned = true
		m.credit[k].Sub(m.credit[k], big.NewRat(int64(p.Amount), 1))
	}
	m.tidy()
}

func (m *model) tidy() {
	for k := len(m.prices) - 1; k >= 0; k-- {
		if m.credit[k].Sign() == 0 {
			m.prices, m.credit = slices.Delete(m.prices, k, k+1), slices.Delete(m.credit, k, k+1)
		}
	}
}

// units is how many whole units a lot pays at a rate.
func (m *model) units(k int, rate uint64) uint64 {
	q := new(big.Rat).Mul(m.credit[k], big.NewRat(int64(m.prices[k].Interval), int64(rate)))
	n := new(big.Int).Quo(q.Num(), q.Denom())
	if n.Cmp(big.NewInt(MaxNumber)) > 0 {
		return MaxNumber
	}
	return n.Uint64()
}

func (m *model) charge(i uint64, w Weight) bool {
	if m.owned && i >= m.from {
		return true
	}
	if m.trial.Bytes > 0 && i >= m.trial.From && w.Span <= m.trial.Span && w.Bytes <= m.trial.Bytes {
		m.trial.Span -= w.Span
		m.trial.Bytes -= w.Bytes
		return true
	}
	if i < m.from {
		return false
	}
	for _, p := range m.prices { // the kinds of credit, the oldest first
		if p.Unit == Wall {
			for k, q := range m.prices {
				if q.Unit == Wall && m.units(k, q.Amount) > 0 {
					return true
				}
			}
		}
		if p.Unit == Wall || p.Unit == Once {
			continue
		}
		need := map[Unit]uint64{Readings: w.Readings, Bytes: w.Bytes, Time: w.Span}[p.Unit]
		left := make([]*big.Rat, len(m.credit))
		for k, q := range m.prices {
			left[k] = m.credit[k]
			rate := q.Amount
			if i < m.start {
				rate = q.History
			}
			if q.Unit != p.Unit || need == 0 {
				continue
			}
			n := need
			if rate > 0 {
				n = min(n, m.units(k, rate))
			}
			need -= n
			left[k] = new(big.Rat).Sub(left[k], new(big.Rat).Mul(big.NewRat(int64(n), 1), big.NewRat(int64(rate), int64(q.Interval))))
		}
		if need == 0 {
			m.credit = left
			m.tidy()
			return true
		}
	}
	return false
}

func (m *model) admit(i uint64, w Weight) bool {
	if m.sent[i] && m.in+w.Bytes <= m.paid {
		m.in += w.Bytes
		return true
	}
	if !m.charge(i, w) {
		return false
	}
	m.paid += w.Bytes
	m.sent[i] = true
	if r := m.ranges(); len(r) > MaxRanges {
		r = slices.DeleteFunc(r, func(x Range) bool { return x.From <= i && i < x.To })
		least := slices.MinFunc(r, func(a, b Range) int { return int(a.To-a.From) - int(b.To-b.From) })
		for k := least.From; k < least.To; k++ {
			m.sent[k] = false
		}
	}
	return true
}

func (m *model) ranges() (out []Range) {
	for i, s := range m.sent {
		if n := len(out); s && n > 0 && out[n-1].To == uint64(i) {
			out[n-1].To++
		} else if s {
			out = append(out, Range{uint64(i), uint64(i) + 1})
		}
	}
	return out
}

func (m *model) elapse(ms uint64) {
	for k, p := range m.prices {
		if p.Unit != Wall || ms == 0 {
			continue
		}
		n := min(ms, m.units(k, p.Amount))
		m.credit[k] = new(big.Rat).Sub(m.credit[k], new(big.Rat).Mul(big.NewRat(int64(n), 1), big.NewRat(int64(p.Amount), int64(p.Interval))))
		if ms -= n; ms > 0 {
			m.credit[k] = new(big.Rat)
		}
	}
	m.tidy()
}

// TestModel compares the meter with the model: payments at prices that change,
// downloads in order, of every second block and here and there, again and again,
// trials, purchases of the whole.
func TestModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	number := func(most int64) uint64 { // of every size
		return 1 + rng.Uint64N(1<<rng.IntN(1+int(big.NewInt(most).BitLen()-1)))
	}
	for done := 0; done < *steps; {
		var s State
		m := &model{}
		if rng.IntN(4) > 0 {
			from := rng.Uint64N(200)
			s.Begin(from, from+rng.Uint64N(200))
			s.Begin(7, 8) // once
			m.from, m.start = s.From, s.Start
		}
		clock := rng.Uint64N(100)
		s.Advance(clock)
		if rng.IntN(3) == 0 {
			s.Trial = Trial{From: rng.Uint64N(500), Span: number(60_000), Bytes: number(64 << 10)}
			m.trial = s.Trial
		}
		var prices []Price
		for range 1 + rng.IntN(3) {
			p := Price{Unit: Unit(1 + rng.IntN(4)), Interval: number(1 << 30), Amount: number(1 << 30), History: number(1 << 30)}
			if rng.IntN(4) == 0 {
				p.History = 0
			}
			if rng.IntN(10) == 0 {
				p.Unit, p.Interval = Once, 1
			}
			prices = append(prices, p)
		}
		next, stride := uint64(0), uint64(1)
		for range 1 + rng.IntN(3000) {
			done++
			switch rng.IntN(40) {
			case 0:
				p, msat := prices[rng.IntN(len(prices))], number(1<<40)
				if err := s.Credit(p, msat); err != nil {
					t.Fatal(err)
				}
				m.pay(p, int64(msat))
			case 1:
				ms := number(1 << 30)
				clock += ms
				s.Advance(clock)
				s.Advance(clock - 1) // stands still
				m.elapse(ms)
			case 2:
				next, stride = rng.Uint64N(2000), 1+rng.Uint64N(3)
			default:
				w := Weight{Readings: rng.Uint64N(20), Span: rng.Uint64N(20_000), Bytes: number(1 << 16)}
				if rng.IntN(10) == 0 {
					w = Weight{Bytes: 100} // an entry
				}
				got, want := s.Admit(next, w), m.admit(next, w)
				if got != want {
					t.Fatalf("step %d: block %d of %+v: %v, the model says %v", done, next, w, got, want)
				}
				if got {
					next = (next + stride) % 2000
				}
			}
			if len(s.Lots) != len(m.prices) || s.Owned != m.owned || s.Trial != m.trial || s.Paid != m.paid || s.Again != m.in {
				t.Fatalf("step %d: %+v\nis %+v", done, s, m)
			}
			for k, l := range s.Lots {
				if l.Price != m.prices[k] || l.Units() != m.units(k, l.Price.Amount) {
					t.Fatalf("step %d: lot %d is %+v, %s msat in the model", done, k, l, m.credit[k])
				}
				whole := new(big.Rat).Mul(m.credit[k], big.NewRat(int64(l.Price.Interval), 1))
				have := new(big.Int).Lsh(new(big.Int).SetUint64(l.credit.hi), 64)
				if have.Add(have, new(big.Int).SetUint64(l.credit.lo)); !whole.IsInt() || whole.Num().Cmp(have) != 0 {
					t.Fatalf("step %d: lot %d holds %s, %s in the model", done, k, have, whole)
				}
			}
		}
		if again, err := Parse(s.Append(nil)); err != nil || !reflect.DeepEqual(again, s) {
			t.Fatalf("%+v\ncomes back as %+v, %v", s, again, err)
		}
		if want := m.ranges(); len(s.Delivered)+len(want) > 0 && !reflect.DeepEqual(s.Delivered, want) {
			t.Fatalf("delivered %v, want %v", s.Delivered, want)
		}
	}
}

// FuzzParse reads any bytes as a state, which must survive.
func FuzzParse(f *testing.F) {
	var s State
	s.Credit(Price{Readings, 100, 1000, 500}, 12345) //nolint:errcheck // it is a price
	for i := range uint64(9) {
		s.Admit(i*i, Weight{Readings: 1, Bytes: 10})
	}
	f.Add(s.Append(nil))
	f.Add((&State{Owned: true, Trial: Trial{1, 2, 3}}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		again, err := Parse(s.Append(nil))
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("%+v\ncomes back as %+v, %v", s, again, err)
		}
		s.Admit(7, Weight{Readings: 1, Span: 1, Bytes: 1})
		s.Advance(s.Clock + 10)
	})
}
