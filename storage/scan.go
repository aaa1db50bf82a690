package storage

import (
	"errors"
	"fmt"
	"slices"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// scan is what the pages of an open segment show.
type scan struct {
	f      durable.File
	g      geometry
	seg    segment
	head   page.Header
	pages  []page.Info // the valid chain of data pages from page 0 on
	slots  [slots]page.Info
	images [slots][]byte
	valid  [slots]bool
	commit uint64 // the highest commit number on any page
	// closed is a footer that says how the log was closed; nothing was
	// committed since. nil if there is none.
	closed *page.Footer
}

// tail is where a log ends.
type tail struct {
	image []byte // of the page that is being filled; nil in an empty segment
	info  page.Info
	slot  int  // where the image lies, noSlot for a closed segment's last page
	ends  bool // the segment ends with it
}

// scanSegment reads all data pages and slots of a segment.
func scanSegment(f durable.File, g geometry, s segment, h page.Header) (*scan, error) {
	sc := &scan{f: f, g: g, seg: s, head: h}
	if err := sc.readSlots(); err != nil {
		return nil, err
	}
	const chunk = 64
	chained := true
	for n := 0; n < g.dataPages(); n += chunk {
		b, _, err := page.ReadEach(f, g.dataPage(n), min(chunk, g.dataPages()-n))
		if err != nil {
			return nil, err
		}
		for i := 0; i < len(b); i += page.Size {
			info, err := page.Parse(b[i:i+page.Size], s.seq)
			if errors.Is(err, ErrNewer) {
				return nil, err
			}
			if err == nil {
				sc.commit = max(sc.commit, info.Commit)
			}
			if chained = chained && err == nil && sc.follows(info); chained {
				sc.pages = append(sc.pages, info)
			}
		}
	}
	return sc, nil
}

func (sc *scan) readSlots() error {
	for i := range sc.slots {
		b, err := page.Read(sc.f, slotPage+i, 1)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
		if err == nil {
			var info page.Info
			if info, err = page.Parse(b, sc.seg.seq); errors.Is(err, ErrNewer) {
				return err
			} else if err == nil && info.Flags&page.FlagCommit != 0 {
				sc.slots[i], sc.images[i], sc.valid[i] = info, b, true
				sc.commit = max(sc.commit, info.Commit)
			}
		}
	}
	return nil
}

// follows tells whether a page can stand behind the chain: pages that an
// aborted commit left behind carry an older commit than what was written since.
func (sc *scan) follows(p page.Info) bool {
	n := len(sc.pages)
	if p.Number != n {
		return false
	}
	if n == 0 {
		return p.Block == sc.seg.first
	}
	return p.Commit >= sc.pages[n-1].Commit && p.Block >= sc.pages[n-1].Block
}

// candidates returns the ends that commits left, the newest first.
func (sc *scan) candidates() (out []tail) {
	for i := range sc.slots {
		n := sc.slots[i].Number
		if !sc.valid[i] || n > len(sc.pages) {
			continue
		}
		if n > 0 && (sc.slots[i].Commit < sc.pages[n-1].Commit || sc.slots[i].Block < sc.pages[n-1].Block) {
			continue
		}
		out = append(out, tail{image: sc.images[i], info: sc.slots[i], slot: i})
	}
	for _, p := range sc.pages {
		if p.Flags&page.FlagSegment != 0 {
			out = append(out, tail{info: p, slot: noSlot, ends: true})
		}
	}
	slices.SortFunc(out, func(a, b tail) int { return int(int64(b.info.Commit - a.info.Commit)) })
	return out
}

// damaged tells whether committed pages are missing. The older of two valid
// slots was durable before the newer was written, so all pages before its own
// must be there.
func (sc *scan) damaged() bool {
	if !sc.valid[0] || !sc.valid[1] {
		return false
	}
	return sc.slots[1-sc.newest()].Number > len(sc.pages)
}

// newest returns the slot with the newest valid image; noSlot if there is none.
func (sc *scan) newest() int {
	best := noSlot
	for i := range sc.slots {
		if sc.valid[i] && (best == noSlot || sc.slots[i].Commit > sc.slots[best].Commit) {
			best = i
		}
	}
	return best
}

// begun tells whether a commit of this segment is known to have been durable:
// some image was written when one was, or the log was closed with blocks here.
func (sc *scan) begun() bool {
	for i := range sc.slots {
		if sc.valid[i] && sc.slots[i].Flags&page.FlagFirst == 0 {
			return true
		}
	}
	return sc.closed != nil && sc.closed.End > sc.seg.first
}

// source reads the chain's pages, with t's image in its place.
func (sc *scan) source(t tail) page.Source {
	var buf [page.Size]byte
	return func(n int) ([]byte, page.Info, error) {
		if n == t.info.Number && t.image != nil {
			return t.image, t.info, nil
		}
		if err := page.ReadInto(sc.f, sc.g.dataPage(n), buf[:]); err != nil {
			return nil, page.Info{}, err
		}
		info, err := page.Parse(buf[:], sc.seg.seq)
		return buf[:], info, err
	}
}

// replay gives the owner all blocks up to t and checks the digest there. It
// returns the number of the next block.
func (sc *scan) replay(o Owner, t tail) (next uint64, err error) {
	next = sc.seg.first
	if err := o.Restore(sc.seg.first, sc.head.State, nil, sc.seg.first); err != nil {
		return 0, err
	}
	if o.Digest() != sc.head.Digest {
		return 0, fmt.Errorf("%w: digest at the segment's begin", ErrCorrupt)
	}
	cut, err := page.Walk(sc.source(t), 0, t.info.Number, func(block uint64, _ Weight, data []byte) (bool, error) {
		next = block + 1
		return true, o.Replay(block, data)
	})
	if err != nil {
		return 0, err
	}
	if t.info.Flags&page.FlagCommit == 0 {
		return next, nil // a cut behind damage: there is no digest
	}
	if cut || o.Digest() != t.info.Digest {
		return 0, fmt.Errorf("%w: digest of commit %d", ErrCorrupt, t.info.Commit)
	}
	return next, nil
}

// end finds the newest complete commit and replays up to it. ok is false if
// committed pages are damaged; t is then where the readable part ends.
func (sc *scan) end(o Owner) (t tail, next uint64, ok bool, err error) {
	if !sc.damaged() {
		for _, t := range sc.candidates() {
			if sc.closed != nil && t.info.Digest != sc.closed.Digest {
				continue // left by a commit that failed before the log was closed
			}
			next, err := sc.replay(o, t)
			if err == nil {
				return t, next, true, nil
			}
			if !errors.Is(err, ErrCorrupt) {
				return t, 0, false, err
			}
		}
		if !sc.begun() {
			next, err := sc.empty(o)
			return tail{slot: noSlot}, next, true, err
		}
	}
	t, next, err = sc.cutBest(o)
	return t, next, false, err
}

// cutBest ends the log with an older commit or behind the last readable page,
// whichever keeps more.
func (sc *scan) cutBest(o Owner) (t tail, next uint64, err error) {
	if t, next, err = sc.cut(o); err != nil {
		return t, 0, err
	}
	t.slot = sc.newest() // so that the other one is written first
	for _, c := range sc.candidates() {
		if c.ends {
			continue
		}
		if n, err := sc.replay(o, c); err == nil && n > next {
			return c, n, nil
		}
	}
	_, err = sc.replayOrEmpty(o, t)
	return t, next, err
}

func (sc *scan) replayOrEmpty(o Owner, t tail) (uint64, error) {
	if t.image == nil {
		return sc.empty(o)
	}
	return sc.replay(o, t)
}

func (sc *scan) empty(o Owner) (uint64, error) {
	return sc.seg.first, o.Restore(sc.seg.first, sc.head.State, nil, sc.seg.first)
}

// cut replays the readable pages and returns an end behind their last whole
// record.
func (sc *scan) cut(o Owner) (t tail, next uint64, err error) {
	for n := len(sc.pages) - 1; n >= 0; n-- {
		t, err := sc.trim(n)
		if errors.Is(err, ErrCorrupt) {
			continue
		} else if err != nil {
			return t, 0, err
		}
		if next, err = sc.replay(o, t); err == nil {
			return t, next, nil
		} else if !errors.Is(err, ErrCorrupt) {
			return t, 0, err
		}
	}
	next, err = sc.empty(o)
	return tail{slot: noSlot}, next, err
}

// trim returns page n as a tail, without a record that continues behind it or
// stands where a tail has its digest.
func (sc *scan) trim(n int) (tail, error) {
	image, info, err := sc.source(tail{info: page.Info{Number: -1}})(n)
	if err != nil {
		return tail{}, err
	}
	image = slices.Clone(image)
	info.Flags = 0
	if info.Count == 0 { // a piece of one long record
		return tail{}, fmt.Errorf("%w: no whole record", ErrCorrupt)
	}
	pos, whole := info.First, info.First
	var weight *Weight
	count := 0
	for range info.Count {
		length, w, size, err := page.ParseRecordHead(image[page.HeadSize+pos:page.HeadSize+info.Used], weight)
		if err == nil && (size == 0 || pos+size > info.Used) {
			err = fmt.Errorf("%w: fewer records than the page says", ErrCorrupt)
		}
		if err != nil {
			return tail{}, err
		}
		weight = &w
		pos += size + length
		if pos <= min(info.Used, page.BodyEnd) {
			whole = pos
			count++
		} else {
			break
		}
	}
	if whole > page.BodyEnd {
		return tail{}, fmt.Errorf("%w: no room for a tail", ErrCorrupt)
	}
	if count == 0 && info.First == 0 {
		return tail{}, fmt.Errorf("%w: no whole record", ErrCorrupt)
	}
	info.Used, info.Count = whole, count
	if count == 0 {
		info.First = page.NoRecord
	}
	clear(image[page.HeadSize+whole:])
	return tail{image: image, info: info, slot: noSlot}, nil
}
