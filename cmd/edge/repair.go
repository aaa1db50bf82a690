package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/sales"
	"dazaar-edge/sensors"
	"dazaar-edge/storage"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/vault"
)

func repairCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("repair", "DIR [--moved | --new-identity]")
	moved := f.Bool("moved", false, "this device goes on with the keys, and no other does")
	fresh := f.Bool("new-identity", false, "make new keys; the old ones are kept in a file and not used")
	rest, err := p.parse(f, args, 1)
	if err != nil {
		return err
	}
	if *moved && *fresh {
		fmt.Fprintln(p.stderr, "edge repair: --moved and --new-identity exclude each other")
		return errUsage
	}
	dir := rest[0]
	if !exists(filepath.Join(dir, vault.Name)) && !exists(filepath.Join(dir, dbName)) {
		return fmt.Errorf("%s: no device here: give storage.path, with the keys and all logs", dir)
	}
	if *fresh {
		if err := p.newIdentity(dir); err != nil {
			return err
		}
	}
	return p.repair(ctx, dir, *moved, *fresh)
}

// newIdentity puts the old keys aside and makes new ones.
func (p *program) newIdentity(dir string) (err error) {
	lock, err := durable.OS().Lock(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	secret, err := passphrase()
	if err != nil {
		return err
	}
	here := vault.Here("/", dir)
	var former []ed25519.PublicKey
	old, err := vault.Open(durable.OS(), dir, secret, here)
	switch {
	case errors.Is(err, vault.ErrNone):
		fmt.Fprintln(p.stdout, "the old keys are not there: what they signed cannot be checked any more")
	case err != nil:
		return err
	default:
		former = old.Devices()
		name, err := vault.Retire(durable.OS(), dir, time.Now())
		if err != nil {
			return err
		}
		fmt.Fprintf(p.stdout, "the old keys were put aside in %s\n", name)
	}
	if _, err := vault.Create(durable.OS(), dir, secret, here, nil, former...); err != nil {
		return err
	}
	fmt.Fprintln(p.stdout, "new keys were made: buyers must buy again, under new seller keys")
	return nil
}

// anySize lets repair open files of any size: it must not drop what a smaller
// max_size would.
const anySize = 1 << 50

func (p *program) repair(ctx context.Context, dir string, moved, fresh bool) (err error) {
	dirs, err := logDirs(dir)
	if err != nil && !errors.Is(err, errNoLogs) { // it may have sampled nothing yet
		return err
	}
	if kept, err := db.Aside(filepath.Join(dir, dbName), anySize); err != nil {
		return err
	} else if kept != "" {
		fmt.Fprintf(p.stdout, "the database is damaged, and was put aside: %s\n", kept)
	}
	s, err := openState(dir, anySize, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if s.lost != "" {
		fmt.Fprintln(p.stdout, "the books begin anew: what buyers paid is credited again when they show it and the wallet confirms it")
	}
	if moved {
		if err := s.vault.Bind(vault.Here("/", dir)); err != nil {
			return err
		}
		fmt.Fprintln(p.stdout, "the keys belong to this board and card now; never start the old one again")
	}
	boot, err := s.boot()
	if err != nil {
		return err
	}
	clock := sensors.SystemClock(boot)
	for _, d := range dirs {
		if err := p.repairLog(ctx, s, d, clock, moved || fresh); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	return nil
}

// repairLog opens a log, which cuts what is not whole, and marks the rest.
func (p *program) repairLog(ctx context.Context, s *state, dir string, clock sensors.Clock, unsettle bool) (err error) {
	name := filepath.Base(dir)
	keys, err := s.keys(name)
	if err != nil {
		return err
	}
	encoding, damage, err := look(dir)
	if err != nil {
		return err
	}
	table := sales.New(s.db, name)
	if unsettle {
		// A copy may have signed what this log does not have.
		e, err := table.Epoch()
		if err == nil {
			e.Number++
			err = table.SetEpoch(e)
		}
		if err != nil {
			return err
		}
	}
	l, err := feed.Open(feed.Config{
		FS: durable.OS(), Dir: dir, MaxSize: anySize, Name: name, Encoding: encoding, Keys: keys, Sales: table,
		Now: feedStamp(clock), Log: slog.New(slog.NewTextHandler(p.stderr, nil)),
	})
	if err != nil {
		return err
	}
	r := l.Recovery()
	defer func() {
		if r.Clean {
			err = errors.Join(err, l.Close())
		} else {
			l.Abort() // everything is committed; the next start still has to say what happened
		}
	}()
	h := l.Head()
	say := func(format string, args ...any) { fmt.Fprintf(p.stdout, name+": "+format+"\n", args...) }
	if r.Recovered > 0 {
		say("the log was cut behind damage; %d blocks behind it were appended again as recovered entries", r.Recovered)
	}
	done, err := l.Mend(ctx)
	for _, what := range done {
		say("%s", what)
	}
	if err != nil {
		return err
	}
	switch {
	case r.Recovered > 0 || len(done) > 0:
	case len(damage) > 0:
		for _, q := range damage {
			say("mended when it was opened: %s", q)
		}
		say("blocks %d to %d are whole", h.First, h.Length)
	default:
		say("nothing to repair: blocks %d to %d are whole", h.First, h.Length)
	}
	return nil
}

// look returns the encoding of a log, from its newest readable block, and what is wrong
// with it before it is opened.
func look(dir string) (enc block.Encoding, damage []problem, err error) {
	r, err := feed.Verify(feed.VerifyConfig{FS: durable.OS(), Dir: dir, Seen: func(e block.Encoding) { enc = e }})
	if errors.Is(err, storage.ErrCorrupt) {
		err = nil
	}
	if r != nil {
		damage = problems(r.Problems)
	}
	return enc, damage, err
}
