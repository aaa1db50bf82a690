// Package simnet is an internet in memory, for tests: hosts, home routers and carriers that
// translate addresses in all the ways of RFC 4787, and links that lose, delay, reorder and
// duplicate datagrams.
//
// It keeps time with package time: in a bubble of testing/synctest an hour of it takes as
// long as the work that is done in that hour. What is random comes from a seed.
//
// A datagram goes from hop to hop. A [Realm] is a network in which addresses mean the same
// to all: the public one, or that behind a [Router]. All methods are safe for concurrent use.
package simnet

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Link says what becomes of datagrams between a node and its realm, in each direction.
type Link struct {
	Delay  time.Duration
	Jitter time.Duration // up to so much more
	// Loss, Duplicate and Reorder are probabilities; what is reordered comes Late later.
	Loss, Duplicate, Reorder float64
	Late                     time.Duration
	Rate                     int // bytes a second; 0 is any
	Queue                    int // bytes that wait for the rate; 0 is 64 KiB
	MTU                      int // bytes with the IP header; 0 is 1500
	// Blocked drops all datagrams.
	Blocked bool
}

// Net is an internet. Close it when nobody uses it any more.
type Net struct {
	mu     sync.Mutex
	rand   *rand.Rand
	events events
	wake   chan struct{}
	done   chan struct{}
	ended  sync.WaitGroup
	order  uint64
	public *Realm
	begun  time.Time
	// Trace is called with what becomes of each datagram, if it is set before the first.
	Trace func(what string, from, to netip.AddrPort, size int)
}

// New returns a Net without nodes.
func New(seed uint64) *Net {
	n := &Net{rand: rand.New(rand.NewPCG(seed, seed)), wake: make(chan struct{}, 1), done: make(chan struct{}), begun: time.Now()}
	n.public = &Realm{net: n, nodes: map[netip.Addr]node{}}
	n.ended.Go(n.run)
	return n
}

// Close ends the internet; what is on its way is lost.
func (n *Net) Close() {
	close(n.done)
	n.ended.Wait()
}

// Public returns the realm of public addresses.
func (n *Net) Public() *Realm { return n.public }

// event is something that happens later.
type event struct {
	at    time.Duration // since begun
	order uint64
	do    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	x := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return x
}

// after has do called, with mu held, in a while. mu is held.
func (n *Net) after(d time.Duration, do func()) {
	n.order++
	heap.Push(&n.events, event{time.Since(n.begun) + d, n.order, do})
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *Net) run() {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		t.Stop() // where nothing happens no time needs to pass
		n.mu.Lock()
		for len(n.events) > 0 {
			if wait := n.events[0].at - time.Since(n.begun); wait > 0 {
				t.Reset(wait)
				break
			}
			heap.Pop(&n.events).(event).do()
		}
		n.mu.Unlock()
		select {
		case <-n.done:
			return
		case <-n.wake:
		case <-t.C:
		}
	}
}

func (n *Net) trace(what string, p *datagram) {
	if n.Trace != nil {
		n.Trace(what, p.from, p.to, len(p.b))
	}
}

// datagram is one on its way.
type datagram struct {
	from, to netip.AddrPort
	b        []byte
	ttl      int
	fragment bool
}

// node has an address in a realm: a host, or a router with its outer side.
type node interface {
	arrive(p *datagram) // with mu held
	wire() *wire
}

// Realm is a network in which addresses mean the same to all.
type Realm struct {
	net   *Net
	nodes map[netip.Addr]node
	up    *Router // to where other addresses are; nil at the public realm
}

// wire is a link in use.
type wire struct {
	link Link
	free [2]time.Duration // when the last byte of what waits has gone, in and out
}

const (
	out = 0
	in  = 1
	// hops is how many routers are between two public addresses, or two of a carrier.
	hops = 8
)

// pass has then called for each copy of a datagram that passes the wire. mu is held.
func (n *Net) pass(w *wire, direction int, p *datagram, then func(*datagram)) {
	l := &w.link
	if l.Blocked || n.rand.Float64() < l.Loss {
		n.trace("lost", p)
		return
	}
	mtu := l.MTU
	if mtu == 0 {
		mtu = 1500
	}
	if len(p.b)+28 > mtu && !p.fragment {
		n.trace("too large", p)
		return
	}
	d := l.Delay
	if l.Jitter > 0 {
		d += time.Duration(n.rand.Int64N(int64(l.Jitter)))
	}
	if l.Rate > 0 {
		now := time.Since(n.begun)
		free := max(now, w.free[direction])
		queue := l.Queue
		if queue == 0 {
			queue = 64 << 10
		}
		if int(float64(free-now)/1e9*float64(l.Rate)) > queue {
			n.trace("queue full", p)
			return
		}
		free += time.Duration(float64(len(p.b)+28) * 1e9 / float64(l.Rate))
		w.free[direction] = free
		d += free - now
	}
	copies := 1
	if n.rand.Float64() < l.Duplicate {
		copies = 2
	}
	if n.rand.Float64() < l.Reorder {
		d += l.Late
	}
	for range copies {
		q := *p
		n.after(d, func() { then(&q) })
	}
}

