//go:build e2e

package nat

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var (
	all   = flag.Bool("all", false, "all pairs of routers, five times each; else a few")
	table = flag.String("table", "", "append a table of what was measured to this file")
)

// lab is where the lab's program is.
const lab = "../../../shared/labs/natlab/natlab"

// programs are the two kinds of peers, each by role.
type programs map[string]string

var ours, stock, product programs

// TestMain builds our program.
func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		for _, tool := range []string{"iptables", "nft", "ip"} {
			if _, err := exec.LookPath(tool); err != nil {
				fmt.Println("apt-get install iptables nftables iproute2:", err)
				return 1
			}
		}
		dir, err := os.MkdirTemp("", "edge-nat")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-o", dir+"/node", "./node")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Printf("%s\n%v\n", out, err)
			return 1
		}
		js, err := filepath.Abs(filepath.Join(filepath.Dir(lab), "js"))
		if err != nil {
			fmt.Println(err)
			return 1
		}
		modules, err := filepath.Abs("../interop/node_modules")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		edge := exec.Command("go", "build", "-tags", "nethttpomithttp2", "-o", dir+"/edge", "../../cmd/edge")
		edge.Env = build.Env
		if out, err := edge.CombinedOutput(); err != nil {
			fmt.Printf("%s\n%v\n", out, err)
			return 1
		}
		ours, stock, product = programs{}, programs{}, programs{}
		for _, role := range []string{"bootstrap", "relay", "seller", "buyer", "follower", "feed-buyer", "bulk"} {
			ours[role] = fmt.Sprintf("exec %s/node %s", dir, role)
			stock[role] = fmt.Sprintf("export LAB_NODE_MODULES=%s; exec node %s/%s.js", modules, js, role)
		}
		for _, role := range []string{"relay", "seller", "buyer"} {
			product[role] = fmt.Sprintf("export EDGE=%s/edge EDGE_DIR=%s; exec %s/node edge-%s", dir, dir, dir, role)
		}
		here, err := filepath.Abs("relay.js")
		if err != nil {
			fmt.Println(err)
			return 1
		}
		stock["relay"] = fmt.Sprintf("export LAB_NODE_MODULES=%s; exec node %s", modules, here)
		return m.Run()
	}())
}

// result is what the lab says of one try.
type result struct {
	Seller  string  `json:"seller_nat"`
	Buyer   string  `json:"buyer_nat"`
	Try     int     `json:"try"`
	OK      bool    `json:"ok"`
	Connect float64 `json:"connect_ms"`
	First   float64 `json:"first_byte_ms"`
	Mbps    float64 `json:"mbps"`
	Path    string  `json:"path"`
	Error   string  `json:"error"`
	Gap     float64 `json:"gap_s"`
	Dials   int     `json:"dials"`
	Lines   int     `json:"lines"`
}

// pair is a seller and a buyer behind routers.
type pair struct {
	seller, buyer string // kinds of routers
	sells, buys   programs
	network       programs
	relay         programs // nil is none
	tcp           bool     // the relay is reached by TCP, too
	tries         int
	more          []string // options
	want          string   // how it goes in the end; "" is not looked at
}

