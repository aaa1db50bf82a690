// Package feed is the log that is sold: an append-only list of blocks on the
// card with its Merkle tree, and any number of rekeyed feeds of it.
//
// # Writing
//
// [Log.Append] returns when the blocks survive a power cut; [Log.Submit] returns
// a [Ticket] to wait on. One goroutine commits for all writers together: after
// the configured time or number of bytes, or at once when somebody waits.
//
// # Reading
//
// Only committed blocks are visible. [Log.Get] reads one, [Log.Head] tells where
// the log ends and begins, [Log.Proof] proves any part of it, [Log.Seek] finds
// the first block at or after a time.
//
// # Selling
//
// [Log.Rekey] returns the [Feed] of a sale: the same blocks and nodes under a
// key of the buyer's own. Heads are signed only when somebody asks, and only
// when they are committed. After an open that was not clean a feed signs nothing
// until it was compared with what the buyer has ([Feed.Settle]): see "Forks"
// in docs/0002-log.md.
//
// # What is kept of the tree
//
// Each segment's head holds the roots at its first block, its foot the nodes
// that end in it from a level on at which there are at most 512. Every node
// above follows from one segment's head and foot, every node below from the
// blocks of one tile of about 8 KiB. A dropped segment takes its part of the
// tree along; what later proofs need of it is kept aside.
package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

// Errors of this package; those of storage pass through.
var (
	// ErrUnsettled says that a feed must be compared with its buyer's copy
	// before it signs anything.
	ErrUnsettled = errors.New("feed: not settled with the buyer after an unclean start")
	// ErrTooOld says that a buyer's head lies too far in the dropped part: it
	// needs a new feed.
	ErrTooOld = fmt.Errorf("feed: the buyer's head lies too far back: %w", merkle.ErrMissing)
	// ErrMoved says that nothing may be signed on this board or card.
	ErrMoved = errors.New("feed: keys belong to another board or card")
)

// Keys derives and uses the secret keys of an offer.
type Keys interface {
	// FeedSeed returns the Ed25519 seed of a sale's feed.
	FeedSeed(buyer [32]byte, generation uint64) ([32]byte, error)
	// SignDevice signs with the device key.
	SignDevice(message []byte) []byte
}

// Config says how to open a log. FS, Dir, MaxSize, Keys, Sales and Now are
// required.
type Config struct {
	FS      durable.FS
	Dir     string
	MaxSize int64 // bytes for everything in Dir
	// SegmentSize is for a new log; 0 chooses (see storage.Config).
	SegmentSize int64
	// MaxAge drops segments whose newest block is older; 0 keeps them.
	MaxAge time.Duration
	// Name is the offer's; it goes into the device's signatures.
	Name     string
	Encoding block.Encoding
	Keys     Keys
	Sales    Sales
	// Now returns boot, monotonic time and, if known, wall time.
	Now func() block.Stamp
	// CommitEvery and CommitBytes are how long, and how many bytes, blocks
	// wait for each other at most; 0 commits at once.
	CommitEvery time.Duration
	CommitBytes int
	// Log receives what happens; nil discards.
	Log *slog.Logger
}

// Log is a log. All methods are safe for concurrent use.
type Log struct {
	cfg      Config
	log      *slog.Logger
	st       *storage.Log
	tree     forest
	nodes    nodeCache
	crowns   crowns
	pins     pinned
	epoch    uint64 // counts opens after which sales must be settled
	lost     lostRanges
	returned returned
	start    Recovery

	salesMu sync.Mutex        // held while a sale's state is loaded, changed and saved
	marksMu sync.Mutex        // never held while storage or sales are called
	signed  map[[32]byte]mark // newest signed heads; guarded by marksMu
	unsaved map[[32]byte]bool // those not yet in a mark; guarded by marksMu
	rider   Rider             // guarded by marksMu
	hurried bool              // CommitMarks was called; guarded by marksMu

	queue queue
	done  chan struct{} // closed when the committer has ended
}

// Recovery says what Open found.
type Recovery struct {
	Clean, Created bool
	// Recovered is how many blocks of a damaged tail were appended again as
	// entries.
	Recovered int
	// Lost are ranges of blocks that cannot be read any more.
	Lost []storage.Gap
}

