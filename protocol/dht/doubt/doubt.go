// Package doubt tells whether nodes are believed that say that we moved: some may lie, to keep
// us busy.
package doubt

import (
	"net/netip"
	"time"
)

// Doubts are what is remembered of those nodes. The zero value is ready. They are not safe for
// concurrent use.
type Doubts struct {
	odd  map[netip.AddrPort]int // how often they alone said so
	at   time.Time              // when it was believed last
	wait time.Duration          // until it is believed again
}

const (
	// maxOdd is how often one alone is believed.
	maxOdd    = 3
	maxDoubts = 64
	least     = time.Second
	most      = time.Minute
	calm      = 10 * time.Minute // after which all is as at first
)

// Believe tells whether something should be done as some of so many nodes say that we moved.
func (d *Doubts) Believe(now time.Time, who []netip.AddrPort, of int) bool {
	since := now.Sub(d.at)
	if since > calm {
		d.wait = 0
	}
	wait, alone := d.wait, len(who) == 1 && of > 1
	if alone {
		wait = max(wait, most*time.Duration(d.odd[who[0]]))
	}
	if since < wait {
		return false
	}
	if alone {
		if d.odd == nil || len(d.odd) >= maxDoubts {
			d.odd = map[netip.AddrPort]int{}
		}
		d.odd[who[0]]++
	}
	d.at, d.wait = now, min(max(2*d.wait, least), most)
	return true
}

// Doubted tells whether a node said so alone too often.
func (d *Doubts) Doubted(a netip.AddrPort) bool { return d.odd[a] >= maxOdd }
