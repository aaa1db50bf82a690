// Command demo is what make demo shows besides edge itself: a broker with a sensor
// behind it, and a weather station.
//
//	demo broker HOST:PORT   an MQTT broker, and a sensor that speaks to it, until killed
//	demo weather            what a BME280 measures, from the real driver on a model of
//	                        the chip, as driver exec reads it; then it ends
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/signal"
	"syscall"
	"time"

	"dazaar-edge/sensors/bme280"
	"dazaar-edge/sensors/bme280/chip"

	broker "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	"periph.io/x/conn/v3/i2c"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "broker":
		err = serve(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "weather":
		err = weather(time.Now())
	default:
		err = fmt.Errorf("usage: demo broker HOST:PORT | demo weather")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// wave is a slow curve through middle, so far up and down, in so many seconds.
func wave(t time.Time, middle, swing, period float64) float64 {
	return middle + swing*math.Sin(2*math.Pi*math.Mod(float64(t.UnixMilli())/1000, period)/period)
}

// weather prints what the chip measures now.
func weather(t time.Time) error {
	c := chip.New(chip.BME280, bme280.Address)
	c.Set(wave(t, 12, 6, 120), wave(t, 101300, 400, 300), wave(t, 60, 15, 90))
	s := bme280.New(func() (i2c.BusCloser, error) { return c, nil }, bme280.Address)
	readings, err := s.Read(context.Background())
	if err != nil {
		return err
	}
	for _, r := range readings {
		fmt.Println(r.Name, r.Value, r.Unit)
	}
	return s.Close()
}

// serve runs a broker and a sensor that publishes each second.
func serve(address string) error {
	s := broker.New(&broker.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := s.AddHook(new(auth.AllowHook), nil); err != nil {
		return err
	}
	l := listeners.NewTCP(listeners.Config{ID: "demo", Address: address})
	if err := s.AddListener(l); err != nil {
		return err
	}
	if err := s.Serve(); err != nil {
		return err
	}
	fmt.Println(l.Address())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.Close()
		case t := <-tick.C:
			if err := s.Publish("zigbee2mqtt/street", fmt.Appendf(nil, `{"pm25":%.1f,"battery":97}`, wave(t, 9, 4, 60)), false, 1); err != nil {
				return err
			}
		}
	}
}
