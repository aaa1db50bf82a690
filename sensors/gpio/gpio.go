// Package gpio reads lines of a GPIO chip through the kernel's character device:
// their level, each of their edges, or how many edges came, for rain gauges, flow
// meters and anemometers.
//
// Pulses are counted by the numbers that the kernel gives to edges: one that was lost
// because nobody was fast enough counts all the same. Debouncing is the kernel's.
//
// periph's gpioioctl, which was looked at first, hands out neither those numbers nor
// the time of an edge, and does not debounce.
package gpio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dazaar-edge/sensors"

	"github.com/warthog618/go-gpiocdev"
	"golang.org/x/sys/unix"
)

// Mode is what is read of a line.
type Mode string

// Modes.
const (
	Level   Mode = "level"   // true or false
	Edge    Mode = "edge"    // each change, when it comes
	Counter Mode = "counter" // edges since the reading before, times Scale
	Rate    Mode = "rate"    // edges a second, times Scale
)

// Config says which line, and how.
type Config struct {
	Chip string // gpiochip0
	Line int
	Mode Mode
	// Edge that is counted, or reported: rising, falling or both.
	Edge      string
	Pull      string // up, down, none, or "" for what it is
	ActiveLow bool
	Debounce  time.Duration
	// Name, Unit and Scale are of the readings: with Scale 0.2794 and unit mm each
	// pulse of a rain gauge is so much rain.
	Name, Unit string
	Scale      float64
}

// event is an edge.
type event struct {
	at     time.Duration // monotonic
	rising bool
	seq    uint32 // number of the edge, from 1; 0 from kernels before 5.10
}

// line is a requested line.
type line interface {
	Value() (int, error)
	Close() error
}

// request opens a line; f, if not nil, is called for each edge.
type request func(cfg Config, f func(event)) (line, error)

// options are the line's, for the kernel.
func (c Config) options() []gpiocdev.LineReqOption {
	o := []gpiocdev.LineReqOption{gpiocdev.AsInput, gpiocdev.WithConsumer("edge")}
	switch c.Pull {
	case "up":
		o = append(o, gpiocdev.WithPullUp)
	case "down":
		o = append(o, gpiocdev.WithPullDown)
	case "none":
		o = append(o, gpiocdev.WithBiasDisabled)
	}
	if c.ActiveLow {
		o = append(o, gpiocdev.AsActiveLow)
	}
	return o
}

// real requests the line from the kernel.
func real(c Config, f func(event)) (line, error) {
	o := c.options()
	if f != nil {
		if c.Debounce > 0 {
			o = append(o, gpiocdev.WithDebounce(c.Debounce))
		}
		switch c.Edge {
		case "falling":
			o = append(o, gpiocdev.WithFallingEdge)
		case "both":
			o = append(o, gpiocdev.WithBothEdges)
		default:
			o = append(o, gpiocdev.WithRisingEdge)
		}
		o = append(o, gpiocdev.WithEventHandler(func(e gpiocdev.LineEvent) {
			f(event{e.Timestamp, e.Type == gpiocdev.LineEventRisingEdge, e.LineSeqno})
		}))
	}
	l, err := gpiocdev.RequestLine(c.Chip, c.Line, o...)
	if err != nil {
		return nil, fmt.Errorf("%w: %s line %d: %w", sensors.ErrGone, c.Chip, c.Line, err)
	}
	return l, nil
}

// Source reads a line's level, or counts its edges. It implements [sensors.Source].
type Source struct {
	cfg  Config
	open request
	now  func() time.Time
	line line

	kept uint32    // edges of a line that failed, which no reading has yet
	from uint32    // number of the newest edge that was read
	at   time.Time // when that was

	mu  sync.Mutex
	seq uint32 // of the newest edge; guarded by mu
}

// New returns a source for the modes level, counter and rate.
func New(cfg Config) *Source { return newSource(cfg, real) }

func newSource(cfg Config, open request) *Source {
	if cfg.Scale == 0 {
		cfg.Scale = 1
	}
	return &Source{cfg: cfg, open: open, now: time.Now}
}

