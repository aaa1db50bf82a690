package feed

import (
	"errors"
	"sort"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/storage"
)

// Keys of a block in the storage (see storage.Record).
const (
	keyTime  = 0 // wall time in µs, 0 while unknown
	keyClock = 1 // 1 + index of a clock entry
)

// maxBootFixes bounds how many clock entries a search looks at, and maxPassed
// how many blocks with a wall time of their own it passes by: more than that
// lie in its way only after the clock was set back, again and again.
const (
	maxBootFixes = 1024
	maxPassed    = 1024
)

// stampAt returns the stamp and kind of the first readable block at or after i,
// and its index; end if there is none before.
func (l *Log) stampAt(i, end uint64) (block.Block, uint64, error) {
	for i < end {
		data, _, err := l.st.Get(i)
		if err == nil {
			b, err := l.cfg.Encoding.Inspect(data)
			if err == nil {
				return b, i, nil
			}
			i++ // not of this encoding: it has no time
			continue
		}
		l.noteError(err)
		var damage *storage.CorruptError
		switch {
		case errors.As(err, &damage):
			i = max(damage.End, i+1)
		case errors.Is(err, storage.ErrDropped):
			i = max(l.st.First(), i+1)
		default:
			return block.Block{}, i, err
		}
	}
	return block.Block{}, end, nil
}

// Seek returns the index of the first block whose resolved time is t or later,
// the log's length if there is none. It reads O(log n) blocks. Blocks whose
// time nobody knows are passed by; times are right to their uncertainty.
func (l *Log) Seek(t time.Time) (uint64, error) {
	length := l.st.Length()
	target := max(timeKey(t), 1)
	// best is the first block that itself says so late a time. One without a
	// wall time may come before it: its clock entry is the first behind best,
	// or lies between there and the newest time known before best.
	best, _, err := l.scanKey(keyTime, target, length)
	if err != nil {
		return 0, err
	}
	newest, err := l.newestKnown(best)
	if err != nil {
		return 0, err
	}
	c, err := l.clockAfter(best, length)
	if err != nil {
		return 0, err
	}
	var boot bootFixes
	for range maxBootFixes {
		b, i, err := l.stampAt(c, min(c+1, length))
		if err != nil {
			return 0, err
		}
		if i == c && b.Entry == block.Clock {
			if b.Stamp.Boot != boot.number {
				if best, err = l.searchBoot(&boot, target, best); err != nil {
					return 0, err
				}
				boot = bootFixes{number: b.Stamp.Boot}
			}
			boot.add(l, b)
		}
		before, more, err := l.clockBefore(c)
		if err != nil {
			return 0, err
		}
		if !more || c <= newest && c < best {
			break
		}
		c = before
	}
	return l.searchBoot(&boot, target, best)
}

// newestKnown returns the block that says the newest time before block i; 0 if
// none does.
func (l *Log) newestKnown(i uint64) (uint64, error) {
	if i == l.st.First() {
		return 0, nil
	}
	key, err := l.maxKey(keyTime, i)
	if err != nil || key == 0 {
		return 0, err
	}
	at, _, err := l.scanKey(keyTime, key, i)
	return at, err
}

// scanKey returns the first block before end whose key is target or more, or
// end, and the key.
func (l *Log) scanKey(k int, target, end uint64) (uint64, uint64, error) {
	from, err := l.st.FindKey(k, target)
	if err != nil {
		return 0, 0, err
	}
	return l.eachKey(from, end, func(keys [2]uint64) bool { return keys[k] >= target }, k)
}

// eachKey calls f with the keys of the blocks [from, end) until it returns true.
func (l *Log) eachKey(from, end uint64, f func(keys [2]uint64) bool, k int) (at, key uint64, err error) {
	for from < end {
		found := false
		err := l.st.Range(from, end, func(i uint64, _ storage.Weight, data []byte) bool {
			b, err := l.cfg.Encoding.Inspect(data)
			if err != nil {
				return true
			}
			ks := keys(i, b, l.cfg.Encoding)
			if found = f(ks); found {
				at, key = i, ks[k]
			}
			return !found
		})
		l.noteError(err)
		var damage *storage.CorruptError
		switch {
		case found:
			return at, key, nil
		case errors.As(err, &damage):
			from = max(damage.End, from+1)
		case err != nil:
			return 0, 0, err
		default:
			return end, 0, nil
		}
	}
	return end, 0, nil
}

