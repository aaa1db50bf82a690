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

// Times of a check of what a buyer has.
const (
	// maxAnswer is how long a buyer may take to show its head.
	maxAnswer = 2 * time.Second
	// maxReturn is how long it may take to return what was lost.
	maxReturn = 15 * time.Second
	// maxFollow is how long it may take to follow a raised fork.
	maxFollow = 30 * time.Second
)

// maxReturned bounds how many lost blocks are fetched from a buyer.
const maxReturned = 1 << 14

// maxReturnedBlock is the longest message that may return a block.
const maxReturnedBlock = 1<<20 + 64<<10

// ErrTooOld says that a buyer cannot go on with its feed: what it has lies too
// far back, or parts from the log too far back, to be compared. It needs a new
// feed.
var ErrTooOld = errors.New("replicate: the buyer's copy lies too far back")

// settling is the check of what a buyer has, before anything is signed for it:
// it is asked for the head that it has, and if that is not one of the log, for
// the blocks from where they part.
type settling struct {
	claimed  uint64 // the highest fork that the buyer showed
	deadline time.Time
	head     *merkle.Head // that it proved to have
	roots    []merkle.Node
	fork     uint64
	length   uint64
	next     uint64 // block that is fetched next, once it is known where they part
	fetching int    // requests in flight
	found    bool   // next is known
}

// settle asks the buyer what it has. Meanwhile it is told nothing that it could
// take for a head. mu is held.
func (s *Seller) settle() {
	t := &settling{claimed: s.remote.Fork, fork: s.remote.Fork, length: s.remote.Length, deadline: time.Now().Add(maxAnswer)}
	s.settling, s.greeted, s.built = t, false, nil
	if t.length == 0 { // there is nothing to ask for
		s.settled(nil)
		return
	}
	s.log.Info("replicate: asking the buyer what it has", "fork", t.fork, "length", t.length)
	// Length 0 claims nothing; an idle buyer closes the channel unless we say
	// that we want something, which is true.
	s.send(message.TypeSync, message.Sync{Fork: t.fork, CanUpgrade: true, Downloading: true, HasManifest: true}.Append(nil))
	req := merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: t.length}}
	s.request(message.Request{Fork: t.fork, Request: req}, s.onHead)
	s.ch.Wake()
}

// request asks the buyer for something. mu is held.
func (s *Seller) request(r message.Request, reply func(*message.Data, error) error) {
	r.ID = s.asks.add(ask{reply: reply})
	s.send(message.TypeRequest, r.Append(nil))
}

// onHead takes the buyer's head. mu is held.
func (s *Seller) onHead(d *message.Data, err error) error {
	t := s.settling
	if t == nil || t.head != nil {
		return nil
	}
	if err != nil || d.Upgrade == nil || d.Fork != t.fork {
		s.settled(nil)
		return nil
	}
	m := s.feed.Manifest()
	v := &merkle.Verifier{Key: s.key, Manifest: &m, Fork: t.fork}
	got, err := v.Verify(&d.Proof, nil)
	if err != nil || got.Head == nil || got.Head.Length < t.length {
		s.log.Info("replicate: the buyer's head does not verify", "error", err)
		s.settled(nil)
		return nil
	}
	t.head, t.roots, t.length = got.Head, got.Roots, got.Head.Length
	_, length := s.feed.Bounds()
	if t.length <= length && s.parts(t.roots) == t.length {
		s.settled(t.head) // it is one of ours
		return nil
	}
	t.deadline = time.Now().Add(maxReturn)
	s.ch.SetMaxMessage(maxReturnedBlock)
	return s.probe(t.length - 1)
}

// parts returns where the log parts from one with these nodes, which follow each
// other: the first block of the first node that is not the same in the log, the
// end of the last one if all are. Where the log's own blocks were dropped they
// count as the same: what is not there any more was not lost.
func (s *Seller) parts(nodes []merkle.Node) (at uint64) {
	dropped, _ := s.feed.Bounds()
	for _, n := range nodes {
		first, end := merkle.Span(n.Index)
		ours, err := s.feed.Node(n.Index)
		if err != nil && end <= dropped {
			at = end
			continue
		}
		if err != nil || ours.Hash != n.Hash {
			return first
		}
		at = end
	}
	return at
}

