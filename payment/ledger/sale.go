package ledger

import (
	"fmt"
	"sync"

	"dazaar-edge/payment/meter"
	"dazaar-edge/storage/db"
)

// Sale is one buyer's meter of one offer while somebody uses it. What blocks take
// is durable at the next checkpoint; what a payment adds is durable when it is
// there. All methods are safe for concurrent use.
type Sale struct {
	l     *Ledger
	key   saleKey
	users int // guarded by l.mu

	mu     sync.Mutex
	state  meter.State // guarded by mu, like all below
	number uint64      // of the newest record, durable or on its way
	dirty  bool        // state is ahead of that
	riding bool        // and that is a mark which is not yet durable
	marked bool        // there is a mark
}

// Sale returns a buyer's meter of an offer, to be closed. One that never was
// has no credit.
func (l *Ledger) Sale(offer string, buyer [32]byte) (s *Sale, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, err = l.sale(offer, buyer); err != nil {
		return nil, err
	}
	l.sales[s.key] = s
	s.users++
	return s, nil
}

// sale returns the sale that is in use, or reads it. mu is held, and no transaction is
// open.
func (l *Ledger) sale(offer string, buyer [32]byte) (*Sale, error) {
	key := saleKey{offer, buyer}
	if s := l.sales[key]; s != nil {
		return s, nil
	}
	s := &Sale{l: l, key: key}
	var r record
	err := l.db.View(func(tx *db.Tx) error {
		b, err := tx.Get(meters(offer), buyer[:])
		if err == nil && b != nil {
			r, err = parseRecord(b)
		}
		return err
	})
	if err != nil {
		return s, fmt.Errorf("meter of %x: %w", buyer, err)
	}
	if m := l.offers[offer].Marks; m != nil {
		if b := m.Mark(string(buyer[:])); b != nil {
			// A damaged mark is one that is not there: the database is behind by a
			// checkpoint at most.
			if ride, err := parseRecord(b); err == nil && ride.number > r.number {
				r, s.marked = ride, true
			}
		}
	}
	s.state, s.number = r.state, r.number
	if !s.state.Timed() {
		s.state.Advance(l.clock()) // nothing runs; what is bought next runs from now on
	}
	return s, nil
}

// next returns the record to write, as things stand. Its number is above that of
// every record with less in it.
func (s *Sale) next() record {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	return record{s.number, s.state.Clone()}
}

// apply takes over what a durable payment does.
func (s *Sale) apply(credit func(*meter.State) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Blocks may have been charged meanwhile: that is for the next record.
	credit(&s.state) //nolint:errcheck // it went into the record, and lots only get fewer
}

func (s *Sale) lots() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.state.Lots)
}

// State returns a copy of the meter, as it is now.
func (s *Sale) State() meter.State {
	s.Advance()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Clone()
}

// Admit is [meter.State.Admit].
func (s *Sale) Admit(i uint64, w meter.Weight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := s.state.Admit(i, w)
	s.dirty = s.dirty || ok
	return ok
}

// Covers tells whether block i would be admitted now.
func (s *Sale) Covers(i uint64, w meter.Weight) bool {
	st := s.State()
	return st.Admit(i, w)
}

// Advance takes what passed from credit that runs by the clock, and tells whether
// there is any.
func (s *Sale) Advance() bool {
	now := s.l.Clock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.state.Timed() {
		return false
	}
	s.state.Advance(now)
	s.dirty = true
	return true
}

// Dry tells whether nothing is left.
func (s *Sale) Dry() bool {
	s.Advance()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Dry()
}

// Change changes the meter and makes it durable, or leaves it as it was: for a
// trial, or where a purchase begins.
func (s *Sale) Change(f func(*meter.State)) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	r := record{s.number, s.state.Clone()}
	f(&r.state)
	if err := s.l.put(s.key.offer, map[*Sale]record{s: r}); err != nil {
		return err
	}
	s.state, s.dirty, s.riding = r.state, false, false
	return nil
}

// put writes records of an offer. mu is held.
func (l *Ledger) put(offer string, records map[*Sale]record) error {
	return l.update(func(tx *db.Tx) error {
		for s, r := range records {
			if err := tx.Put(meters(offer), s.key.buyer[:], r.encode()); err != nil {
				return err
			}
		}
		return nil
	})
}

// Ride is called before each commit of an offer's log, with what sets a mark: it
// notes what was charged. What finds no room there goes to the database.
func (l *Ledger) Ride(offer string, set func(key string, value []byte) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := map[*Sale]record{}
	for _, s := range l.sales {
		if s.key.offer != offer {
			continue
		}
		s.mu.Lock()
		if s.dirty {
			s.number++
			r := record{s.number, s.state.Clone()}
			b := r.encode()
			if len(b) > maxMark || set(string(s.key.buyer[:]), b) != nil {
				rest[s] = r
			} else {
				s.riding, s.marked = true, true
			}
			s.dirty = false
		}
		s.mu.Unlock()
	}
	if len(rest) == 0 {
		return nil
	}
	err := l.put(offer, rest)
	if err != nil {
		for s := range rest {
			s.mu.Lock()
			s.dirty = true
			s.mu.Unlock()
		}
	}
	return err
}

// Landed says whether the commit after Ride succeeded.
func (l *Ledger) Landed(offer string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.sales {
		if s.key.offer == offer {
			s.mu.Lock()
			s.dirty = s.dirty || s.riding && err != nil
			s.riding = false
			s.mu.Unlock()
		}
	}
}

// checkpoint makes durable, in the database, what was charged. l.mu is held.
func (s *Sale) checkpoint() error {
	s.mu.Lock()
	if !s.dirty && !s.marked {
		s.mu.Unlock()
		return nil
	}
	s.number++
	r := record{s.number, s.state.Clone()}
	s.dirty, s.riding = false, false
	s.mu.Unlock() // the disk may be slow, and blocks are passed meanwhile
	err := s.l.put(s.key.offer, map[*Sale]record{s: r})
	if err != nil {
		s.mu.Lock()
		s.dirty = true
		s.mu.Unlock()
	}
	return err
}

// Close ends the use of the sale. The last user's makes it durable in the database
// and forgets what is in memory; nobody charges it any more.
func (s *Sale) Close() error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.users--; s.users > 0 {
		return nil
	}
	delete(s.l.sales, s.key)
	err := s.checkpoint()
	if m := s.l.offers[s.key.offer].Marks; s.marked && m != nil && err == nil {
		m.RemoveMark(string(s.key.buyer[:]))
	}
	return err
}
