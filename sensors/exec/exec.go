// Package exec reads what a program prints: for everything that has a tool and no
// driver. The program is started for each reading and ends; each line of its
// standard output is a reading:
//
//	21.5
//	temperature 21.5 Cel
//	door open
//
// one word is a value, two are name and value, three name, value and unit. A value
// is a number, true, false, or text; only a number has a unit.
package exec

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dazaar-edge/sensors"
)

// Config says what to run.
type Config struct {
	// Command is the program and its arguments; no shell is between.
	Command []string
	// Name and Unit are those of a line that has none.
	Name, Unit string
	// Timeout is how long it may take; 0 is 10 s.
	Timeout time.Duration
}

// Limits of what a program prints.
const (
	maxOutput = 64 << 10
	maxLines  = 64
)

// Source implements [sensors.Source]. Not safe for concurrent use.
type Source struct{ cfg Config }

// New returns a source. The error is about a program that cannot be found.
func New(cfg Config) (*Source, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("no command")
	}
	if _, err := exec.LookPath(cfg.Command[0]); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	return &Source{cfg}, nil
}

// limited takes so many bytes; at more it ends the program.
type limited struct {
	buf  bytes.Buffer // not embedded: its ReadFrom knows no limit
	left int
	end  context.CancelCauseFunc
}

var errTooMuch = errors.New("it prints too much")

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		l.end(errTooMuch)
		return 0, errTooMuch
	}
	return l.buf.Write(b)
}

// Read implements [sensors.Source]. The program, and what it started, is killed when
// ctx ends or its time is up.
func (s *Source) Read(ctx context.Context) ([]sensors.Reading, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	cmd := exec.CommandContext(ctx, s.cfg.Command[0], s.cfg.Command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, said := &limited{left: maxOutput, end: end}, &limited{left: maxOutput, end: end}
	cmd.Stdout, cmd.Stderr = out, said
	err := cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck // most leave nobody behind
	}
	// Somebody it left behind held its output open: it ended all the same, and well.
	if err != nil && !(errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil) {
		switch {
		case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
			err = fmt.Errorf("it takes longer than %v", s.cfg.Timeout)
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		}
		if words := strings.TrimSpace(said.buf.String()); words != "" {
			err = fmt.Errorf("%w: %.200q", err, words)
		}
		return nil, fmt.Errorf("%w: %s: %w", sensors.ErrGone, s.cfg.Command[0], err)
	}
	return s.parse(out.buf.String())
}

// Close implements [sensors.Source].
func (s *Source) Close() error { return nil }

// parse reads the lines of an output.
func (s *Source) parse(text string) (out []sensors.Reading, err error) {
	seen := map[string]bool{}
	for line := range strings.Lines(strings.ToValidUTF8(text, "\uFFFD")) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		r := sensors.Reading{Name: s.cfg.Name, Unit: s.cfg.Unit}
		switch len(words) {
		case 1:
			r.Value = value(words[0])
		case 2:
			r.Name, r.Value = words[0], value(words[1])
		case 3:
			r.Name, r.Value, r.Unit = words[0], value(words[1]), words[2]
		}
		_, number := r.Value.(float64)
		if !number && len(words) < 3 {
			r.Unit = ""
		}
		switch {
		case r.Value != nil && !number && r.Unit != "":
			err = fmt.Errorf("%.80q is no number, and has a unit", strings.TrimSpace(line))
		case r.Value == nil:
			err = fmt.Errorf("%.80q is no reading: value, name and value, or name, value and unit", strings.TrimSpace(line))
		case !sensors.ValidName(r.Name):
			err = fmt.Errorf("%.80q is no name: letters, digits, - . : _ and / only", r.Name)
		case !sensors.KnownUnit(r.Unit):
			err = fmt.Errorf("%.80q is no unit of SenML", r.Unit)
		case seen[r.Name]:
			err = fmt.Errorf("%q is printed twice", r.Name)
		case len(out) == maxLines:
			err = fmt.Errorf("more than %d lines", maxLines)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.cfg.Command[0], err)
		}
		seen[r.Name] = true
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s prints nothing", sensors.ErrGone, s.cfg.Command[0])
	}
	return out, nil
}

// value is what a word means; nil if it means nothing, as not-a-number does.
func value(word string) any {
	if v, err := strconv.ParseFloat(word, 64); err == nil {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil
		}
		return v
	}
	switch word {
	case "true":
		return true
	case "false":
		return false
	}
	return word
}
