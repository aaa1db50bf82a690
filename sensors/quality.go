package sensors

import (
	"math"
	"slices"
	"strings"
	"time"
)

// Quality flags of readings.
const (
	Range    = "range"    // outside of what can be, or was said to be
	Jump     = "jump"     // further from the reading before than things change
	Flatline = "flatline" // the same for too long
	Stale    = "stale"    // measured before anybody asked
	Dup      = "dup"      // it may have come before
)

// Limits say what readings of one name should be; what is not set is not looked at.
type Limits struct {
	Min, Max *float64
	// Jump is the most by which a reading should differ from the one before.
	Jump *float64
	// Flat is for how long the value may stay the same.
	Flat time.Duration
}

// Judge flags readings that are not as they should be. The zero value has no limits.
// Not safe for concurrent use.
type Judge struct {
	// Limits are by the readings' names, or by what is behind the last / of them.
	Limits map[string]Limits
	last   map[string]seen
}

type seen struct {
	value float64
	since time.Duration // when it became that
}

// Look flags readings that were taken at a monotonic time. Flags that a source gave
// stay.
func (j *Judge) Look(at time.Duration, readings []Reading) {
	for i := range readings {
		r := &readings[i]
		l, ok := j.limits(r.Name)
		v, number := r.Value.(float64)
		if !ok || !number {
			continue
		}
		if l.Min != nil && v < *l.Min || l.Max != nil && v > *l.Max {
			r.flag(Range)
		}
		s, before := j.last[r.Name]
		if before && l.Jump != nil && math.Abs(v-s.value) > *l.Jump {
			r.flag(Jump)
		}
		if before && v == s.value && l.Flat > 0 && at-s.since >= l.Flat {
			r.flag(Flatline)
		}
		if !before || v != s.value {
			if j.last == nil {
				j.last = map[string]seen{}
			}
			j.last[r.Name] = seen{v, at}
		}
	}
}

func (j *Judge) limits(name string) (Limits, bool) {
	l, ok := j.Limits[name]
	if !ok {
		l, ok = j.Limits[name[strings.LastIndexByte(name, '/')+1:]]
	}
	return l, ok
}

// flag adds a flag, once, and not to a list that others have.
func (r *Reading) flag(q string) {
	if !slices.Contains(r.Quality, q) {
		r.Quality = append(slices.Clone(r.Quality), q)
	}
}
