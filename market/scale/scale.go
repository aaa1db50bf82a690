// Package scale weighs what a buyer gets, as its seller should: what is charged for can be
// held against what came.
//
// It weighs in the seller's favour where it cannot know: a block of no known encoding, or of
// a price that it cannot weigh, is worth anything; one that is fetched again, or was free, is
// worth as much as one that is paid for.
//
// Source: specs/lightning.md, B7; DESIGN.md, "Money".
package scale

import (
	"math/bits"
	"sync"

	"dazaar-edge/feed/block"
	"dazaar-edge/payment/meter"
)

// Scale weighs the blocks of a feed in the order in which they come. All methods are safe
// for concurrent use.
type Scale struct {
	mu    sync.Mutex
	price meter.Price // guarded by mu, like all below; Interval 0 is not known
	last  block.Stamp // of the newest pack
	began bool        // there was one
	units uint64
	most  uint64 // of one block
	blind bool   // something came that cannot be weighed
}

// Set says what the price is. What was weighed before is forgotten if it is another one.
func (s *Scale) Set(p meter.Price) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.price != p {
		s.price, s.units, s.most, s.blind = p, 0, 0, false
	}
}

// Add weighs a block that came.
func (s *Scale) Add(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := block.Guess(data)
	var b block.Block
	var err error
	if ok {
		b, err = e.Inspect(data)
	}
	units := uint64(0)
	switch {
	case s.price.Unit == meter.Bytes:
		units = uint64(len(data))
	case !ok || err != nil:
		s.blind = true
	case s.price.Unit == meter.Readings:
		units = b.Readings
	case b.Readings == 0: // entries take no time
	default:
		if s.began && s.last.Boot == b.Stamp.Boot && b.Stamp.Mono > s.last.Mono {
			units = uint64((b.Stamp.Mono - s.last.Mono).Milliseconds())
		}
		s.last, s.began = b.Stamp, true
	}
	s.units += units
	s.most = max(s.most, units)
}

// Worth returns what came since the price was set, in msat at the higher of its rates, and
// what one block may add to that unseen. known tells whether all of it could be weighed.
func (s *Scale) Worth() (msat, slack uint64, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blind || s.price.Interval == 0 || s.price.Unit == meter.Wall || s.price.Unit == meter.Once {
		return 0, 0, false
	}
	rate := max(s.price.Amount, s.price.History)
	value := func(units uint64) uint64 {
		hi, lo := bits.Mul64(units, rate)
		if hi >= s.price.Interval {
			return 1<<64 - 1
		}
		q, _ := bits.Div64(hi, lo, s.price.Interval)
		return q
	}
	return value(s.units), value(2*s.most) + 1, true
}
