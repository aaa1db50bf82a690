package udx_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/protocol/simnet"
	"dazaar-edge/protocol/udx"
)

// picky drops those datagrams that lost tells.
type picky struct {
	udx.PacketConn
	lost func(b []byte) bool
}

func (h picky) Write(b []byte, size int, to netip.AddrPort, ttl int) error {
	for len(b) > 0 {
		k := min(size, len(b))
		if !h.lost(b[:k]) {
			if err := h.PacketConn.Write(b[:k], k, to, ttl); err != nil {
				return err
			}
		}
		b = b[k:]
	}
	return nil
}

// streams returns a pair of streams of which the first sends by a picky socket.
func (p *pair) streams(t *testing.T, cfg udx.StreamConfig, lost func([]byte) bool) (x, y *udx.Stream) {
	t.Helper()
	c, err := p.a.host.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	sock := p.a.ep.NewSocket(picky{c, lost}, false, nil)
	x, y = p.a.stream(t, cfg), p.b.stream(t, cfg)
	if err := errors.Join(x.Bind(sock, p.b.sock.LocalAddr(), y.ID()), y.Bind(p.b.sock, sock.LocalAddr(), x.ID())); err != nil {
		t.Fatal(err)
	}
	sock.Retire()
	return x, y
}

// TestManyGaps: every second packet of a long stretch is lost, then all for a while: it goes
// on at once, though the other side has more than it can say.
func TestManyGaps(t *testing.T) {
	for _, black := range []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond} {
		link := simnet.Link{Delay: 25 * time.Millisecond, Rate: 5 << 20, Queue: 2 << 20}
		connected(t, simnet.Link{Delay: 25 * time.Millisecond}, link, udx.StreamConfig{}, func(t *testing.T, p *pair) {
			const first, last = 4001, 4601
			var mu sync.Mutex
			var darkSince time.Time
			seen := map[uint32]bool{}
			x, y := p.streams(t, udx.StreamConfig{MaxWindow: 4 << 20, SendBuffer: 4 << 20}, func(b []byte) bool {
				mu.Lock()
				defer mu.Unlock()
				seq := binary.LittleEndian.Uint32(b[12:])
				again := seen[seq]
				seen[seq] = true
				if b[2] != 1 {
					return false
				}
				if seq == last && !again {
					darkSince = time.Now()
				}
				if !darkSince.IsZero() && time.Since(darkSince) < black {
					return true
				}
				return seq >= first && seq < last && seq%2 == 1 && !again
			})
			d := data(10 << 20)
			go x.Write(d) //nolint:errcheck // read below
			begun := time.Now()
			y.SetReadDeadline(begun.Add(time.Hour)) //nolint:errcheck // it never fails
			if n, err := io.ReadFull(y, make([]byte, len(d))); err != nil || time.Since(begun) > 10*time.Second {
				t.Errorf("dark for %v: %d bytes in %v, %v", black, n, time.Since(begun), err)
			}
			x.Abort()
			y.Abort()
		})
	}
}

// TestLongerWay: when the round-trip time becomes longer than a time-out, it is learned.
func TestLongerWay(t *testing.T) {
	for _, to := range []time.Duration{300, 600, 1200} {
		link := simnet.Link{Delay: 10 * time.Millisecond}
		connected(t, link, link, udx.StreamConfig{MaxWindow: 4 << 20}, func(t *testing.T, p *pair) {
			one := func(n int) {
				go p.x.Write(data(n)) //nolint:errcheck // read below
				if _, err := io.ReadFull(p.y, make([]byte, n)); err != nil {
					t.Fatal(err)
				}
			}
			one(1 << 20)
			time.Sleep(time.Second)
			long := simnet.Link{Delay: to * time.Millisecond / 4}
			p.a.host.SetLink(long)
			p.b.host.SetLink(long)
			before := p.x.Stats()
			for range 50 {
				one(200)
				time.Sleep(3 * time.Second)
			}
			one(1 << 20)
			if st := p.x.Stats(); st.Resent-before.Resent > 15 || st.RTT < to*time.Millisecond*9/10 {
				t.Errorf("%v: %+v, before %+v", to*time.Millisecond, st, before)
			}
		})
	}
}

