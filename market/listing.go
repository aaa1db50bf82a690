package market

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/jcs"
)

// Listing is what an offer is, costs and includes. It may change while it is sold:
// who has paid keeps what was paid for.
type Listing struct {
	// Card describes the offer. Without a way to pay it is given away. Keys,
	// version, date, terms and signature are filled in.
	Card card.Card
	// Terms is what buyers must accept; "" is nothing.
	Terms string
	// Floating: who is paid cannot be said beforehand. Else nothing is sold before the
	// card says it.
	Floating bool
}

// listing is a Listing that was checked, with its signed card.
type listing struct {
	card    *card.Card
	signed  []byte
	free    bool
	floats  bool
	price   meter.Price
	history ledger.History
	trial   *meter.Trial
	terms   string
	hash    *jcs.Hex32 // of the terms; nil if there are none
}

// TrialBytes is what a trial is at most.
const TrialBytes = 64 << 10

// publish signs the card of a listing, as a new version if it is not what it was, or older
// than least.
func publish(l Listing, offer string, key ed25519.PrivateKey, books *ledger.Ledger, now time.Time, least uint64) (*listing, error) {
	out := &listing{terms: l.Terms, free: len(l.Card.Payment) == 0, floats: l.Floating}
	c := l.Card
	if l.Terms != "" {
		h := jcs.Hex32(sha256.Sum256([]byte(l.Terms)))
		out.hash = &h
		c.Terms = &card.Terms{SHA256: hex.EncodeToString(h[:])}
	}
	if !out.free {
		var err error
		if out.price, err = c.Price(0); err != nil {
			return nil, err
		}
		if h := c.History; h != nil && h.All {
			out.history = ledger.All
		} else if h != nil {
			out.history = ledger.History(h.Seconds) * 1000
		}
		if t := c.Trial; t != nil {
			out.trial = &meter.Trial{Span: t.Seconds * 1000, Bytes: min(t.Bytes, TrialBytes)}
		}
	}
	kept, err := books.Card(offer)
	if err != nil {
		return nil, err
	}
	seller := [32]byte(key[ed25519.SeedSize:])
	c.Version = 1
	if lost, err := books.Lost(); err != nil {
		return nil, err
	} else if lost != nil && kept == nil { // buyers have seen a newer one
		c.Version = uint64(max(now.Unix(), lost.At.Unix(), 1))
	}
	if kept != nil {
		old, err := card.Parse(kept, nil, 0)
		if err != nil {
			return nil, fmt.Errorf("the card that was published last: %w", err)
		}
		ours := old.Key() == seller // else the device has a new identity since
		if c.Payee == "" && !out.free && !out.floats && ours {
			c.Payee, c.Payees, c.Network = old.Payee, old.Payees, old.Network // no wallet says it now
		}
		if ours && same(*old, c) && old.Version >= least {
			out.card, out.signed = old, kept
			return out, nil
		}
		c.Version = old.Version + 1
	}
	c.Version = max(c.Version, least)
	c.Updated = now // 1970 while the clock is not set
	if now.IsZero() {
		c.Updated = time.Unix(0, 0)
	}
	if out.signed, err = c.Sign(key); err != nil {
		return nil, err
	}
	// Parsed again, it is as a buyer has it.
	if out.card, err = card.Parse(out.signed, &seller, 0); err != nil {
		return nil, err
	}
	return out, books.PutCard(offer, c.Version, out.signed)
}

// same tells whether two cards say the same, but for what every one says anew.
func same(old, c card.Card) bool {
	c.SellerKey, c.ID, c.Version, c.Updated, c.Sig = old.SellerKey, old.ID, old.Version, old.Updated, old.Sig
	c.Feed.First = old.Feed.First
	if len(c.Payment) == 0 && len(old.Payment) == 0 {
		c.Payment = old.Payment
	}
	return reflect.DeepEqual(old, c)
}

// SetListing changes what the offer costs and says. Who is connected keeps what was
// paid for, and is sent the new card.
func (o *Offer) SetListing(l Listing) error {
	o.listMu.Lock()
	defer o.listMu.Unlock()
	o.listed = l
	return o.list(0)
}

// Raise publishes the card again, with a version of least at least: buyers have seen older
// ones, that were lost.
func (o *Offer) Raise(least uint64) error {
	o.listMu.Lock()
	defer o.listMu.Unlock()
	return o.list(least)
}

// list publishes what is listed. listMu is held.
func (o *Offer) list(least uint64) error {
	x, err := publish(o.listed, o.cfg.Name, o.cfg.Key, o.cfg.Ledger, o.cfg.Now(), least)
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	old := o.current.Swap(x)
	if old != nil && old.card.Version != x.card.Version {
		o.each(true, func(s *session) { s.relist(old, x) })
	}
	return nil
}

func (o *Offer) listing() *listing { return o.current.Load() }

// Card returns the signed card.
func (o *Offer) Card() []byte { return o.listing().signed }

// includes returns what a first payment includes now, or, with then, as of the day of its
// invoice: history behind the log's end.
func (o *Offer) includes(h ledger.History, made time.Time, then bool) (from, start uint64) {
	first, length := o.bounds()
	now := o.cfg.Now()
	if then {
		if i, err := o.cfg.Feed.Seek(made); err == nil {
			now, length = made, max(i, first)
		}
	}
	if now.IsZero() { // the clock is not set: so much is known
		now = made
	}
	switch {
	case h == ledger.All:
		return first, length
	case h == 0 || now.IsZero():
		return length, length
	}
	from, err := o.cfg.Feed.Seek(now.Add(-time.Duration(h) * time.Millisecond))
	if err != nil {
		o.log.Error("what a purchase includes cannot be found: it begins with now", "error", err)
		from = length
	}
	return from, length
}

// bounds returns which blocks there are.
func (o *Offer) bounds() (first, length uint64) {
	h := o.cfg.Feed.Head()
	return h.First, h.Length
}
