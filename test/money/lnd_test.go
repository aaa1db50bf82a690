//go:build e2e

package money

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/client"
	"dazaar-edge/market/purse"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/gatewaytest"
	"dazaar-edge/payment/lnd"
)

// perTen is the price of ten readings.
const perTen = "{amount: 10, per: 10 readings, history: all}"

// payer pays invoices of the seller's node with the buyer's.
type payer struct{ from, to *node }

func (p payer) Pay(request string, msat uint64) (preimage [32]byte, err error) {
	var b []byte
	if msat == 0 {
		b, err = p.from.pay(request)
	} else {
		v, e := bolt11.Parse(request)
		if e != nil {
			return preimage, e
		}
		key, _ := hex.DecodeString(p.to.Key)
		b, err = p.from.payMsat(key, v.Hash[:], v.Secret[:], msat)
	}
	copy(preimage[:], b)
	return preimage, err
}

// hold is the other half of the conformance test: an ordinary invoice cannot be held.
func (p payer) Accept(string, uint64) (hash [32]byte, err error) { return hash, errors.ErrUnsupported }
func (p payer) Settle([32]byte) (preimage [32]byte, err error) {
	return preimage, errors.ErrUnsupported
}
func (p payer) Cancel([32]byte) error { return errors.ErrUnsupported }

func lndGateway(t *testing.T, n *node, macaroon string) *lnd.Gateway {
	t.Helper()
	g, err := lnd.New(lnd.Config{URL: n.REST, Cert: n.Cert, Macaroon: macaroon, Network: bolt11.Regtest})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestLNDGateway: the conformance test with a real node, by both macaroons.
func TestLNDGateway(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	for name, macaroon := range map[string]string{"sell": nodes["seller"].Sell, "wide": nodes["seller"].Wide} {
		t.Run(name, func(t *testing.T) {
			gatewaytest.Run(t, lndGateway(t, nodes["seller"], macaroon), payer{nodes["buyer"], nodes["seller"]}, gatewaytest.Options{NoHold: true})
		})
	}
}

// TestLNDHold: an invoice that is paid and held is not settled, though its amount is there;
// nor is one that was taken back. One that is let go is.
func TestLNDHold(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	g := lndGateway(t, nodes["seller"], nodes["seller"].Sell)
	for _, end := range []payment.State{payment.Settled, payment.Canceled} {
		var preimage [32]byte
		rand.Read(preimage[:])
		hash := sha256.Sum256(preimage[:])
		var made struct {
			Request string `json:"payment_request"`
		}
		nodes["seller"].must("POST", "/v2/invoices/hodl", map[string]any{"hash": hash[:], "value_msat": "5000", "memo": "held"}, &made)
		is := func(state payment.State) {
			t.Helper()
			until(t, fmt.Sprintf("the invoice is %s", state), func() bool {
				st, err := g.Lookup(t.Context(), hash, "")
				return err == nil && st.State == state && st.Hash == hash && (state == payment.Open || st.Paid == 5000 || end == payment.Canceled)
			})
		}
		is(payment.Open)
		paid := make(chan error, 1)
		go func() {
			_, err := nodes["buyer"].pay(made.Request)
			paid <- err
		}()
		is(payment.Accepted)
		if end == payment.Settled {
			nodes["seller"].must("POST", "/v2/invoices/settle", map[string]any{"preimage": preimage[:]}, new(struct{}))
		} else {
			nodes["seller"].must("POST", "/v2/invoices/cancel", map[string]any{"payment_hash": hash[:]}, new(struct{}))
		}
		is(end)
		if err := <-paid; (err == nil) != (end == payment.Settled) {
			t.Errorf("%s: the payer says %v", end, err)
		}
	}
}

// TestLNDExpired: what nobody paid in time is canceled, and cannot be paid.
func TestLNDExpired(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	g := lndGateway(t, nodes["seller"], nodes["seller"].Sell)
	v, err := g.Create(t.Context(), payment.Request{Msat: 5000, Description: "x", Expiry: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "it is canceled", func() bool {
		st, err := g.Lookup(t.Context(), v.Hash, "")
		return err == nil && st.State == payment.Canceled
	})
	if _, err := nodes["buyer"].pay(v.Request); err == nil {
		t.Error("it is paid")
	}
	w, err := lnd.NewWallet(lnd.WalletConfig{URL: nodes["buyer"].REST, Cert: nodes["buyer"].Cert, Macaroon: nodes["buyer"].Pay, Network: bolt11.Regtest})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pay(t.Context(), payment.Payment{Request: v.Request, Msat: 5000, MaxFee: 5000}); !errors.Is(err, payment.ErrDeclined) {
		t.Error(err)
	}
}

// TestBuy: a buyer pays, tops up, and goes on where it was; both sides agree, and the node.
func TestBuy(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Wide), perTen)
	p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "200", "--step", "3", "--follow")
	p.lines(100)
	p.stop()
	p = start(t, s.dir, "buy", s.key, "--seller", s.address, "--state", state, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "400", "--step", "3", "--follow")
	p.lines(100)
	p.stop()
	_, receipts := paid(t, state)
	for _, r := range receipts {
		if r.State == purse.Doubt {
			continue // it was stopped while it paid
		}
		if r.State != purse.Paid {
			t.Errorf("%+v", r)
		}
		if _, named, err := r.Verify(); err != nil || !named {
			t.Error(err)
		}
	}
	if s.squares(nodes["seller"], state); len(receipts) < 3 {
		t.Errorf("%d invoices", len(receipts))
	}
}

