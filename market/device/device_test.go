package device

import (
	"context"
	"errors"
	"math"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/feedtest"
	"dazaar-edge/sensors"
	"dazaar-edge/storage"
	"dazaar-edge/storage/faultfs"
)

// testClock runs by itself, a second at each look.
type testClock struct {
	mu   sync.Mutex
	now  sensors.Time
	wall time.Duration // wall minus mono; 0 while unknown
}

func (c *testClock) Now() sensors.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Mono += time.Second
	t := c.now
	if c.wall != 0 {
		t.Wall, t.Err = time.UnixMicro((t.Mono + c.wall).Microseconds()).UTC(), time.Millisecond
	}
	return t
}

func (c *testClock) set(wall time.Duration) { c.mu.Lock(); c.wall = wall; c.mu.Unlock() }

// testSource counts up; it fails while broken.
type testSource struct {
	n      atomic.Int64
	broken atomic.Bool
	closed atomic.Bool
	reads  chan struct{} // one token a read
}

func (s *testSource) Read(context.Context) ([]sensors.Reading, error) {
	select {
	case s.reads <- struct{}{}:
	default:
	}
	if s.broken.Load() {
		return nil, sensors.ErrGone
	}
	return []sensors.Reading{{Name: "n", Value: float64(s.n.Add(1))}}, nil
}

func (s *testSource) Close() error { s.closed.Store(true); return nil }

type rig struct {
	t     *testing.T
	disk  *faultfs.Disk
	sales feedtest.Sales
	clock *testClock
	src   *testSource
	log   *feed.Log
	dev   *Device
	stop  context.CancelFunc
	done  chan error
}

func (r *rig) start() {
	r.t.Helper()
	r.src = &testSource{reads: make(chan struct{}, 1)}
	r.run(Sensor{Name: "s", Every: time.Millisecond, Source: r.src})
}

