package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/db"
)

// Contract is what else is kept of a sale.
type Contract struct {
	// Terms is the hash of the terms that the buyer accepted last, Sig its
	// signature; nil if it accepted none.
	Terms *jcs.Hex32 `json:"terms,omitempty"`
	Sig   jcs.Hex64  `json:"sig,omitzero"`
	// Revoked: the owner took the sale back.
	Revoked bool `json:"revoked,omitempty"`
	// Restored: credit came back after the books were lost, and what was delivered of it
	// before is not charged yet.
	Restored bool `json:"restored,omitempty"`
	// Burnable: each card that the sale was served under said that its keys may be burned.
	Burnable bool `json:"burnable,omitempty"`
}

// Burned is a feed key that was made worthless.
type Burned struct {
	FeedKey, Signer, Seed [32]byte
	At                    time.Time // zero while no clock can be trusted
}

func contracts(offer string) string { return "contract/" + offer }
func burned(offer string) string    { return "burned/" + offer }

func getContract(tx *db.Tx, offer string, buyer []byte) (c Contract, err error) {
	b, err := tx.Get(contracts(offer), buyer)
	if err != nil || b == nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%w: contract of %x: %w", ErrCorrupt, buyer, err)
	}
	return c, nil
}

// Contract returns what is kept of a sale; the zero value if nothing is.
func (l *Ledger) Contract(offer string, buyer [32]byte) (c Contract, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		c, err = getContract(tx, offer, buyer[:])
		return err
	})
	return c, err
}

// ChangeContract changes it, durably.
func (l *Ledger) ChangeContract(offer string, buyer [32]byte, f func(*Contract)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.update(func(tx *db.Tx) error {
		c, err := getContract(tx, offer, buyer[:])
		if err != nil {
			return err
		}
		f(&c)
		b, err := json.Marshal(&c)
		if err != nil {
			return err
		}
		return tx.Put(contracts(offer), buyer[:], b)
	})
}

// Burn notes that feed keys of an offer are worthless, before anybody hears of it. Those that
// were noted before keep their time, if they had one.
func (l *Ledger) Burn(offer string, all []Burned) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.update(func(tx *db.Tx) error {
		for _, x := range all {
			value, err := tx.Get(burned(offer), x.FeedKey[:])
			if err != nil {
				return err
			}
			if len(value) >= 72 && binary.LittleEndian.Uint64(value[64:]) != 0 {
				continue
			}
			at := uint64(0)
			if !x.At.IsZero() {
				at = uint64(x.At.Unix())
			}
			value = append(append([]byte(nil), x.Signer[:]...), x.Seed[:]...)
			if err := tx.Put(burned(offer), x.FeedKey[:], binary.LittleEndian.AppendUint64(value, at)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Burned returns the feed keys of an offer that are worthless, in the order of their times.
func (l *Ledger) Burned(offer string) (out []Burned, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		tx.Each(burned(offer), func(key, value []byte, err error) bool {
			if err != nil || len(key) != 32 || len(value) < 64 {
				return true
			}
			b := Burned{FeedKey: [32]byte(key), Signer: [32]byte(value), Seed: [32]byte(value[32:])}
			if len(value) >= 72 {
				if at := int64(binary.LittleEndian.Uint64(value[64:])); at > 0 {
					b.At = time.Unix(at, 0)
				}
			}
			out = append(out, b)
			return true
		})
		return nil
	})
	slices.SortStableFunc(out, func(a, b Burned) int { return a.At.Compare(b.At) })
	return out, err
}

// Account is a sale as the owner sees it.
type Account struct {
	Buyer    [32]byte
	Meter    meter.State
	Contract Contract
}

// Accounts calls f for each sale of an offer that has a meter or a contract, in order of
// the buyers' keys, until it returns false.
func (l *Ledger) Accounts(offer string, f func(a Account, err error) bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var buyers [][32]byte
	if err := l.db.View(func(tx *db.Tx) error {
		for _, bucket := range []string{meters(offer), contracts(offer)} {
			tx.Each(bucket, func(key, _ []byte, _ error) bool {
				if len(key) == 32 {
					buyers = append(buyers, [32]byte(key))
				}
				return true
			})
		}
		return nil
	}); err != nil {
		return err
	}
	slices.SortFunc(buyers, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	buyers = slices.Compact(buyers)
	for _, buyer := range buyers {
		a := Account{Buyer: buyer}
		s, err := l.sale(offer, buyer)
		if err == nil {
			s.mu.Lock()
			a.Meter = s.state.Clone()
			s.mu.Unlock()
			a.Meter.Advance(l.clock())
			a.Contract, err = l.Contract(offer, buyer)
		}
		if !f(a, err) {
			break
		}
	}
	return nil
}

func cards(offer string) string { return "cards/" + offer }

// PutCard keeps a signed card of an offer. Older versions stay: invoices were made
// under them.
func (l *Ledger) PutCard(offer string, version uint64, signed []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.update(func(tx *db.Tx) error {
		return tx.Put(cards(offer), binary.BigEndian.AppendUint64(nil, version), signed)
	})
}

// Card returns the newest card of an offer that was kept; nil if there is none.
func (l *Ledger) Card(offer string) (signed []byte, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		tx.Each(cards(offer), func(_, value []byte, err error) bool {
			if err == nil {
				signed = append(signed[:0], value...)
			}
			return true
		})
		return nil
	})
	return signed, err
}