// TestAmounts: what comes is credited, not what was asked for; what is too little, expired
// or canceled is not.
func TestAmounts(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Sell), perTen)
	// The invoices are shown to a person, who pays by other means.
	show := func() (*process, string, *bolt11.Invoice) {
		t.Helper()
		p, state := s.buys(t, "--wallet", "hand", "--max-sats", "1000", "--follow")
		p.says("lnbcrt")
		i, _, _ := p.err.find(0, "lnbcrt")
		text := p.err.lines[i]
		v, err := bolt11.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		_ = state
		return p, text, v
	}
	key, _ := hex.DecodeString(nodes["seller"].Key)
	p, _, v := show()
	if _, err := nodes["buyer"].payMsat(key, v.Hash[:], v.Secret[:], v.Msat-1); err == nil {
		t.Error("too little is taken")
	}
	if _, err := nodes["buyer"].payMsat(key, v.Hash[:], v.Secret[:], v.Msat*17/10); err != nil {
		t.Fatal(err)
	}
	// 17 readings instead of 10: those that came, and those that are left, as the next block has more.
	p.lines(10)
	until(t, "17 readings come, or are left", func() bool {
		var b struct{ Remaining int }
		for line := range strings.Lines(s.ask("buyers", "-c", "edge.yaml", "--json")) {
			if strings.Contains(line, fmt.Sprintf(`"paidMsat":"%d"`, v.Msat*17/10)) {
				if err := json.Unmarshal([]byte(line), &b); err != nil {
					t.Fatal(err)
				}
			}
		}
		p.out.mu.Lock()
		defer p.out.mu.Unlock()
		came := 0
		for _, line := range p.out.lines {
			came += strings.Count(line, `"value":`)
		}
		return b.Remaining < 7 && came+b.Remaining == 17
	})
	p.stop()
	p, text, v := show()
	nodes["seller"].must("POST", "/v2/invoices/cancel", map[string]any{"payment_hash": v.Hash[:]}, new(struct{}))
	if _, err := nodes["buyer"].pay(text); err == nil {
		t.Error("a canceled invoice is paid")
	}
	if len(p.out.lines) > 0 {
		t.Errorf("%q came for nothing", p.out.lines)
	}
	p.stop()
	// Sub-satoshi amounts are real.
	if got := s.agrees(nodes["seller"]); got != 17_000 {
		t.Errorf("%d msat came", got)
	}
}

