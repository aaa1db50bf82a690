package storage

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// Sizes of the read caches: 64 KiB of pages, a few page directories and files.
const (
	cachedPages = 16
	cachedViews = 4
	cachedFiles = 2
)

// reader finds and checks pages for readers. Its lock is taken with Log.mu held
// for reading, which keeps the files in place.
type reader struct {
	l      *Log
	mu     sync.Mutex
	pages  []cachedPage // guarded by mu, like all below; newest first
	views  []*Segment   // newest first
	files  []cachedFile // newest first
	closed bool
}

type cachedPage struct {
	seq  uint64
	n    int
	buf  *[page.Size]byte
	info page.Info
}

type cachedFile struct {
	seq uint64
	f   durable.File
}

func newReader(l *Log) reader { return reader{l: l} }

func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.files {
		f.f.Close() // read only
	}
	r.files, r.pages, r.views, r.closed = nil, nil, nil, true
}

// forget drops what is cached of a segment.
func (r *reader) forget(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pages = slices.DeleteFunc(r.pages, func(p cachedPage) bool { return p.seq == seq })
	r.views = slices.DeleteFunc(r.views, func(v *Segment) bool { return v.Seq == seq })
	r.files = slices.DeleteFunc(r.files, func(f cachedFile) bool {
		if f.seq == seq {
			f.f.Close() // read only
		}
		return f.seq == seq
	})
}

// file returns the file of segment number i of l.segs.
func (r *reader) file(i int) (durable.File, error) {
	l := r.l
	s := l.segs[i]
	if i == len(l.segs)-1 {
		return l.file, nil
	}
	for j, f := range r.files {
		if f.seq == s.seq {
			copy(r.files[1:j+1], r.files[:j])
			r.files[0] = f
			return f.f, nil
		}
	}
	f, err := l.cfg.FS.OpenRead(join(l.cfg.Dir, s.name()))
	if err != nil {
		return nil, err
	}
	if len(r.files) >= cachedFiles {
		r.files[len(r.files)-1].f.Close() // read only
		r.files = r.files[:len(r.files)-1]
	}
	r.files = append([]cachedFile{{s.seq, f}}, r.files...)
	return f, nil
}

// page returns data page n of segment number i, checked.
func (r *reader) page(i, n int) ([]byte, page.Info, error) {
	l := r.l
	s := l.segs[i]
	if i == len(l.segs)-1 && n == l.tailNo {
		info, err := page.Parse(l.tail[:], s.seq)
		return l.tail[:], info, err
	}
	for j, p := range r.pages {
		if p.seq == s.seq && p.n == n {
			copy(r.pages[1:j+1], r.pages[:j])
			r.pages[0] = p
			return p.buf[:], p.info, nil
		}
	}
	f, err := r.file(i)
	if err != nil {
		return nil, page.Info{}, err
	}
	p := cachedPage{seq: s.seq, n: n}
	if len(r.pages) >= cachedPages {
		p.buf = r.pages[len(r.pages)-1].buf
		r.pages = r.pages[:len(r.pages)-1]
	} else {
		p.buf = new([page.Size]byte)
	}
	if err := page.ReadInto(f, l.geo.dataPage(n), p.buf[:]); err != nil {
		return nil, page.Info{}, err
	}
	if p.info, err = page.Parse(p.buf[:], s.seq); err != nil {
		return nil, page.Info{}, err
	}
	if p.info.Number != n {
		return nil, page.Info{}, fmt.Errorf("%w: page %d in its place", ErrCorrupt, p.info.Number)
	}
	r.pages = append(r.pages, cachedPage{})
	copy(r.pages[1:], r.pages)
	r.pages[0] = p
	return p.buf[:], p.info, nil
}

// Segment is what a log knows of one of its segments without reading its
// blocks. It must not be changed.
type Segment struct {
	Seq        uint64
	First, End uint64 // its blocks are [First, End)
	// Open: the segment is being filled; it has no Summary, and End is the
	// log's length.
	Open bool
	// State is what the owner returned at First; nil if the head is damaged.
	State []byte
	// Summary is what the owner returned at End; nil if the foot is damaged.
	Summary []byte

	keys [2]uint64
	dir  []uint64
}

