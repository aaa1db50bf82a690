package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/source"
	"dazaar-edge/configs"
)

func doctorCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("doctor", "[-c edge.yaml] [--json]")
	file := f.String("c", defaultConfig, "configuration file")
	asJSON := f.Bool("json", false, "print JSON")
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	cfg, err := source.Load(*file)
	if err != nil {
		return err
	}
	network := configs.Network{}
	if cfg.Network != nil {
		network = *cfg.Network
	}
	called := reach.Relays(network)
	var failed error
	b, err := ask(ctx, *file, "GET", "/status", nil)
	if all, e := lines[status](b); err == nil && e == nil && len(all) == 1 {
		for _, x := range all[0].Feeds {
			key, err := reach.ParseKey(x.SellerKey)
			if err != nil || x.Network == nil {
				continue
			}
			called = append(called, reach.Feed(network, x.Name, key, x.Network.Announced)...)
		}
	} else if err != nil {
		fmt.Fprintf(p.stderr, "edge: feeds are not called: %v\n", err)
		failed = errCheck
	}
	d, err := reach.Diagnose(ctx, network, called, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if cfg.Network == nil {
		d.Advice = append(d.Advice, "the configuration has no network: feeds are reached at their TCP addresses alone; add network: {}")
	}
	if *asJSON {
		err = json.NewEncoder(p.stdout).Encode(d)
	} else {
		d.Print(p.stdout)
	}
	if !d.Joined || slices.ContainsFunc(d.Calls, func(c reach.Call) bool { return !c.OK }) {
		failed = errCheck
	}
	return errors.Join(err, failed)
}
