package ledger

import (
	"encoding/json"
	"errors"
	"fmt"

	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
)

// Payee is who signs the invoices of a gateway.
type Payee struct {
	Network string    `json:"network"`
	Key     jcs.Hex33 `json:"key"`
	// Floats: the service behind it signs with several keys.
	Floats bool `json:"floats,omitempty"`
	// Unbound: what the invoices say is up to the wallet.
	Unbound bool `json:"unbound,omitempty"`
}

// payees has a Payee by the gateway's name.
const payees = "payees"

// Payee returns who signed the invoices of a gateway so far; nil if it made none.
func (l *Ledger) Payee(gateway string) (p *Payee, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		b, err := tx.Get(payees, []byte(gateway))
		if err != nil || b == nil {
			return err
		}
		if err := json.Unmarshal(b, &p); err != nil {
			return fmt.Errorf("%w: payee of %s: %w", ErrCorrupt, gateway, err)
		}
		return nil
	})
	return p, err
}

// SetPayee notes who signs the invoices of a gateway from now on. If that is another one
// than before, what was known of the wallet's events is forgotten: they are numbered by
// each node for itself.
func (l *Ledger) SetPayee(gateway string, p Payee) error {
	old, err := l.Payee(gateway)
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, durable.ErrCorrupt) {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.update(func(tx *db.Tx) error {
		if old == nil || *old != p {
			if err := tx.Delete(cursors, []byte(gateway)); err != nil {
				return err
			}
		}
		return tx.Put(payees, []byte(gateway), b)
	})
}

// Cursor returns how far a gateway's events were taken.
func (l *Ledger) Cursor(gateway string) (cursor string, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		b, err := tx.Get(cursors, []byte(gateway))
		cursor = string(b)
		return err
	})
	return cursor, err
}
