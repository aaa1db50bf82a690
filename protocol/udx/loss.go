package udx

// Times of loss detection.
const (
	firstRTO = 1e9
	minRTO   = 250e6
	maxRTO   = 2e9 // to which time-outs in a row make it grow
	minReo   = 1e6 // timers are no finer
)

// probes is how many packets go out after a time-out, until something comes back (RFC 9002,
// section 6.2.4): where much is lost, one and its acknowledgement are rarely lucky both.
const probes = 2

// acknowledged takes what a packet says about ours. mu is held, and conclude follows.
func (s *Stream) acknowledged(h header, blocks []byte, now int64) {
	if before(s.next, h.ack) || int32(h.seq-s.expect) > maxAhead {
		return // it is not of this stream
	}
	window, acked := s.peerWindow, s.round.acked
	if before(s.windowSeq, h.seq) || s.windowSeq == h.seq && !before(h.ack, s.winAck) {
		if s.peerWindow == 0 {
			s.unaAt = now // from now on it owes
		}
		s.peerWindow, s.windowSeq, s.winAck = int64(h.window), h.seq, h.ack
		if h.window > 0 {
			s.asked = 0
		}
	}
	if s.round.acked == 0 {
		s.round.before = s.inFlight
	}
	freed := 0
	for before(s.una, h.ack) {
		p := s.at(s.una)
		s.arrive(s.una, p, now)
		freed += int(p.size)
		s.una++
		s.unaAt = now
	}
	if freed > 0 {
		s.out.drop(freed)
		s.base += int64(freed)
		if room := s.cfg.SendBuffer - s.out.n; room >= s.cfg.SendBuffer/4 {
			s.wr.Broadcast()
		}
	}
	for ; len(blocks) >= 8; blocks = blocks[8:] {
		k := blockAt(blocks)
		if from, to := k.start-s.una, k.end-s.una; from >= to || to > s.next-s.una {
			continue // what was never sent, or has arrived
		}
		first := s.at(k.start)
		seq := k.start
		if first.state == arrived {
			seq += min(first.run, k.len())
		}
		for ; seq != k.end; seq++ {
			s.arrive(seq, s.at(seq), now)
		}
		first.run = k.len()
	}
	// What says nothing new answers a copy that was not needed: as the way is longer than it
	// was taken for, and no other packet tells by how much. (News of much room is something.)
	if d := now - s.copyAt; h.flags&(flagData|flagEnd) == 0 && s.round.acked == acked && s.peerWindow-window < window/8 && s.copyAt != 0 && d > s.srtt {
		if d <= maxRTO {
			s.round.late = d
		}
		s.copyAt = 0
	}
	if s.una == s.next {
		s.owed = 0
		s.done = s.endSent
		if len(s.packets) > 64 {
			s.packets = nil
		}
	}
}

// arrive notes that a packet did.
func (s *Stream) arrive(seq uint32, p *packet, now int64) {
	spurious := false
	switch p.state {
	case arrived:
		return
	case flying:
		s.remove(&s.flying, seq)
		s.inFlight -= p.wire()
		spurious = p.tries > 0 && now-p.sentAt < s.bbr.minRTT/2
	case missing:
		s.remove(&s.missing, seq)
		spurious = true
	}
	p.state, p.run = arrived, 1
	s.delivered += p.wire()
	s.deliveredAt = now
	s.progress, s.backoff, s.tail = now, 0, false
	r := &s.round
	r.acked += p.wire()
	if spurious {
		s.reordered = min(2*s.reordered, 16) // it was only late
	} else {
		if p.sentAt > s.rackAt || p.sentAt == s.rackAt && before(s.rackSeq, seq) {
			s.rackAt, s.rackSeq, s.rackRTT = p.sentAt, seq, now-p.sentAt
		}
		if p.tries == 0 && p.sentAt >= r.newest {
			r.newest, r.rtt = p.sentAt, max(1, now-p.sentAt)
		}
	}
	if r.sendTime == 0 && r.priorAt == 0 || p.delivered >= r.prior {
		r.prior, r.priorAt, r.limited = p.delivered, p.deliveredAt, p.limited
		r.sendTime = p.sentAt - p.firstSent
		s.firstSent = p.sentAt
	}
	if size := int(p.size) + int(p.pad) + overhead; p.pad > 0 && size > s.mtu && size == s.probing {
		s.mtu, s.probing, s.failed1 = size, 0, 0
	}
}

// conclude does what follows from all that came together, and from time that passed: it
// finds what was lost, and adapts the rate. mu is held.
func (s *Stream) conclude(now int64) {
	r := s.round
	s.round = round{}
	if r.rtt > 0 {
		s.sample(r.rtt)
	} else if r.late > 0 {
		s.sample(r.late)
	}
	r.lost += s.detect(now)
	if s.bbr.recovery && !before(s.una, s.recoverTo) {
		s.bbr.recover()
	}
	if r.lost > 0 {
		s.bbr.lose(s.inFlight, r.acked, s.delivered)
		s.recoverTo = s.next
	}
	if r.acked == 0 {
		return
	}
	interval := max(r.sendTime, s.deliveredAt-r.priorAt)
	if interval < s.bbr.minRTT {
		interval = 0 // it cannot be
	}
	if s.limited != 0 && s.delivered > s.limited {
		s.limited = 0
	}
	s.bbr.on(sample{
		now: now, acked: r.acked, lost: r.lost, rtt: r.rtt, delivered: s.delivered, prior: r.prior, interval: interval,
		limited: r.limited, inFlight: s.inFlight, before: r.before,
	})
}

