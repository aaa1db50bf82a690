package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"dazaar-edge/protocol/dht/packet"
)

// sampler tells from what others see where we are: by the newest word of each of the hosts
// that spoke last, so that nobody has more than one vote, and no verdict stays that is no
// longer true.
type sampler struct{ votes []vote }

// vote is where a host sees us.
type vote struct {
	by netip.Addr
	us netip.AddrPort
	at time.Time
}

// maxVotes is of how many hosts, and voteTime for how long.
const (
	maxVotes = 16
	voteTime = 30 * time.Minute
	// minVotes is how many hosts must have spoken before they are believed that who is open
	// is elsewhere.
	minVotes = 4
)

func (s *sampler) add(by netip.Addr, us netip.AddrPort, now time.Time) {
	s.votes = slices.DeleteFunc(s.votes, func(v vote) bool { return v.by == by || now.Sub(v.at) > voteTime })
	if len(s.votes) >= maxVotes {
		s.votes = slices.Delete(s.votes, 0, 1)
	}
	s.votes = append(s.votes, vote{by, us, now})
}

// verdict returns our address: with a port if most see the same, with port 0 if they see
// the same host and several ports, or one that is not valid.
func (s *sampler) verdict() netip.AddrPort {
	n := len(s.votes)
	var best netip.AddrPort
	hits, hostHits := 0, 0
	for _, x := range s.votes {
		a, k, h := x.us, 0, 0
		for _, y := range s.votes {
			if a == y.us {
				k++
			}
			if a.Addr() == y.us.Addr() {
				h++
			}
		}
		if h > hostHits || h == hostHits && k > hits {
			best, hits, hostHits = a, k, h
		}
	}
	need := n
	switch {
	case n >= 12:
		need = n - 3
	case n >= 8:
		need = n - 2
	case n >= 4:
		need = n - 1
	}
	switch {
	case n == 0 || hostHits < need:
		return netip.AddrPort{}
	case hits < need:
		return netip.AddrPortFrom(best.Addr(), 0)
	}
	return best
}

// sample takes where another node sees us. mu is held.
func (n *Node) sample(by netip.Addr, a netip.AddrPort) {
	if !a.IsValid() || a.Addr().IsUnspecified() || n.cfg.Public.IsValid() {
		return
	}
	n.samples.add(by, a, time.Now())
	is := n.samples.verdict()
	if !is.IsValid() || is == n.known {
		return
	}
	if n.open && len(n.samples.votes) < minVotes && time.Since(n.openSince) < voteTime {
		return // a small network may have no more
	}
	was := n.known
	if n.open && is == netip.AddrPortFrom(was.Addr(), 0) {
		// They do not agree: some lie, or a router is new here, which will be seen.
		if soon := time.Now().Add(checkSoon); n.checkAt.After(soon) {
			n.checkAt = soon
		}
		return
	}
	n.known = is
	if was.IsValid() && was != is {
		now := time.Now()
		switch {
		case !n.open:
			n.checkAt = time.Time{}
		case is.Addr() != was.Addr():
			n.shut()
			n.checkAt = now.Add(spokenTime) // whom we spoke to may be let in by a router
		case is.Port() != n.server.LocalAddr().Port():
			n.shut()
			n.checkAt = now.Add(checkEvery) // the router has its way with ports
		}
		if f := n.changed; f != nil {
			n.spawnLocked(f)
		}
	}
}

// shut takes back that others reach the server socket. mu is held.
func (n *Node) shut() {
	n.open, n.persists, n.misses = false, false, 0
	n.samples = sampler{}
}

// Address returns where others see the node, port 0 if each sees another one, and whether
// anybody can send to it there.
func (n *Node) Address() (addr netip.AddrPort, open bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known, n.open
}

const (
	// checkEvery is how often it is looked whether others reach the server socket.
	checkEvery = time.Hour
	// checkSoon is when that is looked at again where too few answered.
	checkSoon = time.Minute
	// settleTime is how long a node was open before others may rely on it.
	settleTime = 20 * time.Minute
	tick       = 5 * time.Second
	// refreshEvery is how often a node that is persistent, or knows few others, looks for
	// those around it; an ephemeral one does so when it needs them.
	refreshEvery = 5 * time.Minute
)

