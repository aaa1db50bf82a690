package rpc

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/udx"
)

// ErrTimeout says that a node did not answer.
var ErrTimeout = errors.New("dht: no answer")

const (
	callTimeout = time.Second
	callTries   = 4
	// maxCalls is how many requests are on their way at once.
	maxCalls = 128
)

// Ask is a request to one node.
type Ask struct {
	To       netip.AddrPort
	Internal bool
	Command  uint64
	Target   *packet.ID
	Token    *[32]byte
	Value    []byte
	HasValue bool // Value is there even if it is empty

	Socket  *udx.Socket // nil is [Node.Socket]
	Tries   int         // 0 is 4
	Timeout time.Duration
	TID     func(uint16) // told before it is sent
	Slow    func()       // called when the first try was in vain
}

// Reply is the answer to a request. It aliases nothing.
type Reply struct {
	packet.Response
	From   netip.AddrPort
	Node   packet.ID // of who answers, zero if it does not say
	Socket *udx.Socket
	RTT    time.Duration
}

// Valid tells whether the answer says by whom it is, and no lie.
func (r *Reply) Valid() bool { return r.Node != packet.ID{} }

type callKey struct {
	tid uint16
	to  netip.AddrPort
}

type call struct {
	answer chan *Reply // room for one
	sent   time.Time
}

// Ask sends a request, again if need be, and returns the answer, which may be an error of
// the other node.
func (n *Node) Ask(ctx context.Context, a Ask) (*Reply, error) {
	select {
	case n.slots <- struct{}{}:
		defer func() { <-n.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.ctx.Done():
		return nil, ErrClosed
	}
	q := packet.Request{To: a.To, Command: a.Command, Value: a.Value}
	if a.Internal {
		q.Flags |= packet.Internal
	}
	if a.Target != nil {
		q.Flags |= packet.HasTo
		q.Target = *a.Target
	}
	if a.Token != nil {
		q.Flags |= packet.HasToken
		q.Token = *a.Token
	}
	if a.Value != nil || a.HasValue {
		q.Flags |= packet.HasValue
	}
	tries, timeout := a.Tries, a.Timeout
	if tries == 0 {
		tries = callTries
	}
	if timeout == 0 {
		timeout = callTimeout
	}
	c := &call{answer: make(chan *Reply, 1)}
	n.mu.Lock()
	if a.Socket == nil {
		a.Socket = n.socket()
	}
	if n.persists && a.Socket == n.server {
		q.Flags |= packet.HasID
		q.ID = n.table.id
	}
	key := callKey{to: a.To}
	for {
		n.tid++
		if key.tid = n.tid; n.calls[key] == nil {
			break
		}
	}
	q.TID = key.tid
	n.calls[key] = c
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.calls, key)
		n.mu.Unlock()
	}()
	if a.TID != nil {
		a.TID(key.tid)
	}
	b := q.Append(nil)
	t := time.NewTimer(timeout)
	defer t.Stop()
	for try := range tries {
		n.mu.Lock()
		c.sent = time.Now()
		n.mu.Unlock()
		n.send(a.Socket, b, a.To, 0)
		t.Reset(timeout)
		select {
		case r := <-c.answer:
			return r, nil
		case <-t.C:
			if try == 0 && a.Slow != nil {
				a.Slow()
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-n.ctx.Done():
			return nil, ErrClosed
		}
	}
	return nil, ErrTimeout
}

// answered takes a response.
func (n *Node) answered(s *udx.Socket, r *packet.Response, from netip.AddrPort) {
	n.mu.Lock()
	c := n.calls[callKey{r.TID, from}]
	if c == nil {
		n.mu.Unlock()
		return
	}
	delete(n.calls, callKey{r.TID, from}) // it answers once
	rep := &Reply{Response: *r, From: from, Socket: s, RTT: time.Since(c.sent)}
	rep.Value = bytes.Clone(r.Value)
	if r.Flags&packet.HasID != 0 && r.ID == packet.NodeID(from) {
		rep.Node = r.ID
		n.seen(r.ID, from, true)
	}
	if s == n.socket() {
		n.sample(from.Addr(), rep.To)
	}
	n.mu.Unlock()
	select {
	case c.answer <- rep:
	default: // the answer to another try
	}
}

// Incoming is a request of another node.
type Incoming struct {
	packet.Request
	Socket *udx.Socket
	From   netip.AddrPort
}

// Touch sends a byte that other nodes ignore: it keeps a router's way to one of them open.
func (n *Node) Touch(to netip.AddrPort) { n.send(n.Socket(), []byte{0}, to, 0) }

// Send sends a request to which no answer is expected: one that is passed on.
func (n *Node) Send(s *udx.Socket, r *packet.Request) { n.send(s, r.Append(nil), r.To, 0) }
