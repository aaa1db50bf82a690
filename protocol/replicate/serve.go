package replicate

import (
	"errors"
	"fmt"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// maxGather is how long answers are gathered for one frame.
const maxGather = 300 * time.Microsecond

// Produce implements mux.Producer: it announces what is new and answers requests
// while there is room.
func (h *sellerHandler) Produce(b *mux.Batch) time.Time {
	s := h.seller()
	s.mu.Lock()
	defer s.unlock()
	now := time.Now()
	if s.ended {
		return time.Time{}
	}
	if s.settling != nil {
		return s.settling.produce(s, b, now)
	}
	if !s.greeted {
		return time.Time{}
	}
	if s.behind() && s.paused {
		s.greetedAt = now // it cannot follow meanwhile
	}
	if s.behind() && now.Sub(s.greetedAt) > maxFollow {
		s.tooOld()
		return time.Time{}
	}
	next := s.announce(b, now)
	if s.quietUntil.After(now) {
		if s.quietUntil.Before(next) {
			next = s.quietUntil
		}
		return next
	}
	for n := 1; !s.paused && !s.ended && s.requests.n > 0 && !b.Full(); n++ {
		if !s.serve(b) {
			break
		}
		if n%4 == 0 && time.Since(now) > maxGather {
			break // the peer has something to do meanwhile
		}
	}
	return next
}

// announce tells what changed, if it is time, and returns when it will be. mu is
// held.
func (s *Seller) announce(b *mux.Batch, now time.Time) (next time.Time) {
	if s.changed {
		if next = s.nextTell; !next.After(now) {
			s.tell(b, now)
			next = time.Time{}
		}
	}
	idle := s.lastSync.Add(resync)
	if s.syncNow || !idle.After(now) {
		s.syncNow, s.lastSync = false, now
		if s.requests.n == 0 {
			s.blocks.Release()
		}
		if s.settling == nil {
			s.ch.SetMaxMessage(0) // who was asked did not answer, nor will
		}
		b.End(s.sync().Append(b.Begin(message.TypeSync, 32)), 0)
		idle = now.Add(resync)
	}
	if next.IsZero() || idle.Before(next) {
		next = idle
	}
	return next
}

// tell announces what changed. mu is held.
func (s *Seller) tell(b *mux.Batch, now time.Time) {
	s.changed = false
	was, is := s.told, s.bounds()
	if was == is {
		return
	}
	s.nextTell = now.Add(s.up.interval())
	s.told = is
	say := func(r message.Range) {
		s.each(r, func(r message.Range) { b.End(r.Append(b.Begin(message.TypeRange, 24)), 0) })
	}
	switch {
	case is.fork != was.fork:
		say(s.available(is, 0))
	case is.first > was.first:
		// A stock buyer that was told of all from 0 on forgets all of it.
		say(message.Range{Drop: true, Length: is.first})
		say(s.available(is, 0))
	case is.first < was.first:
		say(s.available(is, 0))
	case is.end > was.end:
		say(s.available(is, was.end))
	}
	if is.end < was.end {
		say(message.Range{Drop: true, Start: is.end, Length: was.end - is.end})
	}
	s.syncNow = true
}

// serve answers the first request. It tells whether to go on. mu is held.
func (s *Seller) serve(b *mux.Batch) bool {
	var r message.Request
	part, err := s.parse(&r)
	if err != nil {
		s.fail(bad("request", err))
		return false
	}
	d := s.built
	if d == nil && part != nil {
		if value, path, err := s.blocks.Read(part.Index, part.Nodes); err == nil {
			s.block = merkle.BlockPart{Index: part.Index, Value: value, Nodes: path}
			s.data = message.Data{Request: r.ID, Fork: r.Fork, Proof: merkle.Proof{Block: &s.block}}
			d = &s.data
		}
	}
	if d == nil {
		var reason uint64
		var wait bool
		if part != nil {
			r.Block = &merkle.NodeRequest{Index: part.Index, Nodes: part.Nodes}
		}
		if d, reason, wait = s.answer(&r); wait {
			return false
		} else if d == nil {
			s.done(r.ID)
			s.refuse(b, &r, reason)
			return !s.ended && s.greeted && !s.quietUntil.After(time.Now())
		}
		if d.Upgrade != nil && s.signedAt > s.told.length {
			// A stock buyer that gets more than it was told of first looks whether it
			// could upgrade us, and if a sync comes while it looks it never says how long
			// its log is now: both would wait for that for ever.
			s.changed, s.nextTell = true, time.Time{}
			s.announce(b, time.Now())
		}
	}
	size := d.Size()
	if !b.Fits(size) {
		s.built = d
		return false
	}
	if d.Block != nil && s.cfg.Meter != nil && !s.cfg.Meter.Admit(d.Block.Index, len(d.Block.Value)) {
		s.built, s.paused = nil, true
		s.syncNow = true
		s.sendSync()
		return false
	}
	s.done(r.ID)
	if d.Block != nil {
		s.sent.Blocks++
		s.sent.Bytes += uint64(len(d.Block.Value))
	}
	if d.Upgrade != nil {
		s.sent.Upgrades++
	}
	b.End(d.Append(b.Begin(message.TypeData, size)), size)
	return true
}

// parse reads the first request. One for a block and nothing else, as most are,
// is returned as its part if it may be answered at once; then r is not filled
// but for its ids. mu is held.
func (s *Seller) parse(r *message.Request) (part *merkle.NodeRequest, err error) {
	b := s.requests.front()
	var flags uint64
	p := &s.part
	if _, err := compact.ParseUints(b, &flags, &r.ID, &r.Fork, &p.Index, &p.Nodes); err == nil && flags == merkle.FlagBlock &&
		r.Fork == s.feed.Fork() && s.offered(p.Index) {
		return p, nil
	}
	*r, _, err = message.ParseRequest(b)
	return nil, err
}

// done takes the first request out. mu is held.
func (s *Seller) done(id uint64) {
	s.built = nil
	s.requests.pop()
	s.seen.clear(id)
}

// answer builds what a request asks for, or says why it is refused, or that it
// must wait. mu is held.
func (s *Seller) answer(r *message.Request) (d *message.Data, reason uint64, wait bool) {
	d = &message.Data{Request: r.ID, Fork: r.Fork}
	if r.Manifest {
		m := s.feed.Manifest()
		d.Manifest = &m
	}
	alone := r.Block == nil && r.Hash == nil && r.Seek == nil && r.Upgrade == nil
	switch other := r.Fork != s.feed.Fork(); {
	case r.Manifest && (alone || other):
		return d, 0, false
	case alone:
		return nil, message.ReasonInvalid, false
	case other:
		// Not "not available", of which a stock buyer counts 32: it is on its
		// way to another fork and asks again there.
		return nil, message.ReasonNone, false
	case r.Block != nil && !s.offered(r.Block.Index):
		return nil, message.ReasonNotAvailable, false
	}
	start := time.Now()
	p, head, err := s.feed.Proof(r.Request)
	switch {
	case err == nil:
	case errors.Is(err, merkle.ErrRequest):
		return nil, message.ReasonInvalid, false
	case errors.Is(err, merkle.ErrMissing):
		return nil, message.ReasonNotAvailable, false
	case !s.feed.Settled(s.remote.Fork, s.remote.Length):
		s.settle()
		return nil, 0, true
	default:
		// Not "not available": the peer would take it for a hole that stays.
		s.log.Warn("replicate: a proof cannot be built", "feed", fmt.Sprintf("%x", s.key[:4]), "error", err)
		s.fail(fmt.Errorf("a proof cannot be built: %w", err))
		return nil, 0, true
	}
	if p.Upgrade != nil && head.Length != s.signedAt { // else it was signed before
		s.signedAt = head.Length
		s.up.signed(min(time.Since(start), maxSigning))
	}
	d.Proof = p
	return d, 0, false
}

// offered tells whether block i is in the window and not dropped. mu is held.
func (s *Seller) offered(i uint64) bool {
	first, length := s.feed.Bounds()
	return i >= max(first, s.first) && i < s.end(length)
}

// maxSigning bounds what is taken for the time of a signature: what is more went
// into reading.
const maxSigning = 5 * time.Millisecond

// refuse answers that there is nothing to be had. mu is held.
func (s *Seller) refuse(b *mux.Batch, r *message.Request, reason uint64) {
	if r.ID == 0 {
		return // a probe that cannot be answered
	}
	if reason == message.ReasonNotAvailable {
		// Else the peer asks again, for what it thinks is there.
		s.tell(b, time.Now())
		if r.Block != nil && s.offered(r.Block.Index) {
			s.hole(b, r.Block.Index)
		}
	}
	b.End(message.NoData{Request: r.ID, Reason: reason}.Append(b.Begin(message.TypeNoData, 12)), 12)
	s.sent.NoData++
	if reason == message.ReasonNone {
		return
	}
	if reason == message.ReasonInvalid {
		if s.invalid++; s.invalid >= maxInvalid {
			s.fail(fmt.Errorf("%w: %d that cannot be", ErrFlood, s.invalid))
			return
		}
	}
	if s.noData++; s.noData >= maxNoData {
		if s.quietUntil = s.reopened.Add(reopenEvery); s.quietUntil.After(time.Now()) {
			return // it asks in vain, again and again: not at once
		}
		s.reopen()
	}
}

// hole tells that a block in the window cannot be had, as it is damaged. mu is
// held.
func (s *Seller) hole(b *mux.Batch, i uint64) {
	s.holes.set(i, i+1, true)
	s.holes.forgetShort(maxRanges)
	b.End(message.Range{Drop: true, Start: i, Length: 1}.Append(b.Begin(message.TypeRange, 24)), 0)
	// A stock buyer that was told of all from 0 on forgets what is behind.
	if i+1 < s.told.end {
		s.each(message.Range{Start: i + 1, Length: s.told.end - i - 1}, func(r message.Range) { b.End(r.Append(b.Begin(message.TypeRange, 24)), 0) })
	}
}

// each calls f with the parts of a range that are between holes, or with what is
// dropped as a whole. mu is held.
func (s *Seller) each(r message.Range, f func(message.Range)) {
	at, end := r.Start, r.Start+r.Length
	for _, h := range s.holes {
		if r.Drop || h.to <= at || h.from >= end {
			continue
		}
		if h.from > at {
			f(message.Range{Start: at, Length: h.from - at})
		}
		at = h.to
	}
	if at < end {
		f(message.Range{Drop: r.Drop, Start: at, Length: end - at})
	}
}

// fail ends the connection. mu is held.
func (s *Seller) fail(err error) {
	s.log.Info("replicate: peer is cut off", "error", err)
	s.stop()
	s.why = err
	s.cfg.Session.Mux.Fail(err)
}

// reopen closes the channel and opens it again: a stock buyer that was refused
// too often gives a peer up until then. mu is held.
func (s *Seller) reopen() {
	t := s.told
	s.reopened = time.Now()
	s.send(message.TypeSync, message.Sync{Fork: t.fork, Length: t.length, RemoteLength: s.remoteLength(t.fork), HasManifest: true}.Append(nil))
	s.ch.Close()
	s.requests.clear()
	s.built, s.settling = nil, nil
	s.asks, s.seen = asks{}, idSet{}
	s.open, s.heard, s.greeted, s.noData, s.remote, s.theirs = false, false, false, 0, message.Sync{}, nil
	ch, err := s.cfg.Session.open(s.key, (*sellerHandler)(s))
	if err != nil {
		s.fail(err)
		return
	}
	s.ch = ch
}
