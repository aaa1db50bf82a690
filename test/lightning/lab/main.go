// Command lab runs a Lightning network of its own on this host, for tests: a btcd on
// regtest and three lnd nodes with money, and channels from buyer over router to seller.
//
//	lab [-bin DIR] [-dir DIR] COMMAND [ARGUMENT …]
//
// runs the command with LAB in its environment, the path of a file that says where the
// nodes are (see [network.describe]), and ends everything when it ends. LAB_CONTROL is a
// URL that takes
//
//	POST /stop?node=N  /kill?node=N  /start?node=N  /settled  /mine?n=N
//
// where settled waits until all nodes that run can pay each other again.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(log.Ltime)
	log.SetPrefix("lab: ")
	bin := flag.String("bin", "bin", "where lnd and btcd are")
	dir := flag.String("dir", "", "where the nodes keep what they have; a new directory that is removed at the end, if none is given")
	flag.Parse()
	code, err := run(*bin, *dir, flag.Args())
	if err != nil {
		log.Print(err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(bin, dir string, args []string) (code int, err error) {
	if len(args) == 0 {
		return 2, errors.New("which command?")
	}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "lab-"); err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	began := time.Now()
	n := &network{bin: bin, dir: dir}
	defer n.stop()
	if err := n.start(ctx); err != nil {
		n.tails()
		return 1, err
	}
	log.Printf("up after %v", time.Since(began).Round(time.Millisecond))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1, err
	}
	defer ln.Close()
	go http.Serve(ln, n.control()) //nolint:errcheck // it ends with the listener
	b, err := json.MarshalIndent(n.describe(), "", " ")
	if err != nil {
		return 1, err
	}
	file := filepath.Join(dir, "lab.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return 1, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "LAB="+file, "LAB_CONTROL=http://"+ln.Addr().String())
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	} else if err != nil {
		return 1, err
	}
	return 0, nil
}

// describe returns what the file of the lab says: each node's keys, files and addresses.
func (n *network) describe() map[string]any {
	out := map[string]any{}
	for _, x := range n.nodes {
		out[x.name] = map[string]string{
			"key": x.key, "rest": x.rest, "dir": x.dir, "cert": x.cert(),
			"admin": x.file("admin.macaroon"), "sell": x.file("sell.macaroon"), "wide": x.file("wide.macaroon"), "pay": x.file("pay.macaroon"),
		}
	}
	return out
}

// control answers to who wants something done to the nodes.
func (n *network) control() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, f func(*http.Request) error) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if err := f(r); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	one := func(f func(context.Context, *node) error) func(*http.Request) error {
		return func(r *http.Request) error {
			for _, x := range n.nodes {
				if x.name == r.FormValue("node") {
					return f(r.Context(), x)
				}
			}
			return fmt.Errorf("no node %q", r.FormValue("node"))
		}
	}
	handle("/stop", one(func(_ context.Context, x *node) error { return x.end(syscall.SIGTERM) }))
	handle("/kill", one(func(_ context.Context, x *node) error { return x.end(syscall.SIGKILL) }))
	handle("/start", one(func(ctx context.Context, x *node) error {
		if err := x.begin(n.bin); err != nil {
			return err
		}
		return x.ready(ctx)
	}))
	handle("/settled", func(r *http.Request) error { return n.settled(r.Context()) })
	handle("/mine", func(r *http.Request) error {
		count, err := strconv.Atoi(r.FormValue("n"))
		if err != nil {
			return err
		}
		return n.chain.mine(r.Context(), count)
	})
	return mux
}
