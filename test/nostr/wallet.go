package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nbd-wtf/go-nostr"
	"github.com/nbd-wtf/go-nostr/nip04"
	"github.com/nbd-wtf/go-nostr/nip44"
)

// node is an lnd of the lab.
type node struct {
	REST, Cert, Admin string

	client *http.Client
	secret string
}

func readLab(name string) (map[string]*node, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	nodes := map[string]*node{}
	if err := json.Unmarshal(b, &nodes); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		pem, err := os.ReadFile(n.Cert)
		if err != nil {
			return nil, err
		}
		macaroon, err := os.ReadFile(n.Admin)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		n.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
		n.secret = hex.EncodeToString(macaroon)
	}
	return nodes, nil
}

// ask calls the node; of a stream it reads the first line.
func (n *node) ask(ctx context.Context, method, path string, in, out any) error {
	resp, err := n.open(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(out)
}

func (n *node) open(ctx context.Context, method, path string, in any) (*http.Response, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, n.REST+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Grpc-Metadata-macaroon", n.secret)
	resp, err := n.client.Do(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s: %s", resp.Status, b)
	}
	return resp, nil
}

// wallet is one connection of NIP-47, with a node behind it.
type wallet struct {
	node         *node
	methods      []string
	old, notices bool
	key, client  string // secrets: the wallet's, and that of who uses it
	pub, to      string // their public keys

	mu     sync.Mutex
	relays map[string]*nostr.Relay // by URL; guarded by mu, like all below
	seen   map[string]bool         // requests
}

func (w *wallet) connected() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.relays)
}

// serve answers at one relay, for ever.
func (w *wallet) serve(ctx context.Context, url string) {
	for ctx.Err() == nil {
		if err := w.at(ctx, url); err != nil && ctx.Err() == nil {
			time.Sleep(200 * time.Millisecond)
		}
		w.mu.Lock()
		delete(w.relays, url)
		w.mu.Unlock()
	}
}

func (w *wallet) at(ctx context.Context, url string) error {
	r, err := nostr.RelayConnect(ctx, url)
	if err != nil {
		return err
	}
	defer r.Close()
	info := nostr.Event{PubKey: w.pub, CreatedAt: nostr.Now(), Kind: 13194, Content: strings.Join(w.methods, " ")}
	if !w.old {
		info.Tags = append(info.Tags, nostr.Tag{"encryption", "nip44_v2 nip04"})
	}
	if w.notices {
		info.Tags = append(info.Tags, nostr.Tag{"notifications", "payment_received"})
	}
	if err := info.Sign(w.key); err != nil {
		return err
	}
	if err := r.Publish(ctx, info); err != nil {
		return err
	}
	since := nostr.Now()
	sub, err := r.Subscribe(ctx, nostr.Filters{{Kinds: []int{23194}, Authors: []string{w.to}, Tags: nostr.TagMap{"p": {w.pub}}, Since: &since}})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.relays[url] = r
	w.mu.Unlock()
	for {
		select {
		case e, ok := <-sub.Events:
			if !ok {
				return errors.New("the relay is gone")
			}
			go w.answer(ctx, r, e)
		case <-r.Context().Done():
			return errors.New("the relay is gone")
		}
	}
}

func (w *wallet) seal(text string, old bool) (string, error) {
	if old {
		key, err := nip04.ComputeSharedSecret(w.to, w.key)
		if err != nil {
			return "", err
		}
		return nip04.Encrypt(text, key)
	}
	key, err := nip44.GenerateConversationKey(w.to, w.key)
	if err != nil {
		return "", err
	}
	return nip44.Encrypt(text, key)
}

func (w *wallet) open(text string, old bool) (string, error) {
	if old {
		key, err := nip04.ComputeSharedSecret(w.to, w.key)
		if err != nil {
			return "", err
		}
		return nip04.Decrypt(text, key)
	}
	key, err := nip44.GenerateConversationKey(w.to, w.key)
	if err != nil {
		return "", err
	}
	return nip44.Decrypt(text, key)
}

// failure is an error of NIP-47.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (w *wallet) answer(ctx context.Context, r *nostr.Relay, e *nostr.Event) {
	w.mu.Lock()
	seen := w.seen[e.ID]
	w.seen[e.ID] = true
	w.mu.Unlock()
	if ok, err := e.CheckSignature(); seen || !ok || err != nil {
		return
	}
	old := strings.Contains(e.Content, "?iv=")
	text, err := w.open(e.Content, old)
	if err != nil || w.old && !old {
		log.Print("a request that cannot be read: ", err)
		return
	}
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
	out := map[string]any{}
	var fail *failure
	if err := json.Unmarshal([]byte(text), &q); err != nil {
		fail = &failure{"OTHER", err.Error()}
	} else if !contains(w.methods, q.Method) {
		fail = &failure{"RESTRICTED", "this connection may not " + q.Method}
	} else {
		p := q.Params
		switch q.Method {
		case "get_info":
			out = map[string]any{"alias": "lab", "network": "regtest", "methods": w.methods}
		case "make_invoice":
			out, fail = w.make(ctx, p.Amount, p.Description, p.Expiry)
		case "lookup_invoice":
			out, fail = w.lookup(ctx, p.Hash)
		case "list_transactions":
			out, fail = w.list(ctx)
		case "pay_invoice":
			out, fail = w.pay(ctx, p.Invoice)
		}
	}
	w.say(ctx, r, 23195, old, map[string]any{"result_type": q.Method, "error": fail, "result": out}, nostr.Tag{"e", e.ID})
}

