package secretstream

import (
	"fmt"
	"io"
)

const (
	// smallBuffer is what an idle connection keeps for reading.
	smallBuffer = 4 << 10
	// largeBuffer is what a busy one reads at once.
	largeBuffer = 64 << 10
	// headroom is kept free before the first frame of a buffer, for its tag
	// block.
	headroom = blockSize
)

// reader takes frames off a byte stream. Several frames are read at once where
// they are there.
type reader struct {
	buf        []byte
	start, end int // buf[start:end] was read and not yet taken
	frame      int // where the frame that was taken last begins
	quiet      int // reads in a row that brought little
}

// next returns the next frame without its length; it may be at most limit bytes.
func (r *reader) next(src io.Reader, limit int) ([]byte, error) {
	if err := r.fill(src, 3); err != nil {
		return nil, err
	}
	b := r.buf[r.start:]
	n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
	if n > limit {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, limit)
	}
	if err := r.fill(src, 3+n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	r.frame = r.start + 3
	r.start += 3 + n
	return r.buf[r.frame:r.start], nil
}

// before returns the frame that was taken last, with n bytes of room before it.
func (r *reader) before(n int) []byte { return r.buf[r.frame-n : r.start] }

// fill reads until n bytes are there.
func (r *reader) fill(src io.Reader, n int) error {
	for r.end-r.start < n {
		r.makeRoom(n)
		m, err := src.Read(r.buf[r.end:])
		if m > 0 {
			r.end += m
			r.resize(m)
			continue
		}
		if err == nil {
			err = io.ErrNoProgress
		}
		if err == io.EOF && r.end > r.start {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// makeRoom moves what is there to the front of a buffer that holds n bytes.
func (r *reader) makeRoom(n int) {
	size := smallBuffer
	if r.quiet < 0 {
		size = largeBuffer
	}
	size = max(size, headroom+n)
	switch have := r.buf[r.start:r.end]; {
	case len(r.buf) < size || len(r.buf) > 2*size:
		b := make([]byte, size)
		copy(b[headroom:], have)
		r.buf = b
	case len(have) == 0 || r.start+n > len(r.buf):
		copy(r.buf[headroom:], have)
	default:
		return
	}
	r.start, r.end = headroom, headroom+r.end-r.start
}

// resize notes how much a read brought: full buffers call for a large one, 32
// small reads in a row for a small one.
func (r *reader) resize(m int) {
	switch {
	case r.end == len(r.buf):
		r.quiet = -32
	case m < smallBuffer/2 && r.quiet < 0:
		r.quiet++
	}
}
