//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const paidConfig = `device: {name: shop, clock: system}
storage: {path: data, max_size: 32MiB, commit: {every: 0s}}
payment: [{gateway: devnet, listen: "127.0.0.1:0"}]
feeds:
  - name: only
    pack: {every: 10ms}
    price: {amount: 2, per: 10 readings, history: all}
    tcp: "127.0.0.1:0"
    sensors: [{name: wave, driver: sim, every: 10ms}]
`

// till is edge run, selling for the test wallet.
type till struct {
	dir, address, wallet, card string
}

func openTill(t *testing.T) *till {
	t.Helper()
	s := &till{dir: t.TempDir()}
	edge := filepath.Join(s.dir, "edge")
	if out, err := exec.Command("go", "build", "-o", edge, "dazaar-edge/cmd/edge").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "edge.yaml"), []byte(paidConfig), 0o644); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(edge, "run", "-c", "edge.yaml")
	cmd.Dir, cmd.Stderr = s.dir, &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
		if err := cmd.Wait(); err != nil {
			t.Errorf("edge run: %v: %s", err, stderr.String())
		}
	})
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	if !sc.Scan() {
		t.Fatalf("edge run did not become ready: %s", stderr.String())
	}
	var ready struct {
		Wallet string
		Feeds  []struct {
			TCP  string
			Card json.RawMessage
		}
	}
	if err := json.Unmarshal(sc.Bytes(), &ready); err != nil {
		t.Fatal(err)
	}
	s.address, s.wallet, s.card = ready.Feeds[0].TCP, ready.Wallet, filepath.Join(s.dir, "card.json")
	if err := os.WriteFile(s.card, ready.Feeds[0].Card, 0o644); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestStockPurchase runs docs/examples/buyer.js, which has none of our code: it checks the
// card and its invoices, pays, and prints what hypercore verified. With a budget that
// is too small it stops; with a card that was changed, or that names another payee, it
// pays nothing.
func TestStockPurchase(t *testing.T) {
	s := openTill(t)
	script, err := os.ReadFile("../../docs/examples/buyer.js")
	if err != nil {
		t.Fatal(err)
	}
	// Beside node_modules, where the example finds its modules.
	if err := os.WriteFile("buyer.tmp.js", script, 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove("buyer.tmp.js")
	buy := func(card, sats, blocks string) (stdout, stderr string, err error) {
		t.Helper()
		var out, say bytes.Buffer
		cmd := exec.Command("node", "buyer.tmp.js", card, s.address, s.wallet, sats, blocks)
		cmd.Stdout, cmd.Stderr = &out, &say
		err = cmd.Run()
		return out.String(), say.String(), err
	}
	out, say, err := buy(s.card, "100", "40")
	if lines := strings.Count(out, "\n"); err != nil || lines != 40 || strings.Count(out, `"wave/temperature"`) < 30 || strings.Count(say, "paid 2000 msat") < 3 {
		t.Errorf("%d blocks, %v: %s%s", lines, err, say, out)
	}
	if _, say, err := buy(s.card, "2", "40"); err == nil || !strings.Contains(say, "the budget is spent") {
		t.Errorf("%v: %s", err, say)
	}
	card, err := os.ReadFile(s.card)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(s.dir, "changed.json")
	if err := os.WriteFile(changed, bytes.Replace(card, []byte(`"amount":"2"`), []byte(`"amount":"1"`), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, say, err := buy(changed, "100", "40"); err == nil || !strings.Contains(say, "the card is not signed by its seller") {
		t.Errorf("%v: %s", err, say)
	}
}
