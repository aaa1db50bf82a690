package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market"
	"dazaar-edge/market/card"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/lnd"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/durable"
)

// till is what a device is paid with.
type till struct {
	books   *ledger.Ledger
	cashier *cashier.Cashier
	server  *http.Server // of the test wallet; nil if there is none
	wallet  string       // where the test wallet takes payments
	served  chan struct{}

	network bolt11.Network
	payee   string // "" while no wallet said it
}

// walletName is the test wallet's directory in storage.path.
const walletName = "devnet"

func openTill(cfg *configs.Config, s *state, clock sensors.Clock, logger *slog.Logger) (t *till, err error) {
	t = &till{}
	if t.books, err = ledger.New(ledger.Config{DB: s.db, Mono: func() time.Duration { return clock.Now().Mono }}); err != nil {
		return nil, err
	}
	var gateways []payment.Gateway
	for i, g := range cfg.Payment {
		if g.Kind == "lnd" {
			node, err := openLND(g, logger)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("payment[%d]: %w", i, err), t.close())
			}
			gateways = append(gateways, node)
			continue
		}
		node, err := devnet.Open(durable.OS(), filepath.Join(s.dir, walletName))
		if err != nil {
			return nil, errors.Join(err, t.close())
		}
		gateways = append(gateways, node)
		if err := t.serve(node, g.Listen); err != nil {
			return nil, errors.Join(fmt.Errorf("payment: listen: %w", err), t.close())
		}
		logger.Warn("the test wallet is paid: its money is worth nothing", "pay", t.wallet)
	}
	t.cashier, err = cashier.New(cashier.Config{Ledger: t.books, Gateways: gateways, Now: func() time.Time { return clock.Now().Wall }, Log: logger})
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	if len(gateways) > 0 {
		t.identify(logger)
	}
	return t, nil
}

// openLND returns the gateway to a node. Its name stays when others come before it.
func openLND(g configs.Gateway, logger *slog.Logger) (*lnd.Gateway, error) {
	return lnd.New(lnd.Config{
		Name: "lnd " + g.URL, URL: g.URL, Cert: g.Cert, Macaroon: g.Macaroon, Network: bolt11.Network(g.Network), Private: g.Private, Log: logger,
	})
}

// identify asks the wallet who is paid.
func (t *till) identify(logger *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	network, payee, err := t.cashier.Identity(ctx)
	if err != nil {
		logger.Warn("no wallet says who is paid: cards keep what they said", "error", err)
		return
	}
	t.network, t.payee = network, hex.EncodeToString(payee[:])
}

// serve takes payments for the test wallet.
func (t *till) serve(node *devnet.Node, address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	t.wallet = "http://" + ln.Addr().String()
	t.server = &http.Server{Handler: node, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	t.served = make(chan struct{})
	go func() {
		defer close(t.served)
		t.server.Serve(ln) //nolint:errcheck // Close ends it
	}()
	return nil
}

func (t *till) close() (err error) {
	if t.cashier != nil {
		t.cashier.Close()
	}
	err = t.books.Tick(0) // what was bought by the clock ran until now
	if t.server != nil {
		err = errors.Join(err, t.server.Close())
		<-t.served
	}
	return err
}

// list returns what a feed is, costs and includes.
func (t *till) list(cfg *configs.Config, fc *configs.Feed) market.Listing {
	c := card.Card{
		Name: fc.Name, Description: fc.Description, Provider: cfg.Device.Name, Burnable: fc.Burnable,
		Delay: seconds(fc.Pack + cfg.Storage.CommitEvery), Feed: card.Feed{Encoding: fc.Encoding, Every: seconds(fc.Pack), Schema: schema(fc.Sensors)},
	}
	if p := cfg.Device.Place; p != nil {
		c.Place = &card.Place{Lat: p.Lat, Lon: p.Lon}
	}
	if p := fc.Price; p != nil {
		w := card.Payment{Method: "lnd", Currency: "LightningSats", Unit: p.Unit, Interval: strconv.FormatUint(p.Interval, 10), Amount: p.Amount}
		if p.Wall {
			w.Clock = "wall"
		}
		c.Payment, c.Network, c.Payee = []card.Payment{w}, t.network, t.payee
		switch {
		case p.All:
			c.History = &card.History{All: true, Amount: p.HistoryAmount}
		case p.History > 0:
			c.History = &card.History{Seconds: uint64(p.History / time.Second), Amount: p.HistoryAmount}
		}
		if fc.Trial > 0 {
			c.Trial = &card.Trial{Seconds: uint64(fc.Trial / time.Second), Bytes: market.TrialBytes}
		}
	}
	return market.Listing{Card: c, Terms: fc.Terms}
}

// seconds is a duration as a decimal number of seconds.
func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// schema says what a feed's sensors measure, where that is known before.
func schema(list []configs.Sensor) (out []card.Field) {
	for _, s := range list {
		add := func(name, unit string) {
			out = append(out, card.Field{Name: s.Name + "/" + name, Unit: unit, Sensor: s.Driver, Every: seconds(s.Every)})
		}
		switch s.Driver {
		case "bme280":
			add("temperature", "Cel")
			add("humidity", "%RH")
			add("pressure", "Pa")
		case "sim":
			add("temperature", "Cel")
		case "host":
			add("load1", "/")
			add("memory_used", "/")
			add("disk_used", "/")
			add("cpu_temperature", "Cel")
		default:
			add(s.Field, s.Unit)
		}
	}
	return out
}
