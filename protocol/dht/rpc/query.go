package rpc

import (
	"context"
	"net/netip"
	"slices"

	"dazaar-edge/protocol/dht/packet"
)

// Query asks the nodes on the way to those that are closest to a target.
type Query struct {
	Target   packet.ID
	Internal bool
	Command  uint64
	Value    []byte
	HasValue bool
	// Seeds are asked besides the closest that are known.
	Seeds []netip.AddrPort
	// Each is called with each answer without an error, one at a time; false ends the query.
	Each  func(*Reply) bool
	Tries int // 0 is 6
	// Wide is how many are asked at once; 0 is 10.
	Wide int
}

const (
	queryTries = 6
	queryWide  = 10
	// maxVisits is how many nodes are asked in one query.
	maxVisits = 200
	// hearsayTries is how often a node is asked that another one named.
	hearsayTries = 2
)

// candidate is a node that a query has heard of.
type candidate struct {
	id   packet.ID
	addr netip.AddrPort
	by   netip.AddrPort // who named it, if another node did
}

// visited is what became of a question.
type visited struct {
	reply *Reply
	err   error
	slow  bool // it is still open
	of    candidate
}

// Query returns the answers of the closest nodes, the closest first. It fails only with ctx,
// or if nobody at all answered.
func (n *Node) Query(ctx context.Context, q Query) ([]*Reply, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	if q.Wide == 0 {
		q.Wide = queryWide
	}
	if q.Tries == 0 {
		q.Tries = queryTries
	}
	w := walk{n: n, q: q, heard: map[netip.AddrPort]bool{}}
	n.mu.Lock()
	known := n.table.closest(q.Target, rowSize)
	first := n.first
	self := n.known
	n.mu.Unlock()
	w.heard[self] = true
	for _, e := range known {
		w.hear(e.addr, netip.AddrPort{})
	}
	for _, a := range q.Seeds {
		w.hear(a, netip.AddrPort{})
	}
	if len(known) < rowSize {
		for _, a := range first {
			w.hear(a, netip.AddrPort{})
		}
	}
	done := make(chan visited, 2*maxVisits) // nobody waits with it
	open, slow := 0, map[netip.AddrPort]bool{}
	for {
		for open-len(slow) < q.Wide {
			c, ok := w.next()
			if !ok {
				break
			}
			open++
			tries := q.Tries
			if c.by.IsValid() {
				tries = min(tries, hearsayTries)
			}
			n.spawn(func() {
				r, err := n.Ask(inner, Ask{
					To: c.addr, Internal: q.Internal, Command: q.Command, Target: &q.Target, Value: q.Value, HasValue: q.HasValue, Tries: tries,
					Slow: func() { done <- visited{of: c, slow: true} },
				})
				done <- visited{reply: r, err: err, of: c}
			})
		}
		if open == 0 || open == len(slow) && len(w.best) == rowSize {
			break
		}
		select {
		case v := <-done:
			if v.slow {
				slow[v.of.addr] = true
				continue
			}
			open--
			delete(slow, v.of.addr)
			if v.err != nil {
				if v.err == ErrTimeout { //nolint:errorlint // it is never wrapped
					n.lost(v.of.id)
					n.tell(v.of)
				}
				continue
			}
			w.take(v.reply)
			if v.reply.Error == 0 && q.Each != nil && !q.Each(v.reply) {
				return w.best, nil
			}
		case <-ctx.Done():
			return w.best, context.Cause(ctx)
		case <-n.ctx.Done():
			return nil, ErrClosed
		}
	}
	if !w.any {
		return nil, ErrTimeout
	}
	return w.best, nil
}

// tell tells who named a node that it does not answer (section 1.2); that one looks for itself.
func (n *Node) tell(c candidate) {
	if !c.by.IsValid() {
		return
	}
	n.spawn(func() {
		n.Ask(n.ctx, Ask{To: c.by, Internal: true, Command: packet.DownHint, Value: packet.AppendAddr(nil, c.addr), HasValue: true, Tries: 1}) //nolint:errcheck // nothing hangs on it
	})
}

// walk is a query under way.
type walk struct {
	n      *Node
	q      Query
	heard  map[netip.AddrPort]bool
	queue  []candidate // the closest first
	best   []*Reply
	visits int
	any    bool
}

// strange are nodes that are known to do harm (section 1.5).
var strange = func() map[netip.AddrPort]bool {
	m := map[netip.AddrPort]bool{}
	for _, s := range []string{"134.209.28.98:49738", "167.99.142.185:49738", "35.233.47.252:9400"} {
		m[netip.MustParseAddrPort(s)] = true
	}
	return m
}()

var strangeHost = netip.MustParseAddr("150.136.142.116")

// hear notes a node, and tells whether it is worth asking.
func (w *walk) hear(a, by netip.AddrPort) bool {
	if w.heard[a] || a.Port() == 0 || !a.Addr().Is4() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() || strange[a] || a.Addr() == strangeHost {
		return true
	}
	c := candidate{packet.NodeID(a), a, by}
	if !w.near(c.id) {
		return false
	}
	w.heard[a] = true
	i, _ := slices.BinarySearchFunc(w.queue, c, func(a, b candidate) int { return closer(w.q.Target, a.id, b.id) })
	w.queue = slices.Insert(w.queue, i, c)
	return true
}

// near tells whether a node is closer than the last of the best.
func (w *walk) near(id packet.ID) bool {
	return len(w.best) < rowSize || closer(w.q.Target, id, w.best[rowSize-1].Node) < 0
}

func (w *walk) next() (candidate, bool) {
	if len(w.queue) == 0 || w.visits >= maxVisits {
		return candidate{}, false
	}
	c := w.queue[0]
	if !w.near(c.id) {
		w.queue = nil
		return candidate{}, false
	}
	w.queue = w.queue[1:]
	w.visits++
	return c, true
}

// take takes an answer.
func (w *walk) take(r *Reply) {
	w.any = true
	if r.Error == 0 && r.Valid() && w.near(r.Node) {
		i, _ := slices.BinarySearchFunc(w.best, r, func(a, b *Reply) int { return closer(w.q.Target, a.Node, b.Node) })
		w.best = slices.Insert(w.best, i, r)
		w.best = w.best[:min(len(w.best), rowSize)]
	}
	for _, a := range r.Closer[:min(len(r.Closer), rowSize)] {
		if !w.hear(a, r.From) {
			break
		}
	}
}
