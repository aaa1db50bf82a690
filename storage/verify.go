package storage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/marks"
	"dazaar-edge/storage/page"
)

// Checker is an [Owner] that can check its own part of a segment's foot.
type Checker interface {
	Owner
	// Check compares a summary with the blocks that were replayed since the
	// segment began.
	Check(summary []byte, closed bool) error
}

// Problem is something that is not as it was written.
type Problem struct {
	File       string `json:"file"`
	Page       int    `json:"page"` // of 4 KiB, from 0; -1 is the whole file
	First, End uint64 `json:"-"`    // blocks that cannot be read: [First, End)
	What       string `json:"what"`
}

// Report is what [Verify] found.
type Report struct {
	Segments      int
	First, Length uint64 // blocks [First, Length) should be there
	Blocks, Bytes uint64 // that many are, and are right
	Clean         bool   // the log was closed in order
	Problems      []Problem
	// Notes are what is not as it was written and matters to nobody: opening
	// the log mends it.
	Notes []Problem
}

// verifier walks over all segments of a log.
type verifier struct {
	fs     durable.FS
	dir    string
	g      geometry
	owner  Checker
	report *Report

	id   [16]byte
	prev *page.Footer // of the segment before; nil if it cannot be used
}

// Verify reads every live byte of the log in dir and checks sums, padding,
// links between segments, digests and summaries. It changes nothing. If the log
// is in use, what is committed meanwhile may be missed.
func Verify(fsys durable.FS, dir string, owner Checker) (*Report, error) {
	found, err := list(fsys, dir)
	if err != nil {
		return nil, err
	}
	v := &verifier{fs: fsys, dir: dir, owner: owner, report: &Report{Segments: len(found.segments)}}
	for _, name := range found.damaged {
		v.problem(name, -1, 0, 0, "set aside when committed pages could not be read; open the log (edge run, edge repair) to recover what is left")
	}
	if len(found.segments) == 0 && len(found.damaged) == 0 {
		return v.report, nil // made, and never used
	}
	if len(found.segments) == 0 {
		return v.report, fmt.Errorf("%s: %w: no log here", dir, ErrCorrupt)
	}
	l := &Log{cfg: Config{FS: fsys, Dir: dir}}
	pages, err := l.pagesOf(found.segments, 0)
	if err != nil || pages == 0 {
		return v.report, errors.Join(err, fmt.Errorf("%s: %w: no segment of a possible size", dir, ErrCorrupt))
	}
	v.g = newGeometry(pages)
	v.report.First = found.segments[0].first
	for i, s := range found.segments {
		last := i == len(found.segments)-1
		next := uint64(0)
		if !last {
			next = found.segments[i+1].first
		}
		if err := v.segment(s, last, next); err != nil {
			return v.report, fmt.Errorf("%s: %w", s.name(), err)
		}
		if !last && found.segments[i+1].seq != s.seq+1 {
			first := next
			if v.prev != nil {
				first = v.prev.End
			}
			v.problem(found.segments[i+1].name(), -1, first, next, fmt.Sprintf("follows segment %d: a file is missing", s.seq))
			v.prev = nil
		}
	}
	return v.report, nil
}

func (v *verifier) problem(file string, page int, first, end uint64, what string) {
	v.report.Problems = append(v.report.Problems, Problem{join(v.dir, file), page, first, end, what})
}

// segment checks one file. It returns errors of the file system only.
func (v *verifier) segment(s segment, last bool, next uint64) error {
	f, err := v.fs.OpenRead(join(v.dir, s.name()))
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := readHeader(f, s)
	if errors.Is(err, ErrCorrupt) {
		v.problem(s.name(), 0, s.first, next, err.Error())
		v.prev = nil
		return nil
	} else if err != nil {
		return err
	}
	v.checkHeader(s, h)
	if last {
		return v.open(f, s, h)
	}
	return v.closed(f, s, h, next)
}