// sample takes a round-trip time (RFC 6298).
func (s *sender) sample(rtt int64) {
	if s.srtt == 0 {
		s.srtt, s.rttvar = rtt, rtt/2
		return
	}
	d := s.srtt - rtt
	if d < 0 {
		d = -d
	}
	s.rttvar += (d - s.rttvar) / 4
	s.srtt += (rtt - s.srtt) / 8
}

// rto returns how long nothing may come back.
func (s *sender) rto() int64 {
	if s.srtt == 0 {
		return firstRTO
	}
	d := max(s.srtt+4*s.rttvar, minRTO)
	return max(d, min(d<<min(s.backoff, 8), maxRTO))
}

// detect finds packets that were lost: others that were sent later have arrived, and they
// had time to. It returns how many bytes.
func (s *sender) detect(now int64) (lost int64) {
	s.rackTimer = 0
	reo := max(min(s.bbr.minRTT*s.reordered/4, s.srtt), minReo)
	for s.flying.n > 0 {
		seq := s.flying.head
		p := s.at(seq)
		if p.sentAt > s.rackAt || p.sentAt == s.rackAt && !before(seq, s.rackSeq) {
			break
		}
		if due := p.sentAt + s.rackRTT + reo; due > now {
			s.rackTimer = due
			break
		}
		lost += s.lose(seq, p)
	}
	return lost
}

// lose notes that a packet was lost, and returns how many bytes tell of congestion.
func (s *sender) lose(seq uint32, p *packet) int64 {
	s.remove(&s.flying, seq)
	n := p.wire()
	s.inFlight -= n
	p.state = missing
	if s.missing.n > 0 && before(seq, s.missing.head) {
		s.first(&s.missing, seq)
	} else {
		s.push(&s.missing, seq)
	}
	if p.pad > 0 {
		if int(n) == s.probing {
			s.probing = 0
			if s.failed1++; s.failed1 >= 3 {
				s.ceiling, s.failed1 = int(n), 0
			}
		}
		p.pad = 0
		return 0 // it was too large, most likely
	}
	return n
}

// expire does what is due. mu is held, and settle follows.
func (s *Stream) expire(now int64) {
	if s.path.sock == nil || s.over {
		return
	}
	if s.owed != 0 && now-max(s.owed, s.heardAt) >= int64(s.cfg.Silence) {
		s.fail(ErrTimeout)
		return
	}
	if s.una != s.next && s.peerWindow > 0 && now-s.unaAt >= 2*int64(s.cfg.Silence) {
		s.fail(ErrTimeout) // the other side is there, and this does not get through
		return
	}
	switch {
	case s.flying.n > 0 && now >= s.tailAt():
		s.tail, s.progress = true, now
		s.again(now, s.flying.tail)
	case s.flying.n > 0 && now >= s.progress+s.rto():
		if s.backoff++; s.backoff >= 2 && s.mtu > baseMTU {
			s.mtu, s.ceiling = baseMTU, baseMTU // what was fine once goes nowhere now
		}
		for s.flying.n > 0 {
			seq := s.flying.tail
			s.lose(seq, s.at(seq))
		}
		// The first ones first: the other side may have more of the others than it can say,
		// and only these show what is missing.
		s.missing = list{}
		for seq := s.una; seq != s.next; seq++ {
			if p := s.at(seq); p.state == missing {
				s.push(&s.missing, seq)
				p.cut = p.cut || p.size > baseMTU-overhead && s.backoff >= 2 // its size cannot change any more
			}
		}
		s.bbr.timeout()
		s.recoverTo = s.next
		s.progress, s.tail, s.nextSend = now, false, now
	case s.starved() && now >= s.askAt():
		s.asked++
		s.askedAt = now
		if s.owed == 0 {
			s.owed = now
		}
		s.control(s.path, flagHeartbeat)
	}
}

// tailAt is when the last packet is sent again, so that the other side says what it has;
// never if that was done.
func (s *sender) tailAt() int64 {
	if s.tail || s.backoff > 0 || s.srtt == 0 {
		return 1 << 62
	}
	return min(max(s.sentLast, s.progress)+2*s.srtt+4e6, s.progress+s.rto())
}

// starved tells whether the other side has no room, and nothing is on its way that it
// would answer to.
func (s *sender) starved() bool {
	return s.peerWindow == 0 && s.una == s.next && s.upTo < s.base+int64(s.out.n)
}

func (s *sender) askAt() int64 {
	if s.asked == 0 {
		return s.progress
	}
	return s.askedAt + max(s.rto(), min(s.rto()<<min(s.asked, 8), maxRTO))
}

// wakeAt returns when something is due, 0 if never. mu is held.
func (s *Stream) wakeAt(now int64) int64 {
	at := int64(1 << 62)
	if s.flying.n > 0 {
		at = min(at, s.progress+s.rto(), s.tailAt())
	}
	if s.rackTimer != 0 {
		at = min(at, s.rackTimer)
	}
	if s.starved() {
		at = min(at, max(s.askAt(), now))
	}
	if s.owed != 0 {
		at = min(at, max(s.owed, s.heardAt)+int64(s.cfg.Silence))
	}
	if s.una != s.next && s.peerWindow > 0 {
		at = min(at, s.unaAt+2*int64(s.cfg.Silence))
	}
	if s.nextSend > now && s.ready() != nothing {
		at = min(at, max(s.nextSend, now+quantum))
	}
	if at == 1<<62 {
		return 0
	}
	return at
}
