package card

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"dazaar-edge/payment/meter"
)

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func example() *Card {
	return &Card{
		Name: "air", Description: "Temperature <roof> & more", Provider: "Kallio", Version: 3, Updated: time.Unix(1_790_000_000, 0), Network: "regtest",
		Payee:   "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad",
		Payment: []Payment{{Method: "lnd", Currency: "LightningSats", Unit: "minutes", Interval: "10", Amount: "100.5"}}, History: &History{Seconds: 86400, Amount: "50"},
		Trial: &Trial{60, 65536}, Terms: &Terms{strings.Repeat("ab", 32)}, Delay: "20",
		Feed:  Feed{Encoding: "senml+json", Every: "10", First: 7, Schema: []Field{{Name: "roof/temperature", Unit: "Cel", Sensor: "bme280", Every: "10"}}},
		Place: &Place{"60.18", "24.95"},
	}
}

func TestCard(t *testing.T) {
	c := example()
	b, err := c.Sign(key(1))
	if err != nil {
		t.Fatal(err)
	}
	seller := [32]byte(key(1)[32:])
	got, err := Parse(b, &seller, 3)
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Fatalf("%+v\nwant %+v: %v", got, c, err)
	}
	if p, err := got.Price(0); err != nil || p != (meter.Price{Unit: meter.Time, Interval: 600_000, Amount: 100_500, History: 50_000}) {
		t.Errorf("%+v, %v", p, err)
	}
	// Written in another way it is the same card.
	var loose any
	if err := json.Unmarshal(b, &loose); err != nil {
		t.Fatal(err)
	}
	pretty, err := json.MarshalIndent(loose, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(pretty, &seller, 0); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("indented: %+v, %v", got, err)
	}
	other := [32]byte(key(2)[32:])
	for name, c := range map[string]struct {
		b      []byte
		seller *[32]byte
		seen   uint64
		want   error
	}{
		"another seller's": {b, &other, 0, ErrSignature},
		"older":            {b, &seller, 4, ErrOlder},
		"changed amount":   {bytes.Replace(b, []byte(`"100.5"`), []byte(`"100.4"`), 1), &seller, 0, ErrSignature},
		"changed payee":    {bytes.Replace(b, []byte(`"03e7`), []byte(`"02e7`), 1), nil, 0, ErrSignature},
		"a field more":     {bytes.Replace(b, []byte(`{`), []byte(`{"more":1,`), 1), nil, 0, ErrSignature},
		"a field twice":    {bytes.Replace(b, []byte(`{`), []byte(`{"name":"air",`), 1), nil, 0, ErrCard},
		"a fraction":       {bytes.Replace(b, []byte(`"version":3`), []byte(`"version":3.0`), 1), nil, 0, ErrCard},
		"no signature":     {bytes.Replace(b, []byte(`"sig":`), []byte(`"sog":`), 1), nil, 0, ErrSignature},
		"no JSON":          {b[1:], nil, 0, ErrCard},
		"an array":         {[]byte(`[1]`), nil, 0, ErrCard},
		"large":            {append(bytes.Clone(b), bytes.Repeat([]byte(" "), MaxSize)...), nil, 0, ErrCard},
	} {
		if bytes.Equal(c.b, b) && name != "another seller's" && name != "older" {
			t.Errorf("%s: nothing is changed", name)
		}
		if got, err := Parse(c.b, c.seller, c.seen); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestUnknownFields are part of what is signed, and no obstacle.
func TestUnknownFields(t *testing.T) {
	b, err := example().Sign(key(1))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	fields["later"] = map[string]any{"b": "1", "a": nil}
	delete(fields, "sig")
	plain, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	message, err := signable(plain)
	if err != nil {
		t.Fatal(err)
	}
	fields["sig"] = strings.ToLower(string(appendHex(ed25519.Sign(key(1), message))))
	signed, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Parse(signed, nil, 0); err != nil || c.Name != "air" {
		t.Error(c, err)
	}
}

func appendHex(b []byte) (out []byte) {
	const digits = "0123456789abcdef"
	for _, v := range b {
		out = append(out, digits[v>>4], digits[v&15])
	}
	return out
}

func TestImpossible(t *testing.T) {
	for name, spoil := range map[string]func(c *Card){
		"name": func(c *Card) { c.Name = "" }, "version": func(c *Card) { c.Version = 0 }, "payee": func(c *Card) { c.Payee = "03" }, "terms": func(c *Card) { c.Terms.SHA256 = "x" },
		"unit": func(c *Card) { c.Payment[0].Unit = "weeks" }, "interval": func(c *Card) { c.Payment[0].Interval = "0" }, "fraction of an interval": func(c *Card) { c.Payment[0].Interval = "1.5" },
		"long interval": func(c *Card) { c.Payment[0].Interval = "9007199254740991" }, "amount": func(c *Card) { c.Payment[0].Amount = "0" },
		"negative amount": func(c *Card) { c.Payment[0].Amount = "-1" }, "places": func(c *Card) { c.Payment[0].Amount = "1.0005" }, "point": func(c *Card) { c.Payment[0].Amount = "1." },
		"huge amount": func(c *Card) { c.Payment[0].Amount = "9007199254740991" }, "method": func(c *Card) { c.Payment[0].Method = "EOS" },
		"currency": func(c *Card) { c.Payment[0].Currency = "EUR" }, "history": func(c *Card) { c.History.Amount = "x" },
		"twice for once": func(c *Card) { c.Payment[0].Unit = "once" }, "large": func(c *Card) { c.Description = strings.Repeat("x", MaxSize) },
		"large number": func(c *Card) { c.Feed.First = 1 << 60 },
	} {
		c := example()
		spoil(c)
		if b, err := c.Sign(key(1)); !errors.Is(err, ErrCard) {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
}

func TestLink(t *testing.T) {
	// z-base-32 of some bytes, as its reference has it: f0bfc7 is 6n9hq.
	var k [32]byte
	copy(k[:], []byte{0xf0, 0xbf, 0xc7})
	if l := Link(k); !strings.HasPrefix(l, "dazaar:6n9hq") || len(l) != len(scheme)+linkDigits {
		t.Error(l)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		for i := range k {
			k[i] = byte(rng.Uint32())
		}
		l := Link(k)
		for _, l := range []string{l, scheme + strings.ToUpper(l[len(scheme):]), scheme + "//" + l[len(scheme):]} {
			if got, err := ParseLink(l); err != nil || got != k {
				t.Errorf("%s is %x, %v", l, got, err)
			}
		}
		for _, bad := range []string{l[1:], l + "y", l[:len(l)-1], l[:len(l)-1] + "9", l[:20] + "l" + l[21:], ""} {
			if got, err := ParseLink(bad); !errors.Is(err, ErrCard) {
				t.Errorf("%s is %x, %v", bad, got, err)
			}
		}
	}
}

// FuzzParse reads anything; nothing that was not signed is a card.
func FuzzParse(f *testing.F) {
	b, err := example().Sign(key(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"name":"x","sellerKey":"00","payment":[{"method":"lnd"}]}`))
	want, err := Parse(b, nil, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Parse(b, nil, 0); err == nil && !reflect.DeepEqual(c, want) {
			t.Errorf("%+v", c)
		}
	})
}
