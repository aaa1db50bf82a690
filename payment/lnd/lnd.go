// Package lnd is a gateway to an lnd node, by its REST interface: it makes invoices and
// looks at them, and cannot pay.
//
// # What the node must give
//
// A macaroon that allows AddInvoice, LookupInvoice, LookupInvoiceV2, SubscribeInvoices and
// ListInvoices, and nothing else:
//
//	lncli bakemacaroon --save_to sell.macaroon uri:/lnrpc.Lightning/AddInvoice \
//	  uri:/lnrpc.Lightning/LookupInvoice uri:/invoicesrpc.Invoices/LookupInvoiceV2 \
//	  uri:/lnrpc.Lightning/SubscribeInvoices uri:/lnrpc.Lightning/ListInvoices
//
// and its tls.cert, which is the only root that is trusted. Both files are read again when
// the node refuses what is in them: replacing them is enough.
//
// # Cursor
//
// The number of a settled invoice on the node, and its hash. Where the node does not
// confirm that the two belong together it is another node, or was restored: watching
// begins anew then, and what was settled before must be looked up.
//
// Source: specs/lightning.md, section 1.
package lnd

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
)

// Errors that callers tell apart.
var (
	// ErrDenied says that the macaroon does not allow what is asked for.
	ErrDenied = errors.New("lnd: the macaroon is refused")
	// ErrCertificate says that the node shows another certificate than the one that is
	// trusted.
	ErrCertificate = errors.New("lnd: the node's certificate is another one: copy its tls.cert again, if it is the right node")
)

// Limits.
const (
	// MaxMsat is the largest invoice: a hundredth of a bitcoin.
	MaxMsat = 1_000_000_000
	// answer is how long a call may take.
	answer = 30 * time.Second
	// first is how long the first line of a stream may take, where there is one.
	first    = 15 * time.Second
	maxReply = 1 << 20
)

// Config says which node. URL, Cert and Macaroon are required.
type Config struct {
	Name string // of the gateway; "" is lnd
	URL  string // https://HOST:PORT; http only for this host
	// Cert and Macaroon are files: the node's tls.cert, and a macaroon as it is, or in hex.
	Cert, Macaroon string
	// Network is what its invoices must be of.
	Network bolt11.Network
	// Private adds hints for payers to reach a node without public channels.
	Private bool
	Log     *slog.Logger // nil discards
}

// Gateway is an lnd node. It implements [payment.Gateway]; all methods are safe for
// concurrent use.
type Gateway struct {
	*client
	cfg Config
	log *slog.Logger
}

