// Package dht is a node of the live Hyperswarm network, HyperDHT 6: it finds who has a key,
// and connects to it, through routers if need be (specs/hyperdht.md, sections 2 to 5).
//
// [Node.Listen] makes a key reachable, [Node.Dial] reaches one; both yield connections of
// package secretstream. Both ends must keep reading: by what is read, and is authentic, a
// connection follows the other end to another address. A node whose address is public serves
// others after a while: it keeps their records, and passes on what they say to each other
// while they connect.
package dht

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/dht/pace"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/punch"
	"dazaar-edge/protocol/udx"
)

// Bootstrap are the public nodes to begin with.
var Bootstrap = []string{
	"88.99.3.86@node1.hyperdht.org:49737",
	"142.93.90.113@node2.hyperdht.org:49737",
	"138.68.147.8@node3.hyperdht.org:49737",
}

// Config says what a node is. All fields may be zero.
type Config struct {
	// Listen opens a socket; nil is UDP. See [rpc.Config].
	Listen func(port uint16, lean bool) (udx.PacketConn, error)
	Host   netip.Addr // to listen at; not valid is all addresses
	Port   uint16
	// Bootstrap are nodes to begin with; nil is the public network. Nodes are some that
	// were good before.
	Bootstrap []string
	Nodes     []netip.AddrPort
	// Persistent serves others as soon as they can reach the node; Never does not serve.
	Persistent, Never bool
	// Public, if valid, is where anybody can send to the node: nobody is asked about that.
	Public netip.AddrPort
	// Addresses returns those of this machine, for others in the same network; nil asks the
	// system.
	Addresses func() []netip.Addr
	Rand      io.Reader    // safe for concurrent use; nil is crypto/rand
	Log       *slog.Logger // nil discards
}

// Node is a node of the network. All methods are safe for concurrent use.
type Node struct {
	cfg   Config
	log   *slog.Logger
	ep    *udx.Endpoint
	rpc   *rpc.Node
	store store
	links links
	// throttle bounds attempts that guess ports.
	throttle punch.Throttle
	pace     pace.Pace
	ctx      context.Context //nolint:containedctx // it ends what the node began
	cancel   context.CancelFunc

	mu        sync.Mutex
	closed    bool                        // guarded by mu, like all below
	listeners map[packet.ID]*Listener     // by the hash of their keys
	asking    *bucket.Keyed[netip.Prefix] // what networks may ask for that costs much
	total     *bucket.Bucket              // what all of them may
	wg        sync.WaitGroup              // see spawn
}

// New opens the sockets of a node. It is part of the network after [Node.Bootstrap].
func New(cfg Config) (*Node, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Bootstrap == nil {
		cfg.Bootstrap = Bootstrap
	}
	if cfg.Addresses == nil {
		cfg.Addresses = addresses
	}
	n := &Node{cfg: cfg, log: cfg.Log, ep: udx.NewEndpoint(cfg.Rand), listeners: map[packet.ID]*Listener{}}
	n.asking, n.total = bucket.NewKeyed[netip.Prefix](askRate, askBurst), bucket.New(allRate, allBurst, time.Now())
	n.store.init()
	n.ctx, n.cancel = context.WithCancel(context.Background())
	var err error
	n.rpc, err = rpc.New(rpc.Config{
		Endpoint: n.ep, Listen: cfg.Listen, Host: cfg.Host, Port: cfg.Port, Bootstrap: cfg.Bootstrap, Nodes: cfg.Nodes,
		Persistent: cfg.Persistent, Never: cfg.Never, Public: cfg.Public, Handle: n.handle, Rand: cfg.Rand, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	n.rpc.OnChange(n.announceAll)
	return n, nil
}

// Bootstrap makes the node part of the network. It fails with ctx, or if nobody answers;
// then it may be called again.
func (n *Node) Bootstrap(ctx context.Context) error { return n.rpc.Bootstrap(ctx) }

// Close ends all connections, takes back what was announced as far as that is possible at
// once, and returns when nothing is left.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	var all []*Listener
	for _, l := range n.listeners {
		all = append(all, l)
	}
	n.mu.Unlock()
	for _, l := range all {
		l.Close()
	}
	n.cancel()
	n.ep.Close()
	err := n.rpc.Close()
	n.wg.Wait()
	return err
}

// spawn runs f, for whose end Close waits; not if the node is closed.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.wg.Go(f)
	}
	return !n.closed
}

// Nodes returns nodes that answered lately, to begin with the next time.
func (n *Node) Nodes() []netip.AddrPort { return n.rpc.Nodes(maxKept) }

// maxKept is how many nodes are worth remembering.
const maxKept = 32

// RPC returns the node of the network below.
func (n *Node) RPC() *rpc.Node { return n.rpc }

// Address returns where others see the node, and whether anybody can send to it there.
func (n *Node) Address() (addr netip.AddrPort, open bool) { return n.rpc.Address() }

// public returns the address of a node that anybody can send to.
func (n *Node) public() netip.AddrPort {
	if a, open := n.rpc.Address(); open && a.Port() != 0 {
		return a
	}
	return netip.AddrPort{}
}

// local returns the addresses at which the server socket is reached in the same network,
// and, if anybody can send there, at its public one.
func (n *Node) local() (out []netip.AddrPort) {
	if a := n.public(); a.IsValid() {
		out = append(out, a)
	}
	port := n.rpc.ServerSocket().LocalAddr()
	hosts := n.cfg.Addresses()
	if host := port.Addr(); host.IsValid() && !host.IsUnspecified() {
		hosts = []netip.Addr{host}
	}
	for _, h := range hosts[:min(len(hosts), maxLocal)] {
		out = append(out, netip.AddrPortFrom(h, port.Port()))
	}
	return out
}

// maxLocal is how many addresses of this machine are told.
const maxLocal = 4

// handle takes requests that are not internal. It must not wait.
func (n *Node) handle(in *rpc.Incoming) {
	switch {
	case in.Command == packet.PeerHandshake:
		n.onHandshake(in)
	case in.Command == packet.PeerHolepunch:
		n.onHolepunch(in)
	case !n.rpc.Persistent():
		n.rpc.Answer(in, rpc.Answer{Error: packet.UnknownCommand, Closer: in.Flags&packet.HasTo != 0})
	case in.Flags&packet.HasTo == 0:
	default:
		n.serve(in)
	}
}

// How often a network, and all of them, may ask for what costs a public-key operation, or
// memory for a while: a request needs no proof that it comes from where it says.
const (
	askRate  = 5
	askBurst = 40
	allRate  = 50
	allBurst = 200
)

// allow tells whether the networks of hosts may ask for something that costs much.
func (n *Node) allow(hosts ...netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	pass := []*bucket.Bucket{n.total}
	for _, h := range hosts {
		pass = append(pass, n.asking.Get(network(h), now))
	}
	return bucket.Take(now, pass...)
}

// addresses returns those of this machine that others in its networks may reach.
func addresses() (out []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out
}
