package replicate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/replicate/message"
)

// onData takes an answer. Blocks of the download, which are most of them, take
// the short way.
func (u *upstream) onData(m []byte) error {
	var f, id, fork uint64
	rest, err := compact.ParseUints(m, &f, &id, &fork)
	if err != nil {
		return bad("data", err)
	}
	if id == 0 || id > uint64(len(u.asks.slots)) {
		return nil
	}
	if a := &u.asks.slots[id-1]; a.state == askPending && a.reply == nil {
		i := a.block
		if f != merkle.FlagBlock || fork != u.b.k.Head.Fork {
			if a.stale {
				a.stale = false // it answers what was taken back
				return nil
			}
			return fmt.Errorf("%w: block %d was asked for, and not that came", ErrInvalid, i)
		}
		index, rest, err := compact.ParseUint(rest)
		if err != nil {
			return bad("data", err)
		}
		if index != i {
			if a.stale {
				a.stale = false
				return nil
			}
			return fmt.Errorf("%w: block %d was asked for, and %d came", ErrInvalid, i, index)
		}
		u.asks.take(id)
		return u.onBlock(i, rest)
	}
	d, _, err := message.ParseData(m)
	if err != nil {
		return bad("data", err)
	}
	if a, ok := u.asks.take(id); ok {
		return a.reply(&d, nil)
	}
	return nil
}

// onBlock takes block i of the download.
func (u *upstream) onBlock(i uint64, m []byte) error {
	value, m, err := compact.ParseBuffer(m)
	if err != nil {
		return bad("data", err)
	}
	if u.scratch, _, err = merkle.ScanNodes(u.scratch[:0], m); err != nil {
		return bad("data", err)
	}
	u.adapt(len(value))
	next := u.b.walk.Next()
	if i != next || i >= u.b.k.Head.Length {
		if i < next {
			return nil
		}
		if u.waiting += len(value) - len(u.early[i].value); u.waiting > maxBuffered {
			// Blocks are larger than they were, or the one that is due does not
			// come: one after the other.
			u.window = 1
			u.restart()
			return nil
		}
		if u.early == nil {
			u.early = map[uint64]block{}
		}
		u.early[i] = block{slices.Clone(value), slices.Clone(u.scratch)}
		return nil
	}
	if err := u.b.deliver(value, u.scratch); err != nil {
		return u.unverified(i, err)
	}
	if len(u.early) == 0 && !u.missing {
		return nil
	}
	return u.drain()
}

// unverified decides about a block that was not accepted.
func (u *upstream) unverified(i uint64, err error) error {
	if errors.Is(err, merkle.ErrProof) {
		return fmt.Errorf("%w: block %d: %w", ErrInvalid, i, err)
	}
	return err
}

// drain delivers what came early and is due.
func (u *upstream) drain() error {
	for len(u.early) > 0 {
		i := u.b.walk.Next()
		x, ok := u.early[i]
		if !ok || i >= u.b.k.Head.Length {
			break
		}
		delete(u.early, i)
		u.waiting -= len(x.value)
		if err := u.b.deliver(x.value, x.nodes); err != nil {
			return u.unverified(i, err)
		}
	}
	return u.onAvailable()
}

// adapt learns how large blocks are, and from that how many to have in flight.
func (u *upstream) adapt(size int) {
	if u.average += (size - u.average) / 8; u.average < size {
		u.average = size // larger ones may follow
	}
	limit := min(max(u.b.cfg.InFlight/(u.average+64), 2), maxAsks)
	switch {
	case u.window < limit:
		u.window++
	case u.window > limit:
		u.window = limit
	}
}

// onNoData takes a refusal.
func (u *upstream) onNoData(n message.NoData) error {
	a, ok := u.asks.take(n.Request)
	if !ok {
		return nil
	}
	if a.reply != nil {
		return a.reply(nil, fmt.Errorf("%w: reason %d", ErrUnavailable, n.Reason))
	}
	if n.Reason == message.ReasonNone || u.remote.Fork != u.b.k.Head.Fork {
		// The seller is on its way to another fork, or on another one; it will
		// say so.
		u.hold()
		return nil
	}
	// What was asked for behind the block cannot be verified without it.
	u.theirs.set(a.block, a.block+1, false)
	if !u.missing || a.block < u.refused {
		u.missing, u.refused, u.page, u.queried = true, a.block, a.block+1, false
	}
	return u.onAvailable()
}

// maxWant is the longest want that stock peers answer.
const maxWant = 1 << 21

// remembered forgets what is too much to remember of what the seller has.
func (u *upstream) remembered() {
	if len(u.theirs) > maxBuyerRanges && u.b.begun {
		u.theirs.set(0, u.b.walk.Next(), false)
	}
	u.forgot = min(u.forgot, u.theirs.forgetHigh(maxBuyerRanges))
}

// onAvailable goes on behind a block that was refused, if it is its turn and it
// is known what there is; if not, it asks, a page after the other.
func (u *upstream) onAvailable() error {
	if !u.missing || u.b.walk.Next() != u.refused {
		return nil
	}
	length := u.b.k.Head.Length
	next, ok := u.theirs.next(u.refused)
	for !ok || next >= u.forgot {
		if ok { // what was forgotten may lie before
			ok, u.page, u.forgot, u.queried = false, min(u.page, u.forgot), ^uint64(0), false
		}
		if u.page >= length {
			next = length
			break
		}
		if !u.queried {
			u.queried, u.since = true, time.Now()
			w := message.Want{Start: u.page / maxWant * maxWant, Length: maxWant}
			return u.ch.Send(message.TypeWant, w.Append(nil))
		}
		if time.Since(u.since) < maxWait {
			return nil
		}
		u.page, u.queried = u.page/maxWant*maxWant+maxWant, false // nobody says
	}
	if next = min(next, length); next > u.refused {
		if err := u.b.skip(next); err != nil {
			return err
		}
	}
	u.window = 1 // there may be more holes
	u.restart()
	return nil
}

// setBits notes what a bitfield says.
func (u *upstream) setBits(f message.Bitfield) {
	var spans []span
	at := f.Start
	add := func(from, to uint64) {
		if n := len(spans); n > 0 && spans[n-1].to == from {
			spans[n-1].to = to
		} else {
			spans = append(spans, span{from, to})
		}
	}
	for _, w := range f.Words {
		if len(spans) > maxBuyerRanges {
			u.forgot = min(u.forgot, at)
			break
		}
		switch w {
		case 0:
		case ^uint32(0):
			add(at, at+32)
		default:
			for k := range uint64(32) {
				if w>>k&1 != 0 {
					add(at+k, at+k+1)
				}
			}
		}
		at += 32
	}
	u.theirs.replace(f.Start, max(at, f.Start), spans)
	u.remembered()
	// It speaks of its whole page: words that are not there are zero.
	if u.missing && u.queried && f.Start/maxWant == u.page/maxWant {
		u.page, u.queried = f.Start/maxWant*maxWant+maxWant, false
	}
}
