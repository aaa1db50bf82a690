package udx_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"dazaar-edge/protocol/simnet"
	"dazaar-edge/protocol/udx"
)

func TestTransfer(t *testing.T) {
	for _, c := range []struct {
		name string
		link simnet.Link // of the receiver; the sender's is fast
		cfg  udx.StreamConfig
		size int
		most time.Duration // that it may take
	}{
		{"one byte", simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{}, 1, 25 * time.Millisecond},
		{"nothing", simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{}, 0, 25 * time.Millisecond},
		{"clean", simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{MaxWindow: 4 << 20}, 4 << 20, time.Second},
		{"small window", simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{Window: 4 << 10}, 256 << 10, 3 * time.Second},
		{"loss", simnet.Link{Delay: 10 * time.Millisecond, Loss: 0.05}, udx.StreamConfig{MaxWindow: 4 << 20}, 1 << 20, time.Second},
		{"much loss", simnet.Link{Delay: 10 * time.Millisecond, Loss: 0.4}, udx.StreamConfig{MaxWindow: 4 << 20}, 256 << 10, 30 * time.Second},
		{"reorder", simnet.Link{Delay: 10 * time.Millisecond, Reorder: 0.1, Late: 8 * time.Millisecond}, udx.StreamConfig{MaxWindow: 4 << 20}, 1 << 20, time.Second},
		{"duplicates", simnet.Link{Delay: 10 * time.Millisecond, Duplicate: 0.3}, udx.StreamConfig{MaxWindow: 4 << 20}, 1 << 20, time.Second},
		{"jitter", simnet.Link{Delay: 10 * time.Millisecond, Jitter: 20 * time.Millisecond}, udx.StreamConfig{MaxWindow: 4 << 20}, 1 << 20, 2 * time.Second},
		{"small MTU", simnet.Link{Delay: 10 * time.Millisecond, MTU: 1280}, udx.StreamConfig{MaxWindow: 4 << 20}, 1 << 20, time.Second},
		{"bottleneck", simnet.Link{Delay: 10 * time.Millisecond, Rate: 1 << 20}, udx.StreamConfig{MaxWindow: 4 << 20}, 4 << 20, 4900 * time.Millisecond},
		{"small queue", simnet.Link{Delay: 10 * time.Millisecond, Rate: 1 << 20, Queue: 10 << 10}, udx.StreamConfig{MaxWindow: 4 << 20}, 4 << 20, 6 * time.Second},
		{"everything", simnet.Link{Delay: 30 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.02, Duplicate: 0.01, Reorder: 0.01, Late: 20 * time.Millisecond, Rate: 1 << 20}, udx.StreamConfig{MaxWindow: 4 << 20}, 4 << 20, 8 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			connected(t, simnet.Link{Delay: time.Millisecond}, c.link, c.cfg, func(t *testing.T, p *pair) {
				b := data(c.size)
				took := send(t, p.x, p.y, b)
				st := p.x.Stats()
				t.Logf("%v, %+v", took, st)
				if took > c.most {
					t.Errorf("it took %v, more than %v", took, c.most)
				}
				// The other way, on the same stream.
				if took := send(t, p.y, p.x, b); took > c.most {
					t.Errorf("back it took %v, more than %v", took, c.most)
				}
				time.Sleep(time.Minute) // who hears nothing any more gives up
				if n := p.a.ep.Streams() + p.b.ep.Streams(); n != 0 {
					t.Errorf("%d streams are left", n)
				}
			})
		})
	}
}

// TestBottleneck: 60 s over 20 Mbit/s with 100 ms and 2 % loss.
func TestBottleneck(t *testing.T) {
	const rate = 20e6 / 8
	connected(t, simnet.Link{Delay: 25 * time.Millisecond}, simnet.Link{Delay: 25 * time.Millisecond, Loss: 0.02, Rate: rate, Queue: 250 << 10}, udx.StreamConfig{MaxWindow: 4 << 20, SendBuffer: 4 << 20}, func(t *testing.T, p *pair) {
		var wg sync.WaitGroup
		wg.Go(func() {
			b := make([]byte, 64<<10)
			for begun := time.Now(); time.Since(begun) < time.Minute; {
				p.x.Write(b)
			}
			p.x.Close()
		})
		p.y.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := io.Copy(io.Discard, p.y)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		p.y.Close()
		wg.Wait()
		share := float64(n) / 60 / rate
		t.Logf("%.1f %% of the bottleneck, %+v", 100*share, p.x.Stats())
		if share < 0.85 {
			t.Errorf("%.1f %% of the bottleneck", 100*share)
		}
	})
}

