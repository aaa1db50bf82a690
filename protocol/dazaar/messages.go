package dazaar

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/jcs"
)

// FeatureHandOver is the bit of Handshake.Features that says that HandOver follows.
const FeatureHandOver = 1

// Handshake opens a channel.
type Handshake struct {
	Version, Features uint64
	Agent             string
	// HandOver is the Noise handshake hash of the connection that the buyer leaves for
	// this one: only who has that one knows it, so that it is not for a second machine
	// with the same key. It is zero without FeatureHandOver.
	HandOver [64]byte
}

// Append appends uint version, uint features, string agent, and with FeatureHandOver a
// fixed64.
func (h Handshake) Append(b []byte) []byte {
	b = compact.AppendString(compact.AppendUint(compact.AppendUint(b, h.Version), h.Features), h.Agent)
	if h.Features&FeatureHandOver != 0 {
		b = append(b, h.HandOver[:]...)
	}
	return b
}

// ParseHandshake takes a handshake off b.
func ParseHandshake(b []byte) (h Handshake, rest []byte, err error) {
	if rest, err = compact.ParseUints(b, &h.Version, &h.Features); err != nil {
		return h, nil, err
	}
	h.Agent, rest, err = compact.ParseString(rest)
	if err == nil && h.Features&FeatureHandOver != 0 {
		h.HandOver, rest, err = compact.ParseFixed64(rest)
	}
	return h, rest, err
}

// OneTimeFeed tells a buyer which feed is its own.
type OneTimeFeed struct {
	Key              [32]byte
	Generation, Fork uint64
	Signature        [64]byte
}

// signable returns what the seller signs.
func (f *OneTimeFeed) signable(seller, buyer [32]byte) []byte {
	b := []byte("dazaar feed\n")
	b = append(append(append(b, seller[:]...), buyer[:]...), f.Key[:]...)
	return binary.LittleEndian.AppendUint64(b, f.Generation)
}

// Sign signs the feed for a buyer with the seller's key.
func (f *OneTimeFeed) Sign(seller ed25519.PrivateKey, buyer [32]byte) {
	f.Signature = [64]byte(ed25519.Sign(seller, f.signable(public(seller), buyer)))
}

// Verify checks the seller's signature; it fails with [ErrSignature].
func (f *OneTimeFeed) Verify(seller, buyer [32]byte) error {
	return verify("feed", seller, f.signable(seller, buyer), f.Signature)
}

// Append appends key, generation, fork and signature.
func (f *OneTimeFeed) Append(b []byte) []byte {
	b = compact.AppendUint(append(b, f.Key[:]...), f.Generation)
	return append(compact.AppendUint(b, f.Fork), f.Signature[:]...)
}

// ParseOneTimeFeed takes a feed off b.
func ParseOneTimeFeed(b []byte) (f OneTimeFeed, rest []byte, err error) {
	if f.Key, rest, err = compact.ParseFixed32(b); err != nil {
		return f, nil, err
	}
	if rest, err = compact.ParseUints(rest, &f.Generation, &f.Fork); err != nil {
		return f, nil, err
	}
	f.Signature, rest, err = compact.ParseFixed64(rest)
	return f, rest, err
}

// public returns the public key of a private one.
func public(key ed25519.PrivateKey) [32]byte { return [32]byte(key[ed25519.SeedSize:]) }

func verify(what string, key [32]byte, message []byte, sig [64]byte) error {
	if !ed25519.Verify(key[:], message, sig[:]) {
		return fmt.Errorf("%w: of the %s", ErrSignature, what)
	}
	return nil
}

// Valid says what a buyer has, and which blocks there are.
type Valid struct {
	// Type is time, bytes, readings, once, trial or free.
	Type string `json:"type"`
	// Remaining is ms of sensed time, bytes or readings; nil without an end.
	Remaining *int64 `json:"remaining"`
	// CreditMsat is a decimal number.
	CreditMsat string `json:"creditMsat"`
	// PaidMsat is what was ever credited, a decimal number: it tells a buyer that a
	// payment arrived. Ours; others may not say it.
	PaidMsat string `json:"paidMsat,omitempty"`
	First    uint64 `json:"first"`
	Length   uint64 `json:"length"`
}

// Codes of Invalid, and of an Invoice that is none.
const (
	CodePaymentRequired = "payment-required"
	CodeCreditEnded     = "credit-ended"
	CodeTerms           = "terms"
	CodeRevoked         = "revoked"
	CodeReplaced        = "replaced"
	CodeBusy            = "busy"
	CodeUnpayable       = "unpayable"
	CodeChargeLimit     = "charge-limit"
	CodeClosing         = "closing"
)

// Invalid says why there is no feed, or no more of it.
type Invalid struct {
	Error string `json:"error"`
	Code  string `json:"code"`
	// PaidMsat is as in [Valid], where something must be paid.
	PaidMsat string `json:"paidMsat,omitempty"`
}

