package replicate

import (
	"fmt"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// maxNodes bounds how many computed nodes of the tail are remembered.
const maxNodes = 1024

// tail looks up nodes of the log that a buyer can compute: from the blocks of
// its tail, the roots before it, and the trusted nodes behind the cursor. It
// implements merkle.NodeReader.
type tail struct {
	b     *Buyer
	from  uint64 // first block of the tail
	to    uint64 // the cursor
	known map[uint64]merkle.Node
}

// newTail returns a reader of the buyer's tail as it is now. mu is held.
func (b *Buyer) newTail() *tail {
	t := &tail{b: b, known: map[uint64]merkle.Node{}}
	if b.begun {
		t.from, t.to = b.walk.Next(), b.walk.Next()
	}
	lists := [][]merkle.Node{b.k.Roots, b.walk.Right(nil)}
	if p := b.k.Parts; len(p) > 0 && b.cfg.Store != nil && !b.gap {
		t.from = p[0].First
		lists = append(lists, p[0].Roots)
	} else if left, ok := b.walk.Left(nil); ok {
		lists = append(lists, left)
	}
	for _, l := range lists {
		for _, n := range l {
			t.known[n.Index] = n
		}
	}
	return t
}

// Node implements merkle.NodeReader.
func (t *tail) Node(x uint64) (merkle.Node, error) {
	if n, ok := t.known[x]; ok {
		return n, nil
	}
	first, end := merkle.Span(x)
	if end <= t.from || first >= t.to || merkle.Level(x) == 0 && first < t.from {
		return merkle.Node{}, fmt.Errorf("%w: node %d", merkle.ErrMissing, x)
	}
	var n merkle.Node
	if merkle.Level(x) == 0 {
		data, err := t.b.cfg.Store.Block(first)
		if err != nil {
			return n, fmt.Errorf("%w: block %d: %w", merkle.ErrMissing, first, err)
		}
		n = merkle.Leaf(first, data)
	} else {
		l, r := merkle.Children(x)
		a, err := t.Node(l)
		if err != nil {
			return n, err
		}
		c, err := t.Node(r)
		if err != nil {
			return n, err
		}
		n = merkle.Join(a, c)
	}
	if len(t.known) < maxNodes {
		t.known[x] = n
	}
	return n, nil
}

// serve answers what the seller asks for: the head, and blocks of the tail.
func (u *upstream) serve(b *mux.Batch) {
	if u.requests.n == 0 {
		return
	}
	r, _, err := message.ParseRequest(u.requests.front())
	u.requests.pop()
	if u.requests.n > 0 {
		u.ch.Wake() // one at a time: it may take some hashing, and others wait for the lock
	}
	if err != nil || r.ID == 0 {
		return
	}
	d, reason := u.answer(u.b.newTail(), &r)
	if d == nil {
		b.End(message.NoData{Request: r.ID, Reason: reason}.Append(b.Begin(message.TypeNoData, 12)), 0)
		return
	}
	if d.Block != nil {
		u.served += len(d.Block.Value)
	}
	b.End(d.Append(b.Begin(message.TypeData, 256)), 0)
}

// maxServed bounds what is returned to a seller on one connection: the tail, and
// what of it is asked for twice.
const maxServed = 4 * tailSize

// answer builds what a request asks for, or says why it is refused.
func (u *upstream) answer(t *tail, r *message.Request) (*message.Data, uint64) {
	k := &u.b.k
	d := &message.Data{Request: r.ID, Fork: r.Fork}
	if r.Manifest {
		d.Manifest = k.Manifest
	}
	if r.Fork != k.Head.Fork || k.Head.Length == 0 || k.Foreign || r.Block != nil && (r.Block.Index < t.from || r.Block.Index >= t.to || u.served > maxServed) {
		if d.Manifest != nil {
			return d, 0
		}
		return nil, message.ReasonNotAvailable
	}
	p, err := merkle.Prove(t, k.Head.Length, r.Request)
	if err == nil && p.Block != nil {
		p.Block.Value, err = u.b.cfg.Store.Block(p.Block.Index)
	}
	if err != nil {
		u.b.log.Debug("replicate: cannot answer the seller", "error", err)
		return nil, message.ReasonNotAvailable
	}
	if p.Upgrade != nil {
		p.Upgrade.Signature = k.Signature
	}
	d.Proof = p
	return d, 0
}
