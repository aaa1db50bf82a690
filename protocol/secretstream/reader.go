package secretstream

import (
	"fmt"
	"io"
	"sync"
)

const (
	// smallBuffer is what a connection waits with.
	smallBuffer = 4 << 10
	// largeBuffer is what it borrows when more than that is there: enough for a
	// block of 64 KiB with its proof.
	largeBuffer = 72 << 10
	// headroom is kept free before the first frame of a buffer, for its tag
	// block.
	headroom = blockSize
)

// larges lends buffers.
var larges = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// reader takes frames off a byte stream. Several frames are read at once where
// they are there.
type reader struct {
	small      []byte             // of smallBuffer
	large      *[largeBuffer]byte // borrowed, or nil
	buf        []byte             // small, large, or one for a frame that fits neither
	start, end int                // buf[start:end] was read and not yet taken
	taken      int64              // bytes of frames, since the beginning
	frame      int                // where the frame that was taken last begins
}

// next returns the next frame without its length; it may be at most limit bytes.
func (r *reader) next(src io.Reader, limit int) ([]byte, error) {
	if r.start == r.end {
		r.wait()
	}
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
	r.taken += int64(3 + n)
	return r.buf[r.frame:r.start], nil
}

// before returns the frame that was taken last, with n bytes of room before it.
func (r *reader) before(n int) []byte { return r.buf[r.frame-n : r.start] }

// wait gives back what is not needed while nothing comes.
func (r *reader) wait() {
	if r.small == nil {
		r.small = make([]byte, smallBuffer)
	}
	r.give()
	r.buf, r.start, r.end = r.small, headroom, headroom
}

func (r *reader) give() {
	if r.large != nil {
		larges.Put(r.large)
		r.large = nil
	}
}

// fill reads until n bytes are there.
func (r *reader) fill(src io.Reader, n int) error {
	for r.end-r.start < n {
		if r.end == len(r.buf) || r.start+n > len(r.buf) {
			r.makeRoom(n)
		}
		m, err := src.Read(r.buf[r.end:])
		if m > 0 {
			r.end += m
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

// makeRoom makes room behind what is there, of which n bytes are needed: in front
// of it, or in a larger buffer, which is no more than twice what came already.
func (r *reader) makeRoom(n int) {
	have := r.buf[r.start:r.end]
	want := headroom + n
	if r.end == smallBuffer && len(r.buf) == smallBuffer {
		want = max(want, largeBuffer) // it comes in bulk
	}
	if want > largeBuffer {
		want = min(want, max(largeBuffer, headroom+2*len(have)))
	}
	to := r.buf
	switch {
	case want <= len(to):
	case want <= largeBuffer:
		if r.large == nil {
			r.large = larges.Get().(*[largeBuffer]byte)
		}
		to = r.large[:]
	default:
		to = make([]byte, want)
	}
	copy(to[headroom:], have)
	r.buf, r.start, r.end = to, headroom, headroom+len(have)
	if len(to) > largeBuffer {
		r.give()
	}
}