// TestRestart: the seller's node is killed while payments are on their way, and started
// again; nothing is lost, nothing is counted twice. Paid buyers are served meanwhile.
func TestRestart(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Sell), perTen)
	rich, richState := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "50000", "--step", "100", "--follow")
	rich.lines(100)
	var states []string
	var all []*process
	for range 5 {
		p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "50000", "--step", "2", "--follow")
		all, states = append(all, p), append(states, state)
	}
	all[0].lines(20)
	control(t, "/kill?node=seller")
	s.cut = true
	had := len(rich.out.lines)
	until(t, "who paid is served while the node is away", func() bool { _, _, ok := rich.out.find(had+20, ""); return ok })
	s.says("a wallet cannot be paid")
	if got := s.ask("status", "-c", "edge.yaml"); !strings.Contains(got, "payment: gateway lnd") {
		t.Error(got)
	}
	late, _ := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500")
	if late.wait() != 5 || !strings.Contains(late.err.String(), "unpayable") {
		t.Errorf("%d: %s", late.code, late.err.String())
	}
	control(t, "/start?node=seller")
	control(t, "/settled")
	s.says("a wallet can be paid again")
	for i, p := range all {
		n := len(p.out.lines)
		until(t, fmt.Sprintf("buyer %d goes on", i), func() bool { _, _, ok := p.out.find(n+20, ""); return ok })
	}
	for _, p := range append(all, rich) {
		p.stop()
	}
	s.squares(nodes["seller"], append(states, richState)...)
}

// TestRouterDown: no way leads to the seller; nothing is paid, and it is tried again.
func TestRouterDown(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Sell), perTen)
	control(t, "/stop?node=router")
	p, _ := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500")
	if p.wait() != 5 || !strings.Contains(p.err.String(), "the wallet did not pay") {
		t.Errorf("%d: %s", p.code, p.err.String())
	}
	p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.says("the wallet did not pay; trying again")
	control(t, "/start?node=router")
	control(t, "/settled")
	p.lines(30)
	p.stop()
	s.squares(nodes["seller"], state)
}

// TestMacaroon: one that is refused is said to be, and the right one is taken without a
// restart.
func TestMacaroon(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	file := filepath.Join(t.TempDir(), "sell.macaroon")
	copyFile(t, nodes["seller"].Pay, file) // it may pay, and not be paid
	s := sells(t, nodes["seller"].gateway(file), perTen)
	s.says("permission denied")
	p, _ := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500")
	if p.wait() != 5 || !strings.Contains(p.err.String(), "unpayable") {
		t.Errorf("%d: %s", p.code, p.err.String())
	}
	copyFile(t, nodes["seller"].Sell, file)
	s.says("a wallet can be paid again")
	p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.lines(20)
	p.stop()
	s.squares(nodes["seller"], state)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(b))
}

// TestCertificate: the node makes a new certificate, as it does when the old one ends. It
// is not trusted before its owner copies it.
func TestCertificate(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	cert := filepath.Join(t.TempDir(), "tls.cert")
	copyFile(t, nodes["seller"].Cert, cert)
	n := *nodes["seller"]
	n.Cert = cert
	s := sells(t, n.gateway(n.Sell), perTen)
	p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.lines(10)
	s.cut = true
	control(t, "/stop?node=seller")
	for _, name := range []string{"tls.cert", "tls.key"} {
		if err := os.Remove(filepath.Join(n.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	control(t, "/start?node=seller")
	s.says("the node's certificate is another one")
	copyFile(t, nodes["seller"].Cert, cert)
	control(t, "/settled")
	s.says("a wallet can be paid again")
	had := len(p.out.lines)
	until(t, "the buyer goes on", func() bool { _, _, ok := p.out.find(had+20, ""); return ok })
	p.stop()
	s.squares(nodes["seller"], state)
}

// forward is an address that leads to another one, which may change.
func forward(t *testing.T, to *atomic.Value) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	var mu sync.Mutex
	var open []net.Conn
	go func() {
		for {
			a, err := ln.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to.Load().(string))
			if err != nil {
				a.Close()
				continue
			}
			mu.Lock()
			open = append(open, a, b)
			mu.Unlock()
			go func() { io.Copy(a, b); a.Close() }() //nolint:errcheck // it broke
			go func() { io.Copy(b, a); b.Close() }() //nolint:errcheck // as above
		}
	}()
	cut := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			c.Close()
		}
		open = nil
	}
	t.Cleanup(cut)
	cuts.Store(to, cut)
	return ln.Addr().String()
}

var cuts sync.Map

