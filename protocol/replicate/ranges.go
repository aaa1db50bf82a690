package replicate

import "slices"

// maxRanges bounds how many ranges of blocks are remembered of a peer: by a seller,
// and by a buyer.
const (
	maxRanges      = 256
	maxBuyerRanges = 4096
)

// ranges is a set of blocks, as ranges [from, to) in order, none adjacent.
type ranges []span

type span struct{ from, to uint64 }

// set adds or removes the blocks [from, to).
func (r *ranges) set(from, to uint64, have bool) {
	if from >= to {
		return
	}
	var in [1]span
	if in[0] = (span{from, to}); have {
		r.replace(from, to, in[:])
	} else {
		r.replace(from, to, nil)
	}
}

// replace makes these spans, which are in order, what there is of [from, to).
func (r *ranges) replace(from, to uint64, spans []span) {
	if len(*r) == 1 && len(spans) == 1 && spans[0] == (span{from, to}) && from >= (*r)[0].from && from <= (*r)[0].to {
		(*r)[0].to = max((*r)[0].to, to) // as a log grows
		return
	}
	out := make(ranges, 0, len(*r)+len(spans)+1)
	add := func(s span) {
		if n := len(out); n > 0 && out[n-1].to >= s.from {
			out[n-1].to = max(out[n-1].to, s.to)
		} else if s.from < s.to {
			out = append(out, s)
		}
	}
	i := 0
	for ; i < len(*r) && (*r)[i].from < from; i++ {
		add(span{(*r)[i].from, min((*r)[i].to, from)})
	}
	if i > 0 {
		i-- // it may go on behind
	}
	for _, s := range spans {
		add(s)
	}
	for ; i < len(*r); i++ {
		if s := (*r)[i]; s.to > to {
			add(span{max(s.from, to), s.to})
		}
	}
	*r = out
}

// forgetShort forgets the shortest ranges until there are no more than n.
func (r *ranges) forgetShort(n int) {
	for len(*r) > n {
		shortest := 0
		for i, s := range *r {
			if s.to-s.from < (*r)[shortest].to-(*r)[shortest].from {
				shortest = i
			}
		}
		*r = slices.Delete(*r, shortest, shortest+1)
	}
}

// forgetHigh forgets the highest ranges until there are no more than n, and
// returns from which block on; MaxUint64 if from none.
func (r *ranges) forgetHigh(n int) uint64 {
	if len(*r) <= n {
		return ^uint64(0)
	}
	from := (*r)[n].from
	*r = slices.Clone((*r)[:n])
	return from
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
