//go:build interop

package interop

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// patience is how long a call to a stock peer may take.
const patience = 60 * time.Second

// peer is a process of peer.js.
type peer struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser

	mu      sync.Mutex
	next    int                          // guarded by mu, like all below
	waiting map[int]chan json.RawMessage // by id
}

type reply struct {
	ID    int
	OK    json.RawMessage
	Error string
}

// startPeer starts a stock peer that ends with the test.
func startPeer(t testing.TB) *peer {
	t.Helper()
	cmd := exec.Command("node", "peer.js")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("Node and `npm ci` in test/interop are needed: %v", err)
	}
	p := &peer{t: t, cmd: cmd, in: in, waiting: map[int]chan json.RawMessage{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := bufio.NewScanner(out); s.Scan(); {
			var r struct{ ID int }
			if json.Unmarshal(s.Bytes(), &r) == nil {
				p.mu.Lock()
				c := p.waiting[r.ID]
				delete(p.waiting, r.ID)
				p.mu.Unlock()
				if c != nil {
					c <- append(json.RawMessage(nil), s.Bytes()...)
				}
			}
		}
	}()
	t.Cleanup(func() {
		in.Close()
		time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		<-done
		cmd.Wait()
	})
	return p
}

// kill ends the process as a power cut would.
func (p *peer) kill() { p.cmd.Process.Kill() }

// begin starts code in the peer and returns how to get its result.
func (p *peer) begin(code string, args any) func(out any) error {
	c := make(chan json.RawMessage, 1)
	p.mu.Lock()
	p.next++
	id := p.next
	p.waiting[id] = c
	p.mu.Unlock()
	b, err := json.Marshal(map[string]any{"id": id, "code": code, "args": args})
	if err == nil {
		_, err = p.in.Write(append(b, '\n'))
	}
	return func(out any) error {
		if err != nil {
			return err
		}
		select {
		case b := <-c:
			var r reply
			if err := json.Unmarshal(b, &r); err != nil {
				return err
			}
			if r.Error != "" {
				return fmt.Errorf("peer: %s", r.Error)
			}
			if out == nil {
				return nil
			}
			return json.Unmarshal(r.OK, out)
		case <-time.After(patience):
			return fmt.Errorf("no answer in %v to: %s", patience, code)
		}
	}
}

// do runs code in the peer and stores its result in out.
func (p *peer) do(code string, args, out any) {
	p.t.Helper()
	if err := p.begin(code, args)(out); err != nil {
		var errs []string
		p.begin("return s.errors", nil)(&errs)
		p.t.Fatalf("%v\npeer complained: %q", err, errs)
	}
}
