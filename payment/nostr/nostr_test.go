package nostr

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

func load(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSchnorr has the vectors of BIP-340, those of 32-byte messages.
func TestSchnorr(t *testing.T) {
	var vectors []struct {
		SecretKey, PublicKey, AuxRand, Message, Signature string
		Result                                            bool
	}
	load(t, "bip340.json", &vectors)
	for i, v := range vectors {
		message, want := unhex(t, v.Message), unhex(t, v.Signature)
		if v.SecretKey != "" {
			k, err := ParseKey(v.SecretKey)
			if err != nil || !strings.EqualFold(k.Public(), v.PublicKey) {
				t.Fatal(i, err)
			}
			sig, err := k.signWith([32]byte(message), [32]byte(unhex(t, v.AuxRand)))
			if err != nil || string(sig[:]) != string(want) {
				t.Errorf("%d: %x, %v", i, sig, err)
			}
		}
		if got := verify([32]byte(unhex(t, v.PublicKey)), [32]byte(message), [64]byte(want)); got != v.Result {
			t.Errorf("%d: %v", i, got)
		}
	}
	for _, bad := range []string{"", "00", strings.Repeat("0", 64), strings.Repeat("f", 64)} {
		if _, err := ParseKey(bad); err == nil {
			t.Errorf("%q is a key", bad)
		}
	}
}

// TestNIP44 has the vectors of NIP-44.
func TestNIP44(t *testing.T) {
	var v struct {
		Encrypt      []struct{ Sec1, Sec2, Key, Nonce, Text, Payload string }
		Invalid      []struct{ Key, Payload, Why string }
		Conversation []struct{ Sec, Pub, Key string }
		Keys         []struct{ Key, Nonce, ChachaKey, ChachaNonce, HmacKey string }
	}
	load(t, "nip44.json", &v)
	for i, c := range v.Conversation {
		k, err := ParseKey(c.Sec)
		if err != nil {
			t.Fatal(err)
		}
		x, err := k.shared(c.Pub)
		if err != nil {
			t.Fatal(err)
		}
		if key, err := conversationKey(x); err != nil || hex.EncodeToString(key) != c.Key {
			t.Errorf("conversation %d: %x, %v", i, key, err)
		}
	}
	for i, c := range v.Keys {
		_, code, err := keys44(unhex(t, c.Key), unhex(t, c.Nonce))
		if err != nil || hex.EncodeToString(code) != c.HmacKey {
			t.Errorf("keys %d: %x, %v", i, code, err)
		}
	}
	for i, c := range v.Encrypt {
		got, err := encrypt44(unhex(t, c.Key), [32]byte(unhex(t, c.Nonce)), []byte(c.Text))
		if err != nil || got != c.Payload {
			t.Errorf("encrypt %d: %s, %v", i, got, err)
		}
		a, err := ParseKey(c.Sec1)
		if err != nil {
			t.Fatal(err)
		}
		b, err := ParseKey(c.Sec2)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := b.Decrypt(NIP44, a.Public(), c.Payload); err != nil || text != c.Text {
			t.Errorf("decrypt %d: %q, %v", i, text, err)
		}
	}
	for i, c := range v.Invalid {
		if b, err := decrypt44(unhex(t, c.Key), c.Payload); err == nil {
			t.Errorf("invalid %d, %s: %q", i, c.Why, b)
		}
	}
	// Lengths of NIP-44.
	for n, want := range map[int]int{16: 32, 32: 32, 33: 64, 37: 64, 45: 64, 64: 64, 65: 96, 100: 128, 111: 128, 200: 224, 250: 256, 320: 320, 383: 384, 384: 384, 400: 448, 500: 512, 512: 512, 515: 640, 700: 768, 800: 896, 900: 1024, 1020: 1024, 65535: 65536} {
		if got := padded(n); got != want {
			t.Errorf("%d bytes become %d, want %d", n, got, want)
		}
	}
}

// TestEncryption goes there and back, both ways; what was changed is refused.
func TestEncryption(t *testing.T) {
	a, err := ParseKey(strings.Repeat("01", 32))
	if err != nil {
		t.Fatal(err)
	}
	b, err := ParseKey(strings.Repeat("02", 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []Encryption{NIP44, NIP04} {
		for _, n := range []int{1, 15, 16, 17, 1000} {
			text := strings.Repeat("x", n)
			sealed, err := a.Encrypt(how, b.Public(), text)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := b.Decrypt(how, a.Public(), sealed); err != nil || got != text {
				t.Errorf("%s: %q, %v", how, got, err)
			}
			other := NIP44
			if how == NIP44 {
				other = NIP04
			}
			if _, err := b.Decrypt(other, a.Public(), sealed); !errors.Is(err, ErrEncryption) {
				t.Error(err)
			}
		}
	}
	// A message of another library: NIP-04 of go-nostr, see test/nostr.
}

// TestEvent: what was changed of an event does not verify.
func TestEvent(t *testing.T) {
	k, err := ParseKey(strings.Repeat("01", 32))
	if err != nil {
		t.Fatal(err)
	}
	e, err := NewEvent(k, 23194, "a <b> & \"c\" \\ \u2028 ü\n", []string{"p", "x"}, []string{"e"})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Verify(); err != nil || e.Tag("p") != "x" || e.Tag("e") != "" {
		t.Error(err)
	}
	for name, change := range map[string]func(*Event){
		"content": func(e *Event) { e.Content = "d" }, "kind": func(e *Event) { e.Kind++ }, "time": func(e *Event) { e.Created++ },
		"tags": func(e *Event) { e.Tags = nil }, "key": func(e *Event) { e.PubKey = strings.Repeat("01", 32) }, "sig": func(e *Event) { e.Sig = strings.Repeat("0", 128) },
		"id": func(e *Event) { e.ID = strings.Repeat("0", 64) },
	} {
		x := *e
		change(&x)
		if err := x.Verify(); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecrypt(f *testing.F) {
	k, err := ParseKey(strings.Repeat("01", 32))
	if err != nil {
		f.Fatal(err)
	}
	for _, how := range []Encryption{NIP44, NIP04} {
		text, err := k.Encrypt(how, k.Public(), "hello")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, how := range []Encryption{NIP44, NIP04} {
			if _, err := k.Decrypt(how, k.Public(), text); err != nil && !errors.Is(err, ErrEncryption) {
				t.Error(err)
			}
		}
	})
}
