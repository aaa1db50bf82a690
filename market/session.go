package market

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/replicate/message"
	"dazaar-edge/protocol/secretstream"
)

// session is one connection of a buyer with an offer. It begins without a feed; it
// gets one when there is credit, a trial, or a price of nothing; when credit ends it
// is paused, and goes on when something is paid.
type session struct {
	o     *Offer
	conn  *secretstream.Conn
	mux   *mux.Mux
	buyer [32]byte
	from  Listener
	since time.Time // when it got a feed; guarded by o.mu, like until
	until time.Time // how long it may stay without one
	came  time.Time

	dry    atomic.Bool // the meter let a block not pass
	paused atomic.Bool // its credit ended; set under mu
	trying atomic.Bool // it has a trial, and paid nothing
	spent  atomic.Bool // nothing was left when it came, but what it had paid for, and may have lost on the way
	// refused is the block for which dry was set.
	refused atomic.Pointer[refusal]
	// restored: credit came back after the books were lost, and nothing was charged of it
	// yet; peer is how many blocks the buyer has, and one, once it showed it.
	restored atomic.Bool
	peer     atomic.Uint64

	leaves [64]byte // the handshake hash of the connection that its buyer leaves for it; constant once the channel is open

	mu     sync.Mutex
	ch     *dazaar.Seller // guarded by mu, like all below
	sale   *ledger.Sale   // nil before the channel is open, and where nothing is paid
	terms  bool           // it may be served: it accepted those of today, or of when it paid
	agreed bool           // it accepted those of today
	// burnable: each card that it was served under said so.
	burnable bool
	// accepted is what it signed, and is not yet kept.
	accepted *dazaar.AcceptTerms
	feed     *feed.Feed // nil until the buyer has one
	seller   *replicate.Seller
	over     bool
	asked    *bucket.Bucket // what the buyer may ask for
	invoice  bool           // one is being made
}

// Limits of what a connection may ask for.
const (
	asksPerSecond = 1
	asksBurst     = 20
)

// unpaidStay is how long a connection without a feed may stay, from its beginning and
// from each thing that it may do about that.
const unpaidStay = 2 * time.Minute

// freeStay is how long one on trial may stay, or one who came for what it had paid for.
const freeStay = 30 * time.Minute

func newSession(o *Offer, c *secretstream.Conn, from Listener) *session {
	now := time.Now()
	s := &session{o: o, conn: c, buyer: c.Remote(), from: from, came: now, until: now.Add(unpaidStay), asked: bucket.New(asksPerSecond, asksBurst, now)}
	share := o.cfg.Uplink.Share(o.cfg.BuyerRate)
	s.mux = mux.New(c, mux.Config{Accept: s.accept, MaxChannels: 8, Window: share.Window(), Pace: share})
	return s
}

