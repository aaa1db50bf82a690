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
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
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
	cfg  Config
	base string
	log  *slog.Logger

	mu     sync.Mutex
	client *http.Client // guarded by mu, like all below; nil until the files are read
	secret string       // the macaroon, in hex
}

// New returns a gateway. The error is about the configuration; the node is not asked.
func New(cfg Config) (*Gateway, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("lnd: %q is not a node's URL: https://HOST:8080", cfg.URL)
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return nil, errors.New("lnd: http is for this host alone: anybody on the way could say that an invoice is paid; https://HOST:8080")
	}
	if cfg.Name == "" {
		cfg.Name = "lnd"
	}
	g := &Gateway{cfg: cfg, base: strings.TrimSuffix(cfg.URL, "/"), log: cfg.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	_, _, err = g.open()
	return g, err
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// open returns the client and the macaroon, and reads the files if need be.
func (g *Gateway) open() (*http.Client, string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.client != nil {
		return g.client, g.secret, nil
	}
	b, err := os.ReadFile(g.cfg.Macaroon)
	if err != nil {
		return nil, "", fmt.Errorf("lnd: macaroon: %w", err)
	}
	g.secret = hex.EncodeToString(b)
	if text := strings.TrimSpace(string(b)); isHex(text) {
		g.secret = text
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute}
	if g.cfg.Cert != "" {
		pem, err := os.ReadFile(g.cfg.Cert)
		if err != nil {
			return nil, "", fmt.Errorf("lnd: cert: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, "", fmt.Errorf("lnd: cert: %s has no certificate in PEM form: it is the node's tls.cert", g.cfg.Cert)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	g.client = &http.Client{Transport: t}
	return g.client, g.secret, nil
}

func isHex(text string) bool {
	_, err := hex.DecodeString(text)
	return text != "" && err == nil
}

// reopen has the files read again by the next call.
func (g *Gateway) reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.client != nil {
		g.client.CloseIdleConnections()
		g.client = nil
	}
}

// Name implements [payment.Gateway].
func (g *Gateway) Name() string { return g.cfg.Name }

// nodeError is what the node says when it does not do it.
type nodeError struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// gRPC's codes that matter.
const codeNotFound = 5

// err returns what an answer means.
func (e nodeError) err(status int) error {
	switch {
	case e.Code == codeNotFound:
		return fmt.Errorf("%w: %s", payment.ErrUnknown, e.Message)
	case strings.Contains(e.Message, "permission denied"), strings.Contains(e.Message, "macaroon"), strings.Contains(e.Message, "verification failed"):
		return fmt.Errorf("%w: %s: %w", ErrDenied, e.Message, payment.ErrUnpayable)
	case strings.Contains(e.Message, "wallet locked"), strings.Contains(e.Message, "starting up"), strings.Contains(e.Message, "not yet ready"):
		return fmt.Errorf("%w: lnd: %s", payment.ErrUnpayable, e.Message)
	}
	return fmt.Errorf("lnd: HTTP status %d, code %d: %.200q", status, e.Code, e.Message)
}

// request sends a request and returns the answer, if it is one. What the node does not
// accept of the files is read again, once.
func (g *Gateway) request(ctx context.Context, method, path string, body any) (*http.Response, error) {
	for try := 0; ; try++ {
		resp, err := g.once(ctx, method, path, body)
		var unknown x509.UnknownAuthorityError
		var host x509.HostnameError
		var invalid x509.CertificateInvalidError
		switch {
		case errors.As(err, &unknown), errors.As(err, &host), errors.As(err, &invalid):
			err = fmt.Errorf("%w: %w: %w", ErrCertificate, err, payment.ErrUnpayable)
		case errors.Is(err, ErrDenied):
		default:
			return resp, err
		}
		g.reopen()
		if try > 0 {
			return nil, err
		}
	}
}

func (g *Gateway) once(ctx context.Context, method, path string, body any) (*http.Response, error) {
	client, secret, err := g.open()
	if err != nil {
		return nil, err
	}
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, g.base+path, in)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Grpc-Metadata-macaroon", secret)
	resp, err := client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("lnd: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e nodeError
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, fmt.Errorf("lnd: %w", err)
	}
	var wrapped struct{ Error *nodeError }
	if json.Unmarshal(b, &wrapped) == nil && wrapped.Error != nil {
		e = *wrapped.Error
	} else if json.Unmarshal(b, &e) != nil || e.Message == "" {
		e.Message = string(b)
	}
	return nil, e.err(resp.StatusCode)
}

// call is a request with an answer of one piece.
func (g *Gateway) call(ctx context.Context, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answer)
	defer cancel()
	resp, err := g.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err == nil {
		err = json.Unmarshal(b, out)
	}
	if err != nil {
		return fmt.Errorf("lnd: %s: %w", path, err)
	}
	return nil
}

// Create implements [payment.Gateway].
func (g *Gateway) Create(ctx context.Context, r payment.Request) (*bolt11.Invoice, string, error) {
	if r.Msat == 0 || r.Msat > MaxMsat {
		return nil, "", fmt.Errorf("%w: an invoice of %d msat; 1 to %d are possible", payment.ErrUnpayable, r.Msat, uint64(MaxMsat))
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
		return nil, "", err
	}
	v, err := bolt11.Parse(out.Request)
	if err != nil {
		return nil, "", fmt.Errorf("lnd: its invoice: %w", err)
	}
	switch {
	case string(out.Hash) != string(v.Hash[:]):
		err = fmt.Errorf("its hash is %x, and the node says %x", v.Hash, out.Hash)
	case v.Msat != r.Msat:
		err = fmt.Errorf("it is for %d msat, and %d were asked for", v.Msat, r.Msat)
	case v.Network != g.cfg.Network:
		err = fmt.Errorf("%w: it is on %s, and the configuration says %s", payment.ErrUnpayable, v.Network, g.cfg.Network)
	}
	if err != nil {
		return nil, "", fmt.Errorf("lnd: its invoice: %w", err)
	}
	return v, out.Request, nil
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
func (g *Gateway) Lookup(ctx context.Context, hash [32]byte) (payment.Status, error) {
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

// Health returns why the node could not be paid now, as far as it says so; nil if it
// works. It takes no macaroon.
func (g *Gateway) Health(ctx context.Context) error {
	var out struct{ State string }
	if err := g.call(ctx, http.MethodGet, "/v1/state", nil, &out); err != nil {
		return err
	}
	if out.State != "SERVER_ACTIVE" {
		return fmt.Errorf("%w: lnd: the node's state is %s", payment.ErrUnpayable, out.State)
	}
	return nil
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

// Watch implements [payment.Gateway]. The node ends the stream when it stops: that is an
// error.
func (g *Gateway) Watch(ctx context.Context, cursor string, f func(payment.Status, string) error) error {
	behind, err := g.begin(ctx, cursor)
	if err != nil {
		return err
	}
	// No header comes before the first event: the newest invoice comes at once if it is
	// asked for, and shows that the stream stands.
	var newest struct {
		Last uint64 `json:"last_index_offset,string"`
	}
	if err := g.call(ctx, http.MethodGet, "/v1/invoices?reversed=true&num_max_invoices=1", nil, &newest); err != nil {
		return err
	}
	path, old := "/v1/invoices/subscribe?settle_index="+strconv.FormatUint(behind, 10), uint64(0)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stands := func() bool { return true }
	if newest.Last > 1 { // behind 0 nothing comes again
		old = newest.Last
		path += "&add_index=" + strconv.FormatUint(old-1, 10)
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
			return line.Error.err(http.StatusOK)
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
