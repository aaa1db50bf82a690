package reach

import (
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
)

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
	var last uint64
	var at time.Time
	raised := false
	burned := map[[32]byte]time.Time{} // when it was published last
	for {
		if err := n.publishBurned(ctx, sold, burned); err != nil && ctx.Err() == nil {
			n.cfg.Log.Debug("a burned key is not on the network", "feed", name, "error", err)
		}
		b, version, err := card.NewShort(sold.Card())
		if err == nil && (version != last || time.Since(at) > publishEvery) {
			_, err = n.node.PutMutable(ctx, key, dht.Record{Seq: version, Value: b})
			switch {
			case err == nil:
				last, at = version, time.Now()
			case errors.Is(err, dht.ErrOlder) && last == 0 && !raised:
				// What was published last is older than what buyers have seen: it was restored.
				raised = true
				r, e := n.node.Mutable(ctx, [32]byte(key[ed25519.SeedSize:]), version)
				if e == nil {
					e = sold.Raise(max(r.Seq, version) + 1)
				}
				if e == nil {
					n.cfg.Log.Info("the network has a newer card of this feed, which was restored, it seems: the next one is newer still", "feed", name, "version", r.Seq+1)
					continue
				}
				err = e
			case errors.Is(err, dht.ErrOlder) && version != last:
				n.cfg.Log.Warn("the network has a newer card of this feed, or another one of this version: is it sold elsewhere, too, or was it restored?", "feed", name, "version", version)
				last, at = version, time.Now()
			}
		}
		if err != nil && ctx.Err() == nil {
			n.cfg.Log.Debug("the short card is not on the network", "feed", name, "error", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// burnedTime is for how long it is said again that a key was burned.
const burnedTime = 30 * 24 * time.Hour

// publishBurned keeps on the network that keys were burned, each under that key: who has the
// seed may write there, and so proves it.
func (n *Network) publishBurned(ctx context.Context, sold Sold, when map[[32]byte]time.Time) error {
	all, err := sold.Burned()
	if err != nil {
		return err
	}
	for _, b := range all {
		if now := time.Now(); now.Sub(b.At) > burnedTime || now.Sub(when[b.Signer]) < publishEvery {
			continue
		}
		value, err := market.BurnRecord(b)
		if err == nil {
			_, err = n.node.PutMutable(ctx, ed25519.NewKeyFromSeed(b.Seed[:]), dht.Record{Seq: uint64(max(b.At.Unix(), 1)), Value: value})
		}
		if err != nil && !errors.Is(err, dht.ErrOlder) { // somebody else says it, too
			return err
		}
		when[b.Signer] = time.Now()
	}
	return nil
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
