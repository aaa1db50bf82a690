package storage

import "fmt"

// pageSource returns data page n of a segment and its head, checked. The bytes
// are valid until the next call.
type pageSource func(n int) ([]byte, pageInfo, error)

// walkFunc receives a record; data is valid during the call. It returns false
// to end the walk.
type walkFunc func(block uint64, w Weight, data []byte) (bool, error)

// pageError says at which data page and which block a walk ended.
type pageError struct {
	page  int
	block uint64
	err   error
}

func (e *pageError) Error() string { return fmt.Sprintf("data page %d: %v", e.page, e.err) }
func (e *pageError) Unwrap() error { return e.err }

// walk calls f for the records that begin in data pages from to last. It
// reports whether the last record is cut off by the end of page last; that
// record is not passed on. Errors of src and of the format are pageErrors.
func walk(src pageSource, from, last int, f walkFunc) (cut bool, err error) {
	var scratch []byte
	var next uint64 // block that must come next, once known
	for n := from; n <= last; n++ {
		page, info, err := src(n)
		if err != nil {
			return false, &pageError{n, next, err}
		}
		if n > from && info.block != next {
			return false, &pageError{n, next, fmt.Errorf("%w: block %d follows %d", ErrCorrupt, info.block, next)}
		}
		next = info.block
		body := page[pageHead : pageHead+info.used]
		pos := info.first
		var weight *Weight
		for range info.count {
			length, w, size, err := parseRecordHead(body[pos:], weight)
			if err == nil && size == 0 {
				err = fmt.Errorf("%w: fewer records than the page says", ErrCorrupt)
			}
			if err != nil {
				return false, &pageError{n, next, err}
			}
			pos += size
			weight = &w
			data := body[pos:min(pos+length, len(body))]
			pos += len(data)
			block := next
			next++
			if len(data) < length {
				scratch = append(scratch[:0], data...)
				if scratch, cut, err = gather(src, n+1, last, length, scratch); cut || err != nil {
					if e, ok := err.(*pageError); ok {
						e.block = block
					}
					return cut, err
				}
				data = scratch
			}
			if ok, err := f(block, w, data); !ok || err != nil {
				return false, err
			}
		}
		if info.count > 0 && pos != info.used {
			return false, &pageError{n, next, fmt.Errorf("%w: bytes behind the last record", ErrCorrupt)}
		}
	}
	return false, nil
}

// gather appends the rest of a record of length bytes from data page n on.
func gather(src pageSource, n, last, length int, b []byte) (out []byte, cut bool, err error) {
	for len(b) < length {
		if n > last {
			return b, true, nil
		}
		page, info, err := src(n)
		if err != nil {
			return b, false, &pageError{page: n, err: err}
		}
		part := info.used
		if info.first != noRecord {
			part = info.first
		}
		if part == 0 || part > length-len(b) || info.first != noRecord && part < length-len(b) {
			return b, false, &pageError{page: n, err: fmt.Errorf("%w: record does not continue", ErrCorrupt)}
		}
		b = append(b, page[pageHead:pageHead+part]...)
		n++
	}
	return b, false, nil
}
