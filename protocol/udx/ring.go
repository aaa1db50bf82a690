package udx

import (
	"math/bits"
	"sync"
)

// spare has buffers by the logarithm of their size: a busy stream takes and returns them
// all the time.
var spare [32]sync.Pool

func lend(size int) []byte {
	n := bits.Len(uint(size - 1))
	if p, ok := spare[n].Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 1<<n)
}

func giveBack(b []byte) {
	if len(b) > 0 {
		spare[bits.Len(uint(len(b)-1))].Put(&b)
	}
}

// ring is a queue of bytes that has memory only while it has bytes.
type ring struct {
	buf  []byte // its size is a power of two
	head int    // where the first byte is
	n    int
}

// push appends p.
func (r *ring) push(p []byte) {
	if need := r.n + len(p); need > len(r.buf) {
		buf := lend(max(1024, need))
		r.peek(buf[:r.n], 0)
		giveBack(r.buf)
		r.buf, r.head = buf, 0
	}
	at := (r.head + r.n) & (len(r.buf) - 1)
	k := copy(r.buf[at:], p)
	copy(r.buf, p[k:])
	r.n += len(p)
}

// peek copies the bytes behind the first off ones to p, which there must be.
func (r *ring) peek(p []byte, off int) {
	if len(p) == 0 {
		return
	}
	at := (r.head + off) & (len(r.buf) - 1)
	k := copy(p, r.buf[at:])
	copy(p[k:], r.buf)
}

// drop takes the first n bytes away.
func (r *ring) drop(n int) {
	r.n -= n
	if r.n == 0 {
		giveBack(r.buf)
		r.buf, r.head = nil, 0
		return
	}
	r.head = (r.head + n) & (len(r.buf) - 1)
}

// pop moves bytes to p and returns how many.
func (r *ring) pop(p []byte) int {
	n := min(len(p), r.n)
	r.peek(p[:n], 0)
	r.drop(n)
	return n
}
