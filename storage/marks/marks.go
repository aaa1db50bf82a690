// Package marks keeps small values that change often, such as how far a sale's
// meter got, in pairs of pages of a log's open segment. They ride on the log's
// commits. Of each pair the page that does not hold the newest durable image is
// written; a key never changes its pair, since two pages are not written as one.
//
//	 0 crc u32 · 'e' 'M' version pair · segment u64 · image number u64 · used u16
//	32 entries: key length u8, value length u8, key, value · zeros
package marks

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// Limits of marks in bytes.
const (
	MaxKey   = 48
	MaxValue = 128

	headSize = 32
	room     = page.Size - headSize
)

// ErrFull says that there is no room for another mark.
var ErrFull = errors.New("storage: no room for another mark")

// Store holds the marks of a log. Not safe for concurrent use.
type Store struct {
	values map[string]mark
	pairs  []pair
	// removed says in which pair a removed key may still stand durably: until
	// that is overwritten it belongs to no other.
	removed map[string]int
}

type mark struct {
	value []byte
	pair  int
}

type pair struct {
	used   int    // bytes of entries
	dirty  bool   // changed since the last durable image
	tried  bool   // written, not yet synced
	alt    int    // which page of the pair holds the durable image
	number uint64 // of the durable image
	skip   uint64 // numbers that failed writes may have left behind
}

// New returns an empty store in this many pairs of pages.
func New(pairs int) *Store {
	return &Store{values: map[string]mark{}, removed: map[string]int{}, pairs: make([]pair, pairs)}
}

// Pages returns how many pages the store takes.
func (s *Store) Pages() int { return 2 * len(s.pairs) }

// Dirty tells whether something changed since the last durable image.
func (s *Store) Dirty() bool {
	return slices.ContainsFunc(s.pairs, func(p pair) bool { return p.dirty })
}

// Get returns a copy of a value; nil if there is none.
func (s *Store) Get(key string) []byte { return bytes.Clone(s.values[key].value) }

// Keys returns all keys, sorted.
func (s *Store) Keys() []string { return slices.Sorted(maps.Keys(s.values)) }

func entrySize(key string, value []byte) int { return 2 + len(key) + len(value) }

// Set sets a value. It fails with [ErrFull] when there is no room.
func (s *Store) Set(key string, value []byte) error {
	if len(key) == 0 || len(key) > MaxKey || len(value) > MaxValue {
		return fmt.Errorf("storage: mark %x: key of %d, value of %d bytes", key, len(key), len(value))
	}
	old, had := s.values[key]
	if had && bytes.Equal(old.value, value) {
		return nil
	}
	at, grow, fixed := old.pair, entrySize(key, value), had
	if had {
		grow = len(value) - len(old.value)
	} else if was, ok := s.removed[key]; ok {
		at, fixed = was, true
	}
	if !fixed {
		at = slices.IndexFunc(s.pairs, func(p pair) bool { return p.used+grow <= room })
	}
	if at < 0 || s.pairs[at].used+grow > room {
		return ErrFull
	}
	delete(s.removed, key)
	s.values[key] = mark{bytes.Clone(value), at}
	s.pairs[at].used += grow
	s.pairs[at].dirty = true
	return nil
}

// Remove removes a value, if there is one.
func (s *Store) Remove(key string) {
	old, ok := s.values[key]
	if !ok {
		return
	}
	delete(s.values, key)
	s.pairs[old.pair].used -= entrySize(key, old.value)
	s.pairs[old.pair].dirty = true
	s.removed[key] = old.pair
}

// image encodes pair i.
func (s *Store) image(i int, segment, number uint64) []byte {
	b := make([]byte, headSize, page.Size)
	for _, key := range s.Keys() {
		if v := s.values[key]; v.pair == i {
			b = append(b, byte(len(key)), byte(len(v.value)))
			b = append(append(b, key...), v.value...)
		}
	}
	binary.LittleEndian.PutUint64(b[16:], number)
	binary.LittleEndian.PutUint16(b[24:], uint16(len(b)-headSize))
	b = b[:page.Size]
	page.Seal(b, page.KindMarks, byte(i), segment)
	return b
}

