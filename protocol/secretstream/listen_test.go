package secretstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"
)

func addr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// newAdmission returns buckets as a Listener with no configuration has them, on a
// clock that stands still.
func newAdmission(t *testing.T) (a *admission, now *time.Time) {
	l := Listen(noListener{}, ListenConfig{Config: Config{Static: key(1)}})
	t.Cleanup(func() { l.Close() })
	clock := time.Unix(1_800_000_000, 0)
	return &l.admission, &clock
}

// noListener has nobody to accept.
type noListener struct{}

func (noListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }
func (noListener) Close() error              { return nil }
func (noListener) Addr() net.Addr            { return nil }

// tries counts how many of n get through.
func tries(a *admission, now time.Time, n int, from func(i int) net.Addr) (in int) {
	for i := range n {
		if a.admit(from(i), now) {
			in++
		}
	}
	return in
}

func TestAdmission(t *testing.T) {
	for _, c := range []struct {
		name  string
		from  func(i int) net.Addr
		burst int     // admitted at once
		rate  float64 // and then each second
	}{
		{"one address", func(int) net.Addr { return addr("1.2.3.4:5") }, 50, 10},
		{"one /24", func(i int) net.Addr { return addr(fmt.Sprintf("1.2.3.%d:5", i%256)) }, 50, 10},
		{"one /16", func(i int) net.Addr { return addr(fmt.Sprintf("1.2.%d.4:5", i%256)) }, 50, 25},
		{"anywhere", func(i int) net.Addr { return addr(fmt.Sprintf("%d.%d.3.4:5", 1+i%200, i%256)) }, 100, 50},
		{"mapped", func(int) net.Addr { return addr("[::ffff:1.2.3.4]:5") }, 50, 10},
		{"one /56", func(i int) net.Addr { return addr(fmt.Sprintf("[2001:db8:0:%x::1]:5", i%256)) }, 50, 10},
		{"one /32", func(i int) net.Addr { return addr(fmt.Sprintf("[2001:db8:%x:1::1]:5", i%65536)) }, 50, 25},
		{"by UDP", func(int) net.Addr { return net.UDPAddrFromAddrPort(netip.MustParseAddrPort("1.2.3.4:5")) }, 50, 10},
		{"no address", func(int) net.Addr { return &net.UnixAddr{} }, 100, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, now := newAdmission(t)
			if n := tries(a, *now, 5000, c.from); n != c.burst {
				t.Errorf("%d at once, want %d", n, c.burst)
			}
			n := 0
			for range 600 {
				*now = now.Add(100 * time.Millisecond)
				n += tries(a, *now, 20, c.from)
			}
			if got := float64(n) / 60; got < c.rate*0.95 || got > c.rate*1.05 {
				t.Errorf("%.1f a second, want %.1f", got, c.rate)
			}
		})
	}
}

// TestAdmissionOthers: whoever floods, others still get in.
func TestAdmissionOthers(t *testing.T) {
	a, now := newAdmission(t)
	in := 0
	for i := range 60 {
		*now = now.Add(time.Second)
		tries(a, *now, 500, func(i int) net.Addr { return addr(fmt.Sprintf("[2001:db8:%x:1::1]:5", i)) })
		in += tries(a, *now, 1, func(int) net.Addr { return addr("9.9.9.9:1") })
		_ = i
	}
	if in != 60 {
		t.Errorf("one region floods, and %d of 60 get in from elsewhere", in)
	}
	// The whole world floods: those in favor still do.
	buyer := addr("77.7.7.7:7")
	a.favor(buyer, *now)
	rng := rand.New(rand.NewPCG(1, 2))
	in = 0
	for range 60 {
		*now = now.Add(time.Second)
		tries(a, *now, 2000, func(int) net.Addr {
			return addr(fmt.Sprintf("%d.%d.%d.1:5", 1+rng.IntN(70), rng.IntN(256), rng.IntN(256)))
		})
		in += tries(a, *now, 1, func(int) net.Addr { return buyer })
	}
	if in != 60 {
		t.Errorf("everybody floods, and %d of 60 buyers get in", in)
	}
	*now = now.Add(favorTime)
	tries(a, *now, 2000, func(i int) net.Addr { return addr(fmt.Sprintf("%d.%d.%d.1:5", 1+i%70, i%256, i%251)) })
	if a.admit(buyer, *now) {
		t.Error("favor has no end")
	}
	for i := range 3 * maxFavored {
		a.favor(addr(fmt.Sprintf("%d.%d.1.1:1", 1+i/256, i%256)), *now)
	}
	if len(a.favored) > maxFavored {
		t.Errorf("%d are in favor", len(a.favored))
	}
}

