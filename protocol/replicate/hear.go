package replicate

import (
	"fmt"
	"time"

	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/replicate/message"
)

// sellerHandler is a Seller as its channel sees it.
type sellerHandler Seller

func (h *sellerHandler) seller() *Seller { return (*Seller)(h) }

// Opened implements mux.Handler.
func (h *sellerHandler) Opened(handshake []byte) error {
	s := h.seller()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = true
	return s.cfg.Session.check(s.key, handshake)
}

// Closed implements mux.Handler.
func (h *sellerHandler) Closed(err error) {
	s := h.seller()
	s.mu.Lock()
	defer s.unlock()
	if !s.ended {
		s.stop()
		s.why = err
	}
}

// Message implements mux.Handler.
func (h *sellerHandler) Message(typ uint64, b []byte) error {
	s := h.seller()
	s.mu.Lock()
	defer s.unlock()
	if s.ended {
		return nil
	}
	switch typ {
	case message.TypeSync:
		m, _, err := message.ParseSync(b)
		if err != nil {
			return bad("sync", err)
		}
		return s.onSync(m)
	case message.TypeRequest:
		return s.onRequest(b)
	case message.TypeCancel:
		id, _, err := compact.ParseUint(b)
		if err != nil {
			return bad("cancel", err)
		}
		return s.cancel(id)
	case message.TypeData:
		d, _, err := message.ParseData(b)
		if err != nil {
			return bad("data", err)
		}
		return s.onData(&d)
	case message.TypeNoData:
		n, _, err := message.ParseNoData(b)
		if err != nil {
			return bad("noData", err)
		}
		if a, ok := s.asks.take(n.Request); ok {
			err = a.reply(nil, ErrUnavailable)
		}
		s.answered()
		return err
	case message.TypeWant:
		w, _, err := message.ParseWant(b)
		if err != nil {
			return bad("want", err)
		}
		s.onWant(w)
	case message.TypeRange:
		r, _, err := message.ParseRange(b)
		if err != nil {
			return bad("range", err)
		}
		s.theirs.set(r.Start, r.Start+r.Length, !r.Drop)
		s.theirs.forgetShort(maxRanges)
	}
	return nil
}

// onData takes an answer of the peer. mu is held.
func (s *Seller) onData(d *message.Data) error {
	var err error
	if a, ok := s.asks.take(d.Request); ok {
		err = a.reply(d, nil)
	}
	s.answered()
	return err
}

// onSync notes where the peer stands. mu is held.
func (s *Seller) onSync(m message.Sync) error {
	was := s.remote
	s.remote, s.heard = m, true
	switch {
	case s.settling != nil:
	case !s.feed.Settled(m.Fork, m.Length) && (m.Length > 0 || !s.sure()):
		if s.settles++; s.settles > maxSettled {
			return fmt.Errorf("%w: it shows what it has not, again and again", ErrFlood)
		}
		s.settle()
	case !s.greeted:
		s.tellAll()
	case m.Fork == s.told.fork && was.Fork != m.Fork:
		// It followed a raised fork. What a stock buyer was told before it cut
		// its log it has half forgotten; the same words again would tell it
		// nothing, unless they are taken back first.
		if s.told.first > 0 {
			s.send(message.TypeRange, message.Range{Drop: true, Length: s.told.length}.Append(nil))
		}
		s.sendRange(s.available(s.told, 0))
		s.sendSync()
	case m.Length < s.told.length:
		s.syncNow = true // it waits to hear its own length
		s.ch.Wake()
	}
	return nil
}

// sure tells whether the feed knows for itself what was signed. mu is held.
func (s *Seller) sure() bool { return s.feed.Settled(s.feed.Fork(), 0) }

// greet tells the peer where the log stands, or asks it first. mu is held.
func (s *Seller) greet() {
	s.heard = true
	if s.feed.Settled(s.remote.Fork, s.remote.Length) || s.remote.Length == 0 && s.sure() {
		s.tellAll()
	} else {
		s.settle()
	}
}

// tellAll announces everything. mu is held.
func (s *Seller) tellAll() {
	now := time.Now()
	b := s.bounds()
	s.greeted, s.changed = true, false
	if s.cfg.Greeted != nil {
		s.cfg.Greeted(s.remote.Length)
	}
	s.told = b
	s.nextTell, s.greetedAt = now, now // what comes first is not held back: somebody may just have paid
	s.sendSync()
	if s.behind() {
		// On its way to a higher fork a stock buyer asks for hashes of what
		// was announced, wherever the forks parted: that is not for sale only.
		b.first, _ = s.feed.Bounds()
		s.sendRange(message.Range{Start: b.first, Length: b.length - b.first})
	} else {
		s.sendRange(s.available(b, 0))
	}
	s.ch.Wake()
}

// behind tells whether the peer has blocks of another fork. mu is held.
func (s *Seller) behind() bool { return s.remote.Length > 0 && s.remote.Fork != s.told.fork }

func (s *Seller) sendRange(r message.Range) {
	s.each(r, func(r message.Range) { s.send(message.TypeRange, r.Append(nil)) })
}

// available is the range of blocks that may be had, from block since on. mu is
// held.
func (s *Seller) available(b bounds, since uint64) message.Range {
	start := max(b.first, min(since, b.end))
	if b.first == 0 {
		start = 0
	}
	return message.Range{Start: start, Length: b.end - min(start, b.end)}
}

// onRequest parks a request until Produce answers it. mu is held.
func (s *Seller) onRequest(b []byte) error {
	var flags, id uint64
	if _, err := compact.ParseUints(b, &flags, &id); err != nil {
		return bad("request", err)
	}
	if !s.heard { // a peer that asks without a word of where it stands
		s.greet()
	}
	if err := s.cancel(id); err != nil { // the newer one takes the place of an older one
		return err
	}
	if !s.requests.push(b) {
		return fmt.Errorf("%w: more than %d", ErrFlood, s.requests.n)
	}
	s.seen.set(id)
	if !s.paused {
		s.ch.Wake()
	}
	return nil
}

func (s *Seller) cancel(id uint64) error {
	if !s.seen.has(id) {
		return nil
	}
	s.seen.clear(id)
	s.built = nil
	if !s.requests.remove(id) {
		if s.misses++; s.misses > maxMisses+s.requests.total {
			return fmt.Errorf("%w: %d that are none are taken back", ErrFlood, s.misses)
		}
	}
	return nil
}

// onWant tells which blocks of a range are there. mu is held.
func (s *Seller) onWant(w message.Want) {
	if !s.greeted || s.behind() {
		return // it will hear everything
	}
	b := s.told
	end := min(b.end, w.Start+min(w.Length, 1<<21))
	start := max(b.first, w.Start)
	if start >= end || w.Start > compact.MaxUint {
		return
	}
	if w.Any {
		s.send(message.TypeRange, message.Range{Start: start, Length: 1}.Append(nil))
		return
	}
	s.sendRange(message.Range{Start: start, Length: end - start})
}
