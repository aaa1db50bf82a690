package market

import (
	"fmt"
	"slices"

	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
)

// maxBurned is how many burned keys a buyer is told of.
const maxBurned = 256

func burnedMessage(b ledger.Burned) dazaar.Burned {
	return dazaar.Burned{FeedKey: jcs.Hex32(b.FeedKey), Signer: jcs.Hex32(b.Signer), Seed: jcs.Hex32(b.Seed)}
}

// loadBurned reads which keys of the offer are worthless.
func (o *Offer) loadBurned() error {
	all, err := o.cfg.Ledger.Burned(o.cfg.Name)
	if err != nil {
		return err
	}
	for _, b := range all[len(all)-min(len(all), maxBurned):] {
		o.burned = append(o.burned, burnedMessage(b))
	}
	return nil
}

// Burned returns which keys of the offer are worthless, and since when. Those that were burned
// while no clock could be trusted are so since there is one.
func (o *Offer) Burned() ([]ledger.Burned, error) {
	all, err := o.cfg.Ledger.Burned(o.cfg.Name)
	now := o.cfg.Now()
	if err != nil || now.IsZero() {
		return all, err
	}
	var late []ledger.Burned
	for i := range all {
		if all[i].At.IsZero() {
			all[i].At = now
			late = append(late, all[i])
		}
	}
	if len(late) > 0 {
		err = o.cfg.Ledger.Burn(o.cfg.Name, late)
	}
	return all, err
}

// BurnRecord is what the network keeps under the signer's key of a burned feed.
func BurnRecord(b ledger.Burned) ([]byte, error) { return jcs.Marshal(burnedMessage(b)) }

func (o *Offer) burnedKeys() []dazaar.Burned {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.burned
}

// Revoke ends a sale: no block is framed for the buyer any more, now or later, until
// Restore. What it paid stays in the ledger.
func (o *Offer) Revoke(buyer [32]byte) error {
	err := o.cfg.Ledger.ChangeContract(o.cfg.Name, buyer, func(c *ledger.Contract) { c.Revoked = true })
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	o.each(true, func(s *session) {
		if s.buyer == buyer {
			s.finish(dazaar.CodeRevoked, "the owner ended this sale")
		}
	})
	o.log.Warn("revoked", "buyer", fmt.Sprintf("%x", buyer[:4]))
	return nil
}

// Restore takes a revocation back.
func (o *Offer) Restore(buyer [32]byte) error {
	err := o.cfg.Ledger.ChangeContract(o.cfg.Name, buyer, func(c *ledger.Contract) { c.Revoked = false })
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	return nil
}

// promise notes whether the keys of the sale may be burned: those of a new one if the card
// says so, and for as long as it does. mu is held.
func (s *session) promise(burnable bool) error {
	if burnable && !s.burnable {
		if old, err := s.o.cfg.Feed.Sold(s.buyer); err != nil || old {
			return err
		}
	}
	if s.burnable == burnable {
		return nil
	}
	s.burnable = burnable
	return s.o.cfg.Ledger.ChangeContract(s.o.cfg.Name, s.buyer, func(c *ledger.Contract) { c.Burnable = burnable })
}

// Burn revokes a sale and publishes the secrets of all feed keys that it had: from then on
// they prove nothing about who signed, so that what the buyer has is worth less to
// others, and to the buyer itself. It cannot be taken back. Each card that the buyer was
// served under must have said that this may happen.
func (o *Offer) Burn(buyer [32]byte) error {
	contract, err := o.cfg.Ledger.Contract(o.cfg.Name, buyer)
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	if !contract.Burnable || !o.listing().card.Burnable {
		return fmt.Errorf("market: offer %s: its card does not say burnable, or did not when it sold to this buyer, who relied on that: only new buyers after burnable: true can be burned", o.cfg.Name)
	}
	if err := o.Revoke(buyer); err != nil {
		return err
	}
	f, err := o.cfg.Feed.Rekey(buyer)
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	secrets, err := f.Secrets()
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	var all []ledger.Burned
	for _, x := range secrets {
		all = append(all, ledger.Burned{FeedKey: x.Key, Signer: x.Signer, Seed: x.Seed, At: o.cfg.Now()})
	}
	// The next feed is another one before anybody can sign with these keys. Where it ends
	// here, who burns again burns these, too.
	if _, err := o.cfg.Feed.Renew(buyer); err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	if err := o.cfg.Ledger.Burn(o.cfg.Name, all); err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	var news []dazaar.Burned
	o.mu.Lock()
	for _, b := range all {
		if m := burnedMessage(b); !slices.Contains(o.burned, m) {
			news = append(news, m)
		}
	}
	kept := append(slices.Clone(o.burned), news...)
	o.burned = kept[len(kept)-min(len(kept), maxBurned):]
	o.mu.Unlock()
	o.each(true, func(s *session) {
		for _, m := range news {
			s.tell(m)
		}
	})
	return nil
}

// tell passes on that a key was burned.
func (s *session) tell(b dazaar.Burned) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil && !s.over {
		s.ch.Burned(b) //nolint:errcheck // the connection ends
	}
}
