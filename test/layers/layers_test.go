// Package layers keeps the directions of import and the list of direct
// dependencies.
package layers

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "dazaar-edge"

// allowed says which of our packages each package may import: a package itself,
// or everything below it with "/...". Standard library and dependencies are
// free, but for what forbidden says. cmd may import everything.
var allowed = map[string][]string{
	"configs":                {},
	"sensors/...":            {"sensors"},
	"sensors":                {},
	"protocol/compact":       {},
	"protocol/jcs":           {},
	"protocol/bucket":        {},
	"protocol/noise":         {},
	"protocol/secretstream":  {"protocol/bucket", "protocol/noise"},
	"protocol/mux":           {"protocol/compact"},
	"protocol/udx":           {},
	"protocol/simnet":        {},
	"protocol/dht/packet":    {"protocol/compact"},
	"protocol/dht/cache":     {},
	"protocol/dht/doubt":     {},
	"protocol/dht/pace":      {},
	"protocol/dht/rpc":       {"protocol/bucket", "protocol/dht/packet", "protocol/udx"},
	"protocol/punch":         {"protocol/dht/packet", "protocol/udx"},
	"protocol/relay":         {"protocol/bucket", "protocol/compact", "protocol/mux", "protocol/noise", "protocol/secretstream", "protocol/udx"},
	"protocol/dht":           {"protocol/mux", "protocol/relay", "protocol/bucket", "protocol/compact", "protocol/dht/cache", "protocol/dht/doubt", "protocol/dht/pace", "protocol/dht/packet", "protocol/dht/rpc", "protocol/noise", "protocol/punch", "protocol/secretstream", "protocol/udx"},
	"protocol/replicate":     {"protocol/compact", "protocol/mux", "protocol/replicate/message", "feed/merkle"},
	"protocol/replicate/...": {"protocol/compact", "feed/merkle"},
	"protocol/dazaar":        {"protocol/compact", "protocol/jcs", "protocol/mux"},
	"feed/merkle":            {"protocol/compact"},
	"feed/block":             {},
	"feed/nodes":             {"feed/merkle", "storage"},
	"feed":                   {"feed/merkle", "feed/nodes", "feed/block", "storage", "storage/durable", "protocol/compact"},
	"feed/sales":             {"feed", "storage", "storage/db"},
	"feed/feedtest":          {"feed"},
	"payment":                {"payment/bolt11"},
	"payment/meter":          {},
	"payment/bolt11":         {},
	"payment/ledger":         {"payment/meter", "protocol/jcs", "storage/db", "storage/durable"},
	"payment/cashier":        {"payment", "payment/bolt11", "payment/ledger", "payment/meter", "protocol/bucket", "protocol/jcs", "storage/durable"},
	"payment/devnet":         {"payment", "payment/bolt11", "storage/durable"},
	"payment/gatewaytest":    {"payment", "payment/bolt11"},
	"payment/lnd":            {"payment", "payment/bolt11"},
	"payment/nostr":          {},
	"payment/nwc":            {"payment", "payment/bolt11", "payment/nostr"},
	"payment/lnurl":          {"payment", "payment/bolt11"},
	"payment/nwc/nwctest":    {"payment", "payment/bolt11", "payment/devnet", "payment/nostr"},
	"payment/lnd/lndtest":    {"payment", "payment/bolt11", "payment/devnet", "storage/durable"},
	"storage/...":            {"storage/durable"},
	"storage":                {"storage/durable", "storage/page", "storage/marks"},
	"storage/marks":          {"storage/durable", "storage/page"},
	"storage/durable":        {},
	"market": {
		"market/bill", "market/card", "feed", "feed/merkle", "payment", "payment/bolt11", "payment/cashier", "payment/ledger", "payment/meter",
		"protocol/bucket", "protocol/dazaar", "protocol/jcs", "protocol/mux", "protocol/replicate", "protocol/replicate/message", "protocol/secretstream",
	},
	"market/client": {
		"feed/merkle", "market/archive", "market/bill", "market/card", "market/proof", "market/purse", "market/scale", "payment", "payment/meter",
		"protocol/dazaar", "protocol/jcs", "protocol/mux", "protocol/noise", "protocol/replicate", "protocol/replicate/message", "protocol/secretstream", "storage/durable",
	},
	"market/rows":    {"feed/block", "feed/merkle", "storage/durable"},
	"market/purse":   {"market/card", "payment/bolt11", "protocol/dazaar", "protocol/jcs", "storage/durable"},
	"market/bill":    {"market/card", "payment/bolt11", "payment/ledger", "payment/meter", "protocol/dazaar", "protocol/jcs"},
	"market/scale":   {"feed/block", "payment/meter"},
	"market/proof":   {"feed/merkle", "market/card", "protocol/dazaar", "protocol/jcs", "protocol/replicate"},
	"monitor":        {},
	"market/card":    {"payment/bolt11", "payment/meter", "protocol/jcs"},
	"market/archive": {"feed/merkle", "protocol/replicate", "storage/durable"},
	"market/device":  {"sensors", "feed", "feed/block", "storage"},
}

