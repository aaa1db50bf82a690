package card

import (
	"crypto/ed25519"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"dazaar-edge/payment/bolt11"
)

func TestShort(t *testing.T) {
	key := ed25519.NewKeyFromSeed([]byte(strings.Repeat("s", 32)))
	c := Card{
		Name: strings.Repeat("n", 64), Description: strings.Repeat("d", 1000), Network: bolt11.Regtest, Version: 7, Updated: time.Unix(1_800_000_000, 0),
		Payment: []Payment{{Method: "lnd", Currency: "LightningSats", Unit: "readings", Interval: "10", Amount: "1"}},
		Feed:    Feed{Encoding: "senml+json", Every: "10"}, Place: &Place{"60.18", "24.95"},
	}
	c.SetPayees([][33]byte{{2, 1}})
	signed, err := c.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	b, version, err := NewShort(signed)
	if err != nil || version != 7 || len(b) > 400 {
		t.Fatalf("%d bytes, version %d, %v", len(b), version, err)
	}
	s, err := ParseShort(b)
	if err != nil || s.Version != 7 || s.Name != c.Name || s.Amount != "1" || s.Unit != "readings" || s.Interval != "10" || s.Every != "10" || *s.Place != *c.Place || s.SHA256 != sha256.Sum256(signed) {
		t.Errorf("%s: %+v, %v", b, s, err)
	}
	if _, _, err := NewShort([]byte("{}")); err == nil {
		t.Error("a short form of nothing")
	}
	if _, err := ParseShort([]byte(strings.Repeat(" ", 1001))); err == nil {
		t.Error("one that is too large")
	}
}
