package feed

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// maxQueue is how many bytes of blocks wait for the committer at most.
const maxQueue = 2 << 20

// blockOverhead is what a block takes in the queue besides its bytes.
const blockOverhead = 192

// ErrBusy says that too much waits to be committed already; nothing was added.
var ErrBusy = errors.New("feed: too much is waiting for the card")

// Ticket stands for blocks on their way to the card.
type Ticket struct {
	done  chan struct{}
	first uint64
	err   error
}

// Done is closed when the blocks are durable, or will not be.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Wait waits until the blocks are durable and returns nil, or why they are not.
// An error means that none of them is in the log, unless it is a
// [PartialError].
func (t *Ticket) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// First returns the index of the first block, once Wait returned nil.
func (t *Ticket) First() uint64 { return t.first }

// PartialError says that only the first Durable blocks of a batch are in the
// log.
type PartialError struct {
	Durable int
	Err     error
}

func (e *PartialError) Error() string {
	return fmt.Sprintf("%d blocks are durable, the rest is not: %v", e.Durable, e.Err)
}
func (e *PartialError) Unwrap() error { return e.Err }

// Writer submits batches that keep their order: when one fails, all that were
// submitted through the same Writer behind it fail too, until Reset. A Writer
// may be used by one goroutine.
type Writer struct {
	l      *Log
	failed error // guarded by Log.queue.mu
}

// Writer returns a new Writer.
func (l *Log) Writer() *Writer { return &Writer{l: l} }

// Submit is [Log.Submit] in order. It fails with the error of the batch that
// failed before.
func (w *Writer) Submit(blocks ...block.Block) (*Ticket, error) {
	return w.l.submit(blocks, false, w)
}

// Reset makes Submit work again; the caller has taken note of what failed.
func (w *Writer) Reset() {
	w.l.queue.mu.Lock()
	w.failed = nil
	w.l.queue.mu.Unlock()
}

// batch is what one Submit brought.
type batch struct {
	writer *Writer // nil for those without an order
	blocks []block.Block
	leaves []merkle.Node
	ticket *Ticket
}

// queue collects batches for the committer.
type queue struct {
	mu      sync.Mutex
	batches []batch   // guarded by mu, like all below
	bytes   int       // in them
	since   time.Time // when the oldest came
	urgent  bool
	closed  bool
	dropped bool // abandon was called

	wake chan struct{} // one token: something changed

	// Owned by the committer:
	last   lastPack
	free   []batch
	expect int // batches that the next commit would have if all writers came back
	pause  int // for how many commits they are not waited for
}

func (q *queue) init() { q.wake = make(chan struct{}, 1) }

// full tells whether so many bytes find no room.
func (q *queue) full(size int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.over(size)
}

// over is full with mu held.
func (q *queue) over(size int) bool { return size > 0 && q.bytes > 0 && q.bytes+size > maxQueue }

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close ends the queue; it tells whether this call did.
func (q *queue) close() bool {
	q.mu.Lock()
	was := q.closed
	q.closed = true
	q.mu.Unlock()
	q.poke()
	return !was
}

func (q *queue) abandon() {
	q.mu.Lock()
	q.dropped = true
	q.mu.Unlock()
	q.poke()
}

func (q *queue) hurry() {
	q.mu.Lock()
	q.urgent = true
	q.mu.Unlock()
	q.poke()
}

// Append adds blocks and returns the index of the first when they are durable
// (with a [PartialError] too). If ctx ends first, they may become durable later.
func (l *Log) Append(ctx context.Context, blocks ...block.Block) (uint64, error) {
	t, err := l.submit(blocks, true, nil)
	if err != nil {
		return 0, err
	}
	if err := t.Wait(ctx); err != nil {
		return t.firstIfPartial(err), err
	}
	return t.first, nil
}

// firstIfPartial returns where the durable part of a batch begins.
func (t *Ticket) firstIfPartial(err error) uint64 {
	if partial := (*PartialError)(nil); errors.As(err, &partial) {
		return t.first
	}
	return 0
}

