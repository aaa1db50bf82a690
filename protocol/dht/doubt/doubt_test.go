package doubt

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestBelieve: most are believed at once, then less and less often; one alone is doubted soon.
func TestBelieve(t *testing.T) {
	a, b := netip.MustParseAddrPort("1.1.1.1:1"), netip.MustParseAddrPort("2.2.2.2:2")
	now := time.Now()
	count := func(d *Doubts, who ...netip.AddrPort) (n int) {
		for range 15 * 60 {
			now = now.Add(time.Second)
			if d.Believe(now, who, 3) {
				n++
			}
		}
		return n
	}
	var d Doubts
	if !d.Believe(now, []netip.AddrPort{a, b}, 3) {
		t.Error("it is not believed at once")
	}
	if n := count(&d, a, b); n < 10 || n > 25 {
		t.Errorf("believed %d times in 15 minutes", n)
	}
	if d.Doubted(a) {
		t.Error("one is doubted that another one agrees with")
	}
	d = Doubts{}
	if n := count(&d, a); n < 3 || n > 8 || !d.Doubted(a) || d.Doubted(b) {
		t.Errorf("one alone is believed %d times", n)
	}
	now = now.Add(time.Hour)
	if !d.Believe(now, []netip.AddrPort{b}, 3) {
		t.Error("another one is not believed")
	}
}

// TestSpread: what is in one network comes once, then the rest; the order is kept otherwise.
func TestSpread(t *testing.T) {
	var all []netip.Addr
	for _, s := range []string{"1.1.1.1", "1.1.1.2", "2.2.2.2", "1.1.1.3", "3.3.3.3", "2.2.2.1"} {
		all = append(all, netip.MustParseAddr(s))
	}
	Spread(all, func(a netip.Addr) netip.Addr { return a })
	if got := fmt.Sprint(all); got != "[1.1.1.1 2.2.2.2 3.3.3.3 1.1.1.2 1.1.1.3 2.2.2.1]" {
		t.Error(got)
	}
}
