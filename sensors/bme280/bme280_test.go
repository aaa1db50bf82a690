package bme280

import (
	"context"
	"errors"
	"math"
	"testing"

	"dazaar-edge/sensors"
	"dazaar-edge/sensors/bme280/chip"
	"dazaar-edge/sensors/sensorstest"

	"periph.io/x/conn/v3/i2c"
)

func TestWorkedExample(t *testing.T) {
	c := chip.New(chip.BME280, Address)
	s := New(func() (i2c.BusCloser, error) { return c, nil }, Address)
	got, err := s.Read(context.Background())
	if err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
	if v := got[0]; v.Name != "temperature" || v.Unit != "Cel" || math.Abs(v.Value.(float64)-25.08) > 0.005 {
		t.Errorf("%+v", v)
	}
	if v := got[1]; v.Name != "pressure" || v.Unit != "Pa" || math.Abs(v.Value.(float64)-100653) > 2 {
		t.Errorf("%+v", v)
	}
	if v := got[2]; v.Name != "humidity" || v.Unit != "%RH" || v.Value.(float64) <= 0 || v.Value.(float64) >= 100 || v.Quality != nil {
		t.Errorf("%+v", v)
	}
	if err := s.Close(); err != nil || c.Closed() != 1 {
		t.Error(err, c.Closed())
	}
}

func TestBMP280(t *testing.T) {
	s := New(func() (i2c.BusCloser, error) { return chip.New(chip.BMP280, Address), nil }, Address)
	if got, err := s.Read(context.Background()); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
}

// TestUnplugged takes the chip away and gives it back.
func TestUnplugged(t *testing.T) {
	c := chip.New(chip.BME280, Address)
	s := New(func() (i2c.BusCloser, error) { return c, nil }, Address)
	if _, err := s.Read(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.SetFault(chip.Gone)
	for range 3 {
		if _, err := s.Read(context.Background()); !errors.Is(err, sensors.ErrGone) {
			t.Fatal(err)
		}
	}
	c.SetFault(chip.None)
	if got, err := s.Read(context.Background()); err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
}

// TestReset: a chip that lost its power for a moment gives no wrong humidity.
func TestReset(t *testing.T) {
	c := chip.New(chip.BME280, Address)
	s := New(func() (i2c.BusCloser, error) { return c, nil }, Address)
	c.Set(20, 100_000, 45)
	for i := range 10 {
		got, err := s.Read(context.Background())
		switch {
		case errors.Is(err, sensors.ErrGone) && i%3 == 1:
		case err != nil:
			t.Fatal(err)
		case math.Abs(got[2].Value.(float64)-45) > 0.1:
			t.Errorf("humidity %v", got[2].Value)
		}
		if i%3 == 0 {
			c.Reset()
		}
	}
}

func TestOpenBus(t *testing.T) {
	if _, err := OpenBus(87); err == nil {
		t.Error("bus 87 exists")
	}
}

func TestSource(t *testing.T) {
	for _, id := range []byte{chip.BMP280, chip.BME280} {
		c := chip.New(id, Address)
		open := func() (i2c.BusCloser, error) { return c, nil }
		sensorstest.Run(t, New(open, Address))
		sensorstest.Recovers(t, New(open, Address), func() { c.SetFault(chip.Gone) }, func() { c.SetFault(chip.None) })
	}
}

// TestModel: whatever the chip is made to measure, the driver reads.
func TestModel(t *testing.T) {
	c := chip.New(chip.BME280, AltAddress)
	s := New(func() (i2c.BusCloser, error) { return c, nil }, AltAddress)
	for _, want := range [][3]float64{{21.5, 101325, 45}, {-20, 95000, 80}, {60, 108000, 5}, {0, 87000, 100}} {
		c.Set(want[0], want[1], want[2])
		got, err := s.Read(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for i, tolerance := range []float64{0.02, 5, 0.2} {
			if v := got[i].Value.(float64); math.Abs(v-want[i]) > tolerance || got[i].Quality != nil {
				t.Errorf("%s: %v, want %v", got[i].Name, got[i], want[i])
			}
		}
	}
}

// TestFaults: a bus that fails is an error, and then works again; bytes that are all
// ones or zeros are no weather.
func TestFaults(t *testing.T) {
	for _, f := range []chip.Fault{chip.Gone, chip.Stuck, chip.High, chip.Low} {
		c := chip.New(chip.BME280, Address)
		s := New(func() (i2c.BusCloser, error) { return c, nil }, Address)
		c.SetFault(f)
		if got, err := s.Read(context.Background()); !errors.Is(err, sensors.ErrGone) {
			t.Errorf("fault %d at first: %v, %v", f, got, err)
		}
		c.SetFault(chip.None)
		if got, err := s.Read(context.Background()); err != nil || len(got) != 3 {
			t.Errorf("after fault %d: %v, %v", f, got, err)
		}
		c.SetFault(f)
		got, err := s.Read(context.Background())
		for _, r := range got {
			if err == nil && r.Quality == nil {
				t.Errorf("fault %d: %v is said to be good", f, r)
			}
		}
		c.SetFault(chip.None)
		if got, err := s.Read(context.Background()); err != nil || len(got) != 3 || got[0].Quality != nil {
			t.Errorf("after fault %d: %v, %v", f, got, err)
		}
	}
}
