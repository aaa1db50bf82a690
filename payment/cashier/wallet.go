package cashier

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/durable"
)

// Times of watching.
const (
	// lookEvery is how often what is open is looked up while nothing happens, and the
	// wallet asked how it does; sickEvery while it could not be paid.
	lookEvery = time.Minute
	sickEvery = 10 * time.Second
	// pollEvery is how often what is open is looked up where no events come, and
	// pollMost how many of them.
	pollEvery = 2 * time.Second
	pollMost  = 10
	// forgetAfter is how long after its end an invoice is still looked up, if the
	// wallet never says that it is over.
	forgetAfter           = 24 * time.Hour
	firstRetry, lastRetry = time.Second, 30 * time.Second
	// pruneEvery is how often old invoices that nobody paid are forgotten.
	pruneEvery = time.Hour
)

// wallet is a gateway and what is known of it.
type wallet struct {
	payment.Gateway

	payee   *ledger.Payee // who was paid so far; nil while nobody was; guarded by the cashier's mu, like all below
	trouble error         // while it does not answer, or cannot be paid

	at jcs.Hex32 // the invoice that was polled last; owned by the goroutine that watches
}

// owner returns the wallet that an invoice is of: the one that made it, or, if that is not
// configured any more under this name, one whose invoices are signed by the same key; nil
// if there is none. mu is held.
func (c *Cashier) owner(r *ledger.Row) *wallet {
	for _, w := range c.wallets {
		if w.Name() == r.Gateway {
			return w
		}
	}
	if r.Handle != "" {
		return nil
	}
	v, err := bolt11.Parse(r.Request)
	for _, w := range c.wallets {
		if err == nil && w.payee != nil && w.payee.Key == v.Payee {
			return w
		}
	}
	return nil
}

// preferred returns the wallets in the order in which they are asked: those that are
// known not to work come last, another one than before not at all.
func (c *Cashier) preferred() (out []*wallet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last []*wallet
	for _, w := range c.wallets {
		switch {
		case errors.Is(w.trouble, ErrReplaced) && len(c.wallets) > 1:
		case w.trouble != nil:
			last = append(last, w)
		default:
			out = append(out, w)
		}
	}
	return append(out, last...)
}

// usable tells whether nothing is known against a gateway. mu is held.
func (c *Cashier) usable(name string) bool {
	return slices.ContainsFunc(c.wallets, func(w *wallet) bool { return w.Name() == name && w.trouble == nil })
}

// made compares who is paid by an invoice that a wallet made with who was.
func (c *Cashier) made(w *wallet, v *bolt11.Invoice) error {
	c.mu.Lock()
	old := w.payee
	c.mu.Unlock()
	if old == nil { // it was not asked yet
		return fmt.Errorf("%w: it is not known yet who is paid", payment.ErrUnpayable)
	}
	return c.identify(w, payment.Identity{Network: v.Network, Payee: v.Payee, Floats: old.Floats, Unbound: old.Unbound})
}

func payeeOf(id payment.Identity) ledger.Payee {
	return ledger.Payee{Network: string(id.Network), Key: id.Payee, Floats: id.Floats, Unbound: id.Unbound}
}

// identify compares who is paid with who was.
func (c *Cashier) identify(w *wallet, id payment.Identity) error {
	now := payeeOf(id)
	c.mu.Lock()
	old := w.payee
	c.mu.Unlock()
	switch {
	case old != nil && *old == now:
		return nil
	case old != nil && old.Network == now.Network && old.Floats && now.Floats:
	case old != nil && (old.Network != now.Network || old.Key != now.Key):
		return fmt.Errorf("%w: it signs with %x on %s, and before with %x on %s: nothing is sold by it until you say that this is right: edge ledger --trust %q",
			ErrReplaced, now.Key, now.Network, old.Key, old.Network, w.Name())
	}
	return c.settleOn(w, now)
}

// settleOn notes who is paid from now on.
func (c *Cashier) settleOn(w *wallet, p ledger.Payee) error {
	if err := c.cfg.Ledger.SetPayee(w.Name(), p); err != nil {
		return err
	}
	c.mu.Lock()
	was := ledger.Payee{}
	if w.payee != nil {
		was = *w.payee
	}
	if was.Floats && p.Floats {
		was.Key = p.Key // cards do not say it
	}
	changed := was != p
	w.payee = &p
	c.mu.Unlock()
	if changed && c.cfg.Payees != nil {
		c.cfg.Payees()
	}
	return nil
}