// run runs a pair and returns what became of each try.
func run(t *testing.T, p pair) []result {
	t.Helper()
	args := []string{
		"run", "--seller", p.seller, "--buyer", p.buyer, "--tries", fmt.Sprint(p.tries), "--seller-net", "delay=10ms", "--buyer-net", "delay=10ms",
		"--bootstrap-cmd", p.network["bootstrap"],
	}
	with := ""
	if p.relay != nil {
		with = "export USE_RELAY=1; "
		if p.tcp {
			with = "export USE_RELAY=tcp; "
		}
		args = append(args, "--relay-cmd", p.relay["relay"])
	}
	args = append(args, "--seller-cmd", with+p.sells["seller"], "--buyer-cmd", with+p.buys["buyer"])
	cmd := exec.CommandContext(t.Context(), lab, append(args, p.more...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	var all []result
	for s := bufio.NewScanner(&out); s.Scan(); {
		var r result
		if err := json.Unmarshal(s.Bytes(), &r); err == nil && r.Try > 0 {
			all = append(all, r)
		}
	}
	if len(all) != p.tries {
		t.Fatalf("%d of %d tries\n%s", len(all), p.tries, said.String())
	}
	return all
}

// connects fails unless each try does.
func connects(t *testing.T, p pair) []result {
	t.Helper()
	all := run(t, p)
	var took []float64
	for _, r := range all {
		if !r.OK || p.want != "" && r.Path != p.want {
			t.Errorf("seller %s, buyer %s: %+v", p.seller, p.buyer, r)
		}
		took = append(took, r.Connect)
	}
	slices.Sort(took)
	t.Logf("seller %s, buyer %s: median %.0f ms, %s, %.0f Mbit/s", p.seller, p.buyer, took[len(took)/2], all[len(all)-1].Path, all[len(all)-1].Mbps)
	return all
}

// TestQuick: two routers that keep their ports, and two that do not, by our relay.
func TestQuick(t *testing.T) {
	connects(t, pair{seller: "cone", buyer: "cone", sells: ours, buys: ours, network: ours, tries: 3, want: "direct"})
	connects(t, pair{seller: "symmetric", buyer: "symmetric", sells: ours, buys: ours, network: ours, relay: ours, tries: 3, want: "relay"})
}

var kinds = []string{"none", "fullcone", "cone", "symmetric", "cgnat", "cgnat-sym"}

// random tells whether a router takes another port for each address.
func random(kind string) bool { return kind == "symmetric" || kind == "cgnat-sym" }

// TestGrid: whoever can be connected is, without a relay and with one.
func TestGrid(t *testing.T) {
	var rows []string
	for _, s := range kinds {
		row := "| " + s + " |"
		for _, b := range append(kinds, "same-lan") {
			quick := s == "cone" && (b == "symmetric" || b == "same-lan") || s == "symmetric" && b == "cone" || s == "cgnat" && b == "cgnat"
			if !*all && !quick || s == "none" && b == "same-lan" {
				row += " |"
				continue
			}
			p := pair{seller: s, buyer: b, sells: ours, buys: ours, network: ours, tries: 1}
			if *all {
				p.tries = 5
			}
			if random(s) && random(b) {
				p.relay = ours
			}
			row += cell(connects(t, p)) + " |"
		}
		rows = append(rows, row)
	}
	write(t, "ours at both ends", rows)
}

// TestRelayed: by our relay everybody is connected, also where the carrier is the same.
func TestRelayed(t *testing.T) {
	pairs := []pair{{seller: "cgnat", buyer: "same-cgnat"}, {seller: "cone", buyer: "symmetric"}}
	if *all {
		pairs = append(pairs, pair{seller: "cgnat-sym", buyer: "same-cgnat"}, pair{seller: "cgnat-sym", buyer: "cgnat-sym"}, pair{seller: "symmetric", buyer: "cgnat-sym"})
	}
	for _, p := range pairs {
		p.sells, p.buys, p.network, p.relay, p.tries = ours, ours, ours, ours, 3
		for _, r := range connects(t, p) {
			if r.First > 1000 {
				t.Errorf("the first byte came after %.0f ms: %+v", r.First, r)
			}
		}
	}
	// One seller serves several buyers, where ports must be guessed.
	connects(t, pair{seller: "symmetric", buyer: "cone", sells: ours, buys: ours, network: ours, relay: ours, tries: 5, more: []string{"--keep-seller"}})
}

// TestStock: ours with stock peers, both ways; on a network of stock nodes, by stock relays.
func TestStock(t *testing.T) {
	known := programs{"buyer": "export WAIT_OPEN=1; " + ours["buyer"]} // it knows that it is open
	for _, p := range []pair{
		{seller: "cone", buyer: "cone", sells: ours, buys: stock, network: stock},
		{seller: "cone", buyer: "cone", sells: stock, buys: ours, network: stock},
		{seller: "symmetric", buyer: "cone", sells: ours, buys: stock, network: ours},
		{seller: "cone", buyer: "symmetric", sells: stock, buys: ours, network: ours},
		{seller: "cone", buyer: "none", sells: ours, buys: stock, network: stock},
		{seller: "symmetric", buyer: "none", sells: ours, buys: stock, network: ours},
		{seller: "cone", buyer: "none", sells: stock, buys: known, network: stock},
		{seller: "symmetric", buyer: "none", sells: ours, buys: known, network: ours},
		{seller: "symmetric", buyer: "symmetric", sells: ours, buys: stock, network: stock, relay: stock, want: "relay"},
		{seller: "symmetric", buyer: "symmetric", sells: stock, buys: ours, network: stock, relay: stock, want: "relay"},
		{seller: "symmetric", buyer: "symmetric", sells: ours, buys: stock, network: ours, relay: ours, want: "relay"},
		{seller: "symmetric", buyer: "symmetric", sells: stock, buys: stock, network: ours, relay: ours, want: "relay"},
	} {
		p.tries = 1
		if *all {
			p.tries = 5
		}
		connects(t, p)
	}
}

// faults are what happens to routers and programs: how long that lasts, and how long the data
// may stop after it where both ends are ours.
var faults = []struct {
	name        string
	seller      string
	scenario    string
	lasts, most float64 // seconds
	fresh       bool    // it matters to who comes anew
}{
	{"the seller is killed, and back after 3 s", "cone", "kill seller KILL; sleep 3; $NATLAB_CTL flush seller; $NATLAB_CTL start seller", 3, 5, true},
	{"the seller gets another address", "cone", "newip seller", 0, 5, true},
	{"the buyer gets another address", "cone", "newip buyer", 0, 5, false},
	{"the seller is cut off for 20 s", "cone", "block seller; sleep 20; $NATLAB_CTL unblock seller", 20, 3, true},
	{"the seller's router forgets, and takes any port", "symmetric", "flush seller", 0, 5, true}, // by our relay
	{"mappings last 3 s", "cone", "udp-timeout seller 3 3; $NATLAB_CTL udp-timeout buyer 3 3", 0, 5, true},
}

// TestFaults: what happens to a connection while data is due, both ends ours.
func TestFaults(t *testing.T) {
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			buys := programs{"buyer": fmt.Sprintf("export RUN_S=%.0f; %s", 35+c.lasts, ours["follower"])}
			sells := programs{"seller": "export FEED=1; " + ours["seller"]}
			p := pair{seller: c.seller, buyer: "cone", sells: sells, buys: buys, network: ours, tries: 1, more: []string{
				"--nodes", "8", "--timeout", "100", "--scenario", "sleep 14; $NATLAB_CTL " + c.scenario,
			}}
			if random(c.seller) {
				p.relay = ours
			}
			r := run(t, p)[0]
			t.Logf("%.1f s without data, %d dials", r.Gap, r.Dials)
			if !r.OK || r.Gap > c.lasts+c.most {
				t.Errorf("%+v", r)
			}
		})
	}
}

