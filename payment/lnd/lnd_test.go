package lnd

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/gatewaytest"
	"dazaar-edge/payment/lnd/lndtest"
)

// rig is a node with its server, and a gateway to it.
type rig struct {
	*lndtest.Node
	t              *testing.T
	server         *httptest.Server
	cert, macaroon string // files
}

func newNode(t *testing.T) *lndtest.Node {
	t.Helper()
	n, err := lndtest.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newRig(t *testing.T) *rig {
	t.Helper()
	n := newNode(t)
	r := &rig{Node: n, t: t, server: httptest.NewTLSServer(n), cert: filepath.Join(t.TempDir(), "tls.cert"), macaroon: filepath.Join(t.TempDir(), "sell.macaroon")}
	t.Cleanup(r.server.Close)
	r.trust()
	r.write(r.macaroon, lndtest.Macaroon)
	return r
}

func (r *rig) write(name string, b []byte) {
	r.t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// trust writes the server's certificate.
func (r *rig) trust() {
	r.t.Helper()
	r.write(r.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.server.Certificate().Raw}))
}

func (r *rig) gateway() *Gateway {
	r.t.Helper()
	g, err := New(Config{URL: r.server.URL, Cert: r.cert, Macaroon: r.macaroon, Network: bolt11.Regtest})
	if err != nil {
		r.t.Fatal(err)
	}
	return g
}

func TestGateway(t *testing.T) {
	r := newRig(t)
	gatewaytest.Run(t, r.gateway(), r.Node, gatewaytest.Options{})
	if err := r.gateway().Health(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestDenied: what the node refuses is named; a macaroon in hex will do; a file that is
// replaced is read again, without a new gateway.
func TestDenied(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	request := payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute}
	r.write(r.macaroon, []byte("another"))
	g := r.gateway()
	if _, err := g.Create(ctx, request); !errors.Is(err, ErrDenied) || !errors.Is(err, payment.ErrUnpayable) {
		t.Error(err)
	}
	r.write(r.macaroon, []byte(hex.EncodeToString(lndtest.Macaroon)+"\n"))
	if _, err := g.Create(ctx, request); err != nil {
		t.Error(err)
	}
	for _, words := range []string{"wallet locked, unlock it to enable full RPC access", "the RPC server is in the process of starting up, but not yet ready to accept calls"} {
		r.Deny(words)
		if _, err := g.Create(ctx, request); !errors.Is(err, payment.ErrUnpayable) || errors.Is(err, ErrDenied) {
			t.Error(err)
		}
	}
}

// TestS13: nobody between us and the node is believed: another certificate is refused, and said to be; copied again, it is
// trusted, without a new gateway.
func TestS13(t *testing.T) {
	r := newRig(t)
	g := r.gateway()
	ctx := context.Background()
	if err := g.Health(ctx); err != nil {
		t.Fatal(err)
	}
	right := r.server.Certificate().Raw
	r.write(r.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: selfSigned(t)}))
	g.reopen()
	if err := g.Health(ctx); !errors.Is(err, ErrCertificate) {
		t.Error(err)
	}
	if _, err := New(Config{URL: "http://192.168.1.5:8080", Cert: r.cert, Macaroon: r.macaroon}); err == nil {
		t.Error("http to another host")
	}
	r.write(r.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: right}))
	if err := g.Health(ctx); err != nil {
		t.Error(err)
	}
}

