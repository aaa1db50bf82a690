package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"dazaar-edge/market"
	"dazaar-edge/market/card"
	"dazaar-edge/market/rows"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
)

const buyArgs = "CARD --seller HOST:PORT[,…] [--follow] [--from TIME|INDEX|end] [--wallet URL --max-sats N] [--out FILE] [--state DIR] …"

func buyCommand(p *program, ctx context.Context, args []string) (err error) {
	f := p.flags("buy", buyArgs)
	seller := f.String("seller", "", "where the seller is: HOST:PORT, or several with commas between them, the best first: one who follows moves to a better one when it answers")
	follow := f.Bool("follow", false, "go on with what is appended, until stopped")
	from := f.String("from", "0", "what to begin with: a time like 2026-11-20T12:00:00Z, a block's index, or \"end\" for what comes from now on; where there is a state it is not looked at")
	wallet := f.String("wallet", "", "who pays: the URL of a test wallet, as edge run prints it")
	sats := f.Uint64("max-sats", 0, "how much may be paid to this seller, in all, in satoshi")
	step := f.Uint64("step", 1, "how many intervals of the price to buy at a time")
	accept := f.String("accept-terms", "", "the SHA-256 of the terms of use, which you have read and accept")
	out := f.String("out", "", "append to this file instead of standard output, and resume where it ends")
	format := f.String("format", "ndjson", "ndjson, or raw: the blocks' own bytes")
	dir := f.String("state", "", "directory for what must not be forgotten (default: one for each seller in your state directory)")
	verbose := f.Bool("verbose", false, "say more")
	rest, err := p.parse(f, args, 1)
	if err != nil {
		return err
	}
	cfg := market.ClientConfig{Addresses: strings.Split(*seller, ","), Follow: *follow, Agent: agent(), Budget: *sats * 1000, Step: *step}
	if cfg.Seller, cfg.Card, err = findCard(ctx, rest[0]); err != nil {
		if errors.Is(err, errNoCard) {
			return p.usage(f.Usage, "%v", err)
		}
		return err
	}
	switch {
	case *seller == "":
		return p.usage(f.Usage, "where is the seller? --seller HOST:PORT")
	case slices.ContainsFunc(cfg.Addresses, badAddress):
		return p.usage(f.Usage, "--seller %q: HOST:PORT, with a port from 1 to 65535, or several with commas between them", *seller)
	case *format != "ndjson" && *format != "raw":
		return p.usage(f.Usage, "--format %q: ndjson or raw", *format)
	case *wallet != "" && *sats == 0:
		return p.usage(f.Usage, "how much may be paid? --max-sats N")
	case *wallet == "" && *sats > 0:
		return p.usage(f.Usage, "who pays? --wallet URL")
	case *step == 0:
		return p.usage(f.Usage, "--step 0: at least one interval of the price is bought at a time")
	case *sats > 1e12:
		return p.usage(f.Usage, "--max-sats %d is more than there is", *sats)
	case *wallet != "":
		if !strings.HasPrefix(*wallet, "http://") && !strings.HasPrefix(*wallet, "https://") {
			return p.usage(f.Usage, "--wallet %q: the URL of a test wallet, like http://127.0.0.1:49739", *wallet)
		}
		cfg.Wallet = &devnet.Wallet{URL: strings.TrimSuffix(*wallet, "/"), Client: &http.Client{Timeout: 30 * time.Second}}
	}
	if t, e := time.Parse(time.RFC3339, *from); e == nil {
		cfg.FromTime = t
	} else if *from == "end" {
		cfg.From = replicate.FromEnd
	} else if cfg.From, err = strconv.ParseUint(*from, 10, 53); err != nil {
		return p.usage(f.Usage, "--from %q is not a time like 2026-11-20T12:00:00Z, nor a block's index, nor \"end\"", *from)
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	if *dir == "" {
		if *dir, err = stateDir(hex.EncodeToString(cfg.Seller[:])); err != nil {
			return err
		}
	}
	cfg.Accept = p.terms(*dir, *accept)
	w, err := rows.New(rows.Config{File: *out, Stdout: p.stdout, Raw: *format == "raw", Since: cfg.FromTime, Log: cfg.Log})
	if err != nil {
		return fmt.Errorf("--out %w", err)
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	cfg.Output = w
	err = market.Buy(ctx, *dir, cfg)
	var state *market.StateError
	if errors.As(err, &state) {
		return fmt.Errorf("--state %s: %w", *dir, state.Err)
	}
	return err
}

// badAddress tells whether a text is not HOST:PORT.
func badAddress(text string) bool {
	host, port, err := net.SplitHostPort(text)
	n, bad := strconv.ParseUint(port, 10, 16)
	return err != nil || host == "" || bad != nil || n == 0
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

// errNoCard says that an argument is nothing that leads to a seller.
var errNoCard = errors.New("whose feed?")

// findCard finds out who sells: by a card's file or URL, by a link, or by the key
// alone.
func findCard(ctx context.Context, arg string) (seller [32]byte, signed []byte, err error) {
	switch {
	case strings.HasPrefix(arg, "dazaar:"):
		if seller, err = card.ParseLink(arg); err != nil {
			err = fmt.Errorf("%w: %w", errNoCard, err)
		}
		return seller, nil, err
	case strings.HasPrefix(arg, "http://"), strings.HasPrefix(arg, "https://"):
		signed, err = fetchCard(ctx, arg)
	default:
		if key, err := parseKey(arg); err == nil {
			return key, nil, nil
		}
		signed, err = os.ReadFile(arg)
		if err != nil {
			return seller, nil, fmt.Errorf("%w: %q is neither a seller's key (64 hex digits, as edge run prints them), nor a dazaar: link, nor a card's URL, nor a file that can be read: %w", errNoCard, arg, err)
		}
	}
	if err != nil {
		return seller, nil, err
	}
	c, err := card.Parse(signed, nil, 0)
	if err != nil {
		return seller, nil, fmt.Errorf("%s: %w", arg, err)
	}
	return c.Key(), signed, nil
}

func fetchCard(ctx context.Context, url string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", market.ErrUnreachable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %s: %s", market.ErrUnreachable, url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, card.MaxSize+1))
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
