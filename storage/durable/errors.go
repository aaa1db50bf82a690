package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errors a caller can act on. They are wrapped with the file and the remedy.
var (
	// ErrFull says that the disk is full: nothing acknowledged is lost, and
	// what failed works again as soon as there is space.
	ErrFull = errors.New("storage: disk full")
	// ErrReadOnly says that the file system does not take writes.
	ErrReadOnly = errors.New("storage: read-only file system")
	// ErrNewer says that a newer program wrote the files.
	ErrNewer = errors.New("storage: written by a newer version of this program")
	// ErrLocked says that another process has the files open.
	ErrLocked = errors.New("storage: locked by another process")
	// ErrCorrupt says that bytes on the disk are not what was written.
	ErrCorrupt = errors.New("storage: corrupt")
	// ErrUnreadable says that the device failed to read. It is transient or
	// not; unlike ErrCorrupt it says nothing of what was written.
	ErrUnreadable = errors.New("storage: the device cannot read")
)

// Classify adds the sentinel a caller can act on to an error of the file
// system.
func Classify(err error) error {
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
