package punch

import (
	"net/netip"
	"strings"
	"testing"

	"dazaar-edge/protocol/dht/packet"
)

// TestVerdict: section 5.1 of specs/hyperdht.md, row by row.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		seen  string
		kind  packet.Firewall
		addrs string
	}{
		{"", packet.Unknown, ""},
		{"1.1.1.1:5 1.1.1.1:5", packet.Unknown, ""},
		{"1.1.1.1:5 1.1.1.1:5 1.1.1.1:5", packet.Consistent, "1.1.1.1:5"},
		{"1.1.1.1:5 1.1.1.1:6 1.1.1.1:5 1.1.1.1:5", packet.Consistent, "1.1.1.1:5 1.1.1.1:6"},
		{"1.1.1.1:5 1.1.1.1:6 1.1.1.1:7", packet.Random, "1.1.1.1:0"},
		{"1.1.1.1:5 1.1.1.1:6 1.1.1.1:5", packet.Unknown, ""},
		{"1.1.1.1:5 1.1.1.1:6 1.1.1.1:5 1.1.1.1:7", packet.Random, "1.1.1.1:0"},
		{"1.1.1.1:5 2.2.2.2:6 1.1.1.1:5 2.2.2.2:6", packet.Consistent, "1.1.1.1:5 2.2.2.2:6"},
		{"1.1.1.1:5 2.2.2.2:6 1.1.1.1:5 2.2.2.2:7 3.3.3.3:1", packet.Random, "1.1.1.1:0"},
		{"1.1.1.1:0 1.1.1.1:0 1.1.1.1:0", packet.Unknown, ""}, // no port is no address
	} {
		var s samples
		for f := range strings.FieldsSeq(c.seen) {
			s.add(netip.MustParseAddrPort(f))
		}
		kind, addrs := s.verdict()
		var text []string
		for _, a := range addrs {
			text = append(text, a.String())
		}
		if got := strings.Join(text, " "); kind != c.kind || got != c.addrs {
			t.Errorf("%s: %s, %s", c.seen, kind, got)
		}
	}
}

// TestThrottle: one attempt at a time, and not soon again.
func TestThrottle(t *testing.T) {
	var x Throttle
	if !x.Take() || x.Take() {
		t.Error("two at once")
	}
	x.Free()
	if x.Take() {
		t.Error("soon again")
	}
}
