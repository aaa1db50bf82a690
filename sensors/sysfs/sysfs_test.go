package sysfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"dazaar-edge/sensors"
	"dazaar-edge/sensors/sensorstest"
)

// board makes files below a directory of the test's.
func board(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func source(t *testing.T, root string, cfg Config) *Source {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.root = root
	return s
}

func TestRead(t *testing.T) {
	root := board(t, map[string]string{
		"sys/class/thermal/thermal_zone0/temp":                        "48312\n",
		"sys/bus/w1/devices/28-0316a2795b1c/temperature":              "21437\n",
		"sys/bus/w1/devices/28-0316a2795bff/temperature":              "-62\n",
		"sys/bus/i2c/devices/1-0048/hwmon/hwmon3/temp1_input":         "25000\n",
		"sys/bus/iio/devices/iio:device0/in_pressure_input":           "101.324800000\n",
		"sys/bus/iio/devices/iio:device0/in_voltage0_raw":             "1000\n",
		"sys/bus/iio/devices/iio:device0/in_voltage_scale":            "0.125\n",
		"sys/bus/iio/devices/iio:device0/in_temp_raw":                 "2500\n",
		"sys/bus/iio/devices/iio:device0/in_temp_scale":               "10.5\n",
		"sys/bus/iio/devices/iio:device0/in_temp_offset":              "-100\n",
		"sys/bus/iio/devices/iio:device0/in_humidityrelative_raw":     "7\n",
		"sys/bus/iio/devices/iio:device1/in_temp_object_raw":          "14738\n",
		"sys/bus/iio/devices/iio:device1/in_temp_offset":              "-13657.5\n",
		"sys/bus/iio/devices/iio:device1/in_temp_scale":               "20\n",
		"sys/bus/iio/devices/iio:device1/in_accel_x_raw":              "256\n",
		"sys/bus/iio/devices/iio:device1/in_accel_y_raw":              "100\n",
		"sys/bus/iio/devices/iio:device1/in_accel_y_scale":            "2\n",
		"sys/bus/iio/devices/iio:device1/in_accel_scale":              "0.5\n",
		"sys/bus/iio/devices/iio:device1/in_voltage0-voltage1_raw":    "1000\n",
		"sys/bus/iio/devices/iio:device1/in_voltage-voltage_scale":    "0.0625\n",
		"sys/bus/iio/devices/iio:device1/in_voltage_scale":            "9\n",
		"sys/bus/w1/devices/w1_bus_master1/w1_master_slaves_are_many": "no\n",
	})
	for _, c := range []struct {
		cfg  Config
		want []sensors.Reading
	}{
		{Config{Path: "/sys/class/thermal/thermal_zone0/temp", Name: "cpu", Unit: "Cel", Scale: 0.001}, []sensors.Reading{{Name: "cpu", Unit: "Cel", Value: 48.312}}},
		{Config{Path: "/sys/bus/w1/devices/28-*/temperature", Name: "water_*", Unit: "Cel", Scale: 0.001}, []sensors.Reading{
			{Name: "water_28-0316a2795b1c", Unit: "Cel", Value: 21.437}, {Name: "water_28-0316a2795bff", Unit: "Cel", Value: -0.062},
		}},
		{Config{Path: "/sys/bus/i2c/devices/1-0048/hwmon/hwmon*/temp1_input", Name: "box", Unit: "K", Scale: 0.001, Offset: 273.15}, []sensors.Reading{{Name: "box", Unit: "K", Value: 298.15}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device*/in_pressure_input", Name: "pressure", Unit: "hPa", Scale: 10}, []sensors.Reading{{Name: "pressure", Unit: "hPa", Value: 1013.248}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device0/in_voltage0_raw", Name: "battery", Unit: "mV"}, []sensors.Reading{{Name: "battery", Unit: "mV", Value: 125.}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device0/in_temp_raw", Name: "air", Unit: "Cel", Scale: 0.001}, []sensors.Reading{{Name: "air", Unit: "Cel", Value: 25.2}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device0/in_humidityrelative_raw", Name: "air", Unit: "%RH"}, []sensors.Reading{{Name: "air", Unit: "%RH", Value: 7.}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device1/in_temp_object_raw", Name: "sky", Unit: "Cel", Scale: 0.001}, []sensors.Reading{{Name: "sky", Unit: "Cel", Value: 21.61}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device1/in_accel_x_raw", Name: "x"}, []sensors.Reading{{Name: "x", Value: 128.}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device1/in_accel_y_raw", Name: "y"}, []sensors.Reading{{Name: "y", Value: 200.}}},
		{Config{Path: "/sys/bus/iio/devices/iio:device1/in_voltage0-voltage1_raw", Name: "u", Unit: "mV"}, []sensors.Reading{{Name: "u", Unit: "mV", Value: 62.5}}},
	} {
		if got, err := source(t, root, c.cfg).Read(context.Background()); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v; want %+v", c.cfg.Path, got, err, c.want)
		}
	}
}

// TestComesAndGoes: a sensor that is not there, or says nothing of use, is an error
// that names it, others are read all the same, and it is read when it is back.
func TestComesAndGoes(t *testing.T) {
	root := board(t, map[string]string{"sys/w1/28-1/temperature": "1000\n", "sys/w1/28-2/temperature": "", "sys/w1/28-3/temperature": "nan\n"})
	s := source(t, root, Config{Path: "/sys/w1/28-*/temperature", Name: "t_*"})
	got, err := s.Read(context.Background())
	if len(got) != 1 || got[0].Name != "t_28-1" || !errors.Is(err, sensors.ErrGone) || !strings.Contains(err.Error(), "28-2") || !strings.Contains(err.Error(), "28-3") {
		t.Errorf("%+v, %v", got, err)
	}
	for _, n := range []string{"1", "2", "3"} {
		if err := os.RemoveAll(filepath.Join(root, "sys/w1/28-"+n)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Read(context.Background()); len(got) > 0 || !errors.Is(err, sensors.ErrGone) || !strings.Contains(err.Error(), "/sys/w1/28-*/temperature") {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.MkdirAll(filepath.Join(root, "sys/w1/28-9"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "sys/w1/28-9/temperature"), []byte("5"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Read(context.Background()); err != nil || len(got) != 1 || got[0].Name != "t_28-9" {
		t.Errorf("%+v, %v", got, err)
	}
	both := source(t, board(t, map[string]string{"sys/a1": "1", "sys/a2": "2"}), Config{Path: "/sys/a*", Name: "a"})
	if got, err := both.Read(context.Background()); err == nil || !strings.Contains(err.Error(), "2 files") {
		t.Errorf("%+v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Read(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestImpossible(t *testing.T) {
	for _, path := range []string{"sys/x", "", "/sys/[", "/sys/a\\"} {
		if s, err := New(Config{Path: path}); err == nil {
			t.Errorf("%q: %+v", path, s)
		}
	}
}

func TestSource(t *testing.T) {
	root := board(t, map[string]string{"sys/w1/28-1/temperature": "1000\n", "sys/w1/28-2/temperature": "2000\n"})
	cfg := Config{Path: "/sys/w1/28-*/temperature", Name: "water_*", Unit: "Cel", Scale: 0.001}
	sensorstest.Run(t, source(t, root, cfg))
	dir := filepath.Join(root, "sys/w1")
	move := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	sensorstest.Recovers(t, source(t, root, cfg), func() { move(dir, dir+"-away") }, func() { move(dir+"-away", dir) })
}