// Submit adds blocks, all behind each other, and returns at once. The bytes
// must not change until the ticket is done. It fails with [ErrBusy] while more
// than 2 MiB wait, with [storage.ErrTooLarge] and with [storage.ErrClosed].
func (l *Log) Submit(blocks ...block.Block) (*Ticket, error) {
	return l.submit(blocks, false, nil)
}

func (l *Log) submit(blocks []block.Block, urgent bool, w *Writer) (*Ticket, error) {
	size := 0
	for _, b := range blocks {
		if len(b.Data) > l.st.MaxBlock() {
			return nil, fmt.Errorf("%w: block of %d bytes, at most %d", storage.ErrTooLarge, len(b.Data), l.st.MaxBlock())
		}
		size += len(b.Data) + blockOverhead
	}
	q := &l.queue
	if q.full(size) {
		return nil, ErrBusy
	}
	leaves := make([]merkle.Node, len(blocks))
	for i, b := range blocks {
		leaves[i] = merkle.Leaf(0, b.Data) // hashed here, outside the committer
	}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil, storage.ErrClosed
	}
	if w != nil && w.failed != nil {
		err := w.failed
		q.mu.Unlock()
		return nil, err
	}
	if q.over(size) { // others came first
		q.mu.Unlock()
		return nil, ErrBusy
	}
	if len(q.batches) == 0 {
		q.since = time.Now()
	}
	t := &Ticket{done: make(chan struct{})}
	q.batches = append(q.batches, batch{w, blocks, leaves, t})
	q.bytes += size
	q.urgent = q.urgent || urgent
	q.mu.Unlock()
	q.poke()
	return t, nil
}

// due returns the batches to commit now, or how long to wait for more; 0 is
// until something changes.
func (l *Log) due() (take []batch, wait time.Duration, closed bool) {
	q := &l.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.batches) == 0 {
		return nil, 0, q.closed
	}
	if left := l.cfg.CommitEvery - time.Since(q.since); left > 0 && !q.urgent && !q.closed && q.bytes < l.cfg.CommitBytes {
		return nil, left, false
	}
	take = q.batches
	q.batches, q.free = q.free[:0], nil
	q.bytes, q.urgent = 0, false
	return take, 0, q.closed
}

// commitLoop is the committer: it owns the tree and the writing side of the
// storage.
func (l *Log) commitLoop() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	marks := time.NewTicker(marksEvery)
	defer marks.Stop()
	for {
		take, wait, closed := l.due()
		switch {
		case len(take) > 0:
			l.commit(take)
			clear(take)
			l.queue.free = take
			l.queue.gather()
			continue
		case closed:
			return
		case wait > 0:
			timer.Reset(wait)
		}
		select {
		case <-l.queue.wake:
			if l.marksDue() {
				l.commitMarks()
			}
		case <-timer.C:
		case <-marks.C:
			l.commitMarks()
		}
	}
}

// marksEvery is how long a signed head waits for a commit of blocks to ride on.
const marksEvery = 10 * time.Second

// commitMarks makes signed heads durable without blocks.
func (l *Log) commitMarks() {
	if err := l.commitStorage(); err != nil {
		l.log.Warn("signed heads are not noted", "log", l.cfg.Dir, "error", err)
	}
}

// Writers that wait for their blocks usually come back at once with the next.
// Without patience half of them would always be late for a commit, and wait for
// the other half's.
const (
	gatherTime  = 50 * time.Microsecond
	gatherPause = 16 // commits without patience when they did not come
)

// gather lets writers come back before the next commit is begun.
func (q *queue) gather() {
	if q.pause > 0 {
		q.pause--
		return
	}
	size := func() int {
		q.mu.Lock()
		defer q.mu.Unlock()
		if !q.urgent && len(q.batches) > 0 || q.closed {
			return q.expect // nobody is in a hurry
		}
		return len(q.batches)
	}
	if q.expect <= 1 {
		return
	}
	for start := time.Now(); size() < q.expect; runtime.Gosched() {
		if time.Since(start) > gatherTime {
			q.pause = gatherPause
			return
		}
	}
}

