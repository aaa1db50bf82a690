package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	walletSat  = 300_000_000 // of each node
	channelSat = 15_000_000
	pushSat    = 1_000_000 // to the other end of a channel
	// blocks until all rules of today are in force on regtest, and coinbases can be spent.
	blocks = 432
	// patience is how long anything may take.
	patience = 90 * time.Second
)

// network is a chain and its nodes.
type network struct {
	bin, dir string
	chain    *chain
	nodes    []*node // seller, router, buyer
}

// macaroons are what programs are given, by what they may do.
var macaroons = map[string][]string{
	"sell.macaroon": {
		"uri:/lnrpc.Lightning/AddInvoice", "uri:/lnrpc.Lightning/LookupInvoice", "uri:/invoicesrpc.Invoices/LookupInvoiceV2",
		"uri:/lnrpc.Lightning/SubscribeInvoices", "uri:/lnrpc.Lightning/ListInvoices",
	},
	"wide.macaroon": {
		"uri:/lnrpc.Lightning/AddInvoice", "uri:/lnrpc.Lightning/LookupInvoice", "uri:/invoicesrpc.Invoices/LookupInvoiceV2",
		"uri:/lnrpc.Lightning/SubscribeInvoices", "uri:/lnrpc.Lightning/ListInvoices", "uri:/lnrpc.Lightning/GetInfo", "uri:/lnrpc.Lightning/ChannelBalance",
	},
	"pay.macaroon": {"offchain:read", "offchain:write"},
}

// start brings everything up.
func (n *network) start(ctx context.Context) (err error) {
	ports, err := freePorts(2 + 3*3)
	if err != nil {
		return err
	}
	if n.chain, err = startChain(ctx, n.bin, filepath.Join(n.dir, "btcd"), ports[:2]); err != nil {
		return fmt.Errorf("btcd: %w", err)
	}
	for i, name := range []string{"seller", "router", "buyer"} {
		x := newNode(name, filepath.Join(n.dir, name), ports[2+3*i:5+3*i], n.chain)
		n.nodes = append(n.nodes, x)
		if err := x.begin(n.bin); err != nil {
			return err
		}
	}
	if err := n.chain.mine(ctx, blocks); err != nil {
		return fmt.Errorf("mining: %w", err)
	}
	if err := n.each(func(x *node) error { return x.ready(ctx) }); err != nil {
		return err
	}
	if err := n.fund(ctx); err != nil {
		return fmt.Errorf("money: %w", err)
	}
	if err := n.connect(ctx); err != nil {
		return fmt.Errorf("channels: %w", err)
	}
	return n.each(func(x *node) error {
		for name, may := range macaroons {
			if err := x.bake(ctx, name, may); err != nil {
				return err
			}
		}
		return nil
	})
}

// fund pays each node's wallet.
func (n *network) fund(ctx context.Context) error {
	var addresses []string
	for _, x := range n.nodes {
		var out struct{ Address string }
		if err := x.call(ctx, http.MethodGet, "/v1/newaddress?type=WITNESS_PUBKEY_HASH", nil, &out); err != nil {
			return err
		}
		addresses = append(addresses, out.Address)
	}
	if err := n.chain.pay(ctx, addresses, walletSat); err != nil {
		return err
	}
	if err := n.chain.mine(ctx, 1); err != nil {
		return err
	}
	return n.each(func(x *node) error {
		return until(ctx, x.name+" has no money", func() error {
			var out struct {
				Confirmed int64 `json:"confirmed_balance,string"`
			}
			if err := x.call(ctx, http.MethodGet, "/v1/balance/blockchain", nil, &out); err != nil || out.Confirmed >= walletSat {
				return err
			}
			return fmt.Errorf("it has %d sat", out.Confirmed)
		})
	})
}

// connect opens the channels.
func (n *network) connect(ctx context.Context) error {
	seller, router, buyer := n.nodes[0], n.nodes[1], n.nodes[2]
	for _, pair := range [][2]*node{{buyer, router}, {router, seller}} {
		from, to := pair[0], pair[1]
		peer := map[string]any{"addr": map[string]string{"pubkey": to.key, "host": to.p2p}, "perm": true}
		if err := from.call(ctx, http.MethodPost, "/v1/peers", peer, nil); err != nil && !strings.Contains(err.Error(), "already connected") {
			return err
		}
		key, err := hex.DecodeString(to.key)
		if err != nil {
			return err
		}
		channel := map[string]any{
			"node_pubkey": base64.StdEncoding.EncodeToString(key), "local_funding_amount": strconv.Itoa(channelSat), "push_sat": strconv.Itoa(pushSat),
			"sat_per_vbyte": "2", "spend_unconfirmed": true,
		}
		if err := until(ctx, "no channel from "+from.name, func() error { return from.call(ctx, http.MethodPost, "/v1/channels", channel, nil) }); err != nil {
			return err
		}
	}
	if err := n.chain.mine(ctx, 6); err != nil {
		return err
	}
	return n.settled(ctx)
}

// settled waits until the nodes that run have their channels and know of all.
func (n *network) settled(ctx context.Context) error {
	return n.each(func(x *node) error {
		if !x.runs() {
			return nil
		}
		return until(ctx, x.name+" is not connected", func() error { return x.connected(ctx) })
	})
}

// connected returns what a node does not have yet of its channels and of what it should know.
func (x *node) connected(ctx context.Context) error {
	channels := map[string]int{"seller": 1, "router": 2, "buyer": 1}
	var info struct {
		Active int  `json:"num_active_channels"`
		Synced bool `json:"synced_to_chain"`
	}
	if err := x.call(ctx, http.MethodGet, "/v1/getinfo", nil, &info); err != nil {
		return err
	}
	if info.Active != channels[x.name] || !info.Synced {
		return fmt.Errorf("%d channels work, in step with the chain: %v", info.Active, info.Synced)
	}
	var graph struct {
		Edges []struct {
			One any `json:"node1_policy"`
			Two any `json:"node2_policy"`
		}
	}
	if err := x.call(ctx, http.MethodGet, "/v1/graph", nil, &graph); err != nil {
		return err
	}
	known := 0
	for _, e := range graph.Edges {
		if e.One != nil && e.Two != nil {
			known++
		}
	}
	if known != 2 {
		return fmt.Errorf("it knows %d channels", known)
	}
	return nil
}

// each does something with all nodes at once.
func (n *network) each(f func(*node) error) error {
	errs := make([]error, len(n.nodes))
	var wg sync.WaitGroup
	for i, x := range n.nodes {
		wg.Go(func() { errs[i] = f(x) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stop ends everything.
func (n *network) stop() {
	n.each(func(x *node) error { return x.end(syscall.SIGTERM) }) //nolint:errcheck // they are gone
	if n.chain != nil {
		n.chain.process.end(syscall.SIGTERM) //nolint:errcheck // as above
	}
}

// tails prints what the processes said last.
func (n *network) tails() {
	for _, name := range []string{"btcd", "seller", "router", "buyer"} {
		b, err := os.ReadFile(filepath.Join(n.dir, name, "out.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(os.Stderr, "--- %s\n%s\n", name, strings.Join(lines[max(0, len(lines)-12):], "\n"))
	}
}

// errOver says that waiting is of no use.
var errOver = errors.New("it ended")

// until tries again and again.
func until(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		if errors.Is(err, errOver) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// freePorts returns ports that nobody listens on.
func freePorts(n int) (out []string, err error) {
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			return nil, err
		}
		out = append(out, port)
	}
	return out, nil
}
