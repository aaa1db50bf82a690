package storage

import (
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/marks"
	"dazaar-edge/storage/page"
)

// Limits of marks, see package marks.
const (
	MaxMarkKey   = marks.MaxKey
	MaxMarkValue = marks.MaxValue
)

// ErrMarksFull says that there is no room for another mark.
var ErrMarksFull = marks.ErrFull

// markWriter writes pages of marks into a segment file.
func (l *Log) markWriter(f durable.File) func(n int, image []byte) error {
	return func(n int, image []byte) error { return page.Write(f, image, int64(l.geo.markPage(n))*PageSize) }
}

// SetMark sets a small value that becomes durable with the next commit. It
// fails with [ErrMarksFull] when there is no room.
func (l *Log) SetMark(key string, value []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return ErrClosed
	}
	return l.marks.Set(key, value)
}

// Mark returns the value of a mark; nil if there is none.
func (l *Log) Mark(key string) []byte {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return l.marks.Get(key)
}

// RemoveMark removes a mark with the next commit.
func (l *Log) RemoveMark(key string) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.marks.Remove(key)
}

// Marks calls f for each mark, in order of the keys, until it returns false. f
// must not use the log.
func (l *Log) Marks(f func(key string, value []byte) bool) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	for _, key := range l.marks.Keys() {
		if !f(key, l.marks.Get(key)) {
			return
		}
	}
}
