// Package lndtest is a node that answers as lnd was seen to, for tests without one.
//
// Source: specs/lightning.md, section 1.
package lndtest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/storage/durable"
)

// Macaroon is what the node takes.
var Macaroon = []byte("a macaroon")

// Node answers as lnd does; its money is that of the test wallet.
type Node struct {
	*devnet.Node

	mu   sync.Mutex
	list [][32]byte // invoices, by their numbers from 1; guarded by mu, like all below
	text map[[32]byte]string
	deny string
	info map[string]any // by path; nil denies it
	// What it paid: fee limits, and payments by hash.
	state, reason string
	sent          []uint64
	paid          map[[32]byte]outgoing
}

// New returns a node that keeps what it has in a directory.
func New(dir string) (*Node, error) {
	n, err := devnet.Open(durable.OS(), dir)
	return &Node{Node: n, text: map[[32]byte]string{}, state: "SERVER_ACTIVE", paid: map[[32]byte]outgoing{}}, err
}

// Deny has it say this instead of an answer; "" answers again.
func (n *Node) Deny(words string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deny = words
}

// Tell has it answer to who asks how it is: whether it is in step with the chain, and how
// many msat it can receive.
func (n *Node) Tell(synced bool, remote uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.info = map[string]any{
		"/v1/getinfo":          map[string]any{"synced_to_chain": synced},
		"/v1/balance/channels": map[string]any{"remote_balance": map[string]string{"sat": fmt.Sprint(remote / 1000), "msat": fmt.Sprint(remote)}},
	}
}

// State has it be in this state.
func (n *Node) State(state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.state = state
}

// Fail has payments fail for a reason; "" has them succeed.
func (n *Node) Fail(reason string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reason = reason
}

// Sent returns the fee limits of the payments that were asked for.
func (n *Node) Sent() []uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent
}

// outgoing is a payment as lnd describes it.
type outgoing struct {
	Status   string `json:"status"`
	Reason   string `json:"failure_reason"`
	Preimage string `json:"payment_preimage"`
	Fee      string `json:"fee_msat"`
}

// send pays an invoice of this node.
func (n *Node) send(r *http.Request) (status int, answer any) {
	var in struct {
		Request string `json:"payment_request"`
		MaxFee  uint64 `json:"fee_limit_msat,string"`
	}
	refuse := func(status, code int, text string) (int, any) {
		return status, map[string]any{"error": map[string]any{"code": code, "message": text}}
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return refuse(400, 3, err.Error())
	}
	v, err := bolt11.Parse(in.Request)
	if err != nil {
		return refuse(500, 2, err.Error())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.paid[v.Hash].Status == "SUCCEEDED" {
		return refuse(409, 6, "invoice is already paid")
	}
	n.sent = append(n.sent, in.MaxFee)
	out := outgoing{Status: "FAILED", Reason: n.reason, Preimage: hex.EncodeToString(make([]byte, 32)), Fee: "0"}
	if n.reason == "" {
		preimage, err := n.Node.Pay(in.Request, 0)
		if err != nil {
			return refuse(500, 2, err.Error())
		}
		out = outgoing{Status: "SUCCEEDED", Preimage: hex.EncodeToString(preimage[:]), Fee: "3"}
	}
	n.paid[v.Hash] = out
	return 200, map[string]any{"result": out}
}

// track says how a payment stands.
func (n *Node) track(text string) (status int, answer any) {
	hash, err := base64.URLEncoding.DecodeString(text)
	if err != nil || len(hash) != 32 {
		return 400, map[string]any{"code": 3, "message": "bad hash"}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	out, ok := n.paid[[32]byte(hash)]
	if !ok {
		return 404, map[string]any{"error": map[string]any{"code": 5, "message": "payment isn't initiated"}}
	}
	return 200, map[string]any{"result": out}
}

// ServeHTTP implements http.Handler.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	say := func(status int, v any) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v) //nolint:errcheck // it hung up
	}
	n.mu.Lock()
	deny, info, state := n.deny, n.info, n.state
	n.mu.Unlock()
	switch {
	case r.URL.Path == "/v1/state":
		say(200, map[string]string{"state": state})
		return
	case r.Header.Get("Grpc-Metadata-macaroon") != hex.EncodeToString(Macaroon):
		say(500, map[string]any{"code": 2, "message": "permission denied", "details": []any{}})
		return
	case deny != "":
		say(500, map[string]any{"code": 2, "message": deny})
		return
	}
	switch path := r.URL.Path; {
	case r.Method == http.MethodPost && path == "/v1/invoices":
		var in struct {
			Memo   string `json:"memo"`
			Msat   uint64 `json:"value_msat,string"`
			Expiry int64  `json:"expiry,string"`
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			say(400, map[string]any{"code": 3, "message": err.Error()})
			return
		}
		v, err := n.Create(r.Context(), payment.Request{Msat: in.Msat, Description: in.Memo, Expiry: time.Duration(in.Expiry) * time.Second})
		if err != nil {
			say(500, map[string]any{"code": 2, "message": err.Error()})
			return
		}
		n.mu.Lock()
		n.list, n.text[v.Hash] = append(n.list, v.Hash), v.Request
		number := len(n.list)
		n.mu.Unlock()
		say(200, map[string]any{"r_hash": v.Hash[:], "payment_request": v.Request, "add_index": fmt.Sprint(number), "payment_addr": v.Secret[:]})
	case path == "/v1/invoices":
		n.mu.Lock()
		list := n.list
		n.mu.Unlock()
		most, _ := strconv.Atoi(r.FormValue("num_max_invoices"))
		all := []any{}
		for _, hash := range list[max(0, len(list)-most):] {
			if v, err := n.invoice(hash); err == nil {
				all = append(all, v)
			}
		}
		say(200, map[string]any{"invoices": all, "first_index_offset": "0", "last_index_offset": fmt.Sprint(len(list))})
	case path == "/v1/invoices/subscribe":
		n.subscribe(w, r)
	case strings.HasPrefix(path, "/v1/invoice/"):
		b, err := hex.DecodeString(strings.TrimPrefix(path, "/v1/invoice/"))
		if err != nil || len(b) != 32 {
			say(400, map[string]any{"code": 3, "message": "bad hash"})
			return
		}
		v, err := n.invoice([32]byte(b))
		if err != nil {
			say(404, map[string]any{"code": 5, "message": "unable to locate invoice"})
			return
		}
		say(200, v)
	case path == "/v2/router/send":
		say(n.send(r))
	case strings.HasPrefix(path, "/v2/router/track/"):
		say(n.track(strings.TrimPrefix(path, "/v2/router/track/")))
	case path == "/v1/getinfo", path == "/v1/balance/channels":
		if info == nil {
			say(500, map[string]any{"code": 2, "message": "permission denied"})
			return
		}
		say(200, info[path])
	default:
		say(404, map[string]any{"code": 5, "message": "Not Found"})
	}
}

