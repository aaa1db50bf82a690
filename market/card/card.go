// Package card is the signed description of an offer: who sells what, for how much.
//
// A card is JSON. Its signature, "sig", is the seller key's over "dazaar card\n" and
// the card without it in the form of RFC 8785. Fields that are not known are kept
// in what is signed, and ignored.
//
// A link is "dazaar:" and the seller key in z-base-32.
//
// Source: specs/exchange.md, "Card".
package card

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"time"

	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/jcs"
)

// MaxSize bounds a card in bytes: what one message of the exchange holds.
const MaxSize = 48 << 10

// Errors that callers tell apart.
var (
	// ErrCard says that something is no card, or an impossible one.
	ErrCard = errors.New("card: not a card")
	// ErrSignature says that a card is not signed by its seller, or is another's.
	ErrSignature = errors.New("card: the signature does not verify")
	// ErrOlder says that a newer card was seen.
	ErrOlder = errors.New("card: older than one that was seen")
)

// Card describes an offer. Decimals are strings.
type Card struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Homepage    string `json:"homepage,omitempty"`
	Contact     string `json:"contact,omitempty"`
	Provider    string `json:"provider,omitempty"`
	// SellerKey and ID are both the hex of the seller key.
	SellerKey string `json:"sellerKey"`
	ID        string `json:"id"`
	// Payment are the ways to pay; none is for nothing.
	Payment []Payment `json:"payment"`
	// Version increases with every change; Updated is when that was.
	Version uint64         `json:"version"`
	Updated time.Time      `json:"updated"`
	Network bolt11.Network `json:"network,omitempty"`
	// Payee is the hex of the key that signs the invoices; Payees are all of them, if
	// there are several. With none, nobody can say beforehand who is paid.
	Payee  string   `json:"payee,omitempty"`
	Payees []string `json:"payees,omitempty"`
	// Memo is [MemoSigned] if invoices need not say what they are for.
	Memo string `json:"memo,omitempty"`
	// Trial says what may be had before paying, History what of before.
	Trial    *Trial   `json:"trial,omitempty"`
	History  *History `json:"history,omitempty"`
	Burnable bool     `json:"burnable"`
	Terms    *Terms   `json:"terms,omitempty"`
	// Delay is how many seconds may pass from sensing to the buyer.
	Delay string `json:"delay,omitempty"`
	Feed  Feed   `json:"feed"`
	Place *Place `json:"place,omitempty"`
	// Relays pass on what is said where no direct way can be made: keys in hex, each with
	// "@" and HOST:PORT behind it where it is reached by TCP, too.
	Relays []string `json:"relays,omitempty"`
	Sig    string   `json:"sig,omitempty"`
}

// Payment is a way to pay: Amount of Currency for Interval of Unit.
type Payment struct {
	Method   string `json:"method"`   // lnd: an invoice, whoever makes it
	Currency string `json:"currency"` // LightningSats
	Unit     string `json:"unit"`
	Interval string `json:"interval"`
	Amount   string `json:"amount"`
	// Clock is "wall" if time passes by the seller's clock, from the payment on;
	// else it is sensed time.
	Clock string `json:"clock,omitempty"`
}

// MemoSigned says that only the seller's signature tells what an invoice is for: the
// wallet does not let it.
const MemoSigned = "signed"

// Trial is what may be had before paying.
type Trial struct {
	Seconds uint64 `json:"seconds"`
	Bytes   uint64 `json:"bytes"`
}

// History is what a purchase includes from before it: all, or so many seconds, at
// Amount for the interval of the price.
type History struct {
	All     bool   `json:"all,omitempty"`
	Seconds uint64 `json:"seconds,omitempty"`
	Amount  string `json:"amount,omitempty"`
}

// Terms are what a buyer must accept.
type Terms struct {
	SHA256 string `json:"sha256"`
}

// Feed says what comes.
type Feed struct {
	Encoding string  `json:"encoding"`
	Every    string  `json:"every,omitempty"` // seconds in a block
	First    uint64  `json:"first"`           // oldest block there is
	Schema   []Field `json:"schema,omitempty"`
}

