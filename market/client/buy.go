package client

import (
	"context"
	"errors"

	"dazaar-edge/market/archive"
	"dazaar-edge/market/card"
	"dazaar-edge/market/purse"
	"dazaar-edge/storage/durable"
)

// StateError says that the directory of a purchase cannot be used.
type StateError struct{ Err error }

func (e *StateError) Error() string { return "market: state: " + e.Err.Error() }
func (e *StateError) Unwrap() error { return e.Err }

// Buy buys from one seller, and keeps in dir what must not be forgotten: who the buyer
// is, how far its output is, what it paid. It goes on where the last call with this
// directory ended; cfg.Archive and cfg.Purse are opened there. Errors are those of
// [Client.Run], or a [StateError].
func Buy(ctx context.Context, dir string, cfg Config) (err error) {
	a, err := archive.Open(durable.OS(), dir)
	if err != nil {
		return &StateError{err}
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	p, err := purse.Open(durable.OS(), dir)
	if err != nil {
		return &StateError{err}
	}
	cfg.Archive, cfg.Purse = a, p
	if cfg.Card != nil {
		if err := newer(p, cfg); err != nil {
			return err
		}
	}
	c, err := New(cfg)
	if errors.Is(err, ErrOutput) {
		return err
	} else if err != nil {
		return &StateError{err}
	}
	return c.Run(ctx)
}

// newer keeps a card that was given, if it is newer than what is kept.
func newer(p *purse.Purse, cfg Config) error {
	given, err := card.Parse(cfg.Card, &cfg.Seller, 0)
	if err != nil {
		return err
	}
	if b := p.Card(); b != nil {
		if kept, err := card.Parse(b, &cfg.Seller, 0); err != nil {
			return nil // another seller's state, which is said by others
		} else if kept.Version >= given.Version {
			return nil
		}
	}
	return p.SetCard(cfg.Card)
}
