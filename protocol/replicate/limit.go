package replicate

import (
	"sync"
	"time"
)

// Uplink is what all sellers of a process share: the cap on what they send, and
// how often they sign. The zero value has no cap. All methods are safe for
// concurrent use.
type Uplink struct {
	// Rate is the common cap in bytes per second; 0 is none. It must not change.
	Rate float64
	// Coalesce is how far apart heads are announced to a peer at least; 0 is
	// 250 ms. It grows while signing takes more than a twentieth of the time.
	Coalesce time.Duration

	mu    sync.Mutex
	free  time.Time // when the cap has room again; guarded by mu, like all below
	since time.Time // since when signing is measured
	spent time.Duration
	slow  int // by how many powers of two Coalesce is stretched
}

// Share is one connection's part of an [Uplink]. It implements mux.Pacer.
type Share struct {
	up   *Uplink
	rate float64

	mu   sync.Mutex
	free time.Time // guarded by mu
}

// Share returns the part of a connection with a cap of its own, in bytes per
// second; 0 is none.
func (u *Uplink) Share(rate float64) *Share { return &Share{up: u, rate: rate} }

// Spend implements mux.Pacer. Connections that wait for the common cap are served
// in the order in which they spent.
func (s *Share) Spend(n int) time.Time {
	now := time.Now()
	s.mu.Lock()
	t := book(&s.free, now, n, s.rate)
	s.mu.Unlock()
	s.up.mu.Lock()
	if c := book(&s.up.free, now, n, s.up.Rate); c.After(t) {
		t = c
	}
	s.up.mu.Unlock()
	return t
}

// book adds n bytes at a rate to what is booked and returns when that has passed.
func book(free *time.Time, now time.Time, n int, rate float64) time.Time {
	if rate == 0 {
		return time.Time{}
	}
	if free.Before(now) {
		*free = now
	}
	*free = free.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	return *free
}

// minWindow and freeWindow bound what is on its way to a peer with a small cap,
// and to one with none.
const (
	minWindow  = 64 << 10
	freeWindow = 1 << 20
)

// Window returns how many bytes may be on their way to the peer: 250 ms of its
// cap, at least 64 KiB. It is for mux.Config.
func (s *Share) Window() int {
	rate := s.rate
	if up := s.up.Rate; rate == 0 || up > 0 && up < rate {
		rate = up
	}
	if rate == 0 {
		return freeWindow
	}
	return max(minWindow, int(rate/4))
}

// signed notes how long a signature took.
func (u *Uplink) signed(d time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if u.since.IsZero() {
		u.since = now
	}
	u.spent += d
	took := now.Sub(u.since)
	if took < time.Second {
		return
	}
	switch load := u.spent.Seconds() / took.Seconds(); {
	case load > 1./20 && u.slow < 4:
		u.slow++
	case load < 1./50 && u.slow > 0:
		u.slow--
	}
	u.since, u.spent = now, 0
}

// interval returns how far apart announcements are.
func (u *Uplink) interval() time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := u.Coalesce
	if d == 0 {
		d = 250 * time.Millisecond
	}
	return d << u.slow
}
