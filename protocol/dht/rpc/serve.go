package rpc

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/protocol/dht/packet"
)

// maxDelay is how long a ping may ask its answer to wait, and maxDelayed how many may wait.
const (
	maxDelay   = 10 * time.Second
	maxDelayed = 16
)

// asked answers a request, or has [Config.Handle] do so.
func (n *Node) asked(in *Incoming) {
	if in.Flags&packet.HasID != 0 && in.ID == packet.NodeID(in.From) {
		n.mu.Lock()
		n.seen(in.ID, in.From, false)
		n.mu.Unlock()
	}
	if in.Flags&packet.Internal == 0 {
		if n.cfg.Handle != nil {
			n.cfg.Handle(in)
		}
		return
	}
	switch in.Command {
	case packet.Ping:
		n.Answer(in, Answer{})
	case packet.PingNAT:
		if len(in.Value) == 2 && binary.LittleEndian.Uint16(in.Value) != 0 {
			to := netip.AddrPortFrom(in.From.Addr(), binary.LittleEndian.Uint16(in.Value))
			n.answer(in, Answer{}, to)
		}
	case packet.FindNode:
		if in.Flags&packet.HasTo != 0 {
			n.Answer(in, Answer{Closer: true})
		}
	case packet.DownHint:
		if a, _, err := packet.ParseAddr(in.Value); err == nil {
			n.hint(a)
		}
		n.Answer(in, Answer{})
	case packet.DelayedPing:
		if len(in.Value) == 4 {
			n.later(in)
		}
	default:
		n.Answer(in, Answer{Error: packet.UnknownCommand, Closer: in.Flags&packet.HasTo != 0})
	}
}

// later answers a ping when it says. Few at a time: each costs memory for up to ten
// seconds.
func (n *Node) later(in *Incoming) {
	d := time.Duration(binary.LittleEndian.Uint32(in.Value)) * time.Millisecond
	if d > maxDelay || !n.Persistent() {
		return
	}
	select {
	case n.delayed <- struct{}{}:
	default:
		return
	}
	in = &Incoming{Request: packet.Request{Flags: packet.Internal, TID: in.TID, Command: in.Command}, Socket: in.Socket, From: in.From}
	n.spawn(func() {
		defer func() { <-n.delayed }()
		select {
		case <-time.After(d):
			n.Answer(in, Answer{})
		case <-n.ctx.Done():
		}
	})
}

// hint looks whether a node that is said to be gone is.
func (n *Node) hint(a netip.AddrPort) {
	id := packet.NodeID(a)
	n.mu.Lock()
	defer n.mu.Unlock()
	row := n.table.rows[n.table.row(id)]
	known := false
	for _, e := range row {
		known = known || e.id == id && time.Since(e.seen) > time.Minute
	}
	if known {
		n.check(entry{id: id, addr: a}, nil)
	}
}

// Answer says what to answer.
type Answer struct {
	Error    uint64
	Closer   bool // name the nodes that are closest to the target
	Token    bool // allow a write
	Value    []byte
	HasValue bool
}

// Answer answers a request.
func (n *Node) Answer(in *Incoming, a Answer) { n.answer(in, a, in.From) }

func (n *Node) answer(in *Incoming, a Answer, to netip.AddrPort) {
	r := packet.Response{TID: in.TID, To: to, Error: a.Error, Value: a.Value}
	n.mu.Lock()
	if n.persists && in.Socket == n.server {
		r.Flags |= packet.HasID
		r.ID = n.table.id
	}
	if a.Closer {
		for _, e := range n.table.closest(in.Target, rowSize) {
			r.Closer = append(r.Closer, e.addr)
		}
		if len(r.Closer) > 0 {
			r.Flags |= packet.HasNodes
		}
	}
	n.mu.Unlock()
	if a.Token {
		r.Flags |= packet.HasToken
		r.Token = n.token(to.Addr(), 0)
	}
	if a.Error != 0 {
		r.Flags |= packet.HasError
	}
	if a.Value != nil || a.HasValue {
		r.Flags |= packet.HasValue
	}
	b := r.Append(nil)
	if in.Flags&packet.HasToken == 0 && !n.mayAnswer(to.Addr(), len(b)) {
		// Much is answered there already, which perhaps nobody asked for.
		r.Flags &^= packet.HasNodes | packet.HasValue
		r.Closer, r.Value = nil, nil
		b = r.Append(nil)
	}
	n.send(in.Socket, b, to, 0)
}

// How many bytes a network is answered, in a second and at once, that did not show that it
// receives them: a request may come from somewhere else than it says.
const (
	answerRate  = 32 << 10
	answerBurst = 256 << 10
)

// mayAnswer tells whether so much may be answered to a host.
func (n *Node) mayAnswer(host netip.Addr, size int) bool {
	p, err := host.Prefix(24)
	if err != nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	return n.answers.Get(p, now).TakeN(now, float64(size))
}

// tokenTime is how long a token is given out. It is good for as long again.
const tokenTime = 7500 * time.Millisecond

// token returns what who receives at an address may write with; ago counts how many times
// it has changed since.
func (n *Node) token(host netip.Addr, ago int64) (t [32]byte) {
	h, err := blake2b.New256(n.secret[:])
	if err != nil {
		panic(err) // 32 bytes are fine
	}
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(int64(time.Since(n.begun)/tokenTime)-ago))
	h.Write(b[:])
	h.Write(host.AsSlice())
	h.Sum(t[:0])
	return t
}

// MayWrite tells whether a request has a token that is good. If it has one that is not, it
// is answered.
func (n *Node) MayWrite(in *Incoming) bool {
	if in.Flags&packet.HasToken == 0 {
		return false
	}
	host := in.From.Addr()
	if in.Token == n.token(host, 0) || in.Token == n.token(host, 1) {
		return true
	}
	n.Answer(in, Answer{Error: packet.InvalidToken, Token: true, Closer: in.Flags&packet.HasTo != 0})
	return false
}

// ID returns the id of the node, which others know if it is persistent.
func (n *Node) ID() packet.ID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.id
}

// Persistent tells whether the node serves others.
func (n *Node) Persistent() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.persists
}
