package replicate

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate/message"
)

// FromEnd begins with the first block that is appended after the first contact.
const FromEnd = ^uint64(0)

// Kept is what a buyer must not forget of a feed, besides the blocks of its
// tail. The zero value is of a feed that nothing is known of.
type Kept struct {
	Manifest *merkle.Manifest
	// Head, Roots and Signature are the newest head that was verified.
	Head      merkle.Head
	Roots     []merkle.Node
	Signature []byte
	// Cursor is the block that is delivered next. Left are the roots of the log
	// before it, if they are known, and Right trusted nodes behind it.
	Cursor      uint64
	Left, Right []merkle.Node
	// Parts are the parts of the tail, oldest first.
	Parts []Part
	// From is the first block that is wanted.
	From uint64
	// Foreign says that all this is of the same log under another key, with
	// another manifest: what of it is true of this feed is looked into first, as
	// when a fork was raised.
	Foreign bool
}

// Part is a part of the tail: the blocks from First to the next part, or the
// cursor. Roots are those of the log of the blocks before First.
type Part struct {
	First uint64
	Roots []merkle.Node
	Bytes uint64 // in its blocks
}

// Store keeps the newest blocks that were delivered, so that they can be
// returned to a seller that lost them. Its methods are called one at a time.
type Store interface {
	// Begin begins a new part of the tail at block i. What there was from i on
	// is forgotten.
	Begin(i uint64) error
	// Append adds block i, which follows the one before it, to the newest part.
	Append(i uint64, data []byte) error
	// Next returns which block would follow the newest one; 0 if there is none.
	Next() uint64
	// Block returns a block that is there.
	Block(i uint64) ([]byte, error)
	// Drop forgets the parts before block i, where a part begins.
	Drop(i uint64) error
}

// Sink receives what a buyer verified, in the order of the log. Its methods are
// called one at a time, with the buyer's lock held, and may take their time:
// then the seller waits. An error that they return ends the session.
type Sink interface {
	// Block takes a block; data is valid during the call.
	Block(i uint64, data []byte) error
	// Gap says that the blocks [from, to) are not to be had.
	Gap(from, to uint64) error
	// Fork says that the feed goes on with a higher fork, and that blocks from
	// index on, which may have been delivered, are replaced.
	Fork(fork, index uint64) error
	// Head says that the feed has so many blocks now.
	Head(h merkle.Head) error
}

// BuyerConfig says what to follow. Key and Sink are required.
type BuyerConfig struct {
	Key merkle.Hash
	// From is the first block that is wanted if Kept is new; it may be
	// FromEnd.
	From uint64
	// Kept is what was known when the process ended; nil at first.
	Kept *Kept
	// Store keeps the tail; nil keeps none.
	Store Store
	Sink  Sink
	// Witness is told what signs the blocks; nil is not.
	Witness Witness
	// InFlight is how many bytes may be asked for and not delivered, about;
	// 0 is 2 MiB.
	InFlight int
	// Log receives what happens; nil discards.
	Log *slog.Logger
}

// Buyer follows one feed. All methods are safe for concurrent use.
type Buyer struct {
	cfg BuyerConfig
	log *slog.Logger

	mu    sync.Mutex
	k     Kept // Cursor and Right are in walk; guarded by mu, like all below
	walk  merkle.Walk
	begun bool          // walk was begun: From is known
	part  int           // bytes in the newest part of the tail
	gap   bool          // the next block does not follow the tail
	seen  bool          // the witness has blocks without an end
	left  []merkle.Node // roots of the log before the block that is delivered
	moved chan struct{} // closed when head or session change
	up    *upstream     // the session, nil while there is none
	got   BuyerStats
}

// BuyerStats say what a buyer did.
type BuyerStats struct {
	Blocks, Bytes uint64 // that were delivered
	Upgrades      uint64 // heads that were verified
	Asked         uint64
	Forks         uint64
}

