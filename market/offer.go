// Package market sells feeds of a log, and buys them.
//
// An [Offer] answers who connects: it gives a buyer the feed of its own on the
// dazaar/2 channel and serves it on hypercore/alpha. A [Client] is the other
// side: it finds out which feed is its own, follows it, and hands what it
// verified to an [Output].
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
	"sync"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
)

// OfferConfig says what to sell. Name, Log, Key and Uplink are required.
type OfferConfig struct {
	Name string
	Feed *feed.Log
	// Key is the seller's key.
	Key    ed25519.PrivateKey
	Agent  string
	Uplink *replicate.Uplink
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
)

// maxStrangers is how many connections without a sale there may be; then the
// oldest makes place.
const maxStrangers = 64

// Offer sells feeds of one log. All methods are safe for concurrent use.
type Offer struct {
	cfg OfferConfig
	log *slog.Logger
	id  [32]byte // of this process
	// replaceAfter is that constant, but for tests.
	replaceAfter time.Duration
	stop         chan struct{}
	wg           sync.WaitGroup

	mu        sync.Mutex
	listeners []*secretstream.Listener // guarded by mu, like all below
	all       map[*session]bool
	buyers    map[[32]byte]*session // those that have a feed
	closed    bool
}

// NewOffer begins to sell; nobody can connect before Listen.
func NewOffer(cfg OfferConfig) (*Offer, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("market: an offer needs its key")
	}
	if cfg.Buyers == 0 {
		cfg.Buyers = 50
	}
	o := &Offer{cfg: cfg, log: cfg.Log, stop: make(chan struct{}), replaceAfter: replaceAfter, all: map[*session]bool{}, buyers: map[[32]byte]*session{}}
	if o.log == nil {
		o.log = slog.New(slog.DiscardHandler)
	}
	if _, err := rand.Read(o.id[:]); err != nil {
		return nil, err
	}
	o.wg.Add(1)
	go o.watch()
	return o, nil
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
	l := secretstream.Listen(ln, secretstream.ListenConfig{Config: secretstream.Config{Static: o.cfg.Key}})
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		l.Close()
		return nil, net.ErrClosed
	}
	o.listeners = append(o.listeners, l)
	o.wg.Add(1)
	go o.accept(l)
	return ln.Addr(), nil
}

func (o *Offer) accept(l *secretstream.Listener) {
	defer o.wg.Done()
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-o.stop:
			default:
				o.log.Error("no longer listening", "address", l.Addr(), "error", err)
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
			o.oldest().mux.Close()
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

// oldest returns the oldest session without a feed. mu is held, and there is one.
func (o *Offer) oldest() (old *session) {
	for s := range o.all {
		if o.buyers[s.buyer] != s && (old == nil || s.came.Before(old.came)) {
			old = s
		}
	}
	return old
}

// watch tells sellers that the log changed, and buyers what they have.
func (o *Offer) watch() {
	defer o.wg.Done()
	tick := time.NewTicker(validEvery)
	defer tick.Stop()
	for {
		changed := o.cfg.Feed.Changed()
		for _, s := range o.sessions() {
			s.update()
		}
		select {
		case <-o.stop:
			return
		case <-tick.C:
			for _, s := range o.sessions() {
				s.valid()
			}
		case <-changed:
		}
	}
}

// sessions returns those that have a feed.
func (o *Offer) sessions() (out []*session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.buyers {
		out = append(out, s)
	}
	return out
}

// claim makes s the session of its buyer. It returns the one that it replaces,
// if any, or false if it must not.
func (o *Offer) claim(s *session) (old *session, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old = o.buyers[s.buyer]
	switch {
	case o.closed:
		return nil, false
	case old == s:
		return nil, true
	case old != nil && time.Since(old.since) < o.replaceAfter && old.conn.Err() == nil:
		return nil, false
	case old == nil && len(o.buyers) >= o.cfg.Buyers:
		return nil, false
	}
	o.buyers[s.buyer] = s
	s.since = time.Now()
	return old, true
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

// Stats say what an offer does.
type Stats struct {
	Buyers, Connections int
	// Strangers are what listening did.
	Strangers secretstream.Counts
}

// Stats returns what the offer does.
func (o *Offer) Stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := Stats{Buyers: len(o.buyers), Connections: len(o.all)}
	for _, l := range o.listeners {
		c := l.Counts()
		st.Strangers.Refused += c.Refused
		st.Strangers.Admitted += c.Admitted
		st.Strangers.Failed += c.Failed
		st.Strangers.Evicted += c.Evicted
	}
	return st
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
	return err
}
