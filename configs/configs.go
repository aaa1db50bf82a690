// Package configs reads edge.yaml. It is strict: an unknown key, a wrong unit or
// an impossible combination is an [Error] with file, line and column and what
// was meant; all errors of a file are reported together.
package configs

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Example is a commented configuration file.
//
//go:embed edge.example.yaml
var Example []byte

// Config is a whole configuration, with defaults filled in.
type Config struct {
	Device  Device
	Storage Storage
	Limits  Limits
	Network *Network // nil: feeds are reached at their addresses alone
	// Payment are wallets that are paid, in order of preference.
	Payment []Gateway
	MQTT    *MQTT // nil if no sensor is behind a broker
	Monitor Monitor
	Feeds   []Feed

	file string
	tree *ast.File
}

// Device is the board.
type Device struct {
	Name  string
	Place *Place // nil if it is not said
	// TrustClock believes the system's clock also while nothing synchronises it.
	TrustClock bool
}

// Place is where the board is, in degrees; decimals as they were written.
type Place struct{ Lat, Lon string }

// MQTT is a broker.
type MQTT struct {
	Broker             string
	Username, Password string
	CA                 string // file with certificates; "" is the system's
}

// Monitor is where the device says how it does.
type Monitor struct {
	MQTT   *MQTT // nil is nowhere
	Prefix string
}

// Storage says where and how much is kept.
type Storage struct {
	Path        string
	MaxSize     int64         // bytes for the whole device
	MaxAge      time.Duration // 0 keeps what fits
	CommitEvery time.Duration // 0 commits each block at once
	CommitBytes int
}

// Limits bound what the program takes.
type Limits struct {
	Memory int64 // bytes; 0 leaves it to the Go runtime
	// Buyers is how many are served at once, of each feed.
	Buyers int
	// Upload and UploadPerBuyer are bytes per second of all feeds together and
	// for each buyer; 0 is no limit.
	Upload, UploadPerBuyer float64
}

// Feed is an offer.
type Feed struct {
	Name     string
	Encoding string
	Pack     time.Duration
	MaxSize  int64 // its share of Storage.MaxSize, in bytes
	// Free: it is given away. Else Price says what it costs; nil is not for sale.
	Free  bool
	Price *Price
	Trial time.Duration // 0 is none
	// Terms is the text that buyers must accept; "" is none.
	Terms       string
	Description string
	Burnable    bool
	TCP         string // address on which it is sold; "" is none
	Sensors     []Sensor
}

// Price is Amount satoshi, a decimal number, for Interval of Unit: seconds, minutes,
// hours, days, readings, bytes, kilobytes, megabytes or once.
type Price struct {
	Amount   string
	Unit     string
	Interval uint64
	// History is what is included from before the purchase: All, or a duration, and
	// 0 is nothing; HistoryAmount is its price, as Amount.
	All           bool
	History       time.Duration
	HistoryAmount string
	Wall          bool // time passes by the seller's clock
}

// Sensor is one source of readings.
type Sensor struct {
	Name        string
	Driver      string
	Every       time.Duration
	Bus         int    // bme280
	Address     uint16 // bme280
	Seed        uint64 // sim
	Field, Unit string // sysfs, exec
	Path        string // sysfs, as Scale and Offset
	Scale       float64
	Offset      float64
	Command     []string // exec, as Timeout
	Timeout     time.Duration
	Topic       string            // mqtt, as Fields
	Fields      map[string]string // paths in JSON, with their units
	Chip        string            // gpio, as all below
	Line        int
	Mode        string // level, edge, counter or rate
	Edge        string // rising, falling or both
	Pull        string // up, down, none or ""
	ActiveLow   bool
	Debounce    time.Duration
	Limits      map[string]Limit // of readings, by their names
}

// Limit says what readings of one name should be; nil and 0 are not looked at.
type Limit struct {
	Min, Max, Jump *float64
	Flat           time.Duration
}