// NewBuyer returns a buyer that follows no seller yet.
func NewBuyer(cfg BuyerConfig) (*Buyer, error) {
	if cfg.InFlight == 0 {
		cfg.InFlight = 2 << 20
	}
	b := &Buyer{cfg: cfg, log: logger(cfg.Log), moved: make(chan struct{})}
	from := cfg.From
	if k := cfg.Kept; k != nil {
		if _, err := merkle.NewTree(k.Head.Length, k.Roots); err != nil {
			return nil, fmt.Errorf("replicate: what was kept of the feed: %w", err)
		}
		for i, p := range k.Parts {
			if _, err := merkle.NewTree(p.First, p.Roots); err != nil || p.First > k.Cursor || i > 0 && p.First < k.Parts[i-1].First {
				return nil, fmt.Errorf("replicate: what was kept of the feed: the tail's part at block %d does not fit", p.First)
			}
		}
		b.k = *k
		b.k.Parts = slices.Clone(k.Parts)
		from = k.Cursor
	} else if from != FromEnd {
		b.k.From = from
	}
	if b.k.Foreign {
		b.k.Manifest = nil
	}
	if from != FromEnd {
		b.walk.Reset(from, b.k.Head.Length, b.k.Roots)
		b.walk.Trust(b.k.Left)
		b.walk.Trust(b.k.Right)
		b.begun = true
		b.part = partSize
		if n := len(b.k.Parts); n > 0 && cfg.Store != nil && cfg.Store.Next() == from {
			b.part = int(min(b.k.Parts[n-1].Bytes, partSize)) // it goes on
		}
		_, known := b.walk.Left(nil)
		b.gap = !known
	}
	return b, nil
}

// Checkpoint calls f with what must not be forgotten, consistent with what the
// sink received; nothing is delivered meanwhile. Before the first block of a
// buyer FromEnd was chosen, the cursor is FromEnd.
func (b *Buyer) Checkpoint(f func(Kept) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.k
	k.Cursor, k.Left, k.Right, k.Parts = FromEnd, nil, nil, slices.Clone(k.Parts)
	if b.begun {
		k.Cursor = b.walk.Next()
		// A few trusted nodes save a few bytes; all can be asked for again.
		if right := b.walk.Right(nil); len(right) <= merkle.MaxRoots {
			k.Right = right
		}
		if left, ok := b.walk.Left(nil); ok {
			k.Left = left
		}
	}
	if b.gap {
		k.Parts = nil
	}
	return f(k)
}

// Head returns the newest head that was verified and how far was delivered.
func (b *Buyer) Head() (h merkle.Head, cursor uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.k.Head, b.walk.Next()
}

// Current tells whether the seller said where it stands and all of that, length
// blocks at least, was delivered.
func (b *Buyer) Current(length uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	u, h := b.up, b.k.Head
	return u != nil && u.synced && u.fork == nil && u.remote.Fork == h.Fork && !b.k.Foreign && u.remote.Length >= length &&
		h.Length >= u.remote.Length && (!b.begun && length == 0 || b.begun && b.walk.Next() >= h.Length)
}

// Stats returns what was done so far.
func (b *Buyer) Stats() BuyerStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got
}

// Attach follows the seller at the other end of the session, and no other any
// more. What goes wrong ends the connection.
func (b *Buyer) Attach(s Session) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.detach()
	u := &upstream{b: b, session: s, window: firstWindow, forgot: ^uint64(0)}
	u.restart()
	ch, err := s.open(b.cfg.Key, u)
	if err != nil {
		return err
	}
	u.ch = ch
	b.up = u
	b.changed()
	u.sendSync()
	return nil
}

// Detach ends the session.
func (b *Buyer) Detach() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.detach()
}

// detach ends the session. mu is held.
func (b *Buyer) detach() {
	if b.up != nil {
		b.up.ch.Close()
		b.up.over()
		b.up = nil
	}
}

// changed wakes those who wait for a head or a session. mu is held.
func (b *Buyer) changed() {
	close(b.moved)
	b.moved = make(chan struct{})
}

// Get returns block i from the seller, verified. It waits for a seller and for
// a head that covers i. The error wraps [ErrUnavailable] if the seller has it
// not, and [ErrClosed] if the session ended meanwhile.
func (b *Buyer) Get(ctx context.Context, i uint64) ([]byte, error) {
	b.mu.Lock()
	for b.up == nil || b.k.Head.Length <= i || !b.up.serves() {
		moved := b.moved
		b.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		b.mu.Lock()
	}
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	v, u := b.verifier(), b.up
	req := merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: merkle.MissingNodes(2*i, v.Length, nil)}}
	id := u.request(message.Request{Fork: v.Fork, Request: req, Priority: 1}, func(d *message.Data, err error) error {
		switch {
		case err != nil:
			done <- result{err: fmt.Errorf("block %d: %w", i, err)}
			return nil
		case d.Block == nil || d.Block.Index != i:
			err = fmt.Errorf("%w: another block than %d", ErrInvalid, i)
		default:
			if _, err = v.Verify(&d.Proof, nil); err != nil {
				err = fmt.Errorf("%w: block %d: %w", ErrInvalid, i, err)
			}
		}
		if err != nil {
			done <- result{err: err}
			return err
		}
		done <- result{data: slices.Clone(d.Block.Value)}
		return nil
	})
	b.mu.Unlock()
	if id == 0 {
		return nil, fmt.Errorf("block %d: %w", i, ErrFlood)
	}
	select {
	case r := <-done:
		return r.data, r.err
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		u.cancel(id)
		return nil, context.Cause(ctx)
	}
}

