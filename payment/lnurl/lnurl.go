// Package lnurl is a gateway to a Lightning address whose service says what was paid:
// LNURL-pay (LUD-06, LUD-16) with verification (LUD-21). There is nothing secret on the
// device: whoever has it can make invoices that pay the owner, as anybody can.
//
// # Protocol
//
//	GET https://HOST/.well-known/lnurlp/NAME   what may be asked for, and the callback
//	GET CALLBACK?amount=MSAT                   an invoice, and where to ask about it
//	GET VERIFY                                 whether it is settled, and its preimage
//
// The service is believed: it makes the invoices and says what came. What can be checked
// is: that an invoice is for the amount and the address that were asked for, and that the
// preimage of one that is settled is its own. What an invoice says is up to the service,
// so it does not name the sale: the seller's own signature does.
//
// Source: specs/lightning.md, section 2; LUD-06, LUD-16, LUD-21.
package lnurl

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

const (
	// MaxMsat is the largest invoice: a hundredth of a bitcoin.
	MaxMsat  = 1_000_000_000
	answer   = 15 * time.Second
	maxReply = 512 << 10 // metadata may have a picture
)

// Config says whose address. Name, Address and Network are required.
type Config struct {
	Name    string
	Address string // NAME@HOST
	Network bolt11.Network
	// CA is a file with the certificate of the service, if no public authority vouches
	// for it.
	CA string
	// Custodial: the service signs invoices with keys that may change.
	Custodial bool
}

// Gateway is a Lightning address. It implements [payment.Gateway]; all methods are safe
// for concurrent use.
type Gateway struct {
	cfg    Config
	entry  string
	client *http.Client

	mu    sync.Mutex
	id    payment.Identity // who was paid when it was asked last; guarded by mu, like all below
	asked time.Time
}

// askEvery is how often at most an invoice is made to see who is paid: each one is compared
// with that, too.
const askEvery = time.Hour

// New returns a gateway. The error is about the configuration; the service is not asked.
func New(cfg Config) (*Gateway, error) {
	name, host, ok := strings.Cut(cfg.Address, "@")
	if !ok || name == "" || host == "" || strings.ContainsAny(cfg.Address, "/?# ") {
		return nil, fmt.Errorf("lnurl: %q is not a Lightning address: NAME@HOST", cfg.Address)
	}
	t := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, Proxy: http.ProxyFromEnvironment}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		if err != nil {
			return nil, fmt.Errorf("lnurl: ca: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("lnurl: ca: %s has no certificate in PEM form", cfg.CA)
		}
	}
	g := &Gateway{cfg: cfg, entry: "https://" + host + "/.well-known/lnurlp/" + url.PathEscape(name)}
	g.client = &http.Client{Transport: t, Timeout: answer, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 3 {
			return errors.New("lnurl: too many redirections")
		}
		return secure(r.URL)
	}}
	return g, nil
}

// secure tells whether a URL is one that nobody on the way can answer.
func secure(u *url.URL) error {
	if u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("lnurl: %.200q is not https", u)
	}
	return nil
}

// Name implements [payment.Gateway].
func (g *Gateway) Name() string { return g.cfg.Name }

// errService is what a service says when it does not do it.
var errService = errors.New("lnurl: the service says")

// get asks the service.
func (g *Gateway) get(ctx context.Context, address string, out any) error {
	u, err := url.Parse(address)
	if err == nil {
		err = secure(u)
	}
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := g.client.Do(r)
	if err != nil {
		return fmt.Errorf("lnurl: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fmt.Errorf("lnurl: %w", err)
	}
	var status struct{ Status, Reason string }
	if json.Unmarshal(b, &status) == nil && strings.EqualFold(status.Status, "ERROR") {
		if resp.StatusCode == http.StatusNotFound || strings.Contains(strings.ToLower(status.Reason), "not found") {
			return fmt.Errorf("%w: %w %.200q", payment.ErrUnknown, errService, status.Reason)
		}
		return fmt.Errorf("%w %.200q", errService, status.Reason)
	}
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
		return fmt.Errorf("%w: lnurl: %s: %s", payment.ErrUnknown, u.Host, resp.Status)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("lnurl: %s: %s", u.Host, resp.Status)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("lnurl: %s: not what LNURL-pay says: %w", u.Host, err)
	}
	return nil
}

// terms are what may be asked for.
type terms struct {
	Tag      string `json:"tag"`
	Callback string `json:"callback"`
	Min      uint64 `json:"minSendable"`
	Max      uint64 `json:"maxSendable"`
	Metadata string `json:"metadata"`
}

// ask asks what may be asked for.
func (g *Gateway) ask(ctx context.Context) (t terms, err error) {
	if err := g.get(ctx, g.entry, &t); err != nil {
		return t, fmt.Errorf("%w: %s: %w", payment.ErrUnpayable, g.cfg.Address, err)
	}
	if t.Tag != "payRequest" || t.Callback == "" {
		return t, fmt.Errorf("%w: lnurl: %s is no address that can be paid", payment.ErrUnpayable, g.cfg.Address)
	}
	return t, nil
}

