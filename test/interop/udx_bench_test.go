//go:build interop

package interop

import (
	"errors"
	"io"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"dazaar-edge/protocol/udx"
)

// udxPair returns two of our streams over loopback, that are connected.
func udxPair(b testing.TB, cfg udx.StreamConfig) (x, y *udx.Stream) {
	b.Helper()
	ep := udx.NewEndpoint(nil)
	var socks []*udx.Socket
	for range 2 {
		c, err := udx.ListenUDP(netip.MustParseAddrPort("127.0.0.1:0"), false)
		if err != nil {
			b.Fatal(err)
		}
		s := ep.NewSocket(c, false, nil)
		b.Cleanup(func() { s.Close() })
		socks = append(socks, s)
	}
	b.Cleanup(func() { ep.Close() })
	x, err := ep.NewStream(cfg)
	if err != nil {
		b.Fatal(err)
	}
	if y, err = ep.NewStream(cfg); err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(x.Bind(socks[0], socks[1].LocalAddr(), y.ID()), y.Bind(socks[1], socks[0].LocalAddr(), x.ID())); err != nil {
		b.Fatal(err)
	}
	return x, y
}

// BenchmarkUDX moves bytes over loopback, between two of our streams and between two of
// udx-native, by turns in one run, as MB/s and as their ratio.
func BenchmarkUDX(b *testing.B) {
	const size = 256 << 20
	p := startPeer(b)
	cfg := udx.StreamConfig{Window: 1 << 20, MaxWindow: 4 << 20, SendBuffer: 4 << 20}
	buf := make([]byte, 64<<10)
	var ours, theirs []float64
	for b.Loop() {
		x, y := udxPair(b, cfg)
		begun := time.Now()
		go func() {
			for sent := 0; sent < size; sent += len(buf) {
				if _, err := x.Write(buf); err != nil {
					b.Error(err)
					return
				}
			}
			x.CloseWrite()
		}()
		into := make([]byte, 256<<10)
		got := 0
		for {
			n, err := y.Read(into)
			got += n
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		if got != size {
			b.Fatalf("%d bytes", got)
		}
		ours = append(ours, size/1e6/time.Since(begun).Seconds())
		x.Abort()
		y.Abort()
		var ms float64
		p.do(`
			const UDX = s.require('udx-native')
			const u = new UDX()
			const sa = u.createSocket(), sb = u.createSocket()
			sa.bind(0, '127.0.0.1'); sb.bind(0, '127.0.0.1')
			const x = u.createStream(1), y = u.createStream(2)
			x.connect(sa, 2, sb.address().port, '127.0.0.1')
			y.connect(sb, 1, sa.address().port, '127.0.0.1')
			const buf = Buffer.alloc(64 << 10)
			let got = 0
			const begun = performance.now()
			const done = new Promise((resolve, reject) => {
				y.on('data', (b) => { got += b.length; if (got >= a.size) resolve() })
				x.on('error', reject); y.on('error', reject)
			})
			let sent = 0
			const more = () => { while (sent < a.size) { sent += buf.length; if (!x.write(buf)) { x.once('drain', more); return } } }
			more()
			await done
			const ms = performance.now() - begun
			x.on('error', () => {}); y.on('error', () => {})
			x.destroy(); y.destroy()
			await sa.close(); await sb.close()
			return ms`, map[string]any{"size": size}, &ms)
		theirs = append(theirs, size/1e3/ms)
	}
	mean := func(v []float64) (m float64) {
		for _, x := range v {
			m += x / float64(len(v))
		}
		return m
	}
	b.ReportMetric(mean(ours), "MB/s")
	b.ReportMetric(mean(theirs), "stock-MB/s")
	b.ReportMetric(mean(ours)/mean(theirs), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkUDXMemory says what a stream costs that waits, and one that has just been busy.
func BenchmarkUDXMemory(b *testing.B) {
	const streams = 500
	for b.Loop() {
		heap := func() float64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return float64(m.HeapAlloc + m.StackInuse)
		}
		x, y := udxPair(b, udx.StreamConfig{})
		before := heap()
		var all []*udx.Stream
		for range streams / 2 {
			x, y := udxPair2(b, x, y)
			all = append(all, x, y)
		}
		b.ReportMetric((heap()-before)/streams, "idle-B/stream")
		buf, into := make([]byte, 32<<10), make([]byte, 64<<10)
		for i := 0; i < len(all); i += 2 {
			for range 4 {
				if _, err := all[i].Write(buf); err != nil {
					b.Fatal(err)
				}
			}
			for got := 0; got < 4*len(buf); {
				n, err := all[i+1].Read(into)
				if err != nil {
					b.Fatal(err)
				}
				got += n
			}
		}
		time.Sleep(50 * time.Millisecond) // the last acknowledgements
		b.ReportMetric((heap()-before)/streams, "used-B/stream")
		for i := 0; i < len(all); i += 2 { // nobody reads
			if _, err := all[i].Write(buf); err != nil {
				b.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
		b.ReportMetric((heap()-before)/streams, "full-B/stream")
		b.ReportMetric(0, "ns/op")
	}
}

// udxPair2 returns two more streams between the sockets of two others.
func udxPair2(b testing.TB, x, y *udx.Stream) (u, v *udx.Stream) {
	b.Helper()
	xs, ya := x.Way()
	ys, xa := y.Way()
	u, err := xs.Endpoint().NewStream(udx.StreamConfig{})
	if err != nil {
		b.Fatal(err)
	}
	if v, err = ys.Endpoint().NewStream(udx.StreamConfig{}); err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(u.Bind(xs, ya, v.ID()), v.Bind(ys, xa, u.ID())); err != nil {
		b.Fatal(err)
	}
	return u, v
}
