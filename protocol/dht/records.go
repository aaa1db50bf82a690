package dht

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"

	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
)

// Errors of records.
var (
	// ErrNotFound says that nobody keeps what was asked for.
	ErrNotFound = errors.New("dht: not found")
	// ErrTooLarge says that a value does not fit a datagram.
	ErrTooLarge = fmt.Errorf("dht: a record holds %d bytes at most", MaxValue)
	// ErrOlder says that the network has a newer record.
	ErrOlder = errors.New("dht: there is a newer record")
)

func parseSeq(b []byte) (uint64, error) {
	n, _, err := compact.ParseUint(b)
	return n, err
}

// Record is a signed value that its owner may replace.
type Record struct {
	Seq   uint64
	Value []byte
}

// Mutable returns the newest record of a key that the network has, which is as new as least,
// at least. It asks all nodes around, as some may have an older one. The error may be
// [ErrNotFound].
func (n *Node) Mutable(ctx context.Context, key [32]byte, least uint64) (Record, error) {
	var best *packet.Mutable
	_, err := n.rpc.Query(ctx, rpc.Query{
		Target: packet.Target(key[:]), Command: packet.MutableGet, Value: compact.AppendUint(nil, least),
		Each: func(r *rpc.Reply) bool {
			m, err := packet.ParseGot(r.Value)
			if m.PublicKey = key; err == nil && len(r.Value) > 0 && m.Seq >= least && (best == nil || m.Seq > best.Seq) && m.Verify() {
				best = &m
			}
			return true
		},
	})
	if best != nil {
		return Record{best.Seq, bytes.Clone(best.Value)}, nil
	}
	if err == nil {
		err = ErrNotFound
	}
	return Record{}, err
}

// PutMutable gives the network a record of a key. It returns how many nodes keep it.
func (n *Node) PutMutable(ctx context.Context, key ed25519.PrivateKey, r Record) (int, error) {
	if len(r.Value) > MaxValue {
		return 0, ErrTooLarge
	}
	m := packet.Mutable{Seq: r.Seq, Value: r.Value}
	m.Sign(key)
	value := m.AppendPut(nil)
	return n.write(ctx, packet.Target(m.PublicKey[:]), packet.MutableGet, compact.AppendUint(nil, 0), packet.MutablePut, func(*rpc.Reply) []byte { return value }, 0)
}

// Immutable returns the value of which target is the hash. The error may be [ErrNotFound].
func (n *Node) Immutable(ctx context.Context, target [32]byte) ([]byte, error) {
	var value []byte
	_, err := n.rpc.Query(ctx, rpc.Query{Target: target, Command: packet.ImmutableGet, Each: func(r *rpc.Reply) bool {
		if len(r.Value) > 0 && packet.Target(r.Value) == target {
			value = r.Value
		}
		return value == nil
	}})
	if value != nil {
		return value, nil
	}
	if err == nil {
		err = ErrNotFound
	}
	return nil, err
}

// PutImmutable gives the network a value. It returns by what it is found, and how many
// nodes keep it.
func (n *Node) PutImmutable(ctx context.Context, value []byte) (target [32]byte, kept int, err error) {
	if len(value) > MaxValue {
		return target, 0, ErrTooLarge
	}
	target = packet.Target(value)
	kept, err = n.write(ctx, target, packet.ImmutableGet, nil, packet.ImmutablePut, func(*rpc.Reply) []byte { return value }, 0)
	return target, kept, err
}

// write looks for the nodes that are closest to a target and sends each a value, with the
// token that it gave. It returns how many took it; it fails if none did.
func (n *Node) write(ctx context.Context, target packet.ID, find uint64, findValue []byte, command uint64, value func(*rpc.Reply) []byte, most int) (int, error) {
	nodes, err := n.rpc.Query(ctx, rpc.Query{Target: target, Command: find, Value: findValue})
	if err != nil {
		return 0, err
	}
	if most > 0 {
		nodes = nodes[:min(most, len(nodes))]
	}
	replies := n.writeTo(ctx, nodes, target, command, value)
	kept, older := 0, false
	for _, r := range replies {
		switch {
		case r == nil:
		case r.Error == 0:
			kept++
		case r.Error == packet.SeqTooLow || r.Error == packet.SeqReused:
			older = true
		}
	}
	switch {
	case older:
		return kept, ErrOlder
	case kept == 0:
		return 0, fmt.Errorf("%w: nobody keeps it", rpc.ErrTimeout)
	}
	return kept, nil
}

// writeTo sends each of some nodes a value, and returns the answer of each, nil if there was
// none.
func (n *Node) writeTo(ctx context.Context, nodes []*rpc.Reply, target packet.ID, command uint64, value func(*rpc.Reply) []byte) []*rpc.Reply {
	type answer struct {
		i int
		r *rpc.Reply
	}
	results := make(chan answer, len(nodes))
	asked := 0
	for i, to := range nodes {
		if to.Flags&packet.HasToken == 0 {
			continue
		}
		if n.spawn(func() {
			r, err := n.rpc.Ask(ctx, rpc.Ask{To: to.From, Command: command, Target: &target, Token: &to.Token, Value: value(to)})
			if err != nil {
				r = nil
			}
			results <- answer{i, r}
		}) {
			asked++
		}
	}
	out := make([]*rpc.Reply, len(nodes))
	for range asked {
		a := <-results
		out[a.i] = a.r
	}
	return out
}

// Lookup calls f with each peer that announced a topic, as they are found, each once; false
// ends the search.
func (n *Node) Lookup(ctx context.Context, topic [32]byte, f func(packet.Peer) bool) error {
	seen := map[[32]byte]bool{}
	on := true
	_, err := n.rpc.Query(ctx, rpc.Query{Target: topic, Command: packet.Lookup, Each: func(r *rpc.Reply) bool {
		if len(r.Value) == 0 {
			return true
		}
		found, err := packet.ParseFound(r.Value)
		if err != nil {
			return true
		}
		for _, p := range found.Peers {
			if on && !seen[p.PublicKey] && len(seen) < maxSeen {
				seen[p.PublicKey] = true
				on = f(p)
			}
		}
		return on
	}})
	return err
}

// maxSeen is how many peers of a topic are told.
const maxSeen = 1000

// AnnounceTopic says that a key, which listens, has to do with a topic. It holds for some
// twenty minutes. It returns how many nodes keep it.
func (n *Node) AnnounceTopic(ctx context.Context, topic [32]byte, key ed25519.PrivateKey) (int, error) {
	p := packet.Peer{PublicKey: [32]byte(key[ed25519.SeedSize:])}
	if l := n.listener(packet.Target(p.PublicKey[:])); l != nil {
		p.Relays = l.relayAddrs()
	}
	return n.write(ctx, topic, packet.Lookup, nil, packet.Announce, func(r *rpc.Reply) []byte {
		a := packet.Announcement{Peer: p}
		a.Sign(key, false, topic, r.Node, r.Token)
		return a.Append(nil)
	}, 0)
}

// UnannounceTopic takes that back.
func (n *Node) UnannounceTopic(ctx context.Context, topic [32]byte, key ed25519.PrivateKey) error {
	p := packet.Peer{PublicKey: [32]byte(key[ed25519.SeedSize:])}
	_, err := n.write(ctx, topic, packet.Lookup, nil, packet.Unannounce, func(r *rpc.Reply) []byte {
		a := packet.Announcement{Peer: p}
		a.Sign(key, true, topic, r.Node, r.Token)
		return a.Append(nil)
	}, 0)
	return err
}
