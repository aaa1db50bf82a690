package page

import (
	"fmt"

	"dazaar-edge/storage/durable"
)

// Source returns data page n of a segment and its head, checked. The bytes
// are valid until the next call.
type Source func(n int) ([]byte, Info, error)

// Func receives a record; data is valid during the call. It returns false
// to end the Walk.
type Func func(block uint64, w Weight, data []byte) (bool, error)

// Error says at which data page and which block a Walk ended.
type Error struct {
	Page  int
	Block uint64
	Err   error
}

func (e *Error) Error() string { return fmt.Sprintf("data page %d: %v", e.Page, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// Walk calls f for the records that begin in data pages from to last. It
// reports whether the last record is cut off by the end of page last; that
// record is not passed on. Errors of src and of the format are pageErrors.
func Walk(src Source, from, last int, f Func) (cut bool, err error) {
	var scratch []byte
	var next uint64 // block that must come next, once known
	for n := from; n <= last; n++ {
		page, info, err := src(n)
		if err != nil {
			return false, &Error{n, next, err}
		}
		if n > from && info.Block != next {
			return false, &Error{n, next, fmt.Errorf("%w: block %d follows %d", durable.ErrCorrupt, info.Block, next)}
		}
		next = info.Block
		body := page[HeadSize : HeadSize+info.Used]
		pos := info.First
		var weight *Weight
		for range info.Count {
			length, w, size, err := ParseRecordHead(body[pos:], weight)
			if err == nil && size == 0 {
				err = fmt.Errorf("%w: fewer records than the page says", durable.ErrCorrupt)
			}
			if err != nil {
				return false, &Error{n, next, err}
			}
			pos += size
			weight = &w
			data := body[pos:min(pos+length, len(body))]
			pos += len(data)
			block := next
			next++
			if len(data) < length {
				if cap(scratch) < length {
					scratch = make([]byte, 0, length)
				}
				scratch = append(scratch[:0], data...)
				if scratch, cut, err = gather(src, n+1, last, length, scratch); cut || err != nil {
					if e, ok := err.(*Error); ok {
						e.Block = block
					}
					return cut, err
				}
				data = scratch
			}
			if ok, err := f(block, w, data); !ok || err != nil {
				return false, err
			}
		}
		if info.Count > 0 && pos != info.Used {
			return false, &Error{n, next, fmt.Errorf("%w: bytes behind the last record", durable.ErrCorrupt)}
		}
	}
	return false, nil
}

// gather appends the rest of a record of length bytes from data page n on.
func gather(src Source, n, last, length int, b []byte) (out []byte, cut bool, err error) {
	for len(b) < length {
		if n > last {
			return b, true, nil
		}
		page, info, err := src(n)
		if err != nil {
			return b, false, &Error{Page: n, Err: err}
		}
		part := info.Used
		if info.First != NoRecord {
			part = info.First
		}
		if part == 0 || part > length-len(b) || info.First != NoRecord && part < length-len(b) {
			return b, false, &Error{Page: n, Err: fmt.Errorf("%w: record does not continue", durable.ErrCorrupt)}
		}
		b = append(b, page[HeadSize:HeadSize+part]...)
		n++
	}
	return b, false, nil
}
