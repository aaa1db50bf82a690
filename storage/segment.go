package storage

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"

	"dazaar-edge/storage/durable"
)

// MaxBlock is the largest block in bytes.
const MaxBlock = 1 << 20

const (
	minPages = 16
	maxPages = 1 << 14
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

func (g geometry) size() int64         { return int64(g.pages) * PageSize }
func (g geometry) markPage(i int) int  { return slotPage + slots + i } // 0 ≤ i < 2*marks
func (g geometry) dataPage(n int) int  { return slotPage + slots + 2*g.marks + n }
func (g geometry) dataPages() int      { return g.pages - g.dataPage(0) - g.foot }
func (g geometry) footerPage() int     { return g.pages - g.foot }
func (g geometry) footerSize() int     { return g.foot * PageSize }
func (g geometry) dataOff(n int) int64 { return int64(g.dataPage(n)) * PageSize }

// capacity returns how many record bytes the data pages from page n on take,
// if used bytes of page n are taken.
func (g geometry) capacity(n, used int) int {
	return (g.dataPages()-n)*bodyMax - digestSize - used
}

// maxBlock returns the largest block that fits a segment.
func (g geometry) maxBlock() int { return min(MaxBlock, g.capacity(0, 0)-2*maxHead) }

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

// readTries is how often a read that fails is tried.
const readTries = 3

// readPages reads n whole pages at page number page.
func readPages(f io.ReaderAt, page, n int) ([]byte, error) {
	b := make([]byte, n*PageSize)
	return b, readInto(f, page, b)
}

// readInto fills b from page number page on. A file that ends early is
// ErrCorrupt; what the device cannot read is both ErrCorrupt, for those who go
// on without it, and ErrUnreadable, for those who must not.
func readInto(f io.ReaderAt, page int, b []byte) (err error) {
	for range readTries {
		var n int
		n, err = f.ReadAt(b, int64(page)*PageSize)
		if n == len(b) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: file ends early", ErrCorrupt)
		}
		if !errors.Is(err, syscall.EIO) {
			return err
		}
	}
	return fmt.Errorf("%w: %w: %w", ErrCorrupt, ErrUnreadable, err)
}

// readEach is readPages page by page: those that cannot be read are zeros. It
// returns how many those are.
func readEach(f io.ReaderAt, page, n int) (b []byte, bad int, err error) {
	b, err = readPages(f, page, n)
	if err == nil || !errors.Is(err, ErrCorrupt) {
		return b, 0, err
	}
	for i := range n {
		at := b[i*PageSize:][:PageSize]
		if err := readInto(f, page+i, at); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return b, bad, err
			}
			clear(at)
			bad++
		}
	}
	return b, bad, nil
}

func writeFull(f durable.File, b []byte, off int64) error {
	n, err := f.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// readHeader reads and checks the head of the segment s.
func readHeader(f durable.File, s segment) (header, error) {
	b, err := readPages(f, 0, 1)
	if err != nil {
		return header{}, err
	}
	h, err := parseHeader(b)
	if err != nil {
		return h, err
	}
	if h.segment != s.seq || h.block != s.first {
		return h, fmt.Errorf("%w: head of segment %d at block %d", ErrCorrupt, h.segment, h.block)
	}
	return h, nil
}

// readFooter reads and checks the foot of segment seq.
func readFooter(f durable.File, g geometry, seq uint64) (footer, error) {
	b, err := readPages(f, g.footerPage(), g.foot)
	if err != nil {
		return footer{}, err
	}
	ft, err := parseFooter(b)
	if err != nil {
		return ft, err
	}
	if ft.segment != seq {
		return ft, fmt.Errorf("%w: footer of segment %d", ErrCorrupt, ft.segment)
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
