package block

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

func samplePack() *Pack {
	return &Pack{
		Stamp:    Stamp{Boot: 7, Mono: 12*time.Second + 345678*time.Microsecond, Wall: time.UnixMicro(1_790_000_000_123_456).UTC(), Err: 20 * time.Millisecond},
		BaseName: "roof/",
		Readings: []Reading{
			{Name: "temp", Unit: "Cel", Value: Number(21.5)},
			{Name: "rh", Unit: "%RH", Offset: 1500 * time.Millisecond, Value: Number(-45), Quality: []string{"range", "stale"}},
			{Name: "door", Value: Value{Kind: Bool, Bool: true}},
			{Name: "note", Value: Value{Kind: Text, Text: "grüß"}},
			{Name: "img", Value: Value{Kind: Data, Data: []byte{0, 255, 3}}},
		},
	}
}

func ms(n int) *time.Duration { d := time.Duration(n) * time.Millisecond; return &d }

func sampleEntries() []*Entry {
	s := Stamp{Boot: 3, Mono: 90 * time.Second}
	return []*Entry{
		{Kind: Boot, Stamp: s},
		{Kind: Clock, Stamp: s, Offset: 1_790_000_000*time.Second + 5*time.Microsecond, OffsetErr: time.Millisecond},
		{Kind: GapEntry, Stamp: s, From: ms(1500), Cause: "power", Sensor: "roof"},
		{Kind: GapEntry, Stamp: s, Cause: "damage", Lost: &Range{10, 20}},
		{Kind: Recovered, Stamp: s, Index: 77, Fork: 1, Part: 0, Parts: 2, Data: []byte("x\x00y")},
	}
}

// TestGolden pins the encodings byte for byte.
func TestGolden(t *testing.T) {
	for _, c := range []struct {
		enc  Encoding
		want string
	}{
		{SenMLJSON, `[{"bn":"roof/","bt":1790000000.123456,"boot":7,"mono":12.345678,"err":0.02,"n":"temp","u":"Cel","v":21.5},` +
			`{"n":"rh","u":"%RH","v":-45,"t":1.5,"q":"range,stale"},{"n":"door","vb":true},{"n":"note","vs":"grüß"},{"n":"img","vd":"AP8D"}]`},
		{SenMLCBOR, "\x85\xa8\x21\x65roof/\x22\xfb" + unhex("41daac4ee007e6b4") + "\x64boot\x07\x64mono\xfb" + unhex("4028b0fcb4f1e4b4") +
			"\x63err\xfb" + unhex("3f947ae147ae147b") + "\x00\x64temp\x01\x63Cel\x02\xfb" + unhex("4035800000000000") +
			"\xa5\x00\x62rh\x01\x63%RH\x02\x38\x2c\x06\xfb" + unhex("3ff8000000000000") + "\x61q\x6brange,stale" +
			"\xa2\x00\x64door\x04\xf5\xa2\x00\x64note\x03\x66grüß\xa2\x00\x63img\x08\x43\x00\xff\x03"},
	} {
		b, err := c.enc.Pack(samplePack())
		if err != nil || string(b.Data) != c.want {
			t.Errorf("%s: %v\n%q\nwant\n%q", c.enc, err, b.Data, c.want)
		}
	}
	gap, err := SenMLJSON.Entry(sampleEntries()[2])
	if want := `{"entry":"gap","boot":3,"mono":90,"from":1.5,"to":null,"cause":"power","sensor":"roof"}`; err != nil || string(gap.Data) != want {
		t.Errorf("gap: %v\n%s\nwant\n%s", err, gap.Data, want)
	}
}

func unhex(s string) string { b, _ := hex.DecodeString(s); return string(b) }

