// Package bucket has token buckets: one, and those by key, in bounded memory.
//
// Nothing in it is safe for concurrent use.
package bucket

import (
	"net"
	"net/netip"
	"time"
)

// Bucket is a token bucket.
type Bucket struct {
	rate, burst float64
	tokens      float64
	at          time.Time
}

// New returns a full bucket: rate tokens come a second, and burst find room.
func New(rate, burst float64, now time.Time) *Bucket { return &Bucket{rate, burst, burst, now} }

// fill adds the tokens that came since, and tells whether there is one.
func (b *Bucket) fill(now time.Time) bool {
	b.tokens = min(b.burst, b.tokens+b.rate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	return b.tokens >= 1
}

// Take takes a token from each bucket if all have one.
func Take(now time.Time, all ...*Bucket) bool {
	ok := true
	for _, b := range all {
		ok = b.fill(now) && ok
	}
	if ok {
		for _, b := range all {
			b.tokens--
		}
	}
	return ok
}

// TakeN takes n tokens, if there is one: the bucket may owe some then.
func (b *Bucket) TakeN(now time.Time, n float64) bool {
	if !b.fill(now) {
		return false
	}
	b.tokens -= n
	return true
}

// Ready tells whether there is a token.
func (b *Bucket) Ready(now time.Time) bool { return b.fill(now) }

// Unused tells whether at least half of the tokens are there that find room.
func (b *Bucket) Unused(now time.Time) bool {
	b.fill(now)
	return b.tokens >= b.burst/2
}

// maxKeys bounds how many keys are remembered.
const maxKeys = 1024

// Keyed are buckets by key: of networks, or of buyers: of the 1024 that were seen last,
// or that are not full. They are for use beside a common bucket, which bounds what a new
// key may cost.
type Keyed[K comparable] struct {
	rate, burst float64
	all         map[K]*Bucket
	swept       time.Time
}

// NewKeyed returns buckets that are full at first.
func NewKeyed[K comparable](rate, burst float64) *Keyed[K] {
	return &Keyed[K]{rate: rate, burst: burst, all: map[K]*Bucket{}}
}

// Get returns the bucket of a key.
func (s *Keyed[K]) Get(key K, now time.Time) *Bucket {
	b := s.all[key]
	if b == nil {
		if len(s.all) >= maxKeys {
			s.forget(now)
		}
		b = New(s.rate, s.burst, now)
		s.all[key] = b
	}
	return b
}

// forget makes place: of those that are full again after so much time, at most
// once a second, or of an arbitrary one: the common bucket still holds.
func (s *Keyed[K]) forget(now time.Time) {
	sweep := now.Sub(s.swept).Abs() >= time.Second
	if sweep {
		s.swept = now
	}
	for p, b := range s.all {
		if !sweep {
			delete(s.all, p)
			return
		}
		if now.Sub(b.at).Seconds()*b.rate > b.burst {
			delete(s.all, p)
		}
	}
	for p := range s.all {
		if len(s.all) < maxKeys {
			return
		}
		delete(s.all, p)
	}
}

// Network returns the network of an address, /24 or /56, which is not valid if it
// has none.
func Network(addr net.Addr) netip.Prefix {
	t, ok := addr.(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.Prefix{}
	}
	ip := t.AddrPort().Addr().Unmap()
	bits := 24
	if ip.Is6() {
		bits = 56
	}
	p, _ := ip.Prefix(bits)
	return p
}
