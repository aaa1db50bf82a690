package market

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/replicate/message"
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

// ClientConfig says what to buy. Seller, Address, Archive and Output are
// required.
type ClientConfig struct {
	Seller  [32]byte
	Address string // TCP, host:port
	Archive *archive.Archive
	Output  Output
	// From is the first block that is wanted, if nothing was had yet; it may be
	// replicate.FromEnd.
	From uint64
	// Follow goes on with what is appended, and when the connection breaks.
	Follow bool
	Agent  string
	Dialer *net.Dialer  // nil is an ordinary one
	Log    *slog.Logger // nil discards
}

// Waits between attempts to reach a seller.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
)

const (
	// saveEvery is how often a client saves what it has.
	saveEvery = time.Second
	// patience is how long a seller may say nothing about a feed, or leave one
	// who does not follow without news.
	patience = 30 * time.Second
)

// Client follows one feed of an offer. Use NewClient and Run.
type Client struct {
	cfg ClientConfig
	log *slog.Logger

	mu     sync.Mutex
	buyer  *replicate.Buyer // nil until the feed is known; guarded by mu, like all below
	feed   dazaar.OneTimeFeed
	valid  *dazaar.Valid // what the seller said last
	wanted uint64        // where one who does not follow is done
	why    error         // what the seller said, or what is wrong
	given  bool          // the seller said which feed, on this connection

	saved    archive.State // owned by the goroutine of Run, like all below
	seen     replicate.BuyerStats
	news     time.Time // when something came last
	patience time.Duration
}

// NewClient returns a client.
func NewClient(cfg ClientConfig) (*Client, error) {
	c := &Client{cfg: cfg, log: cfg.Log, patience: patience}
	if c.cfg.Dialer == nil {
		c.cfg.Dialer = &net.Dialer{}
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	st := cfg.Archive.State()
	if st == nil {
		return c, cfg.Output.Resume(0, "")
	}
	if st.Seller != cfg.Seller {
		return nil, fmt.Errorf("it is of seller %x, and another one is wanted: each seller needs a directory of its own", st.Seller)
	}
	if err := cfg.Output.Resume(st.Output, st.Mark); err != nil {
		return nil, err
	}
	c.feed = dazaar.OneTimeFeed{Key: st.Feed, Generation: st.Generation}
	return c, c.begin(&st.Kept)
}

// begin makes the buyer of the feed. mu is held, or nobody else has the client.
func (c *Client) begin(kept *replicate.Kept) (err error) {
	c.buyer, err = replicate.NewBuyer(replicate.BuyerConfig{
		Key: c.feed.Key, From: c.cfg.From, Kept: kept, Store: c.cfg.Archive, Sink: sink{c.cfg.Output}, Log: c.log,
	})
	return err
}

// Run connects, and follows the feed until ctx ends, or, without Follow, until
// it has what there was at the first contact. Errors wrap ErrUnreachable,
// ErrBusy, ErrRefused or ErrOutput, or those of package replicate if what came
// does not verify.
func (c *Client) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, c.save()) }()
	wait := firstRetry
	for {
		begun := time.Now()
		err := c.connect(ctx)
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
		wait = min(2*wait, lastRetry)
	}
}

// fatal tells whether trying again is of no use.
func fatal(err error) bool {
	var conflict *replicate.ConflictError
	return errors.As(err, &conflict) || errors.Is(err, ErrOutput) || errors.Is(err, replicate.ErrInvalid) ||
		errors.Is(err, dazaar.ErrSignature) || errors.Is(err, ErrRefused) || errors.Is(err, secretstream.ErrIdentity)
}

// connect follows the feed on one connection.
func (c *Client) connect(ctx context.Context) error {
	raw, err := c.cfg.Dialer.DialContext(ctx, "tcp", c.cfg.Address)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	conn, err := secretstream.Client(ctx, raw, secretstream.Config{
		Pattern: noise.XX, Static: c.cfg.Archive.Key(), Remote: c.cfg.Seller, MaxMessage: replicate.MaxMessage,
	})
	if errors.Is(err, secretstream.ErrIdentity) {
		return fmt.Errorf("%w: at %s is another offer than the one that is wanted", err, c.cfg.Address)
	} else if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	c.mu.Lock()
	c.why, c.given, c.valid = nil, false, nil
	c.mu.Unlock()
	c.news = time.Now()
	v := &visit{c: c, conn: conn}
	v.mux = mux.New(conn, mux.Config{Accept: v.accept, MaxChannels: 8})
	if v.ch, err = dazaar.OpenBuyer(v.mux, c.cfg.Seller, c.cfg.Agent, (*visitor)(v)); err != nil {
		conn.Close()
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- v.mux.Run() }()
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	var poll <-chan time.Time
	if !c.cfg.Follow {
		t := time.NewTicker(10 * time.Millisecond)
		defer t.Stop()
		poll = t.C
	}
	end := func(err error) error {
		v.mux.Close()
		<-ended
		return err
	}
	for {
		select {
		case err := <-ended:
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.why != nil {
				err = c.why
			}
			return err
		case <-ctx.Done():
			return end(ctx.Err())
		case <-tick.C:
			if err := c.save(); err != nil {
				return end(err)
			}
			if silent := c.silent(); silent > c.patience {
				return end(fmt.Errorf("%w: it has said nothing of use for %v", ErrUnreachable, silent.Round(time.Second)))
			}
		case <-poll:
			if c.complete() {
				return end(nil)
			}
		}
	}
}

