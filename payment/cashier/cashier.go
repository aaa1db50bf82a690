// Package cashier stands between sellers and their wallets: it has invoices made,
// keeps them few, notices when one is settled, and has the ledger credit it.
//
// Each gateway is watched by one goroutine, which first looks up what was left open,
// then follows the wallet's own events, and looks again every minute: an event that
// was missed is found, one that comes twice is credited once.
//
// Source: specs/lightning.md, S1 to S5, S8 to S10, S14.
package cashier

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/jcs"
)

// ErrLimit says that there are too many invoices that nobody paid, or that the
// amount is not one that is taken.
var ErrLimit = errors.New("cashier: too much is asked for")

// ErrClock says that the device does not know the time: when would an invoice end?
var ErrClock = fmt.Errorf("%w: the clock of the device is not set", payment.ErrUnpayable)

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

const (
	// lookEvery is how often what is open is looked up while nothing happens.
	lookEvery = time.Minute
	// forgetAfter is how long after its end an invoice is still looked up, if the
	// wallet never says that it is over.
	forgetAfter           = 24 * time.Hour
	firstRetry, lastRetry = time.Second, 30 * time.Second
)

// Config says whose invoices. Ledger and Now are required.
type Config struct {
	Ledger *ledger.Ledger
	// Gateways are wallets, in order of preference.
	Gateways []payment.Gateway
	// Now returns the wall time, zero while it is not known.
	Now func() time.Time
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
	// Known: this buyer paid before.
	Known bool
}

// Cashier has invoices made and watches them. All methods are safe for concurrent
// use.
type Cashier struct {
	cfg  Config
	log  *slog.Logger
	stop context.CancelFunc // ends the goroutines
	wg   sync.WaitGroup

	mu      sync.Mutex
	open    map[[32]byte]ledger.Row // unpaid invoices; guarded by mu, like all below
	asking  map[[32]byte]int        // invoices on their way, by buyer
	told    map[string]func(ledger.Row)
	trouble map[string]error // of each gateway, while it does not answer
}

