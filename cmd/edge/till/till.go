// Package till is what a device is paid with, and what a buyer pays with, as their
// configurations say.
package till

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/lnd"
	"dazaar-edge/payment/lnurl"
	"dazaar-edge/payment/nwc"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
)

// Config says whose till. All is required.
type Config struct {
	Config *configs.Config
	DB     *db.DB
	Dir    string // of the device
	Clock  sensors.Clock
	Log    *slog.Logger
}

// Till is what a device is paid with.
type Till struct {
	Books   *ledger.Ledger
	Cashier *cashier.Cashier
	// Wallet is where the test wallet takes payments; "" if there is none.
	Wallet string
	// Changed gets a token when cards must say anew who is paid.
	Changed chan struct{}

	server *http.Server // of the test wallet; nil if there is none
	served chan struct{}
}

// walletName is the test wallet's directory in storage.path.
const walletName = "devnet"

// identifyTime bounds how long a start waits for wallets to say who is paid, if that was
// never known.
const identifyTime = 5 * time.Second

// Open opens the till of a device.
func Open(cfg Config) (t *Till, err error) {
	t = &Till{Changed: make(chan struct{}, 1)}
	if t.Books, err = ledger.New(ledger.Config{DB: cfg.DB, Mono: func() time.Duration { return cfg.Clock.Now().Mono }}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
			t = nil
		}
	}()
	var gateways []payment.Gateway
	for i, g := range cfg.Config.Payment {
		x, err := t.gateway(cfg, g)
		if err != nil {
			return t, fmt.Errorf("payment[%d]: %w", i, err)
		}
		gateways = append(gateways, x)
	}
	t.Cashier, err = cashier.New(cashier.Config{
		Ledger: t.Books, Gateways: gateways, Now: func() time.Time { return cfg.Clock.Now().Wall }, Payees: t.changed, Log: cfg.Log,
	})
	if err != nil {
		return t, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), identifyTime)
	defer cancel()
	if err := t.Cashier.Identify(ctx); err != nil {
		cfg.Log.Warn("a wallet does not say who is paid: cards say it when it does", "error", err)
	}
	return t, nil
}

// changed says that cards must be made anew.
func (t *Till) changed() {
	select {
	case t.Changed <- struct{}{}:
	default: // they will be
	}
}

// gateway opens a wallet.
func (t *Till) gateway(cfg Config, g configs.Gateway) (payment.Gateway, error) {
	if g.Kind != "devnet" {
		return Gateway(g, cfg.Log)
	}
	node, err := devnet.Open(durable.OS(), filepath.Join(cfg.Dir, walletName))
	if err != nil {
		return nil, err
	}
	if err := t.serve(node, g.Listen); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	cfg.Log.Warn("the test wallet is paid: its money is worth nothing", "pay", t.Wallet)
	return node, nil
}

// Gateway returns the gateway of a configuration, but for the test wallet's.
func Gateway(g configs.Gateway, logger *slog.Logger) (payment.Gateway, error) {
	switch g.Kind {
	case "lnd":
		return lnd.New(lnd.Config{
			Name: g.Name(), URL: g.URL, Cert: g.Cert, Macaroon: g.Macaroon, Network: bolt11.Network(g.Network), Private: g.Private, Log: logger,
		})
	case "nwc":
		return nwc.New(nwc.Config{
			Name: g.Name(), Connection: g.Connection, Network: bolt11.Network(g.Network), MaySpend: g.MaySpend, Custodial: g.Custodial, Log: logger,
		})
	case "lnurl":
		return lnurl.New(lnurl.Config{Name: g.Name(), Address: g.Address, Network: bolt11.Network(g.Network), CA: g.CA, Custodial: g.Custodial})
	}
	return nil, fmt.Errorf("gateway %q is unknown", g.Kind)
}

// serve takes payments for the test wallet.
func (t *Till) serve(node *devnet.Node, address string) error {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	t.Wallet = "http://" + ln.Addr().String()
	t.server = &http.Server{Handler: node, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	t.served = make(chan struct{})
	go func() {
		defer close(t.served)
		t.server.Serve(ln) //nolint:errcheck // Close ends it
	}()
	return nil
}

// Close ends the watching of wallets.
func (t *Till) Close() (err error) {
	if t.Cashier != nil {
		t.Cashier.Close()
	}
	err = t.Books.Tick(0) // what was bought by the clock ran until now
	if t.server != nil {
		err = errors.Join(err, t.server.Close())
		<-t.served
	}
	return err
}