// dependencies are the modules that may be required directly, each with the
// packages that may import it. docs/dependencies.md justifies each.
var dependencies = map[string][]string{
	"github.com/goccy/go-yaml":                  {"configs"},
	"go.etcd.io/bbolt":                          {"storage/db"},
	"github.com/flynn/noise":                    {"protocol/noise"},
	"filippo.io/edwards25519":                   {"protocol/noise"},
	"github.com/decred/dcrd/dcrec/secp256k1/v4": {"payment/bolt11", "payment/devnet", "payment/nostr"},
	"golang.org/x/crypto":                       {"feed/merkle", "storage/vault", "protocol/secretstream", "protocol/replicate/message", "protocol/dht", "protocol/dht/packet", "protocol/dht/rpc", "payment/nostr"},
	"golang.org/x/sys":                          {"storage/durable", "storage/vault", "sensors", "sensors/host", "sensors/gpio", "protocol/secretstream", "protocol/udx", "cmd/edge"},
	"github.com/eclipse/paho.mqtt.golang":       {"sensors/mqtt", "monitor"},
	"github.com/warthog618/go-gpiocdev":         {"sensors/gpio"},
	"github.com/mochi-mqtt/server/v2":           {"test/demo"}, // and tests
	"github.com/gorilla/websocket":              {"payment/nostr", "payment/nwc/nwctest"},
	"rsc.io/qr":                                 {"market/card"},
	"periph.io/x/conn/v3":                       {"sensors/bme280", "sensors/bme280/chip", "cmd/edge", "cmd/edge/source", "test/demo"},
	"periph.io/x/devices/v3":                    {"sensors/bme280"},
	"periph.io/x/host/v3":                       {"sensors/bme280"},
	"github.com/rogpeppe/go-internal":           {}, // tests only
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) (out []pkg) {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...")
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
}

// rules returns what a package may import.
func rules(path string) ([]string, bool) {
	if r, ok := allowed[path]; ok {
		return r, true
	}
	for p := path; ; {
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return nil, false
		}
		p = p[:i]
		if r, ok := allowed[p+"/..."]; ok {
			return r, true
		}
	}
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if path == "" || strings.HasPrefix(path, "cmd/") || strings.HasPrefix(path, "test/") {
			continue
		}
		may, ok := rules(path)
		if !ok {
			t.Errorf("package %s is in no layer: add it to allowed", path)
		}
		for _, imp := range p.Imports {
			ours, isOurs := strings.CutPrefix(imp, module+"/")
			if isOurs && !slices.Contains(may, ours) {
				t.Errorf("%s must not import %s", path, ours)
			}
			if imp == "net/http" && !strings.HasPrefix(path, "payment/") && !strings.HasPrefix(path, "monitor") {
				t.Errorf("%s must not import net/http: only payment, monitor and cmd do", path)
			}
		}
	}
}

// TestDependencies compares go.mod with the list, and who imports what.
func TestDependencies(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	required := map[string]bool{}
	for s := bufio.NewScanner(bytes.NewReader(mod)); s.Scan(); {
		line := strings.TrimPrefix(strings.TrimSpace(s.Text()), "require ")
		if name, _, ok := strings.Cut(line, " v"); ok && !strings.Contains(line, "// indirect") {
			required[name] = true
			if _, ok := dependencies[name]; !ok {
				t.Errorf("direct dependency %s is not in the list", name)
			}
		}
	}
	for name := range dependencies {
		if !required[name] {
			t.Errorf("%s is in the list and not in go.mod", name)
		}
		if !strings.Contains(string(doc), name) {
			t.Errorf("docs/dependencies.md does not say why %s is there", name)
		}
	}
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, imp := range p.Imports {
			for name, users := range dependencies {
				if (imp == name || strings.HasPrefix(imp, name+"/")) && !slices.Contains(users, path) {
					t.Errorf("%s must not import %s", path, imp)
				}
			}
		}
	}
}

// maxCode is how many lines of code a package may have, comments, blank lines
// and tests left out.
const maxCode = 2500

// TestSizes keeps files under 500 lines and packages small.
func TestSizes(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", `{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}`, module+"/...")
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	total := map[string]int{}
	for _, name := range strings.Fields(string(b)) {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Count(src, []byte("\n"))
		if lines > 500 {
			t.Errorf("%s has %d lines", name, lines)
		}
		dir := name[:strings.LastIndexByte(name, '/')]
		for line := range strings.Lines(string(src)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "//") {
				total[dir]++
			}
		}
	}
	for dir, n := range total {
		if n > maxCode {
			t.Errorf("%s has %d lines of code, at most %d", dir, n, maxCode)
		}
	}
}
