package feed

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

// lostName is the file with the ranges of blocks that are known to be lost.
const lostName = storage.OwnerPrefix + "lost"

// maxLost bounds how many ranges are noted; a card with more is done for.
const maxLost = 1000

// CauseDamage is the cause in the gap entry for blocks that cannot be read.
const CauseDamage = "damage"

// lostRanges are the blocks for which a gap entry was made or is on its way.
type lostRanges struct {
	fs   durable.FS
	name string

	mu      sync.Mutex
	ranges  []storage.Gap // there is an entry; guarded by mu, like all below
	waiting []waitingGap  // there will be
}

type waitingGap struct {
	gap    storage.Gap
	ticket *Ticket // nil until it was submitted
}

func (r *lostRanges) load(fsys durable.FS, dir string) error {
	r.fs, r.name = fsys, filepath.Join(dir, lostName)
	b, err := durable.ReadFile(fsys, r.name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO) {
		return nil // damage is met again and noted again
	}
	if err != nil {
		return err
	}
	if r.ranges, err = parseLost(b); err != nil {
		r.ranges = nil // damage is met again and noted again
	}
	return nil
}

// parseLost decodes the file: CRC32C, JSON.
func parseLost(b []byte) (ranges []storage.Gap, err error) {
	if b, err = unsum(b); err == nil {
		err = json.Unmarshal(b, &ranges)
	}
	return ranges, err
}

// sum puts a CRC32C before b, unsum checks it.
func sum(b []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))), b...)
}

func unsum(b []byte) ([]byte, error) {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:], crc32.MakeTable(crc32.Castagnoli)) {
		return nil, fmt.Errorf("%w: checksum", storage.ErrCorrupt)
	}
	return b[4:], nil
}

// all returns the ranges that are known to be lost.
func (r *lostRanges) all() []storage.Gap {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.ranges)
	for _, w := range r.waiting {
		out = append(out, w.gap)
	}
	return out
}

func covers(ranges []storage.Gap, g storage.Gap) bool {
	return slices.ContainsFunc(ranges, func(known storage.Gap) bool { return known.First <= g.First && g.End <= known.End })
}

// covers tells whether there is an entry for a range.
func (r *lostRanges) covers(g storage.Gap) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return covers(r.ranges, g)
}

// claim takes a range that nobody made an entry for, or is making one.
func (r *lostRanges) claim(g storage.Gap) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if covers(r.ranges, g) || len(r.ranges)+len(r.waiting) >= maxLost {
		return false
	}
	for _, w := range r.waiting {
		if covers([]storage.Gap{w.gap}, g) {
			return false
		}
	}
	r.waiting = append(r.waiting, waitingGap{gap: g})
	return true
}

// submitted says that the entry of a claimed range is on its way, or (nil) that
// it cannot be: then the range is noted when it is met again.
func (r *lostRanges) submitted(g storage.Gap, t *Ticket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, w := range r.waiting {
		if w.gap == g && w.ticket == nil {
			r.waiting[i].ticket = t
			if t == nil {
				r.waiting = slices.Delete(r.waiting, i, i+1)
			}
			return
		}
	}
}

// settle takes over the ranges whose entries are durable, forgets dropped ones,
// and saves the rest.
func (r *lostRanges) settle(first uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting) == 0 {
		return nil
	}
	changed := false
	r.waiting = slices.DeleteFunc(r.waiting, func(w waitingGap) bool {
		if w.ticket == nil {
			return false
		}
		select {
		case <-w.ticket.Done():
		default:
			return false
		}
		if w.ticket.err == nil {
			r.ranges = append(r.ranges, w.gap)
			changed = true
		}
		return true
	})
	if !changed {
		return nil
	}
	r.ranges = slices.DeleteFunc(r.ranges, func(g storage.Gap) bool { return g.End <= first })
	b, err := json.Marshal(r.ranges)
	if err != nil {
		return err
	}
	return durable.WriteFile(r.fs, r.name, sum(b))
}

// settleGaps notes which gap entries became durable. If that cannot be saved,
// they are made again after the next start.
func (l *Log) settleGaps() {
	if err := l.lost.settle(l.st.First()); err != nil {
		l.log.Warn("lost ranges are not noted", "log", l.cfg.Dir, "error", err)
	}
}

// noteError makes a gap entry of damage that is met for the first time.
func (l *Log) noteError(err error) {
	var damage *storage.CorruptError
	if errors.As(err, &damage) && damage.End > damage.First {
		l.noteLost(storage.Gap{First: damage.First, End: damage.End}, damage.Error())
	}
}

