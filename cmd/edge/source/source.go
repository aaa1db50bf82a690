// Package source makes the sensors of a configuration.
package source

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"dazaar-edge/configs"
	"dazaar-edge/market/device"
	"dazaar-edge/sensors"
	"dazaar-edge/sensors/bme280"
	"dazaar-edge/sensors/exec"
	"dazaar-edge/sensors/gpio"
	"dazaar-edge/sensors/host"
	"dazaar-edge/sensors/mqtt"
	"dazaar-edge/sensors/sim"
	"dazaar-edge/sensors/sysfs"

	"periph.io/x/conn/v3/i2c"
)

// Sources makes the sensors of a configuration.
type Sources struct {
	disk   string
	broker *mqtt.Client // nil if there is none
}

// New connects to nothing yet. id names the device to the broker; look tells that
// nothing is kept, there or here.
func New(cfg *configs.Config, id string, look bool, logger *slog.Logger) (*Sources, error) {
	s := &Sources{disk: cfg.Storage.Path}
	if cfg.MQTT == nil {
		return s, nil
	}
	t, err := Trust(cfg.MQTT.CA)
	if err != nil {
		return nil, fmt.Errorf("mqtt.ca: %w", err)
	}
	s.broker = mqtt.New(mqtt.Config{
		Broker: cfg.MQTT.Broker, Username: cfg.MQTT.Username, Password: cfg.MQTT.Password, TLS: t, ClientID: id, Clean: look, Log: logger,
	})
	return s, nil
}

// Close ends the connection with the broker.
func (s *Sources) Close() error {
	if s.broker == nil {
		return nil
	}
	return s.broker.Close()
}

// Trust returns a TLS configuration that trusts the certificates of a file; nil, that
// of the system, for no file.
func Trust(file string) (*tls.Config, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s has no certificate in PEM form", file)
	}
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// Sensor returns the sensor of a configuration.
func (s *Sources) Sensor(sc configs.Sensor) (out device.Sensor, err error) {
	out = device.Sensor{Name: sc.Name, Every: sc.Every, Limits: map[string]sensors.Limits{}}
	for name, l := range sc.Limits {
		out.Limits[name] = sensors.Limits(l)
	}
	switch sc.Driver {
	case "bme280":
		out.Source = bme280.New(func() (i2c.BusCloser, error) { return bme280.OpenBus(sc.Bus) }, sc.Address)
	case "host":
		out.Source = host.New("/", s.disk)
	case "sysfs":
		out.Source, err = sysfs.New(sysfs.Config{Path: sc.Path, Name: sc.Field, Unit: sc.Unit, Scale: sc.Scale, Offset: sc.Offset})
	case "exec":
		out.Source, err = exec.New(exec.Config{Command: sc.Command, Name: sc.Field, Unit: sc.Unit, Timeout: sc.Timeout})
	case "mqtt":
		out.Stream, err = s.broker.Source(mqtt.SourceConfig{Topic: sc.Topic, Fields: sc.Fields, Name: sc.Field, Unit: sc.Unit})
	case "gpio":
		g := gpio.Config{
			Chip: sc.Chip, Line: sc.Line, Mode: gpio.Mode(sc.Mode), Edge: sc.Edge, Pull: sc.Pull, ActiveLow: sc.ActiveLow, Debounce: sc.Debounce,
			Name: sc.Field, Unit: sc.Unit, Scale: sc.Scale,
		}
		if g.Mode == gpio.Edge {
			out.Stream = gpio.NewStream(g)
		} else {
			out.Source = gpio.New(g)
		}
	case "sim":
		out.Source = sim.New(sc.Seed)
	}
	if err != nil {
		err = fmt.Errorf("sensor %s: %w", sc.Name, err)
	}
	return out, err
}

// Load reads a configuration, and checks what package configs leaves to the
// sensors.
func Load(file string) (*configs.Config, error) {
	cfg, err := configs.Load(file)
	if err == nil {
		err = checkUnits(cfg)
	}
	if err != nil {
		return nil, err
	}
	return cfg, nil
}

// Clock returns the clock that a configuration wants, for start number boot.
func Clock(cfg *configs.Config, boot uint32) sensors.Clock {
	if cfg.Device.TrustClock {
		return sensors.TrustedClock(boot)
	}
	return sensors.SystemClock(boot)
}

// checkUnits checks the units that a configuration gives, and topic filters.
func checkUnits(cfg *configs.Config) (err error) {
	unit := func(path, u string) {
		if !sensors.KnownUnit(u) {
			err = errors.Join(err, cfg.Errorf(path, "%q is no unit of SenML (RFC 8428, RFC 8798): for example Cel, %%RH, Pa, hPa, V, ug/m3, count, or / for a ratio", u))
		}
	}
	for i, f := range cfg.Feeds {
		for k, s := range f.Sensors {
			path := fmt.Sprintf("feeds[%d].sensors[%d]", i, k)
			unit(path+".unit", s.Unit)
			for field, u := range s.Fields {
				unit(path+".fields."+field, u)
			}
			if s.Topic != "" {
				if e := mqtt.CheckFilter(s.Topic); e != nil {
					err = errors.Join(err, cfg.Errorf(path+".topic", "%v", e))
				}
			}
		}
	}
	return err
}
