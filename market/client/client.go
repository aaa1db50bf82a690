// Package client buys: it follows one feed of one seller, pays for it step by step, checks all
// that it gets, and goes on where it was.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/market/card"
	"dazaar-edge/market/proof"
	"dazaar-edge/market/purse"
	"dazaar-edge/market/scale"
	"dazaar-edge/payment"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
)

// Errors of a [Client].
var (
	// ErrUnreachable says that nobody who has the seller's key answers.
	ErrUnreachable = errors.New("market: the seller cannot be reached")
	// ErrRefused says that the seller does not sell, or no longer.
	ErrRefused = errors.New("market: refused by the seller")
	// ErrBusy says that the seller serves nobody just now, or not this one.
	ErrBusy = errors.New("market: the seller is busy")
	// ErrInterrupted says that a purchase that does not follow was stopped.
	ErrInterrupted = errors.New("market: interrupted before everything was there")
	// ErrReplaced says that another connection with the same key took over: this one
	// does not come back by itself.
	ErrReplaced = fmt.Errorf("%w: another connection with this key took over", ErrRefused)
	// ErrTerms says that the seller's terms of use must be accepted.
	ErrTerms = fmt.Errorf("%w: terms of use", ErrRefused)
	// ErrUnpaid says that something must be paid, and was not.
	ErrUnpaid = errors.New("market: not paid")
	// ErrBudget says that the next step would cost more than may be spent.
	ErrBudget = fmt.Errorf("%w: the budget is spent", ErrUnpaid)
	// ErrUnserved says that a seller took money and does not serve.
	ErrUnserved = fmt.Errorf("%w: paid in vain", ErrRefused)
	// ErrInvoice says that an invoice is not what was asked for. Nothing was paid.
	ErrInvoice = errors.New("market: an invoice that must not be paid")
	// ErrOutput says that the output or the archive takes no more.
	ErrOutput = errors.New("market: output")
)

// Output receives what a client verified. Its methods are called one at a time.
type Output interface {
	replicate.Sink
	// Sync makes durable what it received and returns how far it is, and a mark
	// by which what is before that is known again.
	Sync() (at int64, mark string, err error)
	// Resume goes on where it was when Sync returned at and mark; 0 and "" are
	// the beginning. It fails if it is another output.
	Resume(at int64, mark string) error
}

// Config says what to buy. Seller, Ways, Archive, Purse and Output are
// required.
type Config struct {
	Seller [32]byte
	// Ways lead to the seller, the best first. The first that does is used; one who follows
	// looks for a better one from time to time, and moves there without losing or repeating
	// anything.
	Ways []Way
	// ByCard returns the ways that a card tells, worse than those; nil is none.
	ByCard  func(*card.Card) []Way
	Archive *archive.Archive
	Purse   *purse.Purse
	Output  Output
	// Card is the seller's, if it is known beforehand; [Buy] keeps it.
	Card []byte
	// From is the first block that is wanted, if nothing was had yet; it may be
	// replicate.FromEnd. FromTime, if not zero, is a time instead: the block that
	// the seller says has it, and the one before, which shows that it is right.
	From     uint64
	FromTime time.Time
	// Wallet pays; nil buys nothing. It spends no more than Budget, in steps of Step
	// intervals of the price; 0 is 1. What was paid and not yet delivered is at most one
	// step.
	Wallet payment.Wallet
	Budget purse.Budget
	Step   uint64
	// Payees are keys that may be paid, too, where the card names nobody; else only the
	// one that was paid first.
	Payees [][33]byte
	// Accept is asked about terms of use that were not accepted before; nil accepts
	// none. It must not wait for long.
	Accept func(text string, sha256 [32]byte) bool
	// Proof writes down what shows others that the seller signed the blocks; nil does not.
	Proof *proof.Writer
	// Follow goes on with what is appended, and when the connection breaks.
	Follow bool
	Agent  string
	Log    *slog.Logger // nil discards
	Times  Times
}

// Times say how long things may take; those that are zero are as usual.
type Times struct {
	// Patience is how long a seller may say nothing about a feed, or leave one who does not
	// follow without news.
	Patience time.Duration
	// Look is how often one who follows by another way than the best looks whether a better
	// one leads to the seller.
	Look time.Duration
	// Arrive is how long what was paid for may be on its way, when the seller says that it
	// is used up.
	Arrive time.Duration
	// Again is how long one who follows, or bought something already, waits when there is no
	// invoice.
	Again time.Duration
}

func (t Times) withDefaults() Times {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Patience, 30*time.Second)
	def(&t.Look, 30*time.Second)
	def(&t.Arrive, 20*time.Second)
	def(&t.Again, 10*time.Second)
	return t
}

