package storage

import (
	"errors"
	"fmt"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// spareStep is how many bytes of the next segment are filled with zeros after
// each commit, so that the work is done when the segment is needed.
const spareStep = 64 << 10

// spareBackoff is for how many commits it is not tried again when it failed.
const spareBackoff = 256

// spare is the file that becomes the next segment. Log.wmu guards it.
type spare struct {
	ready     bool         // spareName is there, whole and durable
	renamed   bool         // spareName is there, its directory is not synced
	file      durable.File // spareTemp while it is being filled
	filled    int64
	notBefore uint64 // the commit with which filling is tried again
	created   bool   // a segment file got its name, its directory is not synced
}

func (s *spare) close() {
	if s.file != nil {
		s.file.Close() // holds nothing that is needed
		s.file = nil
	}
}

func (s *spare) size(g geometry) int64 {
	if s.ready || s.renamed {
		return g.size()
	}
	return s.filled
}

// adoptSpare takes over a spare file that Open found, if it is whole.
func (l *Log) adoptSpare(found bool) error {
	if !found {
		return nil
	}
	name := join(l.cfg.Dir, spareName)
	f, err := l.cfg.FS.OpenRead(name)
	if err != nil {
		return err
	}
	size, err := f.Size()
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if size != l.geo.size() {
		return l.cfg.FS.Remove(name)
	}
	l.spare.renamed = true
	return nil
}

// room returns how many files segments and the spare one may have: of copies
// that were set aside only one is counted for.
func (l *Log) room() int {
	return max(l.maxFiles-max(len(l.recovery.Damaged)-1, 0), MinSegments-2)
}

// growSpare fills n more bytes of the next segment with zeros, if there is room
// for one more. What fails here is tried again when the segment is needed.
func (l *Log) growSpare(n int64) {
	if l.spare.ready || l.spare.renamed || len(l.segs) >= l.room() || l.w.commit < l.spare.notBefore {
		return
	}
	if err := l.fillSpare(n); err != nil {
		l.log.Warn("cannot prepare the next segment", "log", l.cfg.Dir, "error", err)
		l.spare.notBefore = l.w.commit + spareBackoff
		l.dropTemp()
	}
}

func (l *Log) dropTemp() {
	l.spare.close()
	l.spare.filled = 0
	_ = l.cfg.FS.Remove(join(l.cfg.Dir, spareTemp)) // truncated by the next try if it stays
}

// fillSpare writes zeros: a preallocated but unwritten extent would cost a
// journal entry at each first write (specs/board.md, section 5).
func (l *Log) fillSpare(n int64) (err error) {
	s := &l.spare
	if s.file == nil {
		if s.file, err = l.cfg.FS.Create(join(l.cfg.Dir, spareTemp)); err != nil {
			return err
		}
		s.filled = 0
	}
	zeros := make([]byte, spareStep)
	for n > 0 && s.filled < l.geo.size() {
		step := min(int64(len(zeros)), l.geo.size()-s.filled)
		if err := page.Write(s.file, zeros[:step], s.filled); err != nil {
			return err
		}
		s.filled += step
		n -= step
	}
	if s.filled < l.geo.size() {
		return nil
	}
	if err := s.file.Datasync(); err != nil {
		return err
	}
	if err := l.cfg.FS.Rename(join(l.cfg.Dir, spareTemp), join(l.cfg.Dir, spareName)); err != nil {
		return err
	}
	s.close()
	s.filled, s.renamed = 0, true
	return nil
}

// takeSpare makes sure that there is a whole spare file: a new one while the
// ring may grow, else the oldest segment.
func (l *Log) takeSpare() error {
	s := &l.spare
	if s.ready {
		return nil
	}
	if !s.renamed {
		if len(l.segs) < l.room() {
			if err := l.fillSpare(l.geo.size()); err != nil {
				l.dropTemp()
				return err
			}
		} else if err := l.dropOldest(true); err != nil {
			return err
		}
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return err
	}
	s.renamed, s.ready = false, true
	return nil
}

// dropOldest takes the oldest segment out of the log. With keep its file
// becomes the spare one.
func (l *Log) dropOldest(keep bool) error {
	if len(l.segs) < 2 {
		return fmt.Errorf("storage: the only segment cannot be dropped")
	}
	l.cfg.Owner.Dropping(l.segs[1].first)
	segs := l.segs
	l.mu.Lock() // readers leave the file before it gets another name
	l.read.forget(segs[0].seq)
	l.segs = append([]segment(nil), segs[1:]...)
	l.mu.Unlock()
	name := join(l.cfg.Dir, segs[0].name())
	var err error
	if keep {
		err = l.cfg.FS.Rename(name, join(l.cfg.Dir, spareName))
	} else {
		err = l.cfg.FS.Remove(name)
	}
	if err != nil {
		l.mu.Lock()
		l.segs = segs
		l.mu.Unlock()
		return err
	}
	l.spare.renamed = l.spare.renamed || keep
	return nil
}

// Drop drops the oldest segment, and tells whether there was one besides the
// open one. The file is kept as the next segment if there is none.
func (l *Log) Drop() (bool, error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return false, ErrClosed
	}
	if len(l.segs) < 2 {
		return false, nil
	}
	err := l.dropOldest(!l.spare.ready && !l.spare.renamed && l.spare.file == nil)
	if err == nil {
		err = l.cfg.FS.SyncDir(l.cfg.Dir)
	}
	return err == nil, durable.Classify(err)
}

