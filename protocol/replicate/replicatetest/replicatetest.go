// Package replicatetest has the vectors of the replication protocol: its messages,
// and sessions of stock peers, recorded.
package replicatetest

import (
	"embed"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
)

//go:embed testdata/*.json
var files embed.FS

// Hex is a byte string as vectors have it.
type Hex []byte

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// Hash returns h as a hash; h has its 32 bytes.
func (h Hex) Hash() merkle.Hash { return merkle.Hash(h) }

// Load reads a file of vectors into v.
func Load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := files.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(name, err)
	}
}

// Capture is a recorded session of stock peers.
type Capture struct {
	HandshakeHash Hex
	Initiator     string
	Frames        []struct {
		From, Marker string // From is empty where only something was noted
		Hex          Hex
	}
	// Of a raised fork: what is in the log on each fork, as numbers of blocks,
	// and where the buyer stood before and after.
	Logs                 map[uint64][]int
	BuyerBefore, Outcome struct {
		Length, Fork uint64
		TreeHash     Hex
	}

	Name          string `json:"-"` // the file's and its own
	SellerKeySeed Hex    `json:"-"` // the file's
}

// Captures returns all sessions.
func Captures(t testing.TB) (out []*Capture) {
	t.Helper()
	for _, name := range []string{"captures-js-to-js.json", "captures-rekey.json", "captures-forks.json"} {
		var f struct {
			SellerKeySeed Hex
			Scenarios     map[string]*Capture
		}
		Load(t, name, &f)
		for _, n := range slices.Sorted(maps.Keys(f.Scenarios)) {
			c := f.Scenarios[n]
			c.Name, c.SellerKeySeed = strings.TrimSuffix(name, ".json")+"/"+n, f.SellerKeySeed
			out = append(out, c)
		}
	}
	if len(out) < 20 {
		t.Fatalf("%d captures", len(out))
	}
	return out
}

// Message is one message of a frame. Those of Channel 0 are the session's own.
type Message struct {
	Channel, Type uint64
	Payload       []byte
}

// Split takes a frame apart. The payloads alias b.
func Split(t testing.TB, b []byte) (out []Message) {
	t.Helper()
	u := func() (v uint64) {
		var err error
		if v, b, err = compact.ParseUint(b); err != nil {
			t.Fatalf("frame: %v", err)
		}
		return v
	}
	ch, typ := u(), u()
	if ch != 0 || typ != 0 {
		return []Message{{ch, typ, b}}
	}
	ch = u()
	for len(b) > 0 {
		n := u()
		if n == 0 {
			ch = u()
			continue
		}
		rest := b[n:]
		b = b[:n]
		typ := u()
		out = append(out, Message{ch, typ, b})
		b = rest
	}
	return out
}
