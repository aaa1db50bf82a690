package storage

import (
	"bytes"
	"slices"
	"testing"

	"dazaar-edge/storage/marks"
	"dazaar-edge/storage/page"
)

// images returns a page of each kind of a real log, as seeds.
func images(f *testing.F) (out [][]byte) {
	b := newBench(f, 1, 60*page.MinPages*page.Size)
	if err := b.open(); err != nil {
		f.Fatal(err)
	}
	for len(b.acked) < 150 {
		if err := b.step(); err != nil {
			f.Fatal(err)
		}
	}
	if err := b.log.Close(); err != nil {
		f.Fatal(err)
	}
	found, err := list(b.disk, b.cfg.Dir)
	if err != nil {
		f.Fatal(err)
	}
	file, err := b.disk.OpenRead(join(b.cfg.Dir, found.segments[0].name()))
	if err != nil {
		f.Fatal(err)
	}
	for n := range page.MinPages {
		p, err := page.Read(file, n, 1)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// FuzzPage parses any bytes as each kind of page, with a right checksum: what
// is accepted must be walked without a panic, and encode as it was.
func FuzzPage(f *testing.F) {
	for _, p := range images(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw := make([]byte, page.Size)
		copy(raw, b)
		for _, kind := range []byte{page.KindHeader, page.KindData, page.KindMarks, page.KindFooter} {
			p := bytes.Clone(raw)
			page.Seal(p, kind, raw[7], 1)
			if h, err := page.ParseHeader(p); err == nil {
				again, err := h.Encode()
				if err != nil {
					t.Fatalf("a head that was read cannot be written: %v", err)
				}
				if back, err := page.ParseHeader(again); err != nil || back.Block != h.Block || !bytes.Equal(back.State, h.State) {
					t.Fatalf("head does not survive: %v", err)
				}
			}
			if ft, err := page.ParseFooter(p); err == nil {
				if dir, err := page.ParseDir(ft.Dir, 0, ft.Pages); err == nil {
					back, err := page.ParseDir(page.AppendDir(nil, 0, dir), 0, len(dir))
					if err != nil || !slices.Equal(back, dir) {
						t.Fatalf("page directory does not survive: %v", err)
					}
				}
			}
			_, _ = marks.Parse(p, int(raw[7]), 1)
			info, err := page.Parse(p, 1)
			if err != nil {
				continue
			}
			src := func(n int) ([]byte, page.Info, error) { return p, info, nil }
			seen := 0
			_, _ = page.Walk(src, info.Number, info.Number, func(_ uint64, _ Weight, data []byte) (bool, error) {
				seen += len(data)
				return true, nil
			})
			if seen > page.Size {
				t.Fatalf("%d bytes of records in a page", seen)
			}
			g := newGeometry(page.MinPages)
			sc := scan{f: bytesAt(make([]byte, g.size())), g: g, seg: segment{seq: 1}}
			copy(sc.f.(bytesAt)[g.dataOff(0):], p)
			_, _ = sc.trim(0)
			again := bytes.Clone(p)
			info.Seal(again)
			if back, err := page.Parse(again, 1); err != nil || back != info {
				t.Fatalf("page head does not survive: %+v, %+v, %v", info, back, err)
			}
		}
	})
}

// FuzzSegment opens a log whose newest segment has a page of any content.
func FuzzSegment(f *testing.F) {
	for i, p := range images(f) {
		f.Add(uint8(i), p, true)
	}
	f.Fuzz(func(t *testing.T, at uint8, content []byte, sealed bool) {
		b := newBench(t, 1, 60*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		for range 12 {
			if err := b.step(); err != nil {
				t.Fatal(err)
			}
		}
		seg := b.log.w.seg
		b.log.Abort()
		raw := make([]byte, page.Size)
		copy(raw, content)
		if sealed {
			page.Seal(raw, []byte{page.KindHeader, page.KindData, page.KindMarks, page.KindFooter}[at>>6], raw[7], seg.seq)
		}
		file, err := b.disk.Open(join(b.cfg.Dir, seg.name()))
		if err != nil {
			t.Fatal(err)
		}
		if err := page.Write(file, raw, int64(at%page.MinPages)*page.Size); err != nil {
			t.Fatal(err)
		}
		b.disk.Kill()
		if err := b.open(); err != nil {
			return // refused with an error
		}
		_ = b.log.Range(b.log.First(), b.log.Length(), func(uint64, Weight, []byte) bool { return true })
		for _, name := range b.log.Recovery().Damaged {
			_ = b.log.Salvage(name, func(uint64, Weight, []byte) bool { return true })
		}
		_, _ = b.log.FindKey(0, 50)
		b.log.Abort()
		_, _ = Verify(b.disk, b.cfg.Dir, &chain{})
	})
}
