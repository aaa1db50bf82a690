// Package storage is a log on a card that may lose power at any instant: a ring
// of preallocated segment files that holds a bounded number of bytes, and next
// to it a small database for rare things.
//
// # What is promised
//
//   - When [Log.Commit] returns nil, all blocks appended before survive a power
//     cut. One commit is one fdatasync.
//   - No page that is the only durable copy of committed bytes is rewritten. A
//     page gets its place in the segment once, when it is full; until then its
//     images go alternately to the two tail slots.
//   - When Append or Commit fails, the log is what it was after the last
//     successful commit, and goes on when the cause is gone.
//   - The files never take more than [Config.MaxSize] bytes together.
//   - Reading, appending and opening take memory and time that do not depend on
//     the length of the log.
//
// # Segment file
//
//	page 0         head: number, first block, the owner's state there
//	pages 1, 2     tail slots: images of the page that is being filled
//	pages 3 …      pairs of mark pages: small values that change often
//	then           data pages, each written once
//	last pages     foot, when the segment is closed: page directory, state and
//	               the owner's summary
//
// Every page carries a CRC32C and the segment's number; padding is zero. A page
// that ends a commit carries a digest of the whole log, which the owner
// computes (the tree hash): recovery accepts the newest commit whose pages are
// all there and whose digest is right. Files are named by number and first
// block, so that opening reads the directory and the last segment only.
//
// # Owner
//
// The log knows nothing of trees and readings. What it must keep with the
// blocks so that those can be derived again, it asks of its [Owner].
package storage

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/marks"
	"dazaar-edge/storage/page"
)

// Log is an append-only list of blocks. All methods are safe for concurrent
// use; Append and Commit wait for each other.
type Log struct {
	cfg      Config
	log      *slog.Logger
	geo      geometry
	id       [16]byte
	maxFiles int // segments and spare ones
	recovery Recovery
	lock     io.Closer

	wmu    sync.Mutex   // held while writing
	w      writer       // guarded by wmu
	spare  spare        // guarded by wmu
	marks  *marks.Store // guarded by wmu
	closed bool         // guarded by wmu

	mu     sync.RWMutex // held for memory operations and page reads only
	segs   []segment    // guarded by mu; changed with wmu held too
	length uint64       // committed blocks; guarded by mu
	tail   [page.Size]byte
	tailNo int      // number of the page in tail; guarded by mu
	dir    []uint64 // first blocks of the open segment's pages; guarded by mu
	file   durable.File

	read reader // has its own lock, taken with mu held
}

// Recovery says what Open found.
type Recovery struct {
	// Clean: the log was closed in order and nothing has changed since.
	Clean bool
	// Created: there was no log.
	Created bool
	// Damaged names copies of segments whose tail had to be cut off because
	// committed pages were unreadable; see [Log.Salvage].
	Damaged []string
	// Gaps are blocks that are missing because a segment file is.
	Gaps []Gap
}

// Gap is a range of blocks [First, End).
type Gap struct{ First, End uint64 }

// Recovery returns what Open found.
func (l *Log) Recovery() Recovery {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	r := l.recovery
	r.Damaged, r.Gaps = slices.Clone(r.Damaged), slices.Clone(r.Gaps)
	return r
}

// ID returns the random name that the log got when it was made. A log that
// takes the place of a lost one has another.
func (l *Log) ID() [16]byte { return l.id }

// MaxBlock returns the largest block in bytes that Append takes.
func (l *Log) MaxBlock() int { return l.geo.maxBlock() }

// Length returns the number of committed blocks, dropped ones included.
func (l *Log) Length() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.length
}

// First returns the index of the first block that was not dropped.
func (l *Log) First() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.segs[0].first
}

// Open opens the log in cfg.Dir, or makes one. It takes the newest commit that
// is complete. Errors wrap [ErrLocked], [ErrNewer], [ErrFull] or [ErrReadOnly]
// where a caller can act; damage is no error but stands in [Log.Recovery].
func Open(cfg Config) (*Log, error) {
	l := &Log{cfg: cfg, log: cfg.Log}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if l.cfg.Rand == nil {
		l.cfg.Rand = rand.Reader
	}
	if l.cfg.Now == nil {
		l.cfg.Now = func() uint64 { return 0 }
	}
	if err := l.open(); err != nil {
		l.closeFiles()
		return nil, fmt.Errorf("log %s: %w", cfg.Dir, durable.Classify(err))
	}
	return l, nil
}

