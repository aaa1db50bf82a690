package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/source"
	"dazaar-edge/cmd/edge/till"
	"dazaar-edge/configs"
	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/sales"
	"dazaar-edge/market"
	"dazaar-edge/market/card"
	"dazaar-edge/market/device"
	"dazaar-edge/monitor"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/sensors"
	"dazaar-edge/storage/durable"
)

// ready is what run prints, as one line, when it samples.
type ready struct {
	Ready  bool        `json:"ready"`
	Device string      `json:"device"`
	Boot   uint32      `json:"boot"`
	Clock  bool        `json:"clock"` // the wall time is known
	Moved  []string    `json:"moved,omitempty"`
	Wallet string      `json:"wallet,omitempty"` // where the test wallet takes payments
	Feeds  []readyFeed `json:"feeds"`
}

type readyFeed struct {
	Name      string `json:"name"`
	SellerKey string `json:"sellerKey,omitempty"`
	Dir       string `json:"dir"`
	TCP       string `json:"tcp,omitempty"` // where it is sold
	First     uint64 `json:"first"`
	Length    uint64 `json:"length"`

	Link string          `json:"link,omitempty"`
	Card json.RawMessage `json:"card,omitempty"`
}

// offer is one feed of the configuration while it runs.
type offer struct {
	name   string
	seller string
	key    ed25519.PrivateKey // the seller's; nil while nothing may be signed
	log    *feed.Log
	dev    *device.Device
	market *market.Offer // nil if it is not sold
	tcp    string        // where it is sold
}

func runCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("run", "[-c edge.yaml]")
	file := f.String("c", defaultConfig, "configuration file")
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	cfg, err := source.Load(*file)
	if err != nil {
		return err
	}
	if cfg.Limits.Memory > 0 {
		debug.SetMemoryLimit(cfg.Limits.Memory * 3 / 4) // the rest is for what Go does not count
	}
	// Whoever read its words may be gone. Ignored, the signal would be so by programs that
	// are sensors, too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP) // to the end: it must not end the program while that is busy
	logger := slog.New(slog.NewTextHandler(p.stderr, nil))
	return p.sample(ctx, hangup, *file, cfg, logger)
}

// sample runs all feeds until ctx ends.
func (p *program) sample(ctx context.Context, hangup <-chan os.Signal, file string, cfg *configs.Config, logger *slog.Logger) (err error) {
	s, err := openState(cfg.Storage.Path, configs.DBReserve(cfg.Storage.MaxSize), true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if s.made {
		logger.Info("new keys were made; back up the vault", "file", filepath.Join(s.dir, "vault.json"))
	}
	if s.lost != "" {
		logger.Error("the books are gone, and begin anew: what buyers paid is credited again when they show it and the wallet confirms it", "why", s.lost)
	}
	moved := s.vault.Moved()
	if len(moved) > 0 {
		logger.Error("this is not the board or card the keys were made on: nothing is signed; edge repair --moved or --new-identity", "differs", moved)
	}
	boot, err := s.boot()
	if err != nil {
		return err
	}
	clock := source.Clock(cfg, boot)
	till, err := till.Open(till.Config{Config: cfg, DB: s.db, Dir: s.dir, Clock: clock, Log: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, till.Close()) }()
	from, err := source.New(cfg, s.id(), false, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	var network *reach.Network
	if cfg.Network != nil {
		network, err = reach.Open(reach.Config{Network: *cfg.Network, File: filepath.Join(s.dir, nodesName), Log: logger})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, network.Close()) }()
	}
	var offers []*offer
	defer func() {
		for _, o := range offers {
			if o.market != nil {
				err = errors.Join(err, o.market.Close())
			}
			err = errors.Join(err, o.log.Close())
		}
	}()
	up := &replicate.Uplink{Rate: cfg.Limits.Upload}
	for _, fc := range cfg.Feeds {
		logger := logger.With("feed", fc.Name)
		o, err := openOffer(cfg, fc, s, from, clock, logger)
		if err != nil {
			return fmt.Errorf("feed %s: %w", fc.Name, err)
		}
		offers = append(offers, o)
		if err := o.sell(cfg, &fc, till, clock, up, network, logger); err != nil {
			return fmt.Errorf("feed %s: %w", fc.Name, err)
		}
	}
	till.Cashier.Start()
	defer till.Cashier.Close() // what is settled is credited while the logs are open
	st := &station{cfg: cfg, listed: cfg, clock: clock, till: till, offers: offers, net: network, start: time.Now(), log: logger}
	if err := st.listen(); err != nil {
		return err
	}
	defer func() { err = errors.Join(st.close(), err) }()
	mon, err := st.monitor(s.id())
	if err != nil {
		return err
	}
	if mon != nil {
		defer func() { err = errors.Join(err, mon.Close()) }()
	}
	if err := p.announce(st, moved); err != nil {
		return err
	}
	return st.sample(ctx, hangup, file)
}

