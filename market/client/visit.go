package client

import (
	"fmt"
	"strconv"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/replicate/message"
)

// visit is one connection with the seller. What another one hears than that which
// counts, the client's current, is nothing to the client.
type visit struct {
	path
	c     *Client
	mux   *mux.Mux
	ch    *dazaar.Buyer
	ended chan error // that of Run; room for it
	since time.Time

	seller [32]byte // the process; guarded by the client's mu, like all below
	old    *visit   // the one that it takes over from, until it serves
}

// accept takes the feed's channel when the seller opens it.
func (v *visit) accept(protocol string, id []byte) bool {
	v.c.mu.Lock()
	defer v.c.mu.Unlock()
	if v.c.buyer == nil || protocol != message.Protocol || v.c.current != v {
		return false
	}
	if want := merkle.DiscoveryKey(v.c.feed.Key); string(id) == string(want[:]) {
		v.attach()
	}
	return false
}

// attach follows the feed here. The client's mu is held.
func (v *visit) attach() error {
	return v.c.buyer.Attach(replicate.Session{Mux: v.mux, HandshakeHash: v.conn.HandshakeHash(), Initiator: true})
}

// part ends the visit that v took over from. The client's mu is held.
func (v *visit) part() {
	if v.old != nil {
		v.old.mux.Close()
		v.old = nil
	}
}

// visitor is a visit as the dazaar channel sees it.
type visitor visit

// counts calls f if the visit is the one that counts.
func (h *visitor) counts(f func(v *visit, c *Client) error) error {
	v := (*visit)(h)
	v.c.mu.Lock()
	defer v.c.mu.Unlock()
	if v.c.current != v {
		return nil
	}
	return f(v, v.c)
}

// Opened implements dazaar.BuyerHandler.
func (h *visitor) Opened(dazaar.Handshake) error {
	return h.counts(func(v *visit, c *Client) error { return c.resume(v) })
}

// SellerID implements dazaar.BuyerHandler: by it two paths to one process are known.
func (h *visitor) SellerID(id [32]byte) error {
	v, c := (*visit)(h), h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	v.seller = id
	if v.old != nil && c.current == v.old {
		if id != v.old.seller {
			return fmt.Errorf("%w: it is another process than the one that serves", ErrBusy)
		}
		c.enter(v)
	}
	return nil
}

// OneTimeFeed implements dazaar.BuyerHandler: it follows the feed.
func (h *visitor) OneTimeFeed(f dazaar.OneTimeFeed) error {
	v, c := (*visit)(h), h.c
	if err := f.Verify(c.cfg.Seller, [32]byte(c.cfg.Archive.Key()[32:])); err != nil {
		return err
	}
	return h.counts(func(*visit, *Client) error {
		v.part()
		if c.buyer == nil && !c.cfg.FromTime.IsZero() {
			c.feed = f
			return v.ch.FindTime(dazaar.FindTime{ID: 1, Time: c.cfg.FromTime.UTC().Format(time.RFC3339Nano)})
		}
		return v.follow(f)
	})
}

// FoundTime implements dazaar.BuyerHandler: the block before shows whether it is
// right.
func (h *visitor) FoundTime(t dazaar.FoundTime) error {
	return h.counts(func(v *visit, c *Client) error {
		if c.buyer != nil || c.cfg.FromTime.IsZero() || t.ID != 1 {
			return nil
		}
		c.cfg.From = t.Index
		if t.Index > 0 {
			c.cfg.From--
		}
		return v.follow(c.feed)
	})
}

