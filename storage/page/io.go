package page

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"dazaar-edge/storage/durable"
)

// readTries is how often a read that fails is tried.
const readTries = 3

// Read reads n whole pages at page number at.
func Read(f io.ReaderAt, at, n int) ([]byte, error) {
	b := make([]byte, n*Size)
	return b, ReadInto(f, at, b)
}

// ReadInto fills b from page number at on. A file that ends early is
// [durable.ErrCorrupt]; what the device cannot read is both that, for those who
// go on without it, and [durable.ErrUnreadable], for those who must not.
func ReadInto(f io.ReaderAt, at int, b []byte) (err error) {
	for range readTries {
		var n int
		n, err = f.ReadAt(b, int64(at)*Size)
		if n == len(b) {
			return nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: file ends early", durable.ErrCorrupt)
		}
		if !errors.Is(err, syscall.EIO) {
			return err
		}
	}
	return fmt.Errorf("%w: %w: %w", durable.ErrCorrupt, durable.ErrUnreadable, err)
}

// ReadEach is Read page by page: those that cannot be read are zeros. It
// returns how many those are.
func ReadEach(f io.ReaderAt, at, n int) (b []byte, bad int, err error) {
	b, err = Read(f, at, n)
	if err == nil || !errors.Is(err, durable.ErrCorrupt) {
		return b, 0, err
	}
	for i := range n {
		one := b[i*Size:][:Size]
		if err := ReadInto(f, at+i, one); err != nil {
			if !errors.Is(err, durable.ErrCorrupt) {
				return b, bad, err
			}
			clear(one)
			bad++
		}
	}
	return b, bad, nil
}

// Write writes all of b at off.
func Write(f durable.File, b []byte, off int64) error {
	n, err := f.WriteAt(b, off)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
