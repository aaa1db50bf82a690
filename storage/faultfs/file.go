package faultfs

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"syscall"
)

// file is a handle. It outlives a rename and a removal of its name, but not a
// power cut.
type file struct {
	d      *Disk
	n      *inode
	name   string
	closed bool // guarded by d.mu
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	switch {
	case f.closed:
		return 0, fs.ErrClosed
	case f.d.off:
		return 0, ErrPower
	case f.d.unread != nil && f.d.unread(f.name, off, len(b)):
		return 0, &fs.PathError{Op: "read", Path: f.name, Err: syscall.EIO}
	case off >= int64(len(f.n.cache)):
		return 0, io.EOF
	}
	n := copy(b, f.n.cache[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	done := 0
	err := f.d.do("write", f.name, func() error {
		if f.closed {
			return fs.ErrClosed
		}
		if err := f.d.reserve(f.n, off+int64(len(b))); err != nil {
			return err
		}
		f.n.write(b, off)
		done = len(b)
		return nil
	})
	if errors.Is(err, io.ErrShortWrite) && len(b) > 0 {
		f.d.mu.Lock()
		defer f.d.mu.Unlock()
		done = f.d.rng.IntN(len(b))
		if f.d.reserve(f.n, off+int64(done)) != nil {
			return 0, err
		}
		f.n.write(b[:done], off)
	}
	return done, err
}

// reserve grows the file to at least size bytes if there is space.
func (d *Disk) reserve(n *inode, size int64) error {
	grow := size - int64(len(n.cache))
	if grow <= 0 {
		return nil
	}
	if d.space > 0 && d.used+grow > d.space {
		return errNoSpace
	}
	n.cache = append(n.cache, make([]byte, grow)...)
	n.resized = true
	d.used += grow
	d.maxUsed = max(d.maxUsed, d.used)
	return nil
}

func (n *inode) write(b []byte, off int64) {
	copy(n.cache[off:], b)
	end := off + int64(len(b))
	for s := off / sectorSize; s*sectorSize < end; s++ {
		version := make([]byte, sectorSize)
		copy(version, n.cache[s*sectorSize:])
		n.dirty[s] = append(n.dirty[s], version)
	}
	for p := off / pageSize; p*pageSize < end; p++ {
		n.pages[p] = true
	}
}

func (f *file) Datasync() error {
	err := f.d.do("datasync", f.name, func() error {
		if f.closed {
			return fs.ErrClosed
		}
		if f.d.lie {
			return nil
		}
		f.d.syncs++
		f.d.written += int64(len(f.n.pages)) * pageSize
		f.n.device = resize(f.n.device, len(f.n.cache))
		for s := range f.n.dirty {
			end := min((s+1)*sectorSize, int64(len(f.n.cache)))
			if s*sectorSize < end {
				copy(f.n.device[s*sectorSize:end], f.n.cache[s*sectorSize:end])
			}
		}
		f.n.clean()
		return nil
	})
	if err != nil && !errors.Is(err, ErrPower) && !errors.Is(err, fs.ErrClosed) {
		f.d.mu.Lock()
		defer f.d.mu.Unlock()
		seen := slices.Clone(f.n.cache)
		f.n.device = resize(f.n.device, len(f.n.cache))
		f.d.settle(f.n)
		f.n.cache = seen
	}
	return err
}

func (f *file) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.off {
		return 0, ErrPower
	}
	return int64(len(f.n.cache)), nil
}

// Forget shows what the device holds, wherever nothing is waiting to be written.
func (f *file) Forget() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.off {
		return ErrPower
	}
	if f.d.lie {
		return nil // the device's own cache answers
	}
	size := len(f.n.cache)
	seen := f.n.cache
	f.n.cache = resize(slices.Clone(f.n.device), size)
	for s := range f.n.dirty {
		if s*sectorSize < int64(size) {
			copy(f.n.cache[s*sectorSize:min((s+1)*sectorSize, int64(size))], seen[s*sectorSize:])
		}
	}
	return nil
}

func (f *file) Close() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}