// Error is what is wrong at one place of a file.
type Error struct {
	File         string
	Line, Column int
	Message      string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Message)
	}
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// raw is the file as it is written; all values that have a unit are text.
type raw struct {
	Device struct {
		Name  string `yaml:"name"`
		Clock string `yaml:"clock"`
		Place *struct {
			Lat string `yaml:"lat"`
			Lon string `yaml:"lon"`
		} `yaml:"place"`
	} `yaml:"device"`
	Storage struct {
		Path    string `yaml:"path"`
		MaxSize string `yaml:"max_size"`
		MaxAge  string `yaml:"max_age"`
		Commit  struct {
			Every string `yaml:"every"`
			Bytes string `yaml:"bytes"`
		} `yaml:"commit"`
	} `yaml:"storage"`
	Limits struct {
		Memory         string `yaml:"memory"`
		Buyers         *int   `yaml:"buyers"`
		Upload         string `yaml:"upload"`
		UploadPerBuyer string `yaml:"upload_per_buyer"`
	} `yaml:"limits"`
	Network *rawNetwork  `yaml:"network"`
	Payment []rawGateway `yaml:"payment"`
	MQTT    *rawMQTT     `yaml:"mqtt"`
	Monitor struct {
		MQTT *rawMQTT `yaml:"mqtt"`
	} `yaml:"monitor"`
	Feeds []struct {
		Name     string `yaml:"name"`
		Encoding string `yaml:"encoding"`
		Pack     struct {
			Every string `yaml:"every"`
		} `yaml:"pack"`
		MaxShare    string   `yaml:"max_share"`
		Description string   `yaml:"description"`
		Terms       string   `yaml:"terms"`
		Price       ast.Node `yaml:"price"`
		Trial       string   `yaml:"trial"`
		Burnable    bool     `yaml:"burnable"`
		TCP         string   `yaml:"tcp"`
		Sensors     []struct {
			Name    string   `yaml:"name"`
			Driver  string   `yaml:"driver"`
			Every   string   `yaml:"every"`
			Bus     *int     `yaml:"bus"`
			Address *uint16  `yaml:"address"`
			Seed    *uint64  `yaml:"seed"`
			Path    *string  `yaml:"path"`
			Field   *string  `yaml:"field"`
			Unit    *string  `yaml:"unit"`
			Scale   *float64 `yaml:"scale"`
			Offset  *float64 `yaml:"offset"`
			Command []string `yaml:"command"`
			Timeout string   `yaml:"timeout"`

			Topic     *string           `yaml:"topic"`
			Fields    map[string]string `yaml:"fields"`
			Chip      *string           `yaml:"chip"`
			Line      *int              `yaml:"line"`
			Mode      *string           `yaml:"mode"`
			Edge      *string           `yaml:"edge"`
			Pull      *string           `yaml:"pull"`
			ActiveLow *bool             `yaml:"active_low"`
			Debounce  string            `yaml:"debounce"`
			Limits    map[string]struct {
				Min  *float64 `yaml:"min"`
				Max  *float64 `yaml:"max"`
				Jump *float64 `yaml:"jump"`
				Flat string   `yaml:"flat"`
			} `yaml:"limits"`
		} `yaml:"sensors"`
	} `yaml:"feeds"`
}

// keys are all keys of the file, for suggestions.
var keyNames = [...]string{
	"device", "name", "storage", "path", "max_size", "max_age", "commit", "every", "bytes", "limits", "memory", "feeds", "encoding", "pack",
	"max_share", "sensors", "driver", "bus", "address", "seed", "buyers", "upload", "upload_per_buyer", "price", "tcp",
	"field", "unit", "scale", "offset", "command", "timeout", "place", "lat", "lon", "payment", "gateway", "listen", "description", "terms", "trial",
	"mqtt", "broker", "username", "password_file", "ca", "monitor", "prefix", "topic", "fields", "chip", "line", "mode", "edge", "pull", "active_low",
	"url", "cert", "macaroon", "network", "private", "wallet", "connection_file", "may_spend", "custodial", "debounce", "min", "max", "jump", "flat", "burnable", "bootstrap", "relays", "amount", "currency", "per", "history", "history_amount", "clock",
}

// Load reads and checks the file.
func Load(file string) (*Config, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: file, Message: "there is no such file: make one with edge init, or name another with -c"}
	} else if err != nil {
		return nil, &Error{File: file, Message: fmt.Sprintf("cannot be read: %v", errors.Unwrap(err))}
	}
	return Parse(file, b)
}

// Parse checks the content of a file; the name is for messages.
func Parse(file string, b []byte) (*Config, error) {
	r := &reader{file: file}
	var in raw
	if err := r.decode(b, &in); err != nil {
		return nil, r.syntax(err)
	}
	c := r.config(&in)
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	c.file, c.tree = r.file, r.tree
	return c, nil
}

// Errorf returns an [Error] at a path like "feeds[0].sensors[1].unit", for what only
// those see who use the configuration.
func (c *Config) Errorf(path, format string, args ...any) error {
	r := &reader{file: c.file, tree: c.tree}
	r.fail(path, format, args...)
	return r.errs[0]
}

// limits reads how much buyers may take.
func (r *reader) limits(in *raw, c *Config) {
	l := &in.Limits
	c.Limits.Buyers = 50
	if l.Buyers != nil {
		c.Limits.Buyers = *l.Buyers
		if *l.Buyers < 1 || *l.Buyers > 10000 {
			r.fail("limits.buyers", "%d: 1 to 10000", *l.Buyers)
		}
	}
	c.Limits.Upload = r.rate("limits.upload", l.Upload, 2e6/8)
	c.Limits.UploadPerBuyer = r.rate("limits.upload_per_buyer", l.UploadPerBuyer, 512e3/8)
}

// Bounds of what can be configured.
const (
	minLogSize  = 2 << 20
	minEvery    = 10 * time.Millisecond
	minMemory   = 16 << 20
	minRate     = 1000
	maxCommit   = 1 << 20 // more does not wait for a commit
	defaultPath = "/var/lib/edge"
)

