package storage

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// pagesOf returns how many pages the segments of a log have: what the newest
// readable head says that agrees with its file, else what the size of the
// newest file of a possible size shows, else fallback.
func (l *Log) pagesOf(found []segment, fallback int) (int, error) {
	bySize := fallback
	for i := len(found) - 1; i >= 0; i-- {
		size, h, err := l.headOf(found[i])
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return 0, err
		}
		pages := int(min(size/page.Size, page.MaxPages+1))
		if size%page.Size != 0 || pages < page.MinPages || pages > page.MaxPages {
			continue
		}
		if err == nil && h.Pages == pages {
			return pages, nil
		}
		if bySize == fallback {
			bySize = pages
		}
	}
	return bySize, nil
}

// headOf returns size and head of a segment's file.
func (l *Log) headOf(s segment) (size int64, h page.Header, err error) {
	f, err := l.cfg.FS.OpenRead(join(l.cfg.Dir, s.name()))
	if err != nil {
		return 0, h, err
	}
	defer f.Close()
	if size, err = f.Size(); err != nil {
		return 0, h, err
	}
	h, err = readHeader(f, s)
	return size, h, err
}

// errBadHead says that the head of the newest segment cannot be used.
var errBadHead = fmt.Errorf("%w: segment head", ErrCorrupt)

// recover finds the end of the log in its newest readable segment.
func (l *Log) recover(found []segment) error {
	for i := 1; i < len(found); i++ {
		if found[i].seq != found[i-1].seq+1 {
			gap, err := l.gapBefore(found[i-1], found[i])
			if err != nil {
				return err
			}
			l.recovery.Gaps = append(l.recovery.Gaps, gap)
		}
	}
	for len(found) > 0 {
		last := found[len(found)-1]
		l.segs = found
		err := l.recoverLast(last)
		if errors.Is(err, errBadHead) && l.rebuildHead(len(found)-1) == nil {
			err = l.recoverLast(last)
		}
		if !errors.Is(err, errBadHead) {
			return err
		}
		l.log.Error("the newest segment has no readable head: set aside", "segment", last.name(), "error", err)
		if err := l.setAside(last, nil); err != nil {
			return err
		}
		found = found[:len(found)-1]
	}
	l.segs = nil
	return l.create()
}

// rebuildHead writes the head of the newest segment anew, from the foot of the
// one before or, at the beginning of a log, from nothing.
func (l *Log) rebuildHead(i int) error {
	s := l.segs[i]
	f, err := l.cfg.FS.Open(join(l.cfg.Dir, s.name()))
	if err != nil {
		return err
	}
	defer f.Close() // what was written is synced before
	if size, err := f.Size(); err != nil || size != l.geo.size() {
		return errors.Join(err, errBadHead)
	}
	if i > 0 {
		_, err := l.mendHead(f, i)
		return err
	}
	if s.first != 0 {
		return errBadHead
	}
	if err := l.cfg.Owner.Restore(0, nil, nil, 0); err != nil {
		return err
	}
	h := page.Header{Segment: s.seq, Pages: l.geo.pages, Digest: l.cfg.Owner.Digest(), State: l.cfg.Owner.State()}
	if _, err := io.ReadFull(l.cfg.Rand, h.Id[:]); err != nil {
		return err
	}
	return writeHead(f, h)
}

// gapBefore returns the blocks between segments a and b, whose numbers do not
// follow each other.
func (l *Log) gapBefore(a, b segment) (Gap, error) {
	end := b.first
	f, err := l.cfg.FS.OpenRead(join(l.cfg.Dir, a.name()))
	if err != nil {
		return Gap{}, err
	}
	defer f.Close()
	if ft, err := readFooter(f, l.geo, a.seq); err == nil {
		end = min(end, ft.End)
	}
	return Gap{First: end, End: b.first}, nil
}

// recoverLast opens the newest segment where its last commit ended. An error
// that is ErrCorrupt means that its head cannot be used.
func (l *Log) recoverLast(s segment) error {
	f, err := l.cfg.FS.Open(join(l.cfg.Dir, s.name()))
	if err != nil {
		return err
	}
	if err := l.recoverFile(f, s); err != nil {
		return errors.Join(err, f.Close())
	}
	return nil
}

