package storage

import (
	"errors"
	"fmt"

	"dazaar-edge/storage/durable"
)

// Errors a caller can act on. They are wrapped with the file and the remedy.
var (
	ErrFull       = durable.ErrFull
	ErrReadOnly   = durable.ErrReadOnly
	ErrNewer      = durable.ErrNewer
	ErrLocked     = durable.ErrLocked
	ErrCorrupt    = durable.ErrCorrupt
	ErrUnreadable = durable.ErrUnreadable
	// ErrDropped says that a block was dropped by retention.
	ErrDropped = errors.New("storage: block was dropped by retention")
	// ErrRange says that a block does not exist yet.
	ErrRange = errors.New("storage: no such block")
	// ErrTooLarge says that a block is larger than a log takes.
	ErrTooLarge = errors.New("storage: block too large")
	// ErrClosed says that the log was closed.
	ErrClosed = errors.New("storage: log is closed")
)

// CorruptError names what is damaged: blocks [First, End) cannot be read.
type CorruptError struct {
	File       string
	Page       int // page within the file, from 0
	First, End uint64
	Why        string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: page %d: %s; blocks %d to %d are lost (see edge verify)", e.File, e.Page, e.Why, e.First, max(e.End, 1)-1)
}

// Is makes a CorruptError an [ErrCorrupt].
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