func (v *verifier) checkHeader(s segment, h page.Header) {
	if v.id == [16]byte{} {
		v.id = h.Id
	} else if h.Id != v.id {
		v.problem(s.name(), 0, 0, 0, "belongs to another log")
	}
	if h.Pages != v.g.pages {
		v.problem(s.name(), 0, 0, 0, fmt.Sprintf("says it has %d pages, not %d", h.Pages, v.g.pages))
	}
	if p := v.prev; p != nil && (p.End != h.Block || p.Digest != h.Digest || p.Keys != h.Keys || !bytes.Equal(p.State, h.State)) {
		v.problem(s.name(), 0, 0, 0, "does not continue the segment before")
	}
	if err := v.owner.Restore(s.first, h.State, nil, s.first); err != nil || v.owner.Digest() != h.Digest {
		v.problem(s.name(), 0, 0, 0, "its state is not that of its digest")
	}
}

// readPage reads data page n of a segment.
func (v *verifier) readPage(f durable.File, s segment, n int) ([]byte, page.Info, error) {
	b, err := page.Read(f, v.g.dataPage(n), 1)
	if err != nil {
		return nil, page.Info{}, err
	}
	info, err := page.Parse(b, s.seq)
	if err == nil && info.Number != n {
		err = fmt.Errorf("%w: page %d in its place", ErrCorrupt, info.Number)
	}
	return b, info, err
}

// closed checks a segment that has one behind it.
func (v *verifier) closed(f durable.File, s segment, h page.Header, next uint64) error {
	ft, footErr := readFooter(f, v.g, s.seq)
	if footErr == nil && !ft.Closed() {
		footErr = fmt.Errorf("%w: segment is not closed", ErrCorrupt)
	}
	if footErr != nil && !errors.Is(footErr, ErrCorrupt) {
		return footErr
	}
	v.prev = nil
	pages := v.g.dataPages()
	if footErr != nil {
		v.problem(s.name(), v.g.footerPage(), 0, 0, "foot: "+footErr.Error())
	} else {
		v.prev = &ft
		pages = min(ft.Pages, pages)
		if ft.End != next {
			v.problem(s.name(), v.g.footerPage(), min(ft.End, next), next, fmt.Sprintf("ends at block %d, the next segment begins at %d", ft.End, next))
		}
	}
	bad, dir, final, err := v.pages(f, s, pages, next)
	if err != nil || bad {
		return err
	}
	if final.Flags&page.FlagSegment == 0 {
		v.problem(s.name(), v.g.dataPage(pages-1), final.Block, next, "the segment does not end")
		return nil
	}
	end, err := v.replay(f, s, h, tail{info: final})
	if errors.Is(err, ErrCorrupt) {
		v.problem(s.name(), v.g.dataPage(final.Number), s.first, next, err.Error())
		return nil
	} else if err != nil {
		return err
	}
	if end != next {
		v.problem(s.name(), v.g.dataPage(final.Number), end, next, fmt.Sprintf("holds blocks up to %d, the next segment begins at %d", end, next))
	}
	if footErr == nil {
		v.checkFooter(s, ft, dir, end, true)
	}
	return nil
}

// pages checks each page of a closed segment for itself, so that every damaged
// one is named. final is the page with which the segment ends.
func (v *verifier) pages(f durable.File, s segment, n int, next uint64) (bad bool, dir []uint64, final page.Info, err error) {
	at := s.first
	for i := range n {
		_, info, err := v.readPage(f, s, i)
		if errors.Is(err, ErrCorrupt) {
			bad = true
			v.problem(s.name(), v.g.dataPage(i), at, v.after(f, s, i, n, next), err.Error())
			continue
		} else if err != nil {
			return bad, nil, final, err
		}
		at = info.Block + uint64(info.Count)
		dir = append(dir, info.Block)
		if final = info; info.Flags&page.FlagSegment != 0 {
			return bad, dir, final, nil
		}
	}
	return bad, dir, final, nil
}

// after returns the first block that begins in a readable page behind page i.
func (v *verifier) after(f durable.File, s segment, i, n int, next uint64) uint64 {
	for i++; i < n; i++ {
		if _, info, err := v.readPage(f, s, i); err == nil {
			return info.Block
		}
	}
	return next
}

// replay gives the owner all blocks of a segment and counts them.
func (v *verifier) replay(f durable.File, s segment, h page.Header, t tail) (uint64, error) {
	sc := &scan{f: f, g: v.g, seg: s, head: h}
	counter := &counting{Checker: v.owner}
	end, err := sc.replay(counter, t)
	if err == nil {
		v.report.Blocks += counter.blocks
		v.report.Bytes += counter.bytes
		v.report.Length = end
	}
	return end, err
}

