// Package doubt tells whether nodes are believed that say that we moved: some may lie, to keep
// us busy.
package doubt

import (
	"net/netip"
	"slices"
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

// Spread puts those behind that are in a /24 of another one before them, as one owner's nodes
// could all lie.
func Spread[T comparable](nodes []T, addr func(T) netip.Addr) {
	seen, behind := map[netip.Prefix]bool{}, map[T]int{}
	for _, n := range nodes {
		p, err := addr(n).Prefix(24)
		if err == nil && seen[p] {
			behind[n] = 1
		}
		seen[p] = true
	}
	slices.SortStableFunc(nodes, func(a, b T) int { return behind[a] - behind[b] })
}