// Field is one quantity.
type Field struct {
	Name     string `json:"name"`
	Unit     string `json:"unit,omitempty"`
	Sensor   string `json:"sensor,omitempty"`
	Accuracy string `json:"accuracy,omitempty"`
	Every    string `json:"every,omitempty"`
}

// Place is where it is sensed, in degrees.
type Place struct {
	Lat string `json:"lat"`
	Lon string `json:"lon"`
}

const signatureField = "sig"

// signable returns what is signed of the bytes of a card.
func signable(b []byte) ([]byte, error) {
	canonical, err := jcs.Transform(b)
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(canonical, &fields); err != nil {
		return nil, err
	}
	delete(fields, signatureField)
	if canonical, err = jcs.Marshal(fields); err != nil {
		return nil, err
	}
	return append([]byte("dazaar card\n"), canonical...), nil
}

// Sign returns the card as signed bytes. It sets the keys and the signature.
func (c *Card) Sign(seller ed25519.PrivateKey) ([]byte, error) {
	c.SellerKey = hex.EncodeToString(seller[ed25519.SeedSize:])
	c.ID, c.Sig = c.SellerKey, ""
	c.Updated = c.Updated.UTC().Truncate(time.Second)
	if err := c.check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	message, err := signable(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCard, err)
	}
	c.Sig = hex.EncodeToString(ed25519.Sign(seller, message))
	if b, err = jcs.Marshal(c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCard, err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrCard, len(b), MaxSize)
	}
	return b, nil
}

// Parse reads a card and checks its signature. If seller is not nil, it must be its
// card; if seen is not 0, it must not be older than that version.
func Parse(b []byte, seller *[32]byte, seen uint64) (*Card, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrCard, len(b), MaxSize)
	}
	message, err := signable(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCard, err)
	}
	var c Card
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCard, err)
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	key := c.Key()
	sig, err := hex.DecodeString(c.Sig)
	switch {
	case err != nil || !ed25519.Verify(key[:], message, sig):
		return nil, fmt.Errorf("%w: of %q", ErrSignature, c.Name)
	case seller != nil && key != *seller:
		return nil, fmt.Errorf("%w: it is of seller %x, and %x is wanted", ErrSignature, key, *seller)
	case c.Version < seen:
		return nil, fmt.Errorf("%w: version %d, and %d was", ErrOlder, c.Version, seen)
	}
	return &c, nil
}

// Key returns the seller key of a card that was read.
func (c *Card) Key() (key [32]byte) {
	b, _ := hex.DecodeString(c.SellerKey) // check saw to it
	copy(key[:], b)
	return key
}

// Pays tells whether invoices that a key signed pay the seller.
func (c *Card) Pays(payee [33]byte) bool {
	text := hex.EncodeToString(payee[:])
	return c.Payee == text || slices.Contains(c.Payees, text)
}

// SetPayees says which keys sign the invoices, the preferred one first.
func (c *Card) SetPayees(keys [][33]byte) {
	c.Payee, c.Payees = "", nil
	for _, key := range keys {
		c.Payees = append(c.Payees, hex.EncodeToString(key[:]))
	}
	if len(keys) > 0 {
		c.Payee = c.Payees[0]
	}
	if len(keys) < 2 {
		c.Payees = nil
	}
}

// check looks at what must fit together.
func (c *Card) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrCard}, args...)...)
	}
	isHex := func(s string, n int) bool {
		b, err := hex.DecodeString(s)
		return err == nil && len(b) == n
	}
	switch {
	case c.Name == "":
		return bad("it has no name")
	case !isHex(c.SellerKey, 32):
		return bad("sellerKey %q", c.SellerKey)
	case c.ID != c.SellerKey:
		return bad("id and sellerKey differ")
	case c.Version == 0:
		return bad("it has no version")
	case c.Payee != "" && !isHex(c.Payee, 33):
		return bad("payee %q", c.Payee)
	case c.Terms != nil && !isHex(c.Terms.SHA256, 32):
		return bad("terms %q", c.Terms.SHA256)
	}
	for _, p := range c.Payees {
		if !isHex(p, 33) {
			return bad("payees %q", p)
		}
	}
	for i := range c.Payment {
		if _, err := c.Price(i); err != nil {
			return fmt.Errorf("payment[%d]: %w", i, err)
		}
	}
	return nil
}