// TestRoundTrip encodes and parses everything in every encoding.
func TestRoundTrip(t *testing.T) {
	for _, enc := range []Encoding{SenMLJSON, SenMLCBOR} {
		b, err := enc.Pack(samplePack())
		if err != nil {
			t.Fatal(err)
		}
		p, n, err := enc.Parse(b.Data)
		if err != nil || n != nil || !reflect.DeepEqual(p, samplePack()) {
			t.Errorf("%s: %v\n%+v\nwant\n%+v", enc, err, p, samplePack())
		}
	}
	raw := &Pack{
		Stamp:    Stamp{Boot: 9, Mono: 5 * time.Microsecond, Wall: time.UnixMilli(1_790_000_000_123).UTC()},
		Readings: []Reading{{Value: Value{Kind: Data, Data: []byte("anything")}}},
	}
	b, err := Raw.Pack(raw)
	if err != nil || len(b.Data) != rawHead+8 {
		t.Fatal(err)
	}
	if p, _, err := Raw.Parse(b.Data); err != nil || !reflect.DeepEqual(p, raw) {
		t.Errorf("raw: %v\n%+v", err, p)
	}
	if _, err := Raw.Pack(samplePack()); !errors.Is(err, ErrEncoding) {
		t.Errorf("five readings in a raw block: %v", err)
	}
	for _, enc := range []Encoding{SenMLJSON, SenMLCBOR, Raw} {
		for _, want := range sampleEntries() {
			b, err := enc.Entry(want)
			if err != nil {
				t.Fatal(err)
			}
			p, got, err := enc.Parse(b.Data)
			if err != nil || p != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %v\n%+v\nwant\n%+v", enc, err, got, want)
			}
			if in, err := enc.Inspect(b.Data); err != nil || in.Entry != want.Kind || in.Stamp != want.Stamp || in.Readings != 0 {
				t.Errorf("%s: inspect: %+v, %v", enc, in, err)
			}
		}
	}
}

// TestUnreadable checks that nothing is written that cannot be read back.
func TestUnreadable(t *testing.T) {
	good := func() *Pack {
		return &Pack{Stamp: Stamp{Boot: 1, Mono: time.Second}, Readings: []Reading{{Value: Number(1)}}}
	}
	for name, spoil := range map[string]func(*Pack){
		"1969":          func(p *Pack) { p.Stamp.Wall = time.Unix(-1, 0) },
		"1970":          func(p *Pack) { p.Stamp.Wall = time.Unix(0, 0) },
		"2200":          func(p *Pack) { p.Stamp.Wall = time.Unix(7_258_118_400, 0) },
		"negative mono": func(p *Pack) { p.Stamp.Mono = -1 },
		"long mono":     func(p *Pack) { p.Stamp.Mono = maxSeconds * time.Second },
		"far offset":    func(p *Pack) { p.Readings[0].Offset = -maxSeconds * time.Second },
		"NaN":           func(p *Pack) { p.Readings[0].Value.Float = math.NaN() },
		"infinity":      func(p *Pack) { p.Readings[0].Value.Float = math.Inf(-1) },
		"value kind":    func(p *Pack) { p.Readings[0].Value.Kind = 9 },
		"not UTF-8":     func(p *Pack) { p.Readings[0].Name = "\xff" },
		"comma":         func(p *Pack) { p.Readings[0].Quality = []string{"a,b"} },
		"no readings":   func(p *Pack) { p.Readings = nil },
	} {
		for _, enc := range []Encoding{SenMLJSON, SenMLCBOR, Raw} {
			p := good()
			spoil(p)
			if b, err := enc.Pack(p); !errors.Is(err, ErrEncoding) {
				t.Errorf("%s, %s: %q, %v", name, enc, b.Data, err)
			}
		}
	}
	for name, n := range map[string]*Entry{
		"no kind": {}, "large index": {Kind: Recovered, Index: 1 << 60}, "far fix": {Kind: Clock, Offset: maxSeconds * time.Second},
	} {
		if _, err := SenMLJSON.Entry(n); !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := good()
	p.Stamp = Stamp{Boot: 1, Mono: 1234567, Wall: time.Unix(5, 6789), Err: 1}
	for _, enc := range []Encoding{SenMLJSON, SenMLCBOR} {
		b, err := enc.Pack(p)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := enc.Inspect(b.Data); err != nil || !again.Stamp.Wall.Equal(b.Stamp.Wall) || again.Stamp.Mono != b.Stamp.Mono {
			t.Errorf("%s: %+v read as %+v (%v)", enc, b.Stamp, again.Stamp, err)
		}
	}
	hostile := "[" + strings.Repeat("{},", 1<<18) + "{}]"
	if n := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			_, _, _ = SenMLJSON.Parse([]byte(hostile))
		}
	}).AllocedBytesPerOp(); n > 4<<20 {
		t.Errorf("no pack of %d bytes costs %d", len(hostile), n)
	}
}

