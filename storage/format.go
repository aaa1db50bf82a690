package storage

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// PageSize is the unit of writing in bytes.
const PageSize = 4096

// formatVersion is written to every page; a higher one is refused.
const formatVersion = 1

// Kinds of page, the byte behind 'e'.
const (
	kindHeader = 'H'
	kindData   = 'P'
	kindMarks  = 'M'
	kindFooter = 'F'
)

const (
	commonSize = 16 // crc u32, 'e', kind, version, flags, segment u64
	digestSize = 32
	pageHead   = 56
	bodyMax    = PageSize - pageHead  // record bytes in a full page
	bodyEnd    = bodyMax - digestSize // record bytes in a page that ends a commit
	noRecord   = 0xffff               // no record begins in this page
	maxHead    = 3 * binary.MaxVarintLen64
	marksHead  = 32
	headerHead = 104
	footerHead = 104
)

// Flags of a data page.
const (
	flagCommit  = 1 << iota // a commit ends here; the digest stands at the end
	flagSegment             // the segment ends here
	flagFirst               // no commit of this segment was durable when this one was written
)

// Kinds of footer, in its flags.
const (
	footerClosed     = 1 // the segment is full and closed
	footerCheckpoint = 2 // the log was closed while the segment was open
	footerSealed     = 3 // both: the log was closed before the next segment was made
)

// closed tells whether a footer is that of a full segment.
func (f *footer) closed() bool { return f.kind == footerClosed || f.kind == footerSealed }

var le = binary.LittleEndian

// seal fills in the fields that all pages have, and the checksum over the rest.
func seal(b []byte, kind, flags byte, segment uint64) {
	b[4], b[5], b[6], b[7] = 'e', kind, formatVersion, flags
	le.PutUint64(b[8:], segment)
	le.PutUint32(b, crc32.Checksum(b[4:], castagnoli()))
}