// route takes a datagram that is in the realm; local if it comes from inside. mu is held.
func (r *Realm) route(p *datagram) {
	if x, ok := r.nodes[p.to.Addr()]; ok {
		if r.up == nil {
			p.ttl -= hops
		}
		if p.ttl <= 0 {
			r.net.trace("too far", p)
			return
		}
		r.net.pass(x.wire(), in, p, x.arrive)
		return
	}
	if r.up == nil {
		r.net.trace("nobody there", p)
		return
	}
	r.up.leave(p)
}

// Host is a computer with one address.
type Host struct {
	net   *Net
	realm *Realm
	addr  netip.Addr
	w     wire
	conns map[uint16]*Conn
	next  uint16
}

// Host adds a host to a realm.
func (r *Realm) Host(addr string, link Link) *Host {
	n := r.net
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &Host{net: n, realm: r, addr: netip.MustParseAddr(addr), w: wire{link: link}, conns: map[uint16]*Conn{}, next: 40000}
	r.add(h.addr, h)
	return h
}

func (r *Realm) add(a netip.Addr, x node) {
	if r.nodes[a] != nil {
		panic(fmt.Sprintf("simnet: %v is there already", a))
	}
	r.nodes[a] = x
}

// SetLink changes what becomes of datagrams.
func (h *Host) SetLink(l Link) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.w.link = l
}

// Move gives the host another address, in another realm perhaps. Its sockets stay, as those
// that are bound to no address of a machine do.
func (h *Host) Move(r *Realm, addr string) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	delete(h.realm.nodes, h.addr)
	h.realm, h.addr = r, netip.MustParseAddr(addr)
	r.add(h.addr, h)
}

// Addr returns the address of the host.
func (h *Host) Addr() netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return h.addr
}

// Sockets returns how many sockets are open.
func (h *Host) Sockets() int {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return len(h.conns)
}

func (h *Host) wire() *wire { return &h.w }

func (h *Host) arrive(p *datagram) {
	c := h.conns[p.to.Port()]
	if c == nil {
		h.net.trace("port closed", p)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.queue) >= maxQueue {
		return
	}
	h.net.trace("arrived", p)
	c.queue = append(c.queue, *p)
	c.more.Signal()
}

const maxQueue = 4096

// Conn is a UDP socket of a host. It is a udx.PacketConn.
type Conn struct {
	h    *Host
	port uint16

	mu       sync.Mutex
	more     sync.Cond
	queue    []datagram // guarded by mu, like all below
	closed   bool
	fragment bool
}

// Listen opens a socket; port 0 is any.
func (h *Host) Listen(port uint16) (*Conn, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for port == 0 {
		if h.next++; h.next < 1024 {
			h.next = 1024
		}
		if h.conns[h.next] == nil {
			port = h.next
		}
	}
	if h.conns[port] != nil {
		return nil, &net.OpError{Op: "listen", Net: "simnet", Err: os.NewSyscallError("bind", errors.New("address already in use"))}
	}
	c := &Conn{h: h, port: port}
	c.more.L = &c.mu
	h.conns[port] = c
	return c, nil
}

// Read waits for a datagram.
func (c *Conn) Read(buf []byte) (n, size int, from netip.AddrPort, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) == 0 && !c.closed {
		c.more.Wait()
	}
	if c.closed {
		return 0, 0, from, net.ErrClosed
	}
	// Several of one source and size come at once, as from a real system.
	p := c.queue[0]
	from, size = p.from, len(p.b)
	for len(c.queue) > 0 && c.queue[0].from == from && len(c.queue[0].b) <= size && n+size <= len(buf) {
		p, c.queue = c.queue[0], c.queue[1:]
		n += copy(buf[n:], p.b)
		if len(p.b) < size || size == 0 {
			break
		}
	}
	if n == 0 && size > 0 { // it is larger than buf, which cuts it
		n, c.queue = copy(buf, p.b), c.queue[1:]
		size = n
	}
	return n, size, from, nil
}

// Write sends datagrams.
func (c *Conn) Write(buf []byte, size int, to netip.AddrPort, ttl int) error {
	c.mu.Lock()
	closed, fragment := c.closed, c.fragment
	c.mu.Unlock()
	if closed {
		return net.ErrClosed
	}
	if ttl == 0 {
		ttl = 64
	}
	n := c.h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		k := min(size, len(buf))
		p := &datagram{netip.AddrPortFrom(c.h.addr, c.port), to, append([]byte(nil), buf[:k]...), ttl, fragment}
		n.trace("sent", p)
		if to.Addr() == c.h.addr || to.Addr().IsLoopback() {
			p.to = netip.AddrPortFrom(c.h.addr, to.Port())
			n.after(0, func() { c.h.arrive(p) })
		} else {
			n.pass(&c.h.w, out, p, c.h.realm.route)
		}
		if buf = buf[k:]; len(buf) == 0 {
			return nil
		}
	}
}

// LocalAddr returns the address of the host and the port.
func (c *Conn) LocalAddr() netip.AddrPort { return netip.AddrPortFrom(c.h.Addr(), c.port) }

// Fragment lets what is too large pass, or does not.
func (c *Conn) Fragment(may bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fragment = may
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.h.net.mu.Lock()
	if c.h.conns[c.port] == c {
		delete(c.h.conns, c.port)
	}
	c.h.net.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.more.Broadcast()
	return nil
}
