// Package device joins sensors and a feed: it reads each sensor at its own pace,
// puts the readings of a while into a pack, and appends it to the log, with
// entries that say which start of the board it is, what the clock turned out to
// be, and why something is missing.
package device

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/sensors"
)

// Causes of gaps, as they stand in gap entries.
const (
	CausePower   = "power"   // the board or the program ended without notice
	CauseStopped = "stopped" // it was stopped in order
	CauseSensor  = "sensor"  // a sensor did not answer
	CauseStorage = "storage" // the card took nothing, and the queue was full, or the program ended
	CauseInvalid = "invalid" // readings that cannot be written, or are larger than a block may be
)

// Sensor is a source with its name in the feed and its pace.
type Sensor struct {
	Name   string
	Every  time.Duration
	Source sensors.Source
	// Stream is in Source's place for a source that has readings when it wants.
	Stream sensors.Streamer
	// Limits flag readings, by their names.
	Limits map[string]sensors.Limits
}

// Config says what to join. Feed, Encoding, Clock, Pack and Sensors are
// required.
type Config struct {
	Feed     *feed.Log
	Encoding block.Encoding
	Clock    sensors.Clock
	Pack     time.Duration // readings of this long go into one block
	Sensors  []Sensor
	Log      *slog.Logger // nil discards
}

// Limits of what waits in memory.
const (
	maxReadings = 1000      // in a pack
	maxText     = 128 << 10 // bytes in a pack, about
	maxWaiting  = 512       // blocks that the card has not taken
)

// Device reads sensors into a feed. Use New and Run.
type Device struct {
	cfg Config
	log *slog.Logger

	samples chan sample
	events  chan block.Entry

	taken, failed, dropped atomic.Uint64
	waiting                atomic.Int64
	trouble                atomic.Pointer[string] // why the card takes nothing; nil if it does

	mu     sync.Mutex
	states map[string]*sensorState // guarded by mu
}

// SensorState is how a sensor does.
type SensorState struct {
	Reads uint64 `json:"reads"`
	// Age is how many seconds ago the newest readings were taken; nil if none were.
	Age    *float64          `json:"age"`
	Newest []sensors.Reading `json:"newest,omitempty"`
	// Error is why it does not answer; "" if it does.
	Error string `json:"error,omitempty"`
}

type sensorState struct {
	SensorState
	at time.Time
}

// note takes down how a read of a sensor went.
func (d *Device) note(name string, readings []sensors.Reading, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.states[name]
	if s == nil {
		s = &sensorState{}
		d.states[name] = s
	}
	s.Error = ""
	if err != nil {
		s.Error = err.Error()
	}
	if len(readings) > 0 {
		s.Reads, s.Newest, s.at = s.Reads+1, readings, time.Now()
	}
}

// Sensors returns how each sensor does, in the order of the configuration.
func (d *Device) Sensors() iter.Seq2[string, SensorState] {
	return func(yield func(string, SensorState) bool) {
		for _, c := range d.cfg.Sensors {
			d.mu.Lock()
			var out SensorState
			if s := d.states[c.Name]; s != nil {
				out = s.SensorState
				if s.Reads > 0 {
					age := time.Since(s.at).Seconds()
					out.Age = &age
				}
			}
			d.mu.Unlock()
			if !yield(c.Name, out) {
				return
			}
		}
	}
}

// Stats are counters since New.
type Stats struct {
	Readings uint64 // taken from sensors
	Failed   uint64 // reads of sensors that failed
	Dropped  uint64 // blocks that were dropped because the card took none
	// Waiting is how many blocks are not durable yet, and Error why the card takes none;
	// "" if it does.
	Waiting int
	Error   string
}

// Stats returns the counters.
func (d *Device) Stats() Stats {
	s := Stats{Readings: d.taken.Load(), Failed: d.failed.Load(), Dropped: d.dropped.Load(), Waiting: int(d.waiting.Load())}
	if why := d.trouble.Load(); why != nil {
		s.Error = *why
	}
	return s
}

// sample is what one read of a sensor gave.
type sample struct {
	sensor   string
	at       sensors.Time
	readings []sensors.Reading
	done     func(error) // nil, or to be told what became of it
}

// New returns a device.
func New(cfg Config) (*Device, error) {
	if cfg.Pack <= 0 || len(cfg.Sensors) == 0 {
		return nil, fmt.Errorf("device: a pack time and sensors are needed")
	}
	d := &Device{cfg: cfg, log: cfg.Log, samples: make(chan sample, 64), events: make(chan block.Entry, 64), states: map[string]*sensorState{}}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d, nil
}

func stamp(t sensors.Time) block.Stamp {
	return block.Stamp{Boot: t.Boot, Mono: t.Mono, Wall: t.Wall, Err: t.Err}
}