func (l *Log) noteLost(g storage.Gap, why string) {
	if !l.lost.claim(g) {
		return
	}
	l.log.Error("blocks are lost", "log", l.cfg.Dir, "first", g.First, "end", g.End, "why", why)
	n := l.gapOf(g.First, g.End)
	if length := l.st.Length(); length > l.st.First() {
		// What is sensed already, and comes later, must not stand behind it.
		if last, i, err := l.stampAt(length-1, length); err == nil && i < length {
			n.Stamp = last.Stamp
		}
	}
	b, err := l.cfg.Encoding.Entry(n)
	var t *Ticket
	if err == nil {
		t, err = l.Submit(b)
	}
	l.lost.submitted(g, t)
	if err != nil {
		l.log.Error("no gap entry for lost blocks yet", "log", l.cfg.Dir, "error", err)
	}
}

func (l *Log) gapOf(first, end uint64) *block.Entry {
	return &block.Entry{
		Kind: block.GapEntry, Stamp: l.cfg.Now(), Cause: CauseDamage, Lost: &block.Range{First: first, Count: end - first},
	}
}

// recovered returns the entries for a block that was lost, in parts.
func (l *Log) recovered(index, fork uint64, data []byte) []*block.Entry {
	size := min(block.MaxRecovered, l.st.MaxBlock()*2/3-512) // base64 and the entry's other fields
	parts := max(1, (len(data)+size-1)/size)
	out := make([]*block.Entry, parts)
	for part := range parts {
		out[part] = &block.Entry{
			Kind: block.Recovered, Stamp: l.cfg.Now(), Index: index, Fork: fork, Part: part, Parts: parts,
			Data: data[part*size : min((part+1)*size, len(data))],
		}
	}
	return out
}

// appendNow appends entries without the committer.
func (l *Log) appendNow(entries ...*block.Entry) error {
	for _, n := range entries {
		b, err := l.cfg.Encoding.Entry(n)
		if err != nil {
			return err
		}
		rec := storage.Record{Data: b.Data, Weight: l.queue.last.weigh(b), Keys: keys(l.tree.tree.Length(), b, l.cfg.Encoding)}
		i, err := l.st.Append(rec)
		if err != nil {
			return err
		}
		l.tree.add(merkle.Leaf(i, b.Data))
	}
	return nil
}

// maxReturned bounds how many returned blocks are remembered, and appended, while
// the log is open.
const maxReturned = 1 << 14

// returned are blocks that buyers returned.
type returned struct {
	mu  sync.Mutex
	all map[merkle.Node]bool // guarded by mu
}

// add tells whether a block is new and may be appended.
func (r *returned) add(n merkle.Node) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all[n] || len(r.all) >= maxReturned {
		return false
	}
	if r.all == nil {
		r.all = map[merkle.Node]bool{}
	}
	r.all[n] = true
	return true
}

// Recover appends a block that the log had lost and a buyer returned, with the
// fork it was on, and returns a ticket of the entries. What was appended since
// Open already is not appended again.
func (l *Log) Recover(index, fork uint64, data []byte) (*Ticket, error) {
	if !l.returned.add(merkle.Leaf(index, data)) {
		return l.Submit()
	}
	var blocks []block.Block
	for _, n := range l.recovered(index, fork, data) {
		b, err := l.cfg.Encoding.Entry(n)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, b)
	}
	return l.Submit(blocks...)
}

// Mend does what can be done about damage while the log is open: it rewrites
// heads and feet of segments from what is whole, reads every block, and makes
// gap entries for those that are lost. It says what it did.
func (l *Log) Mend(ctx context.Context) (done []string, err error) {
	if done, err = l.st.Mend(func() storage.Owner {
		return &forest{encoding: l.cfg.Encoding, sign: l.tree.sign, drop: func(uint64) {}}
	}); err != nil {
		return done, err
	}
	before := l.lost.all()
	for at, end := l.st.First(), l.st.Length(); at < end; {
		err := l.Range(at, end, func(uint64, storage.Weight, []byte) bool { return true })
		var damage *storage.CorruptError
		if errors.As(err, &damage) {
			at = max(damage.End, at+1)
			continue
		} else if err != nil {
			return done, err
		}
		break
	}
	if err := l.Flush(ctx); err != nil {
		return done, err
	}
	for _, g := range l.lost.all() {
		if !covers(before, g) {
			done = append(done, fmt.Sprintf("blocks %d to %d are lost: marked by a gap entry", g.First, g.End-1))
		}
	}
	return done, nil
}