// Image is what a page of marks says.
type Image struct {
	Number  uint64
	Entries map[string][]byte
	used    int
}

// Parse checks a page of pair i. Errors wrap [durable.ErrCorrupt].
func Parse(b []byte, i int, segment uint64) (m Image, err error) {
	index, seg, err := page.Unseal(b, page.KindMarks)
	if err != nil {
		return m, err
	}
	m.used = int(binary.LittleEndian.Uint16(b[24:]))
	if int(index) != i || seg != segment || m.used > room {
		return m, fmt.Errorf("%w: marks", durable.ErrCorrupt)
	}
	m.Number, m.Entries = binary.LittleEndian.Uint64(b[16:]), map[string][]byte{}
	for rest := b[headSize : headSize+m.used]; len(rest) > 0; {
		if len(rest) < 2 || len(rest) < 2+int(rest[0])+int(rest[1]) {
			return m, fmt.Errorf("%w: marks", durable.ErrCorrupt)
		}
		k, v := int(rest[0]), int(rest[1])
		m.Entries[string(rest[2:2+k])] = bytes.Clone(rest[2+k : 2+k+v])
		rest = rest[2+k+v:]
	}
	for _, c := range b[headSize+m.used:] {
		if c != 0 {
			return m, fmt.Errorf("%w: padding is not zero", durable.ErrCorrupt)
		}
	}
	return m, nil
}

// Broken tells whether a page is neither empty nor marks of any segment.
func Broken(b []byte) bool {
	_, _, err := page.Unseal(b, page.KindMarks)
	return err != nil && !bytes.Equal(b, make([]byte, len(b)))
}

// Load takes over the marks of a segment from its pages, and returns how many
// pairs could not be read.
func (s *Store) Load(pages []byte, segment uint64) (bad int) {
	for i := range s.pairs {
		found, torn := false, false
		for alt := range 2 {
			b := pages[(2*i+alt)*page.Size:][:page.Size]
			m, err := Parse(b, i, segment)
			torn = torn || Broken(b)
			if err != nil || found && m.Number < s.pairs[i].number {
				continue
			}
			maps.DeleteFunc(s.values, func(_ string, v mark) bool { return v.pair == i })
			for key, value := range m.Entries {
				s.values[key] = mark{value, i}
			}
			s.pairs[i] = pair{used: m.used, alt: alt, number: m.Number}
			found = true
		}
		if !found {
			bad++
		}
		// The next commit replaces what is broken.
		s.pairs[i].dirty = torn || !found
	}
	return bad
}

// Write calls write for each page that must be written, with its number among
// the store's pages. Nothing counts as durable before Written.
func (s *Store) Write(segment uint64, write func(n int, image []byte) error) error {
	for i := range s.pairs {
		p := &s.pairs[i]
		if !p.dirty {
			continue
		}
		p.tried = true
		if err := write(2*i+1-p.alt, s.image(i, segment, p.number+p.skip+1)); err != nil {
			return err
		}
	}
	return nil
}

// Written says that what Write wrote is durable.
func (s *Store) Written() {
	for i := range s.pairs {
		if p := &s.pairs[i]; p.tried {
			*p = pair{used: p.used, alt: 1 - p.alt, number: p.number + p.skip + 1}
			maps.DeleteFunc(s.removed, func(_ string, at int) bool { return at == i })
		}
	}
}

// Failed says that what Write wrote may or may not be on the disk.
func (s *Store) Failed() {
	for i := range s.pairs {
		if p := &s.pairs[i]; p.tried {
			p.tried = false
			p.skip++
		}
	}
}

// Move calls write for the first page of each pair in a new segment.
func (s *Store) Move(segment uint64, write func(n int, image []byte) error) error {
	for i := range s.pairs {
		if err := write(2*i, s.image(i, segment, 1)); err != nil {
			return err
		}
	}
	return nil
}

// Moved says that the new segment is the open one.
func (s *Store) Moved() {
	for i := range s.pairs {
		s.pairs[i] = pair{used: s.pairs[i].used, dirty: s.pairs[i].dirty, number: 1}
	}
	clear(s.removed)
}