// Run reads and appends until ctx ends; then it appends what it has and
// returns. It closes the sources.
func (d *Device) Run(ctx context.Context) error {
	p := &packer{d: d, w: d.cfg.Feed.Writer()}
	if err := p.begin(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, s := range d.cfg.Sensors {
		wg.Go(func() {
			if s.Stream != nil {
				d.stream(ctx, s)
			} else {
				d.read(ctx, s)
			}
		})
	}
	done := make(chan struct{})
	go func() { // ends with the sensors
		wg.Wait()
		close(done)
	}()
	p.loop(done)
	return p.end()
}

// retryAfter bounds the pause between reads of a sensor that fails.
const retryAfter = time.Minute

// read reads one sensor until ctx ends.
func (d *Device) read(ctx context.Context, s Sensor) {
	defer func() {
		if err := s.Source.Close(); err != nil {
			d.log.Warn("closing a sensor", "sensor", s.Name, "error", err)
		}
	}()
	pause := s.Every
	judge := sensors.Judge{Limits: s.Limits}
	var failing *sensors.Time
	partial := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next := time.Now(); ; {
		select {
		case <-ctx.Done():
			if failing != nil {
				d.events <- sensorGap(s.Name, *failing, d.cfg.Clock.Now())
			}
			return
		case <-timer.C:
		}
		at := d.cfg.Clock.Now()
		readings, err := s.Source.Read(ctx)
		judge.Look(at.Mono, readings)
		if ctx.Err() == nil {
			d.note(s.Name, readings, err)
		}
		if err != nil && ctx.Err() == nil {
			d.failed.Add(1)
		}
		switch {
		case err != nil && len(readings) == 0 && ctx.Err() == nil:
			if failing == nil {
				failing = &at
				d.log.Warn("a sensor does not answer", "sensor", s.Name, "error", err)
			}
			pause = min(2*pause, max(retryAfter, s.Every))
		case err == nil || len(readings) > 0: // some of it may fail
			if pause = s.Every; failing != nil {
				d.log.Info("a sensor answers again", "sensor", s.Name)
				d.events <- sensorGap(s.Name, *failing, at)
				failing = nil
			}
			if (err != nil) != partial && ctx.Err() == nil {
				if partial = err != nil; partial {
					d.log.Warn("a part of a sensor does not answer", "sensor", s.Name, "error", err)
				} else {
					d.log.Info("all of a sensor answers again", "sensor", s.Name)
				}
			}
		}
		if len(readings) > 0 {
			d.taken.Add(uint64(len(readings)))
			d.samples <- sample{sensor: s.Name, at: at, readings: readings}
		}
		if next = next.Add(pause); time.Until(next) < 0 {
			next = time.Now() // we were held up: no burst of readings
		}
		timer.Reset(time.Until(next))
	}
}

// stream takes what a streamer has until ctx ends.
func (d *Device) stream(ctx context.Context, s Sensor) {
	defer func() {
		if err := s.Stream.Close(); err != nil {
			d.log.Warn("closing a sensor", "sensor", s.Name, "error", err)
		}
	}()
	const first = time.Second
	pause := first
	judge := sensors.Judge{Limits: s.Limits}
	var failing *sensors.Time
	works := func() {
		if failing != nil {
			d.log.Info("a sensor answers again", "sensor", s.Name)
			d.events <- sensorGap(s.Name, *failing, d.cfg.Clock.Now())
			failing, pause = nil, first
		}
	}
	for {
		err := s.Stream.Stream(ctx, func(e sensors.Event) {
			works()
			at := d.cfg.Clock.Now()
			at.Mono -= e.Age
			if !at.Wall.IsZero() {
				at.Wall = at.Wall.Add(-e.Age)
			}
			judge.Look(at.Mono, e.Readings)
			if len(e.Readings) > 0 {
				d.note(s.Name, e.Readings, nil)
				d.taken.Add(uint64(len(e.Readings)))
			}
			d.samples <- sample{s.Name, at, e.Readings, e.Done}
		})
		if ctx.Err() != nil {
			works()
			return
		}
		d.failed.Add(1)
		d.note(s.Name, nil, err)
		if failing == nil {
			now := d.cfg.Clock.Now()
			failing = &now
			d.log.Warn("a sensor does not answer", "sensor", s.Name, "error", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			works()
			return
		}
		pause = min(2*pause, retryAfter)
	}
}

// sensorGap says from when to when a sensor did not answer.
func sensorGap(name string, since, now sensors.Time) block.Entry {
	return block.Entry{Kind: block.GapEntry, Stamp: stamp(now), From: &since.Mono, To: &now.Mono, Cause: CauseSensor, Sensor: name}
}
