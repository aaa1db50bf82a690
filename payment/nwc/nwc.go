// Package nwc is a wallet at the other end of a Nostr relay, by Nostr Wallet Connect
// (NIP-47): one that is paid ([Gateway]), and one that pays ([Wallet]).
//
// # Connection
//
//	nostr+walletconnect://WALLET?relay=wss://…&relay=…&secret=HEX
//
// WALLET is the wallet's public key; the secret is ours, and made by the wallet for this
// connection alone: it says what that may do, and may take it back. Requests are events
// of kind 23194 for the wallet, answers such of 23195, what it says by itself 23197 (23196
// of older ones), all encrypted between the two keys by NIP-44, or NIP-04 if the wallet
// knows no better (event 13194 tells).
//
// A relay can delay and drop, not read nor forge. What was dropped is found by looking up.
//
// Source: specs/lightning.md, section 2; NIP-47.
package nwc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
)

// ErrSpends says that a connection may spend what it is paid.
var ErrSpends = fmt.Errorf("%w: this connection may also pay: whoever takes the board could empty the wallet; make one that may only receive, or say may_spend: true", payment.ErrUnpayable)

// MaxMsat is the largest invoice: a hundredth of a bitcoin.
const MaxMsat = 1_000_000_000

// Config says which wallet is paid. Name, Connection and Network are required.
type Config struct {
	Name       string
	Connection string // the URI
	Network    bolt11.Network
	// MaySpend takes a connection that may pay, too.
	MaySpend bool
	// Custodial: a service signs the invoices, with keys that may change.
	Custodial bool
	Log       *slog.Logger // nil discards
}

// Gateway is a wallet that is paid. It implements [payment.Gateway]; all methods are safe
// for concurrent use.
type Gateway struct {
	*client
	cfg Config

	seen  sync.Mutex
	id    payment.Identity // who was paid by the newest invoice; guarded by seen, like all below
	asked time.Time        // when it was made
}

// askEvery is how often at most an invoice is made to see who is paid, of a wallet that does
// not list any: each one is compared with that, too.
const askEvery = time.Hour

// New returns a gateway. The error is about the configuration; nobody is asked.
func New(cfg Config) (*Gateway, error) {
	c, err := newClient(cfg.Connection, cfg.Log)
	return &Gateway{client: c, cfg: cfg}, err
}

// Name implements [payment.Gateway].
func (g *Gateway) Name() string { return g.cfg.Name }

// spends are the methods that no gateway needs.
var spends = []string{"pay_invoice", "pay_keysend", "multi_pay_invoice", "multi_pay_keysend"}

// networkNames are those of NIP-47.
var networkNames = map[string]bolt11.Network{
	"mainnet": bolt11.Bitcoin, "bitcoin": bolt11.Bitcoin, "testnet": bolt11.Testnet, "signet": bolt11.Signet, "regtest": bolt11.Regtest,
}

// check tells whether the wallet may be used at all.
func (g *Gateway) check(ctx context.Context) (*info, error) {
	i, err := g.learn(ctx)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	methods, network := i.methods, i.network
	g.mu.Unlock()
	if !g.cfg.MaySpend && slices.ContainsFunc(spends, func(m string) bool { return slices.Contains(methods, m) }) {
		return nil, ErrSpends
	}
	for _, m := range []string{"make_invoice", "lookup_invoice"} {
		if !slices.Contains(methods, m) {
			return nil, fmt.Errorf("%w: nwc: this connection may not %s: the wallet must allow it", payment.ErrUnpayable, m)
		}
	}
	if n, ok := networkNames[network]; ok && n != g.cfg.Network {
		return nil, fmt.Errorf("%w: nwc: the wallet is on %s, and the configuration says %s", payment.ErrUnpayable, n, g.cfg.Network)
	}
	return i, nil
}

// Create implements [payment.Gateway].
func (g *Gateway) Create(ctx context.Context, r payment.Request) (x payment.Issued, err error) {
	if r.Msat == 0 || r.Msat > MaxMsat {
		return x, fmt.Errorf("%w: an invoice of %d msat; 1 to %d are possible", payment.ErrUnpayable, r.Msat, uint64(MaxMsat))
	}
	if _, err := g.check(ctx); err != nil {
		return x, err
	}
	var out transaction
	text := r.Description
	if g.cfg.Custodial && r.Short != "" {
		text = r.Short
	}
	in := map[string]any{"amount": r.Msat, "description": text, "expiry": int64(r.Expiry / time.Second)}
	if err := g.call(ctx, "make_invoice", in, &out); err != nil {
		if isCode(err, "RESTRICTED", "UNAUTHORIZED", "QUOTA_EXCEEDED", "NOT_IMPLEMENTED") {
			err = fmt.Errorf("%w: %w", payment.ErrUnpayable, err)
		}
		return x, err
	}
	v, err := r.Check(out.Invoice, g.cfg.Network)
	if err != nil {
		return x, fmt.Errorf("nwc: %w", err)
	}
	g.saw(v)
	return payment.Issued{Invoice: v, Request: out.Invoice}, nil
}

