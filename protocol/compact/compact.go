// Package compact reads and writes compact-encoding, the byte format of every
// Hypercore, Protomux and HyperDHT message.
//
// There is no schema on the wire: a message is its fields one after the other.
//
//	uint      n <= 0xfc: 1 byte · <= 0xffff: fd + 2 LE · <= 0xffffffff: fe + 4 LE · else ff + 8 LE
//	int       zig-zag (n >= 0: 2n, n < 0: -2n-1), then uint
//	uint64    8 bytes, little endian
//	fixedN    N raw bytes
//	buffer    uint length, bytes; string likewise, UTF-8
//	array(T)  uint count, then the items; uint32array: count of words, each 4 bytes LE
//	bool      one byte, 0 or 1
//	raw       the rest of the message
//
// # Writing
//
// An AppendX function appends one value and returns the longer slice. Numbers
// above [MaxUint] can be written, but no JavaScript peer reads them; callers
// keep below it.
//
// # Reading
//
// A ParseX function takes the first value off b and returns it with the rest
// of b. Nothing is copied: byte results alias b. Nothing is allocated before
// its length was compared with what is really there, so a hostile length costs
// nothing. Varints need not be minimal, as in the JavaScript original.
//
// Source: specs/hypercore.md, section 1. All functions are pure and safe for
// concurrent use.
package compact

import (
	"encoding/binary"
	"errors"
	"math"
)

// MaxUint is the largest number a peer accepts: JavaScript's 2^53-1.
const MaxUint = 1<<53 - 1

// MaxArray is the largest number of items an array may announce.
const MaxArray = 0x100000

// Errors of the ParseX functions.
var (
	// ErrShort says that the input ended inside a value.
	ErrShort = errors.New("compact: input ends inside a value")
	// ErrRange says that a number or a count is larger than allowed.
	ErrRange = errors.New("compact: number out of range")
	// ErrBool says that a bool is neither 0 nor 1.
	ErrBool = errors.New("compact: bool is neither 0 nor 1")
)

// UintSize returns how many bytes AppendUint writes for n: 1, 3, 5 or 9.
func UintSize(n uint64) int {
	switch {
	case n <= 0xfc:
		return 1
	case n <= math.MaxUint16:
		return 3
	case n <= math.MaxUint32:
		return 5
	}
	return 9
}

// AppendUint appends n as a varint.
func AppendUint(b []byte, n uint64) []byte {
	switch {
	case n <= 0xfc:
		return append(b, byte(n))
	case n <= math.MaxUint16:
		return append(b, 0xfd, byte(n), byte(n>>8))
	case n <= math.MaxUint32:
		return binary.LittleEndian.AppendUint32(append(b, 0xfe), uint32(n))
	}
	return binary.LittleEndian.AppendUint64(append(b, 0xff), n)
}

// ParseUint takes a varint off b. Numbers above [MaxUint] give [ErrRange].
func ParseUint(b []byte) (uint64, []byte, error) {
	if len(b) == 0 {
		return 0, nil, ErrShort
	}
	size := 0
	switch b[0] {
	default:
		return uint64(b[0]), b[1:], nil
	case 0xfd:
		size = 2
	case 0xfe:
		size = 4
	case 0xff:
		size = 8
	}
	if len(b) < 1+size {
		return 0, nil, ErrShort
	}
	var n uint64
	switch size {
	case 2:
		n = uint64(binary.LittleEndian.Uint16(b[1:]))
	case 4:
		n = uint64(binary.LittleEndian.Uint32(b[1:]))
	default:
		n = binary.LittleEndian.Uint64(b[1:])
	}
	if n > MaxUint {
		return 0, nil, ErrRange
	}
	return n, b[1+size:], nil
}

