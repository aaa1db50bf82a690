package storage

import (
	"errors"
	"fmt"
	"slices"

	"dazaar-edge/storage/durable"
)

// pagesOf returns how many pages the segments of a log have: what the newest
// file of a possible size shows, or else fallback.
func (l *Log) pagesOf(found []segment, fallback int) (int, error) {
	for i := len(found) - 1; i >= 0; i-- {
		f, err := l.cfg.FS.OpenRead(join(l.cfg.Dir, found[i].name()))
		if err != nil {
			return 0, err
		}
		size, err := f.Size()
		if err = errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		if pages := int(size / PageSize); size%PageSize == 0 && pages >= minPages && pages <= maxPages {
			return pages, nil
		}
	}
	return fallback, nil
}

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
		if !errors.Is(err, ErrCorrupt) {
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
		end = min(end, ft.end)
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
	if err != nil {
		return err
	}
	if h.pages != l.geo.pages {
		return fmt.Errorf("%w: head says %d pages, file has %d", ErrCorrupt, h.pages, l.geo.pages)
	}
	l.id = h.id
	if bad, err := l.marks.load(f, l.geo, s.seq); err != nil {
		return err
	} else if bad > 0 {
		l.log.Error("marks are unreadable: meters go on from what the database holds", "pages", bad)
	}
	ft, err := readFooter(f, l.geo, s.seq)
	if errors.Is(err, ErrCorrupt) {
		err = l.clearFooter(f)
	}
	if err != nil {
		return err
	}
	if ft.segment == s.seq && ft.kind == footerCheckpoint {
		if done, err := l.recoverClean(f, s, h, ft); done || err != nil {
			return err
		}
	}
	return l.recoverScan(f, s, h, ft.commit)
}

// clearFooter removes what a power cut left of a footer, so that it cannot be
// taken for a damaged one later.
func (l *Log) clearFooter(f durable.File) error {
	b, err := readPages(f, l.geo.footerPage(), l.geo.foot)
	if err == nil {
		if _, err := parseFooter(b); err == nil {
			return nil // of the segment that the file held before
		}
	}
	if err := writeFull(f, make([]byte, len(b)), int64(l.geo.footerPage())*PageSize); err != nil {
		return err
	}
	return f.Datasync()
}

// recoverClean opens a log that was closed in order without reading its blocks.
func (l *Log) recoverClean(f durable.File, s segment, h header, ft footer) (bool, error) {
	sc := &scan{f: f, g: l.geo, seg: s, head: h}
	if err := sc.readSlots(); err != nil {
		return false, err
	}
	t := tail{slot: noSlot}
	for i := range sc.slots {
		if sc.valid[i] && (t.slot == noSlot || sc.slots[i].commit > t.info.commit) {
			t = tail{image: sc.images[i], info: sc.slots[i], slot: i}
		}
	}
	if t.slot == noSlot && ft.end != s.first || t.slot != noSlot && (t.info.commit > ft.commit || t.info.digest != ft.digest) {
		return false, nil
	}
	// A commit since then wrote a slot or, if it ended the segment, the tail
	// page's place.
	b, err := readPages(f, l.geo.dataPage(t.info.number), 1)
	if err != nil {
		return false, nil //nolint:nilerr // then the pages tell
	}
	if info, err := parsePage(b, s.seq); err == nil && info.commit > ft.commit {
		return false, nil
	}
	dir, err := parseDir(ft.dir, s.first, ft.pages)
	if err != nil || ft.pages == 0 || ft.pages != t.info.number+1 {
		return false, nil //nolint:nilerr // then the pages tell
	}
	if err := l.cfg.Owner.Restore(s.first, ft.state, ft.summary, ft.end); err != nil {
		return false, nil //nolint:nilerr // then the pages tell
	}
	if l.cfg.Owner.Digest() != ft.digest {
		return false, nil
	}
	l.recovery.Clean = true
	return true, l.resume(sc, t, ft.end, ft.commit, dir)
}

// recoverScan opens the log by reading its last segment. footed is the commit
// that a footer names: its number is used, though its pages may be gone.
func (l *Log) recoverScan(f durable.File, s segment, h header, footed uint64) error {
	sc, err := scanSegment(f, l.geo, s, h)
	if err != nil {
		return err
	}
	sc.commit = max(sc.commit, footed)
	t, next, ok, err := sc.end(l.cfg.Owner)
	if err != nil {
		return err
	}
	var dir []uint64
	for _, p := range sc.pages {
		dir = append(dir, p.block)
	}
	dir = dir[:min(len(dir), t.info.number)]
	if t.image != nil || t.ends {
		dir = append(dir, t.info.block)
	}
	if ok {
		return l.resume(sc, t, next, sc.commit, dir)
	}
	l.log.Error("committed pages are unreadable: the log is cut there, a copy is set aside", "segment", s.name(), "blocks", next)
	if err := l.setAside(s, f); err != nil {
		return err
	}
	if err := l.resume(sc, t, next, sc.commit, dir); err != nil {
		return err
	}
	// Both slots still point behind the damage.
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
	*w = writer{file: sc.f, seg: sc.seg, slot: t.slot, sealed: t.ends, commit: commit, next: next, keys: sc.head.keys, dir: dir}
	if t.image == nil && !t.ends {
		w.dir = w.dir[:0]
		w.begin(0)
	} else {
		if t.image == nil {
			image, _, err := sc.source(t)(t.info.number)
			if err != nil {
				return err
			}
			t.image = image
		}
		o := &w.open
		copy(o.page[:], t.image)
		o.number, o.used, o.first, o.count = t.info.number, t.info.used, t.info.first, t.info.count
		o.block, o.keys = t.info.block, t.info.keys
		w.keys = t.info.keys
		one := func(n int) ([]byte, pageInfo, error) {
			if n != t.info.number {
				return nil, pageInfo{}, fmt.Errorf("%w: record goes on behind the tail", ErrCorrupt)
			}
			return t.image, t.info, nil
		}
		if _, err := walk(one, t.info.number, t.info.number, func(block uint64, weight Weight, data []byte) (bool, error) {
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
	l.publish()
	l.cfg.Owner.Committed()
	return nil
}

// rewriteTail writes the open page's image, as it was committed, into the
// other slot.
func (l *Log) rewriteTail() error {
	w := &l.w
	info := w.info()
	info.flags, info.digest = flagCommit, l.cfg.Owner.Digest()
	if info.used > bodyEnd {
		return fmt.Errorf("%w: tail page has no room", ErrCorrupt)
	}
	slot := (w.slot + 1) % slots
	info.seal(w.open.page[:])
	if err := writeFull(w.file, w.open.page[:], int64(slotPage+slot)*PageSize); err != nil {
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
	to := join(l.cfg.Dir, name)
	if f == nil {
		if err := l.cfg.FS.Rename(join(l.cfg.Dir, s.name()), to); err != nil {
			return err
		}
	} else {
		b, err := readPages(f, 0, l.geo.pages)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
		if err := durable.WriteFile(l.cfg.FS, to, b); err != nil {
			return err
		}
	}
	if !slices.Contains(l.recovery.Damaged, name) {
		l.recovery.Damaged = append(l.recovery.Damaged, name)
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}
