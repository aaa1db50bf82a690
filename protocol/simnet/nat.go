package simnet

import (
	"net/netip"
	"time"
)

// Dependence is what of a remote address counts, for mapping and filtering (RFC 4787,
// sections 4.1 and 5).
type Dependence byte

// Dependences.
const (
	EndpointIndependent Dependence = iota
	AddressDependent
	AddressAndPortDependent
)

// Ports says which outer ports a router takes (RFC 4787, section 4.2).
type Ports byte

// Ways to choose a port.
const (
	PortPreserving Ports = iota // that of the inner side, if it is free
	PortRandom
	PortSequential
)

// NAT is how a router translates.
type NAT struct {
	Mapping, Filtering Dependence
	Ports              Ports
	Hairpin            bool
	Timeout            time.Duration // of a mapping that nothing passes outwards; 0 is two minutes
}

// Kinds of routers, by their usual names.
var (
	FullCone       = NAT{Mapping: EndpointIndependent, Filtering: EndpointIndependent, Ports: PortRandom}
	RestrictedCone = NAT{Mapping: EndpointIndependent, Filtering: AddressDependent, Ports: PortPreserving}
	PortRestricted = NAT{Mapping: EndpointIndependent, Filtering: AddressAndPortDependent, Ports: PortPreserving}
	Symmetric      = NAT{Mapping: AddressAndPortDependent, Filtering: AddressAndPortDependent, Ports: PortRandom}
)

// Router is a NAT: it has an address in the realm outside, and is the way out of the one
// inside.
type Router struct {
	net     *Net
	kind    NAT
	outside *Realm
	inside  *Realm
	addr    netip.Addr
	w       wire
	by      map[flow]*mapping
	ports   map[uint16]*mapping
	next    uint16
}

// flow is what a mapping is found by.
type flow struct {
	inner  netip.AddrPort
	remote netip.AddrPort // as much of it as counts
}

type mapping struct {
	flow
	outer uint16
	used  time.Time
	open  map[netip.AddrPort]time.Time // who may send to it, as much of it as counts
}

// Router adds a router with an outer address to a realm.
func (r *Realm) Router(addr string, kind NAT, link Link) *Router {
	n := r.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if kind.Timeout == 0 {
		kind.Timeout = 2 * time.Minute
	}
	x := &Router{net: n, kind: kind, outside: r, addr: netip.MustParseAddr(addr), w: wire{link: link}}
	x.inside = &Realm{net: n, nodes: map[netip.Addr]node{}, up: x}
	x.reset()
	r.add(x.addr, x)
	return x
}

// Inside returns the realm behind the router.
func (x *Router) Inside() *Realm { return x.inside }

// SetLink changes what becomes of datagrams.
func (x *Router) SetLink(l Link) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	x.w.link = l
}

// SetKind changes how it translates, and forgets all mappings.
func (x *Router) SetKind(kind NAT) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	if kind.Timeout == 0 {
		kind.Timeout = 2 * time.Minute
	}
	x.kind = kind
	x.reset()
}

// Reset forgets all mappings, as a router that was switched off does.
func (x *Router) Reset() {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	x.reset()
}

func (x *Router) reset() {
	x.by, x.ports = map[flow]*mapping{}, map[uint16]*mapping{}
	x.next = uint16(1024 + x.net.rand.IntN(60000))
}

// Move gives the router another outer address.
func (x *Router) Move(addr string) {
	x.net.mu.Lock()
	defer x.net.mu.Unlock()
	delete(x.outside.nodes, x.addr)
	x.addr = netip.MustParseAddr(addr)
	x.outside.add(x.addr, x)
	x.reset()
}

func (x *Router) wire() *wire { return &x.w }

// part returns as much of an address as counts.
func (d Dependence) part(a netip.AddrPort) netip.AddrPort {
	switch d {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(a.Addr(), 0)
	}
	return a
}

// leave takes a datagram from inside. mu is held.
func (x *Router) leave(p *datagram) {
	if p.ttl--; p.ttl <= 0 {
		x.net.trace("too far", p)
		return
	}
	m := x.translate(p)
	p.from = netip.AddrPortFrom(x.addr, m.outer)
	if p.to.Addr() == x.addr {
		if x.kind.Hairpin {
			x.enter(p)
		} else {
			x.net.trace("no hairpin", p)
		}
		return
	}
	x.net.pass(&x.w, out, p, x.outside.route)
}

// translate returns the mapping of a datagram from inside, and opens it for answers.
func (x *Router) translate(p *datagram) *mapping {
	now := time.Now()
	f := flow{p.from, x.kind.Mapping.part(p.to)}
	m := x.by[f]
	if m != nil && now.Sub(m.used) > x.kind.Timeout {
		x.forget(m)
		m = nil
	}
	if m == nil {
		m = &mapping{flow: f, open: map[netip.AddrPort]time.Time{}}
		m.outer = x.port(p.from.Port())
		x.by[f], x.ports[m.outer] = m, m
	}
	m.used = now
	m.open[x.kind.Filtering.part(p.to)] = now
	return m
}

func (x *Router) forget(m *mapping) {
	delete(x.by, m.flow)
	delete(x.ports, m.outer)
}

// port chooses an outer port that is free.
func (x *Router) port(inner uint16) uint16 {
	if m := x.ports[inner]; x.kind.Ports == PortPreserving && (m == nil || time.Since(m.used) > x.kind.Timeout) {
		if m != nil {
			x.forget(m)
		}
		return inner
	}
	for {
		p := uint16(1024 + x.net.rand.IntN(64512))
		if x.kind.Ports == PortSequential {
			x.next = max(x.next+1, 1024)
			p = x.next
		}
		if m := x.ports[p]; m == nil {
			return p
		} else if time.Since(m.used) > x.kind.Timeout {
			x.forget(m)
			return p
		}
	}
}

// arrive takes a datagram from outside.
func (x *Router) arrive(p *datagram) { x.enter(p) }

func (x *Router) enter(p *datagram) {
	if p.ttl--; p.ttl <= 0 {
		x.net.trace("too far", p)
		return
	}
	m := x.ports[p.to.Port()]
	now := time.Now()
	if m == nil || now.Sub(m.used) > x.kind.Timeout {
		x.net.trace("no mapping", p)
		return
	}
	if at, ok := m.open[x.kind.Filtering.part(p.from)]; !ok || now.Sub(at) > x.kind.Timeout {
		x.net.trace("filtered", p)
		return
	}
	p.to = m.inner
	if h, ok := x.inside.nodes[p.to.Addr()]; ok {
		x.net.pass(h.wire(), in, p, h.arrive)
	} else {
		x.net.trace("nobody there", p)
	}
}
