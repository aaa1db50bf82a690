// Package cashier stands between sellers and their wallets: it has invoices made,
// keeps them few, notices when one is settled, and has the ledger credit it.
//
// Each gateway is watched by one goroutine, which first asks who is paid: it is no longer
// used if that is not who it was. Then it looks up what was left open, follows the
// wallet's own events, and looks again every minute: an event that was missed is found,
// one that comes twice is credited once.
//
// Source: specs/lightning.md, S1 to S10, S14, S17.
package cashier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/jcs"
)

// Errors that callers tell apart.
var (
	// ErrLimit says that there are too many invoices that nobody paid, or that the
	// amount is not one that is taken.
	ErrLimit = errors.New("cashier: too much is asked for")
	// ErrClock says that the device does not know the time: when would an invoice end?
	ErrClock = fmt.Errorf("%w: the clock of the device is not set", payment.ErrUnpayable)
	// ErrReplaced says that somebody else is paid than before.
	ErrReplaced = fmt.Errorf("%w: the wallet is another one than before", payment.ErrUnpayable)
)

// Limits.
const (
	// Expiry is how long an invoice can be paid.
	Expiry = 15 * time.Minute
	// reuseFor is how long one must still be good to be given out again.
	reuseFor = 8 * time.Minute
	// maxOpen is how many unpaid invoices a buyer has, maxTotal how many there are.
	maxOpen  = 3
	maxTotal = 500
	// maxKnown is how many more there may be for buyers who paid before.
	maxKnown = 500
	// maxExpired is how many that nobody paid are kept in the ledger.
	maxExpired = 1000
	// MinMsat and MaxMsat bound an invoice: 1 to 1,000,000 satoshi.
	MinMsat = 1000
	MaxMsat = 1_000_000_000
)

// New invoices a second, and at once: for a buyer, for all who never paid, and for all.
const (
	buyerRate, buyerBurst       = 5, 50
	strangerRate, strangerBurst = 2, 200
	totalRate, totalBurst       = 50, 500
)

// earliest is a time that is over: a clock that is behind it is wrong.
var earliest = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

// createTime bounds how long one wallet may take to make an invoice.
const createTime = 10 * time.Second

// Config says whose invoices. Ledger and Now are required.
type Config struct {
	Ledger *ledger.Ledger
	// Gateways are wallets, in order of preference.
	Gateways []payment.Gateway
	// Now returns the wall time, zero while it is not known.
	Now func() time.Time
	// Payees is called when [Cashier.Payees] has changed; nil is not. It must not wait.
	Payees func()
	// Log receives what happens; nil discards.
	Log *slog.Logger
}

// Order is what a buyer wants to pay for.
type Order struct {
	Offer       string
	Buyer       [32]byte
	Msat        uint64
	Price       meter.Price
	History     ledger.History
	Card        uint64
	Terms       *jcs.Hex32
	Description string
	Short       string // the same, for wallets of others
	// Known: this buyer paid before.
	Known bool
}

// Cashier has invoices made and watches them. All methods are safe for concurrent
// use.
type Cashier struct {
	cfg     Config
	log     *slog.Logger
	wallets []*wallet
	mono    func() time.Time   // time.Now, but for tests
	stop    context.CancelFunc // ends the goroutines
	wg      sync.WaitGroup

	mu        sync.Mutex
	open      map[[32]byte]ledger.Row // unpaid invoices; guarded by mu, like all below
	asking    map[[32]byte]int        // invoices on their way, by buyer
	told      map[string]func(ledger.Row)
	buyers    *bucket.Keyed[[32]byte]
	strangers *bucket.Bucket
	total     *bucket.Bucket
	pruned    time.Time // when old invoices were forgotten
}

