package market

import (
	"time"

	"dazaar-edge/protocol/dazaar"
)

// pays tells whether some of what the buyer paid is left, or nothing costs anything: who
// does makes place for nobody, and others for it.
func (s *session) pays() bool { return !s.trying.Load() && !s.paused.Load() && !s.spent.Load() }

// claim makes s the session of its buyer. It returns the one that it replaces, if any, or
// the code of why it must not: it comes too soon, and its buyer did not say that it leaves
// that one for it; or there is no place, which who pays is given before others.
func (o *Offer) claim(s *session) (old *session, refusal string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old = o.buyers[s.buyer]
	switch {
	case o.closed, !o.all[s]:
		return nil, dazaar.CodeBusy
	case old == s:
		return nil, ""
	case old != nil && time.Since(old.since) < o.replaceAfter && old.conn.Err() == nil && old.conn.HandshakeHash() != s.leaves:
		return nil, dazaar.CodeBusy
	case old == nil && len(o.buyers) >= o.cfg.Buyers:
		for _, x := range o.buyers { // rather one whose credit has ended than one who tries
			if !x.pays() && (old == nil || !old.paused.Load() && !old.spent.Load()) {
				old = x
			}
		}
		switch {
		case old == nil || s.trying.Load():
			return nil, dazaar.CodeBusy
		case !s.pays():
			return nil, dazaar.CodePaymentRequired
		}
		delete(o.buyers, old.buyer)
	}
	o.buyers[s.buyer] = s
	s.since = time.Now()
	return old, ""
}

// forget takes a session out that is over.
func (o *Offer) forget(s *session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, s)
	if o.buyers[s.buyer] == s {
		delete(o.buyers, s.buyer)
	}
}
