// Package lndtest is a node that answers as lnd was seen to, for tests without one.
//
// Source: specs/lightning.md, section 1.
package lndtest

import (
	"context"
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
}

// New returns a node that keeps what it has in a directory.
func New(dir string) (*Node, error) {
	n, err := devnet.Open(durable.OS(), dir)
	return &Node{Node: n, text: map[[32]byte]string{}}, err
}

// Deny has it say this instead of an answer; "" answers again.
func (n *Node) Deny(words string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deny = words
}

// ServeHTTP implements http.Handler.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	say := func(status int, v any) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v) //nolint:errcheck // it hung up
	}
	n.mu.Lock()
	deny := n.deny
	n.mu.Unlock()
	switch {
	case r.URL.Path == "/v1/state":
		say(200, map[string]string{"state": "SERVER_ACTIVE"})
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
		v, text, err := n.Create(r.Context(), payment.Request{Msat: in.Msat, Description: in.Memo, Expiry: time.Duration(in.Expiry) * time.Second})
		if err != nil {
			say(500, map[string]any{"code": 2, "message": err.Error()})
			return
		}
		n.mu.Lock()
		n.list, n.text[v.Hash] = append(n.list, v.Hash), text
		number := len(n.list)
		n.mu.Unlock()
		say(200, map[string]any{"r_hash": v.Hash[:], "payment_request": text, "add_index": fmt.Sprint(number), "payment_addr": v.Secret[:]})
	case path == "/v1/invoices":
		n.mu.Lock()
		number := len(n.list)
		n.mu.Unlock()
		say(200, map[string]any{"invoices": []any{}, "first_index_offset": "0", "last_index_offset": fmt.Sprint(number)})
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
	default:
		say(404, map[string]any{"code": 5, "message": "Not Found"})
	}
}

// invoice returns one as lnd describes it.
func (n *Node) invoice(hash [32]byte) (map[string]any, error) {
	st, err := n.Lookup(context.Background(), hash)
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