// TestAdmissionClockBack sets the clock back, as a first NTP answer may.
func TestAdmissionClockBack(t *testing.T) {
	a, now := newAdmission(t)
	from := func(int) net.Addr { return addr("1.2.3.4:5") }
	tries(a, *now, 1000, from)
	*now = now.Add(-time.Hour)
	tries(a, *now, 1000, from)
	*now = now.Add(10 * time.Second)
	if n := tries(a, *now, 1000, from); n != 50 {
		t.Errorf("%d are let in after the clock was set back", n)
	}
}

// listen returns a Listener on loopback and a way to dial it from an address.
func listen(t *testing.T, cfg ListenConfig) (*Listener, func(from string) (net.Conn, error)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Static = key(1)
	l := Listen(ln, cfg)
	t.Cleanup(func() { l.Close() })
	return l, func(from string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", ln.Addr().String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return c, err
	}
}

// TestListenSilent: one network that shakes hands without end does not keep
// others out.
func TestListenSilent(t *testing.T) {
	l, dial := listen(t, ListenConfig{Handshakes: 8, NetworkPerSecond: 1e6, NetworkBurst: 1e6, PerSecond: 1e6, Burst: 1e6})
	for i := range 40 {
		dial(fmt.Sprintf("127.0.1.%d", 1+i%5))
	}
	for l.Counts().Admitted+l.Counts().Refused < 40 {
		time.Sleep(time.Millisecond)
	}
	if c := l.Counts(); c.Admitted != 8 || c.Refused != 32 {
		t.Errorf("one network: %+v", c)
	}
	for i := range 20 {
		done := make(chan error, 1)
		go func() {
			raw, err := dial("127.0.9.1")
			if err == nil {
				var c *Conn
				if c, err = Client(context.Background(), raw, Config{Static: key(2)}); err == nil {
					defer c.Close()
					_, err = c.ReadMessage()
				}
			}
			done <- err
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if ip := c.RemoteAddr().(*net.TCPAddr).IP.String(); ip != "127.0.9.1" {
			t.Errorf("accepted %s", ip)
		}
		if err := c.WriteMessage([]byte("hello")); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("try %d: %v", i, err)
		}
		c.Close()
		dial("127.0.1.1") // and it goes on
	}
}

// TestListenNobodyAccepts: what nobody takes is bounded, and gives way.
func TestListenNobodyAccepts(t *testing.T) {
	l, dial := listen(t, ListenConfig{Handshakes: 2, NetworkPerSecond: 1e6, NetworkBurst: 1e6, PerSecond: 1e6, Burst: 1e6})
	in := 0
	for range 50 {
		raw, err := dial("127.0.1.1")
		if err != nil {
			continue
		}
		if c, err := Client(context.Background(), raw, Config{Static: key(2)}); err == nil {
			in++
			defer c.Close()
		}
	}
	l.mu.Lock()
	n := len(l.pending)
	l.mu.Unlock()
	if n > 2 || in > 2 {
		t.Errorf("%d are held, %d shook hands", n, in)
	}
}

func TestListenClose(t *testing.T) {
	l, dial := listen(t, ListenConfig{})
	for range 20 {
		dial("127.0.1.1") // silent
	}
	for l.Counts().Admitted < 20 {
		time.Sleep(time.Millisecond)
	}
	start := time.Now()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("it took %v to end handshakes", d)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