// counting counts what is replayed.
type counting struct {
	Checker
	blocks, bytes uint64
}

func (c *counting) Replay(i uint64, data []byte) error {
	c.blocks++
	c.bytes += uint64(len(data))
	return c.Checker.Replay(i, data)
}

func (v *verifier) checkFooter(s segment, ft page.Footer, dir []uint64, end uint64, closed bool) {
	wrong := func(what string) { v.problem(s.name(), v.g.footerPage(), 0, 0, "foot: "+what) }
	if ft.End != end || ft.Digest != v.owner.Digest() || !bytes.Equal(ft.State, v.owner.State()) {
		wrong("its state is not that of the blocks")
	}
	if !bytes.Equal(ft.Dir, page.AppendDir(nil, s.first, dir)) {
		wrong("page directory")
	}
	if err := v.owner.Check(ft.Summary, closed); err != nil {
		wrong(err.Error())
	}
}

// open checks the newest segment.
func (v *verifier) open(f durable.File, s segment, h page.Header) error {
	sc, err := scanSegment(f, v.g, s, h)
	if err != nil {
		return err
	}
	ft, footErr := readFooter(f, v.g, s.seq)
	if errors.Is(footErr, ErrCorrupt) {
		if b, err := page.Read(f, v.g.footerPage(), v.g.foot); err == nil && b[4] == 'e' && b[5] == page.KindFooter && binary.LittleEndian.Uint64(b[8:]) == s.seq {
			v.report.Notes = append(v.report.Notes, Problem{
				join(v.dir, s.name()), v.g.footerPage(), 0, 0, "the note that the log was closed in order is damaged, as by a power cut while closing",
			})
		}
	} else if footErr != nil {
		return footErr
	}
	if footErr == nil && ft.Kind != page.FooterClosed {
		sc.closed = &ft
	}
	t, next, ok, err := sc.end(v.owner)
	if err != nil {
		return err
	}
	v.report.Length = next
	if !ok && sc.closed != nil {
		// The end is known: name the damaged pages one by one.
		v.report.Length, v.report.Clean = ft.End, ft.Kind != page.FooterClosed
		if bad, _, _, err := v.pages(f, s, ft.Pages-1, ft.End); bad || err != nil {
			return err
		}
	}
	if !ok {
		v.problem(s.name(), v.g.dataPage(len(sc.pages)), next, max(next, ft.End), "committed pages cannot be read; edge repair says more")
		return nil
	}
	if footErr == nil && (t.info.Commit < ft.Commit && next < ft.End) {
		v.problem(s.name(), v.g.dataPage(len(sc.pages)), next, ft.End, fmt.Sprintf("the log was closed with %d blocks, %d can be read", ft.End, next))
		v.report.Length = ft.End
		return nil
	}
	if t.image != nil || t.ends {
		if _, err := v.replay(f, s, h, t); err != nil {
			return err
		}
	}
	if footErr == nil && ft.End == next && t.info.Commit <= ft.Commit {
		v.report.Clean = ft.Kind != page.FooterClosed
		var dir []uint64
		for _, p := range sc.pages[:min(len(sc.pages), t.info.Number)] {
			dir = append(dir, p.Block)
		}
		if t.image == nil && !t.ends {
			dir = append(dir, s.first)
		} else {
			dir = append(dir, t.info.Block)
		}
		v.checkFooter(s, ft, dir, next, ft.Closed())
	}
	return v.checkMarks(f, s)
}

// checkMarks checks the pages of marks. After a crash the older page of a pair
// may be a half-written one.
func (v *verifier) checkMarks(f durable.File, s segment) error {
	b, err := page.Read(f, v.g.markPage(0), 2*v.g.marks)
	if err != nil {
		return err
	}
	for i := range v.g.marks {
		good := 0
		var bad []int
		for alt := range 2 {
			page := b[(2*i+alt)*page.Size:][:page.Size]
			_, err := marks.Parse(page, i, s.seq)
			switch {
			case err == nil:
				good++
			case marks.Broken(page):
				bad = append(bad, v.g.markPage(2*i+alt))
			}
		}
		if len(bad) > 0 && (good == 0 || v.report.Clean) {
			v.problem(s.name(), bad[0], 0, 0, "marks cannot be read")
		}
	}
	return nil
}
