package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The product itself, where EDGE says; what a seller tells its buyers otherwise is in
// EDGE_DIR: its card.

// edgeRelay runs edge relay.
func edgeRelay(ctx context.Context) error {
	seed := relayKey().Seed()
	file := filepath.Join(os.Getenv("EDGE_DIR"), os.Getenv("NATLAB_ID")+".relay.key")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%x\n", seed), 0o600); err != nil {
		return err
	}
	p, err := start(ctx, nil, "relay", "--key", file, "--public", os.Getenv("NATLAB_IP")+":49737", "--bootstrap", os.Getenv("NATLAB_BOOTSTRAP"))
	if err != nil {
		return err
	}
	for line := range p.lines {
		if strings.Contains(line, `"ready":true`) {
			fmt.Println("READY", line)
		}
	}
	return p.end()
}

const edgeConfig = `
device: {name: lab, clock: system}
storage: {path: %s/data, max_size: 64MiB, commit: {every: 0s}}
network: {bootstrap: [%s], relays: [%s]}
feeds: [{name: lab, price: free, pack: {every: 100ms}, sensors: [{name: wave, driver: sim, every: 100ms}]}]
`

// cardFile is where the card of the seller of this try is.
func cardFile() string {
	return filepath.Join(os.Getenv("EDGE_DIR"), os.Getenv("NATLAB_SEED")+".card")
}

// edgeSeller runs edge run, with a relay if USE_RELAY is set, which is reached by TCP if it is "tcp".
func edgeSeller(ctx context.Context) error {
	// The same one when it is started again.
	dir := filepath.Join(os.Getenv("EDGE_DIR"), os.Getenv("NATLAB_SEED"))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	relay, said := "", "announced at"
	if usesRelay() {
		relay = fmt.Sprintf("%x", relayKey()[32:])
	}
	if host, _, _ := strings.Cut(os.Getenv("NATLAB_RELAY"), ":"); os.Getenv("USE_RELAY") == "tcp" {
		relay, said = relay+"@"+host+":443", "by TCP through"
	}
	if relay != "" {
		relay = strconv.Quote(relay)
	}
	file := filepath.Join(dir, "edge.yaml")
	text := fmt.Sprintf(edgeConfig, dir, `"`+strings.ReplaceAll(os.Getenv("NATLAB_BOOTSTRAP"), ",", `", "`)+`"`, relay)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	p, err := start(ctx, nil, "run", "-c", file)
	if err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for range p.lines {
		}
	}()
	for ready := false; !ready && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		out, _ := exec.Command(os.Getenv("EDGE"), "status", "-c", file).Output()
		ready = bytes.Contains(out, []byte(said))
		select {
		case <-gone:
			return p.end()
		default:
		}
	}
	out, err := exec.Command(os.Getenv("EDGE"), "card", "-c", file).Output()
	if err == nil {
		err = os.WriteFile(cardFile()+"~", out, 0o600)
	}
	if err == nil {
		err = os.Rename(cardFile()+"~", cardFile())
	}
	if err != nil {
		return err
	}
	fmt.Println("READY")
	return p.end()
}

var way = regexp.MustCompile(`msg=(?:connected|"moved to a better way to the seller") way="?([^"\n]*)"?`)

// edgeBuyer runs edge buy: until there are some readings, or for RUN_S seconds. WITHOUT_UDP
// seconds after its beginning UDP passes.
func edgeBuyer(ctx context.Context) error {
	begun := time.Now()
	r := followed{Path: "nowhere"}
	r.OK = true
	fail := func(format string, args ...any) {
		if r.OK {
			r.OK, r.Error = false, fmt.Sprintf(format, args...)
		}
	}
	runs := time.Duration(0)
	if os.Getenv("RUN_S") != "" {
		var err error
		if runs, err = lasts(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(os.Getenv("EDGE_DIR"), "buyer")
	if err != nil {
		return err
	}
	var mu sync.Mutex
	said := func(line string) {
		fmt.Println("  #", line)
		if m := way.FindStringSubmatch(line); m != nil {
			mu.Lock()
			defer mu.Unlock()
			r.Path = m[1]
			r.Dials++
		}
	}
	p, err := start(ctx, said, "buy", cardFile(), "--bootstrap", os.Getenv("NATLAB_BOOTSTRAP"), "--state", filepath.Join(dir, "state"), "--follow", "--from", "end", "--verbose")
	if err != nil {
		return err
	}
	var last time.Time
	index, before := int64(-1), ""
	limit := time.After(45*time.Second + runs)
loop:
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				fail("edge buy ended")
				break loop
			}
			var row struct {
				Index *int64
				Value *float64
			}
			if err := json.Unmarshal([]byte(line), &row); err != nil || row.Index == nil || row.Value == nil {
				continue
			}
			switch {
			case index >= 0 && *row.Index > index+1:
				fail("block %d follows %d", *row.Index, index)
			case *row.Index < index || line == before:
				fail("block %d comes after %d: %s", *row.Index, index, line)
			}
			index, before = *row.Index, line
			if r.Lines++; r.Lines == 1 {
				r.Connect = time.Since(begun).Milliseconds()
			} else {
				r.Gap = max(r.Gap, time.Since(last).Seconds())
			}
			if last = time.Now(); time.Since(begun) > runs && r.Lines >= 5 {
				break loop
			}
		case <-limit:
			fail("no more readings after %d", r.Lines)
			break loop
		}
	}
	p.cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may have ended
	for range p.lines {
	}
	if err := p.end(); err != nil {
		fail("%v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	r.Elapsed = time.Since(begun).Milliseconds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// program is edge while it runs.
type program struct {
	cmd   *exec.Cmd
	lines chan string // of its standard output
	read  sync.WaitGroup
}

// start runs edge with arguments; said gets what it says.
func start(ctx context.Context, said func(string), args ...string) (*program, error) {
	p := &program{cmd: exec.CommandContext(ctx, os.Getenv("EDGE"), args...), lines: make(chan string, 64)}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.cmd.Stderr = os.Stderr
	if said != nil {
		r, w := io.Pipe()
		p.cmd.Stderr = w
		go func() {
			for sc := bufio.NewScanner(r); sc.Scan(); {
				said(sc.Text())
			}
		}()
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.read.Go(func() {
		defer close(p.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			p.lines <- sc.Text()
		}
	})
	return p, nil
}

// end waits for the end.
func (p *program) end() error {
	p.read.Wait()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return fmt.Errorf("edge: %w", err)
	}
	return nil
}