// DBReserve is the part of storage.max_size that the database may take; the
// feeds share the rest.
func DBReserve(maxSize int64) int64 { return min(maxSize/8, 32<<20) }

func (r *reader) config(in *raw) *Config {
	c := &Config{Device: Device{Name: in.Device.Name}}
	if p := in.Device.Place; p != nil {
		c.Device.Place = r.place(p.Lat, p.Lon)
	}
	switch in.Device.Clock {
	case "", "synchronised":
	case "system":
		c.Device.TrustClock = true
	default:
		r.fail("device.clock", "%q is unknown: synchronised believes the clock while something synchronises it (NTP), system always, for a board with a clock battery", in.Device.Clock)
	}
	c.Network = r.network(in.Network)
	r.payment(in, c)
	c.MQTT = r.broker("mqtt", in.MQTT)
	if in.MQTT != nil && in.MQTT.Prefix != "" {
		r.fail("mqtt.prefix", "belongs to monitor.mqtt: sensors have topics of their own")
	}
	if c.Monitor.MQTT = r.broker("monitor.mqtt", in.Monitor.MQTT); c.Monitor.MQTT != nil {
		c.Monitor.Prefix = in.Monitor.MQTT.Prefix
		if c.Monitor.Prefix == "" {
			c.Monitor.Prefix = "edge"
		}
		if strings.ContainsAny(c.Monitor.Prefix, "+#") {
			r.fail("monitor.mqtt.prefix", "%q: + and # cannot be published to", c.Monitor.Prefix)
		}
	}
	if c.Device.Name == "" {
		c.Device.Name, _ = os.Hostname() // "" names nothing, and is fine
	}
	s := &in.Storage
	c.Storage = Storage{
		Path: s.Path, MaxSize: r.size("storage.max_size", s.MaxSize, 4<<30, 2*minLogSize), MaxAge: r.duration("storage.max_age", s.MaxAge, 0, 0),
		CommitEvery: r.duration("storage.commit.every", s.Commit.Every, 10*time.Second, 0),
		CommitBytes: int(r.size("storage.commit.bytes", s.Commit.Bytes, 4<<10, 0)),
	}
	if c.Storage.Path = r.beside(c.Storage.Path); c.Storage.Path == "" {
		c.Storage.Path = defaultPath
	}
	if c.Storage.CommitBytes > maxCommit {
		r.fail("storage.commit.bytes", "%s is too much to wait for: at most 1MiB", s.Commit.Bytes)
	}
	c.Limits.Memory = r.size("limits.memory", in.Limits.Memory, 0, minMemory)
	r.limits(in, c)
	if len(in.Feeds) == 0 {
		r.fail("feeds", "nothing to sell: at least one feed with a sensor is needed")
	}
	r.feeds(in, c)
	return c
}

func (r *reader) feeds(in *raw, c *Config) {
	left, open := c.Storage.MaxSize-DBReserve(c.Storage.MaxSize), 0
	total := left
	for i := range in.Feeds {
		f := &in.Feeds[i]
		path := fmt.Sprintf("feeds[%d]", i)
		out := Feed{Name: f.Name, Encoding: f.Encoding, Pack: r.duration(path+".pack.every", f.Pack.Every, 10*time.Second, minEvery)}
		if !validName(f.Name) {
			r.fail(path+".name", "%q is not a name: letters, digits, - and _ only, at most 64", f.Name)
		}
		if slices.ContainsFunc(c.Feeds, func(o Feed) bool { return o.Name == f.Name }) {
			r.fail(path+".name", "%q is there twice", f.Name)
		}
		switch f.Encoding {
		case "":
			out.Encoding = "senml+json"
		case "senml+json", "senml+cbor":
		case "raw":
			r.fail(path+".encoding", "raw needs a sensor that gives bytes, and there is none yet: senml+json or senml+cbor")
		default:
			r.fail(path+".encoding", "%q is unknown: senml+json or senml+cbor", f.Encoding)
		}
		if f.MaxShare != "" {
			out.MaxSize = r.share(path+".max_share", f.MaxShare, total)
			left -= out.MaxSize
		} else {
			open++
		}
		r.sale(in, i, path, c, &out)
		out.Sensors = r.sensors(in, i)
		c.Feeds = append(c.Feeds, out)
	}
	if left < 0 {
		r.fail("feeds", "the shares of max_size are more than 100%%")
		return
	}
	for i := range c.Feeds {
		if c.Feeds[i].MaxSize == 0 {
			c.Feeds[i].MaxSize = left / int64(max(open, 1))
		}
		if c.Feeds[i].MaxSize < minLogSize {
			r.fail(fmt.Sprintf("feeds[%d]", i), "%d bytes of max_size are too few: at least %d", c.Feeds[i].MaxSize, minLogSize)
		}
	}
}

func validName(s string) bool {
	ok := s != "" && len(s) <= 64
	for _, c := range s {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	return ok
}
