// Package market sells feeds of a log.
//
// An [Offer] answers who connects: it gives a buyer the feed of its own on the dazaar/2
// channel and serves it on hypercore/alpha. The other side is package client.
//
// Source: specs/exchange.md.
package market

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
)

// OfferConfig says what to sell. Name, Feed, Key, Uplink and Ledger are required.
type OfferConfig struct {
	Name string
	Feed *feed.Log
	// Key is the seller's key.
	Key    ed25519.PrivateKey
	Agent  string
	Uplink *replicate.Uplink
	// Ledger has the sales' meters and contracts; required.
	Ledger *ledger.Ledger
	// Cashier has invoices made; nil is for an offer that is free, or cannot be
	// paid.
	Cashier *cashier.Cashier
	Listing Listing
	// Now returns the wall time, zero while it is not known; nil is time.Now.
	Now func() time.Time
	// BuyerRate is each buyer's cap in bytes per second; 0 is none.
	BuyerRate float64
	// Buyers is how many are served at once; 0 is 50.
	Buyers int
	// Log receives what happens; nil discards.
	Log *slog.Logger
}

// Intervals of a seller.
const (
	// validEvery is how often a buyer is told at least what it has.
	validEvery = 10 * time.Second
	// replaceAfter is how long a session of a buyer's key stays at least when a
	// new one comes.
	replaceAfter = 5 * time.Second
	// noteClock is how often the ledger's clock is noted at least.
	noteClock = time.Hour
	// commitServed is after how many bytes served the meters are made durable, if
	// that does not happen with the log's commits.
	commitServed = 1 << 20
)

// Trials, of all networks together and of each.
const (
	trialsPerSecond, trialsBurst             = 60. / 3600, 20
	networkTrialsPerSecond, networkTrialsMax = 6. / 3600, 3
)

// Invoices for buyers of a network who never paid.
const invoicesPerSecond, invoicesBurst = 0.1, 20

// maxStrangers is how many connections without a feed there may be; then the idlest
// makes place.
const maxStrangers = 64

// Offer sells feeds of one log. All methods are safe for concurrent use.
type Offer struct {
	cfg OfferConfig
	log *slog.Logger
	id  [32]byte // of this process
	// replaceAfter is that constant, and admission the usual, but for tests.
	replaceAfter time.Duration
	admission    secretstream.ListenConfig
	current      atomic.Pointer[listing]
	served       atomic.Int64  // bytes since the meters were to be made durable
	wake         chan struct{} // one token: a session, or a payment, waits for watch
	stop         chan struct{}
	wg           sync.WaitGroup

	mu        sync.Mutex
	listeners []Listener // guarded by mu, like all below
	all       map[*session]bool
	buyers    map[[32]byte]*session // those that have a feed
	settled   map[[32]byte]bool     // buyers who paid, and were not yet told
	burned    []dazaar.Burned
	trials    *bucket.Bucket
	networks  *bucket.Keyed[netip.Prefix] // of trials
	invoices  *bucket.Keyed[netip.Prefix] // for who never paid
	closed    bool

	listMu sync.Mutex // one listing at a time
	listed Listing    // guarded by listMu
}

// NewOffer begins to sell; nobody can connect before Listen.
func NewOffer(cfg OfferConfig) (*Offer, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("market: an offer needs its key")
	}
	if cfg.Buyers == 0 {
		cfg.Buyers = 50
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	o := &Offer{
		cfg: cfg, log: cfg.Log, stop: make(chan struct{}), wake: make(chan struct{}, 1), replaceAfter: replaceAfter, all: map[*session]bool{},
		buyers: map[[32]byte]*session{}, settled: map[[32]byte]bool{}, trials: bucket.New(trialsPerSecond, trialsBurst, time.Now()),
		networks: bucket.NewKeyed[netip.Prefix](networkTrialsPerSecond, networkTrialsMax), invoices: bucket.NewKeyed[netip.Prefix](invoicesPerSecond, invoicesBurst),
	}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	if _, err := rand.Read(o.id[:]); err != nil {
		return nil, err
	}
	if err := o.SetListing(cfg.Listing); err != nil {
		return nil, err
	}
	if err := o.loadBurned(); err != nil {
		return nil, err
	}
	cfg.Ledger.Register(cfg.Name, ledger.Offer{Marks: cfg.Feed, Begin: o.includes})
	cfg.Feed.SetRider(rider{o})
	if cfg.Cashier != nil {
		cfg.Cashier.Subscribe(cfg.Name, o.paid)
	}
	o.wg.Add(1)
	go o.watch()
	return o, nil
}