func (s *session) name() string { return fmt.Sprintf("%x", s.buyer[:4]) }

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
	sale, had := s.sale, s.feed != nil
	s.sale = nil
	s.mu.Unlock()
	if sale != nil {
		if err := sale.Close(); err != nil {
			s.o.log.Error("what a buyer used up is not noted", "buyer", s.name(), "error", err)
		}
	}
	if had {
		s.o.log.Info("buyer left", "buyer", s.name(), "because", err)
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

// begin greets a buyer and gives it what it has a right to. mu is held.
func (s *session) begin() error {
	l := s.o.listing()
	if err := s.ch.SellerID(s.o.id); err != nil {
		return err
	}
	if err := s.ch.Card(l.signed); err != nil {
		return err
	}
	for _, b := range s.o.burnedKeys() {
		if err := s.ch.Burned(b); err != nil {
			return err
		}
	}
	if l.terms != "" {
		if err := s.ch.Terms(l.terms); err != nil {
			return err
		}
	}
	contract, err := s.o.cfg.Ledger.Contract(s.o.cfg.Name, s.buyer)
	if err != nil {
		return s.broken("contract", err)
	}
	if contract.Revoked {
		s.refuse(dazaar.CodeRevoked, "the owner ended this sale")
		return nil
	}
	s.restored.Store(contract.Restored)
	s.burnable = contract.Burnable
	s.agreed = l.hash == nil || contract.Terms != nil && *contract.Terms == *l.hash
	s.terms = s.agreed
	if !l.free {
		if s.sale, err = s.o.cfg.Ledger.Sale(s.o.cfg.Name, s.buyer); err != nil {
			return s.broken("meter", err)
		}
		// Credit was bought under terms of its day.
		st := s.sale.State()
		s.terms = s.terms || contract.Terms != nil && (!st.Dry() || st.Owes())
	}
	return s.proceed()
}

// broken ends a session that the seller cannot serve. mu is held.
func (s *session) broken(what string, err error) error {
	s.o.log.Error("a buyer cannot be served", "buyer", s.name(), "what", what, "error", err)
	s.refuse(dazaar.CodeBusy, "the seller cannot sell now")
	return nil
}

// refuse says why and ends the connection. mu is held.
func (s *session) refuse(code, why string) {
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

// proceed gives the buyer a feed, if it may have one, and has none. mu is held.
func (s *session) proceed() error {
	if s.over || s.feed != nil {
		return nil
	}
	l := s.o.listing()
	if l.free != (s.sale == nil) { // it changed meanwhile
		s.refuse(dazaar.CodeClosing, "the offer has changed: come again")
		return nil
	}
	if !s.terms {
		return s.ch.Invalid(dazaar.Invalid{Error: "accept the terms of use first", Code: dazaar.CodeTerms})
	}
	if s.sale != nil {
		dry, st := s.sale.Dry() && !s.tries(l), s.sale.State()
		if dry && !st.Owes() {
			return s.charge()
		}
		s.trying.Store(!st.Begun)
		s.spent.Store(dry) // it may not have all that it paid for
	}
	if err := s.sign(); err != nil {
		return s.broken("terms", err)
	}
	if err := s.promise(l.card.Burnable); err != nil {
		return s.broken("contract", err)
	}
	old, code := s.o.claim(s)
	s.spent.Store(s.spent.Load() && s.sale.Dry()) // an older connection may have been told of a payment meanwhile
	switch code {
	case "":
	case dazaar.CodePaymentRequired:
		return s.charge()
	default:
		s.refuse(code, "too many buyers, or a connection with this key is newer than 5 s: try again")
		return nil
	}
	if old != nil {
		code, why := dazaar.CodeReplaced, "another connection with this key took over"
		if old.conn.HandshakeHash() == s.leaves { // its buyer knows, unless this one breaks, too
			code, why = dazaar.CodeClosing, "handed over to another connection"
		} else if old.buyer != s.buyer {
			code, why = dazaar.CodeBusy, "others have paid, and there are too many: pay to come back"
		}
		s.o.spawn(func(context.Context) { old.finish(code, why) })
	}
	f, err := s.o.cfg.Feed.Rekey(s.buyer)
	if err != nil {
		return s.broken("feed", err)
	}
	s.feed = f
	if l, ok := s.from.(interface{ Favor(net.Addr) }); ok {
		l.Favor(s.conn.RemoteAddr())
	}
	s.o.log.Info("buyer", "buyer", s.name(), "from", s.conn.RemoteAddr())
	s.give()
	return nil
}

// tries begins a trial, if there is one for this buyer. mu is held.
func (s *session) tries(l *listing) bool {
	if st := s.sale.State(); l.trial == nil || st.Tried || st.Begun || !s.o.trial(s.conn.RemoteAddr()) {
		return false
	}
	_, length := s.o.bounds()
	err := s.sale.Change(func(m *meter.State) {
		m.Tried = true
		m.Trial = meter.Trial{From: length, Span: l.trial.Span, Bytes: l.trial.Bytes}
	})
	if err != nil {
		s.o.log.Error("no trial", "buyer", s.name(), "error", err)
	}
	return err == nil
}

// sell opens the feed's channel. mu is held.
func (s *session) sell() {
	blocks := s.feed.Reader()
	cfg := replicate.SellerConfig{
		Session: replicate.Session{Mux: s.mux, HandshakeHash: s.conn.HandshakeHash(), Initiator: s.conn.Initiator()},
		Feed:    s.feed, Blocks: blocks, Uplink: s.o.cfg.Uplink, Paused: s.paused.Load(), Ended: s.ended, Log: s.o.log,
	}
	if s.sale != nil {
		cfg.First = s.first()
		cfg.Meter = toll{s, s.sale, blocks}
		sale, reader := s.sale, s.feed.Reader()
		cfg.Greeted = func(length uint64) {
			s.peer.Store(length + 1)
			s.recharge(sale, reader)
		}
	}
	x, err := replicate.NewSeller(cfg)
	if err != nil {
		s.o.log.Debug("a feed's channel cannot be opened", "error", err)
		return
	}
	s.seller = x
}

// first returns the first block that the sale includes. mu is held.
func (s *session) first() uint64 {
	if s.sale == nil {
		return 0
	}
	st := s.sale.State()
	return st.First()
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
		s.o.log.Error("a buyer needs a new feed, and there is none", "buyer", s.name(), "error", err)
		return
	}
	s.feed = f
	s.o.log.Warn("a buyer's copy lies too far back: it gets a new feed", "buyer", s.name(), "generation", f.Generation())
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

// has returns what the buyer has. mu is held.
func (s *session) has() dazaar.Valid {
	first, length := s.feed.Bounds()
	v := dazaar.Valid{Type: "free", CreditMsat: "0", First: max(first, s.first()), Length: length}
	if s.sale == nil {
		return v
	}
	describe(&v, s.sale.State(), s.o.listing().price.Unit)
	return v
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

// tick looks after a session each second: credit that runs by the clock may have
// ended, and so may the patience with who does not pay.
func (s *session) tick(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.over:
	case s.feed == nil:
		if s.o.overdue(s, now) {
			s.refuse(dazaar.CodePaymentRequired, "nothing was paid")
		}
	case (s.trying.Load() || s.spent.Load()) && now.Sub(s.came) > freeStay:
		s.refuse(dazaar.CodePaymentRequired, "nobody stays for ever without paying: pay, or come again")
	case s.sale != nil && !s.paused.Load() && s.sale.Advance() && s.sale.Dry():
		s.pause()
	}
}

// sign keeps that the buyer accepted the terms, when that begins to matter: strangers
// leave nothing behind. mu is held.
func (s *session) sign() error {
	if s.accepted == nil {
		return nil
	}
	a := *s.accepted
	err := s.o.cfg.Ledger.ChangeContract(s.o.cfg.Name, s.buyer, func(c *ledger.Contract) { c.Terms, c.Sig = &a.SHA256, a.Sig })
	if err == nil {
		s.accepted = nil
	}
	return err
}

// pause parks what the buyer asks for, and says why. mu is held.
func (s *session) pause() {
	s.dry.Store(false)
	if s.paused.Load() || s.over {
		return
	}
	s.paused.Store(true)
	if s.seller != nil {
		s.seller.Pause()
	}
	s.ch.Invalid(dazaar.Invalid{Error: "credit has ended: ask for an invoice", Code: dazaar.CodeCreditEnded}) //nolint:errcheck // the connection ends
	s.ch.Valid(s.has())                                                                                       //nolint:errcheck // as above
	s.o.log.Info("credit ended", "buyer", s.name())
}

// relist sends a new card. Who has for nothing what now costs something, or the other
// way round, must come again.
func (s *session) relist(was, l *listing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ch == nil || s.over:
	case l.free != (s.sale == nil):
		s.refuse(dazaar.CodeClosing, "the offer has changed: come again")
	default:
		s.agreed = was.hash.Same(l.hash) && s.agreed || l.hash == nil
		s.ch.Card(l.signed) //nolint:errcheck // the connection ends
		if l.terms != "" {
			s.ch.Terms(l.terms) //nolint:errcheck // as above
		}
	}
}

// wake pauses a session whose meter let nothing pass.
func (s *session) wake() {
	if !s.dry.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// It may have been paid since, or be gone: then the seller says so itself.
	if x := s.refused.Load(); s.sale != nil && x != nil && (x.gone || s.sale.Covers(x.index, x.weight)) {
		s.dry.Store(false)
		if s.seller != nil && !s.paused.Load() {
			s.seller.Resume()
		}
		return
	}
	s.pause()
}

// paid goes on after a payment.
func (s *session) paid() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over || s.ch == nil || s.sale == nil {
		return
	}
	s.terms = true                                             // they were accepted, or no invoice had been made
	s.asked = bucket.New(asksPerSecond, asksBurst, time.Now()) // who pays may ask
	if s.feed == nil {
		s.proceed() //nolint:errcheck // the connection ends
		return
	}
	s.recharge(s.sale, s.feed.Reader())
	s.dry.Store(false)
	s.paused.Store(false)
	s.trying.Store(false)
	s.spent.Store(false)
	s.ch.Valid(s.has()) //nolint:errcheck // the connection ends
	if s.seller != nil {
		s.seller.SetWindow(s.first(), 0)
		s.seller.Resume()
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
	s.refuse(code, why)
}
