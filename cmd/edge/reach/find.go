package reach

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
)

// ParseKey reads a key in hex.
func ParseKey(text string) (key [32]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(key) {
		return key, fmt.Errorf("%q is not a key: 64 hex digits", text)
	}
	return [32]byte(b), nil
}

// ErrNoCard says that an argument is nothing that leads to a seller.
var ErrNoCard = errors.New("whose feed?")

// Find finds out who sells: by a card's file or URL, by a link, or by the key
// alone.
func Find(ctx context.Context, arg string) (seller [32]byte, signed []byte, err error) {
	switch {
	case strings.HasPrefix(arg, "dazaar:"):
		if seller, err = card.ParseLink(arg); err != nil {
			err = fmt.Errorf("%w: %w", ErrNoCard, err)
		}
		return seller, nil, err
	case strings.HasPrefix(arg, "http://"), strings.HasPrefix(arg, "https://"):
		signed, err = fetchCard(ctx, arg)
	default:
		if key, err := ParseKey(arg); err == nil {
			return key, nil, nil
		}
		signed, err = os.ReadFile(arg)
		if err != nil {
			return seller, nil, fmt.Errorf("%w: %q is neither a seller's key (64 hex digits, as edge run prints them), nor a dazaar: link, nor a card's URL, nor a file that can be read: %w", ErrNoCard, arg, err)
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
		return nil, fmt.Errorf("%w: %w", client.ErrUnreachable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: %s: %s", client.ErrUnreachable, url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, card.MaxSize+1))
}

// shortTime bounds how long the network is asked for a short card.
const shortTime = 30 * time.Second

// nodesFlag is a [flag.Value]: nodes of the network with commas between them.
type nodesFlag []string

func (n *nodesFlag) String() string { return strings.Join(*n, ",") }

func (n *nodesFlag) Set(text string) error {
	*n = strings.FieldsFunc(text, func(r rune) bool { return r == ',' })
	if len(*n) == 0 || slices.ContainsFunc(*n, configs.BadNode) {
		return errors.New("HOST:PORT, or several with commas between them")
	}
	return nil
}

// NodesFlag adds the flag --bootstrap to f, and returns what it is given. The usage says first
// when it counts.
func NodesFlag(f *flag.FlagSet, when string) *[]string {
	nodes := new(nodesFlag)
	f.Var(nodes, "bootstrap", when+"nodes of the network to begin with, `HOST:PORT` with commas between them (default: the public network)")
	return (*[]string)(nodes)
}

// PrintShort prints the short card of a key, in hex, as the network has it.
func PrintShort(ctx context.Context, out io.Writer, text string, bootstrap []string) (err error) {
	key, err := ParseKey(text)
	if err != nil {
		return err
	}
	n, err := Open(Config{Network: configs.Network{Bootstrap: bootstrap}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, shortTime)
	defer cancel()
	b, err := n.ShortCard(ctx, key)
	if err == nil {
		_, err = fmt.Fprintf(out, "%s\n", b)
	}
	return err
}