// Read implements [sensors.Source]. Counting begins with the first Read.
func (s *Source) Read(context.Context) ([]sensors.Reading, error) {
	fresh := s.line == nil
	if fresh {
		var f func(event)
		if s.cfg.Mode != Level {
			s.seq, s.from = 0, 0
			f = s.count
		}
		l, err := s.open(s.cfg, f)
		if err != nil {
			return nil, err
		}
		s.line, s.at = l, s.now()
	}
	v, err := s.line.Value() // also shows that the chip is there
	if err != nil {
		s.kept += s.edges()
		s.drop()
		return nil, fmt.Errorf("%w: %s line %d: %w", sensors.ErrGone, s.cfg.Chip, s.cfg.Line, err)
	}
	r := sensors.Reading{Name: s.cfg.Name, Unit: s.cfg.Unit}
	if s.cfg.Mode == Level {
		r.Value = v == 1
		return []sensors.Reading{r}, nil
	}
	n := s.edges() + s.kept
	s.kept = 0
	now := s.now()
	took := now.Sub(s.at)
	s.at = now
	switch {
	case s.cfg.Mode == Counter:
		r.Value = float64(n) * s.cfg.Scale
	case fresh || took <= 0:
		return nil, nil // a rate needs two looks
	default:
		r.Value = float64(n) / took.Seconds() * s.cfg.Scale
	}
	return []sensors.Reading{r}, nil
}

// edges returns how many came since the last look.
func (s *Source) edges() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.seq - s.from // numbers may wrap
	s.from = s.seq
	return n
}

// count takes an edge.
func (s *Source) count(e event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.seq == 0 {
		s.seq++
	} else {
		s.seq = e.seq
	}
}

func (s *Source) drop() {
	s.line.Close() //nolint:errcheck // it failed already
	s.line = nil
}

// Close implements [sensors.Source].
func (s *Source) Close() error {
	if s.line == nil {
		return nil
	}
	return s.line.Close()
}

// Stream reports each edge. It implements [sensors.Streamer].
type Stream struct {
	cfg  Config
	open request
	mono func() time.Duration // the clock of edges
}

// NewStream returns a source for mode edge.
func NewStream(cfg Config) *Stream { return &Stream{cfg, real, monotonic} }

func monotonic() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// edges is how many may wait for the device.
const edges = 256

// errLost says that edges came faster than they were taken.
var errLost = errors.New("edges were lost: debounce them, or count them")

// Stream implements [sensors.Streamer]. A reading is true for a rising edge. An event
// without readings says that the line is watched.
func (s *Stream) Stream(ctx context.Context, emit func(sensors.Event)) error {
	in := make(chan event, edges)
	var lost atomic.Bool
	l, err := s.open(s.cfg, func(e event) {
		select {
		case in <- e:
		default:
			lost.Store(true)
		}
	})
	if err != nil {
		return err
	}
	defer l.Close()
	look := time.NewTicker(10 * time.Second)
	defer look.Stop()
	emit(sensors.Event{})
	next := uint32(1)
	for {
		if lost.Load() && len(in) == 0 { // what came before that is reported
			return fmt.Errorf("%w: %s line %d", errLost, s.cfg.Chip, s.cfg.Line)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
			if _, err := l.Value(); err != nil {
				return fmt.Errorf("%w: %s line %d: %w", sensors.ErrGone, s.cfg.Chip, s.cfg.Line, err)
			}
		case e := <-in:
			if e.seq != next && e.seq != 0 {
				return fmt.Errorf("%w: %s line %d: %d", errLost, s.cfg.Chip, s.cfg.Line, e.seq-next)
			}
			next++
			emit(sensors.Event{Readings: []sensors.Reading{{Name: s.cfg.Name, Unit: s.cfg.Unit, Value: e.rising}}, Age: max(0, s.mono()-e.at)})
		}
	}
}

// Close implements [sensors.Streamer].
func (s *Stream) Close() error { return nil }