// ParseUints takes as many numbers off b as there are places for them.
func ParseUints(b []byte, to ...*uint64) (rest []byte, err error) {
	for _, p := range to {
		if *p, b, err = ParseUint(b); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// AppendInt appends n zig-zag coded.
func AppendInt(b []byte, n int64) []byte {
	return AppendUint(b, uint64(n)<<1^uint64(n>>63))
}

// ParseInt takes a zig-zag coded number off b.
func ParseInt(b []byte) (int64, []byte, error) {
	u, rest, err := ParseUint(b)
	if err != nil {
		return 0, nil, err
	}
	return int64(u>>1) ^ -int64(u&1), rest, nil
}

// AppendUint64 appends n as 8 bytes, little endian.
func AppendUint64(b []byte, n uint64) []byte {
	return binary.LittleEndian.AppendUint64(b, n)
}

// ParseUint64 takes 8 little-endian bytes off b. Numbers above [MaxUint] give
// [ErrRange].
func ParseUint64(b []byte) (uint64, []byte, error) {
	if len(b) < 8 {
		return 0, nil, ErrShort
	}
	n := binary.LittleEndian.Uint64(b)
	if n > MaxUint {
		return 0, nil, ErrRange
	}
	return n, b[8:], nil
}

// ParseFixed takes exactly n raw bytes off b.
func ParseFixed(b []byte, n int) ([]byte, []byte, error) {
	if n < 0 || len(b) < n {
		return nil, nil, ErrShort
	}
	return b[:n:n], b[n:], nil
}

// ParseFixed32 takes 32 raw bytes off b and copies them.
func ParseFixed32(b []byte) (v [32]byte, rest []byte, err error) {
	if len(b) < 32 {
		return v, nil, ErrShort
	}
	copy(v[:], b)
	return v, b[32:], nil
}

// ParseFixed64 takes 64 raw bytes off b and copies them.
func ParseFixed64(b []byte) (v [64]byte, rest []byte, err error) {
	if len(b) < 64 {
		return v, nil, ErrShort
	}
	copy(v[:], b)
	return v, b[64:], nil
}

// AppendBuffer appends p behind its length. A nil and an empty p are the same
// byte, which an optional field reads as absent.
func AppendBuffer(b, p []byte) []byte {
	return append(AppendUint(b, uint64(len(p))), p...)
}

// ParseBuffer takes a buffer off b; the result is never nil.
func ParseBuffer(b []byte) ([]byte, []byte, error) {
	n, rest, err := ParseUint(b)
	if err != nil {
		return nil, nil, err
	}
	if n > uint64(len(rest)) {
		return nil, nil, ErrShort
	}
	return rest[:n:n], rest[n:], nil
}

// ParseOptionalBuffer is ParseBuffer with length 0 read as nil.
func ParseOptionalBuffer(b []byte) ([]byte, []byte, error) {
	p, rest, err := ParseBuffer(b)
	if len(p) == 0 {
		p = nil
	}
	return p, rest, err
}

// AppendString appends s behind its length in bytes.
func AppendString(b []byte, s string) []byte {
	return append(AppendUint(b, uint64(len(s))), s...)
}

// ParseString takes a string off b and copies it. Like the JavaScript reader
// it does not insist on valid UTF-8.
func ParseString(b []byte) (string, []byte, error) {
	p, rest, err := ParseBuffer(b)
	return string(p), rest, err
}

// AppendBool appends one byte.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// ParseBool takes one byte off b.
func ParseBool(b []byte) (bool, []byte, error) {
	if len(b) == 0 {
		return false, nil, ErrShort
	}
	if b[0] > 1 {
		return false, nil, ErrBool
	}
	return b[0] == 1, b[1:], nil
}

// AppendArray appends the count of items, then each with item.
func AppendArray[T any](b []byte, items []T, item func([]byte, T) []byte) []byte {
	b = AppendUint(b, uint64(len(items)))
	for _, v := range items {
		b = item(b, v)
	}
	return b
}

// ParseArray takes an array off b. At most limit items are allowed (and never
// more than [MaxArray]); minSize is the least number of bytes an item takes on
// the wire, at least 1, and bounds what is allocated by what is there.
func ParseArray[T any](b []byte, limit, minSize int, item func([]byte) (T, []byte, error)) ([]T, []byte, error) {
	n, rest, err := ParseUint(b)
	if err != nil {
		return nil, nil, err
	}
	if n > uint64(min(limit, MaxArray)) {
		return nil, nil, ErrRange
	}
	if n > uint64(len(rest)/max(minSize, 1)) {
		return nil, nil, ErrShort
	}
	items := make([]T, 0, n)
	for range n {
		var v T
		if v, rest, err = item(rest); err != nil {
			return nil, nil, err
		}
		items = append(items, v)
	}
	return items, rest, nil
}

// AppendUint32Array appends the count of words, then each as 4 bytes LE.
func AppendUint32Array(b []byte, words []uint32) []byte {
	return AppendArray(b, words, binary.LittleEndian.AppendUint32)
}

// ParseUint32Array takes at most limit words off b.
func ParseUint32Array(b []byte, limit int) ([]uint32, []byte, error) {
	return ParseArray(b, limit, 4, func(b []byte) (uint32, []byte, error) {
		if len(b) < 4 {
			return 0, nil, ErrShort
		}
		return binary.LittleEndian.Uint32(b), b[4:], nil
	})
}
