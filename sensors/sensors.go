// Package sensors is what a device measures: sources of readings, and the clock
// of a board that has no battery for it.
//
// A [Source] is read in turns by one goroutine. It reports what it measured and
// does not know when, where to or how often: that is package device's.
// Units are those of SenML (RFC 8428, section 12.1, and RFC 8798).
package sensors

import (
	"context"
	"errors"
	"time"
)

// ErrGone says that a sensor does not answer; it may come back.
var ErrGone = errors.New("sensor does not answer")

// Reading is one measured value.
type Reading struct {
	Name string `json:"name"`           // within the source, for example "temperature"
	Unit string `json:"unit,omitempty"` // SenML unit, "" if it has none
	// Value is a float64, string, bool or []byte.
	Value any `json:"value"`
	// Quality are flags such as "range"; none is good.
	Quality []string `json:"quality,omitempty"`
}

// Source is a sensor or something else that can be read.
type Source interface {
	// Read measures once. It returns early when ctx ends. After an error the
	// next Read tries again, from the bus up if need be.
	Read(ctx context.Context) ([]Reading, error)
	// Close frees the bus. The source is not used afterwards.
	Close() error
}

// Event is what a [Streamer] has at once. One without readings and Done says that the
// source works, when it did not before.
type Event struct {
	Readings []Reading
	// Age is how long ago that was.
	Age time.Duration
	// Done, if not nil, is called once: with nil when the readings are durable, else
	// with why they will not be.
	Done func(error)
}

// Streamer is a source that has readings when it wants: it is not read in turns.
type Streamer interface {
	// Stream calls emit with what comes, until ctx ends or the source fails; then
	// it may be called again. emit may wait.
	Stream(ctx context.Context, emit func(Event)) error
	// Close frees what it uses. The source is not used afterwards.
	Close() error
}

// Time is a moment as a board knows it.
type Time struct {
	Boot uint32        // counts the board's starts
	Mono time.Duration // since the start, also while suspended
	Wall time.Time     // zero while the clock was not set
	Err  time.Duration // how far off Wall may be; 0 is unknown
}

// Clock tells the time. Implementations are safe for concurrent use.
type Clock interface {
	Now() Time
}
