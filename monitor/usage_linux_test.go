package monitor

import (
	"testing"
	"time"
)

// TestPace: what was written at first does not count, nor what is older than an hour.
func TestPace(t *testing.T) {
	var p Pace
	at := time.Now()
	n := int64(4 << 20)
	for minute := range 180 {
		now := at.Add(time.Duration(minute) * time.Minute)
		want := int64(0)
		switch {
		case minute > 120:
			want = 24 * 60 * 2000
		case minute > 60:
			want = -1 // in between
		case minute >= 5:
			want = 24 * 60 * 1000
		}
		if got := p.PerDay(now, n); want >= 0 && (got < want*99/100 || got > want*101/100) {
			t.Fatalf("after %d minutes: %d, not %d", minute, got, want)
		}
		p.Note(now, n)
		if n += 1000; minute >= 60 {
			n += 1000
		}
	}
}
