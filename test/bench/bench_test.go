package bench

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// peer builds test/peer once.
func peer(b *testing.B) string {
	b.Helper()
	bin := filepath.Join(b.TempDir(), "peer")
	if out, err := exec.Command("go", "build", "-o", bin, "dazaar-edge/test/peer").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return bin
}

// report is what a peer prints.
type report struct {
	Port    int
	Key     string
	Seconds float64
	RSS     int
}

func transfer(b *testing.B, blocks, size int) {
	bin := peer(b)
	dir := b.TempDir()
	seller := exec.Command(bin, "sell", "-dir", dir, "-blocks", strconv.Itoa(blocks), "-size", strconv.Itoa(size))
	seller.Stderr = os.Stderr
	in, err := seller.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := seller.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := seller.Start(); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	next := func() (r report) {
		b.Helper()
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &r) != nil {
			b.Fatalf("seller says %q", lines.Bytes())
		}
		return r
	}
	offer := next()
	var seconds float64
	var rss int
	for b.Loop() {
		cmd := exec.Command(bin, "buy", "-port", strconv.Itoa(offer.Port), "-key", offer.Key, "-blocks", strconv.Itoa(blocks))
		cmd.Stderr = os.Stderr
		line, err := cmd.Output()
		var r report
		if err == nil {
			err = json.Unmarshal(line, &r)
		}
		if err != nil {
			b.Fatal(err)
		}
		seconds += r.Seconds
		rss = max(rss, r.RSS)
	}
	n := float64(b.N)
	b.ReportMetric(n*float64(blocks)/seconds, "blocks/s")
	b.ReportMetric(n*float64(blocks)*float64(size)/seconds/1e6, "MB/s")
	b.ReportMetric(float64(rss)/1024, "buyer-MiB")
	in.Close()
	b.ReportMetric(float64(next().RSS)/1024, "seller-MiB")
	if err := seller.Wait(); err != nil {
		b.Fatal(err)
	}
}

// Budgets of DESIGN.md: 350,000 blocks/s and 330 MB/s.
func BenchmarkReplicate64B(b *testing.B)   { transfer(b, 1_000_000, 64) }
func BenchmarkReplicate64KiB(b *testing.B) { transfer(b, 8192, 64<<10) }
