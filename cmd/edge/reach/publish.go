package reach

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/jcs"
)

// Times of publishing short cards: nodes keep them for two days, about.
const (
	publishEvery = 24 * time.Hour
	publishLook  = 10 * time.Second
	// publishLate is how long it is at most until what failed is tried again.
	publishLate = 10 * time.Minute
)

// patience is when what failed may be tried again: later each time.
type patience struct {
	wait time.Duration
	next time.Time
}

func (p *patience) over() bool { return !time.Now().Before(p.next) }

// note takes how a try ended.
func (p *patience) note(err error) {
	if err == nil {
		*p = patience{}
		return
	}
	p.wait = min(max(2*p.wait, publishLook), publishLate)
	p.next = time.Now().Add(p.wait)
}

// Sold is what is known of an offer to all.
type Sold interface {
	Card() []byte // signed
	// Raise makes the card's version at least so high.
	Raise(version uint64) error
	Burned() ([]ledger.Burned, error)
}

// publish keeps the short form of an offer's card on the network, and which of its keys were
// burned.
func (n *Network) publish(ctx context.Context, name string, key ed25519.PrivateKey, sold Sold) {
	select {
	case <-n.joined:
	case <-ctx.Done():
		return
	}
	t := time.NewTicker(publishLook)
	defer t.Stop()
	p := publisher{n: n, key: key, sold: sold, log: n.cfg.Log.With("feed", name), burned: map[[32]byte]time.Time{}}
	var card, burned patience
	for {
		if card.over() {
			err := p.card(ctx)
			if card.note(err); err != nil && ctx.Err() == nil {
				p.log.Debug("the short card is not on the network", "error", err)
			}
		}
		if burned.over() {
			err := p.burnedKeys(ctx)
			if burned.note(err); err != nil && ctx.Err() == nil {
				p.log.Debug("a burned key is not on the network", "error", err)
			}
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// publisher is what was published of an offer.
type publisher struct {
	n      *Network
	key    ed25519.PrivateKey
	sold   Sold
	log    *slog.Logger
	last   uint64 // the version, 0 before the first
	at     time.Time
	burned map[[32]byte]time.Time // when it was published last
}

// card publishes the short card, if it is another one or it is time.
func (p *publisher) card(ctx context.Context) error {
	b, version, err := card.NewShort(p.sold.Card())
	if err != nil || version == p.last && time.Since(p.at) < publishEvery {
		return err
	}
	_, err = p.n.node.PutMutable(ctx, p.key, dht.Record{Seq: version, Value: b})
	if errors.Is(err, dht.ErrOlder) {
		// Some node says so: what it has must be signed to count.
		r, e := p.n.node.Mutable(ctx, [32]byte(p.key[ed25519.SeedSize:]), version)
		switch {
		case e != nil || r.Seq < version || r.Seq == version && bytes.Equal(r.Value, b):
			err = nil // the others keep it
		case p.last == 0:
			// What was published last is newer than this one: it was restored.
			if err := p.sold.Raise(r.Seq + 1); err != nil {
				return err
			}
			p.last = r.Seq
			p.log.Info("the network has a newer card of this feed, which was restored, it seems: the next one is newer still", "version", r.Seq+1)
			return p.card(ctx)
		default:
			p.log.Warn("the network has a newer card of this feed, or another one of this version: is it sold elsewhere, too, or was it restored?", "version", version)
			err = nil
		}
	}
	if err == nil {
		p.last, p.at = version, time.Now()
	}
	return err
}

// burnedTime is for how long it is said again that a key was burned.
const burnedTime = 30 * 24 * time.Hour

// maxBurned is how many keys are kept on the network, those that were burned last.
const maxBurned = 256

// burnedKeys keeps on the network that keys were burned, each under that key: who has the
// seed may write there, and so proves it.
func (p *publisher) burnedKeys(ctx context.Context) error {
	all, err := p.sold.Burned()
	if err != nil {
		return err
	}
	var failed error
	for _, b := range all[len(all)-min(len(all), maxBurned):] {
		now := time.Now()
		if !b.At.IsZero() && now.Sub(b.At) > burnedTime || now.Sub(p.burned[b.Signer]) < publishEvery {
			continue
		}
		value, err := market.BurnRecord(b)
		if err == nil {
			_, err = p.n.node.PutMutable(ctx, ed25519.NewKeyFromSeed(b.Seed[:]), dht.Record{Seq: uint64(max(b.At.Unix(), 1)), Value: value})
		}
		if err != nil && !errors.Is(err, dht.ErrOlder) { // somebody else says it, too
			failed = err
			continue
		}
		p.burned[b.Signer] = now
	}
	return failed
}

// Burned tells whether the network knows that one of some keys was burned.
func Burned(ctx context.Context, signers [][32]byte, bootstrap []string) (burned bool, err error) {
	n, err := Open(Config{Network: configs.Network{Bootstrap: bootstrap}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if err := n.waitJoined(ctx); err != nil {
		return false, err
	}
	for _, key := range signers {
		r, err := n.node.Mutable(ctx, key, 0)
		if errors.Is(err, dht.ErrNotFound) {
			continue
		} else if err != nil {
			return false, err
		}
		var b dazaar.Burned
		// Who could write there has the secret, whatever it wrote.
		if json.Unmarshal(r.Value, &b) != nil || b.Signer != jcs.Hex32(key) || b.Verify() != nil {
			n.cfg.Log.Warn("the record of a burned key is not as its seller writes it", "key", jcs.Hex32(key))
		}
		return true, nil
	}
	return false, nil
}

// ShortCard returns the short card of a seller, as the network has it.
func (n *Network) ShortCard(ctx context.Context, seller [32]byte) ([]byte, error) {
	if err := n.waitJoined(ctx); err != nil {
		return nil, err
	}
	r, err := n.node.Mutable(ctx, seller, 0)
	if err == nil {
		_, err = card.ParseShort(r.Value)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: no card of this key on the network: %w", client.ErrUnreachable, err)
	}
	return r.Value, nil
}
