package dazaar

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"testing"

	"dazaar-edge/protocol/compact"
)

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func TestOneTimeFeed(t *testing.T) {
	seller, buyer := [32]byte(key(1)[32:]), [32]byte(key(2)[32:])
	f := OneTimeFeed{Key: [32]byte{3}, Generation: 300, Fork: 1}
	f.Sign(key(1), buyer)
	b := f.Append(nil)
	got, rest, err := ParseOneTimeFeed(append(b, 9))
	if err != nil || got != f || !bytes.Equal(rest, []byte{9}) {
		t.Fatal(got, rest, err)
	}
	if err := got.Verify(seller, buyer); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]func(f *OneTimeFeed){
		"key": func(f *OneTimeFeed) { f.Key[0]++ }, "generation": func(f *OneTimeFeed) { f.Generation++ }, "signature": func(f *OneTimeFeed) { f.Signature[5]++ },
	} {
		x := f
		bad(&x)
		if err := x.Verify(seller, buyer); !errors.Is(err, ErrSignature) {
			t.Errorf("changed %s: %v", name, err)
		}
	}
	if f.Verify(seller, seller) == nil || f.Verify(buyer, buyer) == nil {
		t.Error("good for others too")
	}
	for i := range b {
		if _, _, err := ParseOneTimeFeed(b[:i]); !errors.Is(err, compact.ErrShort) {
			t.Errorf("%d bytes: %v", i, err)
		}
	}
}

func TestHandshake(t *testing.T) {
	h := Handshake{Version: 2, Features: 5, Agent: "edge"}
	b := h.Append(nil)
	if hex.EncodeToString(b) != "02050465646765" {
		t.Errorf("%x", b)
	}
	if got, _, err := ParseHandshake(b); err != nil || got != h {
		t.Error(got, err)
	}
}

// nothing is a Handler that only looks.
type nothing struct{ valid *Valid }

func (nothing) Opened(Handshake) error        { return nil }
func (nothing) SellerID([32]byte) error       { return nil }
func (nothing) OneTimeFeed(OneTimeFeed) error { return nil }
func (n nothing) Valid(v Valid) error         { *n.valid = v; return nil }
func (nothing) Invalid(Invalid) error         { return nil }
func (nothing) Closed(error)                  {}

func TestMessages(t *testing.T) {
	var v Valid
	h := handler{nothing{&v}}
	doc := `{"type":"free","remaining":null,"creditMsat":"0","first":3,"length":9,"later":[1]}`
	if err := h.Message(typeValid, compact.AppendString(nil, doc)); err != nil || v.First != 3 || v.Length != 9 || v.Remaining != nil || v.Type != "free" {
		t.Error(v, err)
	}
	for name, m := range map[string]struct {
		typ uint64
		b   []byte
	}{
		"short id": {typeSellerID, make([]byte, 31)}, "no JSON": {typeValid, compact.AppendString(nil, "{")}, "cut": {typeInvalid, []byte{5, '{'}},
		"long": {typeInvalid, compact.AppendBuffer(nil, bytes.Repeat([]byte(" "), maxJSON+1))}, "feed": {typeOneTimeFeed, nil},
	} {
		if err := h.Message(m.typ, m.b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.Message(99, []byte("what?")); err != nil {
		t.Error(err)
	}
	if err := h.Opened([]byte{9, 0, 0}); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
}

func FuzzMessage(f *testing.F) {
	o := OneTimeFeed{Key: [32]byte{3}}
	f.Add(uint64(typeSellerID), make([]byte, 32))
	f.Add(uint64(typeOneTimeFeed), o.Append(nil))
	f.Add(uint64(typeValid), compact.AppendString(nil, `{"type":"free","remaining":1}`))
	f.Add(uint64(typeInvalid), compact.AppendString(nil, `{"error":"x"}`))
	f.Fuzz(func(t *testing.T, typ uint64, b []byte) {
		var v Valid
		h := handler{nothing{&v}}
		h.Message(typ, b) //nolint:errcheck // must not panic
		h.Opened(b)       //nolint:errcheck // likewise
	})
}
