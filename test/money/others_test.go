//go:build e2e

package money

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/gatewaytest"
	"dazaar-edge/payment/lnurl"
	"dazaar-edge/payment/nwc"
)

// relays are the relays and wallets of test/nostr.
type relays struct {
	t       *testing.T
	in      io.WriteCloser
	out     *bufio.Scanner
	wallets map[string]string // connections
}

func startRelays(t *testing.T) *relays {
	t.Helper()
	cmd := exec.Command(os.Getenv("NOSTR"), os.Getenv("LAB"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("NOSTR names the program, make lightning does: ", err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() }) //nolint:errcheck // it ends with its input
	r := &relays{t: t, in: in, out: bufio.NewScanner(out)}
	var said struct{ Wallets map[string]string }
	if !r.out.Scan() || json.Unmarshal(r.out.Bytes(), &said) != nil {
		t.Fatalf("the relays say %q", r.out.Text())
	}
	r.wallets = said.Wallets
	return r
}

// do stops or starts a relay.
func (r *relays) do(format string, args ...any) {
	r.t.Helper()
	fmt.Fprintf(r.in, format+"\n", args...)
	if !r.out.Scan() {
		r.t.Fatal("the relays ended")
	}
}

// file writes a connection to a file.
func (r *relays) file(name string) string {
	r.t.Helper()
	f := filepath.Join(r.t.TempDir(), name+".nwc")
	write(r.t, f, r.wallets[name]+"\n")
	return f
}

// TestNWCGateway: the conformance test over a relay of others, with a wallet of others, and
// lnd behind it: with NIP-44 and events, and with NIP-04 and none.
func TestNWCGateway(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	r := startRelays(t)
	for name, o := range map[string]gatewaytest.Options{"sell": {NoHold: true}, "old": {NoHold: true, NoEvents: true}} {
		t.Run(name, func(t *testing.T) {
			g, err := nwc.New(nwc.Config{Name: name, Connection: r.wallets[name], Network: bolt11.Regtest})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			gatewaytest.Run(t, g, payer{nodes["buyer"], nodes["seller"]}, o)
		})
	}
}

// nwcGateway is the configuration of a wallet behind relays.
func nwcGateway(file string) string {
	return fmt.Sprintf("  - {gateway: nwc, connection_file: %q, network: regtest}\n", file)
}

// TestNWC sells to a buyer, both with wallets behind relays; the relay that both use goes
// away, and they go on over the other one.
func TestNWC(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	r := startRelays(t)
	for _, name := range []string{"sell", "old"} {
		t.Run(name, func(t *testing.T) {
			s := sells(t, nwcGateway(r.file(name)), perTen)
			wallet := filepath.Join(t.TempDir(), "wallet.yaml")
			write(t, wallet, fmt.Sprintf("{wallet: nwc, connection_file: %q, network: regtest}\n", r.file("pay")))
			p, state := s.buys(t, "--wallet", wallet, "--max-sats", "100000", "--step", "2", "--follow")
			p.lines(40)
			s.cut = true
			r.do("stop 0")
			had := len(p.out.lines)
			until(t, "it goes on over the other relay", func() bool { _, _, ok := p.out.find(had+40, ""); return ok })
			p.stop()
			s.squares(nodes["seller"], state)
			_, receipts := paid(t, state)
			for _, x := range receipts {
				if x.Preimage != nil {
					if _, named, err := x.Verify(); err != nil || !named {
						t.Error(err)
					}
				}
			}
			s.process.stop()
			r.do("start 0")
		})
	}
	// A connection that may also spend is refused.
	s := sells(t, nwcGateway(r.file("both")), perTen)
	s.says("this connection may also pay")
	p, _ := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "100")
	if p.wait() != 5 || !strings.Contains(p.err.String(), "unpayable") {
		t.Errorf("%d: %s", p.code, p.err.String())
	}
}

