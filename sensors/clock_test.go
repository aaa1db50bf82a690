package sensors

import (
	"testing"
	"time"
)

func TestSystemClock(t *testing.T) {
	c := SystemClock(7)
	a, b := c.Now(), c.Now()
	if a.Boot != 7 || a.Mono <= 0 || b.Mono < a.Mono || a.Mono%time.Microsecond != 0 {
		t.Errorf("%+v, %+v", a, b)
	}
	if !a.Wall.IsZero() && (a.Err <= 0 || time.Since(a.Wall).Abs() > time.Minute) {
		t.Errorf("%+v", a)
	}
	if c := TrustedClock(7).Now(); c.Wall.IsZero() || time.Since(c.Wall).Abs() > time.Minute {
		t.Errorf("%+v", c) // the host of a test knows the time
	}
	if id, err := BootID(); err != nil || len(id) < 30 {
		t.Error(id, err)
	}
}
