package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/source"
	"dazaar-edge/market/card"
)

// defaultConfig is where the configuration is looked for.
const defaultConfig = "/etc/edge/edge.yaml"

// errNotRunning says that nobody answers.
var errNotRunning = errors.New("edge is not running")

// ask sends a request to the edge run of a configuration and returns the answer.
func ask(ctx context.Context, file, method, path string, body any) ([]byte, error) {
	cfg, err := source.Load(file)
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(cfg.Storage.Path, socketName)
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://edge"+path, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(r)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, fmt.Errorf("%w with this configuration (systemctl status edge), or you may not speak to it (sudo?): %s: %w", errNotRunning, socket, err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(out)))
	}
	return out, err
}

// lines reads lines of JSON.
func lines[T any](b []byte) (out []T, err error) {
	for d := json.NewDecoder(bytes.NewReader(b)); ; {
		var v T
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
}

// asked runs a command that prints what edge run answers: as it is with --json, or by
// show.
func asked(p *program, ctx context.Context, name string, args []string, show func([]byte) error) error {
	f := p.flags(name, "[-c edge.yaml] [--json]")
	file := f.String("c", defaultConfig, "configuration file")
	raw := f.Bool("json", false, "print lines of JSON")
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	b, err := ask(ctx, *file, http.MethodGet, "/"+name, nil)
	if err != nil {
		return err
	}
	if *raw {
		_, err = p.stdout.Write(b)
		return err
	}
	return show(b)
}

func statusCommand(p *program, ctx context.Context, args []string) error {
	return asked(p, ctx, "status", args, func(b []byte) error {
		all, err := lines[status](b)
		if err != nil || len(all) != 1 {
			return errors.Join(err, errors.New("the answer cannot be read"))
		}
		s := all[0]
		clock := "not set: readings get their time when it is, and new buyers cannot pay"
		if s.Time != nil {
			clock = s.Time.Format(time.RFC3339)
		}
		fmt.Fprintf(p.stdout, "%s: edge %s, up %v, boot %d, clock %s\n", s.Device, s.Version, time.Duration(s.Uptime)*time.Second, s.Boot, clock)
		for _, f := range s.Feeds {
			fmt.Fprintf(p.stdout, "feed %s: blocks %d to %d, %.1f MiB, %d readings", f.Name, f.First, f.Length, float64(f.Bytes)/(1<<20), f.Readings)
			if f.Failed+f.Dropped > 0 {
				fmt.Fprintf(p.stdout, ", %d reads failed, %d blocks dropped", f.Failed, f.Dropped)
			}
			if f.Error != "" {
				fmt.Fprintf(p.stdout, "; THE CARD TAKES NOTHING, %d blocks wait in memory: %s", f.Waiting, f.Error)
			}
			if where := reach.Where(f.TCP, f.Network); where != "" {
				fmt.Fprintf(p.stdout, "; sold %s to %d buyers, %d connections", where, f.Buyers, f.Connections)
			}
			fmt.Fprintln(p.stdout)
		}
		if s.Network != nil {
			fmt.Fprintf(p.stdout, "network: %s\n", s.Network)
		}
		if s.Payment != nil && !s.Payment.OK {
			fmt.Fprintf(p.stdout, "payment: %s\n", s.Payment.Error)
		}
		fmt.Fprintf(p.stdout, "memory %.1f MiB, CPU %.1f s, %.1f MB written", float64(s.Process.RSS)/(1<<20), s.Process.CPU, float64(s.Process.Writes)/1e6)
		if s.Process.PerDay > 0 {
			fmt.Fprintf(p.stdout, ", %.0f MB a day", float64(s.Process.PerDay)/1e6)
		}
		fmt.Fprintln(p.stdout)
		return nil
	})
}

func sensorsCommand(p *program, ctx context.Context, args []string) error {
	return asked(p, ctx, "sensors", args, func(b []byte) error {
		all, err := lines[sensorStatus](b)
		for _, s := range all {
			state := "waits"
			switch {
			case s.Error != "":
				state = "FAILS: " + s.Error
			case s.Age != nil:
				state = fmt.Sprintf("%d reads, newest %.0f s ago", s.Reads, *s.Age)
			}
			fmt.Fprintf(p.stdout, "%s/%s: %s\n", s.Feed, s.Sensor, state)
			for _, r := range s.Newest {
				fmt.Fprintf(p.stdout, "    %s %v %s %s\n", r.Name, r.Value, r.Unit, strings.Join(r.Quality, " "))
			}
		}
		return err
	})
}

func buyersCommand(p *program, ctx context.Context, args []string) error {
	return asked(p, ctx, "buyers", args, func(b []byte) error {
		all, err := lines[buyerStatus](b)
		if len(all) == 0 && err == nil {
			fmt.Fprintln(p.stderr, "nobody bought yet")
		}
		for _, x := range all {
			left := ""
			switch {
			case x.Remaining == nil:
			case x.Type == "time" || x.Type == "trial":
				left = fmt.Sprintf(" %v left,", time.Duration(*x.Remaining)*time.Millisecond)
			default:
				left = fmt.Sprintf(" %d %s left,", *x.Remaining, x.Type)
			}
			note := ""
			if x.Connected {
				note += " connected"
			}
			if x.Revoked {
				note += " REVOKED"
			}
			fmt.Fprintf(p.stdout, "%s %s: %s,%s paid %s msat, credit %s msat%s\n", x.Feed, x.Buyer, x.Type, left, x.Paid, x.Credit, note)
		}
		return err
	})
}

func cardCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("card", "[KEY [--bootstrap HOST:PORT]] | [-c edge.yaml] [--feed NAME] [--link | --qr]")
	bootstrap := reach.NodesFlag(f, "with a key: ")
	file := f.String("c", defaultConfig, "configuration file")
	feed := f.String("feed", "", "which feed, if there are several")
	link := f.Bool("link", false, "print the link: whoever has it can ask the seller for the card")
	qr := f.Bool("qr", false, "print the link as a QR code")
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		rest, err := p.parse(f, args, 1)
		if err != nil {
			return err
		}
		return reach.PrintShort(ctx, p.stdout, rest[0], *bootstrap)
	}
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	if *feed == "" {
		cfg, err := source.Load(*file)
		if err != nil {
			return err
		}
		if len(cfg.Feeds) > 1 {
			return p.usage(f.Usage, "which feed? --feed NAME")
		}
		*feed = cfg.Feeds[0].Name
	}
	b, err := ask(ctx, *file, http.MethodGet, "/card/"+url.PathEscape(*feed), nil)
	if err != nil {
		return err
	}
	c, err := card.Parse(bytes.TrimSpace(b), nil, 0)
	if err != nil {
		return err
	}
	switch {
	case *qr:
		return card.PrintQR(p.stdout, card.Link(c.Key()))
	case *link:
		_, err = fmt.Fprintln(p.stdout, card.Link(c.Key()))
	default:
		_, err = p.stdout.Write(b)
	}
	return err
}

func revokeCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("revoke", "BUYER [-c edge.yaml] [--feed NAME] [--burn | --undo]")
	file := f.String("c", defaultConfig, "configuration file")
	var q revocation
	f.StringVar(&q.Feed, "feed", "", "which feed, if there are several")
	f.BoolVar(&q.Burn, "burn", false, "also publish the secret of the buyer's feed key: what the buyer has then proves nothing to others, for ever")
	f.BoolVar(&q.Undo, "undo", false, "sell to this buyer again")
	rest, err := p.parse(f, args, 1)
	if err != nil {
		return err
	}
	q.Buyer = strings.ToLower(rest[0])
	if _, err := reach.ParseKey(q.Buyer); err != nil {
		return p.usage(f.Usage, "%v, as edge buyers prints them", err)
	}
	if q.Burn && q.Undo {
		return p.usage(f.Usage, "--burn cannot be undone")
	}
	b, err := ask(ctx, *file, http.MethodPost, "/revoke", q)
	if err != nil {
		return err
	}
	if _, err = p.stdout.Write(b); err != nil {
		return err
	}
	answers, err := lines[revocation](b)
	if err == nil && len(answers) == 1 && !answers[0].Known {
		fmt.Fprintln(p.stderr, "edge: nobody with this key ever came: is it the right one? (edge buyers)")
	}
	return err
}