// probe asks for a block with its path, which tells how far all before it is the
// same. If the buyer did not say that it has it, what it has is not looked into
// any further. mu is held.
func (s *Seller) probe(i uint64) error {
	t := s.settling
	if !s.theirs.has(i) {
		if t.next < t.length && t.found {
			return s.fetch()
		}
		s.settled(t.head)
		return nil
	}
	req := merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, t.length, nil)}}
	s.request(message.Request{Fork: t.fork, Request: req}, func(d *message.Data, err error) error {
		if s.settling != t {
			return nil
		}
		if err != nil || !t.verified(s, d, i) {
			s.settled(t.head)
			return nil
		}
		// From left to right: the roots before the block's own, the left
		// siblings on its path, the block.
		var left []merkle.Node
		for k := len(d.Block.Nodes) - 1; k >= 0; k-- {
			if n := d.Block.Nodes[k]; n.Index < 2*i {
				left = append(left, n)
			}
		}
		var before []merkle.Node
		for _, r := range t.roots {
			if _, end := merkle.Span(r.Index); end <= i {
				before = append(before, r)
			}
		}
		nodes := append(before, append(left, merkle.Leaf(i, d.Block.Value))...)
		at := s.parts(nodes)
		t.next, t.found = at, true
		for _, n := range nodes {
			if first, end := merkle.Span(n.Index); first == at && merkle.Level(n.Index) > 0 {
				return s.probe(end - 1) // they part somewhere in it
			}
		}
		return s.fetch()
	})
	return nil
}

// verified checks the answer to a request for block i.
func (t *settling) verified(s *Seller, d *message.Data, i uint64) bool {
	if d == nil || d.Block == nil || d.Block.Index != i || d.Fork != t.fork || d.Upgrade != nil {
		return false
	}
	m := s.feed.Manifest()
	v := &merkle.Verifier{Key: s.key, Manifest: &m, Fork: t.fork, Length: t.length, Roots: t.roots}
	_, err := v.Verify(&d.Proof, nil)
	return err == nil
}

// fetch asks for the blocks that the log lost, a few at a time. mu is held.
func (s *Seller) fetch() error {
	t := s.settling
	if t.length-t.next > maxReturned {
		t.next = t.length - maxReturned
	}
	for t.fetching < 8 && t.next < t.length {
		i := t.next
		t.next++
		if !s.theirs.has(i) {
			continue
		}
		t.fetching++
		req := merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, t.length, nil)}}
		s.request(message.Request{Fork: t.fork, Request: req}, func(d *message.Data, err error) error {
			if s.settling != t {
				return nil
			}
			t.fetching--
			if err == nil && t.verified(s, d, i) {
				if err := s.feed.Recover(i, t.fork, append([]byte(nil), d.Block.Value...)); err != nil {
					s.log.Warn("replicate: a returned block cannot be kept", "block", i, "error", err)
				} else {
					s.sent.Recovered++
				}
			}
			return s.fetch()
		})
	}
	if t.fetching == 0 {
		s.settled(t.head)
	}
	return nil
}

// settled ends the check with what the buyer proved to have, if anything. mu is
// held.
func (s *Seller) settled(head *merkle.Head) {
	t := s.settling
	s.settling = nil
	s.cancelAll()
	if head == nil && t.length > 0 && s.sure() {
		// It claims what was never signed, and does not show it. Were it true
		// all the same, to go on would be a conflict.
		s.fail(fmt.Errorf("%w: a head of %d blocks on fork %d is claimed and not shown", ErrUnavailable, t.length, t.fork))
		return
	}
	err := s.feed.Settle(head, max(t.claimed, s.remote.Fork))
	if err == nil && !s.feed.Settled(s.remote.Fork, s.remote.Length) {
		err = ErrTooOld // it shows what cannot be
	}
	switch {
	case errors.Is(err, merkle.ErrMissing), errors.Is(err, ErrTooOld):
		s.log.Warn("replicate: the feed cannot go on", "error", err)
		s.tooOld()
		return
	case err != nil: // which says nothing about the buyer
		s.fail(err)
		return
	}
	s.log.Info("replicate: settled", "fork", s.feed.Fork())
	s.tellAll()
}

// tooOld ends the session: the buyer needs a new feed. mu is held.
func (s *Seller) tooOld() {
	s.stop()
	t := s.told
	s.send(message.TypeSync, message.Sync{Fork: t.fork, Length: t.length, HasManifest: true}.Append(nil))
	s.ch.Close()
	s.why = ErrTooOld
}

// answered lowers the limit for messages again when no block can be on its way
// any more. mu is held.
func (s *Seller) answered() {
	if s.settling == nil && s.asks.n == 0 && len(s.asks.free) == len(s.asks.slots) {
		s.ch.SetMaxMessage(0)
	}
}

// cancelAll takes all requests back. mu is held.
func (s *Seller) cancelAll() {
	for i := range s.asks.slots {
		if id := uint64(i) + 1; s.asks.ignore(id) {
			s.send(message.TypeCancel, compact.AppendUint(nil, id))
		}
	}
}

// produce waits for answers until the time is up.
func (t *settling) produce(s *Seller, _ *mux.Batch, now time.Time) time.Time {
	if now.Before(t.deadline) {
		return t.deadline
	}
	s.log.Info("replicate: the buyer did not answer in time")
	s.settled(t.head)
	return now
}
