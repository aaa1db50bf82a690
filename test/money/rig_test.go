//go:build e2e

package money

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dazaar-edge/market/purse"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/storage/durable"
)

// edge is the program that is tested.
var edge string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "money-")
	if err != nil {
		panic(err)
	}
	edge = filepath.Join(dir, "edge")
	if out, err := exec.Command("go", "build", "-tags", "nethttpomithttp2", "-o", edge, "dazaar-edge/cmd/edge").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v: %s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// node is a Lightning node of the lab.
type node struct {
	t                                            *testing.T
	Key, REST, Dir, Cert, Admin, Sell, Wide, Pay string
}

// lab returns the nodes.
func lab(t *testing.T) map[string]*node {
	t.Helper()
	b, err := os.ReadFile(os.Getenv("LAB"))
	if err != nil {
		t.Fatal("this test runs in the lab: make lightning: ", err)
	}
	nodes := map[string]*node{}
	if err := json.Unmarshal(b, &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.t = t
	}
	return nodes
}

// control does something to a node.
func control(t *testing.T, path string) {
	t.Helper()
	resp, err := http.Post(os.Getenv("LAB_CONTROL")+path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", path, b)
	}
}

// client returns one that may do everything.
func (n *node) client() (*http.Client, string) {
	n.t.Helper()
	pem, err := os.ReadFile(n.Cert)
	if err != nil {
		n.t.Fatal(err)
	}
	macaroon, err := os.ReadFile(n.Admin)
	if err != nil {
		n.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}, hex.EncodeToString(macaroon)
}

// ask calls the node; of a stream it reads the first line.
func (n *node) ask(method, path string, in, out any) error {
	n.t.Helper()
	client, macaroon := n.client()
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, n.REST+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	r.Header.Set("Grpc-Metadata-macaroon", macaroon)
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s: %s", path, resp.Status, b)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

func (n *node) must(method, path string, in, out any) {
	n.t.Helper()
	if err := n.ask(method, path, in, out); err != nil {
		n.t.Fatal(err)
	}
}

// invoice is one as the node lists it.
type invoice struct {
	Hash    []byte `json:"r_hash"`
	Memo    string `json:"memo"`
	State   string `json:"state"`
	Paid    string `json:"amt_paid_msat"`
	Added   string `json:"add_index"`
	Address []byte `json:"payment_addr"`
}

// invoices returns all invoices of a node that say something, by hash.
func (n *node) invoices(memo string) map[[32]byte]invoice {
	n.t.Helper()
	out := map[[32]byte]invoice{}
	for offset := "0"; ; {
		var page struct {
			Invoices []invoice
			Last     string `json:"last_index_offset"`
		}
		n.must("GET", "/v1/invoices?num_max_invoices=500&index_offset="+offset, nil, &page)
		for _, v := range page.Invoices {
			if strings.HasPrefix(v.Memo, memo) && len(v.Hash) == 32 {
				out[[32]byte(v.Hash)] = v
			}
		}
		if len(page.Invoices) < 500 {
			return out
		}
		offset = page.Last
	}
}

// send is what a payer's node says of a payment.
type send struct {
	Result struct {
		Status   string
		Reason   string `json:"failure_reason"`
		Preimage string `json:"payment_preimage"`
	}
}

// pay pays an invoice.
func (n *node) pay(request string) (preimage []byte, err error) {
	return n.send(map[string]any{"payment_request": request, "timeout_seconds": 20, "fee_limit_msat": "100000", "no_inflight_updates": true})
}

// payMsat pays so much of an invoice, whatever it asks for.
func (n *node) payMsat(to, hash, address []byte, msat uint64) (preimage []byte, err error) {
	return n.send(map[string]any{
		"dest": to, "payment_hash": hash, "payment_addr": address, "amt_msat": strconv.FormatUint(msat, 10), "final_cltv_delta": 80,
		"timeout_seconds": 20, "fee_limit_msat": "100000", "no_inflight_updates": true,
		"dest_features": []string{"TLV_ONION_REQ", "PAYMENT_ADDR_REQ"},
	})
}

func (n *node) send(in map[string]any) ([]byte, error) {
	n.t.Helper()
	var out send
	if err := n.ask("POST", "/v2/router/send", in, &out); err != nil {
		return nil, err
	}
	if out.Result.Status != "SUCCEEDED" {
		return nil, fmt.Errorf("%s: %s", out.Result.Status, out.Result.Reason)
	}
	return hex.DecodeString(out.Result.Preimage)
}

// log is what a process writes, which may be waited for.
type log struct {
	mu    sync.Mutex
	lines []string // guarded by mu, like all below
	at    []time.Time
	part  []byte
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.part = append(l.part, p...)
	for {
		i := bytes.IndexByte(l.part, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.lines, l.at = append(l.lines, string(l.part[:i])), append(l.at, now)
		l.part = l.part[i+1:]
	}
}

// find returns the first line from a number on that has a text, and when it came.
func (l *log) find(from int, text string) (n int, at time.Time, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := from; i < len(l.lines); i++ {
		if strings.Contains(l.lines[i], text) {
			return i, l.at[i], true
		}
	}
	return len(l.lines), at, false
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// patience is how long a process may take for anything.
const patience = 90 * time.Second

// until waits until something is so.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not after ", patience, ": ", what)
		}
	}
}