// TestBind: what comes before a stream is bound is kept, and acknowledged then.
func TestBind(t *testing.T) {
	connected(t, simnet.Link{}, simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		if err := p.x.Bind(p.a.sock, p.b.sock.LocalAddr(), 1); err == nil {
			t.Error("it is bound twice")
		}
		heard := make(chan netip.AddrPort, 100)
		late := p.b.stream(t, udx.StreamConfig{OnPacket: func(_ *udx.Socket, from netip.AddrPort) { heard <- from }})
		first := p.a.stream(t, udx.StreamConfig{})
		if err := first.Bind(p.a.sock, p.b.sock.LocalAddr(), late.ID()); err != nil {
			t.Fatal(err)
		}
		first.Write([]byte("early"))
		if got := <-heard; got != p.a.sock.LocalAddr() {
			t.Errorf("heard of %v", got)
		}
		if late.Bound() || first.Backlog() != 5 {
			t.Errorf("bound %v, backlog %d", late.Bound(), first.Backlog())
		}
		if err := late.Bind(p.b.sock, p.a.sock.LocalAddr(), first.ID()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if n := first.Backlog(); n != 0 {
			t.Errorf("%d bytes were not acknowledged", n)
		}
		b := make([]byte, 10)
		if n, err := late.Read(b); string(b[:n]) != "early" || err != nil {
			t.Errorf("%q, %v", b[:n], err)
		}
	})
}

// TestMove: the other side goes to another network; it is followed when a frame that came
// from there is authentic, and not before.
func TestMove(t *testing.T) {
	connected(t, simnet.Link{}, simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		b := make([]byte, 100)
		total := int64(0)
		say := func(from, to *udx.Stream, text string) {
			t.Helper()
			if _, err := from.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			to.SetReadDeadline(time.Now().Add(3 * time.Second))
			n, err := io.ReadFull(to, b[:len(text)])
			if err != nil || string(b[:n]) != text {
				t.Fatalf("%q came, %v", b[:n], err)
			}
		}
		say(p.x, p.y, "here")
		total += 4
		p.y.Authenticated(total)
		before := p.y.RemoteAddr().String()
		p.a.host.Move(p.net.Public(), "9.9.9.9")
		say(p.x, p.y, "there")
		if got := p.y.RemoteAddr().String(); got != before {
			t.Fatalf("it moved to %s, and nothing was authentic", got)
		}
		total += 5
		p.y.Authenticated(total - 1)
		if got := p.y.RemoteAddr().String(); got == before {
			t.Fatal("it did not move")
		}
		say(p.y, p.x, "answer")
		for i := range 20 {
			say(p.x, p.y, fmt.Sprint("and on ", i))
		}
	})
}

// TestStrangers: nobody but the other side ends a stream or gets its packets.
func TestStrangers(t *testing.T) {
	connected(t, simnet.Link{}, simnet.Link{Delay: 10 * time.Millisecond}, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		evil := newPeer(t, p.net.Public().Host("6.6.6.6", simnet.Link{}), 6)
		defer evil.close()
		s := evil.stream(t, udx.StreamConfig{})
		s.Bind(evil.sock, p.b.sock.LocalAddr(), p.y.ID())
		s.Abort()
		time.Sleep(time.Second)
		if took := send(t, p.x, p.y, data(100<<10)); took > time.Second {
			t.Error(took)
		}
	})
}