// Bootstrap looks for the nodes around. It returns when this one is part of the network; then
// it stays that until Close. Whether others reach it, is found out soon after, but before if
// it is to be persistent. It fails with ctx, or if nobody answers.
func (n *Node) Bootstrap(ctx context.Context) error {
	if err := n.refresh(ctx); err != nil && !n.cfg.Public.IsValid() {
		return err
	}
	if n.cfg.Persistent {
		n.reachable(ctx)
	}
	if n.Persistent() { // so that others hear of it
		n.refresh(ctx) //nolint:errcheck // it is tried again
	}
	if !n.spawn(n.run) {
		return ErrClosed
	}
	return nil
}

// refresh looks for the nodes around.
func (n *Node) refresh(ctx context.Context) error {
	q := Query{Target: n.ID(), Internal: true, Command: packet.FindNode, Seeds: n.cfg.Nodes, Tries: 3}
	n.resolve(ctx, false)
	_, err := n.Query(ctx, q)
	if errors.Is(err, ErrTimeout) && n.resolve(ctx, true) { // they may have moved
		_, err = n.Query(ctx, q)
	}
	n.mu.Lock()
	n.refreshAt = time.Now().Add(refreshEvery)
	n.mu.Unlock()
	return err
}

// run looks after the node.
func (n *Node) run() {
	t := time.NewTicker(tick)
	defer t.Stop()
	if !n.cfg.Persistent {
		n.reachable(n.ctx)
	}
	for {
		select {
		case <-t.C:
		case <-n.ctx.Done():
			return
		}
		n.mu.Lock()
		now := time.Now()
		if n.open && !n.persists && !n.cfg.Never && (n.cfg.Persistent || now.Sub(n.openSince) > settleTime) {
			n.persist()
		}
		refresh := now.After(n.refreshAt) && (n.persists || n.table.n < rowSize)
		check := now.After(n.checkAt) && !n.cfg.Public.IsValid()
		n.mu.Unlock()
		if refresh {
			n.refresh(n.ctx) //nolint:errcheck // it is tried again
		}
		if check {
			n.reachable(n.ctx)
		}
	}
}

// persist begins to serve. mu is held.
func (n *Node) persist() {
	n.persists = true
	n.table.become(packet.NodeID(n.known))
	n.refreshAt = time.Time{}
}

// resolve finds the addresses of the nodes to begin with. Where an address is given beside a
// name, the name is asked for only if names is set. It tells whether names were asked for.
func (n *Node) resolve(ctx context.Context, names bool) (asked bool) {
	var out []netip.AddrPort
	for _, s := range n.cfg.Bootstrap {
		ip, name, ok := strings.Cut(s, "@")
		if !ok {
			ip, name = "", s
		}
		host, port, err := net.SplitHostPort(name)
		if err != nil {
			continue
		}
		if ip == "" && net.ParseIP(host) != nil {
			ip = host
		}
		if a, err := netip.ParseAddrPort(net.JoinHostPort(ip, port)); err == nil {
			if out = append(out, a); !names || ip == host {
				continue
			}
		}
		asked = true
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
		if err != nil {
			n.log.Debug("dht: no address", "name", name, "error", err)
			continue
		}
		for _, ip := range ips {
			if a, err := netip.ParseAddrPort(net.JoinHostPort(ip.Unmap().String(), port)); err == nil {
				out = append(out, a)
			}
		}
	}
	n.mu.Lock()
	n.first = out
	n.mu.Unlock()
	return asked
}

// recent is a set of hosts that forgets: those of spokenTime at least are in it.
type recent struct {
	young, old map[netip.Addr]bool
	turned     time.Time
}

const (
	// spokenTime is for how long a router may let those in whom we spoke to.
	spokenTime = 5 * time.Minute
	// maxSpoken bounds how many hosts are remembered: twice as many.
	maxSpoken = 2048
)

func (r *recent) add(a netip.Addr, now time.Time) {
	if r.young == nil || now.Sub(r.turned) > spokenTime || len(r.young) >= maxSpoken {
		if r.old = r.young; now.Sub(r.turned) > 2*spokenTime {
			r.old = nil
		}
		r.young, r.turned = map[netip.Addr]bool{}, now
	}
	r.young[a] = true
}

func (r *recent) has(a netip.Addr, now time.Time) bool {
	since := now.Sub(r.turned)
	return r.young[a] && since <= 2*spokenTime || r.old[a] && since <= spokenTime
}

