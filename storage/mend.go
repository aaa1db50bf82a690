package storage

import (
	"errors"
	"fmt"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// Mend rewrites damaged heads and feet of closed segments where they follow
// from what is whole: a head from the foot of the segment before, a foot from
// the segment's own blocks. newOwner returns an owner to compute with. It says
// what it did; what cannot be mended is left as it is.
func (l *Log) Mend(newOwner func() Owner) (done []string, err error) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	for i := range len(l.segs) - 1 {
		what, err := l.mendSegment(i, newOwner)
		done = append(done, what...)
		if err != nil {
			return done, durable.Classify(err)
		}
	}
	return done, nil
}

func (l *Log) mendSegment(i int, newOwner func() Owner) (done []string, err error) {
	s, next := l.segs[i], l.segs[i+1]
	f, err := l.cfg.FS.Open(join(l.cfg.Dir, s.name()))
	if err != nil {
		return nil, err
	}
	defer f.Close() // what was written is synced before
	h, err := readHeader(f, s)
	if errors.Is(err, ErrCorrupt) && i > 0 {
		if h, err = l.mendHead(f, i); err == nil {
			done = append(done, fmt.Sprintf("%s: head rewritten from the segment before", s.name()))
		}
	}
	if errors.Is(err, ErrCorrupt) {
		return done, nil
	} else if err != nil {
		return done, err
	}
	l.mu.Lock()
	l.read.forget(s.seq)
	l.mu.Unlock()
	if ft, err := readFooter(f, l.geo, s.seq); err == nil && ft.Closed() {
		return done, nil
	} else if err != nil && !errors.Is(err, ErrCorrupt) {
		return done, err
	}
	err = l.mendFoot(f, s, next, h, newOwner())
	switch {
	case errors.Is(err, ErrCorrupt):
		return done, nil // blocks are damaged too
	case err != nil:
		return done, err
	}
	return append(done, fmt.Sprintf("%s: foot rewritten from the blocks", s.name())), nil
}

// mendHead writes the head of segment number i from the foot of the one before.
func (l *Log) mendHead(f durable.File, i int) (page.Header, error) {
	s, before := l.segs[i], l.segs[i-1]
	if before.seq+1 != s.seq {
		return page.Header{}, fmt.Errorf("%w: the segment before is missing", ErrCorrupt)
	}
	b, err := l.cfg.FS.OpenRead(join(l.cfg.Dir, before.name()))
	if err != nil {
		return page.Header{}, err
	}
	ft, err := readFooter(b, l.geo, before.seq)
	if err = errors.Join(err, b.Close()); err != nil {
		return page.Header{}, err
	}
	if !ft.Closed() || ft.End != s.first {
		return page.Header{}, fmt.Errorf("%w: the segment before does not lead here", ErrCorrupt)
	}
	_, old, err := l.headOf(before)
	if err != nil {
		return page.Header{}, err
	}
	h := page.Header{Segment: s.seq, Pages: l.geo.pages, Block: s.first, Keys: ft.Keys, Digest: ft.Digest, Id: old.Id, Created: ft.Written, State: ft.State}
	return h, writeHead(f, h)
}

// writeHead replaces a damaged head.
func writeHead(f durable.File, h page.Header) error {
	image, err := h.Encode()
	if err != nil {
		return err
	}
	if err := page.Write(f, image, 0); err != nil {
		return err
	}
	return f.Datasync()
}

// mendFoot writes the foot of segment s, whose blocks must all be readable and
// lead to the next segment.
func (l *Log) mendFoot(f durable.File, s, next segment, h page.Header, o Owner) error {
	sc, err := scanSegment(f, l.geo, s, h)
	if err != nil {
		return err
	}
	n := len(sc.pages)
	if n == 0 || sc.pages[n-1].Flags&page.FlagSegment == 0 {
		return fmt.Errorf("%w: pages are missing", ErrCorrupt)
	}
	final := sc.pages[n-1]
	end, err := sc.replay(o, tail{info: final, ends: true})
	if err != nil {
		return err
	}
	if end != next.first {
		return fmt.Errorf("%w: the blocks do not lead to the next segment", ErrCorrupt)
	}
	w := writer{file: f, seg: s, commit: final.Commit, next: end, keys: h.Keys}
	w.open.number = final.Number
	for _, p := range sc.pages {
		w.dir = append(w.dir, p.Block)
	}
	if _, err := page.Walk(sc.source(tail{info: final}), 0, final.Number, func(i uint64, _ Weight, data []byte) (bool, error) {
		for k, v := range o.Keys(i, data) {
			w.keys[k] = max(w.keys[k], v)
		}
		return true, nil
	}); err != nil {
		return err
	}
	l.mu.Lock()
	l.read.forget(s.seq)
	l.mu.Unlock()
	return w.writeFooter(l.geo, o, page.FooterClosed, l.cfg.Now())
}