// view returns segment number i.
func (r *reader) view(i int) (*Segment, error) {
	l := r.l
	s := l.segs[i]
	open := i == len(l.segs)-1
	for j, v := range r.views {
		if v.Seq == s.seq && v.Open == open {
			copy(r.views[1:j+1], r.views[:j])
			r.views[0] = v
			if !open {
				return v, nil
			}
			now := *v
			now.End, now.dir = l.length, l.dir
			return &now, nil
		}
	}
	f, err := r.file(i)
	if err != nil {
		return nil, err
	}
	v := &Segment{Seq: s.seq, First: s.first, Open: open}
	h, err := readHeader(f, s)
	switch {
	case err == nil:
		v.State, v.keys = h.State, h.Keys
	case !errors.Is(err, ErrCorrupt):
		return nil, err
	}
	if open {
		v.End, v.dir = l.length, l.dir
	} else if err := r.closedView(f, i, v); err != nil {
		return nil, err
	}
	if len(r.views) >= cachedViews {
		r.views = r.views[:cachedViews-1]
	}
	r.views = append([]*Segment{v}, r.views...)
	return v, nil
}

// closedView fills in what the foot says, or else the pages.
func (r *reader) closedView(f durable.File, i int, v *Segment) error {
	v.End = r.l.segs[i+1].first
	ft, err := readFooter(f, r.l.geo, v.Seq)
	if err == nil && ft.Closed() && ft.End <= v.End {
		if v.dir, err = page.ParseDir(ft.Dir, v.First, ft.Pages); err == nil {
			v.End, v.Summary = ft.End, ft.Summary
			return nil
		}
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	v.dir, err = pageDir(f, r.l.geo, v.Seq, v.First)
	return err
}

// pageDir rebuilds the page directory of a closed segment from its pages. A
// page that cannot be read counts as beginning where the next one does.
func pageDir(f durable.File, g geometry, seq, first uint64) ([]uint64, error) {
	var dir []uint64
	var buf [page.Size]byte
	known := 0
	for n := range g.dataPages() {
		err := page.ReadInto(f, g.dataPage(n), buf[:])
		var info page.Info
		if err == nil {
			info, err = page.Parse(buf[:], seq)
		}
		if err != nil || info.Number != n || info.Block < first {
			if err != nil && !errors.Is(err, ErrCorrupt) {
				return nil, err
			}
			continue
		}
		for len(dir) <= n {
			dir = append(dir, info.Block)
		}
		first, known = info.Block, n+1
		if info.Flags&page.FlagSegment != 0 {
			break
		}
	}
	return dir[:known], nil
}

// locate returns the number of the segment that holds block i.
func (l *Log) locate(i uint64) (int, error) {
	if i >= l.length {
		return 0, fmt.Errorf("%w: %d of %d", ErrRange, i, l.length)
	}
	if i < l.segs[0].first {
		return 0, fmt.Errorf("%w: %d, the first is %d", ErrDropped, i, l.segs[0].first)
	}
	return sort.Search(len(l.segs), func(n int) bool { return l.segs[n].first > i }) - 1, nil
}

// Get returns block i and its weight. The bytes are the caller's.
func (l *Log) Get(i uint64) (data []byte, w Weight, err error) {
	err = l.Range(i, i+1, func(_ uint64, weight Weight, b []byte) bool {
		data, w = append(make([]byte, 0, len(b)), b...), weight
		return true
	})
	return data, w, err
}

// Range calls f for blocks [from, to) in order until it returns false. data is
// valid during the call, in which f must not use the log. Where blocks cannot
// be read it returns a [*CorruptError]; the caller may go on at its End.
func (l *Log) Range(from, to uint64, f func(block uint64, w Weight, data []byte) bool) error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	l.read.mu.Lock()
	defer l.read.mu.Unlock()
	if l.read.closed {
		return ErrClosed
	}
	for from < to {
		i, err := l.locate(from)
		if err != nil {
			return err
		}
		next, done, err := l.read.segmentRange(i, from, to, f)
		if err != nil || done {
			return err
		}
		from = next
	}
	return nil
}