// strangers returns nodes that answered once, to which the server socket sent nothing lately:
// no router lets them in there for our sake. Those that were asked the last time are left out,
// if there are others.
func (n *Node) strangers() (out []netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	var all []netip.AddrPort
	for _, e := range n.table.newest(n.table.n) {
		all = append(all, e.addr)
	}
	if len(all) == 0 {
		all = slices.Clone(n.first)
	}
	all = slices.DeleteFunc(all, func(a netip.AddrPort) bool { return n.spoken.has(a.Addr(), now) })
	others := slices.DeleteFunc(slices.Clone(all), func(a netip.AddrPort) bool { return slices.Contains(n.checked, a) })
	if len(others) >= checkWide {
		all = others
	}
	n.checked = all[:min(len(all), checkWide)]
	return n.checked
}

// checkWide is how many nodes are asked whether the server socket is reached.
const checkWide = 5

// reachable finds out whether others can send to the server socket, who were never sent
// anything from it: they are asked to answer there.
func (n *Node) reachable(ctx context.Context) {
	if n.cfg.Public.IsValid() {
		return
	}
	ask := n.strangers()
	port := n.server.LocalAddr().Port()
	var came atomic.Int32
	results := make(chan struct{}, len(ask))
	value := binary.LittleEndian.AppendUint16(nil, port)
	for _, to := range ask {
		n.spawn(func() {
			defer func() { results <- struct{}{} }()
			r, err := n.Ask(ctx, Ask{To: to, Internal: true, Command: packet.PingNAT, Value: value, Tries: 2, Socket: n.client})
			if err == nil && r.Socket == n.server {
				came.Add(1)
			}
		})
	}
	for range ask {
		select {
		case <-results:
		case <-n.ctx.Done():
			return
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	need := min(3, len(ask))
	a := n.known
	switch ok := len(ask) > 0 && int(came.Load()) >= need && a.IsValid() && a.Port() != 0; {
	case ok && !n.open:
		// The port that others see must be ours, which is known when requests leave the
		// server socket.
		n.open, n.openSince, n.misses = true, now, 0
		n.samples = sampler{}
		n.known = netip.AddrPortFrom(a.Addr(), port)
		n.checkAt = now.Add(checkEvery)
		if n.cfg.Persistent && !n.cfg.Never {
			n.persist()
		}
		if f := n.changed; f != nil {
			n.spawnLocked(f) // others should know
		}
	case ok:
		n.misses = 0
		n.checkAt = now.Add(checkEvery)
	case n.open:
		n.checkAt = now.Add(checkSoon)
		if len(ask) == 0 {
			break // nobody can tell
		}
		// Those that were asked may be gone, or lie: others are asked, too.
		if n.misses++; n.misses >= 2 {
			n.shut()
			n.checkAt = now.Add(spokenTime)
		}
	default:
		n.checkAt = now.Add(checkEvery)
		if len(ask) < 3 {
			n.checkAt = now.Add(checkSoon)
		}
	}
}

// seen notes that a node is there, and whether it answered. mu is held.
func (n *Node) seen(id packet.ID, a netip.AddrPort, told bool) {
	oldest, full := n.table.see(id, a, time.Now(), told)
	if full && n.persists && time.Since(oldest.seen) > refreshEvery {
		n.check(oldest, &entry{id: id, addr: a, told: told})
	} else if full && time.Since(oldest.seen) > 2*refreshEvery {
		n.table.drop(oldest.id) // nobody needs it: it is as good as gone
		n.table.see(id, a, time.Now(), told)
	}
}

// check asks a node whether it is there, and drops it, for another one perhaps, if not. It
// does not wait. mu is held.
func (n *Node) check(e entry, instead *entry) {
	select {
	case n.slots <- struct{}{}:
	default:
		return // there is enough to do
	}
	n.spawnLocked(func() {
		<-n.slots
		_, err := n.Ask(n.ctx, Ask{To: e.addr, Internal: true, Command: packet.Ping, Tries: 2})
		if err == ErrTimeout { //nolint:errorlint // it is never wrapped
			n.lost(e.id)
			if instead != nil {
				n.mu.Lock()
				n.table.see(instead.id, instead.addr, time.Now(), instead.told)
				n.mu.Unlock()
			}
		}
	})
}

// lost forgets a node that does not answer.
func (n *Node) lost(id packet.ID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.table.drop(id)
}
