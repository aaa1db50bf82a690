package storage

import (
	"fmt"
	"path/filepath"
	"strings"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// MaxBlock is the largest block in bytes.
const MaxBlock = page.MaxBlock

// PageSize is the unit of writing in bytes.
const PageSize = page.Size

const (
	slotPage = 1 // the two tail slots are pages 1 and 2
	slots    = 2
	// DefaultSegmentSize is one allocation unit of a common SD card.
	DefaultSegmentSize = 4 << 20
)

// geometry says which page of a segment file is what:
// header, two tail slots, pairs of mark pages, data, footer.
type geometry struct{ pages, marks, foot int }

func newGeometry(pages int) geometry {
	return geometry{pages: pages, marks: max(1, pages/256), foot: max(1, pages/85)}
}

func (g geometry) size() int64         { return int64(g.pages) * page.Size }
func (g geometry) markPage(i int) int  { return slotPage + slots + i } // 0 ≤ i < 2*marks
func (g geometry) dataPage(n int) int  { return slotPage + slots + 2*g.marks + n }
func (g geometry) dataPages() int      { return g.pages - g.dataPage(0) - g.foot }
func (g geometry) footerPage() int     { return g.pages - g.foot }
func (g geometry) footerSize() int     { return g.foot * page.Size }
func (g geometry) dataOff(n int) int64 { return int64(g.dataPage(n)) * page.Size }

// capacity returns how many record bytes the data pages from page n on take,
// if used bytes of page n are taken.
func (g geometry) capacity(n, used int) int {
	return (g.dataPages()-n)*page.BodyMax - page.DigestSize - used
}

// maxBlock returns the largest block that fits a segment.
func (g geometry) maxBlock() int { return min(MaxBlock, g.capacity(0, 0)-2*page.MaxRecordHead) }

// segment is one file of the ring.
type segment struct {
	seq   uint64
	first uint64 // index of its first block
}

const segmentSuffix = ".seg"

func (s segment) name() string { return fmt.Sprintf("%010x-%012x%s", s.seq, s.first, segmentSuffix) }

func parseSegmentName(name string) (s segment, ok bool) {
	if !strings.HasSuffix(name, segmentSuffix) {
		return s, false
	}
	if n, err := fmt.Sscanf(name, "%010x-%012x"+segmentSuffix, &s.seq, &s.first); n != 2 || err != nil {
		return s, false
	}
	return s, s.name() == name
}

// OwnerPrefix begins the names of files in a log's directory that are its
// owner's.
const OwnerPrefix = "owner."

// Other file names in a log's directory.
const (
	lockName      = "LOCK"
	spareName     = "spare"     // a ready segment file: zeros, or an old segment
	spareTemp     = "spare.tmp" // one that is being filled with zeros
	damagedSuffix = ".damaged"  // a copy of a segment whose tail was cut off
)

// readHeader reads and checks the head of the segment s.
func readHeader(f durable.File, s segment) (page.Header, error) {
	b, err := page.Read(f, 0, 1)
	if err != nil {
		return page.Header{}, err
	}
	h, err := page.ParseHeader(b)
	if err != nil {
		return h, err
	}
	if h.Segment != s.seq || h.Block != s.first {
		return h, fmt.Errorf("%w: head of segment %d at block %d", ErrCorrupt, h.Segment, h.Block)
	}
	return h, nil
}

// readFooter reads and checks the foot of segment seq.
func readFooter(f durable.File, g geometry, seq uint64) (page.Footer, error) {
	b, err := page.Read(f, g.footerPage(), g.foot)
	if err != nil {
		return page.Footer{}, err
	}
	ft, err := page.ParseFooter(b)
	if err != nil {
		return ft, err
	}
	if ft.Segment != seq {
		return ft, fmt.Errorf("%w: footer of segment %d", ErrCorrupt, ft.Segment)
	}
	return ft, nil
}

// listing is what a log's directory holds.
type listing struct {
	segments []segment // by sequence
	damaged  []string
	spare    bool
	temps    []string
	foreign  []string
}

func list(fsys durable.FS, dir string) (l listing, err error) {
	names, err := fsys.ReadDir(dir)
	if err != nil {
		return l, err
	}
	for _, name := range names { // sorted, and so are the sequences
		s, ok := parseSegmentName(name)
		switch {
		case ok:
			l.segments = append(l.segments, s)
		case name == spareName:
			l.spare = true
		case strings.HasSuffix(name, damagedSuffix):
			l.damaged = append(l.damaged, name)
		case strings.HasSuffix(name, durable.TempSuffix):
			l.temps = append(l.temps, name)
		case name != lockName && !strings.HasPrefix(name, OwnerPrefix):
			l.foreign = append(l.foreign, name)
		}
	}
	return l, nil
}

func join(dir, name string) string { return filepath.Join(dir, name) }