// Waits between attempts to reach a seller.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
	// For eagerTime after a connection that worked it is tried every eagerRetry at least: what
	// is gone now may be back soon.
	eagerTime  = 10 * time.Minute
	eagerRetry = 2 * time.Second
)

const (
	// saveEvery is how often a client saves what it has.
	saveEvery = time.Second
	// pollEvery is how often a client that does not follow looks whether it is done.
	pollEvery = 10 * time.Millisecond
)

// Client follows one feed of an offer. Use New and Run.
type Client struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	buyer  *replicate.Buyer // nil until the feed is known; guarded by mu, like all below
	feed   dazaar.OneTimeFeed
	valid  *dazaar.Valid // what the seller said last
	wanted uint64        // where one who does not follow is done
	why    error         // what the seller said, or what is wrong
	given  bool          // the seller said which feed, on this connection
	// current is the visit that counts; moving tells that another may take over.
	current *visit
	moving  bool
	card    *card.Card // nil until it is known
	terms   *jcs.Hex32 // those of the seller that were accepted; nil if none were
	// accepted is the signature under them.
	accepted *dazaar.AcceptTerms
	// declined: there are some, and they were not.
	declined bool
	buying   purchase
	purse    *purse.Purse
	scale    scale.Scale // what came
	saved    archive.State
	proved   time.Time // when what is written down was given an end

	wg sync.WaitGroup // connections, attempts at them, and wallets at work

	seen replicate.BuyerStats // owned by the goroutine of Run, like all below
	news time.Time            // when something came last
}

// New returns a client.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg, log: cfg.Log, purse: cfg.Purse}
	c.cfg.Times = cfg.Times.withDefaults()
	if len(cfg.Ways) == 0 {
		return nil, errors.New("market: where is the seller?")
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	st := cfg.Archive.State()
	if st != nil && st.Seller != cfg.Seller {
		return nil, fmt.Errorf("it is of seller %x, and another one is wanted: each seller needs a directory of its own", st.Seller)
	}
	// What was paid last must have brought something before more is paid.
	if r, err := cfg.Purse.Newest(); err != nil {
		return nil, err
	} else if r != nil {
		c.buying.mark, c.buying.since, c.buying.bought, c.buying.msat = r.Cursor+1, time.Now(), r.At, r.Msat
	}
	if b := cfg.Purse.Card(); b != nil {
		var err error
		if c.card, err = card.Parse(b, &cfg.Seller, 0); err != nil {
			return nil, fmt.Errorf("the card that is kept: %w", err)
		}
		c.weigh()
	}
	if cfg.Proof != nil {
		if err := cfg.Proof.For(cfg.Seller, [32]byte(cfg.Archive.Key()[32:])); err != nil {
			return nil, err
		}
	}
	if st == nil {
		return c, outputError(cfg.Output.Resume(0, ""))
	}
	if err := cfg.Output.Resume(st.Output, st.Mark); err != nil {
		return nil, outputError(err)
	}
	c.feed = dazaar.OneTimeFeed{Key: st.Feed, Generation: st.Generation}
	return c, c.begin(&st.Kept)
}

// begin makes the buyer of the feed. mu is held, or nobody else has the client.
func (c *Client) begin(kept *replicate.Kept) (err error) {
	cfg := replicate.BuyerConfig{Key: c.feed.Key, From: c.cfg.From, Kept: kept, Store: c.cfg.Archive, Sink: sink{c.cfg.Output, &c.scale}, Log: c.log}
	if c.cfg.Proof != nil {
		cfg.Witness = c.cfg.Proof
	}
	c.buyer, err = replicate.NewBuyer(cfg)
	return err
}

// proveEvery is how often what is written down is given an end: what a power cut takes of it
// is lost, as it does not come again.
const proveEvery = 5 * time.Second

// Run connects, and follows the feed until ctx ends, or, without Follow, until
// it has what there was at the first contact. Errors wrap ErrUnreachable,
// ErrBusy, ErrRefused or ErrOutput, or those of package replicate if what came
// does not verify.
func (c *Client) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, c.end()) }()
	wait := firstRetry
	var worked time.Time
	for {
		begun := time.Now()
		err := c.connect(ctx)
		c.mu.Lock()
		if c.given {
			worked, c.given = time.Now(), false
		}
		c.mu.Unlock()
		if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
			if c.cfg.Follow || err == nil {
				return nil
			}
			return ErrInterrupted
		}
		if err == nil || !c.cfg.Follow || fatal(err) {
			return err
		}
		if time.Since(begun) > lastRetry {
			wait = firstRetry
		}
		c.log.Warn("connection lost; trying again", "in", wait, "error", err)
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
			return nil
		}
		if wait = min(2*wait, lastRetry); time.Since(worked) < eagerTime {
			wait = min(wait, eagerRetry)
		}
	}
}

