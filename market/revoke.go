package market

import (
	"crypto/ed25519"
	"fmt"
	"time"

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
	for _, b := range all[:min(len(all), maxBurned)] {
		o.burned = append(o.burned, burnedMessage(b))
	}
	return nil
}

// Burned returns which keys of the offer are worthless, and since when.
func (o *Offer) Burned() ([]ledger.Burned, error) { return o.cfg.Ledger.Burned(o.cfg.Name) }

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

// Burn revokes a sale and publishes the secret of its feed key: from then on the key
// proves nothing about who signed, so that what the buyer has is worth less to
// others, and to the buyer itself. It cannot be taken back. The card must say that
// this may happen.
func (o *Offer) Burn(buyer [32]byte) error {
	if !o.listing().card.Burnable {
		return fmt.Errorf("market: offer %s: its card does not say burnable, and buyers relied on that: only new buyers after burnable: true can be burned", o.cfg.Name)
	}
	if err := o.Revoke(buyer); err != nil {
		return err
	}
	f, err := o.cfg.Feed.Rekey(buyer)
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	seed, err := f.Seed()
	if err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	at := o.cfg.Now()
	if at.IsZero() {
		at = time.Now() // what the machine thinks
	}
	b := ledger.Burned{FeedKey: f.Key(), Signer: [32]byte(ed25519.NewKeyFromSeed(seed[:])[ed25519.SeedSize:]), Seed: seed, At: at}
	// The next feed is another one before anybody can sign with this key.
	if _, err := o.cfg.Feed.Renew(buyer); err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	if err := o.cfg.Ledger.Burn(o.cfg.Name, b); err != nil {
		return fmt.Errorf("market: offer %s: %w", o.cfg.Name, err)
	}
	m := burnedMessage(b)
	o.mu.Lock()
	o.burned = append(o.burned[:len(o.burned):len(o.burned)], m)
	if len(o.burned) > maxBurned {
		o.burned = o.burned[1:]
	}
	o.mu.Unlock()
	o.each(true, func(s *session) { s.tell(m) })
	return nil
}
