package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dazaar-edge/payment/lnd/lndtest"
	"dazaar-edge/storage/page"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"edge": main})
}

// TestScripts runs the stories in testdata.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sleep-until-blocks": untilBlocks,
			"code":               exitCode,
			"flip":               flip,
			"contains":           contains,
			"start-edge":         startEdge,
			"stop-edge":          stopEdge,
			"start-unheard":      startUnheard,
			"start-lnd":          startLND,
			"sha256-to":          sha256To,
			"glob-to":            globTo,
			"pay-by-hand":        payByHand,
			"deny-lnd":           denyLND,
			"complete":           complete,
			"buy-unread":         buyUnread,
			"hangup-edge":        hangupEdge,
			"now-plus":           nowPlus,
			"later-than":         laterThan,
			"secret":             secret,
			"buyer-of":           buyerOf,
			"lines":              countLines,
			"bought":             bought,
			"start-network":      startNetwork,
			"start-relay":        startRelay,

			"sleep-until": untilSays,
		},
	})
}

// sleep-until-blocks DIR N waits until the logs in DIR have N blocks, or with +N so many more
// than at first.
func untilBlocks(ts *testscript.TestScript, _ bool, args []string) {
	number, more := strings.CutPrefix(args[1], "+")
	want, err := strconv.ParseUint(number, 10, 64)
	ts.Check(err)
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := verifyDir(ts.MkAbs(args[0]))
		if err == nil && len(out.Logs) > 0 && more {
			want, more = want+out.Logs[0].Length, false
		}
		if err == nil && len(out.Logs) > 0 && out.Logs[0].Length >= want {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s has not %d blocks: %+v, %v", args[0], want, out, err)
		}
		time.Sleep(20 * time.Millisecond) // looks again
	}
}

// code N COMMAND... runs a command that must end with exit code N.
func exitCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		if got = -1; strings.HasPrefix(err.Error(), "exit status ") {
			got, _ = strconv.Atoi(strings.TrimPrefix(err.Error(), "exit status "))
		}
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// only returns the one file that matches.
func only(ts *testscript.TestScript, pattern string) string {
	names, err := filepath.Glob(ts.MkAbs(pattern))
	if err != nil || len(names) == 0 {
		ts.Fatalf("no file %s", pattern)
	}
	return names[0]
}

// flip FILE OFFSET inverts a bit of the byte at an offset.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(only(ts, args[0]), os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	ts.Check(err)
	b[0] ^= 4
	_, err = f.WriteAt(b, off)
	ts.Check(err)
}

// contains FILE TEXT checks that a segment file holds a text somewhere; where a page ends,
// the head of the next one stands between.
func contains(ts *testscript.TestScript, _ bool, args []string) {
	b, err := os.ReadFile(only(ts, args[0]))
	ts.Check(err)
	var text strings.Builder
	for p := range slices.Chunk(b, page.Size) {
		text.Write(p[min(page.HeadSize, len(p)):])
	}
	if !strings.Contains(text.String(), args[1]) {
		ts.Fatalf("no %s in %s", args[1], args[0])
	}
}

// running is what start-edge keeps for stop-edge.
type running struct {
	cmd    *exec.Cmd
	stderr said
}

// said is what a process writes to standard error, which may be waited for.
type said struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // closed with the next write
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// wait waits until it has said something.
func (s *said) wait(ts *testscript.TestScript, text string) {
	deadline := time.After(60 * time.Second)
	for {
		s.mu.Lock()
		if strings.Contains(s.b.String(), text) {
			s.mu.Unlock()
			return
		}
		if s.more == nil {
			s.more = make(chan struct{})
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			ts.Fatalf("it does not say %q: %s", text, s.String())
		}
	}
}

