// Package sysfs reads sensors that the kernel has drivers for: what stands as a
// number in a file. IIO, hwmon, 1-wire and thermal zones are all of that kind.
//
// A path may be a pattern, since some of the numbers in these paths change with
// every start; what is fixed is the way by the bus, for example
//
//	/sys/bus/i2c/devices/1-0048/hwmon/hwmon*/temp1_input
//	/sys/bus/w1/devices/28-*/temperature
//	/sys/bus/iio/devices/iio:device*/in_pressure_raw
//
// A raw value of IIO, in a file that ends in _raw, is turned into one of the
// kernel's unit by the files with offset and scale beside it.
package sysfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"dazaar-edge/sensors"
)

// Config says what to read.
type Config struct {
	Path string // pattern of [filepath.Match], absolute
	// Name is that of the reading. If the path matches several files it must have
	// a *, which stands for what tells them apart.
	Name string
	Unit string // SenML
	// A value is what stands in the file times Scale, plus Offset; Scale 0 is 1.
	Scale, Offset float64
}

// maxFiles bounds how many files a pattern may match.
const maxFiles = 64

// Source implements [sensors.Source]. Not safe for concurrent use.
type Source struct {
	cfg  Config
	root string // before every path, for tests
}

// New returns a source. The error is about a pattern that cannot be.
func New(cfg Config) (*Source, error) {
	if _, err := filepath.Match(cfg.Path, ""); err != nil {
		return nil, fmt.Errorf("%q: %w", cfg.Path, err)
	}
	if !filepath.IsAbs(cfg.Path) {
		return nil, fmt.Errorf("%q is not an absolute path", cfg.Path)
	}
	if cfg.Scale == 0 {
		cfg.Scale = 1
	}
	return &Source{cfg: cfg}, nil
}

// Read implements [sensors.Source]. Files that can be read are, also when others
// cannot.
func (s *Source) Read(ctx context.Context) (out []sensors.Reading, errs error) {
	files, err := filepath.Glob(s.root + s.cfg.Path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: there is no %s", sensors.ErrGone, s.cfg.Path)
	}
	if len(files) > 1 && !strings.Contains(s.cfg.Name, "*") {
		return nil, fmt.Errorf("%s is %d files: give a path that is one, or put a * into the name %q for what tells them apart", s.cfg.Path, len(files), s.cfg.Name)
	}
	if len(files) > maxFiles {
		return nil, fmt.Errorf("%s is %d files, at most %d", s.cfg.Path, len(files), maxFiles)
	}
	for _, file := range files {
		if ctx.Err() != nil {
			return out, errors.Join(errs, context.Cause(ctx))
		}
		v, err := value(file)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("%w: %w", sensors.ErrGone, err))
			continue
		}
		name := strings.Replace(s.cfg.Name, "*", s.part(strings.TrimPrefix(file, s.root)), 1)
		out = append(out, sensors.Reading{Name: name, Unit: s.cfg.Unit, Value: round(v*s.cfg.Scale + s.cfg.Offset)})
	}
	return out, errs
}

// part returns what tells a file from the others of the pattern: the names in its
// path that the pattern does not spell out.
func (s *Source) part(file string) string {
	pattern, names := strings.Split(s.cfg.Path, "/"), strings.Split(file, "/")
	var out []string
	for i, n := range names {
		if i < len(pattern) && n != pattern[i] {
			out = append(out, strings.Map(func(r rune) rune {
				if r == '-' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
					return r
				}
				return '_'
			}, n))
		}
	}
	return strings.Join(out, "_")
}

// Close implements [sensors.Source].
func (s *Source) Close() error { return nil }

// rawSuffix ends the name of a raw value of IIO.
const rawSuffix = "_raw"

// value reads a number, and turns a raw one into the kernel's unit.
func value(file string) (float64, error) {
	v, err := number(file)
	if err != nil {
		return 0, err
	}
	base, raw := strings.CutSuffix(file, rawSuffix)
	if !raw {
		return v, nil
	}
	offset, err := besides(base, "_offset", 0)
	if err != nil {
		return 0, err
	}
	scale, err := besides(base, "_scale", 1)
	return (v + offset) * scale, err
}

// besides reads the file of a channel, or that which it shares with others, the most
// like it first.
func besides(base, suffix string, missing float64) (float64, error) {
	dir, channel := filepath.Split(base)
	for _, c := range shared(channel) {
		if v, err := number(dir + c + suffix); !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
	}
	return missing, nil
}

// shared returns the names by which a channel's scale may go. A channel is
// direction_type, an index, for a difference a - and the other one, and a modifier: of
// in_voltage0-voltage1 that is in_voltage0-voltage1, in_voltage-voltage, in_voltage and
// in; of in_accel_x it is in_accel_x, in_accel and in.
// Source: Documentation/ABI/testing/sysfs-bus-iio of the kernel.
func shared(channel string) (out []string) {
	direction, rest, _ := strings.Cut(channel, "_")
	kind, modifier, modified := strings.Cut(rest, "_")
	first, second, differs := strings.Cut(kind, "-")
	bare := func(s string) string { return strings.TrimRight(s, "0123456789") }
	kinds := []string{kind}
	if differs {
		kinds = append(kinds, bare(first)+"-"+bare(second))
	}
	kinds = append(kinds, bare(first))
	add := func(name string) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	if modified {
		for _, k := range kinds {
			add(direction + "_" + k + "_" + modifier)
		}
	}
	for _, k := range kinds {
		add(direction + "_" + k)
	}
	add(direction)
	return out
}

// number reads what stands in a file.
func number(name string) (float64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err != nil {
		return 0, err // the path is in it
	}
	text := strings.TrimSpace(string(b))
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("%s holds %.40q, which is no number", name, text)
	}
	return v, nil
}

// round drops what only the scale brought in: ten significant digits are more than
// any sensor has.
func round(v float64) float64 {
	r, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 10, 64), 64)
	if err != nil {
		return v
	}
	return r
}
