package replicate

import (
	"slices"

	"dazaar-edge/protocol/compact"
)

// Bounds of what a peer may have asked for and not got: 2,048 requests of usual
// length, more than any stock peer has in flight.
const (
	maxRequests     = 2048
	maxRequestBytes = 32 << 10
)

// queue is a FIFO of requests, kept as the bytes that came: each behind its
// length in one byte.
type queue struct {
	buf   []byte
	start int
	n     int
	total int // that were ever pushed
}

// push adds a request. It tells whether there was room.
func (q *queue) push(b []byte) bool {
	if len(b) > 255 || q.n >= maxRequests || len(q.buf)-q.start+len(b)+1 > maxRequestBytes {
		return false
	}
	if q.start > len(q.buf)/2 {
		q.buf = q.buf[:copy(q.buf, q.buf[q.start:])]
		q.start = 0
	}
	q.buf = append(append(q.buf, byte(len(b))), b...)
	q.n++
	q.total++
	return true
}

// front returns the oldest request, valid until the next push.
func (q *queue) front() []byte {
	if q.n == 0 {
		return nil
	}
	return q.buf[q.start+1:][:q.buf[q.start]]
}

func (q *queue) pop() {
	q.start += 1 + int(q.buf[q.start])
	if q.n--; q.n == 0 {
		q.clear()
	}
}

func (q *queue) clear() {
	if cap(q.buf) > 512 {
		q.buf = nil
	}
	*q = queue{buf: q.buf[:0], total: q.total}
}

// remove forgets the request with this id and tells whether it was there.
func (q *queue) remove(id uint64) bool {
	for at := q.start; at < len(q.buf); at += 1 + int(q.buf[at]) {
		b := q.buf[at+1:][:q.buf[at]]
		if _, rest, err := compact.ParseUint(b); err == nil {
			if have, _, err := compact.ParseUint(rest); err == nil && have == id {
				q.buf = slices.Delete(q.buf, at, at+1+len(b))
				if q.n--; q.n == 0 {
					q.clear()
				}
				return true
			}
		}
	}
	return false
}

// idSet tells which ids may wait. It is exact for small ids, which honest peers
// use, and says yes to all others.
type idSet [maxRequests / 32]uint64

func (s *idSet) set(id uint64) {
	if id < uint64(64*len(s)) {
		s[id/64] |= 1 << (id % 64)
	}
}

func (s *idSet) clear(id uint64) {
	if id < uint64(64*len(s)) {
		s[id/64] &^= 1 << (id % 64)
	}
}

func (s *idSet) has(id uint64) bool {
	return id >= uint64(64*len(s)) || s[id/64]>>(id%64)&1 != 0
}
