package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"dazaar-edge/storage/durable"
)

// Errors a caller can act on. They are wrapped with the file and the remedy.
var (
	// ErrFull says that the disk is full: nothing acknowledged is lost, and
	// the log goes on as soon as there is space.
	ErrFull = errors.New("storage: disk full")
	// ErrReadOnly says that the file system does not take writes.
	ErrReadOnly = errors.New("storage: read-only file system")
	// ErrNewer says that a newer program wrote the files.
	ErrNewer = errors.New("storage: written by a newer version of this program")
	// ErrLocked says that another process has the log open.
	ErrLocked = durable.ErrLocked
	// ErrCorrupt says that bytes on the disk are not what was written.
	ErrCorrupt = errors.New("storage: corrupt")
	// ErrUnreadable says that the device failed to read. It is transient or
	// not; unlike ErrCorrupt it says nothing of what was written.
	ErrUnreadable = errors.New("storage: the device cannot read")
	// ErrDropped says that a block was dropped by retention.
	ErrDropped = errors.New("storage: block was dropped by retention")
	// ErrRange says that a block does not exist yet.
	ErrRange = errors.New("storage: no such block")
	// ErrTooLarge says that a block is larger than a log takes.
	ErrTooLarge = errors.New("storage: block too large")
	// ErrMarksFull says that there is no room for another mark.
	ErrMarksFull = errors.New("storage: no room for another mark")
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

// classify adds the sentinel a caller can act on to an error of the file
// system.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: free space or lower max_size: %w", ErrFull, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: remount it writable or choose another storage.path: %w", ErrReadOnly, err)
	}
	return err
}