// start-edge CONFIG starts edge run and waits until it is ready. It sets KEY and
// ADDRESS to the first feed's seller key and address.
func startEdge(ts *testscript.TestScript, _ bool, args []string) {
	r := &running{cmd: exec.Command("edge", "run", "-c", args[0])}
	r.cmd.Dir, r.cmd.Stderr = ts.MkAbs("."), &r.stderr
	r.cmd.Env = append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	path, err := exec.LookPath("edge")
	ts.Check(err)
	r.cmd.Path = path
	out, err := r.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(r.cmd.Start())
	ts.Defer(func() { r.cmd.Process.Kill(); r.cmd.Wait() })
	sc := bufio.NewScanner(out)
	if !sc.Scan() {
		r.cmd.Wait()
		ts.Fatalf("edge run did not become ready: %s", r.stderr.String())
	}
	var line ready
	ts.Check(json.Unmarshal(sc.Bytes(), &line))
	ts.Setenv("KEY", line.Feeds[0].SellerKey)
	ts.Setenv("KEY_IN_CAPITALS", strings.ToUpper(line.Feeds[0].SellerKey))
	ts.Setenv("ADDRESS", line.Feeds[0].TCP)
	ts.Setenv("WALLET", line.Wallet)
	started.Store(ts, r)
}

// started are the processes of start-edge, by script.
var started sync.Map

// stop-edge stops it as systemd would; it must end in order, whatever it is told
// meanwhile.
func stopEdge(ts *testscript.TestScript, _ bool, _ []string) {
	v, _ := started.LoadAndDelete(ts)
	r := v.(*running)
	ts.Check(r.cmd.Process.Signal(syscall.SIGTERM))
	r.cmd.Process.Signal(syscall.SIGHUP) //nolint:errcheck // it may have ended
	if err := r.cmd.Wait(); err != nil {
		ts.Fatalf("%v: %s", err, r.stderr.String())
	}
}

// nodes are those of start-lnd, by script.
var nodes sync.Map

// start-lnd starts a node that answers as lnd does, and a wallet that pays it, and sets
// NODE and PAYER to where they are. It writes tls.cert and sell.macaroon.
func startLND(ts *testscript.TestScript, _ bool, _ []string) {
	n, err := lndtest.New(ts.MkAbs("node"))
	ts.Check(err)
	node, payer := httptest.NewTLSServer(n), httptest.NewServer(n.Node)
	ts.Defer(node.Close)
	ts.Defer(payer.Close)
	ts.Check(os.WriteFile(ts.MkAbs("tls.cert"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: node.Certificate().Raw}), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("sell.macaroon"), lndtest.Macaroon, 0o600))
	ts.Setenv("NODE", node.URL)
	ts.Setenv("PAYER", payer.URL)
	nodes.Store(ts, n)
}

// deny-lnd WORDS has the node say that instead of an answer; nothing has it answer again.
func denyLND(ts *testscript.TestScript, _ bool, args []string) {
	n, _ := nodes.Load(ts)
	n.(*lndtest.Node).Deny(strings.Join(args, " "))
}

// start-unheard CONFIG starts edge run with a standard error that nobody reads any more,
// and stops it when it is ready.
func startUnheard(ts *testscript.TestScript, _ bool, args []string) {
	path, err := exec.LookPath("edge")
	ts.Check(err)
	r, w, err := os.Pipe()
	ts.Check(err)
	r.Close()
	cmd := exec.Command(path, "run", "-c", args[0])
	cmd.Args[0] = "edge"
	cmd.Dir, cmd.Stderr = ts.MkAbs("."), w
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	w.Close()
	ts.Defer(func() { cmd.Process.Kill(); cmd.Wait() })
	ready := bufio.NewScanner(out).Scan()
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil || !ready {
		ts.Fatalf("ready: %v; %v", ready, err)
	}
}

// hangup-edge tells it to read its configuration again, and waits until it did.
func hangupEdge(ts *testscript.TestScript, _ bool, _ []string) {
	v, _ := started.Load(ts)
	r := v.(*running)
	ts.Check(r.cmd.Process.Signal(syscall.SIGHUP))
	r.stderr.wait(ts, "prices, terms and descriptions are those of the configuration now")
}

