package storage

import (
	"fmt"
	"io"
	"log/slog"

	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/page"
)

// Owner derives something from the blocks of a log in order, for example a
// tree. The log calls it only inside Open, Append, Commit, Close and Drop, one
// call at a time.
type Owner interface {
	// Restore sets the state to that before block first, from what State
	// returned there (nil at the beginning of a log). summary is what Summary
	// returned for the blocks since first in an open segment, else nil.
	Restore(first uint64, state, summary []byte, at uint64) error
	// Replay adds a block during recovery.
	Replay(block uint64, data []byte) error
	// Keys returns the keys of a block during recovery (see Record).
	Keys(block uint64, data []byte) [2]uint64
	// Digest returns the digest of all blocks so far.
	Digest() [32]byte
	// State returns at most 3 KiB that Restore needs.
	State() []byte
	// Summary returns at most room bytes about the blocks since the segment
	// began; closed tells that the segment ends here.
	Summary(room int, closed bool) []byte
	// Started says that a segment begins at this block.
	Started(first uint64)
	// Committed says that all blocks so far are durable.
	Committed()
	// RolledBack says that the blocks since the last Committed are gone.
	RolledBack()
	// Dropping says that blocks before first are about to be dropped.
	Dropping(first uint64)
}

// Weight is what a block costs a buyer besides its bytes. It is fixed when the
// block is appended.
type Weight = page.Weight

// Record is a block to append.
type Record struct {
	Data   []byte
	Weight Weight
	// Keys are two numbers to search by, see [Log.FindKey]. The log keeps the
	// running maximum of each.
	Keys [2]uint64
}

// Config says how to open a log. FS, Dir, MaxSize and Owner are required.
type Config struct {
	FS      durable.FS
	Dir     string
	MaxSize int64 // bytes that all files of the log may take
	// SegmentSize is used for a new log, in bytes; 0 chooses one: 4 MiB, less
	// for a small MaxSize. It is a multiple of 4 KiB, at least 64 KiB.
	SegmentSize int64
	Owner       Owner
	// Now returns the wall time in ms, 0 while it is unknown. nil: unknown.
	Now func() uint64
	// Rand is the source of the log's id; nil is crypto/rand.
	Rand io.Reader
	// Log receives what happens to the files; nil discards.
	Log *slog.Logger
}

// MinSegments is how many segments a log needs at least: the open one, one
// behind it, a spare one, and room to set a damaged one aside.
const MinSegments = 4

func (c *Config) segmentPages() (int, error) {
	size := c.SegmentSize
	if size == 0 {
		size = min(DefaultSegmentSize, c.MaxSize/8/(16*page.Size)*(16*page.Size))
		size = max(size, page.MinPages*page.Size)
	}
	if size%page.Size != 0 || size < page.MinPages*page.Size || size > page.MaxPages*page.Size {
		return 0, fmt.Errorf("storage: segment size %d: must be a multiple of %d between %d and %d", size, page.Size, page.MinPages*page.Size, page.MaxPages*page.Size)
	}
	return int(size / page.Size), nil
}
