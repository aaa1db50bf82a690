package market

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/replicate/message"
	"dazaar-edge/protocol/secretstream"
)

// session is one connection of a buyer with an offer.
type session struct {
	o     *Offer
	conn  *secretstream.Conn
	mux   *mux.Mux
	buyer [32]byte
	from  *secretstream.Listener
	came  time.Time
	since time.Time // when it got a feed; guarded by o.mu

	mu     sync.Mutex
	ch     *dazaar.Seller    // guarded by mu, like all below
	feed   *feed.Feed        // nil until the buyer has one
	seller *replicate.Seller // nil while the feed's channel is closed
	over   bool
}

func newSession(o *Offer, c *secretstream.Conn, from *secretstream.Listener) *session {
	s := &session{o: o, conn: c, buyer: c.Remote(), from: from, came: time.Now()}
	share := o.cfg.Uplink.Share(o.cfg.BuyerRate)
	s.mux = mux.New(c, mux.Config{Accept: s.accept, MaxChannels: 8, Window: share.Window(), Pace: share})
	return s
}

// run serves until the connection ends.
func (s *session) run() {
	defer s.o.forget(s)
	// Who does not ask for an offer soon has no business here.
	hurry := time.AfterFunc(10*time.Second, func() {
		s.mu.Lock()
		idle := s.ch == nil
		s.mu.Unlock()
		if idle {
			s.mux.Close()
		}
	})
	defer hurry.Stop()
	err := s.mux.Run()
	s.mu.Lock()
	s.over = true
	had := s.feed != nil
	s.mu.Unlock()
	if had {
		s.o.log.Info("buyer left", "buyer", fmt.Sprintf("%x", s.buyer[:4]), "because", err)
	}
}

// accept decides about a channel that the buyer opened.
func (s *session) accept(protocol string, id []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := s.o.key()
	switch {
	case protocol == dazaar.Protocol && string(id) == string(key[:]) && s.ch == nil:
		ch, err := dazaar.OpenSeller(s.mux, key, s.o.cfg.Agent, (*handler)(s))
		if err == nil {
			s.ch = ch
		}
	case (protocol == message.Protocol || protocol == "hypercore") && s.feed != nil && s.seller == nil && !s.over:
		if want := merkle.DiscoveryKey(s.feed.Key()); string(id) == string(want[:]) {
			s.sell()
		}
	}
	return false
}

// sell opens the feed's channel. mu is held.
func (s *session) sell() {
	x, err := replicate.NewSeller(replicate.SellerConfig{
		Session: replicate.Session{Mux: s.mux, HandshakeHash: s.conn.HandshakeHash(), Initiator: s.conn.Initiator()},
		Feed:    s.feed, Blocks: s.feed.Reader(), Uplink: s.o.cfg.Uplink, Ended: s.ended, Log: s.o.log,
	})
	if err != nil {
		s.o.log.Debug("a feed's channel cannot be opened", "error", err)
		return
	}
	s.seller = x
}

// ended is called when the feed's channel is closed.
func (s *session) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seller = nil
	if !errors.Is(err, replicate.ErrTooOld) || s.over {
		return // the buyer may open it again
	}
	f, err := s.o.cfg.Feed.Renew(s.buyer)
	if err != nil {
		s.o.log.Error("a buyer needs a new feed, and there is none", "buyer", fmt.Sprintf("%x", s.buyer[:4]), "error", err)
		return
	}
	s.feed = f
	s.o.log.Warn("a buyer's copy lies too far back: it gets a new feed", "buyer", fmt.Sprintf("%x", s.buyer[:4]), "generation", f.Generation())
	s.give()
}

// give tells the buyer its feed and serves it. mu is held.
func (s *session) give() {
	f := dazaar.OneTimeFeed{Key: s.feed.Key(), Generation: s.feed.Generation(), Fork: s.feed.Fork()}
	f.Sign(s.o.cfg.Key, s.buyer)
	if s.ch.OneTimeFeed(f) == nil && s.ch.Valid(s.has()) == nil {
		s.sell()
	}
}

// has returns what the buyer has.
func (s *session) has() dazaar.Valid {
	first, length := s.feed.Bounds()
	return dazaar.Valid{Type: "free", CreditMsat: "0", First: first, Length: length}
}

// update says that the log changed.
func (s *session) update() {
	s.mu.Lock()
	x := s.seller
	s.mu.Unlock()
	if x != nil {
		x.Update()
	}
}

// valid tells the buyer what it has.
func (s *session) valid() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.feed != nil && !s.over {
		s.ch.Valid(s.has()) //nolint:errcheck // the connection ends
	}
}

// finish says why and ends the connection.
func (s *session) finish(code, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.seller != nil {
		s.seller.Revoke()
		s.seller = nil
	}
	if s.ch != nil {
		s.ch.Invalid(dazaar.Invalid{Error: why, Code: code}) //nolint:errcheck // the connection ends
	}
	s.mux.Finish()
}

// handler is a session as the dazaar channel sees it.
type handler session

// Opened implements dazaar.SellerHandler: the offer is free, so the buyer gets a feed.
func (h *handler) Opened(hs dazaar.Handshake) error {
	s := (*session)(h)
	old, ok := s.o.claim(s)
	if old != nil {
		old.finish(dazaar.CodeReplaced, "another connection with this key took over")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ch.SellerID(s.o.id); err != nil {
		return err
	}
	if !ok {
		err := s.ch.Invalid(dazaar.Invalid{Error: "too many buyers, or a connection with this key is newer than 5 s: try again", Code: dazaar.CodeBusy})
		s.mux.Finish()
		return err
	}
	f, err := s.o.cfg.Feed.Rekey(s.buyer)
	if err != nil {
		s.o.log.Error("no feed for a buyer", "buyer", fmt.Sprintf("%x", s.buyer[:4]), "error", err)
		err = s.ch.Invalid(dazaar.Invalid{Error: "the seller cannot sell now", Code: dazaar.CodeBusy})
		s.mux.Finish()
		return err
	}
	s.feed = f
	s.from.Favor(s.conn.RemoteAddr())
	s.o.log.Info("buyer", "buyer", fmt.Sprintf("%x", s.buyer[:4]), "from", s.conn.RemoteAddr(), "agent", fmt.Sprintf("%.40q", hs.Agent))
	s.give()
	return nil
}

// Closed implements dazaar.SellerHandler.
func (h *handler) Closed(error) { (*session)(h).mux.Finish() }

// What a buyer of a free feed has no need to say is ignored.
func (h *handler) UserMessage(dazaar.UserMessage) error       { return nil }
func (h *handler) AcceptTerms(dazaar.AcceptTerms) error       { return nil }
func (h *handler) InvoiceRequest(dazaar.InvoiceRequest) error { return nil }
func (h *handler) Receipt(dazaar.Receipt) error               { return nil }
func (h *handler) FindTime(dazaar.FindTime) error             { return nil }
