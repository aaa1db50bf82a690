package nwc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
)

// trackEvery is how often a payment on its way is asked about.
const trackEvery = time.Second

// WalletConfig says which wallet pays. Connection and Network are required.
type WalletConfig struct {
	Connection string // the URI
	Network    bolt11.Network
	Log        *slog.Logger // nil discards
}

// Wallet is a wallet that pays. It implements [payment.Wallet]. NIP-47 has no limit of
// fees: the wallet's own holds, and what a payment cost is counted.
type Wallet struct {
	*client
	network bolt11.Network
}

// NewWallet returns a wallet. The error is about the configuration; nobody is asked.
func NewWallet(cfg WalletConfig) (*Wallet, error) {
	c, err := newClient(cfg.Connection, cfg.Log)
	return &Wallet{c, cfg.Network}, err
}

// Network implements [payment.Wallet].
func (w *Wallet) Network() bolt11.Network { return w.network }

// Pay implements [payment.Wallet].
func (w *Wallet) Pay(ctx context.Context, p payment.Payment) (proof payment.Proof, err error) {
	v, err := bolt11.Parse(p.Request)
	if err == nil && (v.Msat != p.Msat || v.Network != w.network) {
		err = fmt.Errorf("nwc: an invoice of %d msat on %s, and %d are to be paid on %s", v.Msat, v.Network, p.Msat, w.network)
	}
	if err != nil {
		return proof, fmt.Errorf("%w: %w", payment.ErrDeclined, err)
	}
	i, err := w.learn(ctx)
	if err != nil {
		return proof, err
	}
	w.mu.Lock()
	able := i.may("pay_invoice") && i.may("lookup_invoice")
	w.mu.Unlock()
	if !able {
		return proof, errors.New("nwc: this connection may not both pay_invoice and lookup_invoice, without which nobody would know what became of a payment: the wallet must allow it")
	}
	if proof, err = w.before(ctx, v.Hash); !errors.Is(err, errNotPaid) {
		return proof, err
	}
	var out transaction
	err = w.call(ctx, "pay_invoice", map[string]string{"invoice": p.Request}, &out)
	if err == nil {
		return out.proof(v.Hash)
	}
	if ctx.Err() != nil {
		return proof, context.Cause(ctx)
	}
	// What the wallet has of it counts, and not how it called what happened.
	said := err
	proof, err = w.before(ctx, v.Hash)
	switch {
	case errors.Is(err, errFailed),
		errors.Is(err, errNotPaid) && isCode(said, refusals...),
		errors.Is(err, errNotPaid) && time.Now().After(v.ExpiresAt().Add(lateTime)):
		err = fmt.Errorf("%w: %w", payment.ErrDeclined, said)
	case errors.Is(err, errNotPaid):
		err = fmt.Errorf("%w; the wallet knows nothing of it yet", said)
	}
	return proof, err
}

// refusals are what a wallet says before it begins a payment.
var refusals = []string{"PAYMENT_FAILED", "INSUFFICIENT_BALANCE", "QUOTA_EXCEEDED", "RESTRICTED", "UNAUTHORIZED", "NOT_IMPLEMENTED", "RATE_LIMITED", "UNSUPPORTED_ENCRYPTION"}

// lateTime is how long after its end an invoice may still be paid.
const lateTime = 2 * time.Minute

// What became of an earlier attempt.
var (
	errNotPaid = errors.New("nwc: the wallet did not pay it before")
	errFailed  = fmt.Errorf("%w: it failed", errNotPaid)
)

// proof returns what shows that it was paid.
func (t *transaction) proof(hash [32]byte) (p payment.Proof, err error) {
	b, err := hex.DecodeString(t.Preimage)
	if err != nil || len(b) != len(p.Preimage) {
		return p, fmt.Errorf("nwc: preimage %.80q", t.Preimage)
	}
	p.Preimage, p.Fee = [32]byte(b), uint64(t.Fees)
	return p, p.Check(hash)
}

// before finds out whether a payment was begun before, and waits for its end. The error
// wraps [errNotPaid] if there is none, and [errFailed] if it failed.
func (w *Wallet) before(ctx context.Context, hash [32]byte) (p payment.Proof, err error) {
	for {
		var out transaction
		err := w.call(ctx, "lookup_invoice", map[string]string{"payment_hash": hex.EncodeToString(hash[:])}, &out)
		switch {
		case isCode(err, "NOT_FOUND"), err == nil && out.Type == "incoming":
			return p, errNotPaid
		case err != nil:
			return p, err
		case out.State == "failed" || out.State == "expired":
			return p, errFailed
		case out.settled():
			return out.proof(hash)
		}
		select {
		case <-time.After(trackEvery):
		case <-ctx.Done():
			return p, context.Cause(ctx)
		}
	}
}
