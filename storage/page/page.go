// Package page is the page format of a log's segment files: what stands in each
// page of 4 KiB, how records lie in them, and how to walk over records.
//
// Every page begins with a CRC32C over the rest, 'e', a kind, a version, flags and
// the number of the segment. All numbers are little endian. Parsers check sums,
// bounds and padding, allocate nothing that the page does not hold, and wrap
// [durable.ErrCorrupt] or [durable.ErrNewer].
package page

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"dazaar-edge/storage/durable"
)

// MaxBlock is the largest block in bytes.
const MaxBlock = 1 << 20

// Limits of a segment file in pages.
const (
	MinPages = 16
	MaxPages = 1 << 14
)

// Size is the unit of writing in bytes.
const Size = 4096

// Version is written to every page; a higher one is refused.
const Version = 1

// Kinds of page, the byte behind 'e'.
const (
	KindHeader = 'H'
	KindData   = 'P'
	KindMarks  = 'M'
	KindFooter = 'F'
)

const (
	commonSize    = 16 // crc u32, 'e', kind, version, flags, segment u64
	DigestSize    = 32
	HeadSize      = 56
	BodyMax       = Size - HeadSize      // record bytes in a full page
	BodyEnd       = BodyMax - DigestSize // record bytes in a page that ends a commit
	NoRecord      = 0xffff               // no record begins in this page
	MaxRecordHead = 3 * binary.MaxVarintLen64
	marksHead     = 32
	HeaderHead    = 104
	FooterHead    = 104
)

// Flags of a data page.
const (
	FlagCommit  = 1 << iota // a commit ends here; the digest stands at the end
	FlagSegment             // the segment ends here
	FlagFirst               // no commit of this segment was durable when this one was written
)

// Kinds of footer, in its flags.
const (
	FooterClosed     = 1 // the segment is full and closed
	FooterCheckpoint = 2 // the log was closed while the segment was open
	FooterSealed     = 3 // both: the log was closed before the next segment was made
)

// closed tells whether a footer is that of a full segment.
func (f *Footer) Closed() bool { return f.Kind == FooterClosed || f.Kind == FooterSealed }

var le = binary.LittleEndian

// seal fills in the fields that all pages have, and the checksum over the rest.
func Seal(b []byte, kind, flags byte, segment uint64) {
	b[4], b[5], b[6], b[7] = 'e', kind, Version, flags
	le.PutUint64(b[8:], segment)
	le.PutUint32(b, crc32.Checksum(b[4:], Castagnoli()))
}

// Castagnoli returns the CRC32C table; the library keeps one.
func Castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// Unseal checks the fields that all pages have and returns the flags.
func Unseal(b []byte, kind byte) (flags byte, segment uint64, err error) {
	if len(b) < commonSize || b[4] != 'e' || b[5] != kind {
		return 0, 0, fmt.Errorf("%w: not a page of kind %c", durable.ErrCorrupt, kind)
	}
	if le.Uint32(b) != crc32.Checksum(b[4:], Castagnoli()) {
		return 0, 0, fmt.Errorf("%w: checksum", durable.ErrCorrupt)
	}
	if b[6] > Version {
		return 0, 0, fmt.Errorf("%w: format %d, this one knows %d: update the program", durable.ErrNewer, b[6], Version)
	}
	return b[7], le.Uint64(b[8:]), nil
}

// Info is the head of a data page.
//
//	 0 crc u32 · 'e' 'P' version flags · segment u64
//	16 page u16 · used u16 · first u16 · count u16 · commit u64
//	32 block u64 · keys 2 × u64
//	56 records … zeros … [digest, if a commit ends here]
type Info struct {
	Flags   byte
	Segment uint64
	Number  int       // among the data pages
	Used    int       // bytes of records
	First   int       // where the first record that begins here begins, or NoRecord
	Count   int       // how many begin here
	Commit  uint64    // the commit that wrote this image
	Block   uint64    // index of the first block that begins here or later
	Keys    [2]uint64 // before that block
	Digest  [DigestSize]byte
}

