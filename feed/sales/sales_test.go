package sales

import (
	"errors"
	"path/filepath"
	"testing"

	"dazaar-edge/feed"
	"dazaar-edge/storage"
	"dazaar-edge/storage/db"
)

func FuzzRecord(f *testing.F) {
	f.Add(encode(feed.SaleState{Generation: 1, Fork: 2, Settled: 3, Signed: 4}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parse(b); err == nil && string(encode(s)) != string(b) {
			t.Fatal("a sale does not survive")
		} else if err != nil && !errors.Is(err, storage.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// TestTable writes sales and an epoch, and reads them in another process's place.
func TestTable(t *testing.T) {
	name := filepath.Join(t.TempDir(), "edge.db")
	open := func() (*db.DB, Table) {
		d, err := db.Open(name, 1<<20, false)
		if err != nil {
			t.Fatal(err)
		}
		return d, New(d, "air")
	}
	d, table := open()
	var _ feed.Sales = table
	a, b := feed.SaleState{Generation: 1, Fork: 2, Settled: 3, Signed: 4}, feed.SaleState{Fork: 9}
	e := feed.Epoch{Number: 7, Length: 8}
	if err := table.Save(map[[32]byte]feed.SaleState{{1}: a, {2}: b}); err != nil {
		t.Fatal(err)
	}
	if err := table.SetEpoch(e); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, table = open()
	defer d.Close()
	if s, ok, err := table.Load([32]byte{1}); s != a || !ok || err != nil {
		t.Errorf("%+v, %v, %v", s, ok, err)
	}
	if _, ok, err := table.Load([32]byte{3}); ok || err != nil {
		t.Error("a sale that never was", err)
	}
	if got, err := table.Epoch(); got != e || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	all := map[[32]byte]feed.SaleState{}
	if err := table.Each(func(k [32]byte, s feed.SaleState) bool { all[k] = s; return true }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[[32]byte{1}] != a || all[[32]byte{2}] != b {
		t.Errorf("%v", all)
	}
	if err := New(d, "noise").Each(func([32]byte, feed.SaleState) bool { t.Error("another offer's"); return true }); err != nil {
		t.Fatal(err)
	}
}