// rider brings the meters to the log's commits.
type rider struct{ o *Offer }

// Ride implements feed.Rider.
func (r rider) Ride(set func(key string, value []byte) error) {
	r.o.served.Store(0)
	if err := r.o.cfg.Ledger.Ride(r.o.cfg.Name, set); err != nil {
		r.o.log.Error("what buyers used up is not noted", "error", err)
	}
}

// Landed implements feed.Rider.
func (r rider) Landed(err error) { r.o.cfg.Ledger.Landed(r.o.cfg.Name, err) }

// passed counts what a meter let pass.
func (o *Offer) passed(n int) {
	if o.served.Add(int64(n)) >= commitServed {
		o.served.Store(0)
		o.cfg.Feed.CommitMarks()
	}
}

// poke wakes watch.
func (o *Offer) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// paid is told of each payment that was credited.
func (o *Offer) paid(r ledger.Row) {
	o.mu.Lock()
	o.settled[r.Buyer] = true
	o.mu.Unlock()
	o.poke()
}

// spawn runs f, if the offer is not closed; Close ends its context, and waits for it.
func (o *Offer) spawn(f func(ctx context.Context)) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	ctx, cancel := context.WithCancel(context.Background())
	o.wg.Go(func() {
		select {
		case <-o.stop:
			cancel()
		case <-ctx.Done():
		}
	})
	o.wg.Go(func() {
		defer cancel()
		f(ctx)
	})
	return true
}

// trial tells whether one more trial may begin.
func (o *Offer) trial(from net.Addr) bool { return o.take(from, o.networks, o.trials) }

// stranger tells whether one who never paid may have an invoice made.
func (o *Offer) stranger(from net.Addr) bool { return o.take(from, o.invoices) }

// take takes from the bucket of who is at from, and from those of all.
func (o *Offer) take(from net.Addr, each *bucket.Keyed[netip.Prefix], all ...*bucket.Bucket) bool {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := bucket.Network(from); n.IsValid() {
		all = append(all, each.Get(n, now))
	}
	return bucket.Take(now, all...)
}

// stay lets a session without a feed stay for a while from now on.
func (o *Offer) stay(s *session, d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s.until = time.Now().Add(d)
}

// overdue tells whether a session without a feed has been there for too long.
func (o *Offer) overdue(s *session, now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return now.After(s.until)
}

// key returns the public key.
func (o *Offer) key() [32]byte { return [32]byte(o.cfg.Key[ed25519.SeedSize:]) }

// Listen sells on a TCP address and returns the one that it got.
func (o *Offer) Listen(address string) (net.Addr, error) {
	// The stream has keepalives of its own.
	lc := net.ListenConfig{KeepAlive: -1}
	ln, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	cfg := o.admission
	cfg.Static = o.cfg.Key
	return ln.Addr(), o.Serve(secretstream.Listen(ln, cfg))
}

// A Listener yields connections with those who want the offer's key. If it has methods
// Favor or Counts, as a [secretstream.Listener] does, that is told where buyers come from,
// and is part of [Stats].
type Listener interface {
	Accept() (*secretstream.Conn, error)
	Close() error
}

// Serve sells to those whom l yields, until Close, which closes it.
func (o *Offer) Serve(l Listener) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return errors.Join(net.ErrClosed, l.Close())
	}
	o.listeners = append(o.listeners, l)
	o.wg.Add(1)
	go o.accept(l)
	return nil
}

