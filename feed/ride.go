package feed

import "dazaar-edge/storage"

// Rider has small values that change often and become durable with the log's
// commits. Its methods are called by one goroutine, which commits.
type Rider interface {
	// Ride is called before each commit. set takes a key of at most 32 bytes and a
	// value of at most 128; it fails with [storage.ErrMarksFull].
	Ride(set func(key string, value []byte) error)
	// Landed is called after it: with nil, what Ride set is durable.
	Landed(err error)
}

// riderPrefix begins the keys of a rider's marks.
const riderPrefix = "r"

// SetRider says who rides on the commits from now on; nil is nobody. There is a
// commit every 10 s at least.
func (l *Log) SetRider(r Rider) {
	l.marksMu.Lock()
	l.rider = r
	l.marksMu.Unlock()
}

// Mark returns what a rider set; nil if there is nothing.
func (l *Log) Mark(key string) []byte { return l.st.Mark(riderPrefix + key) }

// RemoveMark removes it, with the next commit.
func (l *Log) RemoveMark(key string) { l.st.RemoveMark(riderPrefix + key) }

// noteKey is the mark of the note.
const noteKey = "note"

// Note returns what SetNote kept; nil if nothing.
func (l *Log) Note() []byte { return l.st.Mark(noteKey) }

// SetNote keeps at most 128 bytes for whoever appends, durable with the next commit or
// with Close, also on a card that takes no more blocks; nil is nothing.
func (l *Log) SetNote(value []byte) error {
	if value == nil {
		l.st.RemoveMark(noteKey)
		return nil
	}
	return l.st.SetMark(noteKey, value)
}

// CommitMarks asks for a commit soon, for what a rider has.
func (l *Log) CommitMarks() {
	l.marksMu.Lock()
	l.hurried = true
	l.marksMu.Unlock()
	l.queue.poke()
}

// marksDue tells whether marks should be committed now.
func (l *Log) marksDue() bool {
	l.marksMu.Lock()
	defer l.marksMu.Unlock()
	return l.hurried || len(l.unsaved) > maxUnsaved
}

// commitStorage commits, with the marks of heads and of a rider.
func (l *Log) commitStorage() error {
	l.marksMu.Lock()
	r := l.rider
	l.hurried = false
	l.marksMu.Unlock()
	l.writeMarks()
	if r != nil {
		r.Ride(func(key string, value []byte) error {
			if len(key) > 32 {
				return storage.ErrTooLarge
			}
			return l.st.SetMark(riderPrefix+key, value)
		})
	}
	err := l.st.Commit()
	if r != nil {
		r.Landed(err)
	}
	return err
}