// TestMovesWhileSending: a peer that moves while something is on its way is followed, though
// what it sends first is what was there already, and no frame is complete.
func TestMovesWhileSending(t *testing.T) {
	for _, frame := range []int{5, 64 << 10, 256 << 10} {
		link := simnet.Link{Delay: 20 * time.Millisecond, Rate: 500 << 10, Queue: 64 << 10}
		for i := range 6 {
			connected(t, link, simnet.Link{Delay: 5 * time.Millisecond}, udx.StreamConfig{MaxWindow: 1 << 20}, func(t *testing.T, p *pair) {
				go func() { // each frame is authentic
					b := make([]byte, frame)
					for total := int64(frame); ; total += int64(frame) {
						if _, err := io.ReadFull(p.y, b); err != nil {
							return
						}
						p.y.Authenticated(total)
					}
				}()
				var wg sync.WaitGroup
				defer wg.Wait()
				wg.Go(func() {
					for b := make([]byte, frame); ; {
						if _, err := p.x.Write(b); err != nil {
							return
						}
						if frame < 1000 {
							time.Sleep(100 * time.Millisecond)
						}
					}
				})
				time.Sleep(3*time.Second + time.Duration(i)*17*time.Millisecond)
				p.a.host.Move(p.net.Public(), "9.9.9.9")
				time.Sleep(10 * time.Second)
				if at := p.y.RemoteAddr().String(); at[:7] != "9.9.9.9" {
					t.Errorf("frames of %d, %d: it stays with %s", frame, i, at)
				}
				p.x.Abort()
				p.y.Abort()
			})
		}
	}
}

// TestMovesAlone: one end leaves a junction, and the other one does not read, by which it
// would follow: what it writes comes all the same. So it does where the one that left, as stock
// peers, says nothing by the junction any more, if where it is is known.
func TestMovesAlone(t *testing.T) {
	for i := range 16 {
		silent := i >= 8
		link := simnet.Link{Delay: 10 * time.Millisecond, Rate: 2 << 20, Queue: 64 << 10, Loss: float64(i%2) / 100}
		connected(t, link, link, udx.StreamConfig{}, func(t *testing.T, p *pair) {
			c := newPeer(t, p.net.Public().Host("1.0.0.3", simnet.Link{}), 3)
			defer c.close()
			x, y := p.a.stream(t, udx.StreamConfig{MaxWindow: 1 << 20}), p.b.stream(t, udx.StreamConfig{MaxWindow: 1 << 20})
			var gone atomic.Bool // the junction does not take what x says
			host := [2]func() netip.Addr{func() netip.Addr {
				if gone.Load() {
					return netip.Addr{}
				}
				return p.a.sock.LocalAddr().Addr()
			}, func() netip.Addr { return p.b.sock.LocalAddr().Addr() }}
			j, err := c.ep.Join(udx.JunctionConfig{IDs: [2]uint32{x.ID(), y.ID()}, Host: host})
			if err != nil {
				t.Fatal(err)
			}
			defer j.Close()
			x.Direct(y.ID())
			y.Direct(x.ID())
			if err := errors.Join(x.Bind(p.a.sock, c.sock.LocalAddr(), j.ID(0)), y.Bind(p.b.sock, c.sock.LocalAddr(), j.ID(1))); err != nil {
				t.Fatal(err)
			}
			x.Heartbeat() // the junction hears where both are
			y.Heartbeat()
			time.Sleep(time.Duration(i%8) * 50 * time.Millisecond)
			if _, err := x.Write([]byte("unread")); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(time.Duration(1+i%8)*30*time.Millisecond, func() {
				if gone.Store(silent); silent {
					y.Trust(p.b.sock, p.a.sock.LocalAddr())
				}
				x.Move(p.a.sock, p.b.sock.LocalAddr(), y.ID())
			})
			if took := send(t, y, x, data(1<<20)); took > 3*time.Second {
				t.Errorf("%d: it took %v", i, took)
			}
			if _, at := y.Way(); at != c.sock.LocalAddr() {
				t.Errorf("%d: it followed, to %v", i, at)
			}
		})
	}
}

