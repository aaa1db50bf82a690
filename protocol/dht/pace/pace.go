// Package pace decides how often the nodes that pass on what buyers say are asked where we
// are: often enough that routers leave the way open, and no more often.
package pace

import (
	"sync"
	"time"
)

// Between questions, as routers allow.
const (
	least = 3 * time.Second
	slow  = 25 * time.Second
	first = 10 * time.Second
	// closedTime is for how long it is remembered that the way was closed once.
	closedTime = time.Hour
)

// Pace is what is known of a node's router. The zero value is ready. All methods are safe for
// concurrent use.
type Pace struct {
	mu       sync.Mutex
	every    time.Duration // between questions; 0 is first; guarded by mu, like all below
	most     time.Duration // after so long the way was closed once; 0 is never
	closedAt time.Time     // when that was
	askedAt  time.Time     // when somebody last asked
}

// Every returns how long to wait from one question to the next.
func (p *Pace) Every() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.every == 0 {
		p.every = first
	}
	return p.every
}

// Rest tells whether the relays of a listener, who asked them at a time and does so that
// often, may hear a byte that nobody answers, which keeps the way open, too: if others of the
// same node have just asked theirs. Each asks every second time at least, whether its relays
// are still there.
func (p *Pace) Rest(asked time.Time, every time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if soon := every - every/8; now.Sub(asked) < every+soon && now.Sub(p.askedAt) < soon {
		return true
	}
	p.askedAt = now
	return false
}

// Asked notes whether the way was still open after so much time: if so it may be longer
// next time, if not it must be shorter, and never so long again.
func (p *Pace) Asked(after time.Duration, still bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if still {
		if now.Sub(p.closedAt) > closedTime {
			p.most = 0 // the router may be another one
		}
		if p.most == 0 || after+after/4 < p.most {
			p.every = max(p.every, min(after+after/4, slow))
		}
		return
	}
	p.most, p.closedAt = after, now
	p.every = max(after/2, least)
}
