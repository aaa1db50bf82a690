package ledger

import (
	"encoding/json"
	"fmt"
	"time"

	"dazaar-edge/storage/db"
)

// Loss is what is known of books that are gone.
type Loss struct {
	At  time.Time `json:"at"` // when it was noticed; what is newer is not lost
	Why string    `json:"why"`
}

// losses has a [Loss] under "newest".
const losses = "losses"

var newestLoss = []byte("newest")

// Lost returns the newest loss of books that was recorded; nil if none was.
func (l *Ledger) Lost() (x *Loss, err error) {
	err = l.db.View(func(tx *db.Tx) error {
		b, err := tx.Get(losses, newestLoss)
		if err != nil || b == nil {
			return err
		}
		if err := json.Unmarshal(b, &x); err != nil {
			return fmt.Errorf("%w: losses: %w", ErrCorrupt, err)
		}
		return nil
	})
	return x, err
}

// RecordLoss notes in a new database that the books before are gone.
func RecordLoss(d *db.DB, x Loss) error {
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return d.Update(func(tx *db.Tx) error { return tx.Put(losses, newestLoss, b) })
}

// Restore notes an invoice of books that are gone, of which its buyer has the seller's
// signature: it is open, until its wallet is asked. It fails with [ErrUnknown] if no loss
// was recorded after the invoice was made, and with [ErrDuplicate] if it is known.
func (l *Ledger) Restore(r Row) error {
	x, err := l.Lost()
	if err != nil {
		return err
	}
	if x == nil || x.At.Year() > 2000 && !r.Made.Before(x.At) { // else the clock was not set
		return fmt.Errorf("%w: %x, and no books were lost since it was made", ErrUnknown, r.Hash)
	}
	r.Restored = true
	if err := l.Issue(r); err != nil {
		return err
	}
	return l.ChangeContract(r.Offer, r.Buyer, func(c *Contract) { c.Restored = true })
}
