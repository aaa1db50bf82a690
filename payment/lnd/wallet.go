package lnd

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
)

// sendTime is for how long the node looks for a way; a payment that is on its way then
// goes on.
const sendTime = 30 * time.Second

// WalletConfig says which node pays. All is required.
type WalletConfig struct {
	URL string // https://HOST:PORT; http only for this host
	// Cert and Macaroon are files; the macaroon allows payments, and should allow
	// nothing else: offchain:read and offchain:write.
	Cert, Macaroon string
	Network        bolt11.Network
}

// Wallet is an lnd node that pays. It implements [payment.Wallet].
type Wallet struct {
	*client
	network bolt11.Network
}

// NewWallet returns a wallet. The error is about the configuration; the node is not
// asked.
func NewWallet(cfg WalletConfig) (*Wallet, error) {
	c, err := newClient(cfg.URL, cfg.Cert, cfg.Macaroon)
	return &Wallet{c, cfg.Network}, err
}

// Network implements [payment.Wallet].
func (w *Wallet) Network() bolt11.Network { return w.network }

// outgoing is how a payment stands.
type outgoing struct {
	Status   string `json:"status"`
	Reason   string `json:"failure_reason"`
	Preimage string `json:"payment_preimage"`
	Fee      string `json:"fee_msat"`
}

// errFailed says that an attempt failed for good.
var errFailed = errors.New("lnd: the payment failed")

// Pay implements [payment.Wallet]. An attempt of before is found by its hash, and waited
// for as long as it may arrive.
func (w *Wallet) Pay(ctx context.Context, p payment.Payment) (proof payment.Proof, err error) {
	v, err := bolt11.Parse(p.Request)
	if err == nil && (v.Msat != p.Msat || v.Network != w.network) {
		err = fmt.Errorf("lnd: an invoice of %d msat on %s, and %d are to be paid on %s", v.Msat, v.Network, p.Msat, w.network)
	}
	if err != nil {
		return proof, fmt.Errorf("%w: %w", payment.ErrDeclined, err)
	}
	// What was begun before is waited for; what is not known for sure is left as it is.
	if proof, err = w.track(ctx, v.Hash); !over(err) {
		return proof, checked(ctx, proof, v.Hash, err)
	}
	proof, err = w.send(ctx, p)
	if err != nil && !errors.Is(err, errFailed) && ctx.Err() == nil {
		// It may be on its way all the same: the node knows.
		sent := err
		if proof, err = w.track(ctx, v.Hash); over(err) {
			err = fmt.Errorf("%w: %w", payment.ErrDeclined, sent)
		}
	} else if errors.Is(err, errFailed) {
		err = fmt.Errorf("%w: %w", payment.ErrDeclined, err)
	}
	return proof, checked(ctx, proof, v.Hash, err)
}

// over tells whether a payment was never begun, or failed: nothing of it can still arrive.
func over(err error) bool {
	var e *nodeError
	return errors.Is(err, errFailed) || errors.As(err, &e) && e.Code == codeNotFound && strings.Contains(e.Message, "initiated")
}

// checked returns what is wrong with an outcome.
func checked(ctx context.Context, proof payment.Proof, hash [32]byte, err error) error {
	switch {
	case err == nil:
		return proof.Check(hash)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return err
}

// send begins a payment, and waits for its end. Without a limit the node would allow no
// fee at all.
func (w *Wallet) send(ctx context.Context, p payment.Payment) (payment.Proof, error) {
	in := struct {
		Request string `json:"payment_request"`
		Timeout int    `json:"timeout_seconds"`
		MaxFee  uint64 `json:"fee_limit_msat,string"`
		Quiet   bool   `json:"no_inflight_updates"`
	}{p.Request, int(sendTime / time.Second), p.MaxFee, true}
	return w.outcome(ctx, http.MethodPost, "/v2/router/send", in)
}

// track waits for the end of a payment that was begun. The error wraps
// [payment.ErrUnknown] if there is none.
func (w *Wallet) track(ctx context.Context, hash [32]byte) (payment.Proof, error) {
	return w.outcome(ctx, http.MethodGet, "/v2/router/track/"+base64.URLEncoding.EncodeToString(hash[:])+"?no_inflight_updates=true", nil)
}

// outcome reads how a payment goes until it ended.
func (w *Wallet) outcome(ctx context.Context, method, path string, body any) (proof payment.Proof, err error) {
	resp, err := w.request(ctx, method, path, body)
	if err != nil {
		return proof, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxReply)
	for lines.Scan() {
		var line struct {
			Result *outgoing
			Error  *nodeError
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return proof, fmt.Errorf("lnd: %s: %w", path, err)
		}
		switch {
		case line.Error != nil:
			return proof, line.Error.err(http.StatusOK)
		case line.Result == nil:
		case line.Result.Status == "FAILED":
			return proof, fmt.Errorf("%w: %s", errFailed, line.Result.Reason)
		case line.Result.Status == "SUCCEEDED":
			b, err := hex.DecodeString(line.Result.Preimage)
			if err != nil || len(b) != len(proof.Preimage) {
				return proof, fmt.Errorf("lnd: preimage %q", line.Result.Preimage)
			}
			proof.Preimage = [32]byte(b)
			proof.Fee, _ = strconv.ParseUint(line.Result.Fee, 10, 63) // it is paid, whatever it says
			return proof, nil
		}
	}
	if err = lines.Err(); err == nil {
		err = errors.New("the node ended the stream")
	}
	return proof, fmt.Errorf("lnd: how the payment goes is not known: %w", err)
}
