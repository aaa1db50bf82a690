package storage

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// Salvage reads a copy that Open set aside (see [Recovery]) and calls f for
// each block that can still be read, until f returns false.
func (l *Log) Salvage(name string, f func(block uint64, w Weight, data []byte) bool) error {
	file, err := l.cfg.FS.OpenRead(join(l.cfg.Dir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	seg, ok := parseSegmentName(strings.TrimSuffix(name, damagedSuffix))
	if !ok {
		return fmt.Errorf("%w: %s is no copy of a segment", ErrCorrupt, name)
	}
	return salvage(file, l.geo, seg.seq, f)
}

// RemoveDamaged removes a copy that was set aside.
func (l *Log) RemoveDamaged(name string) error {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if err := l.cfg.FS.Remove(join(l.cfg.Dir, name)); err != nil {
		return err
	}
	l.recovery.Damaged = slices.DeleteFunc(l.recovery.Damaged, func(s string) bool { return s == name })
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

// salvage walks every run of readable pages of a segment, up to the newest tail
// image. What cannot be read is left out.
func salvage(f durable.File, g geometry, seq uint64, fn func(uint64, Weight, []byte) bool) error {
	b, _, err := page.ReadEach(f, 0, g.pages)
	if err != nil {
		return err
	}
	images := make([][]byte, g.dataPages())
	for n := range images {
		images[n] = b[g.dataOff(n):][:page.Size]
	}
	sc := scan{f: bytesAt(b), g: g, seg: segment{seq: seq}}
	if err := sc.readSlots(); err != nil {
		return err
	}
	if best := sc.newest(); best != noSlot && sc.slots[best].Number < len(images) {
		images = images[:sc.slots[best].Number+1]
		for _, i := range []int{1 - best, best} { // the newer one last
			if n := sc.slots[i].Number; sc.valid[i] && n < len(images) {
				if home, err := page.Parse(images[n], seq); err != nil || home.Commit <= sc.slots[i].Commit || n == len(images)-1 {
					images[n] = sc.images[i]
				}
			}
		}
	}
	oldest := uint64(0) // pages behind must not be older
	src := func(n int) ([]byte, page.Info, error) {
		info, err := page.Parse(images[n], seq)
		if err == nil && (info.Number != n || info.Commit < oldest) {
			err = fmt.Errorf("%w: page of another commit", ErrCorrupt)
		}
		if err == nil {
			oldest = info.Commit
		}
		return images[n], info, err
	}
	for n := 0; n < len(images); {
		more := true
		_, err := page.Walk(src, n, len(images)-1, func(block uint64, w Weight, data []byte) (bool, error) {
			more = fn(block, w, bytes.Clone(data))
			return more, nil
		})
		var pe *page.Error
		if !more || !errors.As(err, &pe) {
			return nil
		}
		n = max(n+1, pe.Page)
	}
	return nil
}

// bytesAt is a file in memory, for reading.
type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(b).ReadAt(p, off) }
func (bytesAt) WriteAt([]byte, int64) (int, error)        { return 0, fs.ErrPermission }
func (bytesAt) Close() error                              { return nil }
func (bytesAt) Datasync() error                           { return nil }
func (bytesAt) Forget() error                             { return nil }
func (b bytesAt) Size() (int64, error)                    { return int64(len(b)), nil }
