//go:build interop

package interop

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// sold is what a seller's process says.
type sold struct {
	Port int
	Key  string
}

// measured is what a buyer's process says.
type measured struct {
	Seconds float64
	RSS     int // KiB
}

// ours starts test/peer as the seller; end returns its RSS in KiB.
func ours(b *testing.B, bin string, blocks, size int) (s sold, end func() int) {
	cmd := exec.Command(bin, "sell", "-dir", b.TempDir(), "-blocks", strconv.Itoa(blocks), "-size", strconv.Itoa(size))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	if !sc.Scan() || json.Unmarshal(sc.Bytes(), &s) != nil {
		b.Fatalf("seller says %q", sc.Bytes())
	}
	return s, func() int {
		in.Close()
		var m measured
		if sc.Scan() {
			json.Unmarshal(sc.Bytes(), &m)
		}
		cmd.Wait()
		return m.RSS
	}
}

// stock starts a stock hypercore as the seller.
func stock(b *testing.B, blocks, size int) (s sold, end func() int) {
	p := startPeer(b)
	p.do(`
		s.c = await s.core(s.tmp())
		const step = Math.max(1, Math.min(1000, Math.floor((1 << 20) / a.size)))
		for (let i = 0; i < a.blocks; i += step) {
			const batch = []
			for (let j = i; j < Math.min(i + step, a.blocks); j++) batch.push(s.block(j, a.size))
			await s.c.append(batch)
		}
		const { port } = await s.listen((stream) => s.replicate(s.c, stream))
		return { port, key: s.hex(s.c.key) }
	`, map[string]any{"blocks": blocks, "size": size}, &s)
	return s, func() (rss int) {
		p.do(`return s.rss()`, nil, &rss)
		p.in.Close()
		return rss
	}
}

func buyOurs(b *testing.B, bin string, s sold, blocks int) (m measured) {
	out, err := exec.Command(bin, "buy", "-port", strconv.Itoa(s.Port), "-key", s.Key, "-blocks", strconv.Itoa(blocks)).Output()
	if err == nil {
		err = json.Unmarshal(out, &m)
	}
	if err != nil {
		b.Fatal(err)
	}
	return m
}

func buyStock(b *testing.B, s sold, blocks int) (m measured) {
	p := startPeer(b)
	p.do(`
		const begin = process.hrtime.bigint()
		s.c = await s.core(s.tmp(), Buffer.from(a.key, 'hex'))
		s.stream = await s.dial(a.port)
		s.replicate(s.c, s.stream)
		await s.c.update({ wait: true })
		await s.c.download({ start: 0, end: a.blocks }).done()
		return { seconds: Number(process.hrtime.bigint() - begin) / 1e9, rss: s.rss() }
	`, map[string]any{"key": s.Key, "port": s.Port, "blocks": blocks}, &m)
	p.in.Close()
	return m
}

// BenchmarkCompare makes the same transfer with stock peers at both ends, with
// our seller and a stock buyer, and with ours at both ends.
func BenchmarkCompare(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "peer")
	if out, err := exec.Command("go", "build", "-o", bin, "dazaar-edge/test/peer").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	for _, c := range []struct{ blocks, size int }{{40000, 64}, {2000, 64 << 10}} {
		b.Run(fmt.Sprintf("%d", c.size), func(b *testing.B) {
			for b.Loop() {
				rate := func(m measured) float64 { return float64(c.blocks) / m.Seconds }
				s, end := stock(b, c.blocks, c.size)
				jj := buyStock(b, s, c.blocks)
				jjSeller := end()
				s, end = ours(b, bin, c.blocks, c.size)
				gj := buyStock(b, s, c.blocks)
				gg := buyOurs(b, bin, s, c.blocks)
				ggSeller := end()
				b.ReportMetric(rate(jj), "stock-blocks/s")
				b.ReportMetric(rate(gj)/rate(jj), "our-seller-ratio")
				b.ReportMetric(rate(gg)/rate(jj), "both-ours-ratio")
				b.ReportMetric(rate(gg), "ours-blocks/s")
				b.ReportMetric(float64(jjSeller)/1024, "stock-seller-MiB")
				b.ReportMetric(float64(jj.RSS)/1024, "stock-buyer-MiB")
				b.ReportMetric(float64(ggSeller)/1024, "our-seller-MiB")
				b.ReportMetric(float64(gg.RSS)/1024, "our-buyer-MiB")
			}
		})
	}
}
