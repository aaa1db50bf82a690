// Package dazaar is the channel on which a purchase is arranged: what an offer
// is, which feed a buyer gets, until when it is paid.
//
// # Wire
//
// Protomux channel, protocol dazaar/2, id the seller key, opened with uint
// version, uint features, string agent. The seller knows the buyer by the static
// key of the connection, the buyer the seller by its. The messages, by type:
//
//	0 seller-id       fixed32, new for each process
//	2 one-time-feed   fixed32 feed key, uint generation, uint fork, fixed64 signature
//	3 valid           buffer of JSON
//	4 invalid         buffer of JSON
//
// The signature is the seller key's over "dazaar feed\n", seller key, buyer key,
// feed key, LE64 generation. JSON is at most 64 KiB; unknown fields, trailing
// bytes and types that are not known are ignored.
//
// Source: specs/exchange.md, "Channel".
package dazaar

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/mux"
)

// Protocol is the name of the channel.
const Protocol = "dazaar/2"

// Version is the version of the protocol that this package speaks.
const Version = 2

// Message types.
const (
	typeSellerID    = 0
	typeOneTimeFeed = 2
	typeValid       = 3
	typeInvalid     = 4
)

// maxJSON bounds a JSON payload.
const maxJSON = 64 << 10

// Errors of this package. They are wrapped with what was wrong.
var (
	// ErrMessage says that a message cannot be read.
	ErrMessage = errors.New("dazaar: bad message")
	// ErrSignature says that a feed is not signed by the seller for this buyer.
	ErrSignature = errors.New("dazaar: feed is not signed by the seller")
	// ErrVersion says that the other side speaks another version.
	ErrVersion = errors.New("dazaar: other version")
)

// Handshake opens a channel.
type Handshake struct {
	Version, Features uint64
	Agent             string
}

// Append appends uint version, uint features, string agent.
func (h Handshake) Append(b []byte) []byte {
	return compact.AppendString(compact.AppendUint(compact.AppendUint(b, h.Version), h.Features), h.Agent)
}

// ParseHandshake takes a handshake off b.
func ParseHandshake(b []byte) (h Handshake, rest []byte, err error) {
	if h.Version, rest, err = compact.ParseUint(b); err != nil {
		return h, nil, err
	}
	if h.Features, rest, err = compact.ParseUint(rest); err != nil {
		return h, nil, err
	}
	h.Agent, rest, err = compact.ParseString(rest)
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
	f.Signature = [64]byte(ed25519.Sign(seller, f.signable([32]byte(seller[ed25519.SeedSize:]), buyer)))
}

// Verify checks the seller's signature; it fails with [ErrSignature].
func (f *OneTimeFeed) Verify(seller, buyer [32]byte) error {
	if !ed25519.Verify(seller[:], f.signable(seller, buyer), f.Signature[:]) {
		return ErrSignature
	}
	return nil
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
	if f.Generation, rest, err = compact.ParseUint(rest); err != nil {
		return f, nil, err
	}
	if f.Fork, rest, err = compact.ParseUint(rest); err != nil {
		return f, nil, err
	}
	f.Signature, rest, err = compact.ParseFixed64(rest)
	return f, rest, err
}

// Valid says what a buyer has, and which blocks there are.
type Valid struct {
	// Type is time, bytes, readings, once, trial or free.
	Type string `json:"type"`
	// Remaining is ms of sensed time, bytes or readings; nil without an end.
	Remaining *int64 `json:"remaining"`
	// CreditMsat is a decimal number.
	CreditMsat string `json:"creditMsat"`
	First      uint64 `json:"first"`
	Length     uint64 `json:"length"`
}

// Codes of Invalid.
const (
	CodeRevoked  = "revoked"
	CodeReplaced = "replaced"
	CodeBusy     = "busy"
	CodeClosing  = "closing"
)

// Invalid says why there is no feed, or no more of it.
type Invalid struct {
	Error string `json:"error"`
	Code  string `json:"code"`
}

// Handler is one end of a channel. The methods are called one at a time. An
// error ends the connection.
type Handler interface {
	Opened(h Handshake) error
	SellerID(id [32]byte) error
	OneTimeFeed(f OneTimeFeed) error
	Valid(v Valid) error
	Invalid(v Invalid) error
	Closed(err error)
}

// Channel is an open channel. All methods are safe for concurrent use.
type Channel struct{ ch *mux.Channel }

// Open opens the channel of the offer with this seller key.
func Open(m *mux.Mux, seller [32]byte, agent string, h Handler) (*Channel, error) {
	ch, err := m.Open(mux.ChannelConfig{
		Protocol: Protocol, ID: seller[:], Handshake: Handshake{Version: Version, Agent: agent}.Append(nil), Handler: handler{h},
	})
	if err != nil {
		return nil, err
	}
	return &Channel{ch}, nil
}

// Close closes the channel.
func (c *Channel) Close() { c.ch.Close() }

// SellerID tells which process sells.
func (c *Channel) SellerID(id [32]byte) error { return c.ch.Send(typeSellerID, id[:]) }

// OneTimeFeed tells the buyer its feed.
func (c *Channel) OneTimeFeed(f OneTimeFeed) error { return c.ch.Send(typeOneTimeFeed, f.Append(nil)) }

// Valid tells the buyer what it has.
func (c *Channel) Valid(v Valid) error { return c.json(typeValid, v) }

// Invalid tells the buyer why it has nothing.
func (c *Channel) Invalid(v Invalid) error { return c.json(typeInvalid, v) }

func (c *Channel) json(typ uint64, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.ch.Send(typ, compact.AppendBuffer(nil, b))
}

// handler turns messages into calls.
type handler struct{ h Handler }

func (h handler) Opened(b []byte) error {
	hs, _, err := ParseHandshake(b)
	if err != nil {
		return fmt.Errorf("%w: handshake: %w", ErrMessage, err)
	}
	if hs.Version != Version {
		return fmt.Errorf("%w: %d, not %d", ErrVersion, hs.Version, Version)
	}
	return h.h.Opened(hs)
}

func (h handler) Closed(err error) { h.h.Closed(err) }

func (h handler) Message(typ uint64, b []byte) error {
	switch typ {
	case typeSellerID:
		id, _, err := compact.ParseFixed32(b)
		if err != nil {
			return fmt.Errorf("%w: seller-id: %w", ErrMessage, err)
		}
		return h.h.SellerID(id)
	case typeOneTimeFeed:
		f, _, err := ParseOneTimeFeed(b)
		if err != nil {
			return fmt.Errorf("%w: one-time-feed: %w", ErrMessage, err)
		}
		return h.h.OneTimeFeed(f)
	case typeValid:
		var v Valid
		if err := parseJSON(b, &v); err != nil {
			return fmt.Errorf("%w: valid: %w", ErrMessage, err)
		}
		return h.h.Valid(v)
	case typeInvalid:
		var v Invalid
		if err := parseJSON(b, &v); err != nil {
			return fmt.Errorf("%w: invalid: %w", ErrMessage, err)
		}
		return h.h.Invalid(v)
	}
	return nil
}

func parseJSON(b []byte, v any) error {
	p, _, err := compact.ParseBuffer(b)
	if err != nil {
		return err
	}
	if len(p) > maxJSON {
		return compact.ErrRange
	}
	return json.Unmarshal(p, v)
}