func (p *Info) Seal(b []byte) {
	le.PutUint16(b[16:], uint16(p.Number))
	le.PutUint16(b[18:], uint16(p.Used))
	le.PutUint16(b[20:], uint16(p.First))
	le.PutUint16(b[22:], uint16(p.Count))
	le.PutUint64(b[24:], p.Commit)
	le.PutUint64(b[32:], p.Block)
	le.PutUint64(b[40:], p.Keys[0])
	le.PutUint64(b[48:], p.Keys[1])
	clear(b[HeadSize+p.Used:])
	if p.Flags&FlagCommit != 0 {
		copy(b[Size-DigestSize:], p.Digest[:])
	}
	Seal(b, KindData, p.Flags, p.Segment)
}

// Parse checks a data page of the given segment: sums, bounds, padding.
func Parse(b []byte, segment uint64) (p Info, err error) {
	p.Flags, p.Segment, err = Unseal(b, KindData)
	if err != nil {
		return p, err
	}
	if p.Segment != segment {
		return p, fmt.Errorf("%w: page of segment %d", durable.ErrCorrupt, p.Segment)
	}
	p.Number, p.Used = int(le.Uint16(b[16:])), int(le.Uint16(b[18:]))
	p.First, p.Count = int(le.Uint16(b[20:])), int(le.Uint16(b[22:]))
	p.Commit, p.Block = le.Uint64(b[24:]), le.Uint64(b[32:])
	p.Keys = [2]uint64{le.Uint64(b[40:]), le.Uint64(b[48:])}
	end := BodyMax
	if p.Flags&FlagCommit != 0 {
		end = BodyEnd
		copy(p.Digest[:], b[Size-DigestSize:])
	}
	if p.Used > end || p.First > p.Used && p.First != NoRecord || (p.First == NoRecord) != (p.Count == 0) {
		return p, fmt.Errorf("%w: page head", durable.ErrCorrupt)
	}
	for _, c := range b[HeadSize+p.Used : HeadSize+end] {
		if c != 0 {
			return p, fmt.Errorf("%w: padding is not zero", durable.ErrCorrupt)
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

// AppendRecordHead appends the head of a record: a varint that is twice the
// length, plus 1, plus 1 more if the weight is that of the record before in the
// same page; else the weight follows. A zero byte ends the records of a page.
func AppendRecordHead(b []byte, length int, w Weight, same bool) []byte {
	v := uint64(length)<<1 + 1
	if same {
		return binary.AppendUvarint(b, v+1)
	}
	b = binary.AppendUvarint(b, v)
	b = binary.AppendUvarint(b, w.Readings)
	return binary.AppendUvarint(b, w.Span)
}

// ParseRecordHead takes a record head off b. last is the weight of the record
// before in the page, nil if there is none. A size of 0 means that no more
// records begin in b.
func ParseRecordHead(b []byte, last *Weight) (length int, w Weight, size int, err error) {
	v, n := binary.Uvarint(b)
	switch {
	case len(b) == 0 || n == 1 && v == 0:
		return 0, w, 0, nil
	case n <= 0 || v == 0 || v > MaxBlock<<1+2:
		return 0, w, 0, fmt.Errorf("%w: record head", durable.ErrCorrupt)
	}
	v--
	length, size = int(v>>1), n
	if v&1 != 0 {
		if last == nil {
			return 0, w, 0, fmt.Errorf("%w: weight of no record before", durable.ErrCorrupt)
		}
		return length, *last, size, nil
	}
	for _, field := range []*uint64{&w.Readings, &w.Span} {
		if *field, n = binary.Uvarint(b[size:]); n <= 0 {
			return 0, w, 0, fmt.Errorf("%w: record weight", durable.ErrCorrupt)
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
type Header struct {
	Segment uint64
	Pages   int // in the file
	Block   uint64
	Keys    [2]uint64
	Digest  [DigestSize]byte
	Id      [16]byte
	Created uint64
	State   []byte
}

func (h *Header) Encode() ([]byte, error) {
	if len(h.State) > Size-HeaderHead {
		return nil, fmt.Errorf("storage: state of %d bytes does not fit a segment's head", len(h.State))
	}
	b := make([]byte, Size)
	le.PutUint32(b[16:], uint32(h.Pages))
	le.PutUint32(b[20:], uint32(len(h.State)))
	le.PutUint64(b[24:], h.Block)
	le.PutUint64(b[32:], h.Keys[0])
	le.PutUint64(b[40:], h.Keys[1])
	copy(b[48:], h.Digest[:])
	copy(b[80:], h.Id[:])
	le.PutUint64(b[96:], h.Created)
	copy(b[HeaderHead:], h.State)
	Seal(b, KindHeader, 0, h.Segment)
	return b, nil
}

func ParseHeader(b []byte) (h Header, err error) {
	_, h.Segment, err = Unseal(b, KindHeader)
	if err != nil {
		return h, err
	}
	h.Pages, h.Block = int(min(le.Uint32(b[16:]), MaxPages+1)), le.Uint64(b[24:])
	n := int(min(le.Uint32(b[20:]), Size))
	h.Keys = [2]uint64{le.Uint64(b[32:]), le.Uint64(b[40:])}
	copy(h.Digest[:], b[48:])
	copy(h.Id[:], b[80:])
	h.Created = le.Uint64(b[96:])
	if n > Size-HeaderHead || h.Pages < MinPages || h.Pages > MaxPages {
		return h, fmt.Errorf("%w: segment head", durable.ErrCorrupt)
	}
	h.State = b[HeaderHead : HeaderHead+n]
	return h, nil
}

// footer stands in the last pages of a segment.
//
//	 0 crc u32 over all footer pages · 'e' 'F' version kind · segment u64
//	16 commit u64 · end u64 · keys 2 × u64 · 48 digest
//	80 written u64 (ms) · len(dir), len(state), len(summary), data pages, all u32
//	104 dir · state · summary
type Footer struct {
	Kind    byte
	Segment uint64
	Commit  uint64
	End     uint64 // index behind the last block
	Keys    [2]uint64
	Digest  [DigestSize]byte
	Written uint64
	Pages   int // data pages in use
	Dir     []byte
	State   []byte
	Summary []byte
}

func (f *Footer) Encode(size int) ([]byte, error) {
	if FooterHead+len(f.Dir)+len(f.State)+len(f.Summary) > size {
		return nil, fmt.Errorf("storage: summary of %d bytes does not fit a segment's foot", len(f.Summary))
	}
	b := make([]byte, FooterHead, size)
	le.PutUint64(b[16:], f.Commit)
	le.PutUint64(b[24:], f.End)
	le.PutUint64(b[32:], f.Keys[0])
	le.PutUint64(b[40:], f.Keys[1])
	copy(b[48:], f.Digest[:])
	le.PutUint64(b[80:], f.Written)
	for i, n := range []int{len(f.Dir), len(f.State), len(f.Summary), f.Pages} {
		le.PutUint32(b[88+4*i:], uint32(n))
	}
	b = append(append(append(b, f.Dir...), f.State...), f.Summary...)
	b = append(b, make([]byte, size-len(b))...)
	Seal(b, KindFooter, f.Kind, f.Segment)
	return b, nil
}

func ParseFooter(b []byte) (f Footer, err error) {
	if len(b) < FooterHead {
		return f, fmt.Errorf("%w: footer", durable.ErrCorrupt)
	}
	f.Kind, f.Segment, err = Unseal(b, KindFooter)
	if err != nil {
		return f, err
	}
	f.Commit, f.End = le.Uint64(b[16:]), le.Uint64(b[24:])
	f.Keys = [2]uint64{le.Uint64(b[32:]), le.Uint64(b[40:])}
	copy(f.Digest[:], b[48:])
	f.Written = le.Uint64(b[80:])
	rest := b[FooterHead:]
	for i, field := range []*[]byte{&f.Dir, &f.State, &f.Summary} {
		n := uint64(le.Uint32(b[88+4*i:]))
		if n > uint64(len(rest)) {
			return f, fmt.Errorf("%w: footer", durable.ErrCorrupt)
		}
		*field, rest = rest[:n:n], rest[n:]
	}
	f.Pages = int(min(le.Uint32(b[100:]), MaxPages))
	return f, nil
}

// AppendDir appends the first block of each page, as differences from base.
func AppendDir(b []byte, base uint64, dir []uint64) []byte {
	for _, block := range dir {
		b = binary.AppendUvarint(b, block-base)
		base = block
	}
	return b
}

// ParseDir is the inverse of AppendDir for n pages.
func ParseDir(b []byte, base uint64, n int) ([]uint64, error) {
	if n > len(b) {
		return nil, fmt.Errorf("%w: page directory", durable.ErrCorrupt)
	}
	dir := make([]uint64, 0, n)
	for range n {
		d, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, fmt.Errorf("%w: page directory", durable.ErrCorrupt)
		}
		base, b = base+d, b[size:]
		dir = append(dir, base)
	}
	return dir, nil
}
