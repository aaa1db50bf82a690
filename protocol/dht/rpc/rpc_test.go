package rpc

import (
	"net/netip"
	"testing"
	"time"

	"dazaar-edge/protocol/dht/packet"
)

// TestSampler: the verdict is that of most, and follows when they see something else.
func TestSampler(t *testing.T) {
	var s sampler
	a, b := netip.MustParseAddrPort("1.1.1.1:5"), netip.MustParseAddrPort("2.2.2.2:6")
	if s.verdict().IsValid() {
		t.Error("a verdict of nothing")
	}
	for range 100 {
		s.add(a)
	}
	if got := s.verdict(); got != a {
		t.Error(got)
	}
	s.add(b) // one who lies
	if got := s.verdict(); got != a {
		t.Error(got)
	}
	for range len(s.last) {
		s.add(b)
	}
	if got := s.verdict(); got != b {
		t.Errorf("it stays with %v", got)
	}
	for port := range uint16(len(s.last)) {
		s.add(netip.AddrPortFrom(a.Addr(), 1000+port))
	}
	if got := s.verdict(); got != netip.AddrPortFrom(a.Addr(), 0) {
		t.Errorf("%v where each sees another port", got)
	}
	for i := range byte(len(s.last)) {
		s.add(netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, 9, 9, i}), 7))
	}
	if got := s.verdict(); got.IsValid() {
		t.Errorf("%v where each sees another host", got)
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
		if _, ok := x.see(packet.NodeID(a), a, now.Add(time.Duration(i))); ok {
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