// fatal tells whether trying again is of no use.
func fatal(err error) bool {
	var conflict *replicate.ConflictError
	return errors.As(err, &conflict) || slices.ContainsFunc([]error{
		ErrOutput, proof.ErrFile, replicate.ErrInvalid, dazaar.ErrSignature, ErrRefused, ErrUnpaid, ErrInvoice, card.ErrCard, card.ErrSignature,
		secretstream.ErrIdentity,
	}, func(e error) bool { return errors.Is(err, e) })
}

// connect follows the feed on one connection, or several of which each takes over from
// the one before.
func (c *Client) connect(ctx context.Context) error {
	p, err := c.reach(ctx, c.ways())
	if err != nil {
		return err
	}
	c.log.Debug("connected", "way", p.name)
	c.mu.Lock()
	v, err := c.visit(p, nil)
	if err == nil {
		c.enter(v)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.news = time.Now()
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	every := pollEvery
	if c.cfg.Follow {
		every = saveEvery / 5
	}
	poll := time.NewTicker(every)
	defer poll.Stop()
	seeking, cancel := context.WithCancel(ctx)
	m := newMover(c)
	defer func() {
		cancel()
		m.stop(ctx, v)
	}()
	for {
		v = m.settle(v)
		select {
		case err := <-v.ended:
			if next := m.instead(); next != nil {
				v = next
				continue
			}
			return c.because(err)
		case err := <-m.ended:
			if m.settle(v) != v {
				return c.because(err) // it had just taken over
			}
			m.gone(err)
		case p := <-m.found:
			m.try(p, v)
		case <-m.look.C:
			m.seek(seeking, v)
		case <-ctx.Done():
			return ctx.Err()
		case <-save.C:
			if err := c.save(); err != nil {
				return err
			}
			if silent := c.silent(); silent > c.cfg.Times.Patience {
				return fmt.Errorf("%w: it has said nothing of use for %v", ErrUnreachable, silent.Round(time.Second))
			}
		case <-poll.C:
			if !c.cfg.Follow && c.complete() {
				return nil
			}
			c.mu.Lock()
			err := c.money(c.current)
			c.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
}

// because returns why a connection ended with err: what the seller said, if it did.
func (c *Client) because(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return c.why
	}
	return err
}

// sink is an Output whose errors are known as such.
type sink struct {
	out   Output
	scale *scale.Scale
}

func outputError(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrOutput, err)
	}
	return err
}

func (s sink) Block(i uint64, data []byte) error {
	err := outputError(s.out.Block(i, data))
	if err == nil {
		s.scale.Add(data)
	}
	return err
}
func (s sink) Gap(from, to uint64) error    { return outputError(s.out.Gap(from, to)) }
func (s sink) Fork(fork, from uint64) error { return outputError(s.out.Fork(fork, from)) }
func (s sink) Head(h merkle.Head) error     { return outputError(s.out.Head(h)) }

// complete tells whether everything came that there was at first.
func (c *Client) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buyer == nil || c.valid == nil {
		return false
	}
	return c.buyer.Current(c.wanted)
}

// silent returns for how long the seller has left a client without what it waits
// for: without a feed, or, if it does not follow, without blocks.
func (c *Client) silent() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var got replicate.BuyerStats
	if c.buyer != nil {
		got = c.buyer.Stats()
	}
	if got != c.seen || c.given && c.cfg.Follow || c.buying.busy() || c.buying.need {
		c.seen, c.news = got, time.Now()
	}
	return time.Since(c.news)
}

// save makes durable what was received and says how far that is.
func (c *Client) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keep()
}

// end is save, and nothing comes any more.
func (c *Client) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proved = time.Time{} // and is given its end
	return c.keep()
}

// keep is save with mu held.
func (c *Client) keep() error {
	if c.buyer == nil {
		return nil
	}
	if time.Since(c.proved) > proveEvery { // what is noted does not come again
		c.proved = time.Now()
		if err := c.buyer.Conclude(); err != nil {
			return err
		}
	}
	err := c.buyer.Checkpoint(func(k replicate.Kept) error {
		at, mark, err := c.cfg.Output.Sync()
		if err != nil {
			return err
		}
		st := archive.State{Seller: c.cfg.Seller, Feed: c.feed.Key, Generation: c.feed.Generation, Kept: k, Output: at, Mark: mark}
		if reflect.DeepEqual(st, c.saved) {
			return nil
		}
		if err := c.cfg.Archive.Save(st); err != nil {
			return err
		}
		c.saved = st
		return nil
	})
	return outputError(err)
}