// invoice returns one as lnd describes it.
func (n *Node) invoice(hash [32]byte) (map[string]any, error) {
	st, err := n.Lookup(context.Background(), hash, "")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	v := map[string]any{
		"r_hash": hash[:], "state": strings.ToUpper(st.State.String()), "amt_paid_msat": fmt.Sprint(st.Paid), "payment_request": n.text[hash],
		"add_index": "0", "settle_index": "0", "is_keysend": false,
	}
	for i, h := range n.list {
		if h == hash {
			v["add_index"] = fmt.Sprint(i + 1)
		}
	}
	if st.Preimage != nil {
		v["r_preimage"] = st.Preimage[:]
	}
	if st.State == payment.Settled {
		v["settle_index"] = fmt.Sprint(n.settledAt(hash))
	}
	return v, nil
}

// settledAt returns an invoice's number among those that were settled.
func (n *Node) settledAt(hash [32]byte) (number int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n.Watch(ctx, "0", func(st payment.Status, cursor string) error { //nolint:errcheck // it is ended
		if st.Hash == hash {
			number, _ = strconv.Atoi(cursor)
			cancel()
			return errors.New("found")
		}
		return nil
	})
	return number
}

// subscribe streams as lnd does: nothing before the first event; then what was added
// behind add_index, as it is by now, what was settled behind settle_index, unless that is
// 0, and what comes.
func (n *Node) subscribe(w http.ResponseWriter, r *http.Request) {
	send := func(hash [32]byte) error {
		v, err := n.invoice(hash)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(w).Encode(map[string]any{"result": v}); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
	n.mu.Lock()
	list := n.list
	n.mu.Unlock()
	if added, _ := strconv.Atoi(r.FormValue("add_index")); added > 0 {
		for _, hash := range list[min(added, len(list)):] {
			if st, err := n.Lookup(r.Context(), hash, ""); err != nil || st.State == payment.Canceled || st.State == payment.Accepted {
				continue // as lnd does
			}
			if send(hash) != nil {
				return
			}
		}
	}
	cursor := r.FormValue("settle_index")
	if cursor == "0" {
		cursor = ""
	}
	n.Watch(r.Context(), cursor, func(st payment.Status, _ string) error { return send(st.Hash) }) //nolint:errcheck // until it hangs up
}
