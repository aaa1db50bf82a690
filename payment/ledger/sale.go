package ledger

import (
	"sync"

	"dazaar-edge/payment/meter"
	"dazaar-edge/storage/db"
)

// Sale is one buyer's meter of one offer while somebody uses it. What blocks take
// is durable at the next Checkpoint; what a payment adds is durable when it is
// there. All methods are safe for concurrent use.
type Sale struct {
	l     *Ledger
	key   saleKey
	users int // guarded by l.mu

	mu     sync.Mutex
	state  meter.State // guarded by mu, like all below
	number uint64      // of the record that is durable
	dirty  bool        // state is ahead of it
	served uint64      // bytes since then
}

// Sale returns a buyer's meter of an offer, to be closed. One that never was
// has no credit.
func (l *Ledger) Sale(offer string, buyer [32]byte) (s *Sale, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.db.View(func(tx *db.Tx) error {
		s, err = l.sale(tx, offer, buyer)
		return err
	})
	if err != nil {
		return nil, err
	}
	l.sales[s.key] = s
	s.users++
	return s, nil
}

// sale returns the sale that is in use, or reads it. mu is held.
func (l *Ledger) sale(tx *db.Tx, offer string, buyer [32]byte) (*Sale, error) {
	key := saleKey{offer, buyer}
	if s := l.sales[key]; s != nil {
		return s, nil
	}
	s := &Sale{l: l, key: key}
	b, err := tx.Get(meters(offer), buyer[:])
	if err != nil || b == nil {
		return s, err
	}
	r, err := parseRecord(b)
	s.state, s.number = r.state, r.number
	return s, err
}

// next returns the record to write, as things stand.
func (s *Sale) next() record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return record{s.number + 1, s.state.Clone()}
}

// saved notes that r, which has a payment that the state has not yet, is durable.
func (s *Sale) saved(r record, p meter.Price, msat uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Blocks may have been charged meanwhile: that is for the next record.
	s.state.Credit(p, msat) //nolint:errcheck // it went into r, and lots only get fewer
	s.number = r.number
}

func (s *Sale) lots() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.state.Lots)
}

// State returns a copy of the meter.
func (s *Sale) State() meter.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Clone()
}

// Admit is [meter.State.Admit].
func (s *Sale) Admit(i uint64, w meter.Weight) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ok := s.state.Admit(i, w)
	if ok {
		s.dirty = true
		s.served += w.Bytes
	}
	return ok
}

// Elapse is [meter.State.Elapse].
func (s *Sale) Elapse(ms uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Elapse(ms)
	s.dirty = true
}

// Served returns how many bytes were passed since the last checkpoint.
func (s *Sale) Served() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.served
}

// Change changes the meter and makes it durable, or leaves it as it was: for a
// trial, or where a purchase begins.
func (s *Sale) Change(f func(*meter.State)) error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := record{s.number + 1, s.state.Clone()}
	f(&r.state)
	if err := s.put(r); err != nil {
		return err
	}
	s.state, s.number, s.dirty, s.served = r.state, r.number, false, 0
	return nil
}

// Checkpoint makes durable what was charged.
func (s *Sale) Checkpoint() error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	s.mu.Lock()
	dirty, served, r := s.dirty, s.served, record{s.number + 1, s.state.Clone()}
	s.dirty, s.served = false, 0
	s.mu.Unlock() // the disk may be slow, and blocks are passed meanwhile
	if !dirty {
		return nil
	}
	err := s.put(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.dirty, s.served = true, s.served+served
		return err
	}
	s.number = r.number
	return nil
}

// put writes a record. l.mu is held.
func (s *Sale) put(r record) error {
	return s.l.db.Update(func(tx *db.Tx) error { return tx.Put(meters(s.key.offer), s.key.buyer[:], r.encode()) })
}

// Close checkpoints; the last user's forgets what is in memory.
func (s *Sale) Close() error {
	err := s.Checkpoint()
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(s.l.sales, s.key)
	}
	return err
}