// process is edge run or edge buy.
type process struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, err log
	done     chan struct{}
	code     int
}

func start(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(edge, args...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, &p.out, &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		err := p.cmd.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			p.code = exit.ExitCode()
		} else if err != nil {
			p.code = -1
		}
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill() //nolint:errcheck // it may have ended
		<-p.done
		if said := p.err.String(); t.Failed() {
			t.Logf("%q said:\n%s", args, said[max(0, len(said)-4000):])
		}
	})
	return p
}

// wait waits for its end, and returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.code
	case <-time.After(patience):
		p.t.Fatalf("%q does not end: %s", p.cmd.Args, p.err.String())
		return -1
	}
}

// says waits until it says something on standard error.
func (p *process) says(text string) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("%q says %q: ", p.cmd.Args[1:], text), func() bool {
		_, _, ok := p.err.find(0, text)
		if !ok {
			select {
			case <-p.done:
				p.t.Fatalf("%q ended: %s", p.cmd.Args, p.err.String())
			default:
			}
		}
		return ok
	})
}

// lines waits until it printed so many.
func (p *process) lines(n int) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("%q prints %d lines", p.cmd.Args[1:], n), func() bool {
		p.out.mu.Lock()
		defer p.out.mu.Unlock()
		select {
		case <-p.done:
			if len(p.out.lines) < n {
				p.t.Fatalf("%q ended after %d lines: %s", p.cmd.Args, len(p.out.lines), strings.Join(p.err.lines, "\n"))
			}
		default:
		}
		return len(p.out.lines) >= n
	})
}

// stop ends it in order.
func (p *process) stop() {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	if p.wait() != 0 {
		p.t.Fatalf("%q: exit code %d: %s", p.cmd.Args, p.code, p.err.String())
	}
}

// seller is edge run with wallets.
type seller struct {
	*process
	dir, key, address string
	cut               bool // what leads to the node was, perhaps when it had made an invoice and not yet said so
}

// sells starts edge run; payment is the YAML of its wallets, price that of its price.
func sells(t *testing.T, payment, price string) *seller {
	t.Helper()
	s := &seller{dir: t.TempDir()}
	config := "device: {clock: system}\nstorage: {path: data, max_size: 64MiB, commit: {every: 0s}}\nlimits: {upload_per_buyer: none, upload: none, buyers: 300}\npayment:\n" + payment + `
feeds:
  - name: air
    price: ` + price + `
    tcp: "127.0.0.1:0"
    pack: {every: 20ms}
    sensors: [{name: wave, driver: sim, every: 10ms}]
`
	write(t, filepath.Join(s.dir, "edge.yaml"), config)
	s.run(t)
	return s
}

func (s *seller) run(t *testing.T) {
	t.Helper()
	s.process = start(t, s.dir, "run", "-c", "edge.yaml")
	s.lines(1)
	var ready struct {
		Feeds []struct {
			SellerKey string `json:"sellerKey"`
			TCP       string `json:"tcp"`
		} `json:"feeds"`
	}
	if err := json.Unmarshal([]byte(s.out.lines[0]), &ready); err != nil {
		t.Fatal(err)
	}
	s.key, s.address = ready.Feeds[0].SellerKey, ready.Feeds[0].TCP
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask runs a command of the owner.
func (s *seller) ask(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(edge, args...)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}

// rows returns the ledger.
func (s *seller) rows() (out []ledger.Row) {
	s.t.Helper()
	for d := json.NewDecoder(strings.NewReader(s.ask("ledger", "-c", "edge.yaml", "--json"))); ; {
		var r ledger.Row
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, r)
	}
}

// agrees checks that the ledger has what the node has, to the msat.
func (s *seller) agrees(n *node) (msat uint64) {
	s.t.Helper()
	rows := map[[32]byte]ledger.Row{}
	for _, r := range s.rows() {
		rows[r.Hash] = r
	}
	total := uint64(0)
	list := n.invoices("dazaar: " + s.key)
	for hash, v := range list {
		r, ok := rows[hash]
		paid, err := strconv.ParseUint(v.Paid, 10, 64)
		switch {
		case err != nil:
			s.t.Fatal(err)
		case !ok && s.cut && v.State != "SETTLED" && v.State != "ACCEPTED":
			// Nobody has seen it, so nobody can pay it.
		case !ok:
			s.t.Errorf("the node has invoice %x, which is %s, and the ledger has not", hash, v.State)
		case (v.State == "SETTLED") != (r.State == ledger.Settled):
			s.t.Errorf("invoice %x is %s at the node, and %s in the ledger", hash, v.State, r.State)
		case v.State == "SETTLED" && paid != r.Paid:
			s.t.Errorf("for invoice %x came %d msat, and the ledger says %d", hash, paid, r.Paid)
		case v.State == "SETTLED":
			total += paid
		}
		delete(rows, hash)
	}
	for hash, r := range rows {
		if r.Gateway != "devnet" {
			s.t.Errorf("the ledger has invoice %x, which is %s, and the node has not", hash, r.State)
		}
	}
	return total
}

