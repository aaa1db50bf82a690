// Package db is a small database for what changes rarely and must be changed as
// one: keys, sales, payments, cursors. It is bbolt with a checksum on every
// value, since bbolt checks only its two meta pages. Readings never go here.
package db

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"dazaar-edge/storage/durable"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// DB is an open database. Safe for concurrent use.
type DB struct {
	db   *bbolt.DB
	name string
}

// Tx is a transaction. It is valid inside View or Update only.
type Tx struct {
	tx   *bbolt.Tx
	name string
}

// Open opens or makes the database file name, which never grows above maxSize
// bytes. It fails with [durable.ErrLocked] if another process has it open.
func Open(name string, maxSize int64, readOnly bool) (db *DB, err error) {
	options := &bbolt.Options{
		Timeout: lockTimeout(readOnly), FreelistType: bbolt.FreelistMapType, PageSize: pageSize, ReadOnly: readOnly, MaxSize: int(maxSize),
	}
	err = guard(name, func() error {
		if !readOnly {
			if err := makeDB(name, options); err != nil {
				return fmt.Errorf("%s: %w", name, durable.Classify(err))
			}
		}
		b, err := bbolt.Open(name, 0o600, options)
		if errors.Is(err, bolterrors.ErrTimeout) {
			err = durable.ErrLocked
		} else if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrChecksum) || errors.Is(err, bolterrors.ErrVersionMismatch) {
			err = fmt.Errorf("%w: %w", durable.ErrCorrupt, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, durable.Classify(err))
		}
		db = &DB{b, name}
		return nil
	})
	return db, err
}

// Aside puts a database file that is damaged aside, and returns its new name; "" if it can
// be opened, or is not there.
func Aside(name string, maxSize int64) (kept string, err error) {
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	d, err := Open(name, maxSize, false)
	if err == nil {
		return "", d.Close()
	}
	if !errors.Is(err, durable.ErrCorrupt) {
		return "", err
	}
	kept = fmt.Sprintf("%s.damaged-%d", name, time.Now().Unix())
	if err := os.Rename(name, kept); err != nil {
		return "", err
	}
	return kept, durable.OS().SyncDir(filepath.Dir(name))
}

// lockTimeout is how long another process is waited for: who only reads is soon
// done, who writes stays.
func lockTimeout(readOnly bool) time.Duration {
	if readOnly {
		return 100 * time.Millisecond
	}
	return 2 * time.Second
}

// makeDB makes the file if there is none, whole or not at all: bbolt writes its
// first pages in place, and would not open what a power cut leaves of them.
func makeDB(name string, options *bbolt.Options) error {
	if _, err := os.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	temp := name + durable.TempSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := bbolt.Open(temp, 0o600, options)
	if err != nil {
		return err
	}
	if err := b.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return err
	}
	return durable.OS().SyncDir(filepath.Dir(name))
}

// Close frees the file.
func (d *DB) Close() error { return d.db.Close() }

// guard turns what bbolt does on a damaged file, a panic or a fault in its
// mapping, into an error.
func guard(name string, f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: %v", durable.ErrCorrupt, name, p)
		}
	}()
	return f()
}

// View runs f in a transaction that reads.
func (d *DB) View(f func(*Tx) error) error {
	return guard(d.name, func() error {
		return d.db.View(func(tx *bbolt.Tx) error { return f(&Tx{tx, d.name}) })
	})
}

// Update runs f in a transaction that is durable as one when Update returns nil,
// and undone when f or the disk fails.
func (d *DB) Update(f func(*Tx) error) error {
	return guard(d.name, func() error {
		return durable.Classify(d.db.Update(func(tx *bbolt.Tx) error { return f(&Tx{tx, d.name}) }))
	})
}

const pageSize = 4096

// checksum covers bucket, key and value, so that a value in the wrong place is
// found too.
func checksum(bucket string, key, value []byte) uint32 {
	sum := crc32.Checksum([]byte(bucket), crc32.MakeTable(crc32.Castagnoli))
	sum = crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), key)
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), value)
}

func (t *Tx) check(bucket string, key, stored []byte) ([]byte, error) {
	n := len(stored) - 4
	if n < 0 || binary.LittleEndian.Uint32(stored[n:]) != checksum(bucket, key, stored[:n]) {
		return nil, fmt.Errorf("%w: %s: value of %q in %q", durable.ErrCorrupt, t.name, key, bucket)
	}
	return bytes.Clone(stored[:n]), nil
}

// Get returns a value; nil if there is none. It wraps [durable.ErrCorrupt] if the value
// is damaged.
func (t *Tx) Get(bucket string, key []byte) ([]byte, error) {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil, nil
	}
	stored := b.Get(key)
	if stored == nil {
		return nil, nil
	}
	return t.check(bucket, key, stored)
}

// Put sets a value.
func (t *Tx) Put(bucket string, key, value []byte) error {
	b, err := t.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	return b.Put(key, binary.LittleEndian.AppendUint32(bytes.Clone(value), checksum(bucket, key, value)))
}

// Delete removes a value, if there is one.
func (t *Tx) Delete(bucket string, key []byte) error {
	if b := t.tx.Bucket([]byte(bucket)); b != nil {
		return b.Delete(key)
	}
	return nil
}

// Each calls f for every value of a bucket in order of the keys until it
// returns false. A damaged value is passed with its error.
func (t *Tx) Each(bucket string, f func(key, value []byte, err error) bool) {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return
	}
	c := b.Cursor()
	for k, stored := c.First(); k != nil; k, stored = c.Next() {
		value, err := t.check(bucket, k, stored)
		if !f(bytes.Clone(k), value, err) {
			return
		}
	}
}

// Buckets returns the names of all buckets.
func (t *Tx) Buckets() (names []string) {
	_ = t.tx.ForEach(func(name []byte, _ *bbolt.Bucket) error { // f never fails
		names = append(names, string(name))
		return nil
	})
	return names
}

// Verify checks every page and value and reports what is wrong.
func (d *DB) Verify(report func(problem string)) error {
	return d.View(func(t *Tx) error {
		for err := range t.tx.Check() {
			report(err.Error())
		}
		for _, bucket := range t.Buckets() {
			t.Each(bucket, func(_, _ []byte, err error) bool {
				if err != nil {
					report(err.Error())
				}
				return true
			})
		}
		return nil
	})
}