// say sends an event to who uses the wallet.
func (w *wallet) say(ctx context.Context, r *nostr.Relay, kind int, old bool, what any, tags ...nostr.Tag) {
	b, err := json.Marshal(what)
	if err != nil {
		log.Print(err)
		return
	}
	sealed, err := w.seal(string(b), old)
	if err != nil {
		log.Print(err)
		return
	}
	e := nostr.Event{PubKey: w.pub, CreatedAt: nostr.Now(), Kind: kind, Content: sealed, Tags: append(nostr.Tags{{"p", w.to}}, tags...)}
	if err := e.Sign(w.key); err != nil {
		log.Print(err)
		return
	}
	r.Publish(ctx, e) //nolint:errcheck // the relay is gone: nobody hears it
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// invoice is one as lnd describes it.
type invoice struct {
	Hash     []byte `json:"r_hash"`
	Preimage []byte `json:"r_preimage"`
	State    string `json:"state"`
	Value    string `json:"value_msat"`
	Paid     string `json:"amt_paid_msat"`
	Request  string `json:"payment_request"`
	Settled  string `json:"settle_date"`
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

func (v *invoice) describe() map[string]any {
	m := map[string]any{"type": "incoming", "invoice": v.Request, "payment_hash": hex.EncodeToString(v.Hash), "amount": number(v.Value), "state": "pending"}
	switch v.State {
	case "SETTLED":
		m["state"], m["amount"], m["settled_at"], m["preimage"] = "settled", number(v.Paid), number(v.Settled), hex.EncodeToString(v.Preimage)
	case "ACCEPTED":
		m["state"], m["amount"] = "accepted", number(v.Paid)
	case "CANCELED":
		m["state"] = "expired"
	}
	return m
}

func (w *wallet) make(ctx context.Context, msat uint64, text string, expiry int64) (map[string]any, *failure) {
	var out struct {
		Hash    []byte `json:"r_hash"`
		Request string `json:"payment_request"`
	}
	in := map[string]any{"memo": text, "value_msat": strconv.FormatUint(msat, 10), "expiry": strconv.FormatInt(expiry, 10)}
	if err := w.node.ask(ctx, "POST", "/v1/invoices", in, &out); err != nil {
		return nil, &failure{"INTERNAL", err.Error()}
	}
	return map[string]any{"type": "incoming", "invoice": out.Request, "payment_hash": hex.EncodeToString(out.Hash), "amount": msat}, nil
}

func (w *wallet) lookup(ctx context.Context, hash string) (map[string]any, *failure) {
	if contains(w.methods, "make_invoice") {
		var v invoice
		if err := w.node.ask(ctx, "GET", "/v1/invoice/"+hash, nil, &v); err != nil {
			return nil, &failure{"NOT_FOUND", err.Error()}
		}
		m := v.describe()
		if w.old { // as it was before there were states
			if m["state"] != "settled" {
				m["settled_at"] = nil
			}
			delete(m, "state")
		}
		return m, nil
	}
	b, err := hex.DecodeString(hash)
	if err != nil {
		return nil, &failure{"NOT_FOUND", err.Error()}
	}
	var out payment
	if err := w.node.ask(ctx, "GET", "/v2/router/track/"+base64.URLEncoding.EncodeToString(b), nil, &out); err != nil || out.Result == nil {
		return nil, &failure{"NOT_FOUND", "no such payment"}
	}
	states := map[string]string{"SUCCEEDED": "settled", "FAILED": "failed"}
	m := map[string]any{"type": "outgoing", "payment_hash": hash, "state": "pending"}
	if s := states[out.Result.Status]; s != "" {
		m["state"], m["preimage"], m["fees_paid"] = s, out.Result.Preimage, number(out.Result.Fee)
	}
	return m, nil
}

func (w *wallet) list(ctx context.Context) (map[string]any, *failure) {
	var out struct{ Invoices []invoice }
	if err := w.node.ask(ctx, "GET", "/v1/invoices?reversed=true&num_max_invoices=10", nil, &out); err != nil {
		return nil, &failure{"INTERNAL", err.Error()}
	}
	list := []any{}
	for _, v := range out.Invoices {
		list = append(list, v.describe())
	}
	return map[string]any{"transactions": list}, nil
}

type payment struct {
	Result *struct {
		Status   string
		Preimage string `json:"payment_preimage"`
		Fee      string `json:"fee_msat"`
		Reason   string `json:"failure_reason"`
	}
}

func (w *wallet) pay(ctx context.Context, request string) (map[string]any, *failure) {
	var out payment
	in := map[string]any{"payment_request": request, "timeout_seconds": 20, "fee_limit_msat": "100000", "no_inflight_updates": true}
	err := w.node.ask(ctx, "POST", "/v2/router/send", in, &out)
	switch {
	case err != nil:
		return nil, &failure{"PAYMENT_FAILED", err.Error()}
	case out.Result == nil || out.Result.Status != "SUCCEEDED":
		return nil, &failure{"PAYMENT_FAILED", fmt.Sprintf("%+v", out.Result)}
	}
	return map[string]any{"preimage": out.Result.Preimage, "fees_paid": number(out.Result.Fee)}, nil
}

// watch tells of payments, at every relay.
func (w *wallet) watch(ctx context.Context) {
	resp, err := w.node.open(ctx, "GET", "/v1/invoices/subscribe", nil)
	if err != nil {
		log.Print(err)
		return
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(resp.Body); ; {
		var line struct{ Result invoice }
		if err := d.Decode(&line); err != nil {
			return
		}
		if line.Result.State != "SETTLED" {
			continue
		}
		w.mu.Lock()
		relays := []*nostr.Relay{}
		for _, r := range w.relays {
			relays = append(relays, r)
		}
		w.mu.Unlock()
		for _, r := range relays {
			w.say(ctx, r, 23197, false, map[string]any{"notification_type": "payment_received", "notification": line.Result.describe()})
		}
	}
}