// TestReplaced: behind the same address is another node: nothing is sold by it until the
// owner says that it is right.
func TestReplaced(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	dir := t.TempDir()
	n := *nodes["seller"]
	n.Cert, n.Sell = filepath.Join(dir, "tls.cert"), filepath.Join(dir, "sell.macaroon")
	copyFile(t, nodes["seller"].Cert, n.Cert)
	copyFile(t, nodes["seller"].Sell, n.Sell)
	var to atomic.Value
	to.Store(strings.TrimPrefix(n.REST, "https://"))
	n.REST = "https://" + forward(t, &to)
	s := sells(t, n.gateway(n.Sell), perTen)
	p, state := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.lines(20)
	p.stop()
	s.squares(nodes["seller"], state) // what is still on its way would come to a node that nobody asks
	// The router takes its place, with its own certificate and macaroon.
	copyFile(t, nodes["router"].Cert, n.Cert)
	copyFile(t, nodes["router"].Sell, n.Sell)
	to.Store(strings.TrimPrefix(nodes["router"].REST, "https://"))
	cut, _ := cuts.Load(&to)
	cut.(func())()
	s.says("the wallet is another one than before")
	p, _ = s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500")
	if p.wait() != 5 || !strings.Contains(p.err.String(), "unpayable") {
		t.Errorf("%d: %s", p.code, p.err.String())
	}
	if got := s.ask("ledger", "-c", "edge.yaml", "--trust", "lnd "+n.REST); !strings.Contains(got, nodes["router"].Key) {
		t.Error(got)
	}
	until(t, "the card names the new node", func() bool { return strings.Contains(s.ask("card", "-c", "edge.yaml"), nodes["router"].Key) })
	p, late := s.buys(t, "--wallet", nodes["buyer"].wallet(t), "--max-sats", "500", "--follow")
	p.lines(20)
	p.stop()
	// Two nodes were paid: each side by itself.
	s.quiet()
	sum := uint64(0)
	at := map[[32]byte]invoice{}
	for _, n := range []string{"seller", "router"} {
		maps.Copy(at, nodes[n].invoices("dazaar: "+s.key))
	}
	for _, state := range []string{state, late} {
		_, receipts := paid(t, state)
		for _, r := range receipts {
			if at[r.Invoice.Hash].State == "SETTLED" {
				sum += r.Msat
			}
		}
	}
	if total := s.comes(sum); total != sum {
		t.Errorf("%d msat were paid, %d came", sum, total)
	}
}

// many is how many buyers there are at once.
var many = flag.Int("buyers", 50, "how many buyers TestMany has")

// TestMany: many buyers at once, each from a network of its own: strangers of one network
// have few invoices.
func TestMany(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Sell), perTen)
	key, err := hex.DecodeString(s.key)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var states []string
	var wg sync.WaitGroup
	had := make(chan struct{}, *many)
	for i := range *many {
		w, err := lnd.NewWallet(lnd.WalletConfig{URL: nodes["buyer"].REST, Cert: nodes["buyer"].Cert, Macaroon: nodes["buyer"].Pay, Network: bolt11.Regtest})
		if err != nil {
			t.Fatal(err)
		}
		state, out := filepath.Join(t.TempDir(), "state"), &counter{n: 20, had: had}
		states = append(states, state)
		wg.Go(func() {
			err := client.Buy(ctx, state, client.Config{
				Seller: [32]byte(key), Output: out, Wallet: w, Budget: purse.Budget{Total: 300_000}, Follow: true,
				Ways: client.TCP(&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, byte(i), 1)}}, s.address),
			})
			if err != nil && !errors.Is(err, client.ErrBudget) {
				t.Errorf("buyer %d: %v", i, err)
			}
		})
	}
	for range *many {
		select {
		case <-had:
		case <-time.After(patience):
			t.Fatalf("not all have 20 blocks: %s", s.err.String())
		}
	}
	stop()
	wg.Wait()
	s.squares(nodes["seller"], states...)
}

// counter is an output that counts blocks.
type counter struct {
	n, got int
	had    chan<- struct{}
}

func (c *counter) Block(uint64, []byte) error {
	if c.got++; c.got == c.n {
		c.had <- struct{}{}
	}
	return nil
}
func (c *counter) Gap(uint64, uint64) error     { return nil }
func (c *counter) Fork(uint64, uint64) error    { return nil }
func (c *counter) Head(merkle.Head) error       { return nil }
func (c *counter) Sync() (int64, string, error) { return 0, "", nil }
func (c *counter) Resume(int64, string) error   { return nil }