// address is a small service of Lightning addresses over an lnd node.
func address(t *testing.T, n *node) (name, ca string) {
	t.Helper()
	const metadata = `[["text/plain","the roof"]]`
	hash := sha256.Sum256([]byte(metadata))
	var s *httptest.Server
	s = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := map[string]any{"status": "ERROR", "reason": "Not found"}
		switch path := r.URL.Path; {
		case path == "/.well-known/lnurlp/roof":
			out = map[string]any{"tag": "payRequest", "callback": s.URL + "/pay", "minSendable": 1000, "maxSendable": 1_000_000_000, "metadata": metadata}
		case path == "/pay":
			var made struct {
				Hash    []byte `json:"r_hash"`
				Request string `json:"payment_request"`
			}
			in := map[string]any{"value_msat": r.FormValue("amount"), "description_hash": hash[:], "expiry": "600"}
			if err := n.ask("POST", "/v1/invoices", in, &made); err != nil {
				out["reason"] = err.Error()
				break
			}
			out = map[string]any{"pr": made.Request, "routes": []any{}, "verify": s.URL + "/verify/" + hex.EncodeToString(made.Hash)}
		case strings.HasPrefix(path, "/verify/"):
			var v struct {
				State    string
				Preimage []byte `json:"r_preimage"`
			}
			if n.ask("GET", "/v1/invoice/"+strings.TrimPrefix(path, "/verify/"), nil, &v) == nil {
				out = map[string]any{"status": "OK", "settled": v.State == "SETTLED", "preimage": nil}
				if v.State == "SETTLED" {
					out["preimage"] = hex.EncodeToString(v.Preimage)
				}
			}
		}
		json.NewEncoder(w).Encode(out) //nolint:errcheck // it hung up
	}))
	t.Cleanup(s.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return "roof@" + strings.TrimPrefix(s.URL, "https://"), ca
}

// TestLNURL sells for a Lightning address; what its service says is asked for, and its
// invoices do not name the sale.
func TestLNURL(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	name, ca := address(t, nodes["seller"])
	g, err := lnurl.New(lnurl.Config{Name: "lnurl", Address: name, Network: bolt11.Regtest, CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	gatewaytest.Run(t, g, payer{nodes["buyer"], nodes["seller"]}, gatewaytest.Options{NoHold: true, NoEvents: true, NoMemo: true, AsAsked: true})
	s := sells(t, fmt.Sprintf("  - {gateway: lnurl, address: %q, ca: %q, network: regtest}\n", name, ca), perTen)
	p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "5000", "--step", "2", "--follow")
	p.lines(40)
	p.stop()
	msat, receipts := paid(t, state)
	// Its service is asked every two seconds; what came last may be on its way.
	s.comes(msat)
	for _, x := range receipts {
		if x.Preimage != nil {
			if _, _, err := x.Verify(); err != nil {
				t.Error(err)
			}
		}
	}
	if msat == 0 {
		t.Error("nothing was paid")
	}
	p, _ = s.buys(t, "--wallet", "hand", "--max-sats", "100", "--follow")
	p.says("lnbcrt")
	i, _, _ := p.err.find(0, "lnbcrt")
	if _, err := nodes["buyer"].pay(p.err.lines[i]); err != nil {
		t.Fatal(err)
	}
	p.lines(5)
	p.stop()
}

// TestFailover: the first wallet goes away, and the second one is paid: the card names
// both.
func TestFailover(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Sell)+nodes["router"].gateway(nodes["router"].Sell), perTen)
	until(t, "the card names both", func() bool {
		card := s.ask("card", "-c", "edge.yaml")
		return strings.Contains(card, nodes["seller"].Key) && strings.Contains(card, nodes["router"].Key)
	})
	p, first := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.lines(10)
	p.stop()
	control(t, "/stop?node=seller")
	s.says("a wallet cannot be paid")
	p, second := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.lines(10)
	p.stop()
	control(t, "/start?node=seller")
	control(t, "/settled")
	for i, state := range []string{first, second} {
		_, receipts := paid(t, state)
		for _, r := range receipts {
			v, err := bolt11.Parse(r.Invoice.Request)
			if err != nil || hex.EncodeToString(v.Payee[:]) != nodes[[]string{"seller", "router"}[i]].Key {
				t.Errorf("buyer %d paid %x, %v", i, v.Payee, err)
			}
		}
	}
}
