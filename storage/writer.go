package storage

import (
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

const noSlot = -1

// writer fills the open segment. Log.wmu guards it.
type writer struct {
	file   durable.File
	seg    segment
	sealed bool // the segment ended; the next record needs a new one
	footed bool // its footer is written
	failed bool // a commit failed since the last that did not
	noted  bool // the foot says that the log was closed here

	commit uint64 // number of the last commit that was tried
	slot   int    // the tail slot with the durable image, or noSlot
	open   openPage
	pend   []byte // sealed full pages that end before open, not yet written
	next   uint64 // index of the next block
	keys   [2]uint64
	dir    []uint64 // first block of each page, the open one included

	saved struct { // after the last commit
		open openPage
		next uint64
		keys [2]uint64
		dir  int
	}
}

// openPage is the page that is being filled.
type openPage struct {
	page    [page.Size]byte
	number  int
	used    int
	first   int
	count   int
	block   uint64
	keys    [2]uint64
	last    Weight // of the last record that begins here
	hasLast bool
}

func (w *writer) begin(number int) {
	o := &w.open
	clear(o.page[:])
	o.number, o.used, o.first, o.count = number, 0, page.NoRecord, 0
	o.block, o.keys, o.hasLast = w.next, w.keys, false
	w.dir = append(w.dir, w.next)
}

// info returns the head of the open page's image for the running commit.
func (w *writer) info() page.Info {
	o := &w.open
	return page.Info{
		Segment: w.seg.seq, Number: o.number, Used: o.used, First: o.first, Count: o.count,
		Commit: w.commit + 1, Block: o.block, Keys: o.keys,
	}
}

// room returns how many record bytes the open page takes.
func (w *writer) room(g geometry) int {
	if w.open.number == g.dataPages()-1 {
		return page.BodyEnd
	}
	return page.BodyMax
}

// fits tells whether a block of n bytes fits into the rest of the segment.
func (w *writer) fits(g geometry, n int) bool {
	return n+2*page.MaxRecordHead <= g.capacity(w.open.number, w.open.used)
}

// put adds a record, which must fit.
func (w *writer) put(g geometry, rec Record) {
	o := &w.open
	var buf [page.MaxRecordHead]byte
	head := page.AppendRecordHead(buf[:0], len(rec.Data), rec.Weight, o.hasLast && o.last == rec.Weight)
	if o.used+len(head) > w.room(g) {
		w.finishPage()
		head = page.AppendRecordHead(buf[:0], len(rec.Data), rec.Weight, false)
	}
	if o.first == page.NoRecord {
		o.first = o.used
	}
	o.count++
	o.last, o.hasLast = rec.Weight, true
	w.next++
	for i := range w.keys {
		w.keys[i] = max(w.keys[i], rec.Keys[i])
	}
	o.used += copy(o.page[page.HeadSize+o.used:], head)
	for data := rec.Data; ; {
		n := copy(o.page[page.HeadSize+o.used:page.HeadSize+w.room(g)], data)
		o.used += n
		if data = data[n:]; len(data) == 0 {
			return
		}
		w.finishPage()
	}
}

// finishPage seals the open page as full and begins the next.
func (w *writer) finishPage() {
	info := w.info()
	info.Seal(w.open.page[:])
	w.pend = append(w.pend, w.open.page[:]...)
	w.begin(w.open.number + 1)
}

// flush writes the full pages to their places, without a sync.
func (w *writer) flush(g geometry) error {
	if len(w.pend) == 0 {
		return nil
	}
	at := w.open.number - len(w.pend)/page.Size
	if err := page.Write(w.file, w.pend, g.dataOff(at)); err != nil {
		return err
	}
	w.pend = w.pend[:0]
	if cap(w.pend) > 2*maxPending {
		w.pend = nil
	}
	return nil
}

func (w *writer) save() {
	w.saved.open, w.saved.next, w.saved.keys, w.saved.dir = w.open, w.next, w.keys, len(w.dir)
}

func (w *writer) restore() {
	w.open, w.next, w.keys, w.dir = w.saved.open, w.saved.next, w.saved.keys, w.dir[:w.saved.dir]
	w.pend = w.pend[:0]
}
