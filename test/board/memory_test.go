//go:build e2e

package board

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var soak = flag.Duration("soak", 20*time.Second, "how long memory is watched without buyers, and then with them")

// buyers is how many follow at once.
const buyers = 20

// tenSensors is ten sensors at 1 Hz, of the kinds that a board has.
const tenSensors = `device: {name: board, clock: system}
storage: {path: /data/edge, max_size: 64MiB}
payment: [{gateway: devnet, listen: ":49739"}]
feeds:
  - name: air
    price: {amount: 1, per: 100 readings, history: all}
    tcp: ":49738"
    pack: {every: 1s}
    sensors:
      - {name: roof, driver: bme280, bus: 0, address: 0x76, every: 1s}
      - {name: rain, driver: gpio, chip: gpiochip1, line: 2, mode: counter, every: 1s, field: rain, unit: mm, scale: 0.25}
      - {name: door, driver: gpio, chip: gpiochip1, line: 3, mode: level, every: 1s, field: open}
      - {name: host, driver: host, every: 1s}
      - {name: entropy, driver: sysfs, path: /proc/sys/kernel/random/entropy_avail, field: bits, unit: bit, every: 1s}
      - {name: a, driver: sim, every: 1s}
      - {name: b, driver: sim, every: 1s}
      - {name: c, driver: sim, every: 1s}
      - {name: d, driver: sim, every: 1s}
      - {name: e, driver: sim, every: 1s}
`

// watch returns the most memory that edge has in a time, in bytes.
func (r *run) watch(d time.Duration) (most int64) {
	r.l.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		var st struct{ Process struct{ RSS int64 } }
		if err := json.Unmarshal([]byte(r.must("run", "/bin/edge", "status", "--json", "-c", "/etc/edge.yaml")), &st); err != nil {
			r.l.t.Fatal(err)
		}
		most = max(most, st.Process.RSS)
	}
	return most
}

// TestMemory: ten sensors at 1 Hz, no buyer, then twenty that pay and follow: what edge
// run takes of the board's memory is within its budget.
func TestMemory(t *testing.T) {
	l := newLab(t, tenSensors)
	r := l.boot("-timeout", fmt.Sprint(2**soak+10*time.Minute))
	up, ok := r.start()
	if !ok {
		t.Fatal(<-r.done)
	}
	if err := os.WriteFile(l.dir+"/card.json", up.Feeds[0].Card, 0o644); err != nil {
		t.Fatal(err)
	}
	alone := r.watch(*soak)
	var stops []func()
	for i := range buyers {
		stops = append(stops, l.follow(fmt.Sprint("buyer", i)))
	}
	until(t, "all buyers' readings", func() bool {
		for i := range buyers {
			if len(l.readings(fmt.Sprint("buyer", i))) < 10 {
				return false
			}
		}
		return true
	})
	status := r.must("run", "/bin/edge", "status", "-c", "/etc/edge.yaml")
	if !strings.Contains(status, fmt.Sprint(buyers, " buyers")) || strings.Contains(status, "reads failed") {
		t.Error(status)
	}
	sold := r.watch(*soak)
	t.Logf("memory %.1f MiB without a buyer, %.1f MiB with %d\n%s", float64(alone)/(1<<20), float64(sold)/(1<<20), buyers, status)
	if alone > 24<<20 || sold > 32<<20 {
		t.Error("that is more than its budget of 24 and 32 MiB")
	}
	for _, stop := range stops {
		stop()
	}
	r.off()
}