func (l *Log) open() (err error) {
	if err := l.cfg.FS.Mkdir(l.cfg.Dir); err != nil {
		return err
	}
	if l.lock, err = l.cfg.FS.Lock(join(l.cfg.Dir, lockName)); err != nil {
		return err
	}
	// Names that a process gave just before it ended may not be durable yet.
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return err
	}
	found, err := list(l.cfg.FS, l.cfg.Dir)
	if err != nil {
		return err
	}
	for _, name := range found.temps {
		if err := l.cfg.FS.Remove(join(l.cfg.Dir, name)); err != nil {
			return err
		}
	}
	for _, name := range found.foreign {
		l.log.Warn("foreign file in the log's directory", "file", join(l.cfg.Dir, name))
	}
	l.recovery.Damaged = found.damaged
	l.read = newReader(l)
	pages, err := l.cfg.segmentPages()
	if err != nil {
		return err
	}
	if len(found.segments) > 0 {
		if pages, err = l.pagesOf(found.segments, pages); err != nil {
			return err
		}
	}
	l.geo = newGeometry(pages)
	l.maxFiles = int(l.cfg.MaxSize/l.geo.size()) - 1
	if l.maxFiles < MinSegments-1 {
		return fmt.Errorf("max size %d: a log with segments of %d needs at least %d", l.cfg.MaxSize, l.geo.size(), MinSegments*l.geo.size())
	}
	if err := l.adoptSpare(found.spare); err != nil {
		return err
	}
	l.marks = marks.New(l.geo.marks)
	if len(found.segments) == 0 {
		return l.create()
	}
	return l.recover(found.segments)
}

// create begins an empty log.
func (l *Log) create() error {
	l.recovery.Created = true
	seq := uint64(1) // above all that were used: an old page must not fit
	for _, name := range l.recovery.Damaged {
		if s, ok := parseSegmentName(strings.TrimSuffix(name, damagedSuffix)); ok {
			seq = max(seq, s.seq+1)
		}
	}
	if l.spare.renamed {
		if err := l.cfg.FS.Remove(join(l.cfg.Dir, spareName)); err != nil {
			return err
		}
		l.spare.renamed = false
	}
	if _, err := io.ReadFull(l.cfg.Rand, l.id[:]); err != nil {
		return err
	}
	if err := l.cfg.Owner.Restore(0, nil, nil, 0); err != nil {
		return err
	}
	l.w.slot = noSlot
	return l.startSegment(segment{seq: seq, first: 0})
}

// Append adds a block behind the last and returns its index. The block is not
// visible, and not durable, before Commit. When Append fails, all blocks since
// the last commit are gone: Length tells where the log ends.
func (l *Log) Append(rec Record) (uint64, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return 0, ErrClosed
	}
	if len(rec.Data) > l.geo.maxBlock() {
		return 0, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(rec.Data), l.geo.maxBlock())
	}
	if !l.w.sealed && !l.w.fits(l.geo, len(rec.Data)) {
		if err := l.commit(true); err != nil {
			return 0, err
		}
	}
	if l.w.sealed {
		if err := l.nextSegment(); err != nil {
			return 0, fmt.Errorf("log %s: next segment: %w", l.cfg.Dir, durable.Classify(err))
		}
	}
	i := l.w.next
	l.w.put(l.geo, rec)
	if len(l.w.pend) >= maxPending {
		if err := l.w.flush(l.geo); err != nil {
			return 0, l.rollback(err)
		}
	}
	return i, nil
}

// maxPending is how many bytes of full pages wait in memory for a commit.
const maxPending = 256 << 10

// Commit makes all appended blocks, and marks that changed, durable and the
// blocks visible. With nothing to write it does nothing.
func (l *Log) Commit() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return ErrClosed
	}
	return l.commit(false)
}

// commit writes what is pending and syncs once. With end the segment ends here.
func (l *Log) commit(end bool) error {
	w := &l.w
	blocks := w.next != w.saved.next || end
	if !blocks && !l.marks.Dirty() {
		return nil
	}
	if l.spare.created {
		return l.rollback(errors.New("the next segment is not durable yet"))
	}
	if blocks {
		if err := l.removeNote(); err != nil {
			return l.rollback(err)
		}
	}
	slot := w.slot
	if blocks {
		if w.open.used > page.BodyEnd {
			w.finishPage()
		}
		if err := w.flush(l.geo); err != nil {
			return l.rollback(err)
		}
		info := w.info()
		info.Flags, info.Digest = page.FlagCommit, l.cfg.Owner.Digest()
		if w.saved.next == w.seg.first {
			info.Flags |= page.FlagFirst
		}
		off := l.geo.dataOff(info.Number)
		if end {
			info.Flags |= page.FlagSegment
		} else {
			slot = (w.slot + 1) % slots
			off = int64(slotPage+slot) * page.Size
		}
		info.Seal(w.open.page[:])
		if err := page.Write(w.file, w.open.page[:], off); err != nil {
			return l.rollback(err)
		}
	}
	if err := l.marks.Write(w.seg.seq, l.markWriter(w.file)); err != nil {
		return l.rollback(err)
	}
	if err := w.file.Datasync(); err != nil {
		return l.rollback(err)
	}
	l.marks.Written()
	if blocks {
		w.commit++
		w.slot, w.sealed, w.failed = slot, end, false
		w.save()
		l.publish(nil)
		l.cfg.Owner.Committed()
		l.growSpare(spareStep)
	}
	return nil
}

