package feed

import (
	"encoding/binary"
	"fmt"

	"dazaar-edge/storage"
	"dazaar-edge/storage/db"
)

// dbSales keeps the sales of one offer in the database.
type dbSales struct {
	db     *db.DB
	bucket string
}

// NewSales returns the sales of an offer, kept in a database.
func NewSales(d *db.DB, offer string) Sales { return dbSales{d, "sales/" + offer} }

// epochKey is no buyer's key: those have 32 bytes.
const epochKey = "epoch"

func encodeSale(s SaleState) []byte {
	b := []byte{1}
	for _, n := range []uint64{s.Generation, s.Fork, s.Settled, s.Signed} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

func parseSale(b []byte) (s SaleState, err error) {
	if len(b) != 33 || b[0] != 1 {
		return s, fmt.Errorf("%w: sale of %d bytes", storage.ErrCorrupt, len(b))
	}
	for i, f := range []*uint64{&s.Generation, &s.Fork, &s.Settled, &s.Signed} {
		*f = binary.LittleEndian.Uint64(b[1+8*i:])
	}
	return s, nil
}

// Load implements [Sales].
func (d dbSales) Load(buyer [32]byte) (s SaleState, ok bool, err error) {
	err = d.db.View(func(tx *db.Tx) error {
		v, err := tx.Get(d.bucket, buyer[:])
		if err != nil || v == nil {
			return err
		}
		ok = true
		s, err = parseSale(v)
		return err
	})
	return s, ok, err
}

// Save implements [Sales].
func (d dbSales) Save(states map[[32]byte]SaleState) error {
	return d.db.Update(func(tx *db.Tx) error {
		for buyer, s := range states {
			if err := tx.Put(d.bucket, buyer[:], encodeSale(s)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Each implements [Sales]. Sales that are damaged are passed by.
func (d dbSales) Each(f func([32]byte, SaleState) bool) error {
	return d.db.View(func(tx *db.Tx) error {
		tx.Each(d.bucket, func(key, value []byte, err error) bool {
			if len(key) != 32 || err != nil {
				return true
			}
			s, err := parseSale(value)
			return err != nil || f([32]byte(key), s)
		})
		return nil
	})
}

// Epoch implements [Sales].
func (d dbSales) Epoch() (e Epoch, err error) {
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

// SetEpoch implements [Sales].
func (d dbSales) SetEpoch(e Epoch) error {
	return d.db.Update(func(tx *db.Tx) error {
		v := binary.LittleEndian.AppendUint64(nil, e.Number)
		v = append(v, e.Log[:]...)
		v = binary.LittleEndian.AppendUint64(v, e.Length)
		return tx.Put(d.bucket, []byte(epochKey), append(v, e.TreeHash[:]...))
	})
}