func (r *rig) run(s Sensor) {
	r.t.Helper()
	var err error
	r.log, err = feed.Open(feed.Config{
		FS: r.disk, Dir: "/log", MaxSize: 64 << 16, SegmentSize: 1 << 16, Name: "air", Keys: feedtest.Keys{}, Sales: &r.sales,
		Now: func() block.Stamp { return stamp(r.clock.Now()) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.dev, err = New(Config{Feed: r.log, Clock: r.clock, Pack: 4 * time.Millisecond, Sensors: []Sensor{s}})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop, r.done = stop, make(chan error, 1)
	go func() { r.done <- r.dev.Run(ctx) }() // ends with stop
}

func (r *rig) end() {
	r.t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		r.t.Fatal(err)
	}
	if !r.src.closed.Load() {
		r.t.Error("source was not closed")
	}
	if err := r.log.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// reads waits for n more reads of the sensor.
func (r *rig) reads(n int) {
	for range n {
		<-r.src.reads
	}
}

// blocks returns everything in the log, and checks its order.
func (r *rig) blocks() (packs []*block.Pack, entries []*block.Entry) {
	r.t.Helper()
	l, err := feed.Open(feed.Config{
		FS: r.disk, Dir: "/log", MaxSize: 64 << 16, Name: "air", Keys: feedtest.Keys{}, Sales: &r.sales,
		Now: func() block.Stamp { return stamp(r.clock.Now()) },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Abort()
	var last block.Stamp
	h := l.Head()
	if err := l.Range(h.First, h.Length, func(i uint64, _ storage.Weight, data []byte) bool {
		p, n, err := block.SenMLJSON.Parse(data)
		if err != nil {
			r.t.Fatal(err)
		}
		s := last
		if p != nil {
			s = p.Stamp
			packs = append(packs, p)
		} else {
			s = n.Stamp
			entries = append(entries, n)
		}
		if s.Before(last) {
			r.t.Errorf("block %d: %+v behind %+v", i, s, last)
		}
		last = s
		return true
	}); err != nil {
		r.t.Fatal(err)
	}
	return packs, entries
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, disk: faultfs.New(1), clock: &testClock{now: sensors.Time{Boot: 1}}}
}

// complete checks that the readings 1 to n are there once each, in order.
func complete(t *testing.T, packs []*block.Pack, n int64) {
	t.Helper()
	want := 1.0
	for _, p := range packs {
		for _, r := range p.Readings {
			if r.Value.Float != want || r.Name != "s/n" {
				t.Fatalf("reading %v %q, want %v", r.Value.Float, r.Name, want)
			}
			want++
		}
	}
	if want != float64(n)+1 {
		t.Errorf("%v of %d readings", want-1, n)
	}
}

func kinds(entries []*block.Entry) (out []string) {
	for _, n := range entries {
		s := string(n.Kind)
		if n.Cause != "" {
			s += " " + n.Cause
		}
		out = append(out, s)
	}
	return out
}

func expect(t *testing.T, entries []*block.Entry, want ...string) {
	t.Helper()
	got := kinds(entries)
	if len(got) != len(want) {
		t.Fatalf("entries %q, want %q", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("entries %q, want %q", got, want)
		}
	}
}

// TestDay goes through what happens to a board: it starts without a clock, the
// clock is found and set, a sensor fails and comes back.
func TestDay(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(10)
	r.clock.set(1_790_000_000 * time.Second)
	r.reads(10)
	r.clock.set(1_790_500_000 * time.Second)
	r.reads(10)
	r.src.broken.Store(true)
	r.reads(3)
	r.src.broken.Store(false)
	for before := r.src.n.Load(); r.src.n.Load() < before+3; {
		r.reads(1)
	}
	r.end()
	packs, entries := r.blocks()
	complete(t, packs, r.src.n.Load())
	expect(t, entries, "boot", "clock", "clock", "gap sensor")
	gap := entries[3]
	if gap.Sensor != "s" || gap.From == nil || gap.To == nil || *gap.From >= *gap.To {
		t.Errorf("%+v", gap)
	}
	if packs[0].Stamp.Wall.Unix() > 0 || packs[len(packs)-1].Stamp.Wall.IsZero() {
		t.Error("wall time before it was known, or none after")
	}
}

// TestRestart checks what is said about why data is missing.
func TestRestart(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(10)
	r.end()
	r.start()
	r.reads(10)
	r.stop()
	<-r.done
	r.log.Abort() // as if the power went
	r.disk.Kill()
	r.clock.now = sensors.Time{Boot: 2}
	r.start()
	r.reads(5)
	r.end()
	_, entries := r.blocks()
	expect(t, entries, "boot", "gap stopped", "boot", "gap power")
	if entries[1].From == nil || entries[3].From != nil {
		t.Error("a gap begins at a time of this boot, or at an unknown one")
	}
}

// fillDisk makes the disk full while the result is true.
func (r *rig) fillDisk() *atomic.Bool {
	full := &atomic.Bool{}
	full.Store(true)
	r.disk.Fail(func(int, string, string) error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	})
	return full
}

// TestFullDisk fills the disk: readings wait in memory, nothing is lost or
// twice, and when too many wait a gap says so.
func TestFullDisk(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(20)
	full := r.fillDisk()
	r.reads(60)
	full.Store(false)
	r.reads(30)
	r.end()
	packs, entries := r.blocks()
	complete(t, packs, r.src.n.Load())
	expect(t, entries, "boot")
}

// TestLongFullDisk keeps the disk full for longer than memory lasts: one gap
// covers exactly what is missing.
func TestLongFullDisk(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(20)
	full := r.fillDisk()
	for r.dev.Stats().Dropped < 300 {
		r.reads(1)
	}
	full.Store(false)
	r.reads(30)
	r.end()
	packs, entries := r.blocks()
	covered := func(s time.Duration) bool {
		for _, n := range entries {
			if n.Cause == CauseStorage && *n.From <= s && s <= *n.To {
				return true
			}
		}
		return false
	}
	last := packs[0]
	for _, p := range packs[1:] {
		a, b := last.Readings[len(last.Readings)-1], p.Readings[0]
		if b.Value.Float != a.Value.Float+1 && !covered(last.Stamp.Mono+a.Offset+time.Second) {
			t.Errorf("readings %v to %v are missing and no gap says so: %q", a.Value.Float, b.Value.Float, kinds(entries))
		}
		last = p
	}
	if got := last.Readings[len(last.Readings)-1].Value.Float; got != float64(r.src.n.Load()) {
		t.Errorf("the last reading is %v of %d", got, r.src.n.Load())
	}
}

// TestFullAtTheEnd: what the card did not take when the program ended is said by the next
// start, also when that is another start of the board.
func TestFullAtTheEnd(t *testing.T) {
	for _, boot := range []uint32{1, 2} {
		r := newRig(t)
		r.start()
		r.reads(10)
		r.disk.Fail(func(_ int, op, name string) error {
			if strings.Contains(name, "spare") || op == "create" { // no room for more, but for what is there
				return syscall.ENOSPC
			}
			return nil
		})
		for r.dev.Stats().Error == "" {
			r.reads(1)
		}
		r.reads(50)
		r.stop()
		if err := <-r.done; !errors.Is(err, syscall.ENOSPC) || r.dev.Stats().Waiting == 0 {
			t.Errorf("%v; %+v", err, r.dev.Stats())
		}
		if err := r.log.Close(); err != nil {
			t.Fatal(err)
		}
		r.disk.Fail(nil)
		taken := r.src.n.Load()
		r.clock.mu.Lock()
		r.clock.now.Boot = boot
		r.clock.mu.Unlock()
		r.start()
		r.reads(10)
		r.end()
		r.start() // the note is gone
		r.reads(10)
		r.end()
		packs, entries := r.blocks()
		want := []string{"boot", "gap storage", "gap stopped", "gap stopped"}
		if boot == 2 {
			want = []string{"boot", "gap storage", "boot", "gap stopped", "gap stopped"}
		}
		expect(t, entries, want...)
		newest := 0.
		for _, p := range packs {
			if p.Stamp.Before(entries[1].Stamp) {
				newest = p.Readings[len(p.Readings)-1].Value.Float
				if p.Stamp.Mono > *entries[1].From {
					t.Errorf("a pack of %v in a gap from %v", p.Stamp.Mono, *entries[1].From)
				}
			}
		}
		if newest >= float64(taken) || entries[1].Stamp.Boot != 1 {
			t.Errorf("%v of %d readings are there, and a gap says otherwise: %+v", newest, taken, entries[1])
		}
	}
}

// TestFullTwice: what two starts of the board could not write is said by the third.
func TestFullTwice(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(10)
	full := func(_ int, op, name string) error {
		if strings.Contains(name, "spare") || op == "create" {
			return syscall.ENOSPC
		}
		return nil
	}
	for boot := range uint32(2) {
		if boot > 0 {
			r.clock.mu.Lock()
			r.clock.now = sensors.Time{Boot: boot + 1}
			r.clock.mu.Unlock()
			r.start()
		}
		r.disk.Fail(full)
		for r.dev.Stats().Error == "" {
			r.reads(1)
		}
		r.reads(20)
		r.stop()
		if err := <-r.done; !errors.Is(err, syscall.ENOSPC) {
			t.Error(err)
		}
		if err := r.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
	r.disk.Fail(nil)
	r.clock.mu.Lock()
	r.clock.now = sensors.Time{Boot: 3}
	r.clock.mu.Unlock()
	r.start()
	r.reads(10)
	r.end()
	_, entries := r.blocks()
	expect(t, entries, "boot", "gap storage", "gap storage", "boot", "gap stopped")
	if entries[1].Stamp.Boot != 1 || entries[2].Stamp.Boot != 2 || entries[3].Stamp.Boot != 3 {
		t.Errorf("%+v, %+v", entries[1], entries[2])
	}
}

// TestHangs: a card that does not answer is said to, and no more waits for it than there
// is room for.
func TestHangs(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(5)
	release := make(chan struct{})
	r.disk.Fail(func(int, string, string) error { <-release; return nil })
	text := strings.Repeat("x", 1500)
	for n := 0; r.dev.Stats().Error == ""; n++ {
		r.dev.samples <- sample{sensor: "x", at: r.clock.Now(), readings: []sensors.Reading{{Name: "v", Value: text}}}
		if n%20 == 0 {
			time.Sleep(time.Millisecond) // until a pack is made of them
		}
		if st := r.dev.Stats(); st.Waiting > 2500 {
			t.Fatalf("%+v after %d readings", st, n)
		}
	}
	if st := r.dev.Stats(); !strings.Contains(st.Error, "has not answered for 5s") || st.Dropped == 0 {
		t.Errorf("%+v", st)
	}
	close(release)
	r.reads(20)
	r.end()
	if st := r.dev.Stats(); st.Error != "" {
		t.Errorf("%+v", st)
	}
}

// TestLeftOut: a value that no block can have does not take others with it, one that is
// too large for a block is a gap, and neither is asked for again.
func TestLeftOut(t *testing.T) {
	r := newRig(t)
	r.start()
	told := make(chan error, 3)
	at := r.clock.Now()
	send := func(values ...any) {
		s := sample{sensor: "x", at: at, done: func(err error) { told <- err }}
		for _, v := range values {
			s.readings = append(s.readings, sensors.Reading{Name: "v", Value: v})
		}
		r.dev.samples <- s
		if err := <-told; err != nil {
			t.Error(err)
		}
	}
	send("gr\xfcn", 21.5, math.NaN(), math.Inf(1), "grün")
	send(strings.Repeat("x", 1<<20))
	send(3.)
	r.end()
	packs, entries := r.blocks()
	expect(t, entries, "boot", "gap invalid")
	var got []any
	for _, p := range packs {
		for _, x := range p.Readings {
			if x.Name == "x/v" {
				got = append(got, x.Value.Text, x.Value.Float)
			}
		}
	}
	if !reflect.DeepEqual(got, []any{"", 21.5, "grün", 0., "", 3.}) {
		t.Errorf("%q", got)
	}
	if st := r.dev.Stats(); st.Failed != 3 || st.Dropped != 1 {
		t.Errorf("%+v", st)
	}
}

// TestLate: a reading that took long has its own time, not that of the block that it
// comes in, which is not older than the one before.
func TestLate(t *testing.T) {
	r := newRig(t)
	r.start()
	r.end()
	wall := time.Unix(1_790_000_000, 0)
	at := func(mono time.Duration) sensors.Time { return sensors.Time{Boot: 1, Mono: mono, Wall: wall.Add(mono)} }
	p := &packer{d: r.dev, newest: 10 * time.Second, clocked: true, offset: time.Duration(wall.UnixNano()), fixed: 5 * time.Second}
	for _, mono := range []time.Duration{2 * time.Second, 9 * time.Second, 12 * time.Second} {
		p.sample(sample{sensor: "x", at: at(mono), readings: []sensors.Reading{{Name: "v", Value: 1.}}})
		x := p.pack.Readings[len(p.pack.Readings)-1]
		if got := p.pack.Stamp.Mono + x.Offset; got != mono || p.pack.Stamp.Mono < p.newest {
			t.Errorf("mono %v, not %v", got, mono)
		}
		if got := p.pack.Stamp.Wall.Add(x.Offset).Sub(wall); got != mono {
			t.Errorf("time %v, not %v", got, mono)
		}
	}
	// One that was taken before the clock was set says nothing about the clock.
	old := at(3 * time.Second)
	old.Wall = old.Wall.Add(-time.Hour)
	p.clock(old)
	if len(p.waiting) > 0 {
		t.Error("a clock entry")
	}
}

// halfSource is a source of which a part fails.
type halfSource struct{ testSource }

func (s *halfSource) Read(ctx context.Context) ([]sensors.Reading, error) {
	out, _ := s.testSource.Read(ctx)
	return out, sensors.ErrGone
}

// TestHalf: a source of which a part fails is read at its pace, and says what fails.
func TestHalf(t *testing.T) {
	r := newRig(t)
	half := &halfSource{testSource{reads: make(chan struct{}, 1)}}
	r.run(Sensor{Name: "h", Every: time.Millisecond, Source: half})
	for range 50 {
		<-half.reads
	}
	for name, s := range r.dev.Sensors() {
		if name != "h" || s.Error == "" || s.Reads == 0 || s.Age == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	_, entries := r.blocks()
	expect(t, entries, "boot")
}

// TestDeadSensor stops while a sensor does not answer: a gap says so.
func TestDeadSensor(t *testing.T) {
	r := newRig(t)
	r.start()
	r.reads(10)
	r.src.broken.Store(true)
	r.reads(4)
	r.end()
	_, entries := r.blocks()
	expect(t, entries, "boot", "gap sensor")
}

func TestShed(t *testing.T) {
	r := newRig(t)
	r.start()
	r.end()
	p := &packer{d: r.dev}
	for i := range maxWaiting + 10 {
		p.waiting = append(p.waiting, parcel{Block: block.Block{Stamp: block.Stamp{Boot: 1, Mono: time.Duration(i) * time.Second}}})
	}
	p.shed()
	if len(p.waiting) != maxWaiting || p.lost == nil || *p.lost != (span{0, 10 * time.Second}) || r.dev.Stats().Dropped != 10 {
		t.Errorf("%d wait, %+v", len(p.waiting), p.lost)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil || errors.Is(err, context.Canceled) {
		t.Error("a device without sensors")
	}
}

// testStream is a broker's: it says things, and hears what became of them.
type testStream struct {
	in     chan sensors.Event
	closed atomic.Bool
}

func (s *testStream) Stream(ctx context.Context, emit func(sensors.Event)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-s.in:
			if e.Readings == nil {
				return sensors.ErrGone
			}
			emit(e)
		}
	}
}

func (s *testStream) Close() error { s.closed.Store(true); return nil }

// TestStreamAcknowledged: who sent a reading hears of it when it is durable and not
// before; at ten who wait there is a commit at once; when it fails, it is a gap.
func TestStreamAcknowledged(t *testing.T) {
	r := newRig(t)
	s := &testStream{in: make(chan sensors.Event)}
	var err error
	if r.log, err = feed.Open(feed.Config{
		FS: r.disk, Dir: "/log", MaxSize: 64 << 16, SegmentSize: 1 << 16, Name: "air", Keys: feedtest.Keys{}, Sales: &r.sales,
		Now: func() block.Stamp { return stamp(r.clock.Now()) }, CommitEvery: time.Hour, CommitBytes: 1 << 20,
	}); err != nil {
		t.Fatal(err)
	}
	r.dev, err = New(Config{Feed: r.log, Clock: r.clock, Pack: time.Hour, Sensors: []Sensor{{Name: "m", Stream: s}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.dev.Run(ctx) }()
	heard := make(chan error, 100)
	say := func(n float64) {
		s.in <- sensors.Event{Readings: []sensors.Reading{{Name: "v", Value: n}}, Done: func(err error) {
			if err == nil && !durable(r.log, n) {
				err = errors.New("it is not durable")
			}
			heard <- err
		}}
	}
	for i := range 9 {
		say(float64(i))
	}
	if len(heard) > 0 {
		t.Error("acknowledged before the pack's time, with nine that wait")
	}
	say(9)
	for range 10 {
		if err := <-heard; err != nil {
			t.Fatal(err)
		}
	}
	say(10)
	s.in <- sensors.Event{} // the broker is gone, and comes back
	say(11)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-heard; err != nil {
			t.Error(err)
		}
	}
	gaps := 0
	h := r.log.Head()
	for i := h.First; i < h.Length; i++ {
		data, _, err := r.log.Get(i)
		if err != nil {
			t.Fatal(err)
		}
		if _, n, err := block.SenMLJSON.Parse(data); err == nil && n != nil && n.Kind == block.GapEntry && n.Cause == CauseSensor {
			gaps++
		}
	}
	if gaps != 1 || !s.closed.Load() {
		t.Errorf("%d gaps", gaps)
	}
	if err := r.log.Close(); err != nil {
		t.Error(err)
	}
}

// durable tells whether a reading is in the committed log.
func durable(l *feed.Log, v float64) bool {
	h := l.Head()
	for i := h.First; i < h.Length; i++ {
		data, _, err := l.Get(i)
		if err != nil {
			return false
		}
		if p, _, err := block.SenMLJSON.Parse(data); err == nil && p != nil {
			for _, r := range p.Readings {
				if r.Value.Float == v {
					return true
				}
			}
		}
	}
	return false
}
