// Package nwctest is a relay and a wallet behind it, for tests without a network: the
// relay keeps what it gets and passes it on; the wallet's money is that of the test wallet.
// The relay and wallets of others are in test/nostr.
package nwctest

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/nostr"

	"github.com/gorilla/websocket"
)

// Relay is a relay: it passes events on to whoever subscribed, whatever he asked for.
type Relay struct {
	*httptest.Server

	mu     sync.Mutex
	conns  map[*websocket.Conn]*sync.Mutex // guarded by mu, like all below
	stored []json.RawMessage               // those that replace others
	Deny   func(e *nostr.Event) string     // why an event is not taken; "" takes it
	Drop   func(e *nostr.Event) bool       // an event that is said to be taken, and is lost
	Auth   bool                            // who does not say who he is hears nothing
}

// NewRelay starts a relay.
func NewRelay() *Relay {
	r := &Relay{conns: map[*websocket.Conn]*sync.Mutex{}}
	r.Server = httptest.NewServer(r)
	return r
}

// URL returns where it is.
func (r *Relay) Address() string { return "ws" + strings.TrimPrefix(r.Server.URL, "http") }

// Cut ends all connections.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// ServeHTTP implements http.Handler.
func (r *Relay) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	up := websocket.Upgrader{}
	c, err := up.Upgrade(w, q, nil)
	if err != nil {
		return
	}
	defer c.Close()
	lock := &sync.Mutex{}
	say := func(v ...any) {
		lock.Lock()
		defer lock.Unlock()
		c.WriteJSON(v) //nolint:errcheck // it hung up
	}
	const challenge = "who are you?"
	known := !r.Auth
	if r.Auth {
		say("AUTH", challenge)
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.conns, c)
	}()
	for {
		var m []json.RawMessage
		if err := c.ReadJSON(&m); err != nil || len(m) < 2 {
			return
		}
		var e nostr.Event
		switch what := strings.Trim(string(m[0]), `"`); {
		case what == "AUTH":
			known = json.Unmarshal(m[1], &e) == nil && e.Verify() == nil && e.Tag("challenge") == challenge
			say("OK", e.ID, known, "")
		case what == "REQ" && !known:
			say("CLOSED", "edge", "auth-required: say who you are")
		case what == "REQ":
			r.mu.Lock()
			stored := slices.Clone(r.stored)
			r.conns[c] = lock
			r.mu.Unlock()
			for _, b := range stored {
				say("EVENT", "edge", b)
			}
			say("EOSE", "edge")
		case what == "EVENT":
			if json.Unmarshal(m[1], &e) != nil || e.Verify() != nil {
				say("OK", e.ID, false, "invalid: the signature")
				continue
			}
			if r.Deny != nil {
				if why := r.Deny(&e); why != "" {
					say("OK", e.ID, false, why)
					continue
				}
			}
			if r.Drop == nil || !r.Drop(&e) {
				r.pass(&e, m[1])
			}
			say("OK", e.ID, true, "")
		}
	}
}

// pass passes an event on.
func (r *Relay) pass(e *nostr.Event, b json.RawMessage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Kind >= 10_000 && e.Kind < 20_000 {
		r.stored = append(r.stored, b)
	}
	for c, lock := range r.conns {
		lock.Lock()
		c.WriteJSON([]any{"EVENT", "edge", b}) //nolint:errcheck // it hung up
		lock.Unlock()
	}
}

// Wallet is a wallet behind relays.
type Wallet struct {
	Node    *devnet.Node
	Methods []string
	How     nostr.Encryption
	Notices bool
	// Answer changes what is answered to a method; nil does not.
	Answer func(method string, result map[string]any, code string) (map[string]any, string)

	key, client *nostr.Key
	secret      string
	relays      []*Relay
	conns       []*nostr.Conn
	stop        context.CancelFunc
	wg          sync.WaitGroup

	mu   sync.Mutex
	seen map[string]bool
	paid map[[32]byte]payment.Proof
}

// Start has the wallet answer at relays.
func (w *Wallet) Start(relays ...*Relay) (err error) {
	if w.key, err = nostr.ParseKey(strings.Repeat("11", 32)); err != nil {
		return err
	}
	w.secret = strings.Repeat("22", 32)
	if w.client, err = nostr.ParseKey(w.secret); err != nil {
		return err
	}
	w.relays, w.seen, w.paid = relays, map[string]bool{}, map[[32]byte]payment.Proof{}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(context.Background())
	for _, r := range relays {
		if err := w.at(ctx, r); err != nil {
			return err
		}
	}
	if w.Notices {
		w.wg.Go(func() {
			w.Node.Watch(ctx, "", func(st payment.Status, _ string) error { //nolint:errcheck // until it is stopped
				for _, c := range w.conns {
					w.say(ctx, c, 23197, map[string]any{"notification_type": "payment_received", "notification": w.describe(st)})
				}
				return nil
			})
		})
	}
	return nil
}

// at answers at a relay.
func (w *Wallet) at(ctx context.Context, r *Relay) error {
	requests := make(chan *nostr.Event, 100)
	conn, err := nostr.Dial(ctx, r.Address(), w.key, func(e *nostr.Event) { requests <- e }, nostr.Filter{Kinds: []int{23194}})
	if err != nil {
		return err
	}
	w.conns = append(w.conns, conn)
	tags := [][]string{}
	if w.How == nostr.NIP44 {
		tags = append(tags, []string{"encryption", "nip44_v2 nip04"})
	}
	if w.Notices {
		tags = append(tags, []string{"notifications", "payment_received payment_sent"})
	}
	e, err := nostr.NewEvent(w.key, 13194, strings.Join(w.Methods, " "), tags...)
	if err != nil {
		return err
	}
	w.wg.Go(func() {
		for {
			select {
			case e := <-requests:
				w.answer(ctx, conn, e)
			case <-ctx.Done():
				return
			}
		}
	})
	return conn.Publish(ctx, e)
}