// TestS14: what cannot be paid is said to be, and why: a node that is locked, starts, is
// behind the chain, or has no channel that can receive.
func TestS14(t *testing.T) {
	r := newRig(t)
	g := r.gateway()
	for _, c := range []struct {
		change func()
		want   string
	}{
		{func() {}, ""},
		{func() { r.Tell(true, 1) }, ""},
		{func() { r.Tell(false, 1) }, "not in step with the chain"},
		{func() { r.Tell(true, 0) }, "inbound liquidity"},
		{func() { r.State("LOCKED") }, "LOCKED"},
		{func() { r.State("RPC_ACTIVE") }, "RPC_ACTIVE"},
		{func() { r.State("SERVER_ACTIVE"); r.Tell(true, 5) }, ""},
	} {
		c.change()
		err := g.Health(t.Context())
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, payment.ErrUnpayable) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// TestWallet pays by a node: one that it did not know before, one that is on its way, one
// that failed; what the node refuses is declined, what nobody answers is in doubt.
func TestWallet(t *testing.T) {
	r := newRig(t)
	w, err := NewWallet(WalletConfig{URL: r.server.URL, Cert: r.cert, Macaroon: r.macaroon, Network: bolt11.Regtest})
	if err != nil {
		t.Fatal(err)
	}
	g := r.gateway()
	pay := func(msat uint64) (payment.Payment, [32]byte) {
		t.Helper()
		v, err := g.Create(t.Context(), payment.Request{Msat: 5000, Description: "x", Expiry: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		return payment.Payment{Request: v.Request, Msat: msat, MaxFee: 77}, v.Hash
	}
	p, hash := pay(5000)
	proof, err := w.Pay(t.Context(), p)
	if err != nil || proof.Check(hash) != nil || proof.Fee != 3 {
		t.Fatalf("%+v, %v", proof, err)
	}
	if again, err := w.Pay(t.Context(), p); err != nil || again != proof {
		t.Errorf("%+v, %v", again, err)
	}
	if sent := r.Sent(); len(sent) != 1 || sent[0] != 77 {
		t.Errorf("fee limits %v", sent)
	}
	p, _ = pay(4000)
	if _, err := w.Pay(t.Context(), p); !errors.Is(err, payment.ErrDeclined) {
		t.Error(err)
	}
	p, hash = pay(5000)
	r.Fail("FAILURE_REASON_NO_ROUTE")
	if _, err := w.Pay(t.Context(), p); !errors.Is(err, payment.ErrDeclined) || !strings.Contains(err.Error(), "NO_ROUTE") {
		t.Error(err)
	}
	r.Fail("")
	if proof, err := w.Pay(t.Context(), p); err != nil || proof.Check(hash) != nil { // it failed before, and is tried again
		t.Error(err)
	}
	p, _ = pay(5000)
	r.Deny("permission denied")
	if _, err := w.Pay(t.Context(), p); errors.Is(err, payment.ErrDeclined) || !errors.Is(err, ErrDenied) { // it may have begun before
		t.Error(err)
	}
	r.Deny("wallet locked, unlock it to enable full RPC access")
	if _, err := w.Pay(t.Context(), p); err == nil || errors.Is(err, payment.ErrDeclined) {
		t.Error(err)
	}
	r.Deny("")
	r.server.CloseClientConnections()
	r.server.Close()
	if _, err := w.Pay(t.Context(), p); err == nil || errors.Is(err, payment.ErrDeclined) {
		t.Error(err)
	}
}

// TestDoubt: what is said of a payment that was begun, by the node that stops or by somebody
// on the way, does not mean that it was not paid; what the node then knows of it does.
func TestDoubt(t *testing.T) {
	for name, c := range map[string]struct {
		status   int
		body     string
		declined bool // when the node knows nothing of it
	}{
		"proxy":    {502, "<html>Bad Gateway</html>", true},
		"too slow": {504, "<html>Gateway Timeout</html>", true},
		"stops":    {200, `{"error":{"code":2,"message":"routerrpc server shutting down"}}`, true},
		"refuses":  {500, `{"code":2,"message":"invoice expired"}`, true},
	} {
		r := newRig(t)
		known, sent := false, 0 // to the node
		r.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Path == "/v2/router/send" {
				sent++
			}
			switch {
			case q.URL.Path == "/v2/router/send", strings.HasPrefix(q.URL.Path, "/v2/router/track/") && known:
				w.WriteHeader(c.status)
				fmt.Fprintln(w, c.body)
			default:
				r.Node.ServeHTTP(w, q)
			}
		})
		w, err := NewWallet(WalletConfig{URL: r.server.URL, Cert: r.cert, Macaroon: r.macaroon, Network: bolt11.Regtest})
		if err != nil {
			t.Fatal(err)
		}
		v, err := r.gateway().Create(t.Context(), payment.Request{Msat: 5000, Description: "x", Expiry: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		p := payment.Payment{Request: v.Request, Msat: 5000}
		if _, err := w.Pay(t.Context(), p); errors.Is(err, payment.ErrDeclined) != c.declined {
			t.Errorf("%s: %v", name, err)
		}
		known = true // the node does not answer to who asks what became of it
		if _, err := w.Pay(t.Context(), p); err == nil || errors.Is(err, payment.ErrDeclined) || sent != 1 {
			t.Errorf("%s: %v, sent %d times", name, err, sent)
		}
	}
	// One that is on its way when nobody waits any more is not declined.
	r := newRig(t)
	r.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path == "/v2/router/send" {
			io.Copy(io.Discard, q.Body) //nolint:errcheck // else nobody notices that it hung up
			<-q.Context().Done()
			return
		}
		r.Node.ServeHTTP(w, q)
	})
	w, err := NewWallet(WalletConfig{URL: r.server.URL, Cert: r.cert, Macaroon: r.macaroon, Network: bolt11.Regtest})
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.gateway().Create(t.Context(), payment.Request{Msat: 5000, Description: "x", Expiry: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := w.Pay(ctx, payment.Payment{Request: v.Request, Msat: 5000}); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, payment.ErrDeclined) {
		t.Error(err)
	}
}

// TestRedirection: the macaroon does not go elsewhere.
func TestRedirection(t *testing.T) {
	heard := make(chan string, 10)
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) { heard <- q.Header.Get("Grpc-Metadata-macaroon") }))
	defer other.Close()
	r := newRig(t)
	r.server.Config.Handler = http.RedirectHandler(other.URL, http.StatusFound)
	if _, err := r.gateway().Lookup(t.Context(), [32]byte{1}, ""); err == nil || len(heard) > 0 {
		t.Error(err, len(heard))
	}
}