func (l *Log) recoverFile(f durable.File, s segment) error {
	// What a killed process wrote and did not sync is made durable first, and
	// what failed syncs left in the cache is dropped: from here on we see what
	// the device holds.
	if err := f.Datasync(); err != nil {
		return err
	}
	if err := f.Forget(); err != nil {
		l.log.Warn("cannot drop cached pages", "error", err)
	}
	h, err := readHeader(f, s)
	if errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnreadable) {
		return fmt.Errorf("%w: %w", errBadHead, err)
	} else if err != nil {
		return fmt.Errorf("%s: %w", s.name(), err)
	}
	if h.Pages != l.geo.pages {
		return fmt.Errorf("%w: it says %d pages, others have %d", errBadHead, h.Pages, l.geo.pages)
	}
	l.id = h.Id
	pages, _, err := page.ReadEach(f, l.geo.markPage(0), l.marks.Pages())
	if err != nil {
		return err
	}
	if bad := l.marks.Load(pages, s.seq); bad > 0 {
		l.log.Error("marks are unreadable: meters go on from what the database holds", "pages", bad)
	}
	ft, err := readFooter(f, l.geo, s.seq)
	if errors.Is(err, ErrCorrupt) {
		err = l.clearFooter(f)
	}
	if err != nil {
		return err
	}
	sc := &scan{f: f, g: l.geo, seg: s, head: h}
	if ft.Segment == s.seq && ft.Kind != page.FooterClosed {
		sc.closed = &ft
		if done, err := l.recoverClean(sc); done || err != nil {
			return err
		}
	}
	return l.recoverScan(sc, ft.Commit)
}

// clearFooter removes what a power cut left of a footer, so that it cannot be
// taken for a damaged one later.
func (l *Log) clearFooter(f durable.File) error {
	b, err := page.Read(f, l.geo.footerPage(), l.geo.foot)
	if err == nil {
		if _, err := page.ParseFooter(b); err == nil {
			return nil // of the segment that the file held before
		}
	}
	if err := page.Write(f, make([]byte, len(b)), int64(l.geo.footerPage())*page.Size); err != nil {
		return err
	}
	return f.Datasync()
}

// recoverClean opens a log that was closed in order without reading its blocks.
// Nothing was committed since: the first commit removes the note.
func (l *Log) recoverClean(sc *scan) (bool, error) {
	ft := sc.closed
	if err := sc.readSlots(); err != nil {
		return false, err
	}
	t := tail{slot: noSlot}
	switch {
	case ft.Kind == page.FooterSealed:
		b, err := page.Read(sc.f, l.geo.dataPage(ft.Pages-1), 1)
		if err != nil {
			return false, nil //nolint:nilerr // then the pages tell
		}
		if t.info, err = page.Parse(b, sc.seg.seq); err != nil || t.info.Flags&page.FlagSegment == 0 {
			return false, nil //nolint:nilerr // then the pages tell
		}
		t.ends = true
	case ft.End > sc.seg.first:
		for i := range sc.slots {
			if sc.valid[i] && sc.slots[i].Digest == ft.Digest && sc.slots[i].Commit <= ft.Commit {
				t = tail{image: sc.images[i], info: sc.slots[i], slot: i}
			}
		}
		if t.slot == noSlot {
			return false, nil
		}
	}
	dir, err := page.ParseDir(ft.Dir, sc.seg.first, ft.Pages)
	if err != nil || ft.Pages != t.info.Number+1 || t.info.Digest != ft.Digest && t.slot != noSlot {
		return false, nil //nolint:nilerr // then the pages tell
	}
	if err := l.cfg.Owner.Restore(sc.seg.first, ft.State, ft.Summary, ft.End); err != nil || l.cfg.Owner.Digest() != ft.Digest {
		return false, nil //nolint:nilerr // then the pages tell
	}
	l.recovery.Clean = true
	if err := l.resume(sc, t, ft.End, ft.Commit, dir); err != nil {
		return false, err
	}
	l.w.noted = ft.Kind == page.FooterCheckpoint
	l.w.footed = ft.Kind == page.FooterSealed
	return true, nil
}

// recoverScan opens the log by reading its last segment. footed is the commit
// that a footer names: its number is used, though its pages may be gone.
func (l *Log) recoverScan(sc *scan, footed uint64) error {
	s, f, closed := sc.seg, sc.f, sc.closed
	sc, err := scanSegment(f, l.geo, s, sc.head)
	if err != nil {
		return err
	}
	sc.closed = closed
	sc.commit = max(sc.commit, footed)
	t, next, ok, err := sc.end(l.cfg.Owner)
	if err != nil {
		return err
	}
	var dir []uint64
	for _, p := range sc.pages {
		dir = append(dir, p.Block)
	}
	dir = dir[:min(len(dir), t.info.Number)]
	if t.image != nil || t.ends {
		dir = append(dir, t.info.Block)
	}
	if ok {
		err := l.resume(sc, t, next, sc.commit, dir)
		l.w.noted = closed != nil
		return err
	}
	l.log.Error("committed pages are unreadable: the log is cut there, a copy is set aside", "segment", s.name(), "blocks", next)
	if err := l.setAside(s, f); err != nil {
		return err
	}
	if err := l.resume(sc, t, next, sc.commit, dir); err != nil {
		return err
	}
	// Both slots still point behind the damage, and the foot may.
	l.w.noted = closed != nil
	if err := l.removeNote(); err != nil {
		return err
	}
	for range slots {
		if err := l.rewriteTail(); err != nil {
			return err
		}
	}
	return nil
}