// TestNeverThrough: a stream whose packets do not pass ends, though the other side is heard.
func TestNeverThrough(t *testing.T) {
	link := simnet.Link{Delay: 10 * time.Millisecond}
	connected(t, link, link, udx.StreamConfig{}, func(t *testing.T, p *pair) {
		var mu sync.Mutex
		most := 1500
		x, y := p.streams(t, udx.StreamConfig{MaxWindow: 1 << 20}, func(b []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			return len(b)+28 > most
		})
		go io.Copy(io.Discard, y) //nolint:errcheck // it ends
		go io.Copy(io.Discard, x) //nolint:errcheck // it ends
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			for {
				if _, err := y.Write([]byte("I am here")); err != nil {
					return
				}
				time.Sleep(5 * time.Second)
			}
		})
		if _, err := x.Write(data(1 << 20)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		mu.Lock()
		most = 1100
		mu.Unlock()
		if _, err := x.Write(data(100 << 10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if x.Alive() {
			t.Errorf("it is still there: %+v", x.Stats())
		}
		x.Abort()
		y.Abort()
	})
}

// TestNobodyElseIsCut: one peer that vanishes does not make routers cut the packets of others.
func TestNobodyElseIsCut(t *testing.T) {
	link := simnet.Link{Delay: 10 * time.Millisecond}
	connected(t, link, simnet.Link{Delay: 10 * time.Millisecond, MTU: 1300}, udx.StreamConfig{MaxWindow: 1 << 20}, func(t *testing.T, p *pair) {
		c := newPeer(t, p.net.Public().Host("1.0.0.3", link), 3)
		defer c.close()
		x, y := p.a.stream(t, udx.StreamConfig{MaxWindow: 1 << 20}), c.stream(t, udx.StreamConfig{MaxWindow: 1 << 20})
		if err := errors.Join(x.Bind(p.a.sock, c.sock.LocalAddr(), y.ID()), y.Bind(c.sock, p.a.sock.LocalAddr(), x.ID())); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, y) //nolint:errcheck // it vanishes
		if _, err := x.Write(data(1 << 20)); err != nil {
			t.Fatal(err)
		}
		c.host.SetLink(simnet.Link{Blocked: true})
		if _, err := x.Write(data(100 << 10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		x.Abort()
		cut := 0
		p.net.Trace = func(what string, _, _ netip.AddrPort, size int) {
			if what == "arrived" && size+28 > 1300 {
				cut++
			}
		}
		send(t, p.x, p.y, data(1<<20))
		if st := p.x.Stats(); cut > 0 || st.MTU > 1300 {
			t.Errorf("%d packets were cut: %+v", cut, st)
		}
	})
}

// TestAfterIdle: who pauses is not slowed for it.
func TestAfterIdle(t *testing.T) {
	link := simnet.Link{Delay: 25 * time.Millisecond, Rate: 20e6 / 8, Queue: 250 << 10}
	connected(t, simnet.Link{Delay: 25 * time.Millisecond}, link, udx.StreamConfig{MaxWindow: 4 << 20, SendBuffer: 4 << 20}, func(t *testing.T, p *pair) {
		one := func(n int) time.Duration {
			begun := time.Now()
			go p.x.Write(data(n)) //nolint:errcheck // read below
			if _, err := io.ReadFull(p.y, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			return time.Since(begun)
		}
		one(8 << 20)
		for _, idle := range []time.Duration{2, 9, 11, 12, 20} {
			time.Sleep(idle * time.Second)
			if took := one(512 << 10); took > 300*time.Millisecond {
				t.Errorf("after %d s: %v", idle, took)
			}
		}
	})
}

// TestMuchLoss: where four of ten packets are lost each way, few transfers wait long for the luck
// of what is sent after a time-out.
func TestMuchLoss(t *testing.T) {
	var took []time.Duration
	for seed := range uint64(100) {
		lossy := simnet.Link{Delay: 10 * time.Millisecond, Loss: 0.4}
		connectedBy(t, seed, simnet.Link{Delay: time.Millisecond}, lossy, udx.StreamConfig{MaxWindow: 4 << 20}, func(t *testing.T, p *pair) {
			b := data(256 << 10)
			took = append(took, send(t, p.x, p.y, b), send(t, p.y, p.x, b))
		})
	}
	slices.Sort(took)
	long := took[len(took)*95/100]
	t.Logf("median %v, 95 of 100 take %v at most, the last one %v", took[len(took)/2], long, took[len(took)-1])
	if long > 9*time.Second {
		t.Error("that is too long")
	}
}
