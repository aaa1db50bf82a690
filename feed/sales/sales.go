// Package sales keeps in the database what must survive of an offer's sales.
//
// # Records
//
// In the bucket sales/OFFER, by the buyer's key: 01, then generation, fork,
// settled and signed as LE64; and under "epoch": LE64 number, 16 bytes that name
// the log, LE64 length, tree hash.
package sales

import (
	"encoding/binary"
	"fmt"

	"dazaar-edge/feed"
	"dazaar-edge/storage"
	"dazaar-edge/storage/db"
)

// Table is the sales of one offer. It implements [feed.Sales] and is safe for
// concurrent use.
type Table struct {
	db     *db.DB
	bucket string
}

// New returns the sales of an offer.
func New(d *db.DB, offer string) Table { return Table{d, "sales/" + offer} }

// epochKey is no buyer's key: those have 32 bytes.
const epochKey = "epoch"

func encode(s feed.SaleState) []byte {
	b := []byte{1}
	for _, n := range []uint64{s.Generation, s.Fork, s.Settled, s.Signed} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

func parse(b []byte) (s feed.SaleState, err error) {
	if len(b) != 33 || b[0] != 1 {
		return s, fmt.Errorf("%w: sale of %d bytes", storage.ErrCorrupt, len(b))
	}
	for i, f := range []*uint64{&s.Generation, &s.Fork, &s.Settled, &s.Signed} {
		*f = binary.LittleEndian.Uint64(b[1+8*i:])
	}
	return s, nil
}

// Load implements [feed.Sales].
func (d Table) Load(buyer [32]byte) (s feed.SaleState, ok bool, err error) {
	err = d.db.View(func(tx *db.Tx) error {
		v, err := tx.Get(d.bucket, buyer[:])
		if err != nil || v == nil {
			return err
		}
		ok = true
		s, err = parse(v)
		return err
	})
	return s, ok, err
}

// Save implements [feed.Sales].
func (d Table) Save(states map[[32]byte]feed.SaleState) error {
	return d.db.Update(func(tx *db.Tx) error {
		for buyer, s := range states {
			if err := tx.Put(d.bucket, buyer[:], encode(s)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Each implements [feed.Sales]. Sales that are damaged are passed by.
func (d Table) Each(f func([32]byte, feed.SaleState) bool) error {
	return d.db.View(func(tx *db.Tx) error {
		tx.Each(d.bucket, func(key, value []byte, err error) bool {
			if len(key) != 32 || err != nil {
				return true
			}
			s, err := parse(value)
			return err != nil || f([32]byte(key), s)
		})
		return nil
	})
}

// Epoch implements [feed.Sales].
func (d Table) Epoch() (e feed.Epoch, err error) {
	err = d.db.View(func(tx *db.Tx) error {
		v, err := tx.Get(d.bucket, []byte(epochKey))
		if err != nil || len(v) != 64 {
			return err
		}
		e.Number, e.Length = binary.LittleEndian.Uint64(v), binary.LittleEndian.Uint64(v[24:])
		copy(e.Log[:], v[8:])
		copy(e.TreeHash[:], v[32:])
		return nil
	})
	return e, err
}

// SetEpoch implements [feed.Sales].
func (d Table) SetEpoch(e feed.Epoch) error {
	return d.db.Update(func(tx *db.Tx) error {
		v := binary.LittleEndian.AppendUint64(nil, e.Number)
		v = append(v, e.Log[:]...)
		v = binary.LittleEndian.AppendUint64(v, e.Length)
		return tx.Put(d.bucket, []byte(epochKey), append(v, e.TreeHash[:]...))
	})
}
