package noise

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"filippo.io/edwards25519"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func load(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func TestVectorsDH(t *testing.T) {
	var v struct {
		Cases []struct{ LocalSeed, LocalPublicKey, RemotePublicKey, DH hexBytes }
	}
	load(t, "noise-dh.json", &v)
	for _, c := range v.Cases {
		got, err := DH(c.LocalSeed, c.RemotePublicKey)
		if err != nil || !bytes.Equal(got, c.DH) {
			t.Errorf("DH(%x) = %x, %v; want %x", c.LocalSeed, got, err, c.DH)
		}
		if pub := ed25519.NewKeyFromSeed(c.LocalSeed)[32:]; !bytes.Equal(pub, c.LocalPublicKey) {
			t.Errorf("public key of %x is %x, want %x", c.LocalSeed, pub, c.LocalPublicKey)
		}
	}
	if len(v.Cases) == 0 {
		t.Fatal("no cases")
	}
}

type party struct{ StaticSeed, EphemeralSeed hexBytes }

func TestVectorsHandshake(t *testing.T) {
	var v struct {
		Transcripts []struct {
			Name, Pattern        string
			Prologue             hexBytes
			Initiator, Responder party
			HandshakeHash        hexBytes
			InitiatorTx          hexBytes
			InitiatorRx          hexBytes
			Messages             []struct{ Payload, Message hexBytes }
		}
	}
	load(t, "noise-handshakes.json", &v)
	for _, tr := range v.Transcripts {
		t.Run(tr.Name, func(t *testing.T) {
			side := func(p party, initiator bool) *Handshake {
				cfg := Config{
					Initiator: initiator, Static: ed25519.NewKeyFromSeed(p.StaticSeed), Prologue: tr.Prologue,
					Rand: bytes.NewReader(p.EphemeralSeed),
				}
				if tr.Pattern == "IK" {
					cfg.Pattern = IK
					copy(cfg.Remote[:], ed25519.NewKeyFromSeed(tr.Responder.StaticSeed)[32:])
				}
				h, err := New(cfg)
				if err != nil {
					t.Fatal(err)
				}
				return h
			}
			from, to := side(tr.Initiator, true), side(tr.Responder, false)
			initiator := from
			for i, m := range tr.Messages {
				got, err := from.Write(nil, m.Payload)
				if err != nil || !bytes.Equal(got, m.Message) {
					t.Fatalf("message %d is %x, %v; want %x", i, got, err, m.Message)
				}
				if _, err := from.Write(nil, nil); !errors.Is(err, ErrState) {
					t.Fatalf("a message out of turn: %v", err)
				}
				payload, err := to.Read(got)
				if err != nil || !bytes.Equal(payload, m.Payload) {
					t.Fatalf("payload %d is %x, %v; want %x", i, payload, err, m.Payload)
				}
				from, to = to, from
			}
			a, b := initiator.Result(), from.Result()
			if from == initiator {
				b = to.Result()
			}
			if a == nil || b == nil || !bytes.Equal(a.Hash[:], tr.HandshakeHash) || a.Hash != b.Hash {
				t.Fatalf("handshake hash: %v %v", a, b)
			}
			if !bytes.Equal(a.TX[:], tr.InitiatorTx) || !bytes.Equal(a.RX[:], tr.InitiatorRx) || a.TX != b.RX || a.RX != b.TX {
				t.Errorf("keys %x %x, want %x %x", a.TX, a.RX, tr.InitiatorTx, tr.InitiatorRx)
			}
			if !bytes.Equal(a.Remote[:], ed25519.NewKeyFromSeed(tr.Responder.StaticSeed)[32:]) ||
				!bytes.Equal(b.Remote[:], ed25519.NewKeyFromSeed(tr.Initiator.StaticSeed)[32:]) {
				t.Error("remote static keys are wrong")
			}
		})
	}
}

// smallOrder are the canonical points whose order divides 8.
var smallOrder = []string{
	"0100000000000000000000000000000000000000000000000000000000000000",
	"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	"0000000000000000000000000000000000000000000000000000000000000080",
	"0000000000000000000000000000000000000000000000000000000000000000",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
	"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
}

func TestPoints(t *testing.T) {
	seed := bytes.Repeat([]byte{7}, 32)
	bad := map[string][]byte{"short": {1, 2, 3}, "empty": nil}
	for _, s := range smallOrder {
		b, _ := hex.DecodeString(s)
		bad["small order "+s] = b
		// A good point plus one of small order is outside the subgroup.
		p, err := new(edwards25519.Point).SetBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		if p.Equal(edwards25519.NewIdentityPoint()) == 0 {
			bad["mixed order "+s] = p.Add(p, edwards25519.NewGeneratorPoint()).Bytes()
		}
	}
	// y = p, p+1 and so on up to 2^255-1 are not canonical.
	for i := range 19 {
		b := bytes.Repeat([]byte{0xff}, 32)
		b[0], b[31] = 0xed+byte(i), 0x7f
		bad["not canonical "+hex.EncodeToString(b)] = b
	}
	// x = 0 with the sign bit.
	b := append([]byte{1}, make([]byte, 31)...)
	b[31] = 0x80
	bad["minus zero"] = b
	bad["no point"] = append([]byte{2}, make([]byte, 31)...)
	for name, p := range bad {
		if got, err := DH(seed, p); !errors.Is(err, ErrPoint) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
	}
	if _, err := DH(seed, edwards25519.NewGeneratorPoint().Bytes()); err != nil {
		t.Error(err)
	}
	if _, err := DH(seed[:31], edwards25519.NewGeneratorPoint().Bytes()); err == nil {
		t.Error("a seed of 31 bytes")
	}
}

// FuzzHandshake gives each side of each pattern an arbitrary message.
func FuzzHandshake(f *testing.F) {
	for _, n := range []int{0, 31, 32, 48, 64, 96} {
		f.Add(bytes.Repeat([]byte{9}, n))
	}
	static := ed25519.NewKeyFromSeed(make([]byte, 32))
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, p := range []Pattern{XX, IK} {
			for _, initiator := range []bool{true, false} {
				h, err := New(Config{Pattern: p, Initiator: initiator, Static: static, Remote: [32]byte(static[32:])})
				if err != nil {
					t.Fatal(err)
				}
				if initiator {
					if _, err := h.Write(nil, nil); err != nil {
						t.Fatal(err)
					}
				}
				if _, err := h.Read(msg); err == nil && (initiator || p == IK) {
					t.Fatalf("%s accepted %x", p, msg)
				}
				if h.Result() != nil {
					t.Fatal("finished without the other side")
				}
			}
		}
	})
}

func BenchmarkDH(b *testing.B) {
	pub := ed25519.NewKeyFromSeed(make([]byte, 32))[32:]
	seed := bytes.Repeat([]byte{7}, 32)
	for b.Loop() {
		if _, err := DH(seed, pub); err != nil {
			b.Fatal(err)
		}
	}
}