// Trust says that whoever signs the invoices of a gateway now is the right one. Its
// events are followed anew.
func (c *Cashier) Trust(ctx context.Context, gateway string) (payment.Identity, error) {
	for _, w := range c.wallets {
		if w.Name() != gateway {
			continue
		}
		id, err := w.Identity(ctx)
		if err == nil {
			err = c.settleOn(w, payeeOf(id))
			c.ails(w, err)
		}
		return id, err
	}
	names := make([]string, 0, len(c.wallets))
	for _, w := range c.wallets {
		names = append(names, w.Name())
	}
	return payment.Identity{}, fmt.Errorf("no gateway is called %q: there is %q", gateway, names)
}

// Identify asks wallets of which it is not known who is paid, once.
func (c *Cashier) Identify(ctx context.Context) (err error) {
	for _, w := range c.wallets {
		c.mu.Lock()
		known := w.payee != nil
		c.mu.Unlock()
		if known {
			continue
		}
		id, e := w.Identity(ctx)
		if e == nil {
			e = c.identify(w, id)
		}
		if e != nil {
			err = errors.Join(err, fmt.Errorf("gateway %s: %w", w.Name(), e))
		}
	}
	return err
}

// Payees are who is paid, as cards say it.
type Payees struct {
	Network bolt11.Network
	Keys    [][33]byte // that sign invoices, the preferred one first; none while no wallet said so
	// Floats: a service signs with keys that nobody can know beforehand. Unbound: what
	// invoices say is up to a service.
	Floats, Unbound bool
}

// Payees returns who is paid.
func (c *Cashier) Payees() (p Payees) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.wallets {
		if w.payee == nil {
			continue
		}
		p.Network = bolt11.Network(w.payee.Network)
		p.Floats, p.Unbound = p.Floats || w.payee.Floats, p.Unbound || w.payee.Unbound
		if key := [33]byte(w.payee.Key); !slices.Contains(p.Keys, key) {
			p.Keys = append(p.Keys, key)
		}
	}
	return p
}

// Health returns what is wrong with the gateways, nil if nothing is.
func (c *Cashier) Health() (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.wallets {
		if w.trouble != nil {
			err = errors.Join(err, fmt.Errorf("gateway %s: %w", w.Name(), w.trouble))
		}
	}
	return err
}

// replaced returns that somebody else is paid by a wallet, if an invoice showed it.
func (c *Cashier) replaced(w *wallet) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(w.trouble, ErrReplaced) {
		return w.trouble
	}
	return nil
}

// ails notes what is wrong with a wallet, nil if nothing is, and says it when it changes.
func (c *Cashier) ails(w *wallet, err error) {
	c.mu.Lock()
	was := w.trouble
	w.trouble = err
	c.mu.Unlock()
	switch {
	case was == nil && err != nil:
		c.log.Warn("a wallet cannot be paid; who paid keeps what it has, new invoices may fail", "gateway", w.Name(), "error", err)
	case was != nil && err == nil:
		c.log.Info("a wallet can be paid again", "gateway", w.Name())
	case was != nil && err.Error() != was.Error():
		c.log.Warn("a wallet still cannot be paid", "gateway", w.Name(), "error", err)
	}
}