// Trim drops the oldest segments until the files fit MaxSize, which may have
// become smaller since the log was made. Call it after Open.
func (l *Log) Trim() error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return ErrClosed
	}
	trimmed := false
	if s := &l.spare; len(l.segs) >= l.room() && (s.ready || s.renamed) && len(l.segs) > 1 {
		if err := l.cfg.FS.Remove(join(l.cfg.Dir, spareName)); err != nil {
			return durable.Classify(err)
		}
		s.ready, s.renamed, trimmed = false, false, true
	}
	for len(l.segs) > l.room() {
		if err := l.dropOldest(false); err != nil {
			return durable.Classify(err)
		}
		trimmed = true
	}
	if !trimmed {
		return nil
	}
	return durable.Classify(l.cfg.FS.SyncDir(l.cfg.Dir))
}

// startSegment makes s the open segment: head and marks are durable before the
// file gets its name, and the name before anything else is written.
func (l *Log) startSegment(s segment) error {
	name := join(l.cfg.Dir, s.name())
	if !l.spare.created {
		if err := l.takeSpare(); err != nil {
			return err
		}
		if err := l.prepare(s); err != nil {
			return err
		}
		if err := l.cfg.FS.Rename(join(l.cfg.Dir, spareName), name); err != nil {
			return err
		}
		l.spare.ready, l.spare.created = false, true
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		return err
	}
	f, err := l.cfg.FS.Open(name)
	if err != nil {
		return err
	}
	l.spare.created = false
	l.marks.Moved()
	w := &l.w
	old := w.file
	*w = writer{file: f, seg: s, slot: noSlot, commit: w.commit, next: s.first, keys: w.keys, pend: w.pend[:0]}
	w.begin(0)
	w.save()
	l.publish(append(append([]segment(nil), l.segs...), s))
	l.cfg.Owner.Started(s.first)
	if old != nil {
		if err := old.Close(); err != nil {
			l.log.Warn("closing a full segment", "error", err)
		}
	}
	return nil
}

// prepare writes head and marks of s into the spare file and syncs it.
func (l *Log) prepare(s segment) error {
	h := page.Header{
		Segment: s.seq, Pages: l.geo.pages, Block: s.first, Keys: l.w.keys, Digest: l.cfg.Owner.Digest(),
		Id: l.id, Created: l.cfg.Now(), State: l.cfg.Owner.State(),
	}
	b, err := h.Encode()
	if err != nil {
		return err
	}
	f, err := l.cfg.FS.Open(join(l.cfg.Dir, spareName))
	if err != nil {
		return err
	}
	if err = page.Write(f, b, 0); err == nil {
		err = l.marks.Move(s.seq, l.markWriter(f))
	}
	if err == nil {
		err = f.Datasync()
	}
	return errors.Join(err, f.Close())
}
