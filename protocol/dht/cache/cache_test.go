package cache

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAge: a value is there for as long as it must be, and not for days, also where nobody
// looked meanwhile.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const age = 20 * time.Minute
		c := New[int, int](100, age)
		for _, idle := range []time.Duration{0, time.Hour, 48 * time.Hour} {
			time.Sleep(idle)
			c.Set(1, 1)
			time.Sleep(age * 5 / 8)
			if _, ok := c.Get(1); !ok {
				t.Errorf("gone too early, after %v without anything", idle)
			}
			time.Sleep(age * 3 / 2)
			if _, ok := c.Get(1); ok {
				t.Errorf("it stays, after %v without anything", idle)
			}
		}
		c.Set(1, 1)
		time.Sleep(48 * time.Hour)
		if _, ok := c.Get(1); ok {
			t.Error("what is two days old is there")
		}
	})
}

// TestMost: it never has more than it may.
func TestMost(t *testing.T) {
	c := New[int, int](100, time.Hour)
	for i := range 10_000 {
		c.Set(i, i)
		if n := len(c.young) + len(c.old); n > 100 {
			t.Fatal(n)
		}
		if v, ok := c.Get(i); !ok || v != i {
			t.Fatal("the newest is gone")
		}
	}
	c.Drop(9_999)
	if _, ok := c.Get(9_999); ok {
		t.Error("it stays")
	}
}
