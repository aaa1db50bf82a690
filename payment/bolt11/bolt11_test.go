package bolt11

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

type vectors struct {
	Key, Secret, Payee string
	Valid              []struct {
		Name, Text, Description, DescriptionHash, Hash, Features, Metadata string
		Network                                                            Network
		Msat, CLTV                                                         uint64
		Time, Expiry                                                       int64
		Same                                                               bool // it is what we write
	}
	Invalid []struct{ Name, Text string }
}

func load(t testing.TB) (v vectors, node *secp256k1.PrivateKey) {
	t.Helper()
	b, err := os.ReadFile("testdata/bolt11.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v, secp256k1.PrivKeyFromBytes(unhex(t, v.Key))
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectors reads the standard's examples, field by field, and writes those again
// that have fields of ours only.
func TestVectors(t *testing.T) {
	v, node := load(t)
	if len(v.Valid) < 15 || len(v.Invalid) < 10 {
		t.Fatal("examples are missing")
	}
	for _, c := range v.Valid {
		got, err := Parse(c.Text)
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		want := &Invoice{
			Network: c.Network, Msat: c.Msat, Time: time.Unix(c.Time, 0), Expiry: time.Duration(c.Expiry) * time.Second, Description: c.Description,
			Hash: [32]byte(unhex(t, c.Hash)), Secret: [32]byte(unhex(t, v.Secret)), Payee: [33]byte(unhex(t, v.Payee)), CLTV: c.CLTV,
		}
		if c.Expiry == 0 {
			want.Expiry = DefaultExpiry
		}
		if c.CLTV == 0 {
			want.CLTV = DefaultCLTV
		}
		if c.DescriptionHash != "" {
			want.DescriptionHash = (*[32]byte)(unhex(t, c.DescriptionHash))
		}
		if c.Features != "" {
			want.Features = unhex(t, c.Features)
		}
		if c.Metadata != "" {
			want.Metadata = unhex(t, c.Metadata)
		}
		if c.Name == "pico, another hash and time" || c.Name == "large S" {
			want.Payee = got.Payee // the standard does not say
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s\nis   %+v\nwant %+v", c.Name, got, want)
		}
		if again, err := got.Sign(node); c.Same && (err != nil || again != c.Text) {
			t.Errorf("%s is written as\n%s: %v", c.Name, again, err)
		}
	}
	for _, c := range v.Invalid {
		if got, err := Parse(c.Text); err == nil {
			t.Errorf("%s is read: %+v", c.Name, got)
		}
	}
}

// TestAnyChange: an invoice that was changed in one character, by design or by
// accident, is none.
func TestAnyChange(t *testing.T) {
	v, _ := load(t)
	text := v.Valid[1].Text
	for i := range text {
		for _, ch := range []byte(alphabet + "1b") {
			if ch == text[i] {
				continue
			}
			if got, err := Parse(text[:i] + string(ch) + text[i+1:]); err == nil {
				t.Fatalf("character %d changed to %q is read: %+v", i, ch, got)
			}
		}
	}
	// Even with a checksum that fits, the signature does not, or is another key's.
	prefix, words, err := splitText(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := range words {
		bad := bytes.Clone(words)
		bad[i] ^= 1
		if got, err := Parse(joinText(prefix, bad)); err == nil && hex.EncodeToString(got.Payee[:]) == v.Payee {
			t.Errorf("word %d changed is read as the same payee's: %+v", i, got)
		}
	}
	if got, err := Parse(joinText("lnbc2501u", words)); err == nil && hex.EncodeToString(got.Payee[:]) == v.Payee {
		t.Error("another amount is read as the same payee's")
	}
}

// TestRoundTrip writes invoices of every kind and reads them again.
func TestRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for range 500 {
		node := secp256k1.PrivKeyFromBytes(random(32))
		v := &Invoice{
			Network: prefixes[rng.IntN(len(prefixes))].network, Msat: rng.Uint64N(1 << rng.IntN(60)), Time: time.Unix(rng.Int64N(1<<35), 0),
			Expiry: time.Duration(1+rng.IntN(1<<rng.IntN(31))) * time.Second, Hash: [32]byte(random(32)), Secret: [32]byte(random(32)),
			Payee: [33]byte(node.PubKey().SerializeCompressed()), CLTV: 1 + rng.Uint64N(1<<rng.IntN(20)),
		}
		for rng.IntN(3) == 0 && v.Msat > 0 && v.Msat < 1<<50 {
			v.Msat *= 1000
		}
		if rng.IntN(4) == 0 {
			h := sha256.Sum256(random(100))
			v.DescriptionHash = &h
		} else {
			v.Description = strings.Repeat("ä ", rng.IntN(100)) + "dazaar: " + hex.EncodeToString(random(32))
		}
		if rng.IntN(2) == 0 {
			v.Features = []byte{0x41, 0}
		}
		if rng.IntN(4) == 0 {
			v.Metadata = random(1 + rng.IntN(100))
		}
		text, err := v.Sign(node)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{text, strings.ToUpper(text), "lightning:" + text, "LIGHTNING:" + strings.ToUpper(text), " " + text + "\n"} {
			if got, err := Parse(text); err != nil || !reflect.DeepEqual(got, v) {
				t.Fatalf("%s\nis   %+v\nwant %+v: %v", text, got, v, err)
			}
		}
	}
}

// TestCannotBeWritten: what no invoice can say is refused.
func TestCannotBeWritten(t *testing.T) {
	_, node := load(t)
	for name, spoil := range map[string]func(v *Invoice){
		"network":           func(v *Invoice) { v.Network = "litecoin" },
		"amount":            func(v *Invoice) { v.Msat = MaxMsat + 1 },
		"time":              func(v *Invoice) { v.Time = time.Unix(1<<35, 0) },
		"before 1970":       func(v *Invoice) { v.Time = time.Unix(-1, 0) },
		"expiry":            func(v *Invoice) { v.Expiry = 0 },
		"long description":  func(v *Invoice) { v.Description = strings.Repeat("x", MaxDescription+1) },
		"no text":           func(v *Invoice) { v.Description = "\xff" },
		"both descriptions": func(v *Invoice) { v.DescriptionHash = &v.Hash },
		"metadata":          func(v *Invoice) { v.Metadata = make([]byte, 1000) },
	} {
		v := &Invoice{Network: Regtest, Msat: 1, Time: time.Unix(1e9, 0), Expiry: time.Minute, Description: "x", CLTV: DefaultCLTV}
		spoil(v)
		if text, err := v.Sign(node); !errors.Is(err, ErrField) && !errors.Is(err, ErrNetwork) {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
}

// FuzzParse reads anything; what is read can be written, but for fields that are
// not ours.
func FuzzParse(f *testing.F) {
	v, node := load(f)
	for _, c := range v.Valid {
		f.Add(c.Text)
	}
	for _, c := range v.Invalid {
		f.Add(c.Text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if prefix, words, err := splitText(text); err == nil && len(words) > timeWords+signatureWords {
			// Behind the checksum, which a fuzzer does not find.
			text = joinText(prefix, words)
		}
		got, err := Parse(text)
		if err != nil {
			return
		}
		again, err := got.Sign(node)
		if err != nil {
			t.Fatalf("%+v cannot be written: %v", got, err)
		}
		back, err := Parse(again)
		if err != nil {
			t.Fatal(err)
		}
		if back.Payee = got.Payee; !reflect.DeepEqual(back, got) {
			t.Errorf("%+v comes back as %+v", got, back)
		}
	})
}

// FuzzWords reads any words behind any prefix, with a checksum that fits.
func FuzzWords(f *testing.F) {
	v, _ := load(f)
	for _, c := range v.Valid {
		if prefix, words, err := splitText(c.Text); err == nil {
			f.Add(prefix, words)
		}
	}
	f.Fuzz(func(t *testing.T, prefix string, words []byte) {
		for i := range words {
			words[i] &= 31
		}
		if _, err := Parse(joinText(strings.ToLower(prefix), words)); err == nil && len(words) < timeWords+signatureWords {
			t.Error("it is read")
		}
	})
}

func BenchmarkParse(b *testing.B) {
	v, _ := load(b)
	for b.Loop() {
		if _, err := Parse(v.Valid[1].Text); err != nil {
			b.Fatal(err)
		}
	}
}
