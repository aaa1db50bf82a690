package storage

import (
	"errors"
	"fmt"
	"slices"

	"dazaar-edge/storage/durable"
)

// scan is what the pages of an open segment show.
type scan struct {
	f      durable.File
	g      geometry
	seg    segment
	head   header
	pages  []pageInfo // the valid chain of data pages from page 0 on
	slots  [slots]pageInfo
	images [slots][]byte
	valid  [slots]bool
	commit uint64 // the highest commit number on any page
	// closed is a footer that says how the log was closed; nothing was
	// committed since. nil if there is none.
	closed *footer
}

// tail is where a log ends.
type tail struct {
	image []byte // of the page that is being filled; nil in an empty segment
	info  pageInfo
	slot  int  // where the image lies, noSlot for a closed segment's last page
	ends  bool // the segment ends with it
}

// scanSegment reads all data pages and slots of a segment.
func scanSegment(f durable.File, g geometry, s segment, h header) (*scan, error) {
	sc := &scan{f: f, g: g, seg: s, head: h}
	if err := sc.readSlots(); err != nil {
		return nil, err
	}
	const chunk = 64
	chained := true
	for n := 0; n < g.dataPages(); n += chunk {
		b, _, err := readEach(f, g.dataPage(n), min(chunk, g.dataPages()-n))
		if err != nil {
			return nil, err
		}
		for i := 0; i < len(b); i += PageSize {
			info, err := parsePage(b[i:i+PageSize], s.seq)
			if errors.Is(err, ErrNewer) {
				return nil, err
			}
			if err == nil {
				sc.commit = max(sc.commit, info.commit)
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
		b, err := readPages(sc.f, slotPage+i, 1)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
		if err == nil {
			var info pageInfo
			if info, err = parsePage(b, sc.seg.seq); errors.Is(err, ErrNewer) {
				return err
			} else if err == nil && info.flags&flagCommit != 0 {
				sc.slots[i], sc.images[i], sc.valid[i] = info, b, true
				sc.commit = max(sc.commit, info.commit)
			}
		}
	}
	return nil
}

// follows tells whether a page can stand behind the chain: pages that an
// aborted commit left behind carry an older commit than what was written since.
func (sc *scan) follows(p pageInfo) bool {
	n := len(sc.pages)
	if p.number != n {
		return false
	}
	if n == 0 {
		return p.block == sc.seg.first
	}
	return p.commit >= sc.pages[n-1].commit && p.block >= sc.pages[n-1].block
}

// candidates returns the ends that commits left, the newest first.
func (sc *scan) candidates() (out []tail) {
	for i := range sc.slots {
		n := sc.slots[i].number
		if !sc.valid[i] || n > len(sc.pages) {
			continue
		}
		if n > 0 && (sc.slots[i].commit < sc.pages[n-1].commit || sc.slots[i].block < sc.pages[n-1].block) {
			continue
		}
		out = append(out, tail{image: sc.images[i], info: sc.slots[i], slot: i})
	}
	for _, p := range sc.pages {
		if p.flags&flagSegment != 0 {
			out = append(out, tail{info: p, slot: noSlot, ends: true})
		}
	}
	slices.SortFunc(out, func(a, b tail) int { return int(int64(b.info.commit - a.info.commit)) })
	return out
}

// damaged tells whether committed pages are missing. The older of two valid
// slots was durable before the newer was written, so all pages before its own
// must be there.
func (sc *scan) damaged() bool {
	if !sc.valid[0] || !sc.valid[1] {
		return false
	}
	return sc.slots[1-sc.newest()].number > len(sc.pages)
}

// newest returns the slot with the newest valid image; noSlot if there is none.
func (sc *scan) newest() int {
	best := noSlot
	for i := range sc.slots {
		if sc.valid[i] && (best == noSlot || sc.slots[i].commit > sc.slots[best].commit) {
			best = i
		}
	}
	return best
}

// begun tells whether a commit of this segment is known to have been durable:
// some image was written when one was, or the log was closed with blocks here.
func (sc *scan) begun() bool {
	for i := range sc.slots {
		if sc.valid[i] && sc.slots[i].flags&flagFirst == 0 {
			return true
		}
	}
	return sc.closed != nil && sc.closed.end > sc.seg.first
}

// source reads the chain's pages, with t's image in its place.
func (sc *scan) source(t tail) pageSource {
	var buf [PageSize]byte
	return func(n int) ([]byte, pageInfo, error) {
		if n == t.info.number && t.image != nil {
			return t.image, t.info, nil
		}
		if err := readInto(sc.f, sc.g.dataPage(n), buf[:]); err != nil {
			return nil, pageInfo{}, err
		}
		info, err := parsePage(buf[:], sc.seg.seq)
		return buf[:], info, err
	}
}

// replay gives the owner all blocks up to t and checks the digest there. It
// returns the number of the next block.
func (sc *scan) replay(o Owner, t tail) (next uint64, err error) {
	next = sc.seg.first
	if err := o.Restore(sc.seg.first, sc.head.state, nil, sc.seg.first); err != nil {
		return 0, err
	}
	if o.Digest() != sc.head.digest {
		return 0, fmt.Errorf("%w: digest at the segment's begin", ErrCorrupt)
	}
	cut, err := walk(sc.source(t), 0, t.info.number, func(block uint64, _ Weight, data []byte) (bool, error) {
		next = block + 1
		return true, o.Replay(block, data)
	})
	if err != nil {
		return 0, err
	}
	if t.info.flags&flagCommit == 0 {
		return next, nil // a cut behind damage: there is no digest
	}
	if cut || o.Digest() != t.info.digest {
		return 0, fmt.Errorf("%w: digest of commit %d", ErrCorrupt, t.info.commit)
	}
	return next, nil
}

// end finds the newest complete commit and replays up to it. ok is false if
// committed pages are damaged; t is then where the readable part ends.
func (sc *scan) end(o Owner) (t tail, next uint64, ok bool, err error) {
	if !sc.damaged() {
		for _, t := range sc.candidates() {
			if sc.closed != nil && t.info.digest != sc.closed.digest {
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
	return sc.seg.first, o.Restore(sc.seg.first, sc.head.state, nil, sc.seg.first)
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
	image, info, err := sc.source(tail{info: pageInfo{number: -1}})(n)
	if err != nil {
		return tail{}, err
	}
	image = slices.Clone(image)
	info.flags = 0
	if info.count == 0 { // a piece of one long record
		return tail{}, fmt.Errorf("%w: no whole record", ErrCorrupt)
	}
	pos, whole := info.first, info.first
	var weight *Weight
	count := 0
	for range info.count {
		length, w, size, err := parseRecordHead(image[pageHead+pos:pageHead+info.used], weight)
		if err == nil && (size == 0 || pos+size > info.used) {
			err = fmt.Errorf("%w: fewer records than the page says", ErrCorrupt)
		}
		if err != nil {
			return tail{}, err
		}
		weight = &w
		pos += size + length
		if pos <= min(info.used, bodyEnd) {
			whole = pos
			count++
		} else {
			break
		}
	}
	if whole > bodyEnd {
		return tail{}, fmt.Errorf("%w: no room for a tail", ErrCorrupt)
	}
	if count == 0 && info.first == 0 {
		return tail{}, fmt.Errorf("%w: no whole record", ErrCorrupt)
	}
	info.used, info.count = whole, count
	if count == 0 {
		info.first = noRecord
	}
	clear(image[pageHead+whole:])
	return tail{image: image, info: info, slot: noSlot}, nil
}
