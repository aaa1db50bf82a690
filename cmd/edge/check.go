package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/feed/block"
	"dazaar-edge/market/device"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/vault"

	"golang.org/x/sys/unix"
)

// errCheck says that something will not work and that this was said.
var errCheck = errors.New("check failed")

// checkTime is how long a sensor may take to show itself.
const checkTime = 15 * time.Second

func checkCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("check", "[-c edge.yaml]")
	file := f.String("c", defaultConfig, "configuration file")
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(*file)
	if err != nil {
		return err
	}
	c := &checker{p: p, cfg: cfg}
	c.device()
	c.sensors(ctx)
	c.project()
	if c.failed > 0 {
		fmt.Fprintf(p.stdout, "%d of these will not work as they are\n", c.failed)
		return errCheck
	}
	fmt.Fprintln(p.stdout, "everything that can be checked without running works")
	return nil
}

// checker says what works and what does not.
type checker struct {
	p      *program
	cfg    *configs.Config
	failed int
	blocks []float64 // of each feed, bytes of a block by what its sensors gave
}

func (c *checker) ok(format string, args ...any) {
	fmt.Fprintf(c.p.stdout, "ok    "+format+"\n", args...)
}

func (c *checker) warn(format string, args ...any) {
	fmt.Fprintf(c.p.stdout, "warn  "+format+"\n", args...)
}

func (c *checker) fail(format string, args ...any) {
	c.failed++
	fmt.Fprintf(c.p.stdout, "FAIL  "+format+"\n", args...)
}

// device looks at the disk, the clock and what the keys are bound to.
func (c *checker) device() {
	dir := c.cfg.Storage.Path
	at := dir
	for { // the nearest directory that is there
		if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			break
		}
		at = filepath.Dir(at)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		c.fail("storage.path %s: %v", dir, err)
	} else if free := int64(st.Bavail) * int64(st.Bsize); at == dir {
		c.ok("storage.path %s: %s free beside what is used already", dir, size(free))
	} else if free < c.cfg.Storage.MaxSize {
		c.fail("storage.path %s: %s free, and max_size is %s: make it smaller", dir, size(free), size(c.cfg.Storage.MaxSize))
	} else {
		c.ok("storage.path %s: %s free, max_size %s", dir, size(free), size(c.cfg.Storage.MaxSize))
	}
	if unix.Access(at, unix.W_OK) != nil {
		c.fail("storage.path %s: you may not write there: sudo, or chown", at)
	}
	switch now := clockOf(c.cfg, 0).Now(); {
	case !now.Wall.IsZero():
		c.ok("clock: %s", now.Wall.Format(time.RFC3339))
	case c.sells():
		c.warn("clock: nothing synchronises it (timedatectl): readings get their time when something does, and until then nobody can pay; device.clock: system believes it as it is")
	default:
		c.warn("clock: nothing synchronises it (timedatectl): readings get their time when something does")
	}
	if vault.Here("/", dir).Weak() {
		c.warn("nothing tells this board from another one (no serial number, no card id, no network card): a copy of the card would sign with the same keys")
	}
}

// sells tells whether a feed costs something.
func (c *checker) sells() bool {
	for _, f := range c.cfg.Feeds {
		if f.Price != nil {
			return true
		}
	}
	return false
}

// sensors reads each sensor once.
func (c *checker) sensors(ctx context.Context) {
	from, err := newSources(c.cfg, fmt.Sprintf("edge-check-%d", os.Getpid()), nil)
	if err != nil {
		c.fail("mqtt: %v", err)
		return
	}
	defer from.close() //nolint:errcheck // nothing was kept
	for _, f := range c.cfg.Feeds {
		bytes := 0.
		for _, sc := range f.Sensors {
			readings, err := c.read(ctx, from, sc)
			switch {
			case errors.Is(err, errQuiet):
				c.warn("%s/%s: %v", f.Name, sc.Name, err)
			case err != nil:
				c.fail("%s/%s: %v", f.Name, sc.Name, err)
			default:
				text := ""
				for i, r := range readings {
					if i == 4 {
						text += fmt.Sprintf(", and %d more", len(readings)-i)
						break
					}
					text += fmt.Sprintf(", %s %v %s", r.Name, r.Value, r.Unit)
				}
				c.ok("%s/%s%s", f.Name, sc.Name, text)
			}
			if sc.Every > 0 {
				bytes += recordSize(f.Encoding, sc.Name, readings) * float64(f.Pack) / float64(max(sc.Every, time.Millisecond))
			}
		}
		c.blocks = append(c.blocks, bytes+blockHead)
	}
}