// TestQuietShop: the newest invoices have ended, and never come again: watching does not wait
// for them.
func TestQuietShop(t *testing.T) {
	r := newRig(t)
	g := r.gateway()
	for i := range 5 {
		v, err := g.Create(t.Context(), payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if i > 2 {
			if err := r.Cancel(v.Hash); err != nil {
				t.Fatal(err)
			}
		}
	}
	if before, number, err := g.known(t.Context()); before != 2 || number != 3 || err != nil {
		t.Error(before, number, err)
	}
}

// TestCursor: a cursor of another node, or of this one before it was restored, is not
// believed: watching begins anew, and what is settled from then on comes.
func TestCursor(t *testing.T) {
	r := newRig(t)
	g := r.gateway()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pay := func() [32]byte {
		v, err := g.Create(ctx, payment.Request{Msat: 1000, Description: "x", Expiry: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Pay(v.Request, 0); err != nil {
			t.Fatal(err)
		}
		return v.Hash
	}
	first := pay()
	for _, cursor := range []string{
		fmt.Sprintf("1000 %x", sha256.Sum256(nil)), // beyond what there is: lnd would be silent for ever
		fmt.Sprintf("7 %x", first),
	} {
		n, err := g.begin(ctx, cursor)
		if n != 0 || err != nil {
			t.Errorf("%s: %d, %v", cursor, n, err)
		}
	}
	if n, err := g.begin(ctx, fmt.Sprintf("1 %x", first)); n != 1 || err != nil {
		t.Error(n, err)
	}
	for _, bad := range []string{"1", "x " + hex.EncodeToString(first[:]), "1 00"} {
		if _, err := g.begin(ctx, bad); err == nil {
			t.Errorf("%q is a cursor", bad)
		}
	}
	got := make(chan [32]byte, 10)
	go g.Watch(ctx, fmt.Sprintf("1000 %x", first), func(st payment.Status, _ string) error { got <- st.Hash; return nil }) //nolint:errcheck // ends with the test
	for timeout := time.After(60 * time.Second); ; {
		want := pay()
		select {
		case <-timeout:
			t.Fatal("nothing comes")
		case hash := <-got:
			if hash == first {
				t.Error("what was settled before comes")
			}
			_ = want
			return
		case <-time.After(50 * time.Millisecond): // until it watches
		}
	}
}

// TestStrange: what is in the stream and none of ours, or nothing at all.
func TestStrange(t *testing.T) {
	keysend := `{"result":{"r_hash":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `","state":"SETTLED","amt_paid_msat":"5000","settle_index":"9","is_keysend":true}}`
	for name, c := range map[string]struct{ line, want string }{
		"keysend": {keysend, "ended the stream"},
		"error":   {`{"error":{"code":2,"message":"permission denied"}}`, "macaroon is refused"},
		"no JSON": {"<html>", "stream of invoices"},
		"state":   {strings.Replace(keysend, `"is_keysend":true`, `"payment_request":"lnbcrt1","amt_paid_msat":"x"`, 1), "amt_paid_msat"},
	} {
		n := newNode(t)
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/invoices/subscribe" {
				fmt.Fprintln(w, c.line)
				return
			}
			n.ServeHTTP(w, r)
		}))
		defer s.Close()
		r := &rig{Node: n, t: t, server: s, cert: filepath.Join(t.TempDir(), "tls.cert"), macaroon: filepath.Join(t.TempDir(), "m")}
		r.trust()
		r.write(r.macaroon, lndtest.Macaroon)
		err := r.gateway().Watch(context.Background(), "", func(st payment.Status, _ string) error {
			t.Errorf("%s: %+v", name, st)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNew: what cannot be, with its remedy.
func TestNew(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"url":      {func(c *Config) { c.URL = "node:8080" }, "https://HOST:8080"},
		"http":     {func(c *Config) { c.URL = "http://10.0.0.1:8080" }, "for this host alone"},
		"macaroon": {func(c *Config) { c.Macaroon = "/no/such" }, "macaroon"},
		"cert":     {func(c *Config) { c.Cert = r.macaroon }, "no certificate in PEM form"},
	} {
		cfg := Config{URL: r.server.URL, Cert: r.cert, Macaroon: r.macaroon}
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g := r.gateway()
	g.cfg.Network = bolt11.Bitcoin
	if _, err := g.Create(context.Background(), payment.Request{Msat: 1000, Expiry: time.Minute}); !errors.Is(err, payment.ErrUnpayable) {
		t.Error("an invoice of another network:", err)
	}
}

// selfSigned returns a certificate that nobody uses.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
