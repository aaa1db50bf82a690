package bme280

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"testing"

	"dazaar-edge/sensors"
	"dazaar-edge/sensors/sensorstest"

	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/physic"
)

// chip is a BME280 at message level: registers with the calibration and raw
// values of the worked example in Bosch's datasheet for this family (BMP280,
// 3.12: 25.08 °C, 100653.27 Pa), and made-up humidity.
type chip struct {
	reg    [256]byte
	gone   bool
	closed int
}

func newChip(id byte) *chip {
	c := &chip{}
	c.reg[0xd0] = id
	for i, v := range []int{27504, 26435, -1000, 36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000} {
		binary.LittleEndian.PutUint16(c.reg[0x88+2*i:], uint16(v))
	}
	c.reg[0xa1] = 75
	binary.LittleEndian.PutUint16(c.reg[0xe1:], 362)
	c.reg[0xe4], c.reg[0xe5], c.reg[0xe6], c.reg[0xe7] = 324>>4, 324&15, 0, 30
	put := func(at int, raw uint32) {
		c.reg[at], c.reg[at+1], c.reg[at+2] = byte(raw>>12), byte(raw>>4), byte(raw<<4)
	}
	put(0xf7, 415148)
	put(0xfa, 519888)
	binary.BigEndian.PutUint16(c.reg[0xfd:], 28000)
	return c
}

func (c *chip) String() string                  { return "model" }
func (c *chip) SetSpeed(physic.Frequency) error { return nil }
func (c *chip) Close() error                    { c.closed++; return nil }

func (c *chip) Tx(addr uint16, w, r []byte) error {
	if c.gone || addr != Address {
		return errors.New("remote I/O error")
	}
	if len(w) > 0 {
		copy(r, c.reg[w[0]:])
		for i := 1; i < len(w); i += 2 {
			c.reg[w[i-1]] = w[i]
		}
	}
	return nil
}

func TestWorkedExample(t *testing.T) {
	c := newChip(0x60)
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
	if err := s.Close(); err != nil || c.closed != 1 {
		t.Error(err, c.closed)
	}
}

func TestBMP280(t *testing.T) {
	s := New(func() (i2c.BusCloser, error) { return newChip(0x58), nil }, Address)
	if got, err := s.Read(context.Background()); err != nil || len(got) != 2 {
		t.Error(got, err)
	}
}

// TestUnplugged takes the chip away and gives it back.
func TestUnplugged(t *testing.T) {
	c := newChip(0x60)
	s := New(func() (i2c.BusCloser, error) { return c, nil }, Address)
	if _, err := s.Read(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.gone = true
	for range 3 {
		if _, err := s.Read(context.Background()); !errors.Is(err, sensors.ErrGone) {
			t.Fatal(err)
		}
	}
	c.gone = false
	if got, err := s.Read(context.Background()); err != nil || len(got) != 3 {
		t.Fatal(got, err)
	}
}

func TestOpenBus(t *testing.T) {
	if _, err := OpenBus(87); err == nil {
		t.Error("bus 87 exists")
	}
}

func TestSource(t *testing.T) {
	for _, id := range []byte{0x58, 0x60} {
		c := newChip(id)
		open := func() (i2c.BusCloser, error) { return c, nil }
		sensorstest.Run(t, New(open, Address))
		sensorstest.Recovers(t, New(open, Address), func() { c.gone = true }, func() { c.gone = false })
	}
}
