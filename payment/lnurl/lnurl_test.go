package lnurl

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/gatewaytest"
	"dazaar-edge/storage/durable"
)

// service is one that answers for roof@HOST; its money is the test wallet's.
type service struct {
	*httptest.Server
	*devnet.Node
	change func(path string, answer map[string]any) // what it says otherwise; nil is nothing
}

const metadata = `[["text/plain","roof"],["text/identifier","roof@host"]]`

func newService(t *testing.T) (*service, *Gateway) {
	t.Helper()
	s := &service{}
	var err error
	if s.Node, err = devnet.Open(durable.OS(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewTLSServer(s)
	t.Cleanup(s.Server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	g, err := New(Config{Name: "lnurl", Address: "roof@" + strings.TrimPrefix(s.URL, "https://"), Network: bolt11.Regtest, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	return s, g
}

// ServeHTTP implements http.Handler.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := map[string]any{"status": "ERROR", "reason": "Not found"}
	switch path := r.URL.Path; {
	case path == "/.well-known/lnurlp/roof":
		out = map[string]any{"tag": "payRequest", "callback": s.URL + "/pay?id=1", "minSendable": 1000, "maxSendable": 1_000_000_000, "metadata": metadata}
	case path == "/pay":
		msat, _ := strconv.ParseUint(r.FormValue("amount"), 10, 64)
		sum := sha256.Sum256([]byte(metadata))
		v, err := s.CreateHash(r.Context(), msat, sum)
		if err != nil {
			out = map[string]any{"status": "ERROR", "reason": err.Error()}
			break
		}
		out = map[string]any{"pr": v.Request, "routes": []any{}, "verify": s.URL + "/verify/" + hex.EncodeToString(v.Hash[:])}
	case strings.HasPrefix(path, "/verify/"):
		hash, _ := hex.DecodeString(strings.TrimPrefix(path, "/verify/"))
		if len(hash) != 32 {
			break
		}
		st, err := s.Lookup(r.Context(), [32]byte(hash), "")
		if err != nil {
			break
		}
		out = map[string]any{"status": "OK", "settled": st.State == payment.Settled, "preimage": nil}
		if st.Preimage != nil {
			out["preimage"] = hex.EncodeToString(st.Preimage[:])
		}
	}
	if s.change != nil {
		s.change(r.URL.Path, out)
	}
	json.NewEncoder(w).Encode(out) //nolint:errcheck // it hung up
}

func TestGateway(t *testing.T) {
	s, g := newService(t)
	gatewaytest.Run(t, g, s.Node, gatewaytest.Options{NoEvents: true, NoMemo: true, NoHold: true, AsAsked: true})
}

// TestLies: what does not fit is refused, with a word about what.
func TestLies(t *testing.T) {
	s, g := newService(t)
	request := payment.Request{Msat: 5000}
	other, err := s.Create(t.Context(), payment.Request{Msat: 5000, Description: "x", Expiry: 1e9})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path   string
		change func(map[string]any)
		want   string
	}{
		"not for this address": {"/pay", func(m map[string]any) { m["pr"] = other.Request }, "its description is another one"},
		"no verification":      {"/pay", func(m map[string]any) { delete(m, "verify") }, "LUD-21"},
		"http":                 {"/pay", func(m map[string]any) { m["verify"] = "http://host/x" }, "asked at"},
		"long":                 {"/pay", func(m map[string]any) { m["verify"] = "https://host/" + strings.Repeat("x", 2000) }, "asked at"},
		"callback":             {"/.well-known/lnurlp/roof", func(m map[string]any) { m["callback"] = "http://host/pay" }, "not https"},
		"withdrawal":           {"/.well-known/lnurlp/roof", func(m map[string]any) { m["tag"] = "withdrawRequest" }, "no address that can be paid"},
		"too little":           {"/.well-known/lnurlp/roof", func(m map[string]any) { m["minSendable"] = 6000 }, "takes 6000 to"},
		"metadata":             {"/.well-known/lnurlp/roof", func(m map[string]any) { m["metadata"] = "[]" }, "its description is another one"},
		"error":                {"/pay", func(m map[string]any) { clear(m); m["status"], m["reason"] = "ERROR", "no liquidity" }, "no liquidity"},
	} {
		s.change = func(path string, m map[string]any) {
			if path == c.path {
				c.change(m)
			}
		}
		if v, err := g.Create(t.Context(), request); !errors.Is(err, payment.ErrUnpayable) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	s.change = nil
	v, err := g.Create(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	// It says that it is settled, and has no preimage, or another one.
	for _, preimage := range []any{nil, "", strings.Repeat("0", 64)} {
		s.change = func(_ string, m map[string]any) { m["settled"], m["preimage"] = true, preimage }
		if st, err := g.Lookup(t.Context(), v.Hash, v.Handle); err == nil || st.State == payment.Settled {
			t.Errorf("%v: %+v, %v", preimage, st, err)
		}
	}
	s.change = func(_ string, m map[string]any) { m["pr"] = other.Request }
	if st, err := g.Lookup(t.Context(), v.Hash, v.Handle); err == nil {
		t.Errorf("%+v", st)
	}
	for _, bad := range []string{"", "roof", "@host", "roof@", "roof@host/x", "ro of@host"} {
		if _, err := New(Config{Address: bad}); err == nil {
			t.Errorf("%q is an address", bad)
		}
	}
}
