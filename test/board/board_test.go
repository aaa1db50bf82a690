//go:build e2e

// Package board runs edge on an emulated ARM board with a real kernel, a BME280 model
// behind /dev/i2c-0, GPIO lines, and an SD card that loses what was not flushed when the
// power is cut. test/board/prepare.sh brings what it needs.
package board

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var cuts = flag.Int("cuts", 20, "how often the power is cut")

const config = `device: {name: board, clock: system}
storage: {path: /data/edge, max_size: 64MiB, commit: {every: 100ms}}
payment: [{gateway: devnet, listen: ":49739"}]
feeds:
  - name: air
    price: {amount: 1, per: 100 readings, history: all}
    tcp: ":49738"
    pack: {every: 100ms}
    sensors:
      - {name: roof, driver: bme280, bus: 0, address: 0x76, every: 100ms}
      - {name: rain, driver: gpio, chip: gpiochip1, line: 2, mode: counter, every: 500ms, field: rain, unit: mm, scale: 0.25}
      - {name: door, driver: gpio, chip: gpiochip1, line: 3, mode: edge, edge: both, field: open}
      - {name: host, driver: host, every: 1s}
`

// cache is where prepare.sh put things.
func cache(t *testing.T, name string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join("../../.cache/board", name))
	if err == nil {
		_, err = os.Stat(p)
	}
	if err != nil {
		t.Fatalf("test/board/prepare.sh first: %v", err)
	}
	return p
}

// lab is a board with its card.
type lab struct {
	t                   *testing.T
	dir, disk           string
	sell, wallet, agent string // addresses on this host
	serial, mac         string
}