// segmentRange is Range within segment number i. It returns the block behind
// the segment.
func (r *reader) segmentRange(i int, from, to uint64, f func(uint64, Weight, []byte) bool) (next uint64, done bool, err error) {
	v, err := r.view(i)
	if err != nil {
		return 0, false, err
	}
	end := v.End
	if i+1 < len(r.l.segs) && end != r.l.segs[i+1].first && from >= end {
		return 0, false, r.lost(i, 0, from, r.l.segs[i+1].first, errors.New("a segment file is missing"))
	}
	src := func(n int) ([]byte, page.Info, error) { return r.page(i, n) }
	start := max(sort.Search(len(v.dir), func(n int) bool { return v.dir[n] > from })-1, 0)
	at := from
	_, err = page.Walk(src, start, len(v.dir)-1, func(block uint64, w Weight, data []byte) (bool, error) {
		if block < from {
			return true, nil
		}
		if block >= to || block != at {
			done = block >= to
			return false, nil
		}
		at++
		if !f(block, w, data) {
			done = true
			return false, nil
		}
		return true, nil
	})
	switch {
	case done || at >= min(to, end):
		return at, done || at >= to, nil
	case err == nil:
		return 0, false, r.lost(i, start, at, end, errors.New("blocks are missing"))
	case errors.Is(err, ErrCorrupt):
		bad, first := start, at
		var pe *page.Error
		if errors.As(err, &pe) {
			bad = pe.Page
		}
		if bad < len(v.dir) {
			first = min(first, v.dir[bad]) // the whole page is lost, not from here on only
		}
		return 0, false, r.lost(i, bad, first, r.readableFrom(i, bad+1, at, end, v.dir), err)
	}
	return 0, false, err
}

// readableFrom returns the first block behind at that begins in a readable page
// from page n on, or else end.
func (r *reader) readableFrom(i, n int, at, end uint64, dir []uint64) uint64 {
	for ; n < len(dir); n++ {
		if _, info, err := r.page(i, n); err == nil && info.Count > 0 && info.Block > at {
			return info.Block
		}
	}
	return end
}

func (r *reader) lost(i, bad int, first, end uint64, why error) error {
	return &CorruptError{
		File: join(r.l.cfg.Dir, r.l.segs[i].name()), Page: r.l.geo.dataPage(bad), First: first, End: end, Why: why.Error(),
	}
}

// SegmentAt returns the segment that holds block i.
func (l *Log) SegmentAt(i uint64) (Segment, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	l.read.mu.Lock()
	defer l.read.mu.Unlock()
	if l.read.closed {
		return Segment{}, ErrClosed
	}
	n, err := l.locate(i)
	if err != nil {
		return Segment{}, err
	}
	v, err := l.read.view(n)
	if err != nil {
		return Segment{}, durable.Classify(err)
	}
	return *v, nil
}

// FindKey searches by key number k (see [Record]) in O(log n) reads. It returns
// the first block of the page within which, or behind which at the page's end,
// the running maximum of the key reaches target for the first time; Length if
// it never does before the tail page ends and the tail page was searched too.
func (l *Log) FindKey(k int, target uint64) (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	l.read.mu.Lock()
	defer l.read.mu.Unlock()
	if l.read.closed {
		return 0, ErrClosed
	}
	var failed error
	n := sort.Search(len(l.segs), func(n int) bool {
		v, err := l.read.view(n)
		if err != nil {
			failed = err
			return true
		}
		return v.State != nil && v.keys[k] >= target || v.State == nil && l.read.reached(n, 0, len(v.dir), k, target)
	}) - 1
	if failed != nil || n < 0 {
		return l.segs[0].first, failed
	}
	v, err := l.read.view(n)
	if err != nil {
		return 0, err
	}
	page := sort.Search(len(v.dir), func(p int) bool { return l.read.reached(n, p, len(v.dir), k, target) }) - 1
	if page < 0 {
		return v.First, nil
	}
	return v.dir[page], nil
}

// KeysBefore returns the running maxima of the keys before the first block of
// the page that holds block i (or, if i is the length, of the tail page), and
// that first block.
func (l *Log) KeysBefore(i uint64) (first uint64, keys [2]uint64, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	l.read.mu.Lock()
	defer l.read.mu.Unlock()
	if l.read.closed {
		return 0, keys, ErrClosed
	}
	n := len(l.segs) - 1
	if i < l.length {
		if n, err = l.locate(i); err != nil {
			return 0, keys, err
		}
	}
	v, err := l.read.view(n)
	if err != nil {
		return 0, keys, err
	}
	for p := max(sort.Search(len(v.dir), func(p int) bool { return v.dir[p] > i })-1, 0); p >= 0; p-- {
		if _, info, err := l.read.page(n, p); err == nil {
			return info.Block, info.Keys, nil
		} else if !errors.Is(err, ErrCorrupt) {
			return 0, keys, err
		}
	}
	return v.First, v.keys, nil
}

// reached tells whether the running maximum of key k is target or more before
// data page p or, if that is damaged, before the next readable one.
func (r *reader) reached(i, p, pages, k int, target uint64) bool {
	for ; p < pages; p++ {
		if _, info, err := r.page(i, p); err == nil {
			return info.Keys[k] >= target
		}
	}
	return true
}
