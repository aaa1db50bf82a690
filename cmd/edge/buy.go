package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/till"
	"dazaar-edge/configs"
	"dazaar-edge/market/client"
	"dazaar-edge/market/proof"
	"dazaar-edge/market/purse"
	"dazaar-edge/market/rows"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
)

const buyArgs = "CARD [--seller HOST:PORT[,…]] [--follow] [--from TIME|INDEX|end] [--wallet WALLET --max-sats N] [--out FILE] [--state DIR] …"

func buyCommand(p *program, ctx context.Context, args []string) (err error) {
	f := p.flags("buy", buyArgs)
	seller := f.String("seller", reach.ByNetwork, "where the seller is: HOST:PORT, and \"network\" to find it by its key, or several with commas between them, the best first: one who follows moves to a better one when it answers")
	bootstrap := reach.NodesFlag(f, "")
	relay := f.String("relay", "", "relay to go by until there is a direct way, besides those that the seller names: KEY, or KEY@HOST:PORT for one that is reached by TCP, too")
	follow := f.Bool("follow", false, "go on with what is appended, until stopped")
	from := f.String("from", "0", "what to begin with: a time like 2026-11-20T12:00:00Z, a block's index, or \"end\" for what comes from now on; where there is a state it is not looked at")
	wallet := f.String("wallet", "", "who pays: a file that names a wallet (wallet: lnd, or nwc), \"hand\" to be shown each invoice, or the URL of a test wallet, as edge run prints it")
	sats := f.Uint64("max-sats", 0, "how much may be paid to this seller, in all, fees included, in satoshi")
	daySats := f.Uint64("max-sats-day", 0, "how much of that in 24 hours (0: all)")
	stepSats := f.Uint64("max-sats-step", 0, "how much of that with one invoice (0: all)")
	feeSats := f.Uint64("max-fee-sats", 0, "how much with one invoice to those on its way (0: a hundredth of it, or 5)")
	payee := f.String("payee", "", "where the card does not say who is paid: the key of a node that may be, besides the first that was")
	step := f.Uint64("step", 1, "how many intervals of the price to buy at a time")
	accept := f.String("accept-terms", "", "the SHA-256 of the terms of use, which you have read and accept")
	out := f.String("out", "", "append to this file instead of standard output, and resume where it ends")
	shown := f.String("proof", "", "write to this file what shows others that the seller signed what you got (edge verify --proof)")
	format := f.String("format", "ndjson", "ndjson, or raw: the blocks' own bytes")
	dir := f.String("state", "", "directory for what must not be forgotten (default: one for each seller in your state directory)")
	verbose := f.Bool("verbose", false, "say more")
	rest, err := p.parse(f, args, 1)
	if err != nil {
		return err
	}
	addresses := strings.Split(*seller, ",")
	cfg := client.Config{Follow: *follow, Agent: agent(), Step: *step}
	cfg.Budget = purse.Budget{Total: *sats * 1000, Day: *daySats * 1000, Purchase: *stepSats * 1000, Fee: *feeSats * 1000}
	if cfg.Seller, cfg.Card, err = reach.Find(ctx, rest[0]); err != nil {
		if errors.Is(err, reach.ErrNoCard) {
			return p.usage(f.Usage, "%v", err)
		}
		return err
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	switch {
	case slices.ContainsFunc(addresses, reach.BadAddress):
		return p.usage(f.Usage, "--seller %q: HOST:PORT, with a port from 1 to 65535, or \"network\", or several with commas between them", *seller)
	case *format != "ndjson" && *format != "raw":
		return p.usage(f.Usage, "--format %q: ndjson or raw", *format)
	case *wallet != "" && *sats == 0:
		return p.usage(f.Usage, "how much may be paid? --max-sats N")
	case *wallet == "" && *sats > 0:
		return p.usage(f.Usage, "who pays? --wallet FILE, hand, or URL")
	case *step == 0:
		return p.usage(f.Usage, "--step 0: at least one interval of the price is bought at a time")
	case max(*sats, *daySats, *stepSats, *feeSats) > 1e12:
		return p.usage(f.Usage, "%d sat is more than there is", max(*sats, *daySats, *stepSats, *feeSats))
	case *wallet != "":
		if cfg.Wallet, err = till.Wallet(*wallet, p.stderr, cfg.Log); err != nil {
			return err
		}
	}
	var relays []configs.Relay
	if *relay != "" {
		r, err := configs.ParseRelay(*relay)
		if err != nil {
			return p.usage(f.Usage, "--relay %v", err)
		}
		relays = append(relays, r)
		if !slices.Contains(addresses, reach.ByNetwork) {
			return p.usage(f.Usage, "--relay is a way by the network, and --seller %q leaves that out: --seller %s,%s", *seller, *seller, reach.ByNetwork)
		}
	}
	if *payee != "" {
		b, err := hex.DecodeString(*payee)
		if err != nil || len(b) != 33 {
			return p.usage(f.Usage, "--payee %q is not the key of a node: 66 hex digits", *payee)
		}
		cfg.Payees = [][33]byte{[33]byte(b)}
	}
	if t, e := time.Parse(time.RFC3339, *from); e == nil {
		cfg.FromTime = t
	} else if *from == "end" {
		cfg.From = replicate.FromEnd
	} else if cfg.From, err = strconv.ParseUint(*from, 10, 53); err != nil {
		return p.usage(f.Usage, "--from %q is not a time like 2026-11-20T12:00:00Z, nor a block's index, nor \"end\"", *from)
	}
	if *dir == "" {
		if *dir, err = stateDir(hex.EncodeToString(cfg.Seller[:])); err != nil {
			return err
		}
	}
	cfg.Accept = p.terms(*dir, *accept)
	if slices.Contains(addresses, reach.ByNetwork) {
		n, e := reach.Open(reach.Config{Network: configs.Network{Bootstrap: *bootstrap, Relays: relays}, File: filepath.Join(filepath.Dir(*dir), nodesName), Log: cfg.Log})
		if e != nil {
			return e
		}
		defer func() { err = errors.Join(err, n.Close()) }()
		cfg.Ways, cfg.ByCard = n.Ways(addresses), n.ByCard
	} else {
		cfg.Ways = client.TCP(nil, addresses...)
	}
	w, err := rows.New(rows.Config{File: *out, Stdout: p.stdout, Raw: *format == "raw", Since: cfg.FromTime, Log: cfg.Log})
	if err != nil {
		return fmt.Errorf("--out %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	cfg.Output = w
	if *shown != "" {
		file, e := proof.Open(*shown)
		if e != nil {
			return fmt.Errorf("--proof: %w", e)
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		cfg.Proof = file
	}
	err = client.Buy(ctx, *dir, cfg)
	var state *client.StateError
	if errors.As(err, &state) {
		return fmt.Errorf("--state %s: %w", *dir, state.Err)
	}
	return err
}

// terms returns what decides about terms of use: they are shown, and accepted if their
// hash was given.
func (p *program) terms(dir, accept string) func(string, [32]byte) bool {
	return func(text string, hash [32]byte) bool {
		if strings.EqualFold(accept, hex.EncodeToString(hash[:])) {
			return true
		}
		name := filepath.Join(dir, "terms-to-accept.txt")
		if err := durable.WriteFile(durable.OS(), name, []byte(text)); err != nil {
			fmt.Fprintln(p.stderr, "edge:", err)
		}
		fmt.Fprintf(p.stderr, "edge: the seller has terms of use: read %s, and if you accept them, add --accept-terms %x\n", name, hash)
		return false
	}
}

// usage says what is wrong with a command line.
func (p *program) usage(help func(), format string, args ...any) error {
	fmt.Fprintf(p.stderr, "edge: "+format+"\n", args...)
	help()
	return errUsage
}

// stateDir is where a buyer keeps what it must not forget of a seller.
func stateDir(seller string) (string, error) {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("no home directory: give --state DIR: %w", err)
		}
		base = filepath.Join(home, ".local", "state")
	}
	return filepath.Join(base, "edge", "buy", seller), nil
}