// New returns a cashier. It begins with Start.
func New(cfg Config) (*Cashier, error) {
	now := time.Now()
	c := &Cashier{
		cfg: cfg, log: cfg.Log, mono: time.Now, open: map[[32]byte]ledger.Row{}, asking: map[[32]byte]int{}, told: map[string]func(ledger.Row){},
		buyers: bucket.NewKeyed[[32]byte](buyerRate, buyerBurst), strangers: bucket.New(strangerRate, strangerBurst, now),
		total: bucket.New(totalRate, totalBurst, now),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	for _, g := range cfg.Gateways {
		w := &wallet{Gateway: g}
		var err error
		if w.payee, err = cfg.Ledger.Payee(g.Name()); err != nil {
			w.trouble = err
		}
		c.wallets = append(c.wallets, w)
	}
	err := cfg.Ledger.Rows(func(r ledger.Row, err error) bool {
		if err != nil {
			c.log.Error("an invoice in the ledger cannot be read", "error", err)
		} else if r.State == ledger.Open {
			c.open[r.Hash] = r
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Start watches the gateways until Close: not before all offers are open, since what
// is settled is credited at once.
func (c *Cashier) Start() {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	for _, w := range c.wallets {
		c.wg.Go(func() { c.watch(ctx, w) })
	}
}

// Subscribe has f called for each payment that was credited for an offer. f must not
// wait, nor call the cashier.
func (c *Cashier) Subscribe(offer string, f func(ledger.Row)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told[offer] = f
}

// Close ends the watching.
func (c *Cashier) Close() {
	if c.stop != nil {
		c.stop()
	}
	c.wg.Wait()
}

// Invoice returns an invoice for an order: a new one, or an unpaid one that was made
// for the same. Errors wrap [ErrLimit], or [payment.ErrUnpayable] while there is no
// wallet that can be paid, or the clock is not set.
func (c *Cashier) Invoice(ctx context.Context, o Order) (ledger.Row, error) {
	now := c.cfg.Now()
	if now.Before(earliest) {
		return ledger.Row{}, ErrClock
	}
	if o.Msat < MinMsat || o.Msat > MaxMsat {
		return ledger.Row{}, fmt.Errorf("%w: %d msat; at least %d and at most %d", ErrLimit, o.Msat, uint64(MinMsat), uint64(MaxMsat))
	}
	if r, ok, err := c.reserve(o, now); ok || err != nil {
		return r, err
	}
	defer c.unreserve(o.Buyer)
	if len(c.wallets) == 0 {
		return ledger.Row{}, fmt.Errorf("%w: no wallet is configured", payment.ErrUnpayable)
	}
	var errs error
	for _, w := range c.preferred() {
		r, err := c.create(ctx, w, o, now)
		if err == nil {
			return r, nil
		}
		if errors.Is(err, ErrReplaced) {
			c.ails(w, err) // until its owner says that it is right
		}
		c.log.Debug("a wallet makes no invoice", "gateway", w.Name(), "error", err)
		errs = errors.Join(errs, fmt.Errorf("gateway %s: %w", w.Name(), err))
	}
	if !errors.Is(errs, payment.ErrUnpayable) {
		errs = fmt.Errorf("%w: %w", payment.ErrUnpayable, errs)
	}
	return ledger.Row{}, errs
}

// reserve finds an unpaid invoice that will do, or counts a new one.
func (c *Cashier) reserve(o Order, now time.Time) (ledger.Row, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mine, all := c.asking[o.Buyer], len(c.asking)
	for _, r := range c.open {
		// A wallet may say that it is good for longer: nobody has room for longer.
		if now.After(r.Expires) || now.After(r.Made.Add(Expiry)) {
			continue
		}
		if all++; r.Buyer != jcs.Hex32(o.Buyer) {
			continue
		}
		mine++
		if r.Offer == o.Offer && r.Msat == o.Msat && r.Price == o.Price && r.History == o.History && r.Card == o.Card && r.Terms.Same(o.Terms) &&
			r.Expires.Sub(now) > reuseFor && c.usable(r.Gateway) {
			return r, true, nil
		}
	}
	if mine >= maxOpen {
		return ledger.Row{}, false, fmt.Errorf("%w: %d invoices are unpaid; pay one of them, or wait until they are over", ErrLimit, mine)
	}
	limit := maxTotal
	if o.Known {
		limit += maxKnown
	}
	if all >= limit && (!o.Known || mine > 0) { // who paid before always has one
		return ledger.Row{}, false, fmt.Errorf("%w: %d invoices of all buyers are unpaid", ErrLimit, all)
	}
	mono := c.mono()
	buckets := []*bucket.Bucket{c.buyers.Get(o.Buyer, mono), c.total}
	if !o.Known {
		buckets = append(buckets, c.strangers)
	}
	if !bucket.Take(mono, buckets...) {
		return ledger.Row{}, false, fmt.Errorf("%w: too many invoices at once: try again in some seconds", ErrLimit)
	}
	c.asking[o.Buyer]++
	return ledger.Row{}, false, nil
}

func (c *Cashier) unreserve(buyer [32]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asking[buyer]--; c.asking[buyer] == 0 {
		delete(c.asking, buyer)
	}
}

// create has a gateway make an invoice, and notes it.
func (c *Cashier) create(ctx context.Context, w *wallet, o Order, now time.Time) (r ledger.Row, err error) {
	ctx, cancel := context.WithTimeout(ctx, createTime)
	defer cancel()
	v, err := w.Create(ctx, payment.Request{Msat: o.Msat, Description: o.Description, Short: o.Short, Expiry: Expiry})
	if err != nil {
		return r, err
	}
	if v.Msat != o.Msat {
		return r, fmt.Errorf("the wallet made an invoice of %d msat, and %d were asked for", v.Msat, o.Msat)
	}
	if len(v.Handle) > payment.MaxHandle {
		return r, fmt.Errorf("the wallet's handle has %d bytes", len(v.Handle))
	}
	if err := c.made(w, v.Invoice); err != nil {
		return r, err
	}
	r = ledger.Row{
		Hash: v.Hash, Gateway: w.Name(), Handle: v.Handle, Offer: o.Offer, Buyer: o.Buyer, Request: v.Request, Msat: o.Msat, Price: o.Price, History: o.History,
		Card: o.Card, Terms: o.Terms, Made: now.UTC(), Expires: v.ExpiresAt().UTC(), State: ledger.Open,
	}
	if err := c.cfg.Ledger.Issue(r); err != nil {
		return r, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[r.Hash] = r
	return r, nil
}

// Restore has a wallet asked about an invoice of books that are gone: r is as the seller
// signed it. It is credited if it was settled, once. Errors wrap [ledger.ErrUnknown] if
// nothing was lost, or nobody knows whose it is.
func (c *Cashier) Restore(ctx context.Context, r ledger.Row) error {
	v, err := bolt11.Parse(r.Request)
	if err != nil {
		return err
	}
	c.mu.Lock()
	r.Gateway = ""
	w := c.owner(&r)
	c.mu.Unlock()
	if w == nil || v.Hash != r.Hash || v.Msat != r.Msat {
		return fmt.Errorf("%w: no wallet signs as %x", ledger.ErrUnknown, v.Payee)
	}
	r.Gateway, r.Made, r.Expires = w.Name(), v.Time.UTC(), v.ExpiresAt().UTC()
	if err := c.cfg.Ledger.Restore(r); err != nil && !errors.Is(err, ledger.ErrDuplicate) {
		return err
	}
	c.log.Warn("an invoice from before the books were lost was shown", "feed", r.Offer, "buyer", fmt.Sprintf("%x", r.Buyer[:4]), "msat", r.Msat)
	return c.Look(ctx, r.Hash)
}

// Look asks the wallet of an invoice how it stands, and credits it if it is settled.
// Errors wrap [ledger.ErrUnknown] for an invoice that is none of ours.
func (c *Cashier) Look(ctx context.Context, hash [32]byte) error {
	r, err := c.cfg.Ledger.Row(hash)
	if err != nil || r.State == ledger.Settled {
		return err
	}
	c.mu.Lock()
	w := c.owner(&r)
	c.mu.Unlock()
	if w == nil {
		return fmt.Errorf("%w: gateway %s is not configured any more", payment.ErrUnpayable, r.Gateway)
	}
	s, err := w.Lookup(ctx, hash, r.Handle)
	if err != nil {
		return err
	}
	return c.take(w, s, "")
}