func (o *Offer) accept(l Listener) {
	defer o.wg.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-o.stop:
			default:
				o.log.Error("no longer listening", "error", err)
			}
			return
		}
		s := newSession(o, c, l)
		o.mu.Lock()
		if o.closed {
			o.mu.Unlock()
			c.Close()
			return
		}
		if len(o.all)-len(o.buyers) >= maxStrangers {
			old := o.idlest()
			delete(o.all, old) // at once: the next one needs another's place
			old.mux.Close()
		}
		o.all[s] = true
		o.wg.Add(1)
		o.mu.Unlock()
		go func() {
			defer o.wg.Done()
			s.run()
		}()
	}
}

// idlest returns the session without a feed that has the least time left. mu is
// held, and there is one.
func (o *Offer) idlest() (old *session) {
	for s := range o.all {
		if o.buyers[s.buyer] != s && (old == nil || s.until.Before(old.until)) {
			old = s
		}
	}
	return old
}

// watch tells sellers that the log changed, and buyers what they have.
func (o *Offer) watch() {
	defer o.wg.Done()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	changed := o.cfg.Feed.Changed()
	said := time.Now()
	for {
		select {
		case <-o.stop:
			return
		case now := <-tick.C:
			o.each(true, func(s *session) { s.tick(now) })
			if now.Sub(said) >= validEvery {
				said = now
				o.each(false, (*session).valid)
				if err := o.cfg.Ledger.Tick(noteClock); err != nil {
					o.log.Error("the clock of the ledger is not noted", "error", err)
				}
			}
		case <-o.wake:
			o.serve()
		case <-changed:
			changed = o.cfg.Feed.Changed()
			o.each(false, (*session).update)
		}
	}
}

// serve does what sessions and payments wait for.
func (o *Offer) serve() {
	o.each(false, (*session).wake)
	o.mu.Lock()
	newest := map[[32]byte]*session{}
	for s := range o.all {
		if !o.settled[s.buyer] {
			continue
		}
		// Who has the feed goes on; else it is for the newest connection.
		if n := newest[s.buyer]; n == nil || o.buyers[s.buyer] == s || o.buyers[s.buyer] != n && s.came.After(n.came) {
			newest[s.buyer] = s
		}
	}
	clear(o.settled)
	o.mu.Unlock()
	for _, s := range newest {
		s.paid()
	}
}

// each calls f for every session, or for those that have a feed.
func (o *Offer) each(all bool, f func(*session)) {
	o.mu.Lock()
	list := make([]*session, 0, len(o.all))
	for s := range o.all {
		if all || o.buyers[s.buyer] == s {
			list = append(list, s)
		}
	}
	o.mu.Unlock()
	for _, s := range list {
		f(s)
	}
}

// Stats say what an offer does.
type Stats struct {
	Buyers, Connections int
	Card                uint64 // its version
	// Strangers are what listening did.
	Strangers secretstream.Counts
}

// Stats returns what the offer does.
func (o *Offer) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := Stats{Buyers: len(o.buyers), Connections: len(o.all), Card: o.listing().card.Version}
	for _, l := range o.listeners {
		x, ok := l.(interface{ Counts() secretstream.Counts })
		if !ok {
			continue
		}
		c := x.Counts()
		st.Strangers.Refused += c.Refused
		st.Strangers.Admitted += c.Admitted
		st.Strangers.Failed += c.Failed
		st.Strangers.Evicted += c.Evicted
	}
	return st
}

// Connected returns the buyers that have a feed now.
func (o *Offer) Connected() map[[32]byte]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[[32]byte]bool{}
	for buyer := range o.buyers {
		out[buyer] = true
	}
	return out
}

// Describe says what is left on a meter of this offer, as buyers are told.
func (o *Offer) Describe(st meter.State) (v dazaar.Valid) {
	describe(&v, st, o.listing().price.Unit)
	return v
}

// Close tells buyers that the seller is closing, and ends.
func (o *Offer) Close() error {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return nil
	}
	o.closed = true
	close(o.stop)
	listeners := o.listeners
	var all []*session
	for s := range o.all {
		all = append(all, s)
	}
	o.mu.Unlock()
	var err error
	for _, l := range listeners {
		if e := l.Close(); e != nil {
			err = errors.Join(err, fmt.Errorf("market: %w", e))
		}
	}
	for _, s := range all {
		s.finish("closing", "the seller is closing")
	}
	o.wg.Wait()
	o.cfg.Feed.SetRider(nil)
	return err
}
