package market

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/feedtest"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/market/device"
	"dazaar-edge/market/rows"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/faultfs"
)

// dayClock is a board's clock, which a test moves.
type dayClock struct {
	mu   sync.Mutex
	now  sensors.Time
	wall time.Duration // wall minus monotonic; 0 while unknown
}

func (c *dayClock) Now() sensors.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.now
	if c.wall != 0 {
		t.Wall, t.Err = time.UnixMicro((t.Mono + c.wall).Microseconds()).UTC(), 10*time.Millisecond
	}
	return t
}

// day is the offset of a clock that is right.
func day(c *dayClock) time.Duration {
	return 1_790_000_000*time.Second + time.Duration(c.now.Boot)*24*time.Hour
}

func (c *dayClock) move(f func(*dayClock)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

// broker says numbers, ten a second of the clock, until the next event of the day. What
// was not acknowledged it says again, as a duplicate.
type dayBroker struct {
	clock *dayClock
	next  int // number that was not yet said
	until int // say so many, and then wait
	mu    sync.Mutex
	open  map[int]bool // said, and not acknowledged
	fail  chan struct{}
	idle  chan struct{} // one token: everything was said
}

func (b *dayBroker) Stream(ctx context.Context, emit func(sensors.Event)) error {
	b.mu.Lock()
	var again []int
	for n := range b.next {
		if b.open[n] {
			again = append(again, n)
		}
	}
	b.mu.Unlock()
	say := func(n int, dup bool) {
		r := sensors.Reading{Name: "n", Value: float64(n)}
		if dup {
			r.Quality = []string{sensors.Dup}
		}
		emit(sensors.Event{Readings: []sensors.Reading{r}, Done: func(err error) {
			if err == nil {
				b.mu.Lock()
				delete(b.open, n)
				b.mu.Unlock()
			}
		}})
	}
	for _, n := range again {
		say(n, true)
	}
	for {
		b.mu.Lock()
		n, more := b.next, b.next < b.until
		if more {
			b.next++
			b.open[n] = true
		}
		b.mu.Unlock()
		if more {
			b.clock.move(func(c *dayClock) { c.now.Mono += 100 * time.Millisecond })
			say(n, false)
			continue
		}
		select {
		case b.idle <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-b.fail:
			return errors.New("the broker restarts")
		case <-time.After(time.Millisecond):
		}
	}
}

func (b *dayBroker) Close() error { return nil }

// TestDay is a day at 10 Hz on a clock of its own: boots without a clock, a clock that is
// set by two weeks forth and back, a broker that restarts, a card that is full for a
// while or for so long that readings are dropped, power cuts. A buyer gets what was
// sensed, in order; what comes twice, or late, says so; each gap is explained; and time
// never goes back.
func TestDay(t *testing.T) {
	readings := 864_000
	if testing.Short() {
		readings = 50_000
	}
	rng := rand.New(rand.NewPCG(1, 24))
	disk, sales := faultfs.New(24), newSales()
	clock := &dayClock{}
	events := map[string]int{}
	source := &dayBroker{clock: clock, open: map[int]bool{}, fail: make(chan struct{}), idle: make(chan struct{}, 1)}
	openLog := func() *feed.Log {
		l, err := feed.Open(feed.Config{
			FS: disk, Dir: "/log", MaxSize: 256 << 20, Name: "day", Encoding: block.SenMLCBOR, Keys: feedtest.Keys{}, Sales: sales,
			Now: func() block.Stamp {
				n := clock.Now()
				return block.Stamp{Boot: n.Boot, Mono: n.Mono, Wall: n.Wall, Err: n.Err}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	var log *feed.Log
	var stop func()
	boot := func() {
		clock.move(func(c *dayClock) {
			c.now = sensors.Time{Boot: c.now.Boot + 1, Mono: time.Second}
			c.wall = 0 // no battery
		})
		log = openLog()
		dev, err := device.New(device.Config{
			Feed: log, Encoding: block.SenMLCBOR, Clock: clock, Pack: 20 * time.Millisecond, Sensors: []device.Sensor{{Name: "s", Stream: source}}, Log: testLog(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			err := dev.Run(ctx)
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			done <- err
		}()
		stop = func() { cancel(); <-done }
	}
	said := func(n int) {
		source.mu.Lock()
		source.until = min(source.until+n, readings)
		source.mu.Unlock()
		for len(source.idle) > 0 {
			<-source.idle
		}
		<-source.idle
	}
	settled := func() {
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
			source.mu.Lock()
			n := len(source.open)
			source.mu.Unlock()
			if n == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d readings are not acknowledged after %v", n, events)
			}
		}
	}
	// long has the card full until readings are dropped: the clock comes and goes, so
	// that each is a block. Of those that were not kept the broker hears, as of others
	// that wait.
	long := func() {
		disk.Fail(func(int, string, string) error { return syscall.ENOSPC })
		for range 600 {
			clock.move(func(c *dayClock) { c.wall = day(c) - c.wall })
			said(1)
		}
		disk.Fail(nil)
		source.fail <- struct{}{}
	}
	const week = 7 * 24 * time.Hour
	boot()
	for source.until < readings {
		said(1 + rng.IntN(readings/60))
		switch rng.IntN(7) {
		case 0:
			clock.move(func(c *dayClock) { c.wall = day(c) })
			events["the clock is set"]++
		case 1:
			clock.move(func(c *dayClock) {
				if c.wall != 0 {
					c.wall += time.Duration(2*rng.IntN(2)-1) * 2 * week
					events["it jumps by two weeks"]++
				}
			})
		case 2:
			source.fail <- struct{}{}
			events["the broker restarts"]++
		case 3:
			settled() // a cut loses what nobody acknowledged, and the broker says it again
			said(1 + rng.IntN(500))
			disk.PowerOff()
			stop()
			log.Abort()
			disk.Reboot()
			boot()
			events["the power is cut"]++
		case 4:
			stop()
			if err := log.Close(); err != nil {
				t.Fatal(err)
			}
			boot()
			events["it is stopped"]++
		case 5:
			disk.Fail(func(int, string, string) error { return syscall.ENOSPC })
			said(1 + rng.IntN(500))
			disk.Fail(nil)
			settled()
			events["the card is full"]++
		case 6:
			clock.move(func(c *dayClock) { c.wall = day(c) })
			long()
			settled()
			events["the card is full for long"]++
		}
	}
	settled()
	stop()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	log = openLog()
	defer log.Close()
	got := buyDay(t, log)
	checkDay(t, got, readings, events)
}

// buyDay sells the log, and returns what a buyer is printed.
func buyDay(t *testing.T, log *feed.Log) string {
	t.Helper()
	d, err := db.Open(filepath.Join(t.TempDir(), "edge.db"), 8<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	books, err := ledger.New(ledger.Config{DB: d})
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOffer(OfferConfig{
		Name: "day", Feed: log, Key: key(1), Ledger: books, Uplink: &replicate.Uplink{}, Listing: Listing{Card: card.Card{Name: "day"}}, Log: testLog(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	addr, err := o.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	w, err := rows.New(rows.Config{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Buy(context.Background(), t.TempDir(), client.Config{Seller: o.key(), Ways: client.TCP(nil, addr.String()), Output: w}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func checkDay(t *testing.T, got string, readings int, events map[string]int) {
	t.Helper()
	seen := make([]bool, readings)
	next, dups, late, boots, gaps := 0, 0, 0, 0, map[string]int{}
	newest, dropped := "", false
	for line := range strings.Lines(got) {
		var x struct {
			Name    string
			Value   float64
			Time    *string
			Quality []string
			Entry   *struct{ Entry, Cause string }
		}
		if err := json.Unmarshal([]byte(line), &x); err != nil {
			t.Fatal(line, err)
		}
		switch {
		case x.Entry != nil:
			if x.Entry.Entry == "boot" {
				boots++
			} else if x.Entry.Entry == "gap" {
				gaps[x.Entry.Cause]++
				dropped = dropped || x.Entry.Cause == device.CauseStorage
			}
			continue
		case x.Name != "s/n":
			t.Fatal(line)
		}
		n, dup := int(x.Value), strings.Contains(fmt.Sprint(x.Quality), sensors.Dup)
		switch {
		case seen[n] && !dup:
			t.Fatalf("%d comes twice, and does not say so", n)
		case seen[n]:
			dups++
		case n < next && dup:
			late++
		case n != next && !(n > next && dropped):
			t.Fatalf("%d follows %d", n, next-1)
		default:
			next, dropped = n+1, false
		}
		seen[n] = true
		if x.Time != nil {
			if len(newest) > 10 && (*x.Time)[:10] < newest[:10] {
				t.Fatalf("%s after %s", *x.Time, newest)
			}
			newest = *x.Time
		}
	}
	if i := slices.Index(seen, false); i >= 0 {
		t.Errorf("reading %d is missing", i)
	}
	cuts, stops := events["the power is cut"], events["it is stopped"]
	if next != readings || boots != 1+cuts+stops || gaps["power"] != cuts || gaps["stopped"] != stops || gaps["sensor"] < events["the broker restarts"] ||
		gaps["storage"] != events["the card is full for long"] {
		t.Errorf("%d of %d readings, %d boots, gaps %v; what happened: %v", next, readings, boots, gaps, events)
	}
	t.Logf("%d readings, %d of them twice and %d late, all flagged; %d boots, gaps %v; what happened: %v", next, dups, late, boots, gaps, events)
}