// Create implements [payment.Gateway]. What the invoice says, and how long it is good, is
// the service's to say.
func (g *Gateway) Create(ctx context.Context, r payment.Request) (x payment.Issued, err error) {
	if r.Msat == 0 || r.Msat > MaxMsat {
		return x, fmt.Errorf("%w: an invoice of %d msat; 1 to %d are possible", payment.ErrUnpayable, r.Msat, uint64(MaxMsat))
	}
	t, err := g.ask(ctx)
	if err != nil {
		return x, err
	}
	if r.Msat < t.Min || r.Msat > t.Max {
		return x, fmt.Errorf("%w: lnurl: %d msat; %s takes %d to %d", payment.ErrUnpayable, r.Msat, g.cfg.Address, t.Min, t.Max)
	}
	u, err := url.Parse(t.Callback)
	if err != nil {
		return x, fmt.Errorf("%w: lnurl: callback: %w", payment.ErrUnpayable, err)
	}
	q := u.Query()
	q.Set("amount", strconv.FormatUint(r.Msat, 10))
	u.RawQuery = q.Encode()
	var out struct {
		Request string `json:"pr"`
		Verify  string `json:"verify"`
	}
	if err := g.get(ctx, u.String(), &out); err != nil {
		return x, fmt.Errorf("%w: %w", payment.ErrUnpayable, err)
	}
	v, err := r.Check(out.Request, g.cfg.Network)
	if err != nil {
		return x, fmt.Errorf("lnurl: %w", err)
	}
	hash := sha256.Sum256([]byte(t.Metadata))
	switch verify, bad := url.Parse(out.Verify); {
	case out.Verify == "":
		err = fmt.Errorf("%w: lnurl: the service of %s does not say what was paid (LUD-21): use another one", payment.ErrUnpayable, g.cfg.Address)
	case bad != nil || secure(verify) != nil || len(out.Verify) > payment.MaxHandle-24:
		err = fmt.Errorf("%w: lnurl: it is to be asked at %.200q", payment.ErrUnpayable, out.Verify)
	case v.DescriptionHash == nil || *v.DescriptionHash != hash:
		err = fmt.Errorf("%w: lnurl: the invoice is not for %s: its description is another one", payment.ErrUnpayable, g.cfg.Address)
	}
	if err != nil {
		return x, err
	}
	g.saw(v)
	return payment.Issued{Invoice: v, Request: out.Request, Handle: fmt.Sprintf("%d %s", v.Msat, out.Verify)}, nil
}

// Lookup implements [payment.Gateway]. A payment comes as it was asked for: the service
// does not say how much came.
func (g *Gateway) Lookup(ctx context.Context, hash [32]byte, handle string) (st payment.Status, err error) {
	amount, verify, ok := strings.Cut(handle, " ")
	msat, bad := strconv.ParseUint(amount, 10, 64)
	if !ok || bad != nil {
		return st, fmt.Errorf("%w: lnurl: %x", payment.ErrUnknown, hash)
	}
	var out struct {
		Settled  bool   `json:"settled"`
		Preimage string `json:"preimage"`
		Request  string `json:"pr"`
	}
	if err := g.get(ctx, verify, &out); err != nil {
		return st, err
	}
	st = payment.Status{Hash: hash}
	if out.Request != "" {
		if v, err := bolt11.Parse(out.Request); err != nil || v.Hash != hash {
			return st, fmt.Errorf("lnurl: asked for %x, the service speaks of %.300q", hash, out.Request)
		}
	}
	if !out.Settled {
		return st, nil
	}
	p, err := hex.DecodeString(out.Preimage)
	if err != nil || len(p) != 32 || sha256.Sum256(p) != hash {
		return st, fmt.Errorf("lnurl: the service says that %x is settled, and its preimage is %.80q", hash, out.Preimage)
	}
	st.State, st.Paid, st.Preimage = payment.Settled, msat, (*[32]byte)(p)
	return st, nil
}

// Watch implements [payment.Gateway]: the service tells nothing by itself.
func (g *Gateway) Watch(context.Context, string, func(payment.Status, string) error) error {
	return payment.ErrNoEvents
}

// Identity implements [payment.Gateway]: it has an invoice made, now and then.
func (g *Gateway) Identity(ctx context.Context) (id payment.Identity, err error) {
	t, err := g.ask(ctx)
	if err != nil {
		return id, err
	}
	g.mu.Lock()
	id, asked := g.id, g.asked
	g.mu.Unlock()
	if !asked.IsZero() && time.Since(asked) < askEvery {
		return id, nil
	}
	v, err := g.Create(ctx, payment.Request{Msat: max(t.Min, 1000)})
	if err != nil {
		return id, err
	}
	return g.saw(v.Invoice), nil
}

// saw notes who is paid by an invoice.
func (g *Gateway) saw(v *bolt11.Invoice) payment.Identity {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.id, g.asked = payment.Identity{Network: v.Network, Payee: v.Payee, Floats: g.cfg.Custodial, Unbound: true}, time.Now()
	return g.id
}

// Health implements [payment.Gateway].
func (g *Gateway) Health(ctx context.Context) error {
	_, err := g.ask(ctx)
	return err
}
