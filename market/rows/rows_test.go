package rows

import (
	"bytes"
	"encoding/json"
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
