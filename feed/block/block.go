// Package block encodes what stands in the blocks of a log: packs of readings
// and entries, in the three encodings of an offer.
//
//	senml+json   an array is a pack (RFC 8428), an object is an entry
//	senml+cbor   the same by CBOR's major types 4 and 5
//	raw          a kind byte (0 reading, 1 entry); a reading has a head of
//	             boot u32 · monotonic µs u64 · wall ms u64 (0 = unknown), little
//	             endian, then opaque bytes; an entry is the JSON object
//
// A pack's first record has, besides SenML's base fields, our labels boot
// (number), mono (s) and err (s, how far off the wall time may be); records may
// have q, the quality flags joined by commas.
//
// # Time
//
// Boards have no clock battery. Order is (boot, monotonic time). The wall time
// of a pack is that of its first reading and is absent while unknown; [Resolver]
// finds it later from the clock entries of the same boot. Nothing is rewritten.
//
// Source: specs/exchange.md, "Blocks". Functions are pure and safe for
// concurrent use.
package block

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Errors of this package.
var (
	// ErrBlock says that bytes are not a block of this encoding.
	ErrBlock = errors.New("block: malformed")
	// ErrEncoding says that something cannot be expressed in this encoding.
	ErrEncoding = errors.New("block: not possible in this encoding")
)

// Encoding is how the blocks of an offer are written.
type Encoding int

// The encodings.
const (
	SenMLJSON Encoding = iota
	SenMLCBOR
	Raw
)

var encodingNames = [...]string{"senml+json", "senml+cbor", "raw"}

func (e Encoding) String() string { return encodingNames[e] }

// ParseEncoding returns the encoding with this name.
func ParseEncoding(name string) (Encoding, error) {
	for i, n := range encodingNames {
		if n == name {
			return Encoding(i), nil
		}
	}
	return 0, fmt.Errorf("unknown encoding %q: one of %s", name, strings.Join(encodingNames[:], ", "))
}

// Guess returns the encoding that a block seems to be of, from its first byte.
func Guess(data []byte) (e Encoding, ok bool) {
	if len(data) == 0 {
		return 0, false
	}
	switch c := data[0]; {
	case c == '[' || c == '{':
		return SenMLJSON, true
	case c>>5 == cborArray || c>>5 == cborMap:
		return SenMLCBOR, true
	default:
		return Raw, c == rawReading || c == rawEntry
	}
}

// Stamp is when something happened, as far as the board knew.
type Stamp struct {
	Boot uint32        // counts the board's starts
	Mono time.Duration // monotonic time since the start, µs precision
	Wall time.Time     // zero while unknown
	Err  time.Duration // how far off Wall may be; 0 is unknown
}

// Before tells whether s comes before t in the order of the log.
func (s Stamp) Before(t Stamp) bool {
	return s.Boot < t.Boot || s.Boot == t.Boot && s.Mono < t.Mono
}

// Block is an encoded block with what the log needs to know of it.
type Block struct {
	Data     []byte
	Stamp    Stamp
	Entry    Kind   // of an entry; "" for a pack
	Readings uint64 // in a pack
}

// Value is what a reading measured: exactly one of the four kinds.
type Value struct {
	Kind  ValueKind
	Float float64
	Text  string
	Bool  bool
	Data  []byte
}

// ValueKind is the type of a [Value].
type ValueKind int

// The kinds of value: SenML's v, vs, vb and vd.
const (
	Float ValueKind = iota
	Text
	Bool
	Data
)

// Number returns a numeric value.
func Number(f float64) Value { return Value{Kind: Float, Float: f} }

// Reading is one measured value.
type Reading struct {
	Name    string
	Unit    string        // SenML unit, may be empty
	Offset  time.Duration // after the pack's stamp, µs precision
	Value   Value
	Quality []string // flags, nil when good
}

// Pack is the readings of one block. Stamp is the time of the first reading.
type Pack struct {
	Stamp    Stamp
	BaseName string // put before each reading's name
	Readings []Reading
}

// Kind names an entry.
type Kind string

