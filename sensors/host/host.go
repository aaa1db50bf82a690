// Package host reads the board itself: load, memory, disk and temperature.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"dazaar-edge/sensors"

	"golang.org/x/sys/unix"
)

// Source implements [sensors.Source]. Not safe for concurrent use.
type Source struct {
	root string
	disk string
}

// New returns a source that reads the kernel's files below root ("/", but for
// tests) and measures the file system that disk is on.
func New(root, disk string) *Source { return &Source{root, disk} }

// Read implements [sensors.Source]. What the board does not have is left out.
func (s *Source) Read(context.Context) ([]sensors.Reading, error) {
	var out []sensors.Reading
	add := func(name, unit string, value float64, err error) error {
		if err == nil {
			out = append(out, sensors.Reading{Name: name, Unit: unit, Value: value})
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	load, err := s.load()
	errs := add("load1", "/", load, err)
	memory, err := s.memory()
	errs = errors.Join(errs, add("memory_used", "/", memory, err))
	disk, err := s.diskUsed()
	errs = errors.Join(errs, add("disk_used", "/", disk, err))
	temp, err := s.temperature()
	errs = errors.Join(errs, add("cpu_temperature", "Cel", temp, err))
	if len(out) == 0 && errs == nil {
		errs = fmt.Errorf("%s: no kernel files", s.root)
	}
	return out, errs
}

// Close implements [sensors.Source].
func (s *Source) Close() error { return nil }

func (s *Source) read(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, name))
	return string(b), err
}

func (s *Source) load() (float64, error) {
	text, err := s.read("proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(text, " ")
	return strconv.ParseFloat(first, 64)
}

// memory returns which part of the memory is in use.
func (s *Source) memory() (float64, error) {
	text, err := s.read("proc/meminfo")
	if err != nil {
		return 0, err
	}
	kib := map[string]float64{}
	for line := range strings.Lines(text) {
		if name, rest, ok := strings.Cut(line, ":"); ok {
			number, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			if v, err := strconv.ParseFloat(strings.TrimSpace(number), 64); err == nil {
				kib[name] = v
			}
		}
	}
	total, ok := kib["MemTotal"]
	if !ok || total <= 0 {
		return 0, errors.New("no MemTotal")
	}
	return round(1 - kib["MemAvailable"]/total), nil
}

func (s *Source) diskUsed() (float64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.disk, &st); err != nil {
		return 0, err
	}
	if st.Blocks == 0 {
		return 0, fs.ErrNotExist
	}
	return round(1 - float64(st.Bavail)/float64(st.Blocks)), nil
}

func (s *Source) temperature() (float64, error) {
	text, err := s.read("sys/class/thermal/thermal_zone0/temp")
	if err != nil {
		return 0, err
	}
	milli, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	return milli / 1000, err
}

// round keeps four digits.
func round(v float64) float64 { return float64(int64(v*1e4+0.5)) / 1e4 }