// New returns a cashier. It begins with Start.
func New(cfg Config) (*Cashier, error) {
	c := &Cashier{
		cfg: cfg, log: cfg.Log, open: map[[32]byte]ledger.Row{}, asking: map[[32]byte]int{}, told: map[string]func(ledger.Row){}, trouble: map[string]error{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
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
	for _, g := range c.cfg.Gateways {
		c.wg.Add(1)
		go c.watch(ctx, g)
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
	if now.IsZero() {
		return ledger.Row{}, ErrClock
	}
	if o.Msat < MinMsat || o.Msat > MaxMsat {
		return ledger.Row{}, fmt.Errorf("%w: %d msat; at least %d and at most %d", ErrLimit, o.Msat, uint64(MinMsat), uint64(MaxMsat))
	}
	if r, ok, err := c.reserve(o, now); ok || err != nil {
		return r, err
	}
	defer c.unreserve(o.Buyer)
	if len(c.cfg.Gateways) == 0 {
		return ledger.Row{}, fmt.Errorf("%w: no wallet is configured", payment.ErrUnpayable)
	}
	var errs error
	for _, g := range c.cfg.Gateways {
		r, err := c.create(ctx, g, o, now)
		if err == nil {
			return r, nil
		}
		errs = errors.Join(errs, fmt.Errorf("gateway %s: %w", g.Name(), err))
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
	mine := c.asking[o.Buyer]
	for _, r := range c.open {
		if r.Buyer != jcs.Hex32(o.Buyer) || now.After(r.Expires) {
			continue
		}
		mine++
		if r.Offer == o.Offer && r.Msat == o.Msat && r.Price == o.Price && r.History == o.History && r.Card == o.Card && r.Terms.Same(o.Terms) &&
			r.Expires.Sub(now) > reuseFor {
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
	if len(c.open)+len(c.asking) >= limit {
		return ledger.Row{}, false, fmt.Errorf("%w: %d invoices of all buyers are unpaid", ErrLimit, len(c.open))
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
func (c *Cashier) create(ctx context.Context, g payment.Gateway, o Order, now time.Time) (r ledger.Row, err error) {
	v, text, err := g.Create(ctx, payment.Request{Msat: o.Msat, Description: o.Description, Expiry: Expiry})
	if err != nil {
		return r, err
	}
	if v.Msat != o.Msat {
		return r, fmt.Errorf("the wallet made an invoice of %d msat, and %d were asked for", v.Msat, o.Msat)
	}
	r = ledger.Row{
		Hash: v.Hash, Gateway: g.Name(), Offer: o.Offer, Buyer: o.Buyer, Request: text, Msat: o.Msat, Price: o.Price, History: o.History,
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

// Look asks the wallet of an invoice how it stands, and credits it if it is settled.
// Errors wrap [ledger.ErrUnknown] for an invoice that is none of ours.
func (c *Cashier) Look(ctx context.Context, hash [32]byte) error {
	r, err := c.cfg.Ledger.Row(hash)
	if err != nil || r.State == ledger.Settled {
		return err
	}
	i := slices.IndexFunc(c.cfg.Gateways, func(g payment.Gateway) bool { return g.Name() == r.Gateway })
	if i < 0 {
		return fmt.Errorf("%w: gateway %s is not configured any more", payment.ErrUnpayable, r.Gateway)
	}
	s, err := c.cfg.Gateways[i].Lookup(ctx, hash)
	if err != nil {
		return err
	}
	return c.take(r.Gateway, s, "")
}

// Identity returns the network of the invoices and the key that signs them: an
// invoice is made to see.
func (c *Cashier) Identity(ctx context.Context) (network bolt11.Network, payee [33]byte, err error) {
	err = fmt.Errorf("%w: no wallet is configured", payment.ErrUnpayable)
	for _, g := range c.cfg.Gateways {
		var v *bolt11.Invoice
		if v, _, err = g.Create(ctx, payment.Request{Msat: MinMsat, Description: "edge: who is paid?", Expiry: time.Minute}); err == nil {
			return v.Network, v.Payee, nil
		}
		err = fmt.Errorf("gateway %s: %w", g.Name(), err)
	}
	return network, payee, err
}

// Health returns what is wrong with the gateways, nil if nothing is.
func (c *Cashier) Health() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, e := range c.trouble {
		err = errors.Join(err, fmt.Errorf("gateway %s: %w", name, e))
	}
	return err
}

// take notes what a gateway said of an invoice.
func (c *Cashier) take(gateway string, s payment.Status, cursor string) error {
	if s.State != payment.Settled {
		return nil
	}
	if s.Preimage != nil && sha256.Sum256(s.Preimage[:]) != s.Hash {
		c.log.Error("a wallet says of an invoice that it is settled, with a preimage that is not its own: it is not credited", "gateway", gateway, "hash", jcs.Hex32(s.Hash))
		return nil
	}
	r, credited, err := c.cfg.Ledger.Settle(ledger.Payment{Hash: s.Hash, Msat: s.Paid, At: c.cfg.Now().UTC(), Gateway: gateway, Cursor: cursor})
	switch {
	case errors.Is(err, ledger.ErrUnknown):
		return nil // of another program with the same wallet
	case errors.Is(err, ledger.ErrOffer):
		c.log.Warn("paid for an offer that is not open: it is credited when it is", "hash", jcs.Hex32(s.Hash), "error", err)
		return nil
	case errors.Is(err, ledger.ErrCorrupt):
		c.log.Error("a payment cannot be credited", "hash", jcs.Hex32(s.Hash), "msat", s.Paid, "error", err)
		return nil // others can
	case err != nil:
		return err
	}
	c.mu.Lock()
	delete(c.open, s.Hash)
	told := c.told[r.Offer]
	c.mu.Unlock()
	if !credited {
		return nil
	}
	c.log.Info("paid", "feed", r.Offer, "buyer", fmt.Sprintf("%x", r.Buyer[:4]), "msat", r.Paid)
	if told != nil {
		told(r)
	}
	return nil
}

// watch follows one gateway until Close.
func (c *Cashier) watch(ctx context.Context, g payment.Gateway) {
	defer c.wg.Done()
	wait := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := c.follow(ctx, g)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		first := c.trouble[g.Name()] == nil
		c.trouble[g.Name()] = err
		c.mu.Unlock()
		if first && err != nil {
			c.log.Warn("a wallet does not answer; who paid keeps what it has, new invoices may fail", "gateway", g.Name(), "error", err)
		}
		if time.Since(began) > lastRetry {
			wait = firstRetry
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, lastRetry)
	}
}

// follow looks up what is open and takes events, until something fails.
func (c *Cashier) follow(ctx context.Context, g payment.Gateway) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := c.reconcile(ctx, g); err != nil {
		return err
	}
	cursor, err := c.cfg.Ledger.Cursor(g.Name())
	if err != nil {
		return err
	}
	c.mu.Lock()
	was := c.trouble[g.Name()]
	delete(c.trouble, g.Name())
	c.mu.Unlock()
	if was != nil {
		c.log.Info("a wallet answers again", "gateway", g.Name())
	}
	watched := make(chan error, 1)
	go func() {
		watched <- g.Watch(ctx, cursor, func(s payment.Status, cursor string) error { return c.take(g.Name(), s, cursor) })
	}()
	// What was settled between the first look and the watching is found by the next.
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	for {
		select {
		case err := <-watched:
			if err == nil {
				err = errors.New("it sends no more events")
			}
			return err
		case <-timer.C:
			timer.Reset(lookEvery)
			if err := c.reconcile(ctx, g); err != nil {
				cancel()
				<-watched
				return err
			}
		}
	}
}

// reconcile looks up the unpaid invoices of a gateway.
func (c *Cashier) reconcile(ctx context.Context, g payment.Gateway) error {
	c.mu.Lock()
	var mine []ledger.Row
	for _, r := range c.open {
		if r.Gateway == g.Name() {
			mine = append(mine, r)
		}
	}
	c.mu.Unlock()
	now := c.cfg.Now()
	expired, failed := false, 0
	for _, r := range mine {
		s, err := g.Lookup(ctx, r.Hash)
		unknown := errors.Is(err, payment.ErrUnknown)
		if err != nil && !unknown {
			if failed++; failed >= 3 || failed == len(mine) {
				return err
			}
			continue // it may be this one alone
		}
		if err := c.take(g.Name(), s, ""); err != nil {
			return err
		}
		late := !now.IsZero() && now.After(r.Expires)
		if late && (unknown || s.State == payment.Canceled) || !now.IsZero() && now.After(r.Expires.Add(forgetAfter)) && s.State != payment.Settled {
			if err := c.cfg.Ledger.Expire(r.Hash); err != nil {
				return err
			}
			c.mu.Lock()
			delete(c.open, r.Hash)
			c.mu.Unlock()
			expired = true
		}
	}
	if expired {
		return c.cfg.Ledger.Prune(maxExpired)
	}
	return nil
}