// redials is a stock buyer that comes when the fault is over, and again when it fails: it says
// how long that took, with its own start. Another one has been there all the time.
const redials = `(export RUN_S=60; %[3]s) >/dev/null 2>&1 &
until [ -e %[1]s/$NATLAB_ID.back ]; do sleep 0.05; done
t=$(date +%%s%%3N)
for i in 1 2 3 4; do
  out=$( (%[2]s) | grep '^{' | tail -n 1)
  case $out in *'"ok":true'*) break ;; esac
done
took=$(( $(date +%%s%%3N) - t ))
echo "$out" | sed "s/\"connect_ms\":[0-9]*/\"connect_ms\":$took/"`

// TestStockAfterFaults: a stock buyer reaches our seller again within 5 s, where data was due
// to another one.
func TestStockAfterFaults(t *testing.T) {
	for _, c := range faults {
		if !c.fresh {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			sells := programs{"seller": "export FEED=after; " + ours["seller"]}
			p := pair{seller: c.seller, buyer: "cone", sells: sells, buys: programs{"buyer": fmt.Sprintf(redials, dir, stock["buyer"], stock["feed-buyer"])}, network: ours, tries: 1, more: []string{
				"--nodes", "8", "--timeout", "100", "--scenario", fmt.Sprintf("sleep 14; $NATLAB_CTL %s; touch %s/$NATLAB_ID.back", c.scenario, dir),
			}}
			if random(c.seller) {
				p.relay = ours
			}
			r := run(t, p)[0]
			t.Logf("reached after %.0f ms, %s", r.Connect, r.Path)
			if !r.OK || r.Connect > 5000 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// bulk returns how many Mbit/s come over 20 Mbit/s with 100 ms.
func bulk(t *testing.T, seller, loss string, seconds int) float64 {
	t.Helper()
	p := pair{seller: "cone", buyer: "cone", sells: programs{"seller": "export FEED=bulk; " + seller}, network: ours, tries: 1}
	p.buys = programs{"buyer": fmt.Sprintf("export RUN_S=%d; %s", seconds, ours["bulk"])}
	p.more = []string{"--nodes", "8", "--timeout", "100", "--seller-net", "delay=25ms", "--buyer-net", "delay=25ms,rate=20mbit,queue=100ms,loss=" + loss}
	r := run(t, p)[0]
	if !r.OK {
		t.Fatalf("%+v", r)
	}
	return r.Mbps
}

// TestBottleneck: 20 seconds, with -all a minute, over 20 Mbit/s with 100 ms and 2 % loss,
// beside the same without loss, which shows what the lab's wire carries.
func TestBottleneck(t *testing.T) {
	seconds, least := 20, 8.
	if *all {
		seconds, least = 60, 15
	}
	clean, lossy := bulk(t, ours["seller"], "0%", seconds), bulk(t, ours["seller"], "2%", seconds)
	t.Logf("%.1f Mbit/s without loss, %.1f with 2 %%", clean, lossy)
	if clean < least || lossy < 0.85*clean {
		t.Errorf("%.1f Mbit/s, and %.1f with loss, %.0f %%", clean, lossy, 100*lossy/clean)
	}
}

// busy runs a program that has the processor for 10 of every 22 ms.
const busy = `%s & p=$!
trap 'kill $p; exit' TERM INT
while kill -0 $p; do sleep 0.01; kill -STOP $p; sleep 0.012; kill -CONT $p; done`

// TestBusySeller: the same where the seller's program does not always have the processor.
func TestBusySeller(t *testing.T) {
	mbps := bulk(t, fmt.Sprintf(busy, strings.TrimPrefix(ours["seller"], "exec ")), "2%", 10)
	t.Logf("%.1f Mbit/s", mbps)
	if mbps < 6 {
		t.Error("it is a fraction of what the wire carries")
	}
}

// TestEdge: the program itself, bought from end to end; by TCP through its relay where UDP is
// blocked.
func TestEdge(t *testing.T) {
	for _, p := range []pair{
		{seller: "cone", buyer: "cone", want: "the network"},
		{seller: "symmetric", buyer: "symmetric", relay: product, want: "the network"},
		{seller: "udp-blocked", buyer: "cone", relay: product, tcp: true, want: "relay 5.20.1.2:443"},
		{seller: "cone", buyer: "udp-blocked", relay: product, tcp: true, want: "relay 5.20.1.2:443"},
		{seller: "udp-blocked", buyer: "udp-blocked", relay: product, tcp: true, want: "relay 5.20.1.2:443"},
		{seller: "cgnat-sym", buyer: "udp-blocked", relay: product, tcp: true, want: "relay 5.20.1.2:443"},
		{seller: "udp-blocked", buyer: "symmetric", relay: product, tcp: true, want: "relay 5.20.1.2:443"},
	} {
		t.Run(p.seller+","+p.buyer, func(t *testing.T) {
			t.Parallel()
			p.sells, p.buys, p.network, p.tries = product, product, ours, 1
			p.more = []string{"--nodes", "8"}
			if *all {
				p.tries = 5
			}
			connects(t, p)
		})
	}
}

// TestHandOver: a buyer whose UDP is blocked buys by TCP, moves to the network when UDP
// passes, and back when it is blocked again: no block is missing, none comes twice.
func TestHandOver(t *testing.T) {
	t.Parallel()
	buys := programs{"buyer": "iptables -A OUTPUT -p udp -j DROP; export RUN_S=75; " + product["buyer"]}
	r := run(t, pair{seller: "cone", buyer: "cone", sells: product, buys: buys, network: ours, relay: product, tcp: true, tries: 1, more: []string{
		"--nodes", "8", "--timeout", "150", "--scenario", "sleep 5; $NATLAB_CTL exec buyer iptables -D OUTPUT -p udp -j DROP; sleep 50; $NATLAB_CTL exec buyer iptables -A OUTPUT -p udp -j DROP",
	}})[0]
	t.Logf("%d readings by %d connections, first after %.0f ms, at most %.1f s without", r.Lines, r.Dials, r.Connect, r.Gap)
	if !r.OK || r.Path != "relay 5.20.1.2:443" || r.Dials != 3 || r.Gap > 8 {
		t.Errorf("%+v", r)
	}
}

// cell is a cell of a table: the median, or how many failed.
func cell(all []result) string {
	var took []float64
	for _, r := range all {
		if r.OK {
			took = append(took, r.Connect)
		}
	}
	slices.Sort(took)
	if len(took) < len(all) {
		return fmt.Sprintf(" %d of %d", len(took), len(all))
	}
	out := fmt.Sprintf(" %.0f", took[len(took)/2])
	if all[0].Path == "relay" {
		out += " R"
	}
	return out
}

func write(t *testing.T, title string, rows []string) {
	t.Helper()
	if *table == "" {
		return
	}
	f, err := os.OpenFile(*table, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "\n%s\n\n| | %s | same-lan |\n|%s\n%s\n", title, strings.Join(kinds, " | "), strings.Repeat("---|", len(kinds)+2), strings.Join(rows, "\n"))
}
