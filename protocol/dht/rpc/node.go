// Package rpc is dht-rpc: a node of a Kademlia network over UDP, which asks other nodes and
// answers them (specs/hyperdht.md, section 1).
//
// A node has two sockets. Requests leave the client socket, until it is proved that anybody
// can send to the server socket: see [Node.Open]. A node is ephemeral, which is to say that
// nobody asks it anything, until it was open for a while, or is told that it is persistent.
package rpc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/udx"
)

// Ports that a server socket tries.
const (
	FirstPort = 49737
	lastPort  = 49741
)

// Config says what a node is. Endpoint is required.
type Config struct {
	Endpoint *udx.Endpoint
	// Listen opens a socket at a port, 0 is any; a lean one has little room. nil is UDP, at
	// Host.
	Listen func(port uint16, lean bool) (udx.PacketConn, error)
	Host   netip.Addr // not valid is all addresses
	Port   uint16     // of the server socket; 0 is FirstPort or one of the next, or any
	// Bootstrap are nodes to begin with: host:port, or address@host:port, which asks for the
	// address of host only if there is nobody at that. Nodes are some that were good before.
	Bootstrap []string
	Nodes     []netip.AddrPort
	// Persistent serves others as soon as it is known that they can reach this node; Never
	// does not even then.
	Persistent, Never bool
	// Public, if valid, is where anybody can send to the server socket: nobody need be asked,
	// and the node is persistent from the beginning. The first node of a network has one.
	Public netip.AddrPort
	// Handle is called with each request for a command that is not internal, by the goroutine
	// that reads: it must not wait. What it is given aliases the datagram.
	Handle func(*Incoming)
	Rand   io.Reader    // safe for concurrent use; nil is crypto/rand
	Log    *slog.Logger // nil discards
}

// Node is a node of the network. All methods are safe for concurrent use.
type Node struct {
	cfg            Config
	log            *slog.Logger
	server, client *udx.Socket
	ctx            context.Context //nolint:containedctx // it ends what the node began
	cancel         context.CancelFunc
	wg             sync.WaitGroup // see spawn
	slots          chan struct{}  // requests on their way
	delayed        chan struct{}  // pings that are answered later
	secret         [32]byte       // for tokens
	begun          time.Time

	mu        sync.Mutex
	closed    bool // guarded by mu, like all below
	calls     map[callKey]*call
	tid       uint16
	table     table
	samples   sampler // of the socket that requests leave
	open      bool
	openSince time.Time
	checkAt   time.Time
	misses    int                         // checks that failed, one after the other
	checked   []netip.AddrPort            // who was asked at the last one
	spoken    recent                      // hosts that the server socket sent something to
	answers   *bucket.Keyed[netip.Prefix] // what those may get who did not show that they receive it
	persists  bool
	first     []netip.AddrPort // the nodes to begin with, resolved
	refreshAt time.Time
	changed   func() // called when our address is another one
	known     netip.AddrPort
	traffic   Traffic
}

// Traffic is what went through the sockets, without what streams sent.
type Traffic struct {
	Sent, SentBytes, Received, ReceivedBytes uint64
}

// ErrClosed says that the node was closed.
var ErrClosed = fmt.Errorf("dht: %w", net.ErrClosed)

// New opens the sockets of a node. It asks nobody until [Node.Bootstrap].
func New(cfg Config) (*Node, error) {
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Listen == nil {
		host := cfg.Host
		if !host.IsValid() {
			host = netip.IPv4Unspecified()
		}
		cfg.Listen = func(port uint16, lean bool) (udx.PacketConn, error) {
			return udx.ListenUDP(netip.AddrPortFrom(host, port), lean)
		}
	}
	n := &Node{cfg: cfg, log: cfg.Log, calls: map[callKey]*call{}, slots: make(chan struct{}, maxCalls), delayed: make(chan struct{}, maxDelayed), begun: time.Now()}
	n.answers = bucket.NewKeyed[netip.Prefix](answerRate, answerBurst)
	var b [2]byte
	for _, p := range [][]byte{n.secret[:], b[:], n.table.id[:]} {
		if _, err := io.ReadFull(cfg.Rand, p); err != nil {
			return nil, err
		}
	}
	n.tid = binary.LittleEndian.Uint16(b[:])
	server, err := n.listenServer()
	if err != nil {
		return nil, fmt.Errorf("dht: %w", err)
	}
	client, err := cfg.Listen(0, false)
	if err != nil {
		server.Close()
		return nil, fmt.Errorf("dht: %w", err)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.server = cfg.Endpoint.NewSocket(server, false, n.Datagram)
	if cfg.Public.IsValid() {
		n.mu.Lock()
		n.known, n.open = cfg.Public, true
		n.persist()
		n.mu.Unlock()
	}
	n.client = cfg.Endpoint.NewSocket(client, false, n.Datagram)
	return n, nil
}

func (n *Node) listenServer() (c udx.PacketConn, err error) {
	if n.cfg.Port != 0 {
		return n.cfg.Listen(n.cfg.Port, false)
	}
	for port := uint16(FirstPort); port <= lastPort; port++ {
		if c, err = n.cfg.Listen(port, false); err == nil {
			return c, nil
		}
	}
	return n.cfg.Listen(0, false)
}

// Close ends the node, and returns when nothing of it is left. Streams over its sockets
// hear nothing any more.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.cancel()
	n.wg.Wait()
	return errors.Join(n.server.Close(), n.client.Close())
}

