package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"dazaar-edge/cmd/edge/show"
	"dazaar-edge/payment/ledger"
)

func ledgerCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("ledger", "[-c edge.yaml] [--json | --csv | --daily [--json]], or --trust GATEWAY, or --bought [--state DIR] [--json]")
	file := f.String("c", defaultConfig, "configuration file")
	raw := f.Bool("json", false, "print lines of JSON")
	csv := f.Bool("csv", false, "print comma-separated values")
	daily := f.Bool("daily", false, "print what came in on each day, in UTC")
	trust := f.String("trust", "", "say that the wallet of this name is the right one, though somebody else signs its invoices than before")
	bought := f.Bool("bought", false, "print what you bought, instead of what you sold")
	dir := f.String("state", "", "with --bought: of this seller alone; the directory that edge buy was given")
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	switch {
	case *csv && (*raw || *daily):
		return p.usage(f.Usage, "--csv prints all invoices, and nothing else")
	case *bought && (*csv || *daily || *trust != ""):
		return p.usage(f.Usage, "--bought is printed for people, or with --json")
	case *dir != "" && !*bought:
		return p.usage(f.Usage, "--state is of what you bought: --bought")
	case *trust != "":
		b, err := ask(ctx, *file, http.MethodPost, "/trust", trusted{Gateway: *trust})
		if err == nil {
			_, err = p.stdout.Write(b)
		}
		return err
	case *bought:
		base, err := stateDir("")
		if err != nil && *dir == "" {
			return err
		}
		return show.Printer{Out: p.stdout, Err: p.stderr, JSON: *raw}.Bought(*dir, base)
	}
	b, err := ask(ctx, *file, http.MethodGet, "/ledger", nil)
	if err != nil {
		return err
	}
	if *raw && !*daily {
		_, err = p.stdout.Write(b)
		return err
	}
	all, err := lines[ledger.Row](b)
	switch {
	case err != nil:
		return err
	case *csv:
		return ledger.WriteCSV(p.stdout, all)
	case *daily:
		return show.Printer{Out: p.stdout, Err: p.stderr, JSON: *raw}.Daily(all)
	}
	total := uint64(0)
	for _, r := range all {
		total += r.Paid
		fmt.Fprintf(p.stdout, "%s %s %x… %s %d msat", r.Made.Format(time.RFC3339), r.Offer, r.Buyer[:4], r.State, r.Msat)
		if r.State == ledger.Settled && r.Paid != r.Msat {
			fmt.Fprintf(p.stdout, ", %d came", r.Paid)
		}
		fmt.Fprintln(p.stdout)
	}
	fmt.Fprintf(p.stdout, "%d invoices, %d msat came in\n", len(all), total)
	return nil
}