// errQuiet says that nothing came, which may be as it should.
var errQuiet = errors.New("nothing came meanwhile: what has readings when it wants cannot be checked so")

// read reads a sensor, twice if once is not enough.
func (c *checker) read(ctx context.Context, from *sources, sc configs.Sensor) (out []sensors.Reading, err error) {
	s, err := from.sensor(sc)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	if s.Stream != nil {
		return c.stream(ctx, s)
	}
	defer s.Source.Close() //nolint:errcheck // it was read
	for range 2 {
		if out, err = s.Source.Read(ctx); err != nil || len(out) > 0 {
			return out, err
		}
	}
	return out, errQuiet
}

func (c *checker) stream(ctx context.Context, s device.Sensor) (out []sensors.Reading, err error) {
	defer s.Stream.Close() //nolint:errcheck // it was read
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err = s.Stream.Stream(ctx, func(e sensors.Event) {
		if len(e.Readings) > 0 && out == nil {
			out = e.Readings
		}
		cancel() // it is not told that they are kept
	})
	switch {
	case out != nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, errQuiet
	}
	return nil, err
}

// blockHead is about what a block takes besides its readings, on the card.
const blockHead = 70

// recordSize is about what the readings of one read take in a block.
func recordSize(encoding, sensor string, readings []sensors.Reading) (n float64) {
	e, err := block.ParseEncoding(encoding)
	if err != nil {
		return 0
	}
	// The second time tells what they take besides the head of the block.
	var sizes [2]int
	pack := block.Pack{Stamp: block.Stamp{Boot: 1, Mono: time.Second}}
	for k := range sizes {
		for _, r := range readings {
			if v, err := device.Value(r.Value); err == nil {
				at := time.Duration(k+1) * time.Millisecond
				pack.Readings = append(pack.Readings, block.Reading{Name: sensor + "/" + r.Name, Unit: r.Unit, Value: v, Offset: at})
			}
		}
		b, err := e.Pack(&pack)
		if err != nil {
			return 0
		}
		sizes[k] = len(b.Data)
	}
	return float64(sizes[1] - sizes[0])
}

// pageSize is what the card writes at least.
const pageSize = 4096

// project says what the rates of the configuration come to.
func (c *checker) project() {
	const year = 365 * 24 * time.Hour
	wear := 0.
	for i, f := range c.cfg.Feeds {
		perYear := float64(year) / float64(f.Pack)
		bytes := c.blocks[i] * perYear
		every := max(c.cfg.Storage.CommitEvery, f.Pack)
		commits := float64(year) / float64(every)
		// A commit writes its last page again, and then what came since.
		wear += max(commits*pageSize, bytes) + bytes
		keeps := "all of it for years"
		if kept := float64(f.MaxSize) / bytes * float64(year); kept < float64(10*year) {
			keeps = fmt.Sprintf("the newest %.0f days", kept/float64(24*time.Hour))
		}
		c.ok("%s: about %.0f bytes a block, %s a year; max_share keeps %s", f.Name, c.blocks[i], size(int64(bytes)), keeps)
		if f.Free || f.Price != nil {
			c.ok("%s: about %s a year to each buyer who follows it", f.Name, size(int64(bytes*1.4)))
		}
	}
	c.ok("card: about %s written a year (%s a day); a 32 GB card bears some 100 TB, if it is a good one", size(int64(wear)), size(int64(wear/365)))
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	}
	return fmt.Sprintf("%.1f kB", float64(n)/1e3)
}
