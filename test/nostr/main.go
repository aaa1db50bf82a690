// Command nostr runs two relays (khatru) and wallets behind them (NIP-47, with go-nostr's
// encryption and signatures), whose money is that of the lab's lnd nodes.
//
//	nostr LAB.json
//
// It prints {"relays":[…],"wallets":{NAME:connection}}: sell may receive, old too but
// knows only NIP-04 and tells nothing by itself, pay may spend the buyer's money, and both
// may do both. Then it takes lines: "stop N" ends relay N, "start N" begins it again. It
// ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/fiatjaf/eventstore/slicestore"
	"github.com/fiatjaf/khatru"
	"github.com/nbd-wtf/go-nostr"
)

// relay is one that can be ended and begun again.
type relay struct {
	address string
	handler http.Handler

	mu     sync.Mutex
	server *http.Server
	conns  map[net.Conn]bool
}

func newRelay() (*relay, error) {
	db := &slicestore.SliceStore{}
	if err := db.Init(); err != nil {
		return nil, err
	}
	k := khatru.NewRelay()
	k.StoreEvent = append(k.StoreEvent, db.SaveEvent)
	k.QueryEvents = append(k.QueryEvents, db.QueryEvents)
	k.DeleteEvent = append(k.DeleteEvent, db.DeleteEvent)
	k.ReplaceEvent = append(k.ReplaceEvent, db.ReplaceEvent)
	r := &relay{address: "127.0.0.1:0", handler: k}
	return r, r.start()
}

func (r *relay) start() error {
	ln, err := net.Listen("tcp", r.address)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.address, r.conns = ln.Addr().String(), map[net.Conn]bool{}
	r.server = &http.Server{Handler: r.handler, ConnState: func(c net.Conn, _ http.ConnState) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.conns[c] = true
	}}
	go r.server.Serve(ln) //nolint:errcheck // until stop
	return nil
}

// stop ends it, and those connections that were taken over, too.
func (r *relay) stop() {
	r.server.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

func main() {
	log.SetFlags(log.Ltime)
	log.SetPrefix("nostr: ")
	nostr.InfoLogger.SetOutput(new(strings.Builder))
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return errors.New("which LAB.json?")
	}
	nodes, err := readLab(os.Args[1])
	if err != nil {
		return err
	}
	var relays []*relay
	var urls []string
	for range 2 {
		r, err := newRelay()
		if err != nil {
			return err
		}
		relays = append(relays, r)
		urls = append(urls, "ws://"+r.address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	receive, spend := []string{"get_info", "make_invoice", "lookup_invoice", "list_transactions"}, []string{"get_info", "pay_invoice", "lookup_invoice"}
	wallets := map[string]*wallet{
		"sell": {node: nodes["seller"], methods: receive, notices: true},
		"old":  {node: nodes["seller"], methods: receive, old: true},
		"pay":  {node: nodes["buyer"], methods: spend},
		"both": {node: nodes["seller"], methods: append(append([]string{}, receive...), "pay_invoice")},
	}
	connections := map[string]string{}
	for name, w := range wallets {
		w.key, w.client = nostr.GeneratePrivateKey(), nostr.GeneratePrivateKey()
		w.pub, _ = nostr.GetPublicKey(w.key)
		w.to, _ = nostr.GetPublicKey(w.client)
		w.relays, w.seen = map[string]*nostr.Relay{}, map[string]bool{}
		if w.notices {
			go w.watch(ctx)
		}
		for _, url := range urls {
			go w.serve(ctx, url)
		}
		connections[name] = fmt.Sprintf("nostr+walletconnect://%s?relay=%s&relay=%s&secret=%s", w.pub, urls[0], urls[1], w.client)
	}
	for _, w := range wallets { // until each is there
		for deadline := time.Now().Add(20 * time.Second); w.connected() < 2; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("a wallet does not reach its relays")
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"relays": urls, "wallets": connections}); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var what string
		var n int
		if _, err := fmt.Sscan(lines.Text(), &what, &n); err != nil || n >= len(relays) {
			return fmt.Errorf("%q: stop N or start N", lines.Text())
		}
		if what == "stop" {
			relays[n].stop()
		} else if err := relays[n].start(); err != nil {
			return err
		}
		fmt.Println(`"done"`)
	}
	return nil
}
