package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"dazaar-edge/protocol/dht"

	"github.com/rogpeppe/go-internal/testscript"
)

// networks counts those that were started.
var networks atomic.Int32

// start-network starts a network of nodes on loopback; NODE is one to begin with.
func startNetwork(ts *testscript.TestScript, _ bool, _ []string) {
	// The first has an address of its own on loopback, so that nobody takes its port.
	pid := os.Getpid() + int(networks.Add(1))
	first := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, byte(pid >> 8), byte(pid)}), 49737)
	for i := range 5 {
		cfg := dht.Config{Host: netip.MustParseAddr("127.0.0.1"), Persistent: true, Bootstrap: []string{first.String()}}
		if i == 0 {
			cfg.Host, cfg.Port, cfg.Public = first.Addr(), first.Port(), first
		}
		n, err := dht.New(cfg)
		ts.Check(err)
		ts.Defer(func() { n.Close() })
		ts.Check(n.Bootstrap(context.Background()))
	}
	ts.Setenv("NODE", first.String())
}

// sleep-until TEXT COMMAND... waits until what a command prints contains something.
func untilSays(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		cmd := exec.Command(args[1], args[2:]...)
		cmd.Dir, cmd.Env = ts.MkAbs("."), []string{"PATH=" + ts.Getenv("PATH")}
		out, _ := cmd.CombinedOutput()
		if strings.Contains(string(out), args[0]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%q: it does not say %q: %s", args[1:], args[0], out)
		}
	}
}

// start-relay FILE starts edge relay with the key in a file, twice, of which the second
// stays; RELAY is its key, which is the same both times, and TCPRELAY where it is reached by TCP.
func startRelay(ts *testscript.TestScript, _ bool, args []string) {
	var key string
	for i := range 2 {
		cmd := exec.Command("edge", "relay", "--key", args[0], "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--bootstrap", ts.Getenv("NODE"), "--every", "50ms", "--pair-rate", "8Mbit/s")
		cmd.Dir = ts.MkAbs(".")
		out, err := cmd.StdoutPipe()
		ts.Check(err)
		ts.Check(cmd.Start())
		ts.Defer(func() { cmd.Process.Kill(); cmd.Wait() })
		lines := bufio.NewScanner(out)
		var ready struct {
			Ready           bool
			RelayKey, Relay string
		}
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &ready) != nil || !ready.Ready {
			ts.Fatalf("the relay is not ready: %s", lines.Text())
		}
		if i == 1 && ready.RelayKey != key {
			ts.Fatalf("the relay had key %s, and has %s", key, ready.RelayKey)
		}
		key = ready.RelayKey
		ts.Setenv("TCPRELAY", ready.Relay)
		var stats struct{ Open bool }
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &stats) != nil || !stats.Open {
			ts.Fatalf("the relay says %q", lines.Text())
		}
		if i == 0 {
			ts.Check(cmd.Process.Signal(os.Interrupt))
			go io.Copy(io.Discard, out)
			ts.Check(cmd.Wait())
		} else {
			go io.Copy(io.Discard, out)
		}
	}
	ts.Setenv("RELAY", key)
}
