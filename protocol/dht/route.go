package dht

import (
	"net/netip"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/udx"
)

// listener returns who listens for a target.
func (n *Node) listener(target packet.ID) *Listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.listeners[target]
}

// complete tells whether a request has a target and a value.
func complete(in *rpc.Incoming) bool {
	return in.Flags&(packet.HasTo|packet.HasValue) == packet.HasTo|packet.HasValue
}

// onHandshake takes a handshake: for one who listens here, or to be passed on.
func (n *Node) onHandshake(in *rpc.Incoming) {
	h, err := packet.ParseHandshake(in.Value)
	if err != nil || !complete(in) {
		return
	}
	l := n.listener(in.Target)
	switch h.Mode {
	case packet.FromClient:
		if l != nil {
			l.onHandshake(in, &h, in.From)
			return
		}
		h.Mode, h.Peer = packet.FromRelay, in.From
		n.pass(in, netip.AddrPort{}, h.Append(nil))
	case packet.FromRelay, packet.FromSecondRelay:
		if l != nil && h.Peer.IsValid() {
			l.onHandshake(in, &h, h.Peer)
		}
	case packet.FromServer:
		to := h.Peer
		h.Mode, h.Peer, h.Relay = packet.Reply, in.From, netip.AddrPort{}
		n.passBack(in, to, h.Append(nil))
	case packet.Reply: // comes as a response
	}
}

// onHolepunch takes a round of punching: for one who listens here, or to be passed on.
func (n *Node) onHolepunch(in *rpc.Incoming) {
	h, err := packet.ParseHolepunch(in.Value)
	if err != nil || !complete(in) {
		return
	}
	l := n.listener(in.Target)
	switch h.Mode {
	case packet.FromClient:
		if l != nil {
			l.onRound(in, &h, in.From)
			return
		}
		to := h.Peer // where the server was when it answered the handshake
		h.Mode, h.Peer = packet.FromRelay, in.From
		n.pass(in, to, h.Append(nil))
	case packet.FromRelay:
		if l != nil && h.Peer.IsValid() {
			l.onRound(in, &h, h.Peer)
		}
	case packet.FromServer:
		to := h.Peer
		h.Mode, h.Peer = packet.Reply, in.From
		n.passBack(in, to, h.Append(nil))
	case packet.FromSecondRelay, packet.Reply:
	}
}

// pass sends a request on to who announced its target here: to an address if there is one,
// or else to that from which it was announced.
func (n *Node) pass(in *rpc.Incoming, to netip.AddrPort, value []byte) {
	f, ok := n.store.forward(in.Target)
	if !ok || !n.rpc.Persistent() {
		n.rpc.Answer(in, rpc.Answer{Closer: true})
		return
	}
	if !to.IsValid() {
		to = f.addr
	}
	n.send(n.rpc.ServerSocket(), in, to, value)
}

// send sends a request on, under the same number.
func (n *Node) send(s *udx.Socket, in *rpc.Incoming, to netip.AddrPort, value []byte) {
	n.rpc.Send(s, &packet.Request{
		Flags: packet.HasTo | packet.HasValue, TID: in.TID, To: to, Command: in.Command, Target: in.Target, Value: value,
	})
}

// passBack sends what a server answered to who asked. Only for those who are announced here:
// nobody else has something to be passed on.
func (n *Node) passBack(in *rpc.Incoming, to netip.AddrPort, value []byte) {
	if _, ok := n.store.forward(in.Target); !ok || !to.IsValid() || to.Port() == 0 || !n.rpc.Persistent() {
		return
	}
	n.rpc.Answer(&rpc.Incoming{Request: packet.Request{TID: in.TID}, Socket: n.rpc.ServerSocket(), From: to}, rpc.Answer{Value: value})
}
