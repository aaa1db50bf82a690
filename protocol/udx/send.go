package udx

import (
	"slices"
	"time"
)

// sender is the half of a stream that goes out. It belongs to its stream's mu. Times are
// those of [Endpoint.now].
type sender struct {
	out  ring  // what was written and not acknowledged
	base int64 // which byte its first one is
	upTo int64 // the next byte that is sent for the first time

	una, next uint32 // packets [una, next) are not acknowledged in order
	packets   []packet
	flying    list  // packets on their way, the oldest first
	missing   list  // packets that were lost and are to be sent again
	inFlight  int64 // bytes of those on their way, with headers

	finish  bool // nothing more will be written
	endSent bool
	done    bool // all was acknowledged, and that it was all

	// What the other side has room for, and by which packet it said so.
	peerWindow        int64
	windowSeq, winAck uint32

	// How much arrived, for the rate of delivery
	// (draft-cheng-iccrg-delivery-rate-estimation-00).
	delivered, deliveredAt int64
	firstSent              int64
	limited                int64 // as far as this nobody had more to send
	round                  round

	// RACK and tail loss (RFC 8985).
	srtt, rttvar int64
	rackAt       int64 // when the newest packet that arrived was sent
	rackSeq      uint32
	rackRTT      int64
	reordered    int64 // how much later than its successors a packet may arrive, in quarters of the least round-trip time
	rackTimer    int64
	tail         bool  // the last one was sent again, to hear something
	progress     int64 // when something arrived last, or was sent while nothing was on its way
	sentLast     int64
	owed         int64  // since when an acknowledgement is due
	unaAt        int64  // when something was acknowledged in order, or first was to be
	copyAt       int64  // when a packet was sent again last, until that is answered
	backoff      int    // time-outs in a row
	recoverTo    uint32 // what was lost is made up for when this is acknowledged
	askedAt      int64  // when room was asked for
	asked        int    // how often in a row

	nextSend int64 // when the rate allows the next packet
	paced    bool  // that is what is waited for
	bbr      bbr

	mtu     int // of packets, with the IP header
	ceiling int // sizes from here on do not fit
	probing int // the size that is being tried, 0 is none
	failed1 int // how often that was lost

	sent, resent uint64
}

// packet is one that was sent and is not acknowledged in order.
type packet struct {
	off        int64 // of its payload
	sentAt     int64
	prev, succ uint32 // in its list
	size       int32  // of the payload
	pad        uint8
	state      state
	end        bool
	limited    bool
	cut        bool   // routers may cut it
	tries      uint8  // how often it was sent again
	run        uint32 // at the first of a run of packets that arrived out of order: how long that is known to be

	// As the stream was when it was sent.
	delivered, deliveredAt, firstSent int64
}

func (p *packet) wire() int64 { return int64(p.size) + int64(p.pad) + overhead }

type state byte

const (
	flying  state = iota
	missing       // it is to be sent again
	arrived
)

// round is what acknowledgements that came together say.
type round struct {
	acked, lost, before int64 // bytes
	rtt, late           int64 // of a packet that was sent once, and of a copy that was not needed
	newest              int64 // when the newest was sent
	prior, priorAt      int64
	sendTime            int64
	limited             bool
}

func (s *sender) init(now int64) {
	s.bbr.init(now)
	s.mtu, s.ceiling = baseMTU, maxMTU+1
	s.reordered = 1
	s.peerWindow = 64 << 10 // until it says
}

// list is a queue of packets, linked by their numbers.
type list struct {
	head, tail uint32
	n          int
}

func (s *sender) at(seq uint32) *packet { return &s.packets[seq&uint32(len(s.packets)-1)] }

func (s *sender) push(l *list, seq uint32) {
	p := s.at(seq)
	if l.n == 0 {
		l.head = seq
	} else {
		s.at(l.tail).succ, p.prev = seq, l.tail
	}
	l.tail = seq
	l.n++
}

