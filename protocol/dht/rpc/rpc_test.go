package rpc

import (
	"net/netip"
	"testing"
	"time"

	"dazaar-edge/protocol/dht/packet"
)

// TestSampler: the verdict is that of most hosts, each of which has one vote, and follows when
// they see something else.
func TestSampler(t *testing.T) {
	var s sampler
	now := time.Now()
	host := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{5, 5, 5, byte(i)}) }
	all := func(see func(i int) netip.AddrPort) {
		for i := range maxVotes {
			s.add(host(i), see(i), now)
		}
	}
	a, b := netip.MustParseAddrPort("1.1.1.1:5"), netip.MustParseAddrPort("2.2.2.2:6")
	if s.verdict().IsValid() {
		t.Error("a verdict of nothing")
	}
	all(func(int) netip.AddrPort { return a })
	if got := s.verdict(); got != a {
		t.Error(got)
	}
	for range 100 { // one who lies, and says it often
		s.add(host(200), b, now)
	}
	if got := s.verdict(); got != a {
		t.Error(got)
	}
	all(func(int) netip.AddrPort { return b })
	if got := s.verdict(); got != b {
		t.Errorf("it stays with %v", got)
	}
	all(func(i int) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), uint16(1000+i)) })
	if got := s.verdict(); got != netip.AddrPortFrom(a.Addr(), 0) {
		t.Errorf("%v where each sees another port", got)
	}
	all(func(i int) netip.AddrPort { return netip.AddrPortFrom(host(i), 7) })
	if got := s.verdict(); got.IsValid() {
		t.Errorf("%v where each sees another host", got)
	}
	now = now.Add(2 * voteTime)
	s.add(host(1), a, now)
	if got := s.verdict(); got != a {
		t.Errorf("%v, which is what was seen long ago", got)
	}
}

// TestRecent: a host is remembered for the time that it must be, and not for ever.
func TestRecent(t *testing.T) {
	var r recent
	now, a, b := time.Now(), netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2.2.2.2")
	r.add(a, now)
	for range 59 {
		now = now.Add(spokenTime / 60)
		r.add(b, now)
		if !r.has(a, now) {
			t.Fatal("forgotten too early")
		}
	}
	now = now.Add(3 * spokenTime)
	if r.has(a, now) || r.has(b, now) {
		t.Error("it does not forget")
	}
	r.add(b, now)
	if r.has(a, now) || !r.has(b, now) {
		t.Error("it has another one")
	}
}

// TestTable: no row has more than its nodes, the closest are those by distance, and none is
// lost when the id changes but for what does not fit.
func TestTable(t *testing.T) {
	var x table
	now := time.Now()
	full := 0
	for i := range 2000 {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{5, byte(i >> 8), byte(i), 1}), 49737)
		if _, ok := x.see(packet.NodeID(a), a, now.Add(time.Duration(i)), true); ok {
			full++
		}
	}
	n := 0
	for k, row := range x.rows {
		if n += len(row); len(row) > rowSize {
			t.Errorf("%d nodes in row %d", len(row), k)
		}
	}
	if n != x.n || n+full != 2000 {
		t.Errorf("%d nodes, and %d; %d found no room", n, x.n, full)
	}
	target := packet.NodeID(netip.MustParseAddrPort("8.8.8.8:1"))
	best := x.closest(target, rowSize)
	for i, e := range best[1:] {
		if closer(target, best[i].id, e.id) > 0 {
			t.Error("they are out of order")
		}
	}
	last := best[len(best)-1]
	for _, e := range x.all() {
		if closer(target, e.id, last.id) < 0 {
			found := false
			for _, b := range best {
				found = found || b.id == e.id
			}
			if !found {
				t.Error("one that is closer is missing")
			}
		}
	}
	x.become(target)
	if x.n > n || x.id != target {
		t.Errorf("%d nodes, then %d", n, x.n)
	}
	x.drop(best[0].id)
	if got := x.closest(target, 1); got[0].id == best[0].id {
		t.Error("it is still there")
	}
}