func TestClose(t *testing.T) {
	link := simnet.Link{Delay: 10 * time.Millisecond}
	connected(t, link, link, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		b := data(100 << 10)
		p.x.Write(b)
		p.x.Close()
		if _, err := p.x.Write(b); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		got, err := io.ReadAll(p.y)
		if len(got) != len(b) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		p.y.Close()
		time.Sleep(5 * time.Second)
		if n := p.a.ep.Streams() + p.b.ep.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
	connected(t, link, link, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		p.x.Abort()
		var b [1]byte
		if _, err := p.y.Read(b[:]); !errors.Is(err, udx.ErrReset) {
			t.Error(err)
		}
		if _, err := p.x.Read(b[:]); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	// The other side is gone, and nobody says so.
	connected(t, link, link, udx.StreamConfig{Silence: 20 * time.Second}, func(t *testing.T, p *pair) {
		p.b.host.SetLink(simnet.Link{Blocked: true})
		p.x.Write([]byte("hello?"))
		begun := time.Now()
		var b [1]byte
		if _, err := p.x.Read(b[:]); !errors.Is(err, udx.ErrTimeout) {
			t.Error(err)
		}
		if took := time.Since(begun); took < 19*time.Second || took > 22*time.Second {
			t.Error(took)
		}
		p.y.Close()
		time.Sleep(time.Minute)
		if n := p.a.ep.Streams() + p.b.ep.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

func TestDeadline(t *testing.T) {
	connected(t, simnet.Link{}, simnet.Link{}, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		p.x.SetDeadline(time.Now().Add(time.Second))
		var b [1]byte
		if _, err := p.x.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		if _, err := p.x.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		var to net.Error
		if _, err := p.x.Read(b[:]); !errors.As(err, &to) || !to.Timeout() {
			t.Error(err)
		}
	})
}

// TestOutage: what the network does not carry for a while arrives soon after.
func TestOutage(t *testing.T) {
	link := simnet.Link{Delay: 20 * time.Millisecond}
	connected(t, link, link, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		send1 := func(text string) {
			p.x.Write([]byte(text))
			io.ReadFull(p.y, make([]byte, len(text)))
		}
		send1("first")
		for _, away := range []time.Duration{time.Second, 5 * time.Second, 25 * time.Second} {
			p.b.host.SetLink(simnet.Link{Blocked: true})
			p.x.Write([]byte("during"))
			time.Sleep(away)
			p.b.host.SetLink(link)
			begun := time.Now()
			if _, err := io.ReadFull(p.y, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begun); took > 2200*time.Millisecond {
				t.Errorf("%v after an outage of %v", took, away)
			}
			send1("after")
		}
	})
}

// TestBlackHole: a path that carried large packets carries small ones only from now on.
func TestBlackHole(t *testing.T) {
	link := simnet.Link{Delay: 10 * time.Millisecond}
	connected(t, link, link, udx.StreamConfig{MaxWindow: 1 << 20}, func(t *testing.T, p *pair) {
		var wg sync.WaitGroup
		wg.Go(func() { p.x.Write(data(8 << 20)); p.x.CloseWrite() })
		if _, err := io.CopyN(io.Discard, p.y, 4<<20); err != nil {
			t.Fatal(err)
		}
		if st := p.x.Stats(); st.MTU != 1500 {
			t.Errorf("%+v", st)
		}
		link.MTU = 1300
		p.b.host.SetLink(link)
		begun := time.Now()
		if n, err := io.Copy(io.Discard, p.y); n != 4<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Error(took)
		}
		wg.Wait()
	})
}

func TestLoopback(t *testing.T) {
	a, b := real(t), real(t)
	x, y := a.stream(t, udx.StreamConfig{MaxWindow: 4 << 20}), b.stream(t, udx.StreamConfig{MaxWindow: 4 << 20})
	if err := errors.Join(x.Bind(a.sock, b.sock.LocalAddr(), y.ID()), y.Bind(b.sock, a.sock.LocalAddr(), x.ID())); err != nil {
		t.Fatal(err)
	}
	t.Log(send(t, x, y, data(64<<20)), x.Stats())
}

func real(t testing.TB) *peer {
	t.Helper()
	c, err := udx.ListenUDP(addr("127.0.0.1:0"), false)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{ep: udx.NewEndpoint(nil)}
	p.sock = p.ep.NewSocket(c, false, nil)
	t.Cleanup(p.close)
	return p
}