// verifier returns what is trusted. mu is held.
func (b *Buyer) verifier() *merkle.Verifier {
	return &merkle.Verifier{Key: b.cfg.Key, Manifest: b.k.Manifest, Fork: b.k.Head.Fork, Length: b.k.Head.Length, Roots: b.k.Roots}
}

// grow takes a newer head of the same fork. mu is held.
func (b *Buyer) grow(v *merkle.Verified, signature []byte) error {
	if v.Manifest != nil {
		b.k.Manifest = v.Manifest
	}
	b.k.Head, b.k.Roots, b.k.Signature = *v.Head, slices.Clone(v.Roots), signature
	if b.begun {
		b.walk.Grow(v.Head.Length, b.k.Roots, v.Nodes)
	} else {
		b.begun, b.k.From = true, v.Head.Length
		b.walk.Reset(v.Head.Length, v.Head.Length, b.k.Roots)
		b.up.restart()
	}
	b.got.Upgrades++
	b.changed()
	return b.cfg.Sink.Head(*v.Head)
}

// deliver verifies the next block and hands it on. mu is held.
func (b *Buyer) deliver(value []byte, nodes []merkle.Node) error {
	i := b.walk.Next()
	var known bool
	b.left, known = b.walk.Left(b.left[:0])
	right := b.walk.Right(nil)
	if err := b.walk.Verify(value, nodes); err != nil {
		return err
	}
	if err := b.cfg.Sink.Block(i, value); err != nil {
		// It was not delivered: it is due again.
		b.walk.Reset(i, b.k.Head.Length, b.k.Roots)
		b.walk.Trust(b.left)
		b.walk.Trust(right)
		b.gap = b.gap || !known
		return fmt.Errorf("block %d: %w", i, err)
	}
	b.got.Blocks++
	b.got.Bytes += uint64(len(value))
	if err := b.testify(i, value, b.left, known, nodes); err != nil {
		return fmt.Errorf("block %d: %w", i, err)
	}
	if b.cfg.Store == nil {
		return nil
	}
	if err := b.keep(i, value, known); err != nil {
		b.gap = true // what is kept has no end at the cursor any more
		return fmt.Errorf("replicate: block %d cannot be kept: %w", i, err)
	}
	return nil
}

// skip goes on behind blocks that are not to be had. mu is held.
func (b *Buyer) skip(to uint64) error {
	if err := b.conclude(); err != nil {
		return err
	}
	b.seen = false
	if err := b.cfg.Sink.Gap(b.walk.Next(), to); err != nil {
		return err
	}
	b.walk.Reset(to, b.k.Head.Length, b.k.Roots)
	b.gap = true
	return nil
}

// The tail: at least tailSize bytes of blocks, in parts of partSize, of which
// there are more only if the process was restarted often.
const (
	tailSize = 4 << 20
	partSize = 512 << 10
	maxParts = 64
	// recordCost is what a block costs besides its bytes.
	recordCost = 16
)

// keep adds a block to the tail; left are the roots of the log before it, if they
// are known. mu is held.
func (b *Buyer) keep(i uint64, value []byte, known bool) error {
	st, parts := b.cfg.Store, b.k.Parts
	// A part begins when the one before is full, and behind a gap; where the
	// roots before it are not known, at the next block.
	if n := len(parts); n == 0 || b.part >= partSize || b.gap {
		if !known {
			return nil
		}
		if err := st.Begin(i); err != nil {
			return err
		}
		extra := b.spare(parts)
		parts = append(slices.Delete(parts, 0, extra), Part{First: i, Roots: slices.Clone(b.left)})
		if extra > 0 {
			if err := st.Drop(parts[0].First); err != nil {
				return err
			}
		}
		b.k.Parts, b.part, b.gap = parts, 0, false
	}
	b.part += len(value) + recordCost
	b.k.Parts[len(b.k.Parts)-1].Bytes += uint64(len(value) + recordCost)
	return st.Append(i, value)
}

// spare returns how many of the oldest parts are not needed any more. mu is held.
func (b *Buyer) spare(parts []Part) (n int) {
	if b.gap {
		return len(parts)
	}
	total := uint64(0)
	for _, p := range parts {
		total += p.Bytes
	}
	for n < len(parts) && (total-parts[n].Bytes >= tailSize || len(parts)-n > maxParts) {
		total -= parts[n].Bytes
		n++
	}
	return n
}
