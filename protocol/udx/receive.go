package udx

import (
	"slices"
)

// receiver is the half of a stream that comes in. It belongs to its stream's mu.
type receiver struct {
	expect uint32 // the next packet
	in     ring   // what was not read yet
	taken  int64  // bytes in order, since the beginning
	read   int64  // of these, what was read
	ended  bool   // the last one was the end

	early      map[uint32]early // packets beyond a gap
	gaps       []block          // which ones those are, in order
	earlyBytes int

	window     int // bytes for which there is room, in all
	advertised int // for how many the other side knows there is
	// The window grows by itself: tuneTo is where a whole one was read since tuneAt, and
	// quickest the least time that one ever took.
	tuneTo, tuneAt, quickest int64

	ackDue    bool
	unsaid    int   // packets that came since something was acknowledged
	heardAt   int64 // when something came last that was no copy
	candidate candidate
}

type early struct {
	b   []byte
	end bool
}

// candidate is an address from which bytes came that may be the other side's.
type candidate struct {
	path
	since int64 // the first of those bytes
}

// maxAhead is how far beyond a gap a packet may be.
const maxAhead = 1 << 14

// room returns for how many bytes there is room.
func (r *receiver) room() int { return max(0, r.window-r.in.n-r.earlyBytes) }

// take takes a packet with data or the end, and tells whether its payload is the newest
// in order. Bytes are dropped if nobody reads any more.
func (r *receiver) take(h header, payload []byte, drop bool) bool {
	ahead := int32(h.seq - r.expect)
	switch {
	case r.ended || ahead < 0 || ahead > maxAhead:
		return false
	case ahead > 0:
		r.keep(h, payload)
		return false
	case len(payload) > 0 && r.in.n >= r.window:
		return false // it knew that there is no room
	}
	r.deliver(payload, h.flags&flagEnd != 0, drop)
	for len(r.gaps) > 0 && r.gaps[0].start == r.expect && !r.ended {
		e := r.early[r.expect]
		delete(r.early, r.expect)
		r.earlyBytes -= len(e.b) + earlyCost
		if r.gaps[0].start++; r.gaps[0].len() == 0 {
			r.gaps = r.gaps[1:]
		}
		r.deliver(e.b, e.end, drop)
		giveBack(e.b[:cap(e.b)])
	}
	if r.ended {
		r.dropEarly()
	}
	return true
}

// dropEarly forgets what came beyond a gap: nothing follows the end.
func (r *receiver) dropEarly() {
	for _, e := range r.early {
		giveBack(e.b[:cap(e.b)])
	}
	r.early, r.gaps, r.earlyBytes = nil, nil, 0
}

func (r *receiver) deliver(b []byte, end, drop bool) {
	r.expect++
	r.taken += int64(len(b))
	if drop {
		r.read = r.taken
	} else {
		r.in.push(b)
	}
	r.ended = end
}

// earlyCost is what a packet that is kept needs besides its bytes.
const earlyCost = 64

// keep keeps a packet beyond a gap, if there is room.
func (r *receiver) keep(h header, payload []byte) {
	if _, known := r.early[h.seq]; known || r.room() < len(payload)+earlyCost {
		return
	}
	if r.early == nil {
		r.early = map[uint32]early{}
	}
	e := early{end: h.flags&flagEnd != 0}
	if len(payload) > 0 {
		e.b = append(lend(len(payload))[:0], payload...)
	}
	r.early[h.seq] = e
	r.earlyBytes += len(payload) + earlyCost
	// Behind the last block that begins before it; blocks that touch become one.
	i := len(r.gaps)
	for i > 0 && before(h.seq, r.gaps[i-1].start) {
		i--
	}
	switch joins, follows := i < len(r.gaps) && r.gaps[i].start == h.seq+1, i > 0 && r.gaps[i-1].end == h.seq; {
	case joins && follows:
		r.gaps[i-1].end = r.gaps[i].end
		r.gaps = slices.Delete(r.gaps, i, i+1)
	case joins:
		r.gaps[i].start--
	case follows:
		r.gaps[i-1].end++
	default:
		r.gaps = slices.Insert(r.gaps, i, block{h.seq, h.seq + 1})
	}
}

// consumed notes that n bytes were read, and tells whether the other side should hear
// that there is room again. The window grows while reading a whole one takes about a
// round-trip time, no matter how large it is: then it is what holds the other side back.
// Where nothing was sent, that time is not known but by what windows took.
func (r *receiver) consumed(n, now int64, most int) bool {
	r.read += n
	if r.read >= r.tuneTo {
		if took := now - r.tuneAt; r.tuneAt != 0 {
			if r.quickest == 0 || took < r.quickest {
				r.quickest = max(took, 1e5)
			}
			if took < 2*r.quickest && r.window < most {
				r.window = min(2*r.window, most)
			}
		}
		r.tuneTo, r.tuneAt = r.read+int64(r.window), now
	}
	return r.advertised < max(r.window/2, 4*maxMTU) && r.room() >= r.advertised+r.window/4
}

// Packets that come together are acknowledged together, but no more of them than these: an
// acknowledgement may get lost, and where few packets are on their way that is felt.
const (
	saidFirst = 4 // of the first ones of a stream
	saidOften = 32
)

// acknowledge sends what came. mu is held.
func (s *Stream) acknowledge() {
	s.ackDue, s.unsaid = false, 0
	s.control(s.path, 0)
}

// control sends a packet without data; with what came beyond gaps.
func (s *Stream) control(to path, f flags) {
	var space [headerSize + 8*maxBlocks]byte
	s.advertised = s.room()
	h := header{flags: f, id: to.id, window: uint32(s.advertised), seq: s.next, ack: s.expect}
	n := 0
	if f&^flagHeartbeat == 0 && len(s.gaps) > 0 && (to == s.path || to == s.left || to == s.trusted) { // elsewhere nobody may have asked
		h.flags |= flagSACK
		// As many as fit the offset, so that what reads them finds their end.
		n = min(len(s.gaps), maxBlocks)
	}
	b := appendHeader(space[:0], h)
	for _, k := range s.gaps[:n] {
		b = appendBlock(b, k)
	}
	to.sock.Send(b, to.remote, 0) //nolint:errcheck // as if it were lost
}
