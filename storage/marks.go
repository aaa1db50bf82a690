package storage

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"dazaar-edge/storage/durable"
)

// Limits of marks.
const (
	MaxMarkKey   = 48
	MaxMarkValue = 128
)

// markStore holds small values that change often: how far a sale's meter got,
// which head was signed last. They ride on the log's commits, in pairs of
// pages of the open segment; of each pair the page that does not hold the
// newest durable image is written. Log.wmu guards it.
type markStore struct {
	values map[string]mark
	pages  []markPage
	// removed says on which page a removed key may still stand durably: until
	// that is overwritten it belongs to no other.
	removed map[string]int
}

type mark struct {
	value []byte
	page  int
}

type markPage struct {
	used    int    // bytes of entries
	dirty   bool   // changed since the last durable image
	tried   bool   // written, not yet synced
	alt     int    // which of the pair holds the durable image
	version uint64 // of the durable image
	skip    uint64 // versions that failed writes may have left behind
}

func (m *markStore) init(g geometry) {
	m.values, m.removed = map[string]mark{}, map[string]int{}
	m.pages = make([]markPage, g.marks)
}

func (m *markStore) dirty() bool {
	for i := range m.pages {
		if m.pages[i].dirty {
			return true
		}
	}
	return false
}

func entrySize(key string, value []byte) int { return 2 + len(key) + len(value) }

func (m *markStore) set(key string, value []byte) error {
	if len(key) == 0 || len(key) > MaxMarkKey || len(value) > MaxMarkValue {
		return fmt.Errorf("storage: mark %x: key of %d, value of %d bytes", key, len(key), len(value))
	}
	old, had := m.values[key]
	if had && bytes.Equal(old.value, value) {
		return nil
	}
	// A key never changes its page: two pages are not written as one.
	page, fixed := old.page, had
	if !had {
		page, fixed = m.removed[key], false
		if _, ok := m.removed[key]; ok {
			fixed = true
		}
	}
	grow := entrySize(key, value)
	if had {
		grow = len(value) - len(old.value)
	}
	if !fixed {
		page = slices.IndexFunc(m.pages, func(p markPage) bool { return p.used+grow <= PageSize-marksHead })
	} else if m.pages[page].used+grow > PageSize-marksHead {
		page = -1
	}
	if page < 0 {
		return ErrMarksFull
	}
	if had {
		m.remove(key)
	}
	delete(m.removed, key)
	m.values[key] = mark{bytes.Clone(value), page}
	m.pages[page].used += entrySize(key, value)
	m.pages[page].dirty = true
	return nil
}

func (m *markStore) remove(key string) {
	if old, ok := m.values[key]; ok {
		delete(m.values, key)
		m.pages[old.page].used -= entrySize(key, old.value)
		m.pages[old.page].dirty = true
		m.removed[key] = old.page
	}
}

// image encodes page i.
//
//	0 crc u32 · 'e' 'M' version index · segment u64 · version u64 · used u16
//	32 entries: key length u8, value length u8, key, value · zeros
func (m *markStore) image(i int, segment, version uint64) []byte {
	b := make([]byte, marksHead, PageSize)
	for _, key := range sortedMarks(m.values) {
		if v := m.values[key]; v.page == i {
			b = append(b, byte(len(key)), byte(len(v.value)))
			b = append(append(b, key...), v.value...)
		}
	}
	le.PutUint64(b[16:], version)
	le.PutUint16(b[24:], uint16(len(b)-marksHead))
	b = b[:PageSize]
	seal(b, kindMarks, byte(i), segment)
	return b
}

// parseMarks checks the image of page i and adds its entries to m.
func parseMarks(b []byte, i int, segment uint64) (entries map[string][]byte, used int, version uint64, err error) {
	index, seg, err := unseal(b, kindMarks)
	if err != nil {
		return nil, 0, 0, err
	}
	used = int(le.Uint16(b[24:]))
	if int(index) != i || seg != segment || used > PageSize-marksHead {
		return nil, 0, 0, fmt.Errorf("%w: marks", ErrCorrupt)
	}
	entries = map[string][]byte{}
	rest := b[marksHead : marksHead+used]
	for len(rest) > 0 {
		if len(rest) < 2 || len(rest) < 2+int(rest[0])+int(rest[1]) {
			return nil, 0, 0, fmt.Errorf("%w: marks", ErrCorrupt)
		}
		k, v := int(rest[0]), int(rest[1])
		entries[string(rest[2:2+k])] = bytes.Clone(rest[2+k : 2+k+v])
		rest = rest[2+k+v:]
	}
	for _, c := range b[marksHead+used:] {
		if c != 0 {
			return nil, 0, 0, fmt.Errorf("%w: padding is not zero", ErrCorrupt)
		}
	}
	return entries, used, le.Uint64(b[16:]), nil
}