// maxKey returns the running maximum of a key over the blocks before i.
func (l *Log) maxKey(k int, i uint64) (uint64, error) {
	from, best, err := l.st.KeysBefore(i)
	if err != nil {
		return 0, err
	}
	top := best[k]
	_, _, err = l.eachKey(from, i, func(keys [2]uint64) bool { top = max(top, keys[k]); return false }, k)
	return top, err
}

// clockBefore returns the newest clock entry before block i.
func (l *Log) clockBefore(i uint64) (uint64, bool, error) {
	if i <= l.st.First() {
		return 0, false, nil
	}
	k, err := l.maxKey(keyClock, i)
	return k - 1, k > l.st.First(), err
}

// clockAfter returns the first clock entry at or after block i in the log of
// length blocks, or length.
func (l *Log) clockAfter(i, length uint64) (uint64, error) {
	c, _, err := l.scanKey(keyClock, i+1, length)
	return c, err
}

// bootFixes are clock entries of one boot, newest first.
type bootFixes struct {
	number uint32
	fixes  []block.Fix
}

func (b *bootFixes) add(l *Log, blk block.Block) {
	_, n, err := l.cfg.Encoding.Parse(blk.Data)
	if err != nil || n == nil || len(b.fixes) >= maxBootFixes {
		return
	}
	if f, ok := n.Fix(); ok {
		b.fixes = append(b.fixes, f)
	}
}

// searchBoot returns the first block before best, of this boot and without a
// wall time of its own, whose resolved time is target µs or later; or best.
func (l *Log) searchBoot(boot *bootFixes, target, best uint64) (uint64, error) {
	first := l.st.First()
	zone := time.Duration(0) // nearest to each fix: zones that end halfway to the next
	for n := len(boot.fixes) - 1; n >= 0; n-- {
		fix := boot.fixes[n]
		end := time.Duration(1<<63 - 1)
		if n > 0 {
			end = (fix.Mono + boot.fixes[n-1].Mono + 1) / 2
		}
		from := max(zone, time.Duration(target)*time.Microsecond-fix.Offset)
		zone = end
		if from >= end {
			continue
		}
		lo, err := l.searchStamp(block.Stamp{Boot: boot.number, Mono: from}, first, best)
		if err != nil {
			return best, err
		}
		for passed := 0; lo < best && passed < maxPassed; passed++ {
			b, i, err := l.stampAt(lo, best)
			if err != nil {
				return best, err
			}
			if lo = i; i == best || b.Stamp.Boot != boot.number || b.Stamp.Mono >= end {
				break
			}
			if b.Stamp.Wall.IsZero() && b.Entry != block.Clock {
				return i, nil
			}
			lo++
		}
	}
	return best, nil
}

// searchStamp returns the first block in [lo, hi) that does not come before s,
// or hi.
func (l *Log) searchStamp(s block.Stamp, lo, hi uint64) (uint64, error) {
	var failed error
	n := sort.Search(int(hi-lo), func(n int) bool {
		b, i, err := l.stampAt(lo+uint64(n), hi)
		if err != nil {
			failed = err
		}
		return err != nil || i == hi || !b.Stamp.Before(s)
	})
	return lo + uint64(n), failed
}

// Resolve returns the time of block i: its own wall time or, by the nearest
// clock entry of its boot, its monotonic time; zero while unknown. err is how
// far off it may be, 0 if unknown.
func (l *Log) Resolve(i uint64) (t time.Time, off time.Duration, err error) {
	data, _, err := l.Get(i)
	if err != nil {
		return t, 0, err
	}
	b, err := l.cfg.Encoding.Inspect(data)
	if err != nil || !b.Stamp.Wall.IsZero() {
		return b.Stamp.Wall, b.Stamp.Err, err
	}
	length := l.st.Length()
	boot := bootFixes{number: b.Stamp.Boot}
	take := func(c uint64) error {
		e, at, err := l.stampAt(c, min(c+1, length))
		if err == nil && at == c && e.Stamp.Boot == boot.number {
			boot.add(l, e)
		}
		return err
	}
	before, ok, err := l.clockBefore(i)
	if err == nil && ok {
		err = take(before)
	}
	if err != nil {
		return t, 0, err
	}
	after, err := l.clockAfter(i, length)
	if err == nil && after < length {
		err = take(after)
	}
	if err != nil {
		return t, 0, err
	}
	t, off = block.Resolve(b.Stamp, boot.fixes)
	return t, off, nil
}