func port(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func newLab(t *testing.T, config string) *lab {
	l := &lab{t: t, dir: t.TempDir(), sell: port(t), wallet: port(t), agent: port(t), serial: "CARD1"}
	l.disk = filepath.Join(l.dir, "card.img")
	if err := os.WriteFile(filepath.Join(l.dir, "edge.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(l.disk)
	if err == nil {
		err = f.Truncate(256 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", l.disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return l
}

// run is one time that the board is on.
type run struct {
	l    *lab
	cmd  *exec.Cmd
	done chan error

	mu    sync.Mutex
	lines []string      // of its output; guarded by mu
	more  chan struct{} // closed with the next line
}

// boot switches the board on. flags are boardlab's.
func (l *lab) boot(flags ...string) *run {
	l.t.Helper()
	nic := fmt.Sprintf("user,restrict=on,hostfwd=tcp:%s-:49738,hostfwd=tcp:%s-:49739,hostfwd=tcp:%s-:7000", l.sell, l.wallet, l.agent)
	if l.mac != "" {
		nic += ",mac=" + l.mac
	}
	kernel := cache(l.t, "kernel")
	args := []string{
		"-cache", kernel, "-modules-dir", filepath.Join(kernel, "modules"), "-board", "virt64", "-timeout", "600s", "-v",
		"-chips", "bme280@76", "-gpio-sim", "4", "-disk", l.disk, "-disk-model", "sd", "-fs", "ext4", "-mount", "/data", "-net", nic,
		"-qemu", "-global", "-qemu", "virtio-net-pci.romfile=", "-qemu", "-global", "-qemu", "virtio-blk-device.serial=" + l.serial,
		"-file", cache(l.t, "edge-arm64") + ":/bin/edge", "-file", filepath.Join(l.dir, "edge.yaml") + ":/etc/edge.yaml",
	}
	args = append(append(args, flags...), cache(l.t, "agent-arm64"), ":7000")
	r := &run{l: l, cmd: exec.Command(cache(l.t, "boardlab"), args...), done: make(chan error, 1), more: make(chan struct{})}
	var stderr bytes.Buffer
	r.cmd.Stderr = &stderr
	out, err := r.cmd.StdoutPipe()
	if err == nil {
		err = r.cmd.Start()
	}
	if err != nil {
		l.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewReader(out); ; {
			line, err := s.ReadString('\n')
			r.mu.Lock()
			r.lines = append(r.lines, strings.TrimSpace(line))
			close(r.more)
			r.more = make(chan struct{})
			r.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		<-read
		err := r.cmd.Wait()
		for _, bad := range []string{"Internal error", "BUG:", "Unable to handle"} {
			if strings.Contains(stderr.String(), bad) {
				err = fmt.Errorf("the board's kernel failed: %s", stderr.String())
			}
		}
		r.done <- err
	}()
	l.t.Cleanup(func() { r.cmd.Process.Kill() })
	return r
}

// wait waits for a line that begins so, and returns it; "" if the board went off.
func (r *run) wait(prefix string) string {
	for n := 0; ; {
		r.mu.Lock()
		for ; n < len(r.lines); n++ {
			if strings.HasPrefix(r.lines[n], prefix) {
				defer r.mu.Unlock()
				return r.lines[n]
			}
		}
		more := r.more
		r.mu.Unlock()
		select {
		case <-more:
		case err := <-r.done:
			r.done <- err
			return ""
		}
	}
}

// do has the agent do something, and returns output and exit code.
func (r *run) do(words ...string) (string, string, error) {
	c, err := net.Dial("tcp", r.l.agent)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(words); err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(c)
	out, code, _ := strings.Cut(string(b), "\x00")
	return out, strings.TrimSpace(code), err
}

// must is do, which must succeed.
func (r *run) must(words ...string) string {
	r.l.t.Helper()
	out, code, err := r.do(words...)
	if err != nil || code != "0" {
		r.l.t.Fatalf("%q: exit code %s, %v: %s", words, code, err, out)
	}
	return out
}

type ready struct {
	Moved []string
	Feeds []struct {
		SellerKey, TCP string
		Length         uint64
		Card           json.RawMessage
	}
}

// start starts edge on the board and returns what it says when it is up.
func (r *run) start() (out ready, ok bool) {
	r.l.t.Helper()
	if r.wait("agent: ready") == "" {
		return out, false
	}
	if _, _, err := r.do("start", "/bin/edge", "run", "-c", "/etc/edge.yaml"); err != nil {
		return out, false
	}
	line := r.wait(`{"ready"`)
	if line == "" {
		return out, false
	}
	if err := json.Unmarshal([]byte(line), &out); err != nil || len(out.Feeds) != 1 {
		r.l.t.Fatalf("%s: %v", line, err)
	}
	return out, true
}

// off stops edge and switches the board off.
func (r *run) off() {
	r.l.t.Helper()
	r.must("stop")
	r.do("off") //nolint:errcheck // it may be off before it answers
	if err := <-r.done; err != nil {
		r.l.t.Errorf("the board: %v", err)
	}
}

// edge runs edge on this host.
func (l *lab) edge(args ...string) *exec.Cmd {
	cmd := exec.Command(cache(l.t, "edge"), args...)
	cmd.Dir = l.dir
	return cmd
}

// buy returns the command of a buyer with a name, who follows or not.
func (l *lab) buy(name string, follow bool, more ...string) *exec.Cmd {
	args := append([]string{
		"buy", "card.json", "--seller", l.sell, "--wallet", "http://" + l.wallet, "--max-sats", "100000", "--state", name, "--out", name + ".ndjson",
	}, more...)
	if follow {
		args = append(args, "--follow")
	}
	return l.edge(args...)
}

// follow starts a buyer who follows. stop stops it; it must have gone on until then.
func (l *lab) follow(name string) (stop func()) {
	l.t.Helper()
	cmd := l.buy(name, true)
	var say bytes.Buffer
	cmd.Stderr = &say
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { cmd.Process.Kill() })
	return func() {
		l.t.Helper()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			l.t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			l.t.Errorf("the buyer: %v: %s", err, say.String())
		}
	}
}

func (l *lab) readings(name string) []string {
	b, err := os.ReadFile(filepath.Join(l.dir, name+".ndjson"))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// until waits for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}

// TestBoard: the chip is read through the kernel's I2C, edges of GPIO lines are counted
// and reported, a buyer on the host pays and gets them; then the power is cut again and
// again in the middle of writes while the buyer follows. In the end the buyer has what a
// new one gets, in order and without one missing or twice; what it paid is what the
// board's ledger says. A copy of the card in another board signs nothing.
func TestBoard(t *testing.T) {
	l := newLab(t, config)
	r := l.boot()
	up, ok := r.start()
	if !ok {
		t.Fatal(<-r.done)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "card.json"), up.Feeds[0].Card, 0o644); err != nil {
		t.Fatal(err)
	}
	until(t, "the lines to be watched", func() bool {
		return strings.Contains(r.must("run", "/bin/edge", "sensors", "-c", "/etc/edge.yaml"), "rain 0 mm")
	})
	for line, n := range map[int]int{2: 4, 3: 1} {
		for range n {
			for _, pull := range []string{"pull-up", "pull-down"} {
				r.must("write", fmt.Sprintf("/sys/devices/platform/gpio-sim.0/gpiochip1/sim_gpio%d/pull", line), pull)
			}
		}
	}
	if out, err := l.buy("first", false).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	until(t, "all sensors' readings", func() bool {
		time.Sleep(time.Second) // who comes too often is a stranger
		if out, err := l.buy("first", false).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		text := strings.Join(l.readings("first"), "\n")
		rain := 0.
		for _, line := range l.readings("first") {
			var x struct {
				Name  string
				Value any
			}
			if json.Unmarshal([]byte(line), &x) == nil && x.Name == "rain/rain" {
				v, _ := x.Value.(float64)
				rain += v
			}
		}
		return strings.Contains(text, `"name":"roof/temperature","unit":"Cel","value":21.5,`) && rain == 1 &&
			strings.Contains(text, `"name":"door/open","value":true`) && strings.Contains(text, `"name":"door/open","value":false`)
	})
	t.Logf("status of the board: %s", r.must("run", "/bin/edge", "status", "-c", "/etc/edge.yaml"))
	r.off()

	key := up.Feeds[0].SellerKey
	rng := rand.New(rand.NewPCG(uint64(*cuts), 1))
	begun, sold := 0, 0
	for i := range *cuts {
		at := 3 + rng.IntN(25) // while it starts, or
		if i%3 > 0 {
			at = 40 + rng.IntN(120) // while it sells
		}
		r := l.boot("-cut-at-write", fmt.Sprint(at), "-seed", fmt.Sprint(i))
		had := len(l.readings("first"))
		if up, ok := r.start(); ok {
			begun++
			if up.Feeds[0].SellerKey != key {
				t.Fatalf("after cut %d it is another seller", i)
			}
			stop := l.follow("first")
			<-r.done
			stop()
		} else {
			<-r.done
		}
		if len(l.readings("first")) > had {
			sold++
		}
	}
	t.Logf("%d cuts: %d times edge was up before, %d times it had sold something", *cuts, begun, sold)
	if begun == 0 || sold == 0 {
		t.Error("no cut came while it sold")
	}
	r = l.boot()
	if up, ok := r.start(); !ok || up.Feeds[0].SellerKey != key {
		t.Fatal("it does not come back")
	}
	had := len(l.readings("first"))
	stop := l.follow("first")
	until(t, "news for the follower", func() bool { return len(l.readings("first")) > had+50 })
	stop()
	r.must("stop")
	if out := r.must("run", "/bin/edge", "verify", "/data/edge"); !strings.Contains(out, "every live byte is as it was written") {
		t.Error(out)
	}
	r.do("start", "/bin/edge", "run", "-c", "/etc/edge.yaml") //nolint:errcheck // the purchase shows it
	until(t, "a second buyer", func() bool { time.Sleep(time.Second); return l.buy("second", false).Run() == nil })
	first, second := l.readings("first"), l.readings("second")
	if len(second) < len(first) {
		t.Fatalf("the first buyer has %d lines, a new one gets %d", len(first), len(second))
	}
	for i := range first {
		if first[i] != second[i] {
			t.Fatalf("line %d of the first buyer is\n%s\nand of a new one\n%s", i, first[i], second[i])
		}
	}
	var came, paid uint64
	for _, line := range strings.Split(strings.TrimSpace(r.must("run", "/bin/edge", "ledger", "-c", "/etc/edge.yaml", "--json")), "\n") {
		var row struct {
			Paid uint64 `json:"paid,string"`
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(line, err)
		}
		came += row.Paid
	}
	for _, name := range []string{"first", "second"} {
		files, err := filepath.Glob(filepath.Join(l.dir, name, "receipts", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			var x struct {
				State string
				Msat  uint64 `json:",string"`
			}
			b, err := os.ReadFile(f)
			if err != nil || json.Unmarshal(b, &x) != nil {
				t.Fatal(f, err)
			}
			if x.State == "paid" {
				paid += x.Msat
			}
		}
	}
	n := strings.Count(strings.Join(first, "\n"), `"value"`) + strings.Count(strings.Join(second, "\n"), `"value"`)
	if came != paid || paid > uint64(n)*10+2*2000 {
		t.Errorf("buyers paid %d msat for %d readings, and %d came", paid, n, came)
	}
	t.Logf("two buyers have %d readings, and paid %d msat; the ledger says %d", n, paid, came)
	r.off()

	// The card is copied, and put into another board.
	for name, change := range map[string]func(*lab){
		"another card":  func(x *lab) { x.serial = "CARD2" },
		"another board": func(x *lab) { x.mac = "52:54:00:12:34:99" },
	} {
		x := newLab(t, config)
		if out, err := exec.Command("cp", "--sparse=always", l.disk, x.disk).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		change(x)
		r := x.boot()
		up, ok := r.start()
		if !ok || len(up.Moved) == 0 || up.Feeds[0].SellerKey != "" || up.Feeds[0].TCP != "" {
			t.Errorf("%s: %+v", name, up)
		}
		r.off()
	}
}