// Close ends it.
func (w *Wallet) Close() {
	w.stop()
	for _, c := range w.conns {
		c.Close()
	}
	w.wg.Wait()
}

// Connection returns the URI.
func (w *Wallet) Connection() string {
	text := "nostr+walletconnect://" + w.key.Public() + "?"
	for _, r := range w.relays {
		text += "relay=" + r.Address() + "&"
	}
	return text + "secret=" + w.secret
}

func (w *Wallet) say(ctx context.Context, c *nostr.Conn, kind int, what any, tags ...[]string) {
	b, err := json.Marshal(what)
	if err != nil {
		return
	}
	text, err := w.key.Encrypt(w.How, w.client.Public(), string(b))
	if err != nil {
		return
	}
	e, err := nostr.NewEvent(w.key, kind, text, append([][]string{{"p", w.client.Public()}}, tags...)...)
	if err == nil {
		c.Publish(ctx, e) //nolint:errcheck // nobody hears it
	}
}

func (w *Wallet) describe(st payment.Status) map[string]any {
	m := map[string]any{"type": "incoming", "payment_hash": hex.EncodeToString(st.Hash[:]), "amount": st.Paid, "state": map[payment.State]string{
		payment.Open: "pending", payment.Accepted: "accepted", payment.Settled: "settled", payment.Canceled: "expired",
	}[st.State]}
	if st.State == payment.Settled {
		m["settled_at"] = time.Now().Unix()
		if st.Preimage != nil {
			m["preimage"] = hex.EncodeToString(st.Preimage[:])
		}
	}
	return m
}

func (w *Wallet) answer(ctx context.Context, c *nostr.Conn, e *nostr.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[e.ID] || e.PubKey != w.client.Public() || e.Kind != 23194 {
		return
	}
	w.seen[e.ID] = true
	text, err := w.key.Decrypt(w.How, e.PubKey, e.Content)
	var q struct {
		Method string
		Params struct {
			Amount      uint64 `json:"amount"`
			Description string `json:"description"`
			Expiry      int64  `json:"expiry"`
			Hash        string `json:"payment_hash"`
			Invoice     string `json:"invoice"`
		}
	}
	if err != nil || json.Unmarshal([]byte(text), &q) != nil {
		return
	}
	result, code := w.do(ctx, q.Method, q.Params.Amount, q.Params.Description, time.Duration(q.Params.Expiry)*time.Second, q.Params.Hash, q.Params.Invoice)
	if w.Answer != nil {
		result, code = w.Answer(q.Method, result, code)
	}
	if code == "silence" {
		return
	}
	out := map[string]any{"result_type": q.Method, "error": nil, "result": result}
	if code != "" {
		out["error"], out["result"] = map[string]string{"code": code, "message": "no"}, nil
	}
	w.say(ctx, c, 23195, out, []string{"e", e.ID})
}

// do does what is asked for. mu is held.
func (w *Wallet) do(ctx context.Context, method string, msat uint64, text string, expiry time.Duration, hash, invoice string) (map[string]any, string) {
	if !slices.Contains(w.Methods, method) {
		return nil, "RESTRICTED"
	}
	switch method {
	case "get_info":
		return map[string]any{"network": "regtest", "methods": w.Methods}, ""
	case "make_invoice":
		v, err := w.Node.Create(ctx, payment.Request{Msat: msat, Description: text, Expiry: expiry})
		if err != nil {
			return nil, "OTHER"
		}
		return map[string]any{"type": "incoming", "invoice": v.Request, "payment_hash": hex.EncodeToString(v.Hash[:]), "amount": msat}, ""
	case "list_transactions":
		return map[string]any{"transactions": []any{}}, ""
	case "pay_invoice":
		v, err := bolt11.Parse(invoice)
		if err != nil {
			return nil, "OTHER"
		}
		preimage, err := w.Node.Pay(invoice, 0)
		if err != nil {
			return nil, "PAYMENT_FAILED"
		}
		w.paid[v.Hash] = payment.Proof{Preimage: preimage, Fee: 7}
		return map[string]any{"preimage": hex.EncodeToString(preimage[:]), "fees_paid": 7}, ""
	case "lookup_invoice":
		b, err := hex.DecodeString(hash)
		if err != nil || len(b) != 32 {
			return nil, "NOT_FOUND"
		}
		if p, ok := w.paid[[32]byte(b)]; ok {
			return map[string]any{"type": "outgoing", "payment_hash": hash, "state": "settled", "preimage": hex.EncodeToString(p.Preimage[:]), "fees_paid": p.Fee}, ""
		}
		if slices.Contains(w.Methods, "pay_invoice") {
			return nil, "NOT_FOUND"
		}
		st, err := w.Node.Lookup(ctx, [32]byte(b), "")
		if err != nil {
			return nil, "NOT_FOUND"
		}
		return w.describe(st), ""
	}
	return nil, fmt.Sprintf("NOT_IMPLEMENTED: %s", method)
}
