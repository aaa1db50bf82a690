package bucket

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestTake: as many as the burst at once, then as the rate, and none is taken from
// one bucket if another has none.
func TestTake(t *testing.T) {
	now := time.Unix(1e9, 0)
	a, b := New(2, 5, now), New(1, 100, now)
	count := func() (n int) {
		for Take(now, a, b) {
			n++
		}
		return n
	}
	if n := count(); n != 5 {
		t.Errorf("%d at once, want 5", n)
	}
	now = now.Add(1500 * time.Millisecond)
	if n := count(); n != 3 {
		t.Errorf("%d after 1.5 s, want 3", n)
	}
	now = now.Add(time.Hour)
	if n := count(); n != 5 {
		t.Errorf("%d after an hour, want 5", n)
	}
	now = now.Add(-time.Hour) // a clock that goes back brings nothing
	if n := count(); n != 0 {
		t.Errorf("%d before", n)
	}
	n := 0
	for Take(now, b) {
		n++
	}
	if n < 87 {
		t.Errorf("%d are left of 100, and 13 were taken", n)
	}
}

// TestNetworks: memory is bounded, and a network that is busy keeps its bucket.
func TestNetworks(t *testing.T) {
	now := time.Unix(1e9, 0)
	s := NewKeyed[netip.Prefix](1, 3)
	for i := range 100_000 {
		p := netip.MustParsePrefix(fmt.Sprintf("%d.%d.%d.0/24", 1+i>>16, i>>8&255, i&255))
		if !Take(now, s.Get(p, now)) {
			t.Fatal("a new network has no token")
		}
		now = now.Add(time.Millisecond)
	}
	if len(s.all) > maxKeys {
		t.Errorf("%d networks are remembered", len(s.all))
	}
	for addr, want := range map[string]string{"192.0.2.77:5": "192.0.2.0/24", "[2001:db8:1:2ff::1]:5": "2001:db8:1:200::/56", "[::ffff:192.0.2.1]:9": "192.0.2.0/24"} {
		if got := Network(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got.String() != want {
			t.Errorf("%s is of %s, want %s", addr, got, want)
		}
	}
	if Network(&net.UnixAddr{}).IsValid() {
		t.Error("a socket has a network")
	}
}
