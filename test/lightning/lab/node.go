package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that runs, and may be started again.
type process struct {
	name, dir string
	args      []string

	mu   sync.Mutex
	cmd  *exec.Cmd // guarded by mu, like all below
	done chan struct{}
}

// starter is the thread that starts all: a child is killed with the thread that made it.
var starter = sync.OnceValue(func() chan func() {
	jobs := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range jobs {
			f()
		}
	}()
	return jobs
})

// begin starts it. It is in a group of its own, and ends if we do.
func (p *process) begin(bin string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.alive() {
		return errors.New(p.name + " runs")
	}
	log, err := os.OpenFile(filepath.Join(p.dir, "out.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(bin, p.name), p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	starter() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }() //nolint:errcheck // its log says why
	p.cmd, p.done = cmd, done
	return nil
}

// alive tells whether it runs. mu is held.
func (p *process) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) runs() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.alive()
}

// end sends a signal, and waits until it is gone.
func (p *process) end(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.alive() {
		return nil
	}
	if err := p.cmd.Process.Signal(signal); err != nil {
		return err
	}
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.cmd.Process.Kill() //nolint:errcheck // it may just have ended
		<-p.done
	}
	return nil
}

// node is an lnd.
type node struct {
	process
	name           string // of the node, not of the program
	rest, p2p, key string
	secret         string // the macaroon that may do everything, in hex
}

func newNode(name, dir string, ports []string, c *chain) *node {
	x := &node{name: name, rest: "https://127.0.0.1:" + ports[0], p2p: "127.0.0.1:" + ports[2]}
	x.process = process{name: "lnd", dir: dir, args: []string{
		"--lnddir=" + dir, "--configfile=/dev/null", "--noseedbackup", "--alias=" + name, "--bitcoin.regtest", "--bitcoin.node=btcd",
		"--btcd.rpchost=" + c.address, "--btcd.rpcuser=" + rpcUser, "--btcd.rpcpass=" + rpcPassword, "--btcd.rpccert=" + c.cert,
		"--restlisten=127.0.0.1:" + ports[0], "--rpclisten=127.0.0.1:" + ports[1], "--listen=" + x.p2p, "--nobootstrap", "--trickledelay=50",
		"--bitcoin.defaultchanconfs=1", "--accept-keysend", "--minbackoff=1s", "--maxbackoff=5s", "--channel-commit-interval=10ms",
		// A way on which a payment failed is tried again at once, and not in a minute or an hour.
		"--routerrpc.apriori.penaltyhalflife=1s", "--logging.file.disable", "--debuglevel=info",
	}}
	os.MkdirAll(dir, 0o700) //nolint:errcheck // its log cannot be opened then
	return x
}

func (x *node) cert() string { return filepath.Join(x.dir, "tls.cert") }

// file returns where a macaroon is.
func (x *node) file(name string) string {
	if name == "admin.macaroon" {
		return filepath.Join(x.dir, "data/chain/bitcoin/regtest", name)
	}
	return filepath.Join(x.dir, name)
}

// ready waits until it answers, and is in step with the chain.
func (x *node) ready(ctx context.Context) error {
	return until(ctx, x.name+" is not ready", func() error {
		if !x.runs() {
			return errOver
		}
		b, err := os.ReadFile(x.file("admin.macaroon"))
		if err != nil {
			return err
		}
		x.secret = hex.EncodeToString(b)
		var info struct {
			Key    string `json:"identity_pubkey"`
			Synced bool   `json:"synced_to_chain"`
		}
		if err := x.call(ctx, http.MethodGet, "/v1/getinfo", nil, &info); err != nil {
			return err
		}
		if x.key = info.Key; !info.Synced {
			return errors.New("it is not in step with the chain")
		}
		return nil
	})
}

// bake makes a macaroon.
func (x *node) bake(ctx context.Context, name string, may []string) error {
	var list []map[string]string
	for _, m := range may {
		entity, action, _ := strings.Cut(m, ":")
		list = append(list, map[string]string{"entity": entity, "action": action})
	}
	var out struct{ Macaroon string }
	if err := x.call(ctx, http.MethodPost, "/v1/macaroon", map[string]any{"permissions": list}, &out); err != nil {
		return err
	}
	b, err := hex.DecodeString(out.Macaroon)
	if err != nil {
		return err
	}
	return os.WriteFile(x.file(name), b, 0o600)
}

// call asks the node.
func (x *node) call(ctx context.Context, method, path string, in, out any) error {
	client, err := clientFor(x.cert())
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	return do(ctx, client, method, x.rest+path, func(r *http.Request) { r.Header.Set("Grpc-Metadata-macaroon", x.secret) }, in, out)
}

// clientFor returns a client that trusts one certificate.
func clientFor(cert string) (*http.Client, error) {
	b, err := os.ReadFile(cert)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, errors.New(cert + " is no certificate")
	}
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}, nil
}

// do sends JSON, and reads it.
func do(ctx context.Context, client *http.Client, method, url string, sign func(*http.Request), in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	sign(r)
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, bytes.TrimSpace(b))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}
