// Package chip is a model of Bosch's BME280 and BMP280 at the level of I2C messages,
// for tests and demonstrations without hardware: registers, calibration and raw values
// from which a driver must compute what was set, and what goes wrong on a bus.
//
// Source: BST-BME280-DS002, sections 4.2 (compensation) and 5 (registers);
// BST-BMP280-DS001, section 3.12 (the worked example, whose calibration this has).
package chip

import (
	"encoding/binary"
	"errors"
	"sort"
	"sync"

	"periph.io/x/conn/v3/physic"
)

// Identities of the chips.
const (
	BME280 = 0x60
	BMP280 = 0x58
)

// Calibration of the worked example, and made up for humidity.
const (
	t1, t2, t3 = 27504, 26435, -1000
	p1, p2, p3 = 36477, -10685, 3024
	p4, p5, p6 = 2855, 140, -7
	p7, p8, p9 = 15500, -14600, 6000

	h1, h2, h3 = 75, 362, 0
	h4, h5, h6 = 324, 50, 30
)

// Registers.
const (
	regCalibration = 0x88
	regH1          = 0xa1
	regID          = 0xd0
	regH2          = 0xe1
	regControlH    = 0xf2
	regControl     = 0xf4
	regConfig      = 0xf5
	regPressure    = 0xf7
	regHumidity    = 0xfd
)

// skipped is the raw value of what is not measured.
const skipped = 0x8000

// Errors of the bus, as the kernel says them.
var (
	errNACK  = errors.New("remote I/O error")
	errStuck = errors.New("connection timed out")
)

// Fault is what is wrong.
type Fault int

// Faults.
const (
	None  Fault = iota
	Gone        // nobody answers at the address
	Stuck       // a device holds the bus down
	High        // every byte that is read is 0xff
	Low         // every byte that is read is 0
)

// Chip is the model. It implements i2c.BusCloser as a bus with this chip alone, and
// is safe for concurrent use.
type Chip struct {
	address uint16

	mu     sync.Mutex
	reg    [256]byte // guarded by mu, like all below
	fault  Fault
	closed int
}

// New returns a chip of an identity, at an address, with the raw values of the worked
// example: 25.08 °C and 100653.27 Pa.
func New(id byte, address uint16) *Chip {
	c := &Chip{address: address}
	c.reg[regID] = id
	for i, v := range []int{t1, t2, t3, p1, p2, p3, p4, p5, p6, p7, p8, p9} {
		binary.LittleEndian.PutUint16(c.reg[regCalibration+2*i:], uint16(v))
	}
	c.reg[regH1] = h1
	binary.LittleEndian.PutUint16(c.reg[regH2:], h2)
	c.reg[0xe3] = h3
	c.reg[0xe4], c.reg[0xe5], c.reg[0xe6], c.reg[0xe7] = h4>>4, h4&15|(h5&15)<<4, h5>>4, h6
	c.raw(519888, 415148, 28000)
	return c
}

// raw sets what the converters measured. mu is held, or nobody else has the chip.
func (c *Chip) raw(t, p, h int) {
	for i, v := range []int{p, t} {
		at := regPressure + 3*i
		c.reg[at], c.reg[at+1], c.reg[at+2] = byte(v>>12), byte(v>>4), byte(v<<4)
	}
	binary.BigEndian.PutUint16(c.reg[regPressure+6:], uint16(h))
}

// fine is the temperature as the other formulas want it, 5120 a degree.
func fine(raw int) float64 {
	a := (float64(raw)/16384 - t1/1024.) * t2
	b := float64(raw)/131072 - t1/8192.
	return a + b*b*t3
}

// pascal is the pressure of a raw value.
func pascal(raw int, fine float64) float64 {
	a := fine/2 - 64000
	b := a*a*p6/32768 + a*p5*2
	b = b/4 + p4*65536
	a = (p3*a*a/524288 + p2*a) / 524288
	a = (1 + a/32768) * p1
	p := (1048576 - float64(raw) - b/4096) * 6250 / a
	return p + (p9*p*p/2147483648+p*p8/32768+p7)/16
}

// percent is the relative humidity of a raw value.
func percent(raw int, fine float64) float64 {
	h := fine - 76800
	h = (float64(raw) - (h4*64 + h5/16384.*h)) * (h2 / 65536. * (1 + h6/67108864.*h*(1+h3/67108864.*h)))
	return h * (1 - h1*h/524288)
}

// Set makes the chip measure this: °C, Pa and % of relative humidity.
func (c *Chip) Set(celsius, pa, humidity float64) {
	const bits20, bits16 = 1 << 20, 1 << 16
	t := sort.Search(bits20, func(raw int) bool { return fine(raw)/5120 >= celsius })
	f := fine(t)
	p := sort.Search(bits20, func(raw int) bool { return pascal(raw, f) <= pa })
	h := sort.Search(bits16-1, func(raw int) bool { return percent(raw, f) >= humidity })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw(t, p, h)
}

// SetFault makes the bus fail, or work again with None.
func (c *Chip) SetFault(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

// Reset is what a moment without power does: what the chip was told is forgotten.
func (c *Chip) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reg[regControlH], c.reg[regControl], c.reg[regConfig] = 0, 0, 0
}

// Closed returns how often the bus was closed.
func (c *Chip) Closed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// String implements i2c.Bus.
func (c *Chip) String() string { return "model" }

// SetSpeed implements i2c.Bus.
func (c *Chip) SetSpeed(physic.Frequency) error { return nil }

// Close implements i2c.BusCloser.
func (c *Chip) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed++
	return nil
}

// Tx implements i2c.Bus: a write names a register and what to put there and behind, a
// read goes on from the register that was named.
func (c *Chip) Tx(address uint16, w, r []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.fault == Stuck:
		return errStuck
	case c.fault == Gone || address != c.address:
		return errNACK
	}
	if len(w) > 0 {
		reg := c.reg
		if reg[regControlH]&7 == 0 {
			binary.BigEndian.PutUint16(reg[regHumidity:], skipped)
		}
		copy(r, reg[w[0]:])
		for i := 1; i < len(w); i += 2 {
			c.reg[w[i-1]] = w[i]
		}
	}
	for i := range r {
		switch c.fault {
		case High:
			r[i] = 0xff
		case Low:
			r[i] = 0
		}
	}
	return nil
}
