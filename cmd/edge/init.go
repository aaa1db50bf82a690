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
	value              *string
}

func initCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("init", "[-c edge.yaml] [--name NAME] [--path DIR] [--price SATS|free] [--per 10m] [--tcp :49738] [--hyperswarm yes|no] [--yes]")
	file := f.String("c", "edge.yaml", "configuration file to write")
	yes := f.Bool("yes", false, "ask nothing: take the flags, and what is usual for the rest")
	host, _ := os.Hostname() // "" names nothing, and is fine
	list := []*question{
		{"name", "Name of the device", host, nil},
		{"path", "Directory for logs, keys and database", "/var/lib/edge", nil},
		{"price", "Price in satoshi, or free", "free", nil},
		{"per", "For how much is that (10m, 100 readings, 1MB, once)", "10m", nil},
		{"tcp", "Address to sell on", ":49738", nil},
		{"hyperswarm", "Be found by the key alone, over the Hyperswarm network (yes, no)", "yes", nil},
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
	if v := *list[5].value; v != "yes" && v != "no" {
		return p.usage(f.Usage, "--hyperswarm %q: yes or no", v)
	}
	text := configs.Starter(*list[0].value, *list[1].value, *list[2].value, *list[3].value, *list[4].value, *list[5].value)
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
