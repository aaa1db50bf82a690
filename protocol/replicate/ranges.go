package replicate

import "slices"

// maxRanges bounds how many ranges of blocks are remembered of a peer.
const maxRanges = 256

// ranges is a set of blocks, as ranges [from, to) in order, none adjacent.
type ranges []span

type span struct{ from, to uint64 }

// set adds or removes the blocks [from, to). When there are too many ranges the
// shortest are forgotten.
func (r *ranges) set(from, to uint64, have bool) {
	if from >= to {
		return
	}
	var out ranges
	add := func(s span) {
		if n := len(out); n > 0 && out[n-1].to >= s.from {
			out[n-1].to = max(out[n-1].to, s.to)
		} else {
			out = append(out, s)
		}
	}
	placed := !have
	for _, s := range *r {
		if !placed && s.from >= from {
			add(span{from, to})
			placed = true
		}
		if have || s.to <= from || s.from >= to {
			add(s)
			continue
		}
		if s.from < from {
			add(span{s.from, from})
		}
		if s.to > to {
			add(span{to, s.to})
		}
	}
	if !placed {
		add(span{from, to})
	}
	if len(out) > maxRanges {
		shortest := 0
		for i, s := range out {
			if s.to-s.from < out[shortest].to-out[shortest].from {
				shortest = i
			}
		}
		out = slices.Delete(out, shortest, shortest+1)
	}
	*r = out
}

// next returns the first block at or behind i.
func (r ranges) next(i uint64) (uint64, bool) {
	for _, s := range r {
		if i < s.to {
			return max(i, s.from), true
		}
	}
	return 0, false
}

// has tells whether block i is in the set.
func (r ranges) has(i uint64) bool {
	n, ok := r.next(i)
	return ok && n == i
}