// commit appends the batches, commits once and tells the writers.
func (l *Log) commit(take []batch) {
	l.queue.mu.Lock()
	dropped := l.queue.dropped
	l.queue.mu.Unlock()
	take = l.queue.refuse(take)
	if slices.ContainsFunc(take, func(b batch) bool { return len(b.blocks) > 0 }) && !dropped {
		l.settleGaps() // of earlier commits: nothing is written behind a ticket's end
	}
	err := error(storage.ErrClosed)
	from := l.st.Length()
	if !dropped {
		err = l.appendAll(take)
	}
	if err != nil {
		l.queue.last = l.lastPack() // spans are counted from what is in the log
	}
	length := l.st.Length()
	l.queue.mu.Lock()
	l.queue.expect = len(take) + len(l.queue.batches)
	l.queue.mu.Unlock()
	for _, b := range take {
		b.ticket.first = from
		from += uint64(len(b.blocks))
		if err != nil && (from > length || len(b.blocks) == 0) {
			b.ticket.err = err
			if n := int(length) - int(b.ticket.first); n > 0 && len(b.blocks) > 0 {
				b.ticket.err = &PartialError{n, err}
			}
			l.queue.fail(b.writer, b.ticket.err)
		}
		close(b.ticket.done)
	}
}

// refuse ends the batches of writers that failed before and returns the others.
func (q *queue) refuse(take []batch) []batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.DeleteFunc(take, func(b batch) bool {
		if b.writer == nil || b.writer.failed == nil {
			return false
		}
		b.ticket.err = b.writer.failed
		close(b.ticket.done)
		return true
	})
}

// fail makes a writer refuse what comes behind a failed batch.
func (q *queue) fail(w *Writer, err error) {
	if w != nil {
		q.mu.Lock()
		w.failed = err
		q.urgent = true // those behind it are told at once
		q.mu.Unlock()
	}
}

func (l *Log) appendAll(take []batch) error {
	i := l.st.Length()
	for _, b := range take {
		for n, blk := range b.blocks {
			rec := storage.Record{Data: blk.Data, Weight: l.queue.last.weigh(blk), Keys: keys(i, blk, l.cfg.Encoding)}
			if _, err := l.st.Append(rec); err != nil {
				return err
			}
			l.tree.add(b.leaves[n])
			i++
		}
	}
	return l.commitStorage()
}

// lastPack is the stamp of the newest pack, if sensed time may be counted from
// it.
type lastPack struct {
	stamp block.Stamp
	valid bool
}

// weigh returns what a block weighs and takes it as the last. The span is the
// sensed time since the pack before in the same boot; 0 for entries, for the
// first pack of a boot and behind a gap.
func (p *lastPack) weigh(b block.Block) storage.Weight {
	switch {
	case b.Entry == block.GapEntry || b.Entry == block.Boot:
		p.valid = false
		return storage.Weight{}
	case b.Entry != "":
		return storage.Weight{}
	}
	w := storage.Weight{Readings: b.Readings}
	if p.valid && p.stamp.Boot == b.Stamp.Boot {
		if b.Stamp.Mono <= p.stamp.Mono {
			return w // out of order: that time is counted already
		}
		w.Span = uint64((b.Stamp.Mono - p.stamp.Mono).Milliseconds())
	}
	*p = lastPack{b.Stamp, true}
	return w
}

// lastPack finds the newest pack near the end of the log. Sensed time is not
// counted over blocks that cannot be read.
func (l *Log) lastPack() (p lastPack) {
	const look = 64
	length := l.st.Length()
	for from := max(l.st.First(), length-min(length, look)); from < length; {
		err := l.st.Range(from, length, func(_ uint64, _ storage.Weight, data []byte) bool {
			if b, err := l.cfg.Encoding.Inspect(data); err == nil {
				p.weigh(b)
			}
			return true
		})
		var damage *storage.CorruptError
		if !errors.As(err, &damage) {
			if err != nil {
				p.valid = false
			}
			break
		}
		p.valid = false
		from = max(damage.End, from+1)
	}
	return p
}