// Lookup implements [payment.Gateway].
func (g *Gateway) Lookup(ctx context.Context, hash [32]byte, _ string) (payment.Status, error) {
	var out transaction
	if err := g.call(ctx, "lookup_invoice", map[string]string{"payment_hash": hex.EncodeToString(hash[:])}, &out); err != nil {
		if isCode(err, "NOT_FOUND") {
			err = fmt.Errorf("%w: %w", payment.ErrUnknown, err)
		}
		return payment.Status{}, err
	}
	st, err := out.status()
	if err == nil && st.Hash != hash {
		err = fmt.Errorf("nwc: asked for %x, it speaks of %x", hash, st.Hash)
	}
	return st, err
}

// status returns how an invoice stands.
func (t *transaction) status() (st payment.Status, err error) {
	hash, err := hex.DecodeString(t.Hash)
	if err != nil || len(hash) != 32 {
		return st, fmt.Errorf("nwc: payment hash %.80q", t.Hash)
	}
	st.Hash, st.Paid = [32]byte(hash), uint64(t.Amount)
	switch {
	case t.Type == "outgoing":
		return st, errors.New("nwc: that is a payment of the wallet, not one to it")
	case t.settled():
		st.State = payment.Settled
		if p, err := hex.DecodeString(t.Preimage); err == nil && len(p) == 32 {
			st.Preimage = (*[32]byte)(p)
		}
	case t.State == "accepted":
		st.State = payment.Accepted
	case t.State == "expired", t.State == "failed":
		st.State = payment.Canceled
	}
	return st, nil
}

// Watch implements [payment.Gateway]. Notices that were missed do not come again: the
// cursor is always empty.
func (g *Gateway) Watch(ctx context.Context, _ string, f func(payment.Status, string) error) error {
	i, err := g.check(ctx)
	if err != nil {
		return err
	}
	conn, _ := g.current()
	switch {
	case !slices.Contains(i.notices, "payment_received"):
		return payment.ErrNoEvents
	case conn == nil:
		return fmt.Errorf("%w: nwc: the connection is gone", payment.ErrUnpayable)
	}
	// The connection must not wait for the ledger.
	notices := make(chan notice, 256)
	lost := make(chan struct{}, 1)
	g.mu.Lock()
	g.tell = func(n notice) {
		select {
		case notices <- n:
		default:
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.tell = nil
	}()
	for {
		select {
		case n := <-notices:
			if n.Type != "payment_received" {
				continue
			}
			st, err := n.Notice.status()
			if err == nil && (st.State != payment.Settled || st.Paid == 0) { // it says less than it might
				st, err = g.Lookup(ctx, st.Hash, "")
			}
			if err != nil {
				g.log.Warn("a payment that the wallet speaks of cannot be looked up", "gateway", g.cfg.Name, "error", err)
				continue // looking up what is open finds it
			}
			if err := f(st, ""); err != nil {
				return err
			}
		case <-lost:
			return errors.New("nwc: more notices came than could be taken")
		case <-conn.Done():
			return conn.Err()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Identity implements [payment.Gateway]: it looks at what the wallet made last, and has
// it make an invoice if there is nothing.
func (g *Gateway) Identity(ctx context.Context) (id payment.Identity, err error) {
	i, err := g.check(ctx)
	if err != nil {
		return id, err
	}
	g.mu.Lock()
	lists := i.may("list_transactions")
	g.mu.Unlock()
	if lists {
		var out struct{ Transactions []transaction }
		if err := g.call(ctx, "list_transactions", map[string]any{"limit": 10, "type": "incoming", "unpaid": true}, &out); err == nil {
			for _, t := range out.Transactions {
				if v, err := bolt11.Parse(t.Invoice); err == nil && v.Network == g.cfg.Network {
					return g.saw(v), nil
				}
			}
		}
	}
	g.seen.Lock()
	id, asked := g.id, g.asked
	g.seen.Unlock()
	if !asked.IsZero() && time.Since(asked) < askEvery {
		return id, nil
	}
	v, err := g.Create(ctx, payment.Request{Msat: 1000, Description: "edge: who is paid?", Expiry: time.Minute})
	if err != nil {
		return id, err
	}
	return g.saw(v.Invoice), nil
}

// saw notes who is paid by an invoice.
func (g *Gateway) saw(v *bolt11.Invoice) payment.Identity {
	g.seen.Lock()
	defer g.seen.Unlock()
	g.id, g.asked = payment.Identity{Network: v.Network, Payee: v.Payee, Floats: g.cfg.Custodial}, time.Now()
	return g.id
}

// Health implements [payment.Gateway]: it asks for a sign of life.
func (g *Gateway) Health(ctx context.Context) error {
	i, err := g.check(ctx)
	if err != nil || !i.may("get_info") {
		return err
	}
	if err := g.call(ctx, "get_info", struct{}{}, &struct{}{}); err != nil && !isCode(err, "NOT_IMPLEMENTED", "RESTRICTED") {
		return err
	}
	return nil
}