// UserMessage is a message of the application.
type UserMessage struct {
	Name    string          `json:"name"`
	Message json.RawMessage `json:"message"`
}

// AcceptTerms is a buyer's signature of the terms.
type AcceptTerms struct {
	SHA256 jcs.Hex32 `json:"sha256"` // of the text
	Sig    jcs.Hex64 `json:"sig"`
}

func (a *AcceptTerms) signable(seller [32]byte) []byte {
	return append(append([]byte("dazaar terms\n"), seller[:]...), a.SHA256[:]...)
}

// NewAcceptTerms accepts a text.
func NewAcceptTerms(text string, seller [32]byte, buyer ed25519.PrivateKey) AcceptTerms {
	a := AcceptTerms{SHA256: sha256.Sum256([]byte(text))}
	a.Sig = jcs.Hex64(ed25519.Sign(buyer, a.signable(seller)))
	return a
}

// Verify checks the buyer's signature; it fails with [ErrSignature]. Whether those
// are the terms is the caller's to see.
func (a *AcceptTerms) Verify(seller, buyer [32]byte) error {
	return verify("terms", buyer, a.signable(seller), a.Sig)
}

// InvoiceRequest asks for an invoice of so much, or for so many units: decimal
// numbers, one of them.
type InvoiceRequest struct {
	ID    uint64 `json:"id"`
	Msat  string `json:"msat,omitempty"`
	Units string `json:"units,omitempty"`
}

// Invoice is one, or says with Error and Code why there is none.
type Invoice struct {
	ID        uint64     `json:"id"`
	Request   string     `json:"request,omitempty"` // BOLT 11
	Msat      string     `json:"msat,omitempty"`    // decimal
	Hash      jcs.Hex32  `json:"hash,omitzero"`
	ExpiresAt int64      `json:"expiresAt,omitempty"` // s since 1970
	Units     uint64     `json:"units,omitempty"`
	Card      uint64     `json:"card,omitempty"` // version
	Terms     *jcs.Hex32 `json:"terms"`          // hash, if there are any
	Sig       jcs.Hex64  `json:"sig,omitzero"`

	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
}

// signable returns what the seller signs.
func (v *Invoice) signable(seller, buyer [32]byte) ([]byte, error) {
	b, err := jcs.Marshal(struct {
		Buyer  jcs.Hex32  `json:"buyer"`
		Card   uint64     `json:"card"`
		Hash   jcs.Hex32  `json:"hash"`
		Msat   string     `json:"msat"`
		Seller jcs.Hex32  `json:"seller"`
		Terms  *jcs.Hex32 `json:"terms"`
		Units  uint64     `json:"units"`
	}{buyer, v.Card, v.Hash, v.Msat, seller, v.Terms, v.Units})
	return append([]byte("dazaar invoice\n"), b...), err
}

// Sign signs the invoice for a buyer with the seller's key. It fails if a number is
// larger than JSON holds.
func (v *Invoice) Sign(seller ed25519.PrivateKey, buyer [32]byte) error {
	b, err := v.signable(public(seller), buyer)
	if err == nil {
		v.Sig = jcs.Hex64(ed25519.Sign(seller, b))
	}
	return err
}

// Verify checks the seller's signature; it fails with [ErrSignature].
func (v *Invoice) Verify(seller, buyer [32]byte) error {
	b, err := v.signable(seller, buyer)
	if err != nil {
		return fmt.Errorf("%w: of the invoice: %w", ErrSignature, err)
	}
	return verify("invoice", seller, b, v.Sig)
}

// Receipt is an invoice that was paid, with what only its payer and payee know.
type Receipt struct {
	Invoice
	Preimage jcs.Hex32 `json:"preimage"`
}

// FindTime asks for the first block at a time or later.
type FindTime struct {
	ID   uint64 `json:"id"`
	Time string `json:"time"` // RFC 3339
}

// FoundTime answers: a hint, to be proved by the blocks themselves.
type FoundTime struct {
	ID    uint64 `json:"id"`
	Index uint64 `json:"index"`
}

// Burned is a feed key that its seller made worthless: everybody can sign with it.
type Burned struct {
	FeedKey jcs.Hex32 `json:"feedKey"`
	Signer  jcs.Hex32 `json:"signer"`
	Seed    jcs.Hex32 `json:"seed"`
}

// Verify tells whether the seed is that of the signer; it fails with
// [ErrSignature]. Whether the signer signs for the feed its manifest says.
func (b *Burned) Verify() error {
	if public(ed25519.NewKeyFromSeed(b.Seed[:])) != b.Signer {
		return fmt.Errorf("%w: the seed is of another signer", ErrSignature)
	}
	return nil
}