// New returns a gateway. The error is about the configuration; the node is not asked.
func New(cfg Config) (*Gateway, error) {
	if cfg.Name == "" {
		cfg.Name = "lnd"
	}
	g := &Gateway{cfg: cfg, log: cfg.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	var err error
	g.client, err = newClient(cfg.URL, cfg.Cert, cfg.Macaroon)
	return g, err
}

// Name implements [payment.Gateway].
func (g *Gateway) Name() string { return g.cfg.Name }

// Create implements [payment.Gateway].
func (g *Gateway) Create(ctx context.Context, r payment.Request) (x payment.Issued, err error) {
	if r.Msat == 0 || r.Msat > MaxMsat {
		return x, fmt.Errorf("%w: an invoice of %d msat; 1 to %d are possible", payment.ErrUnpayable, r.Msat, uint64(MaxMsat))
	}
	var out struct {
		Hash    []byte `json:"r_hash"`
		Request string `json:"payment_request"`
	}
	in := struct {
		Memo    string `json:"memo"`
		Msat    uint64 `json:"value_msat,string"`
		Expiry  int64  `json:"expiry,string"`
		Private bool   `json:"private"`
	}{r.Description, r.Msat, int64(r.Expiry / time.Second), g.cfg.Private}
	if err := g.call(ctx, http.MethodPost, "/v1/invoices", in, &out); err != nil {
		return x, err
	}
	v, err := r.Check(out.Request, g.cfg.Network)
	if err == nil && string(out.Hash) != string(v.Hash[:]) {
		err = fmt.Errorf("its invoice has hash %x, and the node says %x", v.Hash, out.Hash)
	}
	if err != nil {
		return x, fmt.Errorf("lnd: %w", err)
	}
	return payment.Issued{Invoice: v, Request: out.Request}, nil
}

// Identity implements [payment.Gateway]: it looks at the newest invoice, and makes one
// only if there is none.
func (g *Gateway) Identity(ctx context.Context) (id payment.Identity, err error) {
	var newest struct{ Invoices []invoice }
	if err := g.call(ctx, http.MethodGet, "/v1/invoices?reversed=true&num_max_invoices=10", nil, &newest); err != nil {
		return id, err
	}
	for _, x := range newest.Invoices {
		if v, err := bolt11.Parse(x.Request); err == nil && v.Network == g.cfg.Network {
			return payment.Identity{Network: v.Network, Payee: v.Payee}, nil
		}
	}
	v, err := g.Create(ctx, payment.Request{Msat: 1000, Description: "edge: who is paid?", Expiry: time.Minute})
	if err != nil {
		return id, err
	}
	return payment.Identity{Network: v.Network, Payee: v.Payee}, nil
}

// invoice is what matters of one.
type invoice struct {
	Hash     []byte `json:"r_hash"`
	Preimage []byte `json:"r_preimage"`
	State    string `json:"state"`
	Paid     string `json:"amt_paid_msat"`
	Added    uint64 `json:"add_index,string"`
	Settled  uint64 `json:"settle_index,string"`
	Request  string `json:"payment_request"`
	Keysend  bool   `json:"is_keysend"`
}

// status returns how an invoice stands.
func (v *invoice) status() (st payment.Status, err error) {
	if len(v.Hash) != 32 {
		return st, fmt.Errorf("lnd: an invoice with a hash of %d bytes", len(v.Hash))
	}
	st.Hash = [32]byte(v.Hash)
	switch v.State {
	case "OPEN":
	case "ACCEPTED":
		st.State = payment.Accepted
	case "SETTLED":
		st.State = payment.Settled
		if len(v.Preimage) == 32 {
			st.Preimage = (*[32]byte)(v.Preimage)
		}
	case "CANCELED":
		st.State = payment.Canceled
	default:
		return st, fmt.Errorf("lnd: an invoice that is %q", v.State)
	}
	if v.Paid != "" {
		if st.Paid, err = strconv.ParseUint(v.Paid, 10, 64); err != nil {
			return st, fmt.Errorf("lnd: amt_paid_msat: %w", err)
		}
	}
	return st, nil
}

func (g *Gateway) lookup(ctx context.Context, hash [32]byte) (v invoice, err error) {
	return v, g.call(ctx, http.MethodGet, "/v1/invoice/"+hex.EncodeToString(hash[:]), nil, &v)
}

// Lookup implements [payment.Gateway].
func (g *Gateway) Lookup(ctx context.Context, hash [32]byte, _ string) (payment.Status, error) {
	v, err := g.lookup(ctx, hash)
	if err != nil {
		return payment.Status{}, err
	}
	st, err := v.status()
	if err == nil && st.Hash != hash {
		err = fmt.Errorf("lnd: asked for %x, it speaks of %x", hash, st.Hash)
	}
	return st, err
}

// Health implements [payment.Gateway]. Whether the node is in step with the chain, and
// what it could receive, is known if the macaroon also allows GetInfo and ChannelBalance.
func (g *Gateway) Health(ctx context.Context) error {
	var state struct{ State string }
	if err := g.call(ctx, http.MethodGet, "/v1/state", nil, &state); err != nil {
		return err
	}
	if state.State != "SERVER_ACTIVE" {
		return fmt.Errorf("%w: lnd: the node's state is %s", payment.ErrUnpayable, state.State)
	}
	info := struct {
		Synced bool `json:"synced_to_chain"`
	}{true}
	if err := g.ask(ctx, "/v1/getinfo", &info); err != nil {
		return err
	}
	if !info.Synced {
		return fmt.Errorf("%w: lnd: the node is not in step with the chain", payment.ErrUnpayable)
	}
	var balance struct {
		Remote *struct{ Msat string } `json:"remote_balance"`
	}
	if err := g.ask(ctx, "/v1/balance/channels", &balance); err != nil {
		return err
	}
	if balance.Remote != nil && balance.Remote.Msat == "0" {
		return fmt.Errorf("%w: lnd: no channel of the node can receive: it needs inbound liquidity", payment.ErrUnpayable)
	}
	return nil
}

// ask is a call that the macaroon need not allow.
func (g *Gateway) ask(ctx context.Context, path string, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	resp, err := g.once(ctx, http.MethodGet, path, nil)
	if errors.Is(err, ErrDenied) {
		return nil
	}
	return decode(resp, path, out, err)
}

// cursorOf returns the cursor of a settled invoice.
func cursorOf(v *invoice) string { return fmt.Sprintf("%d %x", v.Settled, v.Hash) }

// begin returns behind which settled invoice a cursor is; 0 if it is none of this node's.
func (g *Gateway) begin(ctx context.Context, cursor string) (uint64, error) {
	if cursor == "" {
		return 0, nil
	}
	number, text, ok := strings.Cut(cursor, " ")
	n, err := strconv.ParseUint(number, 10, 64)
	hash, bad := hex.DecodeString(text)
	if !ok || err != nil || bad != nil || len(hash) != 32 {
		return 0, fmt.Errorf("lnd: %q is not a cursor", cursor)
	}
	v, err := g.lookup(ctx, [32]byte(hash))
	if err != nil && !errors.Is(err, payment.ErrUnknown) {
		return 0, err
	}
	if err != nil || v.Settled != n || v.State != "SETTLED" {
		g.log.Warn("this node is another one than before, or was restored: what is open is looked up, and watching begins anew", "gateway", g.cfg.Name)
		return 0, nil
	}
	return n, nil
}

// known returns the newest invoice that the node would send again, and the one before it,
// behind which it is asked for; 0 if there is none. Canceled and accepted ones never come,
// nor what is behind one that is gone.
func (g *Gateway) known(ctx context.Context) (before, number uint64, err error) {
	var newest struct{ Invoices []invoice }
	if err := g.call(ctx, http.MethodGet, "/v1/invoices?reversed=true&num_max_invoices=100", nil, &newest); err != nil {
		return 0, 0, err
	}
	for i := len(newest.Invoices) - 1; i > 0; i-- {
		if v := newest.Invoices[i]; v.State == "OPEN" || v.State == "SETTLED" {
			return newest.Invoices[i-1].Added, v.Added, nil
		}
	}
	return 0, 0, nil
}

// Watch implements [payment.Gateway]. The node ends the stream when it stops: that is an
// error.
func (g *Gateway) Watch(ctx context.Context, cursor string, f func(payment.Status, string) error) error {
	behind, err := g.begin(ctx, cursor)
	if err != nil {
		return err
	}
	// No header comes before the first event: an invoice that there is comes at once if it is
	// asked for, and shows that the stream stands.
	before, old, err := g.known(ctx)
	if err != nil {
		return err
	}
	path := "/v1/invoices/subscribe?settle_index=" + strconv.FormatUint(behind, 10)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stands := func() bool { return true }
	if old > 0 {
		path += "&add_index=" + strconv.FormatUint(before, 10)
		stands = time.AfterFunc(first, func() { cancel(errors.New("lnd: the stream of invoices does not begin")) }).Stop
	}
	resp, err := g.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxReply)
	for lines.Scan() {
		stands()
		var line struct {
			Result *invoice
			Error  *nodeError
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return fmt.Errorf("lnd: the stream of invoices: %w", err)
		}
		switch v := line.Result; {
		case line.Error != nil:
			return cause(ctx, line.Error.err(http.StatusOK))
		case v != nil && old > 0 && v.Added == old:
			old = 0 // if it was settled, it comes again in its turn, or before the cursor
		case v == nil || v.State != "SETTLED" || v.Keysend || v.Request == "":
		default:
			st, err := v.status()
			if err != nil {
				return err
			}
			if err := f(st, cursorOf(v)); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return cause(ctx, fmt.Errorf("lnd: the stream of invoices: %w", err))
	}
	return cause(ctx, errors.New("lnd: the node ended the stream of invoices"))
}

// cause returns why ctx ended, if it did, else err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
