// Package dazaar is the channel on which a purchase is arranged: what an offer
// is, what it costs, which feed a buyer gets, until when it is paid.
//
// # Wire
//
// Protomux channel, protocol dazaar/2, id the seller key, opened with uint
// version, uint features, string agent, and with [FeatureHandOver] a fixed64. The
// seller knows the buyer by the static key of the connection, the buyer the seller by
// its. The messages, by type, from the seller (S) or the buyer (B):
//
//	 0 S seller-id        fixed32, new for each process
//	 1 S terms-of-use     string
//	 2 S one-time-feed    fixed32 feed key, uint generation, uint fork, fixed64 signature
//	 3 S valid            buffer of JSON, like all below: [Valid]
//	 4 S invalid          [Invalid]
//	 5   user-message     [UserMessage]
//	 6 S card             the signed card
//	 7 B accept-terms     [AcceptTerms]
//	 8 B invoice-request  [InvoiceRequest]
//	 9 S invoice          [Invoice]
//	10 B receipt          [Receipt]
//	11 B find-time        [FindTime]
//	12 S found-time       [FoundTime]
//	13 S burned           [Burned]
//
// Signatures are Ed25519, over
//
//	one-time-feed  "dazaar feed\n", seller key, buyer key, feed key, LE64 generation
//	accept-terms   "dazaar terms\n", seller key, hash of the terms
//	invoice        "dazaar invoice\n", then {buyer, card, hash, msat, seller, terms,
//	               units} in the form of RFC 8785
//
// JSON is at most 64 KiB, and 48 KiB where we write it; unknown fields, trailing
// bytes and types that are not known, or of the other direction, are ignored.
//
// Source: specs/exchange.md, "Channel".
package dazaar

import (
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
	typeSellerID = iota
	typeTerms
	typeOneTimeFeed
	typeValid
	typeInvalid
	typeUserMessage
	typeCard
	typeAcceptTerms
	typeInvoiceRequest
	typeInvoice
	typeReceipt
	typeFindTime
	typeFoundTime
	typeBurned
)

// maxJSON bounds a JSON payload, and terms.
const maxJSON = 64 << 10

// Errors of this package. They are wrapped with what was wrong.
var (
	// ErrMessage says that a message cannot be read.
	ErrMessage = errors.New("dazaar: bad message")
	// ErrSignature says that something is not signed by whom it should be, or for
	// somebody else.
	ErrSignature = errors.New("dazaar: the signature does not verify")
	// ErrVersion says that the other side speaks another version.
	ErrVersion = errors.New("dazaar: other version")
)

// Peer is what both ends of a channel hear. The methods of a handler are called one
// at a time. An error ends the connection.
type Peer interface {
	Opened(h Handshake) error
	UserMessage(m UserMessage) error
	Closed(err error)
}

// SellerHandler is a seller's end.
type SellerHandler interface {
	Peer
	AcceptTerms(a AcceptTerms) error
	InvoiceRequest(r InvoiceRequest) error
	Receipt(r Receipt) error
	FindTime(f FindTime) error
}

// BuyerHandler is a buyer's end.
type BuyerHandler interface {
	Peer
	SellerID(id [32]byte) error
	// Terms and Card take bytes that are valid during the call.
	Terms(text []byte) error
	Card(card []byte) error
	OneTimeFeed(f OneTimeFeed) error
	Valid(v Valid) error
	Invalid(v Invalid) error
	Invoice(v Invoice) error
	FoundTime(f FoundTime) error
	Burned(b Burned) error
}

// channel is what both ends can do.
type channel struct{ ch *mux.Channel }

func open(m *mux.Mux, seller [32]byte, hs Handshake, h mux.Handler) (channel, error) {
	hs.Version = Version
	ch, err := m.Open(mux.ChannelConfig{Protocol: Protocol, ID: seller[:], Handshake: hs.Append(nil), Handler: h})
	return channel{ch}, err
}

// Close closes the channel.
func (c channel) Close() { c.ch.Close() }

// UserMessage sends a message of the application.
func (c channel) UserMessage(m UserMessage) error { return c.json(typeUserMessage, m) }

func (c channel) json(typ uint64, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.ch.Send(typ, compact.AppendBuffer(nil, b))
}

// Seller is the seller's end of an open channel. All methods are safe for
// concurrent use; none waits.
type Seller struct{ channel }

// OpenSeller opens the channel of the offer with this key.
func OpenSeller(m *mux.Mux, seller [32]byte, agent string, h SellerHandler) (*Seller, error) {
	c, err := open(m, seller, Handshake{Agent: agent}, sellerHandler{h})
	if err != nil {
		return nil, err
	}
	return &Seller{c}, nil
}

// SellerID tells which process sells.
func (c *Seller) SellerID(id [32]byte) error { return c.ch.Send(typeSellerID, id[:]) }

// Terms sends the terms of use.
func (c *Seller) Terms(text string) error {
	return c.ch.Send(typeTerms, compact.AppendString(nil, text))
}

// Card sends the signed card.
func (c *Seller) Card(card []byte) error {
	return c.ch.Send(typeCard, compact.AppendBuffer(nil, card))
}

