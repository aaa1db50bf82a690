// Package replicate is Hypercore 11's replication channel: a feed goes from the
// one who sells it to the one who bought it, each block with a proof of its place
// under a signed head.
//
// # Wire
//
// One Protomux channel a feed, protocol hypercore/alpha, id the discovery key.
// It opens with uint flags (1: seeks understood) and a capability: BLAKE2b-256,
// keyed with the connection's handshake hash, over the sender's role and the
// feed key. The messages, by type:
//
//	0 sync      uint flags (1 canUpgrade, 2 uploading, 4 downloading, 8 hasManifest,
//	            16 allowPush), fork, length, remote length
//	1 request   uint flags (1 block, 2 hash, 4 seek, 8 upgrade, 16 manifest,
//	            32 priority), id, fork, [index, nodes], [tree index, nodes],
//	            [bytes, padding], [start, length], [priority]
//	2 cancel    uint request
//	3 data      uint flags (as request), request, fork, [index, value, nodes],
//	            [tree index, nodes], [bytes, nodes], [start, length, nodes, nodes,
//	            signature], [manifest]
//	4 noData    uint request, flags (1 reason), [reason]
//	5 want      uint start, length, [flags (1 any)]     6 unwant likewise
//	7 bitfield  uint start, words
//	8 range     uint flags (1 drop, 2 one block), start, [length]
//	9 extension string name, bytes
//
// # Selling
//
// A [Seller] serves one feed to one peer: it tells where the log stands, answers
// what it is asked, can pause, resume and be revoked, and never sends a block
// that its [Meter] did not pass. Blocks are read, proved and framed only when the
// transport can take them.
//
// # Buying
//
// A [Buyer] follows one feed: it asks ahead, verifies each answer, delivers
// blocks in order, and follows forks. What it must not forget is in its [Store].
//
// Source: specs/hypercore.md, sections 9 to 15.
package replicate

import (
	"fmt"
	"log/slog"
	"slices"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// Session is the connection that a channel runs on.
type Session struct {
	Mux *mux.Mux
	// HandshakeHash and Initiator are those of the secret stream.
	HandshakeHash [64]byte
	Initiator     bool
}

// opening returns what a channel of the feed with this key is opened with.
func (s Session) opening(key merkle.Hash) []byte {
	return message.Handshake{Seeks: true, Capability: message.Capability(key, s.HandshakeHash, s.Initiator)}.Append(nil)
}

// check verifies what the other side opened with.
func (s Session) check(key merkle.Hash, b []byte) error {
	h, _, err := message.ParseHandshake(b)
	if err != nil {
		return fmt.Errorf("%w: handshake: %w", ErrMessage, err)
	}
	if h.Capability != message.Capability(key, s.HandshakeHash, !s.Initiator) {
		return ErrCapability
	}
	return nil
}

// open opens the channel of a feed.
func (s Session) open(key merkle.Hash, h mux.Handler) (*mux.Channel, error) {
	id := merkle.DiscoveryKey(key)
	return s.Mux.Open(mux.ChannelConfig{
		Protocol: message.Protocol, Aliases: []string{"hypercore"}, ID: id[:], Handshake: s.opening(key), Handler: h,
	})
}

// bad wraps what is wrong with a message.
func bad(name string, err error) error { return fmt.Errorf("%w: %s: %w", ErrMessage, name, err) }

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// MaxMessage is the longest message of the connection that a [Buyer] must be able
// to read: stock peers put 8 MiB of answers into one, and what goes over it.
const MaxMessage = 8<<20 + 1<<20 + 64<<10

// maxAsks is how many requests a peer of ours has in flight at most, maxSlots how
// many ids it uses: those of requests that were taken back wait, as an answer may
// still come.
const (
	maxAsks  = 1024
	maxSlots = 2*maxAsks + kept
	// kept are ids for what is no download, which must not be mistaken.
	kept = 64
)

// ask is a request in flight.
type ask struct {
	// reply takes the answer, or why there is none. It is nil for the blocks
	// of a download, and for what is ignored.
	reply func(d *message.Data, err error) error
	block uint64 // of a download
	state askState
	stale bool // the id was used before for what was never answered
}

type askState uint8

const (
	askFree askState = iota
	askPending
	askIgnored // canceled; the answer may still come
)

// asks are the requests in flight, by id - 1; ids are reused, last first, and at
// last those of what was canceled, longest ago first.
type asks struct {
	slots   []ask
	free    []uint32
	ignored []uint32 // oldest first; some may have been answered meanwhile
	n       int
}

// add returns the id of a request; 0 if there are too many.
func (a *asks) add(x ask) (id uint64) {
	x.state = askPending
	limit := maxSlots
	if x.reply == nil {
		limit -= kept
	}
	if n := len(a.free); n > 0 {
		i := a.free[n-1]
		a.free = a.free[:n-1]
		a.slots[i] = x
		a.n++
		return uint64(i) + 1
	}
	if len(a.slots) < limit {
		a.slots = append(a.slots, x)
		a.n++
		return uint64(len(a.slots))
	}
	for x.reply == nil && len(a.ignored) > 0 {
		i := a.ignored[0]
		a.ignored = a.ignored[1:]
		if a.slots[i].state == askIgnored {
			x.stale = true
			a.slots[i] = x
			a.n++
			return uint64(i) + 1
		}
	}
	return 0
}

// take removes a request and returns it, unless it is not or no longer of
// interest.
func (a *asks) take(id uint64) (x ask, ok bool) {
	if id == 0 || id > uint64(len(a.slots)) || a.slots[id-1].state == askFree {
		return x, false
	}
	x = a.slots[id-1]
	a.slots[id-1] = ask{}
	a.free = append(a.free, uint32(id-1))
	if x.state == askIgnored {
		return ask{}, false
	}
	a.n--
	return x, true
}

// ignore takes a request back; its id is not used again before it is answered, or
// all others are used up. It tells whether it was pending.
func (a *asks) ignore(id uint64) bool {
	if id == 0 || id > uint64(len(a.slots)) || a.slots[id-1].state != askPending {
		return false
	}
	a.slots[id-1] = ask{state: askIgnored}
	a.n--
	if len(a.ignored) >= 2*maxSlots {
		a.ignored = slices.DeleteFunc(a.ignored, func(i uint32) bool { return a.slots[i].state != askIgnored })
	}
	a.ignored = append(a.ignored, uint32(id-1))
	return true
}