// spawn runs f, for whose end Close waits; not if the node is closed.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.spawnLocked(f)
}

func (n *Node) spawnLocked(f func()) bool {
	if !n.closed {
		n.wg.Go(f)
	}
	return !n.closed
}

// Done is closed when the node is.
func (n *Node) Done() <-chan struct{} { return n.ctx.Done() }

// ServerSocket returns the socket that others may know the port of.
func (n *Node) ServerSocket() *udx.Socket { return n.server }

// Socket returns the socket that requests leave.
func (n *Node) Socket() *udx.Socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.socket()
}

func (n *Node) socket() *udx.Socket {
	if n.open {
		return n.server
	}
	return n.client
}

// NewSocket opens another socket, on which requests and responses are understood, too; other
// is called, by the goroutine that reads, with what is neither.
func (n *Node) NewSocket(other func(s *udx.Socket, b []byte, from netip.AddrPort)) (*udx.Socket, error) {
	c, err := n.cfg.Listen(0, true)
	if err != nil {
		return nil, err
	}
	return n.cfg.Endpoint.NewSocket(c, true, func(s *udx.Socket, b []byte, from netip.AddrPort) {
		if len(b) <= 1 {
			other(s, b, from)
			return
		}
		n.Datagram(s, b, from)
	}), nil
}

// OnChange has f called, by a goroutine of the node, when others see it at another address
// than before.
func (n *Node) OnChange(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.changed = f
}

// Traffic returns what went through the sockets.
func (n *Node) Traffic() Traffic {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.traffic
}

// Nodes returns nodes that answered, for [Config.Nodes] of the next time.
func (n *Node) Nodes(most int) []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []netip.AddrPort
	for _, e := range n.table.newest(most) {
		out = append(out, e.addr)
	}
	return out
}

// Size returns how many nodes are known.
func (n *Node) Size() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.n
}

// Recent returns nodes that answered lately, but not the skip newest ones if there are
// twice as many.
func (n *Node) Recent(most, skip int) []netip.AddrPort {
	all := n.Nodes(most + skip)
	if len(all) >= most+skip {
		all = all[skip:]
	}
	return all[:min(most, len(all))]
}

// send writes a datagram. No lock is held.
func (n *Node) send(s *udx.Socket, b []byte, to netip.AddrPort, ttl int) {
	n.mu.Lock()
	if s == n.server {
		n.spoken.add(to.Addr(), time.Now())
	}
	n.traffic.Sent++
	n.traffic.SentBytes += uint64(len(b)) + udpOverhead
	n.mu.Unlock()
	s.Send(b, to, ttl) //nolint:errcheck // as if it were lost
}

// udpOverhead is what a datagram needs besides its bytes.
const udpOverhead = 28

// Datagram takes what came on a socket. It is for sockets whose owner keeps some of what
// comes for itself.
func (n *Node) Datagram(s *udx.Socket, b []byte, from netip.AddrPort) {
	n.mu.Lock()
	n.traffic.Received++
	n.traffic.ReceivedBytes += uint64(len(b)) + udpOverhead
	n.mu.Unlock()
	switch request, response := packet.Kind(b); {
	case request:
		if r, err := packet.ParseRequest(b); err == nil && from.Addr().Is4() {
			n.asked(&Incoming{Request: r, Socket: s, From: from})
		}
	case response:
		if r, err := packet.ParseResponse(b); err == nil {
			n.answered(s, &r, from)
		}
	}
}