func TestMalformed(t *testing.T) {
	for _, c := range []struct {
		enc  Encoding
		data string
	}{
		{SenMLJSON, ""}, {SenMLJSON, "[]"}, {SenMLJSON, `[{"v":1}]`}, {SenMLJSON, `[{"boot":1.5,"mono":1,"v":1}]`},
		{SenMLJSON, `[{"boot":1,"mono":-1,"v":1}]`}, {SenMLJSON, `[{"boot":1,"mono":1}]`}, {SenMLJSON, `{"boot":1,"mono":1}`},
		{SenMLJSON, `{"entry":"gap","boot":1,"mono":1e99}`}, {SenMLJSON, `{"entry":"recovered","boot":1,"mono":1,"index":-1}`},
		{SenMLCBOR, ""}, {SenMLCBOR, "\x9f\xff"}, {SenMLCBOR, "\x9b\xff\xff\xff\xff\xff\xff\xff\xff"}, {SenMLCBOR, "\xa0"},
		{Raw, ""}, {Raw, "\x00short"}, {Raw, "\x02"},
	} {
		if _, _, err := c.enc.Parse([]byte(c.data)); !errors.Is(err, ErrBlock) {
			t.Errorf("%s %q: %v", c.enc, c.data, err)
		}
	}
}

// TestResolve compares with the definition, for a clock that is set twice.
func TestResolve(t *testing.T) {
	at := func(s int) time.Duration { return time.Duration(s) * time.Second }
	fixes := []Fix{{at(100), at(1000), at(1)}, {at(200), at(2000), at(2)}}
	for mono, offset := range map[int]int{0: 1000, 149: 1000, 150: 2000, 300: 2000} {
		got, _ := Resolve(Stamp{Mono: at(mono)}, fixes)
		if got.Unix() != int64(mono+offset) {
			t.Errorf("at %d: %d", mono, got.Unix())
		}
	}
	wall := time.Unix(5, 0)
	if got, err := Resolve(Stamp{Wall: wall, Err: 3}, fixes); got != wall || err != 3 {
		t.Errorf("known wall time: %v, %v", got, err)
	}
	if got, _ := Resolve(Stamp{}, nil); !got.IsZero() {
		t.Errorf("no fix: %v", got)
	}
}

// TestPublish checks that published times never go backwards, whatever the
// clock does, and that the uncertainty covers how far they were held.
func TestPublish(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 9))
		var r Resolver
		var last time.Time
		s := Stamp{Boot: 1}
		for range 200 {
			switch rng.IntN(10) {
			case 0:
				s = Stamp{Boot: s.Boot + 1}
			case 1:
				r.Add(&Entry{Kind: Clock, Stamp: s, Offset: time.Duration(rng.IntN(2_000_000)) * time.Second, OffsetErr: time.Second})
			}
			s.Mono += time.Duration(rng.IntN(1000)) * time.Millisecond
			s.Wall, s.Err = time.Time{}, 0
			if rng.IntN(2) == 0 {
				s.Wall, s.Err = time.Unix(int64(rng.IntN(2_000_000)), 0), time.Second
			}
			got, err, _ := r.Publish(s)
			if got.IsZero() {
				continue
			}
			if got.Before(last) {
				t.Fatalf("seed %d: %v after %v", seed, got, last)
			}
			if !s.Wall.IsZero() && got.Sub(s.Wall) > err {
				t.Fatalf("seed %d: %v published as %v ± %v", seed, s.Wall, got, err)
			}
			last = got
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, enc := range []Encoding{SenMLJSON, SenMLCBOR} {
		b, _ := enc.Pack(samplePack())
		f.Add(byte(enc), b.Data)
		for _, n := range sampleEntries() {
			b, _ := enc.Entry(n)
			f.Add(byte(enc), b.Data)
		}
	}
	f.Fuzz(func(t *testing.T, e byte, data []byte) {
		enc := Encoding(e % 3)
		p, n, err := enc.Parse(data)
		if err != nil {
			return
		}
		if (p == nil) == (n == nil) {
			t.Fatal("neither or both")
		}
		var b Block
		if p != nil {
			b, err = enc.Pack(p)
		} else {
			b, err = enc.Entry(n)
		}
		if err != nil {
			return // an empty pack, or text that is not UTF-8
		}
		p2, n2, err := enc.Parse(b.Data)
		if err != nil {
			t.Fatalf("%q does not parse again: %v", b.Data, err)
		}
		if (p == nil) != (p2 == nil) || (n == nil) != (n2 == nil) {
			t.Fatal("changes its kind")
		}
		if p != nil && (p.Stamp.Boot != p2.Stamp.Boot || len(p.Readings) != len(p2.Readings)) {
			t.Fatal("pack changes")
		}
		if n != nil && (n.Stamp != n2.Stamp || n.Kind == Recovered && !bytes.Equal(n.Data, n2.Data)) {
			t.Fatal("entry changes")
		}
	})
}