// OneTimeFeed tells the buyer its feed.
func (c *Seller) OneTimeFeed(f OneTimeFeed) error { return c.ch.Send(typeOneTimeFeed, f.Append(nil)) }

// Valid tells the buyer what it has.
func (c *Seller) Valid(v Valid) error { return c.json(typeValid, v) }

// Invalid tells the buyer why it has nothing.
func (c *Seller) Invalid(v Invalid) error { return c.json(typeInvalid, v) }

// Invoice answers a request.
func (c *Seller) Invoice(v Invoice) error { return c.json(typeInvoice, v) }

// FoundTime answers a question.
func (c *Seller) FoundTime(f FoundTime) error { return c.json(typeFoundTime, f) }

// Burned publishes a key that proves nothing any more.
func (c *Seller) Burned(b Burned) error { return c.json(typeBurned, b) }

// Buyer is the buyer's end of an open channel. All methods are safe for concurrent
// use; none waits.
type Buyer struct{ channel }

// OpenBuyer opens the channel of the offer with this key. The version of hs is ours.
func OpenBuyer(m *mux.Mux, seller [32]byte, hs Handshake, h BuyerHandler) (*Buyer, error) {
	c, err := open(m, seller, hs, buyerHandler{h})
	if err != nil {
		return nil, err
	}
	return &Buyer{c}, nil
}

// AcceptTerms accepts the terms of use.
func (c *Buyer) AcceptTerms(a AcceptTerms) error { return c.json(typeAcceptTerms, a) }

// InvoiceRequest asks for an invoice.
func (c *Buyer) InvoiceRequest(r InvoiceRequest) error { return c.json(typeInvoiceRequest, r) }

// Receipt asks the seller to look a payment up.
func (c *Buyer) Receipt(r Receipt) error { return c.json(typeReceipt, r) }

// FindTime asks where a time is in the log.
func (c *Buyer) FindTime(f FindTime) error { return c.json(typeFindTime, f) }

// opened reads what the other side opened with.
func opened(p Peer, b []byte) error {
	hs, _, err := ParseHandshake(b)
	if err != nil {
		return fmt.Errorf("%w: handshake: %w", ErrMessage, err)
	}
	if hs.Version != Version {
		return fmt.Errorf("%w: %d, not %d", ErrVersion, hs.Version, Version)
	}
	return p.Opened(hs)
}

// sellerHandler turns messages of a buyer into calls.
type sellerHandler struct{ h SellerHandler }

func (h sellerHandler) Opened(b []byte) error { return opened(h.h, b) }
func (h sellerHandler) Closed(err error)      { h.h.Closed(err) }

func (h sellerHandler) Message(typ uint64, b []byte) error {
	switch typ {
	case typeUserMessage:
		return take(b, "user-message", h.h.UserMessage)
	case typeAcceptTerms:
		return take(b, "accept-terms", h.h.AcceptTerms)
	case typeInvoiceRequest:
		return take(b, "invoice-request", h.h.InvoiceRequest)
	case typeReceipt:
		return take(b, "receipt", h.h.Receipt)
	case typeFindTime:
		return take(b, "find-time", h.h.FindTime)
	}
	return nil
}

// buyerHandler turns messages of a seller into calls.
type buyerHandler struct{ h BuyerHandler }

func (h buyerHandler) Opened(b []byte) error { return opened(h.h, b) }
func (h buyerHandler) Closed(err error)      { h.h.Closed(err) }

func (h buyerHandler) Message(typ uint64, b []byte) error {
	switch typ {
	case typeSellerID:
		id, _, err := compact.ParseFixed32(b)
		if err != nil {
			return fmt.Errorf("%w: seller-id: %w", ErrMessage, err)
		}
		return h.h.SellerID(id)
	case typeTerms:
		return buffer(b, "terms-of-use", h.h.Terms)
	case typeCard:
		return buffer(b, "card", h.h.Card)
	case typeOneTimeFeed:
		f, _, err := ParseOneTimeFeed(b)
		if err != nil {
			return fmt.Errorf("%w: one-time-feed: %w", ErrMessage, err)
		}
		return h.h.OneTimeFeed(f)
	case typeValid:
		return take(b, "valid", h.h.Valid)
	case typeInvalid:
		return take(b, "invalid", h.h.Invalid)
	case typeUserMessage:
		return take(b, "user-message", h.h.UserMessage)
	case typeInvoice:
		return take(b, "invoice", h.h.Invoice)
	case typeFoundTime:
		return take(b, "found-time", h.h.FoundTime)
	case typeBurned:
		return take(b, "burned", h.h.Burned)
	}
	return nil
}

// take reads JSON and hands it on.
func take[T any](b []byte, name string, f func(T) error) error {
	var v T
	var bad error
	err := buffer(b, name, func(p []byte) error {
		bad = json.Unmarshal(p, &v)
		return nil
	})
	if err != nil {
		return err
	}
	if bad != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, name, bad)
	}
	return f(v)
}

// buffer reads bytes behind their length and hands them on.
func buffer(b []byte, name string, f func([]byte) error) error {
	p, _, err := compact.ParseBuffer(b)
	if err == nil && len(p) > maxJSON {
		err = compact.ErrRange
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMessage, name, err)
	}
	return f(p)
}
