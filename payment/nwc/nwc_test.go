package nwc

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/gatewaytest"
	"dazaar-edge/payment/nostr"
	"dazaar-edge/payment/nwc/nwctest"
	"dazaar-edge/storage/durable"
)

var receives = []string{"get_info", "make_invoice", "lookup_invoice", "list_transactions"}

// start starts a wallet behind relays.
func start(t *testing.T, w *nwctest.Wallet, relays int) []*nwctest.Relay {
	t.Helper()
	var err error
	if w.Node == nil {
		if w.Node, err = devnet.Open(durable.OS(), t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if w.How == "" {
		w.How = nostr.NIP44
	}
	var list []*nwctest.Relay
	for range relays {
		r := nwctest.NewRelay()
		t.Cleanup(r.Close)
		t.Cleanup(r.Cut)
		list = append(list, r)
	}
	if err := w.Start(list...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return list
}

func gateway(t *testing.T, w *nwctest.Wallet, change func(*Config)) *Gateway {
	t.Helper()
	cfg := Config{Name: "nwc", Connection: w.Connection(), Network: bolt11.Regtest}
	if change != nil {
		change(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

func TestGateway(t *testing.T) {
	for name, c := range map[string]struct {
		w *nwctest.Wallet
		o gatewaytest.Options
	}{
		"nip44": {&nwctest.Wallet{Methods: receives, Notices: true}, gatewaytest.Options{}},
		"nip04": {&nwctest.Wallet{Methods: receives, How: nostr.NIP04}, gatewaytest.Options{NoEvents: true}},
	} {
		t.Run(name, func(t *testing.T) {
			start(t, c.w, 1)
			gatewaytest.Run(t, gateway(t, c.w, nil), c.w.Node, c.o)
		})
	}
}

var request = payment.Request{Msat: 5000, Description: "dazaar: a sale", Short: "short", Expiry: time.Minute}

// TestSpends: a connection that may pay is refused, unless that is said to be all right;
// whether it says so in its event or only when it is asked.
func TestSpends(t *testing.T) {
	w := nwctest.Wallet{Methods: append([]string{"pay_invoice"}, receives...)}
	start(t, &w, 1)
	for _, f := range []func(*Gateway) error{
		func(g *Gateway) error { _, err := g.Create(t.Context(), request); return err },
		func(g *Gateway) error { _, err := g.Identity(t.Context()); return err },
		func(g *Gateway) error { return g.Health(t.Context()) },
		func(g *Gateway) error { return g.Watch(t.Context(), "", nil) },
	} {
		if err := f(gateway(t, &w, nil)); !errors.Is(err, ErrSpends) || !errors.Is(err, payment.ErrUnpayable) {
			t.Error(err)
		}
	}
	if _, err := gateway(t, &w, func(c *Config) { c.MaySpend = true }).Create(t.Context(), request); err != nil {
		t.Error(err)
	}
	hides := nwctest.Wallet{Methods: receives, Answer: func(method string, result map[string]any, code string) (map[string]any, string) {
		if method == "get_info" {
			result["methods"] = []string{"make_invoice", "lookup_invoice", "multi_pay_invoice"}
		}
		return result, code
	}}
	start(t, &hides, 1)
	if err := gateway(t, &hides, nil).Health(t.Context()); !errors.Is(err, ErrSpends) {
		t.Error(err)
	}
}

// TestWrong: what cannot be is said, with its remedy.
func TestWrong(t *testing.T) {
	poor := nwctest.Wallet{Methods: []string{"get_info", "lookup_invoice"}}
	start(t, &poor, 1)
	if err := gateway(t, &poor, nil).Health(t.Context()); err == nil || !strings.Contains(err.Error(), "may not make_invoice") {
		t.Error(err)
	}
	w := nwctest.Wallet{Methods: receives}
	start(t, &w, 1)
	if _, err := gateway(t, &w, func(c *Config) { c.Network = bolt11.Bitcoin }).Create(t.Context(), request); !errors.Is(err, payment.ErrUnpayable) {
		t.Error(err)
	}
	// Custodial wallets get the short text.
	v, err := gateway(t, &w, func(c *Config) { c.Custodial = true }).Create(t.Context(), request)
	if err != nil || v.Description != "short" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, bad := range []string{
		"", "https://x", "nostr+walletconnect://abc?relay=wss://r&secret=" + strings.Repeat("1", 64), "nostr+walletconnect://" + strings.Repeat("a", 64) + "?secret=" + strings.Repeat("1", 64),
		"nostr+walletconnect://" + strings.Repeat("a", 64) + "?relay=wss://r&secret=5ecre7", "nostr+walletconnect://" + strings.Repeat("a", 64) + "?relay=https://r&secret=" + strings.Repeat("1", 64),
	} {
		_, err := New(Config{Connection: bad})
		if err == nil || strings.Contains(err.Error(), "5ecre7") || strings.Contains(err.Error(), strings.Repeat("1", 64)) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// What it says of another invoice is not believed.
	lies := nwctest.Wallet{Methods: receives, Answer: func(method string, result map[string]any, code string) (map[string]any, string) {
		if method == "lookup_invoice" {
			return map[string]any{"type": "incoming", "state": "settled", "payment_hash": strings.Repeat("0", 64), "amount": 5000}, ""
		}
		return result, code
	}}
	start(t, &lies, 1)
	if _, err := gateway(t, &lies, nil).Lookup(t.Context(), [32]byte{1}, ""); err == nil || errors.Is(err, payment.ErrUnknown) {
		t.Error(err)
	}
}

// TestFailover: when a relay is gone the next one is used, also for watching; one that
// refuses is no better than one that is gone.
func TestFailover(t *testing.T) {
	w := nwctest.Wallet{Methods: receives, Notices: true}
	relays := start(t, &w, 2)
	g := gateway(t, &w, nil)
	if _, err := g.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- g.Watch(t.Context(), "", func(payment.Status, string) error { return nil })
	}()
	// It watches when it is told of something.
	for watching := false; !watching; {
		g.mu.Lock()
		watching = g.tell != nil
		g.mu.Unlock()
	}
	relays[0].Cut()
	relays[0].Close()
	if err := <-ended; !errors.Is(err, nostr.ErrClosed) {
		t.Error(err)
	}
	if _, err := g.Create(t.Context(), request); err != nil {
		t.Error(err)
	}
	relays[1].Cut()
	relays[1].Close()
	if _, err := g.Create(t.Context(), request); !errors.Is(err, payment.ErrUnpayable) {
		t.Error(err)
	}
}

// TestAuth: a relay that wants to know who one is is told.
func TestAuth(t *testing.T) {
	w := nwctest.Wallet{Methods: receives}
	relays := start(t, &w, 1)
	relays[0].Auth = true
	if _, err := gateway(t, &w, nil).Create(t.Context(), request); err != nil {
		t.Error(err)
	}
}

// TestWallet pays: once, also when the answer was lost; what the wallet refuses is
// declined, and what nobody answers is in doubt.
func TestWallet(t *testing.T) {
	node, err := devnet.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var refuse atomic.Value
	refuse.Store("")
	payments := 0
	w := nwctest.Wallet{Node: node, Methods: []string{"get_info", "pay_invoice", "lookup_invoice"}, Answer: func(method string, result map[string]any, code string) (map[string]any, string) {
		if method == "pay_invoice" {
			payments++
			if c := refuse.Load().(string); c != "" {
				return nil, c
			}
		}
		return result, code
	}}
	start(t, &w, 1)
	wallet, err := NewWallet(WalletConfig{Connection: w.Connection(), Network: bolt11.Regtest})
	if err != nil {
		t.Fatal(err)
	}
	defer wallet.Close()
	invoice := func() payment.Payment {
		v, err := node.Create(context.Background(), request)
		if err != nil {
			t.Fatal(err)
		}
		return payment.Payment{Request: v.Request, Msat: 5000, MaxFee: 100}
	}
	first := invoice()
	proof, err := wallet.Pay(t.Context(), first)
	if err != nil || proof.Fee != 7 {
		t.Fatalf("%+v, %v", proof, err)
	}
	if again, err := wallet.Pay(t.Context(), first); err != nil || again != proof || payments != 1 {
		t.Errorf("%+v, %v, %d payments", again, err, payments)
	}
	// It paid, and says that it did not: looking shows it.
	refuse.Store("PAYMENT_FAILED")
	if _, err := wallet.Pay(t.Context(), invoice()); err != nil {
		t.Error(err)
	}
	refuse.Store("INTERNAL")
	if _, err := wallet.Pay(t.Context(), invoice()); err != nil {
		t.Error(err)
	}
	if _, err := wallet.Pay(t.Context(), payment.Payment{Request: first.Request, Msat: 4000}); !errors.Is(err, payment.ErrDeclined) {
		t.Error(err)
	}
	poor := nwctest.Wallet{Node: node, Methods: []string{"get_info"}}
	start(t, &poor, 1)
	wallet, err = NewWallet(WalletConfig{Connection: poor.Connection(), Network: bolt11.Regtest})
	if err != nil {
		t.Fatal(err)
	}
	defer wallet.Close()
	if _, err := wallet.Pay(t.Context(), invoice()); err == nil || errors.Is(err, payment.ErrDeclined) || !strings.Contains(err.Error(), "lookup_invoice") {
		t.Error(err)
	}
}

// TestOutcome: only what the wallet knows of a payment afterwards says that it was not made.
func TestOutcome(t *testing.T) {
	node, err := devnet.Open(durable.OS(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		said     string
		lookup   map[string]any
		code     string
		declined bool
	}{
		"failed":          {"INTERNAL", map[string]any{"type": "outgoing", "state": "failed"}, "", true},
		"refused":         {"INSUFFICIENT_BALANCE", nil, "NOT_FOUND", true},
		"unknown yet":     {"INTERNAL", nil, "NOT_FOUND", false},
		"nobody knows":    {"PAYMENT_FAILED", nil, "INTERNAL", false},
		"may not look":    {"PAYMENT_FAILED", nil, "RESTRICTED", false},
		"without a proof": {"PAYMENT_FAILED", map[string]any{"type": "outgoing", "state": "settled", "fees_paid": -1}, "", false},
		"on its way":      {"PAYMENT_FAILED", map[string]any{"type": "outgoing", "state": "pending"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			w := nwctest.Wallet{Node: node, Methods: []string{"get_info", "pay_invoice", "lookup_invoice"}, Answer: func(method string, result map[string]any, code string) (map[string]any, string) {
				switch {
				case method == "pay_invoice":
					return nil, c.said
				case method == "lookup_invoice":
					if asked++; asked > 1 {
						return c.lookup, c.code
					}
					return nil, "NOT_FOUND"
				}
				return result, code
			}}
			start(t, &w, 1)
			wallet, err := NewWallet(WalletConfig{Connection: w.Connection(), Network: bolt11.Regtest})
			if err != nil {
				t.Fatal(err)
			}
			defer wallet.Close()
			v, err := node.Create(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			patience := 3 * time.Second // until the end of which it asks again
			if c.declined {
				patience = time.Minute
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := wallet.Pay(ctx, payment.Payment{Request: v.Request, Msat: 5000}); err == nil || errors.Is(err, payment.ErrDeclined) != c.declined {
				t.Error(err)
			}
		})
	}
}

// TestSilent: where the wallet is silent, or the relay refuses its events, the next relay is
// asked.
func TestSilent(t *testing.T) {
	for name, change := range map[string]func(*nwctest.Relay){
		"silent": func(r *nwctest.Relay) { r.Drop = func(e *nostr.Event) bool { return e.Kind == 23194 } },
		"refuses": func(r *nwctest.Relay) {
			r.Deny = func(e *nostr.Event) string { return map[bool]string{true: "rate-limited"}[e.Kind == 23194] }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := nwctest.Wallet{Methods: receives}
			change(start(t, &w, 2)[0])
			g := gateway(t, &w, nil)
			ctx, cancel := context.WithTimeout(t.Context(), silence+10*time.Second)
			defer cancel()
			if _, err := g.Create(ctx, request); err == nil { // a relay that refuses is left at once
				return
			}
			if _, err := g.Create(t.Context(), request); err != nil {
				t.Error(err)
			}
		})
	}
}

func FuzzConnection(f *testing.F) {
	f.Add("nostr+walletconnect://" + strings.Repeat("ab", 32) + "?relay=wss%3A%2F%2Fr&relay=ws://x&secret=" + strings.Repeat("12", 32))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseConnection(text)
		if err == nil && (len(c.Wallet) != 64 || len(c.Relays) == 0) {
			t.Errorf("%+v", c)
		}
	})
}