// castagnoli returns the CRC32C table; the library keeps one.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// unseal checks the fields that all pages have and returns the flags.
func unseal(b []byte, kind byte) (flags byte, segment uint64, err error) {
	if len(b) < commonSize || b[4] != 'e' || b[5] != kind {
		return 0, 0, fmt.Errorf("%w: not a page of kind %c", ErrCorrupt, kind)
	}
	if le.Uint32(b) != crc32.Checksum(b[4:], castagnoli()) {
		return 0, 0, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	if b[6] > formatVersion {
		return 0, 0, fmt.Errorf("%w: format %d, this one knows %d: update the program", ErrNewer, b[6], formatVersion)
	}
	return b[7], le.Uint64(b[8:]), nil
}

// pageInfo is the head of a data page.
//
//	 0 crc u32 · 'e' 'P' version flags · segment u64
//	16 page u16 · used u16 · first u16 · count u16 · commit u64
//	32 block u64 · keys 2 × u64
//	56 records … zeros … [digest, if a commit ends here]
type pageInfo struct {
	flags   byte
	segment uint64
	number  int       // among the data pages
	used    int       // bytes of records
	first   int       // where the first record that begins here begins, or noRecord
	count   int       // how many begin here
	commit  uint64    // the commit that wrote this image
	block   uint64    // index of the first block that begins here or later
	keys    [2]uint64 // before that block
	digest  [digestSize]byte
}

func (p *pageInfo) seal(b []byte) {
	le.PutUint16(b[16:], uint16(p.number))
	le.PutUint16(b[18:], uint16(p.used))
	le.PutUint16(b[20:], uint16(p.first))
	le.PutUint16(b[22:], uint16(p.count))
	le.PutUint64(b[24:], p.commit)
	le.PutUint64(b[32:], p.block)
	le.PutUint64(b[40:], p.keys[0])
	le.PutUint64(b[48:], p.keys[1])
	clear(b[pageHead+p.used:])
	if p.flags&flagCommit != 0 {
		copy(b[PageSize-digestSize:], p.digest[:])
	}
	seal(b, kindData, p.flags, p.segment)
}

// parsePage checks a data page of the given segment: sums, bounds, padding.
func parsePage(b []byte, segment uint64) (p pageInfo, err error) {
	p.flags, p.segment, err = unseal(b, kindData)
	if err != nil {
		return p, err
	}
	if p.segment != segment {
		return p, fmt.Errorf("%w: page of segment %d", ErrCorrupt, p.segment)
	}
	p.number, p.used = int(le.Uint16(b[16:])), int(le.Uint16(b[18:]))
	p.first, p.count = int(le.Uint16(b[20:])), int(le.Uint16(b[22:]))
	p.commit, p.block = le.Uint64(b[24:]), le.Uint64(b[32:])
	p.keys = [2]uint64{le.Uint64(b[40:]), le.Uint64(b[48:])}
	end := bodyMax
	if p.flags&flagCommit != 0 {
		end = bodyEnd
		copy(p.digest[:], b[PageSize-digestSize:])
	}
	if p.used > end || p.first > p.used && p.first != noRecord || (p.first == noRecord) != (p.count == 0) {
		return p, fmt.Errorf("%w: page head", ErrCorrupt)
	}
	for _, c := range b[pageHead+p.used : pageHead+end] {
		if c != 0 {
			return p, fmt.Errorf("%w: padding is not zero", ErrCorrupt)
		}
	}
	return p, nil
}

// Weight is what a block costs a buyer besides its bytes. It is fixed when the
// block is appended.
type Weight struct {
	Readings uint64
	Span     uint64 // ms of sensed time since the previous pack of the same boot
}

// appendRecordHead appends the head of a record: a varint that is twice the
// length, plus 1, plus 1 more if the weight is that of the record before in the
// same page; else the weight follows. A zero byte ends the records of a page.
func appendRecordHead(b []byte, length int, w Weight, same bool) []byte {
	v := uint64(length)<<1 + 1
	if same {
		return binary.AppendUvarint(b, v+1)
	}
	b = binary.AppendUvarint(b, v)
	b = binary.AppendUvarint(b, w.Readings)
	return binary.AppendUvarint(b, w.Span)
}

// parseRecordHead takes a record head off b. last is the weight of the record
// before in the page, nil if there is none. A size of 0 means that no more
// records begin in b.
func parseRecordHead(b []byte, last *Weight) (length int, w Weight, size int, err error) {
	v, n := binary.Uvarint(b)
	switch {
	case len(b) == 0 || n == 1 && v == 0:
		return 0, w, 0, nil
	case n <= 0 || v == 0 || v > MaxBlock<<1+2:
		return 0, w, 0, fmt.Errorf("%w: record head", ErrCorrupt)
	}
	v--
	length, size = int(v>>1), n
	if v&1 != 0 {
		if last == nil {
			return 0, w, 0, fmt.Errorf("%w: weight of no record before", ErrCorrupt)
		}
		return length, *last, size, nil
	}
	for _, field := range []*uint64{&w.Readings, &w.Span} {
		if *field, n = binary.Uvarint(b[size:]); n <= 0 {
			return 0, w, 0, fmt.Errorf("%w: record weight", ErrCorrupt)
		}
		size += n
	}
	return length, w, size, nil
}

// header is the first page of a segment.
//
//	 0 crc u32 · 'e' 'H' version 0 · segment u64
//	16 pages u32 · len(state) u32 · block u64 · keys 2 × u64
//	48 digest · 80 log id (16) · created u64 (ms, 0 = unknown) · 104 state
type header struct {
	segment uint64
	pages   int // in the file
	block   uint64
	keys    [2]uint64
	digest  [digestSize]byte
	id      [16]byte
	created uint64
	state   []byte
}

func (h *header) encode() ([]byte, error) {
	if len(h.state) > PageSize-headerHead {
		return nil, fmt.Errorf("storage: state of %d bytes does not fit a segment's head", len(h.state))
	}
	b := make([]byte, PageSize)
	le.PutUint32(b[16:], uint32(h.pages))
	le.PutUint32(b[20:], uint32(len(h.state)))
	le.PutUint64(b[24:], h.block)
	le.PutUint64(b[32:], h.keys[0])
	le.PutUint64(b[40:], h.keys[1])
	copy(b[48:], h.digest[:])
	copy(b[80:], h.id[:])
	le.PutUint64(b[96:], h.created)
	copy(b[headerHead:], h.state)
	seal(b, kindHeader, 0, h.segment)
	return b, nil
}

func parseHeader(b []byte) (h header, err error) {
	_, h.segment, err = unseal(b, kindHeader)
	if err != nil {
		return h, err
	}
	h.pages, h.block = int(min(le.Uint32(b[16:]), maxPages+1)), le.Uint64(b[24:])
	n := int(min(le.Uint32(b[20:]), PageSize))
	h.keys = [2]uint64{le.Uint64(b[32:]), le.Uint64(b[40:])}
	copy(h.digest[:], b[48:])
	copy(h.id[:], b[80:])
	h.created = le.Uint64(b[96:])
	if n > PageSize-headerHead || h.pages < minPages || h.pages > maxPages {
		return h, fmt.Errorf("%w: segment head", ErrCorrupt)
	}
	h.state = b[headerHead : headerHead+n]
	return h, nil
}

// footer stands in the last pages of a segment.
//
//	 0 crc u32 over all footer pages · 'e' 'F' version kind · segment u64
//	16 commit u64 · end u64 · keys 2 × u64 · 48 digest
//	80 written u64 (ms) · len(dir), len(state), len(summary), data pages, all u32
//	104 dir · state · summary
type footer struct {
	kind    byte
	segment uint64
	commit  uint64
	end     uint64 // index behind the last block
	keys    [2]uint64
	digest  [digestSize]byte
	written uint64
	pages   int // data pages in use
	dir     []byte
	state   []byte
	summary []byte
}

func (f *footer) encode(size int) ([]byte, error) {
	if footerHead+len(f.dir)+len(f.state)+len(f.summary) > size {
		return nil, fmt.Errorf("storage: summary of %d bytes does not fit a segment's foot", len(f.summary))
	}
	b := make([]byte, footerHead, size)
	le.PutUint64(b[16:], f.commit)
	le.PutUint64(b[24:], f.end)
	le.PutUint64(b[32:], f.keys[0])
	le.PutUint64(b[40:], f.keys[1])
	copy(b[48:], f.digest[:])
	le.PutUint64(b[80:], f.written)
	for i, n := range []int{len(f.dir), len(f.state), len(f.summary), f.pages} {
		le.PutUint32(b[88+4*i:], uint32(n))
	}
	b = append(append(append(b, f.dir...), f.state...), f.summary...)
	b = append(b, make([]byte, size-len(b))...)
	seal(b, kindFooter, f.kind, f.segment)
	return b, nil
}

func parseFooter(b []byte) (f footer, err error) {
	if len(b) < footerHead {
		return f, fmt.Errorf("%w: footer", ErrCorrupt)
	}
	f.kind, f.segment, err = unseal(b, kindFooter)
	if err != nil {
		return f, err
	}
	f.commit, f.end = le.Uint64(b[16:]), le.Uint64(b[24:])
	f.keys = [2]uint64{le.Uint64(b[32:]), le.Uint64(b[40:])}
	copy(f.digest[:], b[48:])
	f.written = le.Uint64(b[80:])
	rest := b[footerHead:]
	for i, field := range []*[]byte{&f.dir, &f.state, &f.summary} {
		n := uint64(le.Uint32(b[88+4*i:]))
		if n > uint64(len(rest)) {
			return f, fmt.Errorf("%w: footer", ErrCorrupt)
		}
		*field, rest = rest[:n:n], rest[n:]
	}
	f.pages = int(min(le.Uint32(b[100:]), maxPages))
	return f, nil
}

// appendDir appends the first block of each page, as differences from base.
func appendDir(b []byte, base uint64, dir []uint64) []byte {
	for _, block := range dir {
		b = binary.AppendUvarint(b, block-base)
		base = block
	}
	return b
}

// parseDir is the inverse of appendDir for n pages.
func parseDir(b []byte, base uint64, n int) ([]uint64, error) {
	if n > len(b) {
		return nil, fmt.Errorf("%w: page directory", ErrCorrupt)
	}
	dir := make([]uint64, 0, n)
	for range n {
		d, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, fmt.Errorf("%w: page directory", ErrCorrupt)
		}
		base, b = base+d, b[size:]
		dir = append(dir, base)
	}
	return dir, nil
}
