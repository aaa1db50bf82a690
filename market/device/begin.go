package device

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/storage"
)

// begin says which start this is and what is missing since the last block.
func (p *packer) begin() error {
	now := p.d.cfg.Clock.Now()
	last, boot, err := p.last()
	if err != nil {
		return err
	}
	if notes := p.d.cfg.Feed.Note(); last != nil && len(notes) > 0 && len(notes)%noteSize == 0 {
		last, boot = p.missed(notes, now.Boot)
	}
	if last == nil || boot != now.Boot {
		p.add(block.Entry{Kind: block.Boot, Stamp: stamp(now)})
	}
	if last != nil {
		cause := CausePower
		if p.d.cfg.Feed.Recovery().Clean {
			cause = CauseStopped
		}
		to := now.Mono
		gap := block.Entry{Kind: block.GapEntry, Stamp: stamp(now), To: &to, Cause: cause}
		if boot == now.Boot {
			from := last.Mono
			gap.From = &from
		}
		p.add(gap)
	}
	p.clock(now)
	return nil
}

// noteSize is what leave keeps of a run: boot u32, from and to as ns u64 of its monotonic
// time, little endian; maxNotes of how many.
const (
	noteSize = 20
	maxNotes = 6
)

// leave notes what the card did not take, for the next start to say.
func (p *packer) leave() error {
	lost := p.lost
	for _, f := range p.flying {
		lost = lost.join(f.lost).join(cover(f.parcels))
	}
	notes := p.notes
	if lost = lost.join(cover(p.waiting)); lost != nil {
		lost = lost.join(&span{lost.from, p.newest})
		notes = binary.LittleEndian.AppendUint32(slices.Clone(notes), p.d.cfg.Clock.Now().Boot)
		notes = binary.LittleEndian.AppendUint64(notes, uint64(lost.from))
		notes = binary.LittleEndian.AppendUint64(notes, uint64(lost.to))
	}
	if len(notes) == 0 {
		return nil
	}
	// A card that is full for more starts than that keeps the newest.
	return p.d.cfg.Feed.SetNote(notes[max(0, len(notes)-maxNotes*noteSize):])
}

// cover returns from when to when parcels have readings; nil if they have none.
func cover(parcels []parcel) (s *span) {
	for _, x := range parcels {
		if x.Entry == "" {
			s = s.join(&span{x.Stamp.Mono, x.Stamp.Mono})
		}
	}
	return s
}

// missed says what earlier runs left notes of, and returns where that ends. The notes go
// when what is said is durable.
func (p *packer) missed(notes []byte, now uint32) (last *block.Stamp, boot uint32) {
	p.notes = slices.Clone(notes)
	for note := range slices.Chunk(p.notes, noteSize) {
		boot = binary.LittleEndian.Uint32(note)
		from, to := time.Duration(binary.LittleEndian.Uint64(note[4:])), time.Duration(binary.LittleEndian.Uint64(note[12:]))
		last = &block.Stamp{Boot: boot, Mono: to}
		p.newest = 0 // of an earlier run
		p.add(block.Entry{Kind: block.GapEntry, Stamp: *last, From: &from, To: &to, Cause: CauseStorage})
	}
	if boot != now {
		p.newest = 0
	}
	if n := len(p.waiting); n > 0 {
		p.acks++
		p.waiting[n-1].done = append(p.waiting[n-1].done, func(err error) {
			if err == nil {
				p.notes = nil
				p.d.cfg.Feed.SetNote(nil) //nolint:errcheck // removing does not fail
			}
		})
	}
	return last, boot
}

// last returns the stamp of the newest readable block that a device made, not a
// recovery; nil if there is none.
func (p *packer) last() (*block.Stamp, uint32, error) {
	h := p.d.cfg.Feed.Head()
	for i := h.Length; i > h.First; i-- {
		data, _, err := p.d.cfg.Feed.Get(i - 1)
		if errors.Is(err, storage.ErrCorrupt) {
			continue
		} else if err != nil {
			return nil, 0, err
		}
		pack, n, err := p.d.cfg.Encoding.Parse(data)
		switch {
		case err != nil, n != nil && (n.Kind == block.Recovered || n.Lost != nil):
		case pack != nil:
			return &pack.Stamp, pack.Stamp.Boot, nil
		default:
			return &n.Stamp, n.Stamp.Boot, nil
		}
	}
	return nil, 0, nil
}