// now-plus DURATION sets NOW to that time, and waits for it.
func nowPlus(ts *testscript.TestScript, _ bool, args []string) {
	d, err := time.ParseDuration(args[0])
	ts.Check(err)
	ts.Setenv("NOW", time.Now().Add(d).UTC().Format(time.RFC3339))
	time.Sleep(d) // it is a time that something is sold from on
}

// later-than FILE TIME checks that all readings in a file were sensed at that time or
// later, and that there are some.
func laterThan(ts *testscript.TestScript, _ bool, args []string) {
	from, err := time.Parse(time.RFC3339, args[1])
	ts.Check(err)
	n := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var l struct{ Time *time.Time }
		ts.Check(json.Unmarshal([]byte(line), &l))
		if l.Time != nil && l.Time.Before(from) {
			ts.Fatalf("%s is before %s", line, args[1])
		}
		if l.Time != nil {
			n++
		}
	}
	if n == 0 {
		ts.Fatalf("no readings")
	}
}

// secret VAULT checks that what is in the vault was not said by edge run.
func secret(ts *testscript.TestScript, _ bool, args []string) {
	v, _ := started.Load(ts)
	said := v.(*running).stderr.String()
	var vault map[string]any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &vault))
	looked := 0
	var look func(v any)
	look = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for _, x := range v {
				look(x)
			}
		case string:
			if len(v) < 32 {
				return
			}
			looked++
			if strings.Contains(said, v) {
				ts.Fatalf("edge run said what is in %s", args[0])
			}
		}
	}
	look(vault)
	if looked == 0 {
		ts.Fatalf("nothing in %s is as long as a secret", args[0])
	}
}

// buyer-of FEED sets BUYER to the buyer that paid most.
func buyerOf(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("edge", "buyers", "-c", "edge.yaml", "--json"))
	all, err := lines[buyerStatus]([]byte(ts.ReadFile("stdout")))
	ts.Check(err)
	most := -1
	for _, b := range all {
		paid, err := strconv.Atoi(b.Paid)
		ts.Check(err)
		if b.Feed == args[0] && paid > most {
			most = paid
			ts.Setenv("BUYER", b.Buyer)
		}
	}
}

// lines FILE N checks how many readings are in a file.
func countLines(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	if n := strings.Count(ts.ReadFile(args[0]), `"value":`); n != want {
		ts.Fatalf("%d readings in %s, want %d", n, args[0], want)
	}
}

// bought FILE STATE N waits until the buyer with this state is gone, and checks that the
// readings in its file and those that are left of what it paid for are N: a block is sold
// whole, and on a busy machine may hold more readings than are left.
func bought(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[2])
	ts.Check(err)
	seed, err := hex.DecodeString(strings.TrimSpace(ts.ReadFile(filepath.Join(args[1], "buyer.key"))))
	ts.Check(err)
	buyer := hex.EncodeToString(ed25519.NewKeyFromSeed(seed)[ed25519.SeedSize:])
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		ts.Check(ts.Exec("edge", "buyers", "-c", "edge.yaml", "--json"))
		all, err := lines[buyerStatus]([]byte(ts.ReadFile("stdout")))
		ts.Check(err)
		i := slices.IndexFunc(all, func(b buyerStatus) bool { return b.Buyer == buyer })
		if i < 0 {
			ts.Fatalf("the seller does not know %s", buyer)
		}
		if all[i].Connected && time.Now().Before(deadline) {
			continue
		}
		n, left := strings.Count(ts.ReadFile(args[0]), `"value":`), all[i].Remaining
		if left == nil || all[i].Type != "readings" || n+int(*left) != want || *left >= 10 {
			ts.Fatalf("%d readings in %s, and %+v, want %d", n, args[0], all[i], want)
		}
		return
	}
}

