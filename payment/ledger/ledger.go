// Package ledger keeps what was asked for, what was paid, and what each sale has
// left.
//
// # Records
//
// In the bucket "invoices", by payment hash, a [Row] as JSON. In "meter/OFFER", by
// the buyer's key: LE64 number of the record, then the meter's state. In
// "contract/OFFER" a [Contract] as JSON. In "cursors", by the gateway's name, how
// far its events were taken, in "payees" a [Payee]. In "clock" for how many ms the books were open.
// In "losses" a [Loss].
//
// A payment is credited in one transaction with its row and the cursor: once,
// however often it is told of. What blocks take changes often: such records ride on
// the commits of the offer's log ([Marks]), if they are small, and the one with the
// higher number counts.
//
// Source: DESIGN.md, "Storage" and "Money"; specs/lightning.md, S1 to S17.
package ledger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/db"
)

// Errors that callers tell apart.
var (
	// ErrUnknown says that a hash is not of an invoice of ours.
	ErrUnknown = errors.New("ledger: no invoice of ours has this hash")
	// ErrDuplicate says that there is an invoice with this hash already.
	ErrDuplicate = errors.New("ledger: there is an invoice with this hash")
	// ErrOffer says that the log of a payment's offer is not open: it is credited
	// when it is.
	ErrOffer = errors.New("ledger: this offer is not open")
	// ErrCorrupt says that a record is not as it was written.
	ErrCorrupt = errors.New("ledger: damaged")
)

// State is how a row stands.
type State string

// States of a row. A row that expired may still be paid.
const (
	Open    State = "open"
	Settled State = "settled"
	Expired State = "expired"
)

// Row is an invoice. What is bought for how much is that of the day it was made.
type Row struct {
	Hash    jcs.Hex32   `json:"hash"`
	Gateway string      `json:"gateway"`
	Handle  string      `json:"handle,omitempty"` // what the gateway wants to see with the hash
	Offer   string      `json:"offer"`
	Buyer   jcs.Hex32   `json:"buyer"`
	Request string      `json:"request"` // BOLT 11
	Msat    uint64      `json:"msat,string"`
	Price   meter.Price `json:"price"`
	// History is how much from before the first payment is included.
	History History    `json:"history"`
	Card    uint64     `json:"card"` // version
	Terms   *jcs.Hex32 `json:"terms"`
	Made    time.Time  `json:"made"`
	Expires time.Time  `json:"expires"`
	State   State      `json:"state"`
	// Paid is what came, and SettledAt when this side saw it.
	Paid      uint64     `json:"paid,string,omitempty"`
	SettledAt *time.Time `json:"settledAt,omitempty"`
	// Restored: the books that had it were lost, and its buyer showed it.
	Restored bool `json:"restored,omitempty"`
}

// History is a duration in ms, or [All].
type History int64

// All is everything there is.
const All History = -1

const (
	rows    = "invoices"
	cursors = "cursors"
	clocks  = "clock"
)

func meters(offer string) string { return "meter/" + offer }

// Ledger is the books of a device. All methods are safe for concurrent use.
type Ledger struct {
	db   *db.DB
	mono func() time.Duration

	// mu is held while a transaction runs, and then what it changed is.
	mu     sync.Mutex
	sales  map[saleKey]*Sale // guarded by mu, like all below
	offers map[string]Offer
	base   uint64        // ms that the books were open before since
	since  time.Duration // by mono
	noted  time.Duration // when the clock was noted last, by mono
}

type saleKey struct {
	offer string
	buyer [32]byte
}

// Config says which books. DB is required.
type Config struct {
	DB *db.DB
	// Mono is a monotonic clock; nil is the process's.
	Mono func() time.Duration
}

// Offer is what the books know of an offer whose log is open.
type Offer struct {
	// Marks keep what changes often; nil leaves all to the database.
	Marks Marks
	// Begin returns the first block that a first payment includes now, and the first one
	// at the live price. The invoice was made some time ago; with then, that is the time
	// that counts. It must not wait for a commit.
	Begin func(h History, made time.Time, then bool) (from, start uint64)
}

// Marks are small values that become durable with the commits of a log.
type Marks interface {
	// Mark returns a value; nil if there is none.
	Mark(key string) []byte
	RemoveMark(key string)
}

// Limits of a mark, in bytes.
const maxMark = 128

// New returns the books in a database.
func New(cfg Config) (*Ledger, error) {
	l := &Ledger{db: cfg.DB, mono: cfg.Mono, sales: map[saleKey]*Sale{}, offers: map[string]Offer{}}
	if l.mono == nil {
		start := time.Now()
		l.mono = func() time.Duration { return time.Since(start) }
	}
	l.since = l.mono()
	l.noted = l.since
	err := l.db.View(func(tx *db.Tx) error {
		b, err := tx.Get(clocks, []byte("ms"))
		if err == nil && len(b) == 8 {
			l.base = binary.LittleEndian.Uint64(b)
		}
		return err
	})
	return l, err
}

