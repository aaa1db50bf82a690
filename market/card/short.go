package card

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	"dazaar-edge/payment/bolt11"
	"dazaar-edge/protocol/jcs"
)

// Short is what of a card fits a record of the network: it is kept under the seller's key,
// with the version as its number, and that record's signature is its own (specs/exchange.md,
// section on cards).
type Short struct {
	Version  uint64         `json:"v"`
	Name     string         `json:"name"`
	Unit     string         `json:"unit,omitempty"` // the price; without one it is free
	Interval string         `json:"interval,omitempty"`
	Amount   string         `json:"amount,omitempty"`
	Network  bolt11.Network `json:"network,omitempty"`
	Place    *Place         `json:"place,omitempty"`
	Every    string         `json:"every,omitempty"`
	SHA256   jcs.Hex32      `json:"sha256"` // of the full card's RFC 8785 form
}

// maxShort is the size of a short card at most, in bytes.
const maxShort = 1000

// NewShort returns the short form of a signed card, and the version of that.
func NewShort(signed []byte) (b []byte, version uint64, err error) {
	c, err := Parse(signed, nil, 0)
	if err != nil {
		return nil, 0, err
	}
	canonical, err := jcs.Transform(signed)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrCard, err)
	}
	s := Short{Version: c.Version, Name: c.Name, Network: c.Network, Place: c.Place, Every: c.Feed.Every, SHA256: sha256.Sum256(canonical)}
	if len(c.Payment) > 0 {
		p := c.Payment[0]
		s.Unit, s.Interval, s.Amount = p.Unit, p.Interval, p.Amount
	}
	if b, err = jcs.Marshal(s); err == nil && len(b) > maxShort {
		err = fmt.Errorf("%w: its short form has %d bytes, at most %d", ErrCard, len(b), maxShort)
	}
	return b, c.Version, err
}

// ParseShort reads a short card. What it says is true only if the record that it came in was
// signed by the seller.
func ParseShort(b []byte) (s Short, err error) {
	if len(b) > maxShort {
		return s, ErrCard
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%w: %w", ErrCard, err)
	}
	return s, nil
}