// units are the units of a price, each with the meter's and how many of those it is.
var units = [...]struct {
	name  string
	unit  meter.Unit
	count uint64
}{
	{"seconds", meter.Time, 1000}, {"minutes", meter.Time, 60_000}, {"hours", meter.Time, 3_600_000}, {"days", meter.Time, 86_400_000},
	{"readings", meter.Readings, 1}, {"bytes", meter.Bytes, 1}, {"kilobytes", meter.Bytes, 1000}, {"megabytes", meter.Bytes, 1_000_000}, {"once", meter.Once, 1},
}

// msatPerSat: amounts of a card are in satoshi.
const msatPerSat = 1000

// Price returns the i-th way to pay as the meter has it.
func (c *Card) Price(i int) (p meter.Price, err error) {
	w := c.Payment[i]
	bad := func(what, value string) error { return fmt.Errorf("%w: %s %q", ErrCard, what, value) }
	if w.Method != "lnd" {
		return p, bad("method", w.Method)
	}
	if w.Currency != "LightningSats" {
		return p, bad("currency", w.Currency)
	}
	for _, u := range units {
		if u.name != w.Unit {
			continue
		}
		n, err := strconv.ParseUint(w.Interval, 10, 53)
		if err != nil || n == 0 || n > meter.MaxNumber/u.count {
			return p, bad("interval", w.Interval)
		}
		p.Unit, p.Interval = u.unit, n*u.count
	}
	switch {
	case p.Unit == 0:
		return p, bad("unit", w.Unit)
	case w.Clock == "wall" && p.Unit == meter.Time:
		p.Unit = meter.Wall
	case w.Clock != "" && w.Clock != "sensed":
		return p, bad("clock", w.Clock)
	}
	if p.Amount, err = msat(w.Amount); err != nil {
		return p, bad("amount", w.Amount)
	}
	p.History = p.Amount
	if h := c.History; h != nil && h.Amount != "" {
		if p.History, err = msat(h.Amount); err != nil {
			return p, bad("history amount", h.Amount)
		}
	}
	if err := p.Check(); err != nil {
		return p, fmt.Errorf("%w: %w", ErrCard, err)
	}
	return p, nil
}

// Cost returns what n intervals of the price cost, in msat.
func (c *Card) Cost(n uint64) (uint64, error) {
	if len(c.Payment) == 0 {
		return 0, errors.New("it is free, and asks for money")
	}
	p, err := c.Price(0)
	if err != nil {
		return 0, err
	}
	if p.Unit == meter.Once {
		n = 1
	}
	hi, lo := bits.Mul64(n, p.Amount)
	if hi > 0 || lo > meter.MaxNumber {
		return 0, fmt.Errorf("%d steps of %d msat are too many", n, p.Amount)
	}
	return lo, nil
}

// msat reads a decimal number of satoshi with up to three places.
func msat(s string) (uint64, error) {
	whole, places := s, ""
	for i := range s {
		if s[i] == '.' {
			whole, places = s[:i], s[i+1:]
			if places == "" || len(places) > 3 {
				return 0, strconv.ErrSyntax
			}
			break
		}
	}
	n, err := strconv.ParseUint(whole, 10, 53)
	if err != nil || n > meter.MaxNumber/msatPerSat-1 {
		return 0, strconv.ErrRange
	}
	m := uint64(0)
	if places != "" {
		if m, err = strconv.ParseUint((places + "00")[:3], 10, 16); err != nil {
			return 0, err
		}
	}
	return n*msatPerSat + m, nil
}
