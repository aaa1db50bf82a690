package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"dazaar-edge/cmd/edge/source"
	"dazaar-edge/cmd/edge/till"
	"dazaar-edge/configs"
	"dazaar-edge/feed/block"
	"dazaar-edge/market/device"
	"dazaar-edge/payment"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/durable"
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
	cfg, err := source.Load(*file)
	if err != nil {
		return err
	}
	c := &checker{p: p, cfg: cfg}
	c.device()
	c.network(ctx)
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
	p       *program
	cfg     *configs.Config
	failed  int
	volumes []volume // of each feed
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
	} else if room := int64(st.Bavail)*int64(st.Bsize) + used(dir); room < c.cfg.Storage.MaxSize {
		c.fail("storage.path %s: there is room for %s, and max_size is %s: make it smaller", dir, size(room), size(c.cfg.Storage.MaxSize))
	} else {
		c.ok("storage.path %s: room for %s, max_size %s", dir, size(room), size(c.cfg.Storage.MaxSize))
	}
	if name := filepath.Join(dir, socketName); len(name) > maxSocket {
		c.fail("storage.path %s: the path of its socket has %d bytes, and a socket's has at most %d: a shorter one", dir, len(name), maxSocket)
	}
	if unix.Access(at, unix.W_OK) != nil {
		c.fail("storage.path %s: you may not write there: sudo, or chown", at)
	}
	switch now := source.Clock(c.cfg, 0).Now(); {
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

// maxSocket is how long the path of a Unix socket may be.
const maxSocket = len(unix.RawSockaddrUnix{}.Path) - 1

// used returns how many bytes the files in a directory take.
func used(dir string) (n int64) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error { //nolint:errcheck // what cannot be read is not counted
		if err != nil {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}

// network looks at what is listened on, and at the brokers.
func (c *checker) network(ctx context.Context) {
	running := errors.Is(tryLock(c.cfg.Storage.Path), durable.ErrLocked)
	listen := func(what, address string) {
		ln, err := net.Listen("tcp", address)
		switch {
		case err == nil:
			ln.Close()
			c.ok("%s: %s is free", what, address)
		case running && errors.Is(err, unix.EADDRINUSE):
			c.ok("%s: %s is in use, and edge is running", what, address)
		default:
			c.fail("%s: %v", what, err)
		}
	}
	for i, g := range c.cfg.Payment {
		if g.Kind != "devnet" {
			c.wallet(ctx, fmt.Sprintf("payment[%d]", i), g)
		} else {
			listen(fmt.Sprintf("payment[%d].listen", i), g.Listen)
		}
	}
	for _, f := range c.cfg.Feeds {
		switch {
		case f.TCP != "":
			listen(f.Name+": tcp", f.TCP)
		case c.cfg.Network == nil && (f.Free || f.Price != nil):
			c.warn("%s: it has a price, and nobody can reach it: add network: {}, or tcp: \":49738\"", f.Name)
		}
	}
	if m := c.cfg.Monitor.MQTT; m != nil {
		if _, err := source.Trust(m.CA); err != nil {
			c.fail("monitor.mqtt.ca: %v", err)
		}
		u, err := url.Parse(m.Broker)
		if err != nil {
			return
		}
		conn, err := net.DialTimeout("tcp", u.Host, 5*time.Second)
		if err != nil {
			c.warn("monitor.mqtt.broker: %v; it is tried again and again", err)
			return
		}
		conn.Close()
		c.ok("monitor.mqtt.broker: %s answers", m.Broker)
	}
}

// wallet asks a wallet how it is, and whether it may be asked about invoices.
func (c *checker) wallet(ctx context.Context, path string, g configs.Gateway) {
	w, err := till.Gateway(g, nil)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		if err = w.Health(ctx); err == nil {
			_, err = w.Lookup(ctx, [32]byte{1}, "")
		}
	}
	if err != nil && !errors.Is(err, payment.ErrUnknown) {
		c.fail("%s: %v", path, err)
		return
	}
	c.ok("%s: %s answers, and may be asked about invoices", path, g.Name())
}

// tryLock tells whether the directory is in use.
func tryLock(dir string) error {
	if !exists(filepath.Join(dir, lockName)) {
		return nil
	}
	lock, err := durable.OS().Lock(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	return lock.Close()
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

// volume is what a feed comes to, in a second.
type volume struct {
	reads, bytes float64
	unknown      []string // sensors of which nobody knows
}

// sensors reads each sensor once.
func (c *checker) sensors(ctx context.Context) {
	c.volumes = make([]volume, len(c.cfg.Feeds))
	from, err := source.New(c.cfg, fmt.Sprintf("edge-check-%d", os.Getpid()), true, nil)
	if err != nil {
		c.fail("%v", err)
		return
	}
	defer from.Close() //nolint:errcheck // nothing was kept
	for i, f := range c.cfg.Feeds {
		v := &c.volumes[i]
		for _, sc := range f.Sensors {
			readings, stream, err := c.read(ctx, from, sc)
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
				c.limits(f.Name, sc, readings)
			}
			if stream || err != nil {
				v.unknown = append(v.unknown, sc.Name)
				continue
			}
			pace := 1 / max(sc.Every, time.Millisecond).Seconds()
			v.reads += pace
			v.bytes += recordSize(f.Encoding, sc.Name, readings) * pace
		}
	}
}

// limits looks whether limits are of readings that there are.
func (c *checker) limits(feed string, sc configs.Sensor, readings []sensors.Reading) {
	for name := range sc.Limits {
		if !slices.ContainsFunc(readings, func(r sensors.Reading) bool { return r.Name == name || strings.HasSuffix(r.Name, "/"+name) }) {
			c.warn("%s/%s: limits of %q, and no reading that came has that name", feed, sc.Name, name)
		}
	}
}

// errQuiet says that nothing came, which may be as it should.
var errQuiet = errors.New("nothing came meanwhile: what has readings when it wants cannot be checked so")

// read reads a sensor, twice if once is not enough. stream tells that it has readings
// when it wants.
func (c *checker) read(ctx context.Context, from *source.Sources, sc configs.Sensor) (out []sensors.Reading, stream bool, err error) {
	s, err := from.Sensor(sc)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	if s.Stream != nil {
		out, err = c.stream(ctx, s)
		return out, true, err
	}
	defer s.Source.Close() //nolint:errcheck // it was read
	for range 2 {
		if out, err = s.Source.Read(ctx); err != nil || len(out) > 0 {
			return out, false, err
		}
	}
	return out, false, errQuiet
}

// streamTime is how long something may take to come from what works.
const streamTime = 3 * time.Second

func (c *checker) stream(ctx context.Context, s device.Sensor) (out []sensors.Reading, err error) {
	defer s.Stream.Close() //nolint:errcheck // it was read
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, works := 0, false
	err = s.Stream.Stream(ctx, func(e sensors.Event) { // what comes is not acknowledged
		if !works {
			works = true
			time.AfterFunc(streamTime, cancel)
		}
		if e.Done != nil {
			messages++
		}
		if len(e.Readings) > 0 && out == nil {
			out = e.Readings
			cancel()
		}
	})
	switch {
	case out != nil:
		return out, nil
	case messages > 0:
		return nil, fmt.Errorf("%d messages came, and none had a field that is asked for, or a value of its unit", messages)
	case works && ctx.Err() != nil:
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
		v := c.volumes[i]
		if len(v.unknown) > 0 {
			c.warn("%s: how much comes of %s is not known: what follows is without that", f.Name, strings.Join(v.unknown, ", "))
		}
		blocks := min(1/f.Pack.Seconds(), v.reads) * year.Seconds()
		bytes := blocks*blockHead + v.bytes*year.Seconds()
		if blocks == 0 {
			continue
		}
		commits := min(year.Seconds()/max(c.cfg.Storage.CommitEvery, f.Pack).Seconds(), blocks)
		// A commit writes its last page again, and then what came since.
		wear += max(commits*pageSize, bytes) + bytes
		kept := time.Duration(min(float64(f.MaxSize)/bytes, 100) * float64(year))
		if age := c.cfg.Storage.MaxAge; age > 0 {
			kept = min(kept, age)
		}
		keeps := "all of it for years"
		if kept < 10*year {
			keeps = fmt.Sprintf("the newest %.0f days", kept.Hours()/24)
		}
		c.ok("%s: about %.0f bytes a block, %s a year; kept is %s", f.Name, bytes/blocks, size(int64(bytes)), keeps)
		if f.TCP != "" {
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
