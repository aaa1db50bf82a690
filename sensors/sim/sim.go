// Package sim is a sensor that does not exist: a slow wave with noise, the same
// for the same seed. It is for trying things out and says so in its readings.
package sim

import (
	"context"
	"math"
	"math/rand/v2"

	"dazaar-edge/sensors"
)

// Source implements [sensors.Source]. Not safe for concurrent use.
type Source struct {
	rng  *rand.Rand
	step float64
}

// New returns the source for a seed.
func New(seed uint64) *Source { return &Source{rng: rand.New(rand.NewPCG(seed, 0x51))} }

// period is how many readings the wave takes.
const period = 600

// Read implements [sensors.Source].
func (s *Source) Read(context.Context) ([]sensors.Reading, error) {
	s.step++
	wave := math.Sin(2 * math.Pi * s.step / period)
	value := 20 + 5*wave + s.rng.NormFloat64()/10
	return []sensors.Reading{{
		Name: "temperature", Unit: "Cel", Value: math.Round(value*100) / 100, Quality: []string{"simulated"},
	}}, nil
}

// Close implements [sensors.Source].
func (s *Source) Close() error { return nil }