// first puts a packet at the front.
func (s *sender) first(l *list, seq uint32) {
	if l.n == 0 {
		s.push(l, seq)
		return
	}
	s.at(seq).succ, s.at(l.head).prev = l.head, seq
	l.head = seq
	l.n++
}

func (s *sender) remove(l *list, seq uint32) {
	p := s.at(seq)
	l.n--
	switch {
	case l.n == 0:
	case l.head == seq:
		l.head = p.succ
	case l.tail == seq:
		l.tail = p.prev
	default:
		s.at(p.prev).succ, s.at(p.succ).prev = p.succ, p.prev
	}
}

// grow makes room for one more packet.
func (s *sender) grow() {
	n := int(s.next - s.una)
	if n < len(s.packets) {
		return
	}
	old := *s
	s.packets = make([]packet, max(8, 2*len(s.packets)))
	for seq := s.una; seq != s.next; seq++ {
		*s.at(seq) = *old.at(seq)
	}
}

// what may be sent.
type what byte

const (
	nothing what = iota
	lostOne
	newData
	theEnd
)

// ready returns what may be sent now, but for the rate.
func (s *sender) ready() what {
	if s.flying.n >= probes && s.backoff > 0 {
		return nothing // until something comes back
	}
	if s.inFlight > 0 && s.inFlight+int64(s.mtu) > s.bbr.window {
		return nothing
	}
	if s.missing.n > 0 {
		return lostOne
	}
	left := s.base + int64(s.out.n) - s.upTo
	switch room := s.peerWindow - (s.upTo - s.base); {
	case left == 0 && s.finish && !s.endSent:
		return theEnd
	case left == 0 || room <= 0:
		return nothing
	case room < min(left, int64(s.mtu-overhead)) && s.una != s.next:
		return nothing // there will be more
	}
	return newData
}

// catchUp is how much of the time that it came too late a sender makes up for at most, of
// which no more than half a round-trip time.
const catchUp = 25 * int64(time.Millisecond)

// pump sends what may be sent. mu is held.
func (s *Stream) pump(now int64) {
	if s.path.sock == nil || s.err != nil {
		return
	}
	o := outbox{to: s.path}
	late := 2 * quantum
	if s.paced {
		// A busy machine wakes us late. If that were not made up for, we would send less than
		// the rate, which is found by what was sent: it would sink to that of the timers.
		late = max(late, min(s.bbr.minRTT/2, catchUp))
	}
	s.nextSend = max(s.nextSend, now-late)
	for s.nextSend <= now {
		what := s.ready()
		if what == nothing {
			break
		}
		s.emit(&o, what, now)
	}
	o.flush()
	s.paced = s.ready() != nothing
	if s.inFlight < s.bbr.window && s.missing.n == 0 && s.upTo == s.base+int64(s.out.n) {
		s.limited = max(1, s.delivered+s.inFlight)
	}
}

// emit sends one packet.
func (s *Stream) emit(o *outbox, what what, now int64) {
	if what == lostOne {
		seq := s.missing.head
		p := s.at(seq)
		s.remove(&s.missing, seq)
		p.tries = min(p.tries, 254) + 1
		s.resent++
		s.copyAt = now
		s.launch(o, seq, p, now)
		return
	}
	s.grow()
	if s.una == s.next {
		s.unaAt = now
	}
	seq := s.next
	s.next++
	p := s.at(seq)
	*p = packet{off: s.upTo, end: what == theEnd}
	if what == newData {
		left := s.base + int64(s.out.n) - s.upTo
		p.size = int32(min(left, int64(s.mtu-overhead), s.peerWindow-(s.upTo-s.base)))
		s.upTo += int64(p.size)
		s.probe(p)
	} else {
		s.endSent = true
	}
	s.launch(o, seq, p, now)
}

// probe lets a full packet try whether a larger one would arrive.
func (s *sender) probe(p *packet) {
	if int(p.size) != s.mtu-overhead || s.probing != 0 || s.srtt == 0 || s.backoff > 0 {
		return
	}
	size := min(s.mtu+252, maxMTU)
	if size >= s.ceiling {
		size = (s.mtu + s.ceiling) / 2
	}
	if size-s.mtu < 16 {
		return
	}
	s.probing = size
	p.pad = uint8(size - s.mtu)
}