// load reads the marks of a segment and returns how many pages of those that
// were ever written could not be read.
func (m *markStore) load(f durable.File, g geometry, segment uint64) (bad int, err error) {
	b, _, err := readEach(f, g.markPage(0), 2*g.marks)
	if err != nil {
		return 0, err
	}
	for i := range m.pages {
		found, torn := false, false
		for alt := range 2 {
			page := b[(2*i+alt)*PageSize:][:PageSize]
			entries, used, version, err := parseMarks(page, i, segment)
			torn = torn || brokenMarks(page)
			if err != nil || found && version < m.pages[i].version {
				continue
			}
			for key, v := range m.values {
				if v.page == i {
					delete(m.values, key)
				}
			}
			for key, value := range entries {
				m.values[key] = mark{value, i}
			}
			m.pages[i] = markPage{used: used, alt: alt, version: version}
			found = true
		}
		if !found {
			bad++
		}
		// The next commit replaces what is broken.
		m.pages[i].dirty = torn || !found
	}
	return bad, nil
}

// brokenMarks tells whether a page is neither empty nor marks of any segment.
func brokenMarks(page []byte) bool {
	_, _, err := unseal(page, kindMarks)
	return err != nil && !bytes.Equal(page, make([]byte, len(page)))
}

// write writes the pages that changed, without a sync.
func (m *markStore) write(f durable.File, g geometry, segment uint64) error {
	for i := range m.pages {
		p := &m.pages[i]
		if !p.dirty {
			continue
		}
		p.tried = true
		b := m.image(i, segment, p.version+p.skip+1)
		if err := writeFull(f, b, int64(g.markPage(2*i+1-p.alt))*PageSize); err != nil {
			return err
		}
	}
	return nil
}

// written says that what write wrote is durable.
func (m *markStore) written() {
	for i := range m.pages {
		if p := &m.pages[i]; p.tried {
			*p = markPage{used: p.used, alt: 1 - p.alt, version: p.version + p.skip + 1}
			maps.DeleteFunc(m.removed, func(_ string, page int) bool { return page == i })
		}
	}
}

// failed says that what write wrote may or may not be on the disk.
func (m *markStore) failed() {
	for i := range m.pages {
		if p := &m.pages[i]; p.tried {
			p.tried = false
			p.skip++
		}
	}
}

// move writes all pages into the first of each pair of a new segment.
func (m *markStore) move(f durable.File, g geometry, segment uint64) error {
	for i := range m.pages {
		if err := writeFull(f, m.image(i, segment, 1), int64(g.markPage(2*i))*PageSize); err != nil {
			return err
		}
	}
	return nil
}

// moved says that the new segment is the open one.
func (m *markStore) moved() {
	for i := range m.pages {
		m.pages[i] = markPage{used: m.pages[i].used, dirty: m.pages[i].dirty, version: 1}
	}
}

func sortedMarks(m map[string]mark) []string { return slices.Sorted(maps.Keys(m)) }

// SetMark sets a small value that becomes durable with the next commit. It
// fails with [ErrMarksFull] when there is no room.
func (l *Log) SetMark(key string, value []byte) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.closed {
		return ErrClosed
	}
	return l.marks.set(key, value)
}

// Mark returns the value of a mark; nil if there is none.
func (l *Log) Mark(key string) []byte {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	return bytes.Clone(l.marks.values[key].value)
}

// RemoveMark removes a mark with the next commit.
func (l *Log) RemoveMark(key string) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.marks.remove(key)
}

// Marks calls f for each mark, in order of the keys, until it returns false.
func (l *Log) Marks(f func(key string, value []byte) bool) {
	l.wmu.Lock()
	keys := sortedMarks(l.marks.values)
	values := make([][]byte, len(keys))
	for i, k := range keys {
		values[i] = bytes.Clone(l.marks.values[k].value)
	}
	l.wmu.Unlock()
	for i, k := range keys {
		if !f(k, values[i]) {
			return
		}
	}
}
