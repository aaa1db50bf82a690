package rows

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dazaar-edge/feed/block"
)

func pack(t *testing.T, e block.Encoding, s block.Stamp, v float64, quality ...string) []byte {
	t.Helper()
	b, err := e.Pack(&block.Pack{Stamp: s, Readings: []block.Reading{{Name: "t", Unit: "Cel", Value: block.Number(v), Quality: quality}}})
	if err != nil {
		t.Fatal(err)
	}
	return b.Data
}

func entry(t *testing.T, n block.Entry) []byte {
	t.Helper()
	b, err := block.SenMLJSON.Entry(&n)
	if err != nil {
		t.Fatal(err)
	}
	return b.Data
}

// TestTimes: a pack's own time, or that of a clock entry before it in the same boot;
// where the clock was set back it stands still, and says so; unknown is null.
func TestTimes(t *testing.T) {
	var out bytes.Buffer
	w, err := New(Config{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	at := func(s int64) time.Time { return time.Unix(s, 0).UTC() }
	for i, b := range [][]byte{
		pack(t, block.SenMLJSON, block.Stamp{Boot: 1, Mono: time.Second}, 1),
		entry(t, block.Entry{Kind: block.Clock, Stamp: block.Stamp{Boot: 1, Mono: 2 * time.Second, Wall: at(1002)}, Offset: 1000 * time.Second, OffsetErr: time.Millisecond}),
		pack(t, block.SenMLJSON, block.Stamp{Boot: 1, Mono: 3 * time.Second}, 2),
		pack(t, block.SenMLCBOR, block.Stamp{Boot: 1, Mono: 4 * time.Second, Wall: at(1004), Err: time.Second}, 3),
		pack(t, block.SenMLJSON, block.Stamp{Boot: 1, Mono: 5 * time.Second, Wall: at(900)}, 4, "range"),
	} {
		if err := w.Block(uint64(i), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Gap(5, 7); err != nil {
		t.Fatal(err)
	}
	if err := w.Fork(1, 3); err != nil {
		t.Fatal(err)
	}
	if err := w.Block(7, []byte{0xff, 1}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"index":0,"name":"t","unit":"Cel","value":1,"time":null,"boot":1,"mono":1}`,
		`{"index":1,"entry":{"entry":"clock",`,
		`{"index":2,"name":"t","unit":"Cel","value":2,"time":"1970-01-01T00:16:43Z","err":0.001,"boot":1,"mono":3}`,
		`{"index":3,"name":"t","unit":"Cel","value":3,"time":"1970-01-01T00:16:44Z","err":1,"boot":1,"mono":4}`,
		`{"index":4,"name":"t","unit":"Cel","value":4,"time":"1970-01-01T00:16:44Z","boot":1,"mono":5,"quality":["range","clock"]}`,
		`{"unavailable":{"from":5,"to":7}}`,
		`{"fork":1,"from":3}`,
		`{"index":7,"data":"/wE="}`,
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], strings.TrimSuffix(want[i], ",")) || !json.Valid([]byte(got[i])) {
			t.Fatalf("line %d of\n%s\nwant %s", i, out.String(), want[i])
		}
	}
}

// TestSince leaves out what is before, and takes all from the first reading on that is
// not.
func TestSince(t *testing.T) {
	var out bytes.Buffer
	w, err := New(Config{Stdout: &out, Since: time.Unix(1005, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range []int64{1004, 1005, 1004, 1006} {
		if err := w.Block(uint64(i), pack(t, block.SenMLJSON, block.Stamp{Boot: 1, Mono: time.Duration(i) * time.Second, Wall: time.Unix(s, 0)}, float64(i))); err != nil {
			t.Fatal(err)
		}
	}
	w.Sync() //nolint:errcheck // to memory
	if n := strings.Count(out.String(), "\n"); n != 3 || strings.Contains(out.String(), `"index":0`) {
		t.Error(out.String())
	}
}

// TestRaw writes the blocks' own bytes.
func TestRaw(t *testing.T) {
	a, b := pack(t, block.SenMLJSON, block.Stamp{Boot: 1, Mono: time.Second}, 1), pack(t, block.SenMLCBOR, block.Stamp{Boot: 1, Mono: time.Second}, 1)
	var out bytes.Buffer
	w, err := New(Config{Stdout: &out, Raw: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range [][]byte{a, b} {
		if err := w.Block(uint64(i), x); err != nil {
			t.Fatal(err)
		}
	}
	w.Sync() //nolint:errcheck // to memory
	if want := string(a) + "\n" + string(b); out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// TestResume: a file is known again, also one in which a first line was written and of
// which nothing was known yet; another one, or another format, is refused and left as it
// is.
func TestResume(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "out")
	open := func(name string, raw bool, at int64, mark string) (*Writer, error) {
		t.Helper()
		w, err := New(Config{File: name, Raw: raw})
		if err != nil {
			t.Fatal(err)
		}
		return w, w.Resume(at, mark)
	}
	w, err := open(name, false, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	at, mark, err := w.Sync()
	if err != nil || at != 0 || mark == "" {
		t.Fatal(at, mark, err)
	}
	write := func(w *Writer, i uint64) {
		if err := w.Block(i, pack(t, block.SenMLJSON, block.Stamp{Boot: 1, Mono: time.Second}, float64(i))); err != nil {
			t.Fatal(err)
		}
		if err := w.w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write(w, 1)
	if err := w.Close(); err != nil { // as when it is killed before it says how far it is
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w, err := open(other, false, at, mark); err == nil {
		t.Error("it takes any file")
	} else if w.Close(); err != nil {
		if b, _ := os.ReadFile(other); string(b) != "mine" {
			t.Errorf("%q", b)
		}
	}
	if w, err = open(name, false, at, mark); err != nil {
		t.Fatal(err)
	}
	write(w, 1)
	write(w, 2)
	if at, mark, err = w.Sync(); err != nil {
		t.Fatal(err)
	}
	write(w, 3)
	w.Close()
	if w, err := open(name, true, at, mark); err == nil {
		t.Error("it mixes formats")
	} else {
		w.Close()
	}
	if w, err = open(name, false, at, mark); err != nil {
		t.Fatal(err)
	}
	write(w, 3)
	w.Close()
	b, err := os.ReadFile(name)
	if err != nil || strings.Count(string(b), "\n") != 3 || strings.Count(string(b), `"index":3`) != 1 {
		t.Errorf("%s, %v", b, err)
	}
	// One that has the name, and perhaps the number, of one that is gone is another one.
	gone := filepath.Join(dir, "gone")
	if w, err = open(gone, false, 0, ""); err != nil {
		t.Fatal(err)
	}
	at, mark0, err := w.Sync()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gone, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w, err := open(gone, false, at, mark0); err == nil {
		t.Error("it takes another file")
	} else {
		w.Close()
	}
	if b, _ := os.ReadFile(gone); string(b) != "precious" {
		t.Errorf("%q", b)
	}
	fresh := filepath.Join(dir, "fresh")
	if w, err = open(fresh, false, 5, mark); err == nil {
		t.Error("it resumes in a new file")
	}
	if w.Close(); exists(fresh) {
		t.Error("a file is left behind")
	}
	if _, err := New(Config{File: dir}); err == nil {
		t.Error("a directory")
	}
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}
