package dht

import (
	"bytes"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/dht/cache"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
)

// Bounds of what is kept for others.
const (
	maxForwards  = 4096
	maxTopics    = 2048
	maxRecords   = 2048 // of MaxValue bytes each, of both kinds
	announceLife = 20 * time.Minute
	recordLife   = 48 * time.Hour
)

// MaxValue is the size of a record's value at most, in bytes: it must fit a datagram.
const MaxValue = 1000

// forward says where a key that was announced can be reached.
type forward struct {
	addr   netip.AddrPort // where its owner announced it from
	record []byte
}

// store is what a node keeps for others.
type store struct {
	mu        sync.Mutex
	forwards  cache.Cache[packet.ID, forward]        // guarded by mu, like all below
	topics    cache.Cache[packet.ID, []packet.Peer]  // the newest first
	mutable   cache.Cache[packet.ID, packet.Mutable] //
	immutable cache.Cache[packet.ID, []byte]         //
}

func (s *store) init() {
	s.forwards = cache.New[packet.ID, forward](maxForwards, announceLife)
	s.topics = cache.New[packet.ID, []packet.Peer](maxTopics, announceLife)
	s.mutable = cache.New[packet.ID, packet.Mutable](maxRecords, recordLife)
	s.immutable = cache.New[packet.ID, []byte](maxRecords, recordLife)
}

func (s *store) forward(target packet.ID) (forward, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forwards.Get(target)
}

// serve answers a request as a node that keeps records for others.
func (n *Node) serve(in *rpc.Incoming) {
	full := rpc.Answer{Closer: true, Token: true}
	s := &n.store
	switch in.Command {
	case packet.FindPeer:
		if f, ok := s.forward(in.Target); ok {
			full.Value = f.record
		}
		n.rpc.Answer(in, full)
	case packet.Lookup:
		full.Value = s.lookup(in.Target)
		n.rpc.Answer(in, full)
	case packet.Announce, packet.Unannounce:
		n.onAnnounce(in)
	case packet.MutableGet:
		n.onGet(in, full)
	case packet.ImmutableGet:
		s.mu.Lock()
		full.Value, _ = s.immutable.Get(in.Target)
		s.mu.Unlock()
		n.rpc.Answer(in, full)
	case packet.MutablePut:
		n.onPut(in)
	case packet.ImmutablePut:
		if len(in.Value) == 0 || len(in.Value) > MaxValue || packet.Target(in.Value) != in.Target || !n.rpc.MayWrite(in) || !n.allow(in.From.Addr()) {
			return
		}
		s.mu.Lock()
		s.immutable.Set(in.Target, bytes.Clone(in.Value))
		s.mu.Unlock()
		n.rpc.Answer(in, rpc.Answer{})
	default:
		n.rpc.Answer(in, rpc.Answer{Error: packet.UnknownCommand, Closer: true})
	}
}

// lookup returns who announced a topic, nil if nobody did.
func (s *store) lookup(target packet.ID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	peers, _ := s.topics.Get(target)
	f := packet.Found{Peers: peers}
	if x, ok := s.forwards.Get(target); ok {
		if p, _, err := packet.ParsePeer(x.record); err == nil {
			f.Peers = append([]packet.Peer{p}, peers...)
		}
	}
	if len(f.Peers) == 0 {
		return nil
	}
	f.Peers = f.Peers[:min(len(f.Peers), packet.MaxFound)]
	return f.Append(nil)
}

// onAnnounce keeps an announcement, or drops it. What is not in order is not answered.
func (n *Node) onAnnounce(in *rpc.Incoming) {
	a, err := packet.ParseAnnouncement(in.Value)
	if err != nil || !a.Signed() || !n.rpc.MayWrite(in) || !n.allow(in.From.Addr()) {
		return
	}
	off := in.Command == packet.Unannounce
	if !a.Verify(off, in.Target, n.rpc.ID(), in.Token) {
		return
	}
	p := a.Peer
	p.Relays = p.Relays[:min(len(p.Relays), packet.MaxRelays)]
	s := &n.store
	s.mu.Lock()
	if packet.Target(p.PublicKey[:]) == in.Target {
		if off {
			s.forwards.Drop(in.Target)
		} else {
			s.forwards.Set(in.Target, forward{in.From, p.Append(nil)})
		}
	} else {
		old, _ := s.topics.Get(in.Target)
		var peers []packet.Peer
		if !off {
			peers = append(peers, p)
		}
		for _, x := range old {
			if x.PublicKey != p.PublicKey && len(peers) < packet.MaxFound {
				peers = append(peers, x)
			}
		}
		s.topics.Set(in.Target, peers)
	}
	s.mu.Unlock()
	n.rpc.Answer(in, rpc.Answer{})
}

// onGet answers with the value of a key, if it is not older than is wanted.
func (n *Node) onGet(in *rpc.Incoming, full rpc.Answer) {
	least, err := parseSeq(in.Value)
	if err != nil {
		return
	}
	s := &n.store
	s.mu.Lock()
	m, ok := s.mutable.Get(in.Target)
	s.mu.Unlock()
	if ok && m.Seq >= least {
		full.Value = m.AppendGot(nil)
	}
	n.rpc.Answer(in, full)
}

// onPut keeps the value of a key, if it is newer than what is there.
func (n *Node) onPut(in *rpc.Incoming) {
	m, err := packet.ParsePut(in.Value)
	if err != nil || len(m.Value) > MaxValue || packet.Target(m.PublicKey[:]) != in.Target || !n.rpc.MayWrite(in) || !n.allow(in.From.Addr()) || !m.Verify() {
		return
	}
	m.Value = bytes.Clone(m.Value)
	s := &n.store
	s.mu.Lock()
	answer := rpc.Answer{}
	switch old, ok := s.mutable.Get(in.Target); {
	case ok && m.Seq < old.Seq:
		answer.Error = packet.SeqTooLow
	case ok && m.Seq == old.Seq && !bytes.Equal(m.Value, old.Value):
		answer.Error = packet.SeqReused
	default:
		s.mutable.Set(in.Target, m)
	}
	s.mu.Unlock()
	n.rpc.Answer(in, answer)
}