// follow follows a feed that is the buyer's. The client's mu is held.
func (v *visit) follow(f dazaar.OneTimeFeed) error {
	c := v.c
	var kept *replicate.Kept
	if c.buyer == nil || f.Key != c.feed.Key {
		if c.buyer != nil {
			if f.Generation <= c.feed.Generation {
				return fmt.Errorf("%w: generation %d after %d", replicate.ErrInvalid, f.Generation, c.feed.Generation)
			}
			// The same log under another key, most likely: what was had need not
			// come again, if it is looked into how much of it is still true.
			c.buyer.Detach()
			if err := c.buyer.Conclude(); err != nil {
				return err
			}
			if err := c.buyer.Checkpoint(func(k replicate.Kept) error { k.Foreign = k.Head.Length > 0; kept = &k; return nil }); err != nil {
				return err
			}
			c.log.Warn("the seller began a new feed", "generation", f.Generation, "from", kept.Cursor)
		}
		c.feed = f
		if err := c.begin(kept); err != nil {
			return err
		}
		if err := c.keep(); err != nil { // from now on the output is known to be ours
			return err
		}
	}
	c.given = true
	c.buying.since = time.Now() // what was paid for has its time to come from here on
	if c.cfg.Proof != nil {
		if err := c.cfg.Proof.Feed(f, c.purse.Card()); err != nil {
			return err
		}
	}
	return v.attach()
}

// Valid implements dazaar.BuyerHandler.
func (h *visitor) Valid(x dazaar.Valid) error {
	return h.counts(func(_ *visit, c *Client) error {
		if c.valid == nil {
			c.wanted = x.Length
		}
		c.valid = &x
		c.credited(x)
		return c.byHand()
	})
}

// Invalid implements dazaar.BuyerHandler.
func (h *visitor) Invalid(x dazaar.Invalid) error {
	return h.counts(func(v *visit, c *Client) error {
		v.part()
		why := ErrRefused
		switch x.Code {
		case dazaar.CodePaymentRequired, dazaar.CodeCreditEnded:
			if x.PaidMsat != "" {
				c.buying.total, _ = strconv.ParseUint(x.PaidMsat, 10, 64)
				c.buying.told = true
			}
			c.buying.need = true
			c.why = c.money(v)
			return c.why
		case dazaar.CodeTerms:
			if c.terms != nil && c.purse.Accepted(*c.terms) {
				return nil // it crossed with ours
			}
			why = ErrTerms
		case dazaar.CodeReplaced:
			why = ErrReplaced
		case dazaar.CodeBusy, dazaar.CodeClosing:
			why = ErrBusy // it is worth trying again
		}
		c.why = fmt.Errorf("%w: %s: %q", why, x.Code, x.Error)
		return c.why
	})
}

// Closed implements dazaar.BuyerHandler: without it nothing can come.
func (h *visitor) Closed(err error) {
	(*visit)(h).mux.Fail(fmt.Errorf("%w: the seller ended the session: %w", ErrBusy, err))
}

// Card implements dazaar.BuyerHandler.
func (h *visitor) Card(signed []byte) error {
	return h.counts(func(_ *visit, c *Client) error { return c.carded(signed) })
}

// Terms implements dazaar.BuyerHandler.
func (h *visitor) Terms(text []byte) error {
	return h.counts(func(v *visit, c *Client) error { return c.termed(v, string(text)) })
}

// Invoice implements dazaar.BuyerHandler.
func (h *visitor) Invoice(x dazaar.Invoice) error {
	return h.counts(func(v *visit, c *Client) error { return c.invoiced(v, x) })
}

// UserMessage implements dazaar.BuyerHandler: there is nothing that it would say.
func (h *visitor) UserMessage(dazaar.UserMessage) error { return nil }

// Burned implements dazaar.BuyerHandler: what is signed with this buyer's key, or
// was, proves nothing any more, and the owner should know.
func (h *visitor) Burned(b dazaar.Burned) error {
	return h.counts(func(_ *visit, c *Client) error {
		if c.buyer != nil && merkle.Hash(b.FeedKey) == c.feed.Key && b.Verify() == nil {
			c.log.Warn("the seller burned the key of this feed: what was received proves nothing to others any more", "feed", b.FeedKey)
		}
		return nil
	})
}
