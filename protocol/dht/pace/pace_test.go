package pace

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: questions become rarer while the way stays open, come twice as often when it was
// closed, never again as rarely as then for an hour, and are shared.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pace
		if p.Every() != first {
			t.Error(p.Every())
		}
		for range 10 {
			p.Asked(p.Every(), true)
		}
		if p.Every() != slow {
			t.Error(p.Every())
		}
		p.Asked(slow, false)
		for range 10 {
			p.Asked(p.Every(), true)
		}
		if e := p.Every(); e >= slow || e < slow/2 {
			t.Error(e)
		}
		for range 10 {
			p.Asked(p.Every(), false)
		}
		if p.Every() != least {
			t.Error(p.Every())
		}
		time.Sleep(closedTime + 1)
		for range 20 {
			p.Asked(p.Every(), true)
		}
		if p.Every() != slow {
			t.Error(p.Every())
		}
		mine := time.Now()
		time.Sleep(slow)
		if p.Rest(mine, slow) {
			t.Error("nobody has asked")
		}
		if !p.Rest(mine, slow) {
			t.Error("somebody has just asked")
		}
		time.Sleep(slow)
		if p.Rest(mine, slow) {
			t.Error("it was long ago")
		}
	})
}
