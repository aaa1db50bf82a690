// Package bme280 reads Bosch's BME280 and BMP280 over I2C: temperature,
// pressure and, the BME280 only, relative humidity.
package bme280

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"dazaar-edge/sensors"

	"periph.io/x/conn/v3/i2c"
	"periph.io/x/conn/v3/physic"
	"periph.io/x/devices/v3/bmxx80"
	"periph.io/x/host/v3/sysfs"
)

// Addresses the chip can have.
const (
	Address    = 0x76
	AltAddress = 0x77
)

// OpenBus opens /dev/i2c-number. Opening the file directly, instead of by
// periph's registry of boards, takes milliseconds and saves 1 MB.
func OpenBus(number int) (i2c.BusCloser, error) {
	bus, err := sysfs.NewI2C(number)
	if err != nil {
		return nil, fmt.Errorf("i2c bus %d: %w (is i2c enabled, and may this user open /dev/i2c-%d?)", number, err, number)
	}
	return bus, nil
}

// Source implements [sensors.Source]. Not safe for concurrent use.
type Source struct {
	open    func() (i2c.BusCloser, error)
	address uint16
	bus     *guard
	dev     *bmxx80.Dev
	humid   bool
	control byte // of humidity, as the driver set it
}

// regHumidity is the register by which humidity is measured. The driver writes it once: a
// chip that lost its power for a moment has forgotten it, and gives a value that looks
// right. Source: BST-BME280-DS002, 5.4.3.
const regHumidity = 0xf2

// errReset says that the chip lost what it had been told.
var errReset = errors.New("it was reset, for want of power?")

// New returns a source for the chip at this address of the bus that open opens.
// The chip is looked for at the first Read, and again after errors.
func New(open func() (i2c.BusCloser, error), address uint16) *Source {
	return &Source{open: open, address: address}
}

// patience is how long a chip may take for a measurement: it needs some 10 ms. On a busy
// board this process may itself not run for as long: the chip is asked often times even so.
const (
	patience = time.Second
	often    = 30
)

// errHangs says that a chip is busy for ever, as one seems to be on a bus whose data
// line nobody pulls down. The driver would wait as long.
var errHangs = errors.New("it does not come to an end")

// guard is a bus that fails when it has been asked for too long.
type guard struct {
	i2c.BusCloser
	until time.Time
	asked int
}

// renew begins anew to count.
func (g *guard) renew() { g.until, g.asked = time.Now().Add(patience), 0 }

// Tx implements i2c.Bus.
func (g *guard) Tx(addr uint16, w, r []byte) error {
	if g.asked++; g.asked > often && time.Now().After(g.until) {
		return errHangs
	}
	return g.BusCloser.Tx(addr, w, r)
}

func (s *Source) connect() (err error) {
	if s.dev != nil {
		return nil
	}
	bus, err := s.open()
	if err != nil {
		return err
	}
	s.bus = &guard{BusCloser: bus}
	s.bus.renew()
	if s.dev, err = bmxx80.NewI2C(s.bus, s.address, &bmxx80.DefaultOpts); err != nil {
		err = errors.Join(err, s.drop())
		return fmt.Errorf("%w at address 0x%s: %w", sensors.ErrGone, strconv.FormatUint(uint64(s.address), 16), err)
	}
	var precision physic.Env
	s.dev.Precision(&precision)
	if s.humid = precision.Humidity > 0; !s.humid {
		return nil
	}
	if s.control, err = s.read(regHumidity); err != nil {
		return errors.Join(fmt.Errorf("%w: %w", sensors.ErrGone, err), s.drop())
	}
	return nil
}

func (s *Source) read(register byte) (byte, error) {
	var b [1]byte
	err := s.bus.Tx(s.address, []byte{register}, b[:])
	return b[0], err
}

// drop forgets the bus, so that the next Read begins anew.
func (s *Source) drop() error {
	s.dev = nil
	if s.bus == nil {
		return nil
	}
	err := s.bus.Close()
	s.bus = nil
	return err
}

// Read implements [sensors.Source].
func (s *Source) Read(context.Context) ([]sensors.Reading, error) {
	if err := s.connect(); err != nil {
		return nil, err
	}
	var env physic.Env
	s.bus.renew()
	if err := s.dev.Sense(&env); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", sensors.ErrGone, err), s.drop())
	}
	if s.humid {
		switch control, err := s.read(regHumidity); {
		case err != nil:
			return nil, errors.Join(fmt.Errorf("%w: %w", sensors.ErrGone, err), s.drop())
		case control != s.control:
			return nil, errors.Join(fmt.Errorf("%w: %w", sensors.ErrGone, errReset), s.drop())
		}
	}
	out := []sensors.Reading{
		{Name: "temperature", Unit: "Cel", Value: round(env.Temperature.Celsius(), 1e3)},
		{Name: "pressure", Unit: "Pa", Value: round(float64(env.Pressure)/float64(physic.Pascal), 1e2)},
	}
	if s.humid {
		out = append(out, sensors.Reading{Name: "humidity", Unit: "%RH", Value: round(float64(env.Humidity)/float64(physic.PercentRH), 1e2)})
	}
	known := plausible(out[0]) // the others are computed with the temperature
	for i := range out {
		if !known || !plausible(out[i]) {
			out[i].Quality = []string{"range"}
		}
	}
	return out, nil
}

// plausible compares with what the chip can measure (datasheet, table 1).
func plausible(r sensors.Reading) bool {
	v, _ := r.Value.(float64)
	switch r.Name {
	case "temperature":
		return v >= -40 && v <= 85
	case "pressure":
		return v >= 30_000 && v <= 110_000
	}
	return v >= 0 && v <= 100
}

func round(v, unit float64) float64 {
	if v < 0 {
		return -round(-v, unit)
	}
	return float64(int64(v*unit+0.5)) / unit
}

// Close implements [sensors.Source].
func (s *Source) Close() error { return s.drop() }