// Register says that an offer's log is open, before any sale of it is used.
func (l *Ledger) Register(name string, o Offer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.offers[name] = o
}

// Clock returns for how many ms the books have been open, ever; after a crash it
// may be behind by up to an hour.
func (l *Ledger) Clock() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clock()
}

// clock is Clock with mu held.
func (l *Ledger) clock() uint64 { return l.base + uint64((l.mono() - l.since).Milliseconds()) }

// update runs a transaction, which notes the clock, too. mu is held.
func (l *Ledger) update(f func(tx *db.Tx) error) error {
	now := l.mono()
	err := l.db.Update(func(tx *db.Tx) error {
		if err := tx.Put(clocks, []byte("ms"), binary.LittleEndian.AppendUint64(nil, l.clock())); err != nil {
			return err
		}
		return f(tx)
	})
	if err == nil {
		l.noted = now
	}
	return err
}

// Tick notes the clock, if that was last done this long ago. It is to be called every
// hour, and at the end.
func (l *Ledger) Tick(ago time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mono()-l.noted < ago {
		return nil
	}
	return l.update(func(*db.Tx) error { return nil })
}

func getRow(tx *db.Tx, hash []byte) (r Row, ok bool, err error) {
	b, err := tx.Get(rows, hash)
	if err != nil || b == nil {
		return r, false, err
	}
	if r, err = parseRow(b); err != nil {
		return r, false, fmt.Errorf("invoice %x: %w", hash, err)
	}
	return r, true, nil
}

