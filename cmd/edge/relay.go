package main

import (
	"context"
	"log/slog"
	"time"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/configs"
	"dazaar-edge/protocol/relay"
)

func relayCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("relay", "[--key FILE] [--listen :49737] [--tcp :443] [--rate 10Mbit/s] [--pair-rate 1Mbit/s] [--pairs N] [--time 24h]")
	key := f.String("key", "relay.key", "file with the relay's key; it is made if it is not there")
	listen := f.String("listen", ":49737", "UDP address, which anybody can send to")
	tcp := f.String("tcp", ":443", "TCP address for those whose networks block UDP, or none")
	public := f.String("public", "", "ADDRESS:PORT where the relay is reached, if the network shall not find that out")
	bootstrap := reach.NodesFlag(f, "")
	rate := f.String("rate", "none", "how much is passed on in all")
	pairRate := f.String("pair-rate", "none", "how much between two peers")
	pairs := f.Int("pairs", 256, "between how many pairs of peers at once")
	lasts := f.Duration("time", 0, "for how long between two peers (0: as long as they like)")
	every := f.Duration("every", time.Minute, "how often to print what it does")
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	cfg := reach.RelayConfig{
		KeyFile: *key, Listen: *listen, TCP: *tcp, Public: *public, Every: *every, Limits: relay.ServerConfig{Pairs: *pairs, Time: *lasts},
		Bootstrap: *bootstrap, Log: slog.New(slog.NewTextHandler(p.stderr, nil)),
	}
	if cfg.TCP == "none" {
		cfg.TCP = ""
	}
	var err error
	if cfg.Limits.Rate, err = configs.ParseRate(*rate); err == nil {
		cfg.Limits.PairRate, err = configs.ParseRate(*pairRate)
	}
	switch {
	case err != nil:
		return p.usage(f.Usage, "%v", err)
	case *pairs < 1 || *lasts < 0 || *every <= 0:
		return p.usage(f.Usage, "--pairs, --time and --every must be more than nothing")
	}
	return reach.Relay(ctx, cfg, p.stdout)
}
