package gpio

import (
	"context"
	"errors"
	"testing"
	"time"

	"dazaar-edge/sensors"
	"dazaar-edge/sensors/sensorstest"
)

// wire is a line of a chip that may be pulled out.
type wire struct {
	level  int
	edge   func(event)
	gone   bool
	closed int
}

func (w *wire) open(_ Config, f func(event)) (line, error) {
	if w.gone {
		return nil, sensors.ErrGone
	}
	w.edge = f
	return w, nil
}

func (w *wire) Value() (int, error) {
	if w.gone {
		return 0, errors.New("no such device")
	}
	return w.level, nil
}

func (w *wire) Close() error { w.closed++; return nil }

func TestConformance(t *testing.T) {
	sensorstest.Run(t, newSource(Config{Mode: Level, Name: "door"}, (&wire{}).open))
	sensorstest.Run(t, newSource(Config{Mode: Counter, Name: "rain", Unit: "mm", Scale: 0.2794}, (&wire{}).open))
}

func read(t *testing.T, s *Source) any {
	t.Helper()
	r, err := s.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(r) == 0 {
		return nil
	}
	return r[0].Value
}

func TestLevel(t *testing.T) {
	w := &wire{}
	s := newSource(Config{Mode: Level, Name: "door"}, w.open)
	for _, level := range []int{0, 1, 1, 0} {
		w.level = level
		if got := read(t, s); got != (level == 1) {
			t.Errorf("%v at level %d", got, level)
		}
	}
}

// TestCounter counts by the kernel's numbers: edges that nobody took count too.
func TestCounter(t *testing.T) {
	w := &wire{}
	s := newSource(Config{Mode: Counter, Name: "rain", Unit: "mm", Scale: 0.5}, w.open)
	now := time.Unix(0, 0)
	s.now = func() time.Time { return now }
	if got := read(t, s); got != 0. {
		t.Error(got)
	}
	for n := range uint32(4) {
		w.edge(event{seq: n + 1})
	}
	if got := read(t, s); got != 2. {
		t.Error(got)
	}
	w.edge(event{seq: 10}) // 5 to 9 were lost on their way
	if got := read(t, s); got != 3. {
		t.Error(got)
	}
	if got := read(t, s); got != 0. {
		t.Error(got)
	}
	// Pulled out, and back: counting begins anew, and nothing is counted twice, nor lost.
	w.edge(event{seq: 11})
	w.gone = true
	if _, err := s.Read(context.Background()); !errors.Is(err, sensors.ErrGone) || w.closed != 1 {
		t.Error(err, w.closed)
	}
	if _, err := s.Read(context.Background()); !errors.Is(err, sensors.ErrGone) {
		t.Error(err)
	}
	w.gone = false
	if got := read(t, s); got != 0.5 {
		t.Error(got)
	}
	w.edge(event{seq: 1})
	if got := read(t, s); got != 0.5 {
		t.Error(got)
	}
	w.edge(event{}) // from an old kernel
	w.edge(event{})
	if got := read(t, s); got != 1. {
		t.Error(got)
	}
}

// TestBurst: of more edges than there is room for it says that some were lost, behind
// those that it has.
func TestBurst(t *testing.T) {
	s := &Stream{Config{Mode: Edge, Name: "door"}, nil, func() time.Duration { return 0 }}
	s.open = func(_ Config, f func(event)) (line, error) {
		for i := range uint32(edges + 50) {
			f(event{0, true, i + 1})
		}
		return &wire{}, nil
	}
	n := 0
	if err := s.Stream(context.Background(), func(e sensors.Event) { n += len(e.Readings) }); !errors.Is(err, errLost) || n != edges {
		t.Error(n, err)
	}
}

func TestRate(t *testing.T) {
	w := &wire{}
	s := newSource(Config{Mode: Rate, Name: "wind", Unit: "m/s", Scale: 0.667}, w.open)
	now := time.Unix(0, 0)
	s.now = func() time.Time { return now }
	if got := read(t, s); got != nil {
		t.Error(got) // a rate needs two looks
	}
	w.edge(event{seq: 20})
	now = now.Add(10 * time.Second)
	if got := read(t, s); got != 2*0.667 {
		t.Error(got)
	}
}

// TestStream reports each edge with its age, and says when some were lost.
func TestStream(t *testing.T) {
	w := &wire{}
	s := &Stream{Config{Mode: Edge, Name: "door"}, w.open, func() time.Duration { return 10 * time.Second }}
	got := make(chan sensors.Event, 10)
	run := func(edges ...event) error {
		done := make(chan error, 1)
		opened := make(chan bool)
		s.open = func(c Config, f func(event)) (line, error) {
			defer close(opened)
			return w.open(c, f)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			done <- s.Stream(ctx, func(e sensors.Event) {
				if len(e.Readings) > 0 {
					got <- e
				}
			})
		}()
		<-opened
		for _, e := range edges {
			w.edge(e)
		}
		for range edges[:2] {
			<-got
		}
		if len(edges) == 2 {
			cancel()
		}
		return <-done
	}
	if err := run(event{9 * time.Second, true, 1}, event{9500 * time.Millisecond, false, 2}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := run(event{9 * time.Second, true, 1}, event{9 * time.Second, false, 2}, event{9 * time.Second, true, 4}); !errors.Is(err, errLost) {
		t.Error(err)
	}
	if w.closed != 2 {
		t.Errorf("closed %d times", w.closed)
	}
	var e sensors.Event
	s.open = w.open
	ctx, cancel := context.WithCancel(context.Background())
	s.open = func(c Config, f func(event)) (line, error) {
		f(event{8 * time.Second, true, 1})
		return w, nil
	}
	s.Stream(ctx, func(x sensors.Event) { //nolint:errcheck // it is cancelled
		if len(x.Readings) > 0 {
			e = x
			cancel()
		}
	})
	if e.Age != 2*time.Second || len(e.Readings) != 1 || e.Readings[0].Value != true || e.Readings[0].Name != "door" {
		t.Errorf("%+v", e)
	}
}

// TestNoChip: a chip that is not there is an error that says which.
func TestNoChip(t *testing.T) {
	if _, err := New(Config{Chip: "gpiochip77", Line: 3, Mode: Level}).Read(context.Background()); !errors.Is(err, sensors.ErrGone) {
		t.Error(err)
	}
}
