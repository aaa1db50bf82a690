package feed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"dazaar-edge/feed/block"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

// salvageName is the file that says where the log was cut while blocks from
// behind the cut are being appended again.
const salvageName = storage.OwnerPrefix + "salvage"

// salvage appends the blocks behind a cut, as far as they can be read, as
// recovered entries, and gap entries for the rest. The copies that Open set
// aside are removed when that is durable. It runs before the committer, and
// goes on where it was when the power went.
func (l *Log) salvage(names []string) error {
	if len(names) == 0 { // a note of a salvage that was done
		err := l.cfg.FS.Remove(filepath.Join(l.cfg.Dir, salvageName))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	names = slices.Sorted(slices.Values(names)) // by segment
	cut, err := l.salvageCut()
	if err != nil {
		return err
	}
	s := &salvager{l: l, next: cut}
	if err := s.resume(cut); err != nil {
		return err
	}
	for _, name := range names {
		err := l.st.Salvage(name, func(i uint64, _ storage.Weight, data []byte) bool {
			s.block(i, data)
			return s.err == nil
		})
		if err = errors.Join(err, s.err); err == nil {
			err = l.st.Commit()
		}
		if err == nil {
			err = l.st.RemoveDamaged(name)
		}
		if err != nil {
			return err
		}
	}
	l.start.Recovered = s.count
	l.log.Warn("blocks of a damaged tail were appended again", "log", l.cfg.Dir, "from", cut, "count", s.count)
	if err := l.cfg.FS.Remove(filepath.Join(l.cfg.Dir, salvageName)); err != nil {
		return err
	}
	return l.cfg.FS.SyncDir(l.cfg.Dir)
}

// salvageCut returns the length of the log when it was cut, and notes it if
// this is the first try.
func (l *Log) salvageCut() (cut uint64, err error) {
	name := filepath.Join(l.cfg.Dir, salvageName)
	b, err := durable.ReadFile(l.cfg.FS, name, 1<<10)
	if err == nil {
		if b, err = unsum(b); err == nil && json.Unmarshal(b, &cut) == nil && cut <= l.st.Length() {
			return cut, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	cut = l.st.Length()
	if b, err = json.Marshal(cut); err != nil {
		return 0, err
	}
	return cut, durable.WriteFile(l.cfg.FS, name, sum(b))
}

// salvager brings lost blocks back in order of their indexes.
type salvager struct {
	l     *Log
	next  uint64 // original index that comes next
	count int
	err   error
}

// resume finds what an earlier try made durable behind the cut.
func (s *salvager) resume(cut uint64) error {
	err := s.l.st.Range(cut, s.l.st.Length(), func(_ uint64, _ storage.Weight, data []byte) bool {
		_, n, err := s.l.cfg.Encoding.Parse(data)
		if err != nil || n == nil {
			return true
		}
		switch {
		case n.Kind == block.Recovered && n.Part == n.Parts-1:
			s.next = max(s.next, n.Index+1)
			s.count++
		case n.Kind == block.GapEntry && n.Lost != nil && n.Lost.First >= cut:
			s.next = max(s.next, n.Lost.First+n.Lost.Count)
		}
		return true
	})
	if errors.Is(err, storage.ErrCorrupt) {
		return nil // some are appended twice
	}
	return err
}

func (s *salvager) block(i uint64, data []byte) {
	if i < s.next {
		return
	}
	if i > s.next {
		s.err = s.l.appendNow(s.l.gapOf(s.next, i))
	}
	if s.err == nil {
		s.err = s.l.appendNow(s.l.recovered(i, 0, data)...)
	}
	if s.err != nil {
		s.err = fmt.Errorf("recovering block %d: %w", i, s.err)
		return
	}
	s.count++
	s.next = i + 1
}