// Recovery returns what Open found.
func (l *Log) Recovery() Recovery { return l.start }

// Head is where a log begins and ends. Blocks before First were dropped.
type Head struct {
	First, Length, ByteLength uint64
	TreeHash                  merkle.Hash
}

// Open opens the log in cfg.Dir, or makes one. Errors are those of
// [storage.Open].
func Open(cfg Config) (*Log, error) {
	l := &Log{cfg: cfg, log: cfg.Log, done: make(chan struct{}), signed: map[[32]byte]mark{}, unsaved: map[[32]byte]bool{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.queue.init()
	l.tree.encoding, l.tree.drop = cfg.Encoding, l.dropping
	l.tree.sign = func(h merkle.Hash, length uint64) []byte {
		return cfg.Keys.SignDevice(SegmentSignable(cfg.Name, h, length))
	}
	reserve := ownerReserve(cfg.MaxSize)
	var err error
	l.st, err = storage.Open(storage.Config{
		FS: cfg.FS, Dir: cfg.Dir, MaxSize: cfg.MaxSize - reserve, SegmentSize: cfg.SegmentSize, Owner: &l.tree,
		Now: func() uint64 { return unixMilli(cfg.Now().Wall) }, Log: l.log,
	})
	if err != nil {
		return nil, err
	}
	if err := l.begin(reserve); err != nil {
		l.st.Abort()
		return nil, fmt.Errorf("log %s: %w", cfg.Dir, err)
	}
	go l.commitLoop()
	return l, nil
}

// begin does what an open log needs before it is used.
func (l *Log) begin(reserve int64) error {
	found := l.st.Recovery()
	l.start.Clean, l.start.Created = found.Clean, found.Created
	if err := l.pins.load(l.cfg.FS, l.cfg.Dir, reserve/4); err != nil {
		return err
	}
	if err := l.lost.load(l.cfg.FS, l.cfg.Dir); err != nil {
		return err
	}
	l.loadMarks()
	if err := l.st.Trim(); err != nil {
		return err
	}
	if err := l.beginEpoch(found); err != nil {
		return err
	}
	l.queue.last = l.lastPack()
	if err := l.salvage(found.Damaged); err != nil {
		return err
	}
	for _, g := range found.Gaps {
		l.noteLost(g, "a segment file is missing")
	}
	l.start.Lost = l.lost.all()
	return nil
}

func unixMilli(t time.Time) uint64 {
	if t.IsZero() || t.Unix() < 0 {
		return 0
	}
	return uint64(t.UnixMilli())
}

// SegmentSignable returns what the device key signs when a segment is closed.
func SegmentSignable(offer string, treeHash merkle.Hash, length uint64) []byte {
	b := append([]byte("dazaar segment\n"+offer), treeHash[:]...)
	for i := range 8 {
		b = append(b, byte(length>>(8*i)))
	}
	return b
}

// Head returns the committed head.
func (l *Log) Head() Head {
	h := l.tree.published()
	return Head{First: l.st.First(), Length: h.tree.Length(), ByteLength: h.tree.ByteLength(), TreeHash: h.tree.Hash()}
}

// ID returns the random name that the log got when it was made.
func (l *Log) ID() [16]byte { return l.st.ID() }

// Size returns how many bytes the log's segments take.
func (l *Log) Size() int64 { return l.st.Size() }

// MaxBlock returns the largest block in bytes that can be appended.
func (l *Log) MaxBlock() int { return l.st.MaxBlock() }

// Get returns block i and what it weighs. Errors wrap [storage.ErrRange],
// [storage.ErrDropped] or [storage.ErrCorrupt]; damage that is met for the first
// time becomes a gap entry in the log.
func (l *Log) Get(i uint64) ([]byte, storage.Weight, error) {
	data, w, err := l.st.Get(i)
	l.noteError(err)
	return data, w, err
}

// Range calls f for blocks [from, to) in order until it returns false. data is
// valid during the call, in which f must not use the log. Errors are those of
// Get; behind damage the caller goes on at the End of the
// [storage.CorruptError].
func (l *Log) Range(from, to uint64, f func(i uint64, w storage.Weight, data []byte) bool) error {
	err := l.st.Range(from, to, f)
	l.noteError(err)
	return err
}

// Proof builds the proof that req asks for, block bytes included and signature
// not, and returns the head it leads to. Errors wrap [merkle.ErrRequest] for
// impossible requests and [merkle.ErrMissing] for what was dropped or damaged.
func (l *Log) Proof(req merkle.Request) (merkle.Proof, Head, error) {
	h := l.tree.published()
	p, err := l.proofAt(h, req)
	return p, Head{First: l.st.First(), Length: h.tree.Length(), ByteLength: h.tree.ByteLength(), TreeHash: h.tree.Hash()}, err
}

func (l *Log) proofAt(h head, req merkle.Request) (merkle.Proof, error) {
	p, err := merkle.Prove(nodeReader{l, h}, h.tree.Length(), req)
	if err == nil && p.Block != nil {
		if p.Block.Value, _, err = l.st.Get(p.Block.Index); err != nil {
			l.noteError(err)
			err = missing(2*p.Block.Index, err)
		}
	}
	return p, err
}

// CanUpgrade tells whether one who has the head of length blocks can be proved
// the present head: what a seller says in a sync's canUpgrade.
func (l *Log) CanUpgrade(length uint64) bool {
	h := l.tree.published()
	n := h.tree.Length()
	if length == 0 || length >= n {
		return length <= n
	}
	_, err := merkle.Prove(nodeReader{l, h}, n, merkle.Request{Upgrade: &merkle.UpgradeRequest{Start: length, Length: n - length}})
	return err == nil
}

// TreeHashAt returns the tree hash that the log had at an earlier length.
func (l *Log) TreeHashAt(length uint64) (merkle.Hash, error) {
	h := l.tree.published()
	if length > h.tree.Length() {
		return merkle.Hash{}, fmt.Errorf("%w: %d of %d", storage.ErrRange, length, h.tree.Length())
	}
	var buf [64]uint64
	var roots []merkle.Node
	for _, x := range merkle.AppendRoots(buf[:0], length) {
		n, err := nodeReader{l, h}.Node(x)
		if err != nil {
			return merkle.Hash{}, err
		}
		roots = append(roots, n)
	}
	return merkle.TreeHash(roots), nil
}

// Retain drops segments whose newest block is older than MaxAge. Call it now
// and then; it does nothing while the wall time is unknown.
func (l *Log) Retain() error {
	now := l.cfg.Now().Wall
	if l.cfg.MaxAge <= 0 || now.IsZero() {
		return nil
	}
	limit := now.Add(-l.cfg.MaxAge)
	for {
		seg, err := l.st.SegmentAt(l.st.First())
		if err != nil || seg.Open || seg.End == 0 || seg.End == seg.First {
			return ignoreRange(err)
		}
		t, _, err := l.Resolve(seg.End - 1)
		if err != nil || t.IsZero() || t.After(limit) {
			return nil // unknown age is kept; max_size bounds it
		}
		ok, err := l.st.Drop()
		if err != nil || !ok {
			return err
		}
		l.tree.change.tell()
	}
}

func ignoreRange(err error) error {
	if errors.Is(err, storage.ErrRange) {
		return nil
	}
	return err
}

// Close commits what was submitted, notes that the log was closed in order, and
// frees it.
func (l *Log) Close() error {
	if !l.queue.close() {
		return nil
	}
	<-l.done
	l.writeMarks()
	l.settleGaps()
	// Also in the sales' store: an older image of the log alone is then known
	// to be one.
	l.salesMu.Lock()
	_, err := l.copySigned()
	l.salesMu.Unlock()
	if err := errors.Join(err, l.st.Close()); err != nil {
		return err
	}
	return l.endEpoch()
}

// Abort ends the log at once, as if the process had died.
func (l *Log) Abort() {
	if l.queue.close() {
		l.queue.abandon()
		<-l.done
		l.st.Abort()
	}
}

// Hurry has what was submitted committed at once.
func (l *Log) Hurry() { l.queue.hurry() }

// Flush makes everything that was submitted durable.
func (l *Log) Flush(ctx context.Context) error {
	t, err := l.Submit()
	if err != nil {
		return err
	}
	l.queue.hurry()
	return t.Wait(ctx)
}
