package compact

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"testing"
)

type vectorFile struct {
	Uint   []struct{ Value, Hex string }
	Others []struct {
		Type  string
		Value json.RawMessage
		Hex   string
	}
}

func loadVectors(t testing.TB) vectorFile {
	t.Helper()
	raw, err := os.ReadFile("testdata/compact-encoding.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vectorFile
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fixedRun(n int, v byte) []byte { return bytes.Repeat([]byte{v}, n) }

// TestVectors encodes and decodes every sample that the JavaScript encoder made.
func TestVectors(t *testing.T) {
	v := loadVectors(t)
	for _, c := range v.Uint {
		n, err := strconv.ParseUint(c.Value, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		want := unhex(t, c.Hex)
		if got := AppendUint(nil, n); !bytes.Equal(got, want) {
			t.Errorf("AppendUint(%d) = %x, want %x", n, got, want)
		}
		if UintSize(n) != len(want) {
			t.Errorf("UintSize(%d) = %d, want %d", n, UintSize(n), len(want))
		}
		back, rest, err := ParseUint(want)
		if err != nil || back != n || len(rest) != 0 {
			t.Errorf("ParseUint(%x) = %d, %x, %v", want, back, rest, err)
		}
	}
	for _, c := range v.Others {
		want := unhex(t, c.Hex)
		var got []byte
		var n int64
		var text string
		switch c.Type {
		case "int (zigzag over uint)":
			_ = json.Unmarshal(c.Value, &n)
			got = AppendInt(nil, n)
			if back, _, err := ParseInt(want); err != nil || back != n {
				t.Errorf("ParseInt(%x) = %d, %v", want, back, err)
			}
		case "uint64 fixed 8 bytes LE":
			_ = json.Unmarshal(c.Value, &text)
			u, _ := strconv.ParseUint(text, 10, 64)
			got = AppendUint64(nil, u)
			if back, _, err := ParseUint64(want); err != nil || back != u {
				t.Errorf("ParseUint64(%x) = %d, %v", want, back, err)
			}
		case "buffer", "buffer len 253", "optionalBuffer":
			_ = json.Unmarshal(c.Value, &text)
			p := []byte{}
			switch {
			case c.Type == "buffer len 253":
				p = fixedRun(253, 0xaa)
			case text != "empty" && text != "null":
				p = unhex(t, text)
			}
			got = AppendBuffer(nil, p)
			back, _, err := ParseBuffer(want)
			if err != nil || back == nil || !bytes.Equal(back, p) {
				t.Errorf("ParseBuffer(%x) = %x, %v", want, back, err)
			}
			if opt, _, err := ParseOptionalBuffer(want); err != nil || (opt == nil) != (len(p) == 0) {
				t.Errorf("ParseOptionalBuffer(%x) = %x, %v", want, opt, err)
			}
		case "string":
			_ = json.Unmarshal(c.Value, &text)
			got = AppendString(nil, text)
			if back, _, err := ParseString(want); err != nil || back != text {
				t.Errorf("ParseString(%x) = %q, %v", want, back, err)
			}
		case "fixed32":
			h, rest, err := ParseFixed32(want)
			if err != nil || len(rest) != 0 || !bytes.Equal(h[:], fixedRun(32, 7)) {
				t.Errorf("ParseFixed32(%x) = %x, %v", want, h, err)
			}
			got = h[:]
		case "array(uint)":
			var items []uint64
			_ = json.Unmarshal(c.Value, &items)
			got = AppendArray(nil, items, AppendUint)
			back, rest, err := ParseArray(want, 10, 1, ParseUint)
			if err != nil || len(rest) != 0 || !bytes.Equal(AppendArray(nil, back, AppendUint), want) {
				t.Errorf("ParseArray(%x) = %v, %v", want, back, err)
			}
		case "array(fixed32) 2":
			back, rest, err := ParseArray(want, 2, 32, ParseFixed32)
			if err != nil || len(rest) != 0 || len(back) != 2 {
				t.Errorf("ParseArray(%x) = %v, %v", want, back, err)
			}
			got = AppendArray(nil, back, func(b []byte, h [32]byte) []byte { return append(b, h[:]...) })
		case "uint32array":
			var words []uint32
			_ = json.Unmarshal(c.Value, &words)
			got = AppendUint32Array(nil, words)
			if back, _, err := ParseUint32Array(want, 2); err != nil || len(back) != len(words) {
				t.Errorf("ParseUint32Array(%x) = %v, %v", want, back, err)
			}
		case "raw":
			got = want
		case "bool":
			v, rest, err := ParseBool(want)
			if err != nil || len(rest) != 0 {
				t.Errorf("ParseBool(%x): %v", want, err)
			}
			got = AppendBool(nil, v)
		default:
			t.Fatalf("vector of unknown type %q", c.Type)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s %s: got %x, want %x", c.Type, c.Value, got, want)
		}
	}
}

// TestHostile checks that bad input is refused before anything is allocated.
func TestHostile(t *testing.T) {
	for _, c := range []struct {
		name  string
		parse func() error
		want  error
	}{
		{"empty", func() error { _, _, err := ParseUint(nil); return err }, ErrShort},
		{"cut varint", func() error { _, _, err := ParseUint([]byte{0xfe, 1, 2}); return err }, ErrShort},
		{"2^53", func() error { _, _, err := ParseUint(AppendUint(nil, MaxUint+1)); return err }, ErrRange},
		{"fixed 2^53", func() error { _, _, err := ParseUint64(AppendUint64(nil, MaxUint+1)); return err }, ErrRange},
		{"long buffer", func() error { _, _, err := ParseBuffer(AppendUint(nil, 1<<40)); return err }, ErrShort},
		{"many items", func() error {
			_, _, err := ParseArray(AppendUint(nil, MaxArray), MaxArray, 1, ParseUint)
			return err
		}, ErrShort},
		{"over the limit", func() error { _, _, err := ParseUint32Array(AppendUint(nil, 3), 2); return err }, ErrRange},
		{"bool 2", func() error { _, _, err := ParseBool([]byte{2}); return err }, ErrBool},
	} {
		if err := c.parse(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	hostile := AppendUint(nil, MaxArray)
	if n := testing.AllocsPerRun(100, func() { _, _, _ = ParseArray(hostile, MaxArray, 1, ParseUint) }); n > 0 {
		t.Errorf("a hostile count allocates %v times", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range loadVectors(f).Others {
		f.Add(unhex(f, c.Hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, rest, err := ParseUint(b); err == nil {
			again, _, err := ParseUint(AppendUint(nil, n))
			if err != nil || again != n || len(rest) >= len(b) {
				t.Fatalf("uint %d does not survive", n)
			}
		}
		if n, _, err := ParseInt(b); err == nil {
			if again, _, err := ParseInt(AppendInt(nil, n)); err != nil || again != n {
				t.Fatalf("int %d does not survive", n)
			}
		}
		if p, rest, err := ParseBuffer(b); err == nil && len(p)+len(rest) >= len(b) {
			t.Fatal("buffer longer than its input")
		}
		_, _, _ = ParseUint32Array(b, MaxArray)
		_, _, _ = ParseArray(b, 100, 32, ParseFixed32)
		_, _, _ = ParseFixed64(b)
		_, _, _ = ParseString(b)
	})
}
