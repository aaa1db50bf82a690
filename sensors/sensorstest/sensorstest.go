// Package sensorstest checks that a source keeps to what [sensors.Source] says.
package sensorstest

import (
	"context"
	"math"
	"testing"
	"time"

	"dazaar-edge/sensors"
)

// qualities are the flags that readings may have.
var qualities = map[string]bool{"range": true, "flatline": true, "jump": true, "stale": true, "dup": true, "clock": true, "simulated": true}

// Run checks a source that can be read now. It closes it.
func Run(t *testing.T, s sensors.Source) {
	t.Helper()
	var names []string
	for round := range 3 {
		got, err := s.Read(context.Background())
		if err != nil || len(got) == 0 {
			t.Fatalf("read %d: %+v, %v", round, got, err)
		}
		seen := map[string]bool{}
		var now []string
		for _, r := range got {
			if !sensors.ValidName(r.Name) || seen[r.Name] {
				t.Errorf("%q is no name of SenML, or there twice", r.Name)
			}
			seen[r.Name] = true
			now = append(now, r.Name)
			if !sensors.KnownUnit(r.Unit) {
				t.Errorf("%s: %q is no unit of SenML", r.Name, r.Unit)
			}
			switch v := r.Value.(type) {
			case float64:
				if math.IsNaN(v) || math.IsInf(v, 0) {
					t.Errorf("%s is %v", r.Name, v)
				}
			case string, bool, []byte:
			default:
				t.Errorf("%s is a %T", r.Name, v)
			}
			for _, q := range r.Quality {
				if !qualities[q] {
					t.Errorf("%s has quality %q, which is none", r.Name, q)
				}
			}
		}
		if round > 0 && len(now) != len(names) {
			t.Errorf("read %d has %q, the one before %q", round, now, names)
		}
		names = now
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	s.Read(ctx) //nolint:errcheck // what it has by then is its own business
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it read for %v after the end", d)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Recovers checks that a source that fails says so, and answers again when its cause
// is gone.
func Recovers(t *testing.T, s sensors.Source, fail, mend func()) {
	t.Helper()
	for range 2 {
		if got, err := s.Read(context.Background()); err != nil || len(got) == 0 {
			t.Fatalf("%+v, %v", got, err)
		}
		fail()
		for range 3 {
			if got, err := s.Read(context.Background()); err == nil {
				t.Fatalf("it fails, and says %+v", got)
			}
		}
		mend()
	}
	if got, err := s.Read(context.Background()); err != nil || len(got) == 0 {
		t.Errorf("it is back, and says %+v, %v", got, err)
	}
}
