package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// processUsage is what the process took since it began.
type processUsage struct {
	CPU    float64 `json:"cpu"`    // seconds
	RSS    int64   `json:"rss"`    // bytes
	Writes int64   `json:"writes"` // bytes that went to disks
	// PerDay is what writes would be in a day at this pace.
	PerDay int64 `json:"writesPerDay"`
}

// began is when the process was there.
var began = time.Now()

func ownUsage() (u processUsage) {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	}
	u.RSS = kernelNumber("/proc/self/status", "VmRSS:") * 1024
	u.Writes = kernelNumber("/proc/self/io", "write_bytes:")
	if up := time.Since(began); up > time.Minute {
		u.PerDay = int64(float64(u.Writes) / up.Hours() * 24)
	}
	return u
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
