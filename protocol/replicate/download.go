package replicate

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
)

// onData takes an answer. Blocks of the download, which are most of them, take
// the short way.
func (u *upstream) onData(m []byte) error {
	var f, id, fork uint64
	rest, err := parseUints(m, &f, &id, &fork)
	if err != nil {
		return bad("data", err)
	}
	if id == 0 || id > uint64(len(u.asks.slots)) {
		return nil
	}
	if a := &u.asks.slots[id-1]; a.state == askPending && a.reply == nil {
		i := a.block
		if f != merkle.FlagBlock || fork != u.b.k.Head.Fork {
			return fmt.Errorf("%w: block %d was asked for, and not that came", ErrInvalid, i)
		}
		u.asks.take(id)
		return u.onBlock(i, rest)
	}
	d, _, err := ParseData(m)
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
	index, m, err := compact.ParseUint(m)
	if err != nil {
		return bad("data", err)
	}
	if index != i {
		return fmt.Errorf("%w: block %d was asked for, and %d came", ErrInvalid, i, index)
	}
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
		if u.early == nil {
			u.early = map[uint64]block{}
		}
		u.early[i] = block{slices.Clone(value), slices.Clone(u.scratch)}
		u.held += len(value)
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
		u.held -= len(x.value)
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
func (u *upstream) onNoData(n NoData) error {
	a, ok := u.asks.take(n.Request)
	if !ok {
		return nil
	}
	if a.reply != nil {
		return a.reply(nil, fmt.Errorf("%w: reason %d", ErrUnavailable, n.Reason))
	}
	if n.Reason == ReasonNone {
		// The seller is on its way to another fork; it will say so.
		u.ask = min(u.ask, a.block)
		return nil
	}
	// What was asked for behind the block cannot be verified without it.
	u.theirs.set(a.block, a.block+1, false)
	if !u.missing || a.block < u.refused {
		u.missing, u.refused, u.since = true, a.block, time.Now()
		if _, ok := u.theirs.next(a.block); !ok {
			w := Want{Start: a.block / maxWant * maxWant, Length: maxWant}
			u.ch.Send(typeWant, w.Append(nil)) //nolint:errcheck // the connection ends
		}
	}
	return u.onAvailable()
}

// maxWant is the longest want that stock peers answer.
const maxWant = 1 << 21

// onAvailable goes on behind a block that was refused, if it is its turn and it
// is known what there is.
func (u *upstream) onAvailable() error {
	if !u.missing || u.b.walk.Next() != u.refused {
		return nil
	}
	next, ok := u.theirs.next(u.refused)
	if !ok {
		if time.Since(u.since) < lastResort {
			return nil
		}
		next = u.refused + 1
	}
	next = min(next, u.b.k.Head.Length)
	if next > u.refused {
		if err := u.b.skip(next); err != nil {
			return err
		}
	}
	u.restart()
	return nil
}

// setBits notes what a bitfield says.
func (u *upstream) setBits(f Bitfield) {
	at := f.Start
	for i := 0; i < len(f.Words); {
		// Runs of equal words are one range.
		w, n := f.Words[i], uint64(1)
		if w == 0 || w == ^uint32(0) {
			for i+int(n) < len(f.Words) && f.Words[i+int(n)] == w {
				n++
			}
			u.theirs.set(at, at+32*n, w != 0)
		} else {
			for k := range uint64(32) {
				u.theirs.set(at+k, at+k+1, w>>k&1 != 0)
			}
		}
		at += 32 * n
		i += int(n)
	}
}