// resume makes the segment of sc the open one, ending at t.
func (l *Log) resume(sc *scan, t tail, next, commit uint64, dir []uint64) error {
	w := &l.w
	*w = writer{file: sc.f, seg: sc.seg, slot: t.slot, sealed: t.ends, commit: commit, next: next, keys: sc.head.Keys, dir: dir}
	if t.image == nil && !t.ends {
		w.dir = w.dir[:0]
		w.begin(0)
	} else {
		if t.image == nil {
			image, _, err := sc.source(t)(t.info.Number)
			if err != nil {
				return err
			}
			t.image = image
		}
		o := &w.open
		copy(o.page[:], t.image)
		o.number, o.used, o.first, o.count = t.info.Number, t.info.Used, t.info.First, t.info.Count
		o.block, o.keys = t.info.Block, t.info.Keys
		w.keys = t.info.Keys
		one := func(n int) ([]byte, page.Info, error) {
			if n != t.info.Number {
				return nil, page.Info{}, fmt.Errorf("%w: record goes on behind the tail", ErrCorrupt)
			}
			return t.image, t.info, nil
		}
		if _, err := page.Walk(one, t.info.Number, t.info.Number, func(block uint64, weight Weight, data []byte) (bool, error) {
			o.last, o.hasLast = weight, true
			for i, k := range l.cfg.Owner.Keys(block, data) {
				w.keys[i] = max(w.keys[i], k)
			}
			return true, nil
		}); err != nil {
			return err
		}
	}
	w.save()
	l.publish(nil)
	l.cfg.Owner.Committed()
	return nil
}

// rewriteTail writes the open page's image, as it was committed, into the
// other slot.
func (l *Log) rewriteTail() error {
	w := &l.w
	info := w.info()
	info.Flags, info.Digest = page.FlagCommit, l.cfg.Owner.Digest()
	if w.saved.next == w.seg.first {
		info.Flags |= page.FlagFirst
	}
	if info.Used > page.BodyEnd {
		return fmt.Errorf("%w: tail page has no room", ErrCorrupt)
	}
	slot := (w.slot + 1) % slots
	info.Seal(w.open.page[:])
	if err := page.Write(w.file, w.open.page[:], int64(slotPage+slot)*page.Size); err != nil {
		return err
	}
	if err := w.file.Datasync(); err != nil {
		return err
	}
	w.commit++
	w.slot = slot
	w.save()
	return nil
}

// setAside keeps a segment from which something is lost: a copy of f, or the
// file itself if f is nil.
func (l *Log) setAside(s segment, f durable.File) error {
	name := s.name() + damagedSuffix
	if slices.Contains(l.recovery.Damaged, name) {
		return nil // an earlier copy, which has more: salvage was interrupted
	}
	to := join(l.cfg.Dir, name)
	if f == nil {
		if err := l.cfg.FS.Rename(join(l.cfg.Dir, s.name()), to); err != nil {
			return err
		}
	} else {
		b, _, err := page.ReadEach(f, 0, l.geo.pages)
		if err != nil {
			return err
		}
		if err := l.writeCopy(to, b); err != nil {
			return err
		}
	}
	l.recovery.Damaged = append(l.recovery.Damaged, name)
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

// roomForCopy makes room for one more copy within MaxSize, which has room for
// one: the spare segment goes, then the oldest.
func (l *Log) roomForCopy() error {
	for len(l.recovery.Damaged) > 0 && len(l.segs) > 1 {
		spare := l.spare.ready || l.spare.renamed
		if files := len(l.segs) + len(l.recovery.Damaged); !spare && files <= l.maxFiles || spare && files < l.maxFiles {
			break
		}
		if spare {
			if err := l.cfg.FS.Remove(join(l.cfg.Dir, spareName)); err != nil {
				return err
			}
			l.spare.ready, l.spare.renamed = false, false
		} else if err := l.dropOldest(false); err != nil {
			return err
		}
	}
	return nil
}

// writeCopy writes a file of the size of a segment; on a full disk it takes the
// spare segment's place.
func (l *Log) writeCopy(to string, b []byte) error {
	if err := l.roomForCopy(); err != nil {
		return err
	}
	err := durable.WriteFile(l.cfg.FS, to, b)
	if err == nil || !errors.Is(durable.Classify(err), ErrFull) || !l.spare.ready && !l.spare.renamed {
		return err
	}
	spare := join(l.cfg.Dir, spareName)
	f, err := l.cfg.FS.Open(spare)
	if err != nil {
		return err
	}
	if err = page.Write(f, b, 0); err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	l.spare.ready, l.spare.renamed = false, false
	return l.cfg.FS.Rename(spare, to)
}
