//go:build e2e

package money

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var sequence = flag.Int("sequence", 20, "how many buyers TestSpeed has, one after another; more than 20 wait, as strangers of one network do")

// TestSpeed measures how long after the seller saw a settlement its buyer has the first
// reading, and what a settled invoice costs the seller in CPU.
func TestSpeed(t *testing.T) {
	nodes := lab(t)
	control(t, "/settled")
	s := sells(t, nodes["seller"].gateway(nodes["seller"].Sell), "{amount: 10, per: 10 readings}")
	wallet := nodes["buyer"].wallet(t)
	var first, whole []time.Duration
	state := ""
	for range *sequence {
		from, _, _ := s.err.find(0, "no such text")
		var p *process
		p, state = s.buys(t, "--wallet", wallet, "--max-sats", "100", "--follow")
		p.lines(1)
		_, settled, ok := s.err.find(from, "msg=paid")
		_, paying, _ := p.err.find(0, "msg=paying")
		if !ok {
			t.Fatal("the seller did not say that it was paid")
		}
		p.out.mu.Lock()
		at := p.out.at[0]
		p.out.mu.Unlock()
		first, whole = append(first, at.Sub(settled)), append(whole, at.Sub(paying))
		p.stop()
	}
	slices.Sort(first)
	slices.Sort(whole)
	p99 := func(list []time.Duration) time.Duration { return list[(len(list)*99+99)/100-1] }
	fmt.Printf("settlement seen to first reading, %d buyers: median %v, p99 %v; payment begun to first reading: median %v, p99 %v\n",
		len(first), first[len(first)/2].Round(time.Millisecond), p99(first).Round(time.Millisecond), whole[len(whole)/2].Round(time.Millisecond), p99(whole).Round(time.Millisecond))
	if median := first[len(first)/2]; median > time.Second {
		t.Errorf("median %v", median)
	}
	// What invoices cost: beside the sampling, which goes on.
	idle := cpu(t, s.cmd.Process.Pid, 5*time.Second)
	n := len(nodes["seller"].invoices("dazaar: " + s.key))
	before, began := ticks(t, s.cmd.Process.Pid), time.Now()
	p := start(t, s.dir, "buy", s.key, "--seller", s.address, "--state", state, "--wallet", wallet, "--max-sats", "100000", "--follow")
	time.Sleep(10 * time.Second)
	p.stop()
	took := time.Since(began)
	n = len(nodes["seller"].invoices("dazaar: "+s.key)) - n
	each := (ticks(t, s.cmd.Process.Pid) - before - time.Duration(float64(took)*idle)) / time.Duration(n)
	fmt.Printf("CPU of the seller for a settled invoice: %v, of %d invoices in %v; without them %.1f %%\n", each.Round(100*time.Microsecond), n, took.Round(time.Second), idle*100)
}

// ticks returns the CPU time of a process.
func ticks(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// cpu returns which part of a CPU a process takes.
func cpu(t *testing.T, pid int, d time.Duration) float64 {
	t.Helper()
	before := ticks(t, pid)
	time.Sleep(d)
	return float64(ticks(t, pid)-before) / float64(d)
}
