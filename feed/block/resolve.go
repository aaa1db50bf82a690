package block

import (
	"slices"
	"time"
)

// Fix is what a clock entry says: from monotonic to wall time of one boot.
type Fix struct {
	Mono   time.Duration
	Offset time.Duration // wall minus monotonic, since 1970
	Err    time.Duration // 0 is unknown
}

// Apply returns the wall time at monotonic time mono.
func (f Fix) Apply(mono time.Duration) time.Time {
	return time.UnixMicro((mono + f.Offset).Microseconds()).UTC()
}

// Fix returns what a clock entry says; ok is false for other entries.
func (n *Entry) Fix() (f Fix, ok bool) {
	return Fix{n.Stamp.Mono, n.Offset, n.OffsetErr}, n.Kind == Clock
}

// Nearest returns the fix whose monotonic time is nearest to mono, the later
// one of two; ok is false if there is none.
func Nearest(fixes []Fix, mono time.Duration) (best Fix, ok bool) {
	for _, f := range fixes {
		if !ok || (f.Mono-mono).Abs() <= (best.Mono-mono).Abs() {
			best, ok = f, true
		}
	}
	return best, ok
}

// Resolve returns the wall time of a stamp: its own if it has one, else by the
// nearest of the fixes of its boot. It is zero if both are missing.
func Resolve(s Stamp, fixes []Fix) (t time.Time, err time.Duration) {
	if !s.Wall.IsZero() {
		return s.Wall, s.Err
	}
	f, ok := Nearest(fixes, s.Mono)
	if !ok {
		return time.Time{}, 0
	}
	return f.Apply(s.Mono), f.Err
}

// maxFixes bounds what a Resolver keeps of one boot: the first ones and the
// newest.
const maxFixes = 256

// Resolver resolves the times of a log that is read from the beginning: entries
// are shown to it as they come, and each stamp is asked for when its boot is
// over or enough of it was seen. The zero value is ready. Not safe for
// concurrent use.
type Resolver struct {
	boot  uint32
	fixes []Fix
	last  time.Time
}

// Add shows an entry to the resolver.
func (r *Resolver) Add(n *Entry) {
	if n.Stamp.Boot != r.boot {
		r.boot, r.fixes = n.Stamp.Boot, nil
	}
	if f, ok := n.Fix(); ok {
		if len(r.fixes) >= maxFixes {
			r.fixes = slices.Delete(r.fixes, maxFixes/2, maxFixes/2+1)
		}
		r.fixes = append(r.fixes, f)
	}
}

// Resume says what was the newest time before.
func (r *Resolver) Resume(t time.Time) { r.last = t }

// Publish returns the resolved time of the next block, which never goes backwards:
// where the clock was set back it stands still, and held is true. Zero is unknown.
func (r *Resolver) Publish(s Stamp) (t time.Time, err time.Duration, held bool) {
	var fixes []Fix
	if s.Boot == r.boot {
		fixes = r.fixes
	}
	t, err = Resolve(s, fixes)
	if t.IsZero() {
		return t, 0, false
	}
	if t.Before(r.last) {
		if err > 0 {
			err += r.last.Sub(t)
		}
		return r.last, err, true
	}
	r.last = t
	return t, err, false
}