// buy-unread ARGS... runs edge buy ARGS with a standard output that nobody reads,
// and stops it when that is full: it must end, and say why it took its time.
func buyUnread(ts *testscript.TestScript, _ bool, args []string) {
	path, err := exec.LookPath("edge")
	ts.Check(err)
	r, w, err := os.Pipe()
	ts.Check(err)
	defer r.Close()
	const size = 4096
	_, err = unix.FcntlInt(r.Fd(), unix.F_SETPIPE_SZ, size)
	ts.Check(err)
	var stderr bytes.Buffer
	cmd := exec.Command(path, append([]string{"buy"}, args...)...)
	cmd.Args[0] = "edge"
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.MkAbs("."), w, &stderr
	ts.Check(cmd.Start())
	w.Close()
	ts.Defer(func() { cmd.Process.Kill(); cmd.Wait() })
	// It is stuck when it is in one and the same write for a while.
	stuck := 0
	for deadline := time.Now().Add(time.Minute); stuck < 50; time.Sleep(10 * time.Millisecond) {
		if stuck++; !writes(cmd.Process.Pid) {
			stuck = 0
		}
		if time.Now().After(deadline) {
			ts.Fatalf("it is not stuck: %s", stderr.String())
		}
	}
	ts.Check(cmd.Process.Signal(syscall.SIGTERM))
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case <-time.After(2 * grace):
		ts.Fatalf("it does not end")
	}
	if err == nil || !strings.Contains(stderr.String(), "somebody does not read its output") {
		ts.Fatalf("%v: %s", err, stderr.String())
	}
}

// sha256-to VARIABLE FILE
func sha256To(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], fmt.Sprintf("%x", sha256.Sum256([]byte(ts.ReadFile(args[1])))))
}

// glob-to VARIABLE PATTERN sets it to the first file that matches.
func globTo(ts *testscript.TestScript, _ bool, args []string) { ts.Setenv(args[0], only(ts, args[1])) }

// pay-by-hand ARGUMENTS runs edge buy and pays each invoice that it shows, until it ends
// because its budget is spent.
func payByHand(ts *testscript.TestScript, _ bool, args []string) {
	path, err := exec.LookPath("edge")
	ts.Check(err)
	cmd := exec.Command(path, append([]string{"buy"}, args...)...)
	cmd.Args[0] = "edge"
	cmd.Dir = ts.MkAbs(".")
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() { cmd.Process.Kill(); cmd.Wait() })
	said, paid := "", 0
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said += lines.Text() + "\n"
		if !strings.HasPrefix(lines.Text(), "lnbcrt") {
			continue
		}
		body, err := json.Marshal(map[string]string{"request": lines.Text()})
		ts.Check(err)
		resp, err := http.Post(ts.Getenv("WALLET")+"/pay", "application/json", bytes.NewReader(body))
		ts.Check(err)
		resp.Body.Close()
		paid++
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != exitRefused || paid == 0 || !strings.Contains(said, "the budget is spent") || !strings.Contains(said, "█") {
		ts.Fatalf("%d were paid, %v: %s", paid, cmd.ProcessState, said)
	}
}

// writes tells whether a process is writing to standard output.
func writes(pid int) bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid)) //nolint:errcheck // the pattern is right
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err == nil && strings.HasPrefix(string(b), fmt.Sprintf("%d 0x1 ", unix.SYS_WRITE)) {
			return true
		}
	}
	return false
}

// complete FILE checks that the readings in a file are of all blocks from 0 on,
// without one missing or twice.
func complete(ts *testscript.TestScript, _ bool, args []string) {
	next := 0
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var l struct{ Index *int }
		ts.Check(json.Unmarshal([]byte(line), &l))
		if l.Index == nil || *l.Index != next && *l.Index != next-1 {
			ts.Fatalf("%s follows block %d", line, next-1)
		}
		next = *l.Index + 1
	}
	if next < 20 {
		ts.Fatalf("%d blocks", next)
	}
}