// The kinds of entry.
const (
	Boot      Kind = "boot"
	Clock     Kind = "clock"
	GapEntry  Kind = "gap"
	Recovered Kind = "recovered"
)

// Entry is a block that is not readings.
type Entry struct {
	Kind  Kind
	Stamp Stamp // Wall and Err are not written
	// Clock: wall minus monotonic time, for this boot.
	Offset    time.Duration
	OffsetErr time.Duration
	// GapEntry: monotonic times of the boot, nil when unknown; why; which
	// sensor, "" for all. Lost is the range of blocks that is gone, if that
	// is what happened.
	From, To *time.Duration
	Cause    string
	Sensor   string
	Lost     *Range
	// Recovered: block Index of an earlier Fork, in parts.
	Index, Fork uint64
	Part, Parts int
	Data        []byte
}

// Range is the blocks [First, First+Count).
type Range struct{ First, Count uint64 }

// MaxRecovered is the largest piece of a lost block in one entry, in bytes.
const MaxRecovered = 512 << 10

// Pack encodes a pack.
func (e Encoding) Pack(p *Pack) (Block, error) {
	b := Block{Stamp: e.round(p.Stamp), Readings: uint64(len(p.Readings))}
	err := e.checkPack(p)
	if err != nil {
		return b, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	switch e {
	case SenMLJSON:
		b.Data, err = appendJSONPack(nil, p)
	case SenMLCBOR:
		b.Data = appendCBORPack(nil, p)
	default:
		b.Data, err = appendRaw(nil, p)
	}
	return b, err
}

// Entry encodes an entry.
func (e Encoding) Entry(n *Entry) (Block, error) {
	b := Block{Stamp: Stamp{Boot: n.Stamp.Boot, Mono: n.Stamp.Mono.Truncate(time.Microsecond)}, Entry: n.Kind}
	err := checkEntry(n)
	if err != nil {
		return b, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	switch e {
	case SenMLJSON:
		b.Data, err = appendJSONEntry(nil, n)
	case SenMLCBOR:
		b.Data = appendCBOREntry(nil, n)
	default:
		b.Data, err = appendJSONEntry([]byte{rawEntry}, n)
	}
	return b, err
}

// Parse decodes a block; exactly one of the results is not nil. Errors wrap
// [ErrBlock].
func (e Encoding) Parse(data []byte) (p *Pack, n *Entry, err error) {
	switch e {
	case SenMLJSON:
		p, n, err = parseJSON(data)
	case SenMLCBOR:
		p, n, err = parseCBOR(data)
	default:
		p, n, err = parseRaw(data)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrBlock, e, err)
	}
	return p, n, nil
}

// Inspect returns what a log needs to know of an encoded block.
func (e Encoding) Inspect(data []byte) (Block, error) {
	p, n, err := e.Parse(data)
	switch {
	case err != nil:
		return Block{}, err
	case p != nil:
		return Block{Data: data, Stamp: p.Stamp, Readings: uint64(len(p.Readings))}, nil
	}
	return Block{Data: data, Stamp: n.Stamp, Entry: n.Kind}, nil
}

// seconds returns d in seconds.
func seconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e6 }

// maxSeconds bounds times, to the year 2106: µs are exact in a float64, and the
// sum of two fits a time.Duration.
const maxSeconds = 1 << 32

// duration returns s seconds, rounded to µs.
func duration(s float64) (time.Duration, error) {
	if !(s > -maxSeconds && s < maxSeconds) {
		return 0, fmt.Errorf("time of %v s", s)
	}
	us := s * 1e6
	if us < 0 {
		return time.Duration(us-0.5) * time.Microsecond, nil
	}
	return time.Duration(us+0.5) * time.Microsecond, nil
}

// unixSeconds returns t in seconds since 1970.
func unixSeconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

func fromUnix(s float64) (time.Time, error) {
	if !(s > 0 && s < maxSeconds) {
		return time.Time{}, fmt.Errorf("wall time of %v s", s)
	}
	return time.UnixMicro(int64(s*1e6 + 0.5)).UTC(), nil
}