func parseRow(b []byte) (r Row, err error) {
	if err := json.Unmarshal(b, &r); err != nil {
		return Row{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if err := r.Price.Check(); err != nil {
		return Row{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return r, nil
}

func putRow(tx *db.Tx, r *Row) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return tx.Put(rows, r.Hash[:], b)
}

// Issue notes an invoice before the buyer hears of it.
func (l *Ledger) Issue(r Row) error {
	if err := r.Price.Check(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.State, r.Paid, r.SettledAt = Open, 0, nil
	s, err := l.sale(r.Offer, r.Buyer)
	if err != nil {
		return err
	}
	return l.update(func(tx *db.Tx) error {
		if s.lots() >= meter.MaxLots/2 { // what is still open finds room, too
			return fmt.Errorf("%w: buyer %x", meter.ErrLots, r.Buyer[:4])
		}
		if b, err := tx.Get(rows, r.Hash[:]); err != nil || b != nil {
			return errors.Join(err, fmt.Errorf("%w: %x", ErrDuplicate, r.Hash))
		}
		return putRow(tx, &r)
	})
}

// Row returns an invoice. The error wraps [ErrUnknown] if it is none of ours.
func (l *Ledger) Row(hash [32]byte) (r Row, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		var ok bool
		if r, ok, err = getRow(tx, hash[:]); err == nil && !ok {
			err = fmt.Errorf("%w: %x", ErrUnknown, hash)
		}
		return err
	})
	return r, err
}

// Rows calls f for each invoice, in order of the hashes, until it returns false. A
// damaged one is passed with its error.
func (l *Ledger) Rows(f func(r Row, err error) bool) error {
	return l.db.View(func(tx *db.Tx) error {
		tx.Each(rows, func(_, value []byte, err error) bool {
			var r Row
			if err == nil {
				r, err = parseRow(value)
			}
			return f(r, err)
		})
		return nil
	})
}

// Expire notes that nothing came for an invoice.
func (l *Ledger) Expire(hash [32]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.update(func(tx *db.Tx) error {
		r, ok, err := getRow(tx, hash[:])
		if err != nil || !ok || r.State != Open {
			return err
		}
		r.State = Expired
		return putRow(tx, &r)
	})
}

// Prune forgets all but this many of the invoices that nobody paid, those first that
// ended first.
func (l *Ledger) Prune(keep int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	type gone struct {
		hash jcs.Hex32
		at   time.Time
	}
	var all []gone
	if err := l.db.View(func(tx *db.Tx) error {
		tx.Each(rows, func(_, value []byte, err error) bool {
			if err == nil {
				if r, err := parseRow(value); err == nil && r.State == Expired {
					all = append(all, gone{r.Hash, r.Expires})
				}
			}
			return true
		})
		return nil
	}); err != nil || len(all) <= keep {
		return err
	}
	slices.SortFunc(all, func(a, b gone) int { return a.at.Compare(b.at) })
	return l.update(func(tx *db.Tx) error {
		for _, x := range all[:len(all)-keep] {
			if err := tx.Delete(rows, x.hash[:]); err != nil {
				return err
			}
		}
		return nil
	})
}

// Payment is what a gateway said was settled.
type Payment struct {
	Hash [32]byte
	Msat uint64 // what came, which may not be what was asked for
	At   time.Time
	// Gateway and Cursor are whose event this was and how far they were taken with
	// it; an empty Cursor moves nothing.
	Gateway, Cursor string
}

// Settle credits a payment to the sale that it was for, once. It tells whether it
// did: if not, it had been credited before. The cursor moves in either case, also
// when the error wraps [ErrUnknown] because the hash is none of ours: other programs
// may be paid by the same wallet; or [ErrOffer]: the row stays open, and is looked up
// when the offer is back.
func (l *Ledger) Settle(p Payment) (r Row, credited bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var after record
	var credit func(*meter.State) error
	s, absent, err := l.payee(p.Hash)
	if err != nil {
		return Row{}, false, err
	}
	unknown := false
	err = l.update(func(tx *db.Tx) error {
		credited, unknown = false, false
		if p.Cursor != "" {
			if err := tx.Put(cursors, []byte(p.Gateway), []byte(p.Cursor)); err != nil {
				return err
			}
		}
		var ok bool
		if r, ok, err = getRow(tx, p.Hash[:]); err != nil {
			return err
		} else if !ok {
			unknown = true
			return nil
		}
		if r.State == Settled || absent {
			return nil
		}
		at := p.At
		r.State, r.Paid, r.SettledAt = Settled, p.Msat, &at
		if err := putRow(tx, &r); err != nil {
			return err
		}
		credit = l.credit(r, p.Msat)
		after = s.next()
		if err := credit(&after.state); err != nil {
			return err
		}
		credited = true
		return tx.Put(meters(r.Offer), r.Buyer[:], after.encode())
	})
	if err != nil && credited && l.landed(r, after.number) {
		err = nil
	}
	switch {
	case err != nil:
		return Row{}, false, err
	case unknown:
		return Row{}, false, fmt.Errorf("%w: %x", ErrUnknown, p.Hash)
	case absent && r.State != Settled:
		return Row{}, false, fmt.Errorf("%w: %s, of invoice %x", ErrOffer, r.Offer, p.Hash)
	case credited:
		s.apply(credit)
	}
	return r, credited, nil
}

// payee returns the sale that an invoice was for, nil if it is none of ours; absent
// tells that its offer's log is not open. Nothing else is locked meanwhile: marks are
// the log's, and its commits may wait for the database. mu is held.
func (l *Ledger) payee(hash [32]byte) (s *Sale, absent bool, err error) {
	var r Row
	var ok bool
	err = l.db.View(func(tx *db.Tx) error {
		r, ok, err = getRow(tx, hash[:])
		return err
	})
	if err != nil || !ok {
		return nil, false, err
	}
	if _, open := l.offers[r.Offer]; !open {
		return nil, true, nil
	}
	s, err = l.sale(r.Offer, r.Buyer)
	return s, false, err
}

// credit returns what a payment for r does to a meter. mu is held.
func (l *Ledger) credit(r Row, msat uint64) func(*meter.State) error {
	now := l.clock()
	begin := func(*meter.State) {}
	if o := l.offers[r.Offer]; o.Begin != nil {
		from, start := o.Begin(r.History, r.Made, r.Restored)
		begin = func(s *meter.State) { s.Begin(from, start) }
	}
	return func(s *meter.State) error {
		s.Advance(now)
		begin(s)
		return s.Credit(r.Price, msat)
	}
}

// landed tells whether a transaction that failed left its record all the same: a
// sync may fail when the pages are written.
func (l *Ledger) landed(r Row, number uint64) (ok bool) {
	err := l.db.View(func(tx *db.Tx) error {
		b, err := tx.Get(meters(r.Offer), r.Buyer[:])
		if err != nil {
			return err
		}
		got, err := parseRecord(b)
		ok = err == nil && got.number == number
		return err
	})
	return ok && err == nil
}

// record is a sale's meter as it is kept.
type record struct {
	number uint64
	state  meter.State
}

func (r *record) encode() []byte {
	return r.state.Append(binary.LittleEndian.AppendUint64(nil, r.number))
}

func parseRecord(b []byte) (r record, err error) {
	if len(b) < 8 {
		return r, fmt.Errorf("%w: meter of %d bytes", ErrCorrupt, len(b))
	}
	r.number = binary.LittleEndian.Uint64(b)
	if r.state, err = meter.Parse(b[8:]); err != nil {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return r, err
}
