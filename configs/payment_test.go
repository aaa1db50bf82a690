package configs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestS12: secrets are files that nobody else may read; no error says what is in them, nor
// do names of gateways, which are logged.
func TestS12(t *testing.T) {
	dir := t.TempDir()
	secret := strings.Repeat("5ec2e7", 11)[:64]
	connection := "nostr+walletconnect://" + strings.Repeat("ab", 32) + "?relay=wss%3A%2F%2Frelay.example&secret=" + secret
	file := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	file("tls.cert", "x", 0o644)
	file("open.macaroon", secret, 0o644)
	file("sell.macaroon", secret, 0o600)
	file("open.nwc", connection, 0o640)
	file("wallet.nwc", connection+"\n", 0o600)
	file("broken.nwc", "nostr+walletconnect://x?secret="+secret, 0o600)
	parse := func(item string) (*Config, error) {
		return Parse(filepath.Join(dir, "edge.yaml"), []byte("payment: ["+item+"]\nfeeds: [{name: a, price: {amount: 1, per: 1m}, sensors: [{name: s, driver: sim}]}]\n"))
	}
	for item, want := range map[string]string{
		"{gateway: lnd, url: 'https://n:1', cert: tls.cert, macaroon: open.macaroon}": "can be read by others: chmod 600",
		"{gateway: nwc, connection_file: open.nwc}":                                   "can be read by others: chmod 600",
		"{gateway: nwc, connection_file: broken.nwc}":                                 "does not hold a connection",
		"{gateway: nwc, connection_file: none.nwc}":                                   "no such file",
		"{gateway: nwc}":                                                 "has no connection_file",
		"{gateway: lnurl}":                                               "has no address",
		"{gateway: lnurl, address: roof}":                                "is not a Lightning address",
		"{gateway: lnurl, address: a@b, ca: none.pem}":                   "not a file that can be read",
		"{gateway: lnurl, address: a@b, may_spend: true}":                "belongs to gateway nwc, not lnurl",
		"{gateway: lnurl, address: a@b}, {gateway: lnurl, address: a@b}": "is there twice",
		"{wallet: lnd}":                                                  "is for wallets that pay: write gateway",
	} {
		_, err := parse(item)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", item, err, want)
		}
		if err != nil && strings.Contains(err.Error(), secret[:12]) {
			t.Errorf("%s: it says the secret: %v", item, err)
		}
	}
	c, err := parse("{gateway: nwc, connection_file: wallet.nwc, custodial: true}, {gateway: lnurl, address: roof@example.com}, {gateway: lnd, url: 'https://n:1', cert: tls.cert, macaroon: sell.macaroon}")
	if err != nil {
		t.Fatal(err)
	}
	if c.Payment[0].Connection != connection || !c.Payment[0].Custodial || c.Payment[0].Network != "bitcoin" {
		t.Errorf("%+v", c.Payment[0])
	}
	for i, want := range []string{"nwc abababababababab", "lnurl roof@example.com", "lnd https://n:1"} {
		if got := c.Payment[i].Name(); got != want || strings.Contains(got, secret[:12]) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestWallet: the file of a wallet that pays.
func TestWallet(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "wallet.yaml")
	for text, want := range map[string]string{
		"wallet: lnd":       "has no url",
		"wallet: devnet":    "\"devnet\" is unknown",
		"gateway: lnd":      "is for wallets that are paid: write wallet",
		"wallet: nwc\nx: 1": "unknown key \"x\"",
		"!-":                "is unknown",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadWallet(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := LoadWallet(filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "there is no such file") {
		t.Error(err)
	}
}
