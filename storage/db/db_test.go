package db

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"dazaar-edge/storage/durable"
)

func openDB(t *testing.T, name string) *DB {
	t.Helper()
	db, err := Open(name, 1<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func TestDB(t *testing.T) {
	name := filepath.Join(t.TempDir(), "edge.db")
	db := openDB(t, name)
	failed := errors.New("undo")
	err := db.Update(func(tx *Tx) error { return errors.Join(tx.Put("a", []byte("k"), []byte("v")), failed) })
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := db.Update(func(tx *Tx) error { return tx.Put("a", fmt.Append(nil, "key", i), fmt.Append(nil, "value", i)) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(name, 1<<20, false); !errors.Is(err, durable.ErrLocked) {
		t.Error("opened twice:", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openDB(t, name)
	defer db.Close()
	n := 0
	if err := db.View(func(tx *Tx) error {
		tx.Each("a", func(k, v []byte, err error) bool { n++; return err == nil })
		v, err := tx.Get("a", []byte("key7"))
		if err != nil || string(v) != "value7" {
			t.Errorf("%q, %v", v, err)
		}
		if v, err := tx.Get("a", []byte("k")); v != nil || err != nil {
			t.Errorf("undone value is there: %q, %v", v, err)
		}
		v, err = tx.Get("none", []byte("k"))
		if v != nil {
			t.Error("value of no bucket")
		}
		return err
	}); err != nil || n != 100 {
		t.Error(n, err)
	}
	if err := db.Update(func(tx *Tx) error { return tx.Delete("a", []byte("key7")) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Verify(func(p string) { t.Error(p) }); err != nil {
		t.Error(err)
	}
	full := db.Update(func(tx *Tx) error { return tx.Put("big", []byte("k"), make([]byte, 2<<20)) })
	if full == nil {
		t.Error("the database grew above its size")
	}
}

// TestDBFlips flips bits in the values as they lie in the file: each is found,
// when it is read and by Verify.
func TestDBFlips(t *testing.T) {
	name := filepath.Join(t.TempDir(), "edge.db")
	db := openDB(t, name)
	value := bytes.Repeat([]byte("0123456789abcdef"), 8)
	for i := range 20 {
		if err := db.Update(func(tx *Tx) error { return tx.Put("a", []byte{byte(i)}, append(value, byte(i))) }); err != nil {
			t.Fatal(err)
		}
	}
	db.Close()
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	live := bytes.LastIndex(good, append(bytes.Clone(value), 19)) / pageSize * pageSize
	rng := rand.New(rand.NewPCG(1, 1))
	found := 0
	for range 300 {
		at := bytes.Index(good[live:], value) + live + rng.IntN(len(value))
		bad := bytes.Clone(good)
		bad[at] ^= 1 << rng.IntN(8)
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(name, 1<<20, true)
		if err != nil {
			found++
			continue
		}
		problems := 0
		err = db.Verify(func(string) { problems++ })
		if err != nil || problems > 0 {
			found++
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// bbolt writes pages anew: some copies of a value are no longer live.
	if found < 100 {
		t.Errorf("%d of 300 flips were found", found)
	}
	if err := os.WriteFile(name, good[:pageSize/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(name, 1<<20, false); err == nil {
		t.Error("a cut file opens")
	}
}
