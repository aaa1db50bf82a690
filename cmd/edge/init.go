package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"dazaar-edge/configs"
	"dazaar-edge/storage/durable"

	"golang.org/x/sys/unix"
)

// question is one thing that edge init wants to know.
type question struct {
	flag, ask, missing string
	check              func(string) error
	value              *string
}

func initCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("init", "[-c edge.yaml] [--name NAME] [--path DIR] [--price SATS|free] [--per 10m] [--tcp :49738] [--yes]")
	file := f.String("c", "edge.yaml", "configuration file to write")
	yes := f.Bool("yes", false, "ask nothing: take the flags, and what is usual for the rest")
	host, _ := os.Hostname() // "" names nothing, and is fine
	any := func(string) error { return nil }
	list := []*question{
		{"name", "Name of the device", host, any, nil},
		{"path", "Directory for logs, keys and database", "/var/lib/edge", any, nil},
		{"price", "Price in satoshi, or free", "free", any, nil},
		{"per", "For how much is that (10m, 100 readings, 1MB, once)", "10m", any, nil},
		{"tcp", "Address to sell on", ":49738", any, nil},
	}
	for _, q := range list {
		q.value = f.String(q.flag, "", strings.ToLower(q.ask[:1])+q.ask[1:])
	}
	if _, err := p.parse(f, args, 0); err != nil {
		return err
	}
	if _, err := os.Stat(*file); err == nil {
		return fmt.Errorf("%s is there already: nothing was changed; edit it, or give another name with -c", *file)
	}
	in := bufio.NewReader(p.stdin)
	for i, q := range list {
		if i == 3 && *list[2].value == "free" {
			continue
		}
		if *q.value == "" && !*yes && terminal(p.stdin) {
			fmt.Fprintf(p.stderr, "%s [%s]: ", q.ask, q.missing)
			line, err := in.ReadString('\n')
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			*q.value = strings.TrimSpace(line)
		}
		if *q.value == "" {
			*q.value = q.missing
		}
	}
	text := starter(*list[0].value, *list[1].value, *list[2].value, *list[3].value, *list[4].value)
	cfg, err := configs.Parse(*file, []byte(text))
	if err != nil {
		return fmt.Errorf("with these answers the configuration would be wrong, and was not written:\n%w", err)
	}
	s, err := openState(cfg.Storage.Path, configs.DBReserve(cfg.Storage.MaxSize), true)
	if err != nil {
		return err
	}
	made, id := s.made, s.id()
	if err := s.close(); err != nil {
		return err
	}
	if err := durable.WriteFile(durable.OS(), *file, []byte(text)); err != nil {
		return err
	}
	vault := filepath.Join(cfg.Storage.Path, "vault.json")
	fmt.Fprintf(p.stdout, "wrote %s\n", *file)
	if made {
		fmt.Fprintf(p.stdout, "made the keys of %s: back up %s; with it goes the identity, and the money that buyers have paid ahead\n", id, vault)
	} else {
		fmt.Fprintf(p.stdout, "kept the keys of %s in %s\n", id, vault)
	}
	fmt.Fprintf(p.stdout, "next:  add your sensors to %s;  edge check -c %s;  edge run -c %s\n", *file, *file, *file)
	return ctx.Err()
}

// terminal tells whether somebody can answer.
func terminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// starter is a commented configuration.
func starter(name, path, price, per, tcp string) string {
	quote := func(s string) string { return fmt.Sprintf("%q", s) }
	var b strings.Builder
	b.WriteString("# Every key, with its default: configs/edge.example.yaml in the source, or the\n# documentation. Check with: edge check -c THIS-FILE\n\n")
	fmt.Fprintf(&b, "device: {name: %s}\n", quote(name))
	fmt.Fprintf(&b, "storage: {path: %s, max_size: 1GiB}   # logs, keys and database; never more than max_size\n", quote(path))
	if price != "free" {
		b.WriteString("\n# Whom buyers pay. So far the test wallet, whose money is worth nothing.\npayment: [{gateway: devnet}]\n")
	}
	b.WriteString("\nfeeds:\n  - name: board\n    description: Load, memory, disk and temperature of this board\n    pack: {every: 10s}                  # readings that go into one block\n")
	if price == "free" {
		b.WriteString("    price: free                         # or {amount: 100, currency: sat, per: 10m}, with payment:\n")
	} else {
		fmt.Fprintf(&b, "    price: {amount: %s, currency: sat, per: %s, history: 24h}\n", price, per)
		b.WriteString("    trial: 60s                          # once for each buyer\n")
	}
	fmt.Fprintf(&b, "    tcp: %s                       # edge buy KEY --seller THIS-HOST:PORT\n", quote(tcp))
	b.WriteString("    sensors:\n      - {name: host, driver: host, every: 10s}\n")
	b.WriteString("      # - {name: roof, driver: bme280, every: 10s, bus: 1, address: 0x76}\n")
	b.WriteString("      # - {name: rain, driver: gpio, every: 60s, line: 17, mode: counter, pull: up, edge: falling, debounce: 5ms, field: rain, unit: mm, scale: 0.2794}\n")
	b.WriteString("      # - {name: street, driver: mqtt, topic: \"zigbee2mqtt/+\", fields: {pm25: ug/m3}}   # and mqtt: {broker: \"tcp://127.0.0.1:1883\"} above\n")
	return b.String()
}
