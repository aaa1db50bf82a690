package devnet

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
)

const maxBody = 16 << 10

type payRequest struct {
	Request string `json:"request"`
	Msat    uint64 `json:"msat,string,omitempty"` // 0 is what the invoice asks for
}

type payAnswer struct {
	Preimage string `json:"preimage,omitempty"`
	Error    string `json:"error,omitempty"`
}

// ServeHTTP pays for whoever asks.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/pay" {
		http.Error(w, `this is a test wallet: POST /pay {"request": invoice}`, http.StatusNotFound)
		return
	}
	var q payRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var a payAnswer
	preimage, err := n.Pay(q.Request, q.Msat)
	if errors.Is(err, errPaid) {
		preimage, err = n.paid(q.Request) // asked for again: the answer got lost
	}
	if err != nil {
		a.Error = err.Error()
	} else {
		a.Preimage = hex.EncodeToString(preimage[:])
	}
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusConflict)
	}
	json.NewEncoder(w).Encode(a) //nolint:errcheck // he does not listen
}

// paid returns the preimage of an invoice that is paid.
func (n *Node) paid(request string) (preimage [32]byte, err error) {
	v, err := bolt11.Parse(request)
	if err != nil {
		return preimage, err
	}
	st, err := n.Lookup(context.Background(), v.Hash, "")
	if err == nil && st.State == payment.Accepted {
		return n.Settle(v.Hash) // the power was cut between the two halves
	}
	if err == nil && st.Preimage == nil {
		err = errPaid
	}
	if err != nil {
		return preimage, err
	}
	return *st.Preimage, nil
}

// Wallet pays invoices of the test wallet at a URL. It implements
// [payment.Wallet].
type Wallet struct {
	URL    string       // http://HOST:PORT
	Client *http.Client // nil is http.DefaultClient
}

// Network implements [payment.Wallet].
func (w *Wallet) Network() bolt11.Network { return bolt11.Regtest }

// Pay implements [payment.Wallet]: there are no fees.
func (w *Wallet) Pay(ctx context.Context, p payment.Payment) (proof payment.Proof, err error) {
	body, err := json.Marshal(payRequest{Request: p.Request})
	if err != nil {
		return proof, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL+"/pay", bytes.NewReader(body))
	if err != nil {
		return proof, fmt.Errorf("devnet: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	client := w.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(r)
	if err != nil {
		return proof, fmt.Errorf("devnet: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return proof, fmt.Errorf("devnet: %w", err)
	}
	var a payAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return proof, fmt.Errorf("devnet: %s is no test wallet: %s", w.URL, resp.Status)
	}
	if a.Error != "" {
		return proof, fmt.Errorf("%w: %s", payment.ErrDeclined, a.Error)
	}
	preimage, err := hex.DecodeString(a.Preimage)
	if err != nil || len(preimage) != len(proof.Preimage) {
		return proof, fmt.Errorf("devnet: preimage %q", a.Preimage)
	}
	return payment.Proof{Preimage: [32]byte(preimage)}, nil
}
