package sim

import (
	"context"
	"reflect"
	"slices"
	"testing"

	"dazaar-edge/sensors/sensorstest"
)

func TestSeeded(t *testing.T) {
	a, b, other := New(1), New(1), New(2)
	same := 0
	for range 100 {
		x, _ := a.Read(context.Background())
		y, _ := b.Read(context.Background())
		z, _ := other.Read(context.Background())
		if !reflect.DeepEqual(x, y) {
			t.Fatalf("%v and %v from one seed", x, y)
		}
		if !slices.Contains(x[0].Quality, "simulated") {
			t.Error("it does not say that it is made up")
		}
		if x[0].Value == z[0].Value {
			same++
		}
	}
	if same > 20 {
		t.Error("another seed gives the same")
	}
}

func TestSource(t *testing.T) { sensorstest.Run(t, New(1)) }