// take notes what a wallet said of an invoice.
func (c *Cashier) take(w *wallet, s payment.Status, cursor string) error {
	gateway := w.Name()
	if s.State != payment.Settled {
		return nil
	}
	if s.Preimage != nil && sha256.Sum256(s.Preimage[:]) != s.Hash {
		c.log.Error("a wallet says of an invoice that it is settled, with a preimage that is not its own: it is not credited", "gateway", gateway, "hash", jcs.Hex32(s.Hash))
		return nil
	}
	if r, err := c.cfg.Ledger.Row(s.Hash); err == nil {
		c.mu.Lock()
		owner := c.owner(&r)
		c.mu.Unlock()
		if owner != w {
			c.log.Error("a wallet says of another one's invoice that it is settled: it is not credited", "gateway", gateway, "of", r.Gateway, "hash", r.Hash)
			return nil
		}
	}
	r, credited, err := c.cfg.Ledger.Settle(ledger.Payment{Hash: s.Hash, Msat: s.Paid, At: c.cfg.Now().UTC(), Gateway: gateway, Cursor: cursor})
	switch {
	case errors.Is(err, ledger.ErrUnknown):
		return nil // of another program with the same wallet
	case errors.Is(err, ledger.ErrOffer):
		c.log.Warn("paid for an offer that is not open: it is credited when it is", "hash", jcs.Hex32(s.Hash), "error", err)
		return nil
	case errors.Is(err, ledger.ErrCorrupt), errors.Is(err, durable.ErrCorrupt):
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
func (c *Cashier) watch(ctx context.Context, w *wallet) {
	wait := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := c.follow(ctx, w)
		if ctx.Err() != nil {
			return
		}
		c.ails(w, err)
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

// follow asks a wallet who it is, looks up what is open and takes events, until something
// fails.
func (c *Cashier) follow(ctx context.Context, w *wallet) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	id, err := w.Identity(ctx)
	if err == nil {
		err = c.identify(w, id)
	}
	if err == nil {
		err = c.reconcile(ctx, w, 0)
	}
	if err != nil {
		return err
	}
	cursor, err := c.cfg.Ledger.Cursor(w.Name())
	if errors.Is(err, durable.ErrCorrupt) {
		cursor, err = "", nil // what was missed is looked up
	}
	if err != nil {
		return err
	}
	sick := w.Health(ctx)
	c.ails(w, sick)
	watched := make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		watched <- w.Watch(ctx, cursor, func(s payment.Status, cursor string) error { return c.take(w, s, cursor) })
	})
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	polls := false
	// What was settled between the first look and the watching is found by the next.
	timer := time.NewTimer(5 * time.Second)
	defer timer.Stop()
	for err == nil {
		select {
		case err = <-watched:
			if polls = errors.Is(err, payment.ErrNoEvents); polls {
				err = nil
			} else if err == nil {
				err = errors.New("it sends no more events")
			}
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-poll.C:
			if polls {
				err = c.reconcile(ctx, w, pollMost)
			}
		case <-timer.C:
			if err = c.replaced(w); err == nil {
				err = c.reconcile(ctx, w, 0)
			}
			if err == nil {
				if sick = w.Health(ctx); ctx.Err() == nil {
					c.ails(w, sick)
				}
			}
			if timer.Reset(lookEvery); sick != nil {
				timer.Reset(sickEvery)
			}
		}
	}
	return err
}

// reconcile looks up the unpaid invoices of a gateway: all, or of those that can still be
// paid so many that were not looked up for longest.
func (c *Cashier) reconcile(ctx context.Context, w *wallet, most int) error {
	now := c.cfg.Now()
	if now.Before(earliest) {
		now = time.Time{}
	}
	c.mu.Lock()
	var mine []ledger.Row
	for hash, r := range c.open {
		o := c.owner(&r)
		if o == nil && !now.IsZero() && now.After(r.Expires.Add(forgetAfter)) {
			delete(c.open, hash) // its wallet is not configured any more; an event of it still counts
		}
		if o == w && (most == 0 || now.Before(r.Expires)) {
			mine = append(mine, r)
		}
	}
	c.mu.Unlock()
	if most > 0 && len(mine) > most {
		slices.SortFunc(mine, func(a, b ledger.Row) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
		next, _ := slices.BinarySearchFunc(mine, w.at, func(r ledger.Row, at jcs.Hex32) int { return cmp.Or(bytes.Compare(r.Hash[:], at[:]), -1) })
		mine = append(mine[next:], mine[:next]...)[:most]
		w.at = mine[most-1].Hash
	}
	expired, failed := false, 0
	for _, r := range mine {
		s, err := w.Lookup(ctx, r.Hash, r.Handle)
		gone := errors.Is(err, payment.ErrUnknown) || err == nil && s.State == payment.Canceled
		if err != nil && !gone {
			// It may be this one alone.
			if failed++; failed == 3 || failed == len(mine) {
				if sick := w.Health(ctx); sick != nil || ctx.Err() != nil {
					return err
				}
			}
			c.log.Debug("an invoice cannot be looked up", "gateway", w.Name(), "hash", r.Hash, "error", err)
			s = payment.Status{}
		} else if err := c.take(w, s, ""); err != nil {
			return err
		}
		late := !now.IsZero() && now.After(r.Expires)
		if late && gone || !now.IsZero() && now.After(r.Expires.Add(forgetAfter)) && s.State != payment.Settled {
			if err := c.cfg.Ledger.Expire(r.Hash); err != nil {
				return err
			}
			c.mu.Lock()
			delete(c.open, r.Hash)
			c.mu.Unlock()
			expired = true
		}
	}
	if !expired {
		return nil
	}
	c.mu.Lock()
	due := c.mono().Sub(c.pruned) >= pruneEvery // it reads all there is
	if due {
		c.pruned = c.mono()
	}
	c.mu.Unlock()
	if !due {
		return nil
	}
	return c.cfg.Ledger.Prune(maxExpired)
}
