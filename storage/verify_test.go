package storage

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"dazaar-edge/storage/marks"
	"dazaar-edge/storage/page"
)

// Check implements Checker: a chain keeps no summary.
func (c *chain) Check(summary []byte, _ bool) error {
	if len(summary) != 0 {
		return ErrCorrupt
	}
	return nil
}

// span is a range of bytes of a file.
type span struct {
	file     string
	from, to int64
}

// liveBytes lists every byte of a closed log that means something.
func liveBytes(t *testing.T, b *bench) (out []span) {
	t.Helper()
	found, err := list(b.disk, b.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	g := newGeometry(page.MinPages)
	for i, s := range found.segments {
		name := join(b.cfg.Dir, s.name())
		f, err := b.disk.OpenRead(name)
		if err != nil {
			t.Fatal(err)
		}
		add := func(first, n int) {
			out = append(out, span{name, int64(first) * page.Size, int64(first+n) * page.Size})
		}
		ft, err := readFooter(f, g, s.seq)
		if err != nil {
			t.Fatal(err)
		}
		add(0, 1)
		add(g.footerPage(), g.foot)
		if i < len(found.segments)-1 {
			add(g.dataPage(0), ft.Pages)
			continue
		}
		add(g.dataPage(0), ft.Pages-1)
		newest, at := uint64(0), 0
		for slot := range slots {
			b, _ := page.Read(f, slotPage+slot, 1)
			if info, err := page.Parse(b, s.seq); err == nil && info.Commit > newest {
				newest, at = info.Commit, slotPage+slot
			}
		}
		add(at, 1)
		for m := range g.marks {
			version, at := uint64(0), 0
			for alt := range 2 {
				b, _ := page.Read(f, g.markPage(2*m+alt), 1)
				if img, err := marks.Parse(b, m, s.seq); err == nil && img.Number > version {
					version, at = img.Number, g.markPage(2*m+alt)
				}
			}
			add(at, 1)
		}
	}
	return out
}

// filled returns a closed log of several segments.
func filled(t *testing.T, seed uint64, blocks int) *bench {
	t.Helper()
	b := newBench(t, seed, 60*page.MinPages*page.Size)
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	for len(b.acked) < blocks {
		if err := b.step(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.log.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVerifyFlips flips 10,000 random bits in live bytes, one at a time: verify
// finds every one, and finds nothing when they are flipped back.
func TestVerifyFlips(t *testing.T) {
	b := filled(t, 3, 700)
	live := liveBytes(t, b)
	total := int64(0)
	for _, s := range live {
		total += s.to - s.from
	}
	if r, err := Verify(b.disk, b.cfg.Dir, &chain{}); err != nil || len(r.Problems) > 0 || !r.Clean || r.Blocks != uint64(len(b.acked)) {
		t.Fatalf("%+v, %v", r, err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for n := range 10_000 {
		at := rng.Int64N(total)
		i := 0
		for ; at >= live[i].to-live[i].from; i++ {
			at -= live[i].to - live[i].from
		}
		bit := (live[i].from+at)*8 + rng.Int64N(8)
		b.disk.Flip(live[i].file, bit)
		r, err := Verify(b.disk, b.cfg.Dir, &chain{})
		if err == nil && len(r.Problems)+len(r.Notes) == 0 {
			t.Fatalf("flip %d: bit %d of %s (page %d) was not found", n, bit, live[i].file, bit/8/page.Size)
		}
		b.disk.Flip(live[i].file, bit)
	}
	if r, err := Verify(b.disk, b.cfg.Dir, &chain{}); err != nil || len(r.Problems) > 0 {
		t.Fatalf("after flipping back: %+v, %v", r, err)
	}
}

// TestOldDamage damages a page of an old segment: the log opens, and all blocks
// but those of that page can be read.
func TestOldDamage(t *testing.T) {
	b := filled(t, 4, 700)
	found, _ := list(b.disk, b.cfg.Dir)
	g := newGeometry(page.MinPages)
	b.disk.Flip(join(b.cfg.Dir, found.segments[1].name()), int64(g.dataPage(3))*page.Size*8+999)
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	defer b.log.Close()
	lost, good := 0, uint64(0)
	for at := uint64(0); at < uint64(len(b.acked)); {
		err := b.log.Range(at, uint64(len(b.acked)), func(i uint64, _ Weight, data []byte) bool {
			if !bytes.Equal(data, b.acked[i]) {
				t.Fatalf("block %d", i)
			}
			good++
			return true
		})
		var damage *CorruptError
		if err == nil {
			break
		} else if !errors.As(err, &damage) || damage.First < at || damage.End <= damage.First {
			t.Fatal(err)
		}
		lost += int(damage.End - damage.First)
		if damage.Page != g.dataPage(3) || !strings.Contains(damage.File, found.segments[1].name()) {
			t.Errorf("%+v", damage)
		}
		if _, _, err := b.log.Get(damage.First); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Get of a lost block: %v", err)
		}
		at = damage.End
	}
	if lost == 0 || lost > 60 || good+uint64(lost) != uint64(len(b.acked)) {
		t.Errorf("%d lost, %d good of %d", lost, good, len(b.acked))
	}
}

// TestTailDamage damages a committed page of the newest segment: the log opens
// up to there, and a copy is kept from which the rest can be read.
func TestTailDamage(t *testing.T) {
	for seed := range uint64(20) {
		b := newBench(t, seed, 60*page.MinPages*page.Size)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		// The last commit lies behind the damage: else nobody could tell it
		// from one that was never finished.
		var before segment
		number := 0
		for len(b.acked) < 700 || b.log.w.open.number < 5 || number < 3 || before != b.log.w.seg {
			before, number = b.log.w.seg, b.log.w.open.number
			if err := b.step(); err != nil {
				t.Fatal(err)
			}
		}
		seg := b.log.w.seg
		b.log.Abort()
		b.disk.Kill()
		g := newGeometry(page.MinPages)
		b.disk.Flip(join(b.cfg.Dir, seg.name()), int64(g.dataPage(2))*page.Size*8+5000)
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		length := b.log.Length()
		names := b.log.Recovery().Damaged
		if len(names) != 1 || length < seg.first || length >= uint64(len(b.acked)) {
			t.Fatalf("seed %d: %v, %d blocks", seed, names, length)
		}
		seen := map[uint64]bool{}
		if err := b.log.Salvage(names[0], func(i uint64, _ Weight, data []byte) bool {
			if !bytes.Equal(data, b.acked[i]) {
				t.Fatalf("seed %d: salvaged block %d is wrong", seed, i)
			}
			seen[i] = true
			return true
		}); err != nil {
			t.Fatal(err)
		}
		missing := 0
		for i := length; i < uint64(len(b.acked)); i++ {
			if !seen[i] {
				missing++
			}
		}
		if missing > 120 {
			t.Errorf("seed %d: %d blocks of %d behind the cut are missing", seed, missing, uint64(len(b.acked))-length)
		}
		if err := b.log.RemoveDamaged(names[0]); err != nil {
			t.Fatal(err)
		}
		b.acked = b.acked[:length]
		for range 30 { // the log goes on and survives another crash
			if err := b.step(); err != nil {
				t.Fatal(err)
			}
		}
		b.log.Abort()
		b.disk.PowerOff()
		b.disk.Reboot()
		if err := b.open(); err != nil {
			t.Fatal(err)
		}
		if err := b.check(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if d := b.log.Recovery().Damaged; len(d) > 0 {
			t.Fatalf("seed %d: cut again: %v", seed, d)
		}
		b.log.Close()
	}
}

// TestMend damages heads and feet of old segments and has them rewritten.
func TestMend(t *testing.T) {
	b := filled(t, 5, 700)
	found, _ := list(b.disk, b.cfg.Dir)
	g := newGeometry(page.MinPages)
	b.disk.Flip(join(b.cfg.Dir, found.segments[1].name()), 700)
	b.disk.Flip(join(b.cfg.Dir, found.segments[2].name()), int64(g.footerPage())*page.Size*8+700)
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	if err := b.check(); err != nil {
		t.Fatalf("blocks with damaged heads and feet: %v", err)
	}
	done, err := b.log.Mend(func() Owner { return &chain{} })
	if err != nil || len(done) != 2 {
		t.Fatalf("%v, %v", done, err)
	}
	b.log.Close()
	if r, err := Verify(b.disk, b.cfg.Dir, &chain{}); err != nil || len(r.Problems) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
}