// quiet waits until no payment is on its way: who was stopped while it paid has left its
// node at it.
func (s *seller) quiet() {
	s.t.Helper()
	payer := lab(s.t)["buyer"]
	until(s.t, "no payment is on its way", func() bool {
		var list struct{ Payments []struct{ Status string } }
		payer.must("GET", "/v1/payments?include_incomplete=true&reversed=true&max_payments=100", nil, &list)
		for _, p := range list.Payments {
			if p.Status != "SUCCEEDED" && p.Status != "FAILED" {
				return false
			}
		}
		return true
	})
}

// comes waits until the ledger has so much: what came last may be on its way there. It
// returns what it has.
func (s *seller) comes(msat uint64) (total uint64) {
	s.t.Helper()
	until(s.t, fmt.Sprintf("%d msat are in the ledger", msat), func() bool {
		total = 0
		for _, r := range s.rows() {
			total += r.Paid
		}
		return total >= msat
	})
	return total
}

// squares checks, when all buyers have ended, that what they say they paid came at the
// node, that what they say they did not pay did not, and that the ledger agrees. It returns
// what came.
func (s *seller) squares(n *node, states ...string) uint64 {
	s.t.Helper()
	s.quiet()
	payer := lab(s.t)["buyer"]
	sum := uint64(0)
	for _, state := range states {
		_, receipts := paid(s.t, state)
		for _, r := range receipts {
			var v invoice
			until(s.t, "a payment is no longer on its way", func() bool {
				v = n.invoices("dazaar: " + s.key)[r.Invoice.Hash]
				return v.State != "ACCEPTED"
			})
			settled := v.State == "SETTLED"
			if settled && r.State == purse.Failed || !settled && (r.State == purse.Paid || r.State == purse.Credited) {
				var list struct {
					Payments []struct {
						Hash   string `json:"payment_hash"`
						Status string
					}
				}
				payer.must("GET", "/v1/payments?include_incomplete=true&reversed=true&max_payments=300", nil, &list)
				said := "nothing"
				for _, p := range list.Payments {
					if p.Hash == fmt.Sprintf("%x", r.Invoice.Hash) {
						said = p.Status
					}
				}
				if settled && r.State == purse.Failed && said == "FAILED" && s.cut {
					// A node that is killed between two commitments may settle what the one before
					// it has failed backwards: that one pays, and not the buyer.
					s.t.Logf("invoice %x is SETTLED at the node, and the buyer's node says that it failed", r.Invoice.Hash)
				} else {
					s.t.Errorf("invoice %x is %s at the node, and its buyer says %s: %s; the buyer's node says %s", r.Invoice.Hash, v.State, r.State, r.Error, said)
				}
			}
			if settled {
				sum += r.Msat
			}
		}
	}
	s.comes(sum)
	if got := s.agrees(n); got != sum {
		s.t.Errorf("%d msat were paid, %d came", sum, got)
	}
	return sum
}

// wallet writes the file of a wallet that pays.
func (n *node) wallet(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "wallet.yaml")
	write(t, name, fmt.Sprintf("{wallet: lnd, url: %q, cert: %q, macaroon: %q, network: regtest}\n", n.REST, n.Cert, n.Pay))
	return name
}

// gateway returns the configuration of a node that is paid.
func (n *node) gateway(macaroon string) string {
	return fmt.Sprintf("  - {gateway: lnd, url: %q, cert: %q, macaroon: %q, network: regtest}\n", n.REST, n.Cert, macaroon)
}

// buys starts edge buy, which keeps its state in a directory of its own.
func (s *seller) buys(t *testing.T, args ...string) (p *process, state string) {
	t.Helper()
	state = filepath.Join(t.TempDir(), "state")
	return start(t, s.dir, append([]string{"buy", s.key, "--seller", s.address, "--state", state}, args...)...), state
}

// paid returns what a buyer paid, as its receipts say, and the preimages.
func paid(t *testing.T, state string) (msat uint64, receipts []purse.Receipt) {
	t.Helper()
	p, err := purse.Open(durable.OS(), state)
	if err != nil {
		t.Fatal(err)
	}
	p.Receipts(func(r *purse.Receipt, err error) bool {
		if err != nil {
			t.Fatal(err)
		}
		if r.State == purse.Paid || r.State == purse.Credited {
			msat += r.Msat
		}
		receipts = append(receipts, *r)
		return true
	})
	return msat, receipts
}