// sink is an Output whose errors are known as such.
type sink struct{ out Output }

func outputError(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrOutput, err)
	}
	return err
}

func (s sink) Block(i uint64, data []byte) error { return outputError(s.out.Block(i, data)) }
func (s sink) Gap(from, to uint64) error         { return outputError(s.out.Gap(from, to)) }
func (s sink) Fork(fork, from uint64) error      { return outputError(s.out.Fork(fork, from)) }
func (s sink) Head(h merkle.Head) error          { return outputError(s.out.Head(h)) }

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
	if got != c.seen || c.given && c.cfg.Follow {
		c.seen, c.news = got, time.Now()
	}
	return time.Since(c.news)
}

// save makes durable what was received and says how far that is.
func (c *Client) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buyer == nil {
		return nil
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

// visit is one connection with the seller.
type visit struct {
	c    *Client
	conn *secretstream.Conn
	mux  *mux.Mux
	ch   *dazaar.Buyer
}

// accept takes the feed's channel when the seller opens it.
func (v *visit) accept(protocol string, id []byte) bool {
	v.c.mu.Lock()
	defer v.c.mu.Unlock()
	if v.c.buyer == nil || protocol != message.Protocol {
		return false
	}
	if want := merkle.DiscoveryKey(v.c.feed.Key); string(id) == string(want[:]) {
		v.attach()
	}
	return false
}

// attach follows the feed here. The client's mu is held.
func (v *visit) attach() error {
	return v.c.buyer.Attach(replicate.Session{Mux: v.mux, HandshakeHash: v.conn.HandshakeHash(), Initiator: true})
}

// visitor is a visit as the dazaar channel sees it.
type visitor visit

// Opened implements dazaar.BuyerHandler.
func (h *visitor) Opened(dazaar.Handshake) error { return nil }

// SellerID implements dazaar.BuyerHandler.
func (h *visitor) SellerID([32]byte) error { return nil }

// OneTimeFeed implements dazaar.BuyerHandler: it follows the feed.
func (h *visitor) OneTimeFeed(f dazaar.OneTimeFeed) error {
	v, c := (*visit)(h), h.c
	if err := f.Verify(c.cfg.Seller, [32]byte(c.cfg.Archive.Key()[32:])); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var kept *replicate.Kept
	if c.buyer == nil || f.Key != c.feed.Key {
		if c.buyer != nil {
			if f.Generation <= c.feed.Generation {
				return fmt.Errorf("%w: generation %d after %d", replicate.ErrInvalid, f.Generation, c.feed.Generation)
			}
			// The same log under another key, most likely: what was had need not
			// come again, if it is looked into how much of it is still true.
			c.buyer.Detach()
			if err := c.buyer.Checkpoint(func(k replicate.Kept) error { k.Foreign = k.Head.Length > 0; kept = &k; return nil }); err != nil {
				return err
			}
			c.log.Warn("the seller began a new feed", "generation", f.Generation, "from", kept.Cursor)
		}
		c.feed = f
		if err := c.begin(kept); err != nil {
			return err
		}
	}
	c.given = true
	return v.attach()
}

// Valid implements dazaar.BuyerHandler.
func (h *visitor) Valid(x dazaar.Valid) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	if h.c.valid == nil {
		h.c.wanted = x.Length
	}
	h.c.valid = &x
	return nil
}

// Invalid implements dazaar.BuyerHandler.
func (h *visitor) Invalid(x dazaar.Invalid) error {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	why := ErrRefused
	switch x.Code {
	case dazaar.CodeBusy, dazaar.CodeClosing:
		why = ErrBusy // it is worth trying again
	}
	h.c.why = fmt.Errorf("%w: %s: %q", why, x.Code, x.Error)
	return h.c.why
}

// Closed implements dazaar.BuyerHandler: without it nothing can come.
func (h *visitor) Closed(err error) {
	(*visit)(h).mux.Fail(fmt.Errorf("%w: the seller ended the session: %w", ErrBusy, err))
}

// What a seller of a free feed says besides is of no use yet.
func (h *visitor) UserMessage(dazaar.UserMessage) error { return nil }
func (h *visitor) Terms([]byte) error                   { return nil }
func (h *visitor) Card([]byte) error                    { return nil }
func (h *visitor) Invoice(dazaar.Invoice) error         { return nil }
func (h *visitor) FoundTime(dazaar.FoundTime) error     { return nil }
func (h *visitor) Burned(dazaar.Burned) error           { return nil }
