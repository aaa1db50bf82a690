package monitor

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Usage is what the process took since it began.
type Usage struct {
	CPU    float64 `json:"cpu"`    // seconds
	RSS    int64   `json:"rss"`    // bytes
	Writes int64   `json:"writes"` // bytes that went to disks
	// PerDay is what writes would be in a day at the pace of the last hour.
	PerDay int64 `json:"writesPerDay"`
}

// ReadUsage returns it, without PerDay.
func ReadUsage() (u Usage) {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	}
	u.RSS = kernelNumber("/proc/self/status", "VmRSS:") * 1024
	u.Writes = kernelNumber("/proc/self/io", "write_bytes:")
	return u
}

// Pace tells how fast a number grows. What it was at first, when files are made, does
// not count. The zero value is ready; it is safe for concurrent use.
type Pace struct {
	mu   sync.Mutex
	seen []reading // one for each minute of the last hour, guarded by mu
}

type reading struct {
	at time.Time
	n  int64
}

// settled is how long it takes until a pace is known.
const settled = 5 * time.Minute

// Note is to be called every minute.
func (p *Pace) Note(now time.Time, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen = append(p.seen, reading{now, n}); len(p.seen) > 60 {
		p.seen = p.seen[1:]
	}
}

// PerDay returns by how much the number would grow in a day; 0 if that is not known yet.
func (p *Pace) PerDay(now time.Time, n int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.seen) == 0 {
		return 0
	}
	d := now.Sub(p.seen[0].at)
	if d < settled {
		return 0
	}
	return int64(float64(n-p.seen[0].n) * 24 / d.Hours())
}

// kernelNumber returns the number behind a word at the beginning of a line; 0 if
// there is none.
func kernelNumber(file, word string) (n int64) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			fmt.Sscan(rest, &n) //nolint:errcheck // the kernel writes numbers
		}
	}
	return n
}