func openOffer(cfg *configs.Config, fc configs.Feed, s *state, from *source.Sources, clock sensors.Clock, logger *slog.Logger) (*offer, error) {
	encoding, err := block.ParseEncoding(fc.Encoding)
	if err != nil {
		return nil, err
	}
	keys, err := s.keys(fc.Name)
	if err != nil {
		return nil, err
	}
	o := &offer{name: fc.Name, seller: hex.EncodeToString(keys.SellerKey()), key: keys.Seller()}
	o.log, err = feed.Open(feed.Config{
		FS: durable.OS(), Dir: filepath.Join(s.dir, logsName, fc.Name), MaxSize: fc.MaxSize, MaxAge: cfg.Storage.MaxAge, Name: fc.Name,
		Encoding: encoding, Keys: keys, Sales: sales.New(s.db, fc.Name), Now: feedStamp(clock),
		CommitEvery: cfg.Storage.CommitEvery, CommitBytes: cfg.Storage.CommitBytes, Log: logger,
	})
	if err != nil {
		return nil, err
	}
	dc := device.Config{Feed: o.log, Encoding: encoding, Clock: clock, Pack: fc.Pack, Log: logger}
	for _, sc := range fc.Sensors {
		sensor, err := from.Sensor(sc)
		if err != nil {
			return nil, errors.Join(err, o.log.Close())
		}
		dc.Sensors = append(dc.Sensors, sensor)
	}
	if o.dev, err = device.New(dc); err != nil {
		return nil, errors.Join(err, o.log.Close())
	}
	return o, nil
}

// sell begins to sell the feed, if it is for sale and may be signed.
func (o *offer) sell(cfg *configs.Config, fc *configs.Feed, t *till.Till, clock sensors.Clock, up *replicate.Uplink, network *reach.Network, logger *slog.Logger) (err error) {
	if o.key == nil || !fc.Free && fc.Price == nil || fc.TCP == "" && network == nil {
		return nil
	}
	o.market, err = market.NewOffer(market.OfferConfig{
		Name: fc.Name, Feed: o.log, Key: o.key, Agent: agent(), Uplink: up, BuyerRate: cfg.Limits.UploadPerBuyer, Buyers: cfg.Limits.Buyers,
		Ledger: t.Books, Cashier: t.Cashier, Listing: t.List(cfg, fc), Now: func() time.Time { return clock.Now().Wall }, Log: logger,
	})
	if err != nil {
		return err
	}
	if network != nil {
		all, err := network.Listen(fc.Name, o.key, o.market)
		for _, l := range all {
			err = errors.Join(err, o.market.Serve(l))
		}
		if err != nil {
			return fmt.Errorf("network: %w", err)
		}
	}
	if fc.TCP == "" {
		return nil
	}
	addr, err := o.market.Listen(fc.TCP)
	if err != nil {
		return fmt.Errorf("tcp: %w", err)
	}
	o.tcp = addr.String()
	return nil
}

// nodesName is where nodes of the network that were good are kept, in storage.path.
const nodesName = "nodes.json"

// agent is what this program calls itself to others.
func agent() string { return "edge/" + version }

func (p *program) announce(st *station, moved []string) error {
	now := st.clock.Now()
	out := ready{Ready: true, Device: st.cfg.Device.Name, Boot: now.Boot, Clock: !now.Wall.IsZero(), Moved: moved, Wallet: st.till.Wallet}
	for _, o := range st.offers {
		h := o.log.Head()
		f := readyFeed{
			Name: o.name, SellerKey: o.seller, Dir: filepath.Join(st.cfg.Storage.Path, logsName, o.name), TCP: o.tcp, First: h.First, Length: h.Length,
		}
		if o.market != nil {
			f.Link, f.Card = card.Link([32]byte(o.key[ed25519.SeedSize:])), o.market.Card()
		}
		out.Feeds = append(out.Feeds, f)
	}
	return json.NewEncoder(p.stdout).Encode(out)
}

// retainEvery is how often old segments are looked for, and what was written is noted.
const retainEvery = time.Minute

// sample runs the devices, drops what is too old, and reads the configuration again
// when it is told to.
func (st *station) sample(ctx context.Context, hangup <-chan os.Signal, file string) error {
	offers := st.offers
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs, retain := make([]error, len(offers)), make([]error, len(offers))
	var wg sync.WaitGroup
	for i, o := range offers {
		wg.Go(func() {
			defer cancel() // one that cannot go on ends the program, to be started again
			errs[i] = o.dev.Run(ctx)
		})
	}
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-hangup:
			if err := st.reload(file); err != nil {
				st.log.Error("the configuration stays as it was", "error", err)
			} else {
				st.log.Info("prices, terms and descriptions are those of the configuration now; what else changed waits for a restart")
			}
		case <-st.till.Changed:
			st.payees()
		case now := <-tick.C:
			if st.stale {
				st.payees()
			}
			st.writes.Note(now, monitor.ReadUsage().Writes)
			for i, o := range offers {
				if err := o.log.Retain(); err != nil {
					retain[i] = err
				}
			}
		}
	}
	wg.Wait()
	return errors.Join(append(errs, retain...)...)
}
