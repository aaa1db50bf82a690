// Package durable is the file system as a program sees it that must not lose
// what it acknowledged: the few calls that matter for durability, each with
// what it promises, as an interface, so that tests can put a simulated disk
// (package faultfs) in its place.
//
// # Promises
//
//   - After [File.Datasync] returned nil, everything written to the file before,
//     and the file's size, survives a power cut.
//   - After [File.Datasync] failed, nothing is known about what was written since
//     the last success: the kernel may have marked the pages clean. The caller
//     writes them again, elsewhere, before it syncs again.
//   - After [FS.SyncDir] returned nil, files created, renamed and removed in that
//     directory before stay so.
//   - [FS.Rename] replaces its target at once or not at all, but lasts only from
//     the next SyncDir on.
//
// # Small files
//
// [WriteFile] replaces a small file: temporary file, data, sync, rename, sync of
// the directory. A reader finds the old or the new content, never a mixture.
package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// File is an open file. Reads and writes at different places may run at the
// same time.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Datasync makes the data and the size durable.
	Datasync() error
	// Size returns the length in bytes.
	Size() (int64, error)
	// Forget drops clean cached pages, so that the next read shows what the
	// device really holds. It does nothing where that cannot be asked for.
	Forget() error
}

// FS is a directory tree. Names are slash-separated paths.
type FS interface {
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// OpenRead opens an existing file for reading.
	OpenRead(name string) (File, error)
	// Create makes an empty file, truncating one that exists.
	Create(name string) (File, error)
	Rename(from, to string) error
	Remove(name string) error
	// ReadDir returns the names of the files in dir, sorted.
	ReadDir(dir string) ([]string, error)
	// Mkdir makes a directory, and its parents, durably.
	Mkdir(dir string) error
	SyncDir(dir string) error
	// Lock takes the exclusive lock of a file, which it makes if need be. It
	// fails with ErrLocked at once if another process holds it; the kernel
	// frees it when the process ends.
	Lock(name string) (io.Closer, error)
}

// OS returns the real file system.
func OS() FS { return osFS{} }

type osFS struct{}

type osFile struct{ f *os.File }

func (f osFile) ReadAt(b []byte, off int64) (int, error)  { return f.f.ReadAt(b, off) }
func (f osFile) WriteAt(b []byte, off int64) (int, error) { return f.f.WriteAt(b, off) }
func (f osFile) Close() error                             { return f.f.Close() }

func (f osFile) Datasync() error {
	for {
		err := unix.Fdatasync(int(f.f.Fd()))
		if !errors.Is(err, unix.EINTR) {
			return wrap("fdatasync", f.f.Name(), err)
		}
	}
}

func (f osFile) Size() (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f osFile) Forget() error {
	return wrap("fadvise", f.f.Name(), unix.Fadvise(int(f.f.Fd()), 0, 0, unix.FADV_DONTNEED))
}

func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Open(name string) (File, error)     { return open(name, os.O_RDWR) }
func (osFS) OpenRead(name string) (File, error) { return open(name, os.O_RDONLY) }
func (osFS) Create(name string) (File, error) {
	return open(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}
func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(name string) error     { return os.Remove(name) }

func (osFS) ReadDir(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (o osFS) Mkdir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := o.Mkdir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return o.SyncDir(parent)
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrLocked, name)
		}
		return nil, wrap("flock", name, err)
	}
	return f, nil
}

// TempSuffix ends the names of files that WriteFile has not finished.
const TempSuffix = ".tmp"

// WriteFile replaces the small file name by data.
func WriteFile(fsys FS, name string, data []byte) error {
	temp := name + TempSuffix
	f, err := fsys.Create(temp)
	if err != nil {
		return err
	}
	if _, err = f.WriteAt(data, 0); err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fsys.Remove(temp))
	}
	if err := fsys.Rename(temp, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}

// ReadFile returns a file of at most limit bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.OpenRead(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s: %d bytes, at most %d expected", name, size, limit)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return b, nil
}