// removeNote removes the note that the log was closed, before anything is
// committed that it does not know.
func (l *Log) removeNote() error {
	if !l.w.noted {
		return nil
	}
	if err := page.Write(l.w.file, make([]byte, page.Size), int64(l.geo.footerPage())*page.Size); err != nil {
		return err
	}
	if err := l.w.file.Datasync(); err != nil {
		return err
	}
	l.w.noted = false
	return nil
}

// publish makes what was committed visible to readers, together with a new list
// of segments if there is one.
func (l *Log) publish(segs []segment) {
	w := &l.w
	l.mu.Lock()
	if segs != nil {
		l.segs = segs
	}
	l.length = w.next
	l.tail, l.tailNo = w.open.page, w.open.number
	l.dir = w.dir
	l.file = w.file
	l.mu.Unlock()
}

// rollback forgets what was appended since the last commit.
func (l *Log) rollback(err error) error {
	l.w.failed = true
	l.w.commit++ // a number that may stand on the disk is never used again
	l.w.restore()
	l.marks.Failed()
	l.cfg.Owner.RolledBack()
	return fmt.Errorf("log %s: commit: %w", l.cfg.Dir, durable.Classify(err))
}

// nextSegment closes the sealed segment and opens the next.
func (l *Log) nextSegment() error {
	w := &l.w
	if !w.footed {
		if err := w.writeFooter(l.geo, l.cfg.Owner, page.FooterClosed, l.cfg.Now()); err != nil {
			return err
		}
		w.footed = true
	}
	return l.startSegment(segment{seq: w.seg.seq + 1, first: w.next})
}

// writeFooter writes the foot of the open segment and syncs it.
func (w *writer) writeFooter(g geometry, o Owner, kind byte, now uint64) error {
	dir := page.AppendDir(nil, w.seg.first, w.dir)
	state := o.State()
	room := g.footerSize() - page.FooterHead - len(dir) - len(state)
	ft := page.Footer{
		Kind: kind, Segment: w.seg.seq, Commit: w.commit, End: w.next, Keys: w.keys, Digest: o.Digest(),
		Written: now, Pages: w.open.number + 1, Dir: dir, State: state, Summary: o.Summary(room, kind != page.FooterCheckpoint),
	}
	b, err := ft.Encode(g.footerSize())
	if err != nil {
		return err
	}
	if err := page.Write(w.file, b, int64(g.footerPage())*page.Size); err != nil {
		return err
	}
	return w.file.Datasync()
}

// Close commits what is pending, notes that the log was closed in order, and
// frees the files. The log cannot be used afterwards.
func (l *Log) Close() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return nil
	}
	err := l.commit(false)
	kind := byte(page.FooterCheckpoint)
	if l.w.sealed {
		kind = page.FooterSealed
	}
	if err == nil && l.w.failed && !l.w.sealed {
		// The other slot may hold what a failed commit left: it must not be
		// newer than what is noted here.
		err = l.rewriteTail()
	}
	if err == nil && !l.spare.created {
		err = l.w.writeFooter(l.geo, l.cfg.Owner, kind, l.cfg.Now())
	}
	l.closed = true
	return errors.Join(err, l.closeFiles())
}

// Abort frees the files and writes nothing: what was not committed is lost, and
// the next open is not a clean one.
func (l *Log) Abort() {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if !l.closed {
		l.closed = true
		l.closeFiles()
	}
}

func (l *Log) closeFiles() (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w.file != nil {
		err = l.w.file.Close()
	}
	l.read.close()
	l.spare.close()
	if l.lock != nil {
		err = errors.Join(err, l.lock.Close())
	}
	return err
}

// Size returns how many bytes the files of the log take.
func (l *Log) Size() int64 {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return int64(len(l.segs)+len(l.recovery.Damaged))*l.geo.size() + l.spare.size(l.geo)
}
