package exec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"dazaar-edge/sensors"
	"dazaar-edge/sensors/sensorstest"
)

// script writes a program.
func script(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "tool")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func source(t *testing.T, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRead(t *testing.T) {
	tool := script(t, "echo 21.5; echo; echo humidity -4e1 %RH; echo '  door   open '; echo lamp true; echo \"arg $1\"\n")
	got, err := source(t, Config{Command: []string{tool, "x1"}, Name: "temperature", Unit: "Cel"}).Read(context.Background())
	want := []sensors.Reading{
		{Name: "temperature", Unit: "Cel", Value: 21.5}, {Name: "humidity", Unit: "%RH", Value: -40.}, {Name: "door", Value: "open"},
		{Name: "lamp", Value: true}, {Name: "arg", Value: "x1"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v\nwant %+v", got, err, want)
	}
}

// TestFails: whatever a program does wrong is an error that says so, soon, and
// nothing of it is left behind.
func TestFails(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left")
	for name, c := range map[string]struct{ text, want string }{
		"exit":      {"echo the bus is stuck >&2; exit 3", "the bus is stuck"},
		"nothing":   {"true", "prints nothing"},
		"words":     {"echo a b c d", "is no reading"},
		"name":      {"echo 'ä 5'", "is no name"},
		"unit":      {"echo a 5 celsius", "is no unit"},
		"twice":     {"echo a 5; echo a 6", "is printed twice"},
		"nan":       {"echo nan", "is no reading"},
		"text":      {"echo a unknown Cel", "is no number, and has a unit"},
		"lines":     {"i=0; while [ $i -lt 100 ]; do echo a$i 1; i=$((i+1)); done", "more than 64 lines"},
		"no end":    {"yes", "prints too much"},
		"too long":  {"sleep 60", "longer than 300ms"},
		"daughters": {"(sleep 3; touch " + left + ") & sleep 60", "longer than 300ms"},
	} {
		start := time.Now()
		s := source(t, Config{Command: []string{script(t, c.text)}, Name: "x", Timeout: time.Minute})
		if name == "too long" || name == "daughters" {
			s.cfg.Timeout = 300 * time.Millisecond
		}
		if got, err := s.Read(context.Background()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
	// One who leaves somebody behind, who holds its output open, was read.
	s := source(t, Config{Command: []string{script(t, "(sleep 3; touch "+left+") & echo 21.5")}, Name: "x"})
	if got, err := s.Read(context.Background()); err != nil || len(got) != 1 || got[0].Value != 21.5 {
		t.Error(got, err)
	}
	time.Sleep(3300 * time.Millisecond) // until the daughters would have acted: who holds the output open has a second
	if _, err := os.Stat(left); err == nil {
		t.Error("what the program started goes on")
	}
	for _, command := range [][]string{nil, {"/nonexistent/tool"}} {
		if s, err := New(Config{Command: command}); err == nil {
			t.Errorf("%+v", s)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := source(t, Config{Command: []string{"sleep", "60"}}).Read(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSource(t *testing.T) {
	tool := script(t, "echo 5\n")
	cfg := Config{Command: []string{tool}, Name: "n", Unit: "count"}
	sensorstest.Run(t, source(t, cfg))
	mode := func(m os.FileMode) func() {
		return func() {
			if err := os.Chmod(tool, m); err != nil {
				t.Fatal(err)
			}
		}
	}
	sensorstest.Recovers(t, source(t, cfg), mode(0o644), mode(0o755))
}