// again sends a packet again that may be on its way.
func (s *Stream) again(now int64, seq uint32) {
	p := s.at(seq)
	s.remove(&s.flying, seq)
	s.inFlight -= p.wire()
	if p.pad > 0 {
		p.pad, s.probing = 0, 0
	}
	p.tries = min(p.tries, 254) + 1
	s.resent++
	s.copyAt = now
	o := outbox{to: s.path}
	s.launch(&o, seq, p, now)
	o.flush()
}

// launch puts a packet on its way.
func (s *Stream) launch(o *outbox, seq uint32, p *packet, now int64) {
	if s.inFlight == 0 {
		s.firstSent, s.deliveredAt = now, now
	}
	if s.owed == 0 {
		s.owed = now
	}
	if s.flying.n == 0 {
		s.progress = now
	}
	s.sentLast = now
	p.sentAt, p.state = now, flying
	p.delivered, p.deliveredAt, p.firstSent, p.limited = s.delivered, s.deliveredAt, s.firstSent, s.limited != 0
	s.push(&s.flying, seq)
	n := p.wire()
	s.inFlight += n
	s.nextSend += int64(float64(n) * 1e9 / max(s.bbr.rate, 1))
	s.sent++

	h := header{flags: flagData, skip: p.pad, id: s.path.id, seq: seq, ack: s.expect}
	if p.end {
		h.flags = flagEnd
	}
	if len(s.gaps) == 0 {
		s.ackDue = false
	}
	s.advertised = s.room()
	h.window = uint32(s.advertised)
	if p.cut {
		o.flush()
		o.cut = true
	}
	b := o.begin(headerSize + int(p.pad) + int(p.size))
	b = appendHeader(b, h)
	b = append(b, zeros[:p.pad]...)
	b = slices.Grow(b, int(p.size))
	b = b[:len(b)+int(p.size)]
	s.out.peek(b[len(b)-int(p.size):], int(p.off-s.base))
	o.end(b)
	if p.cut {
		o.flush()
	}
}

var zeros [255]byte

// moved is told that packets go another way from now on: nothing is known of it.
func (s *sender) moved(now int64) {
	s.mtu, s.ceiling, s.probing, s.failed1 = baseMTU, maxMTU+1, 0, 0
	s.bbr.init(now)
	s.backoff, s.tail, s.nextSend, s.progress = 0, false, now, now
	s.limited = 0
	for s.flying.n > 0 {
		seq := s.flying.head
		s.lose(seq, s.at(seq))
	}
	s.recoverTo = s.next
}

// outbox gathers packets of the same size, which go to the system as one.
type outbox struct {
	to   path
	buf  []byte
	size int // of each but the last; 0 is none yet
	cut  bool
}

const maxBatch = 60 << 10

// begin returns what to append a packet of n bytes to.
func (o *outbox) begin(n int) []byte {
	if o.size != 0 && (len(o.buf)%o.size != 0 || n > o.size || len(o.buf)+n > maxBatch || len(o.buf) == 64*o.size) {
		o.flush()
	}
	if o.buf == nil {
		o.buf = lend(64 << 10)[:0]
	}
	if o.size == 0 {
		o.size = n
	}
	return o.buf
}

func (o *outbox) end(b []byte) { o.buf = b }

// flush sends what was gathered.
func (o *outbox) flush() {
	if len(o.buf) > 0 {
		if o.cut {
			o.to.sock.conn.Fragment(true)
		}
		o.to.sock.conn.Write(o.buf, o.size, o.to.remote, 0) //nolint:errcheck // as if it were lost
		if o.cut {                                          // what tries sizes must not be cut
			o.to.sock.conn.Fragment(false)
		}
	}
	if o.buf != nil {
		giveBack(o.buf[:cap(o.buf)])
	}
	o.buf, o.size, o.cut = nil, 0, false
}
