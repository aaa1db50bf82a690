package feed

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/feed/nodes"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

// VerifyConfig says what to verify.
type VerifyConfig struct {
	FS   durable.FS
	Dir  string
	Name string // of the offer
	// Seen, if not nil, is called with the encoding of each block.
	Seen func(block.Encoding)
	// Devices are public device keys, of which any may have signed; none leaves
	// signatures unchecked.
	Devices []ed25519.PublicKey
}

// VerifyReport is what [Verify] found.
type VerifyReport struct {
	storage.Report
	TreeHash merkle.Hash
	// Signatures of the device at closed segments that were checked.
	Signatures int
	// Unsigned segments were closed while nothing could be signed.
	Unsigned int
	// Malformed are blocks that are as they were appended, but of no encoding.
	Malformed uint64
	// Known are problems for which there is a gap entry in the log.
	Known []storage.Problem
}

// checker recomputes the tree and compares it with what was kept of it.
type checker struct {
	forest
	cfg *VerifyConfig
	out VerifyReport

	first     uint64 // where the running segment begins
	malformed uint64 // in it
}

// Restore implements [storage.Owner]. A segment may be replayed twice.
func (c *checker) Restore(first uint64, state, summary []byte, at uint64) error {
	if first != c.first {
		c.out.Malformed += c.malformed
	}
	c.first, c.malformed = first, 0
	return c.forest.Restore(first, state, summary, at)
}

// Replay implements [storage.Owner].
func (c *checker) Replay(i uint64, data []byte) error {
	enc, ok := block.Guess(data)
	if ok {
		_, _, err := enc.Parse(data)
		ok = err == nil
	}
	if !ok {
		c.malformed++
	} else if c.cfg.Seen != nil {
		c.cfg.Seen(enc)
	}
	return c.forest.Replay(i, data)
}

// Check implements [storage.Checker].
func (c *checker) Check(summary []byte, closed bool) error {
	end := c.tree.Length()
	kept, sig, err := nodes.ParseTiles(summary, c.tiles.First(), end)
	if err != nil {
		return err
	}
	if err := kept.Check(&c.tiles); err != nil {
		return err
	}
	switch {
	case !closed && len(sig) > 0:
		return fmt.Errorf("%w: bytes behind the kept nodes", storage.ErrCorrupt)
	case closed && len(sig) == 0:
		c.out.Unsigned++
	case closed && len(c.cfg.Devices) > 0:
		message := SegmentSignable(c.cfg.Name, c.tree.Hash(), end)
		if !slices.ContainsFunc(c.cfg.Devices, func(k ed25519.PublicKey) bool { return ed25519.Verify(k, message, sig) }) {
			return fmt.Errorf("%w: the device's signature", storage.ErrCorrupt)
		}
		c.out.Signatures++
	}
	return nil
}

// Verify reads every live byte of a log and checks sums, padding, links, every
// hash, the kept nodes, the device's signatures and the small files. It changes
// nothing; what it cannot read because of the file system is its error.
func Verify(cfg VerifyConfig) (*VerifyReport, error) {
	c := &checker{cfg: &cfg}
	report, err := storage.Verify(cfg.FS, cfg.Dir, c)
	if report != nil {
		c.out.Report = *report
	}
	if err != nil {
		return &c.out, err
	}
	c.out.TreeHash = c.tree.Hash()
	c.out.Malformed += c.malformed
	var lost lostRanges
	if err := lost.load(cfg.FS, cfg.Dir); err != nil {
		return &c.out, err
	}
	c.out.Problems = slices.DeleteFunc(c.out.Problems, func(p storage.Problem) bool {
		known := p.End > p.First && lost.covers(storage.Gap{First: p.First, End: p.End})
		if known {
			c.out.Known = append(c.out.Known, p)
		}
		return known
	})
	for name, parse := range map[string]func([]byte) error{
		pinsName: func(b []byte) error { _, err := parsePins(b); return err },
		lostName: func(b []byte) error { _, err := parseLost(b); return err },
	} {
		file := filepath.Join(cfg.Dir, name)
		b, err := durable.ReadFile(cfg.FS, file, 1<<20)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = parse(b)
		}
		if err != nil {
			c.out.Problems = append(c.out.Problems, storage.Problem{File: file, Page: -1, What: err.Error()})
		}
	}
	return &c.out, nil
}
