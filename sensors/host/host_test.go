package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"dazaar-edge/sensors/sensorstest"
)

func TestRead(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/loadavg":                         "0.42 0.30 0.20 1/100 999\n",
		"proc/meminfo":                         "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  250 kB\n",
		"sys/class/thermal/thermal_zone0/temp": "48312\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := New(root, root).Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{"load1": 0.42, "memory_used": 0.75, "cpu_temperature": 48.312}
	for _, r := range got {
		if v, ok := want[r.Name]; ok && r.Value != v {
			t.Errorf("%s is %v, want %v", r.Name, r.Value, v)
		}
		delete(want, r.Name)
	}
	if len(want) > 0 || len(got) != 4 {
		t.Errorf("%+v", got)
	}
	if _, err := New(filepath.Join(root, "none"), "/nonexistent").Read(context.Background()); err == nil {
		t.Error("nothing to read, no error")
	}
	if _, err := New("/", "/").Read(context.Background()); err != nil {
		t.Errorf("this host: %v", err)
	}
}

func TestSource(t *testing.T) { sensorstest.Run(t, New("/", "/")) }
