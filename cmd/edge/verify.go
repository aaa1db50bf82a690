package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/show"
	"dazaar-edge/feed"
	"dazaar-edge/storage"
	"dazaar-edge/storage/db"
	"dazaar-edge/storage/durable"
	"dazaar-edge/storage/vault"
)

// verifyOutput is the JSON that verify prints; docs/json.md explains it.
type verifyOutput struct {
	OK       bool        `json:"ok"`
	Logs     []verifyLog `json:"logs"`
	Problems []problem   `json:"problems"` // of the vault and the database
	// Unchecked is why no signature was checked; "" if they were.
	Unchecked string `json:"unchecked,omitempty"`
}

type verifyLog struct {
	Name       string    `json:"name"`
	Dir        string    `json:"dir"`
	Segments   int       `json:"segments"`
	First      uint64    `json:"first"`
	Length     uint64    `json:"length"`
	Blocks     uint64    `json:"blocks"`
	Bytes      uint64    `json:"bytes"`
	TreeHash   string    `json:"treeHash"`
	Clean      bool      `json:"clean"`
	Signatures int       `json:"signatures"`
	Unsigned   int       `json:"unsigned"`
	Malformed  uint64    `json:"malformed"`
	Problems   []problem `json:"problems"`
	Known      []problem `json:"known"`
	Notes      []problem `json:"notes"`
}

type problem struct {
	File  string  `json:"file"`
	Page  int     `json:"page"`
	First *uint64 `json:"first,omitempty"` // blocks [first, end) are affected
	End   *uint64 `json:"end,omitempty"`
	What  string  `json:"what"`
}

func problems(in []storage.Problem) []problem {
	out := []problem{}
	for _, p := range in {
		q := problem{File: p.File, Page: p.Page, What: p.What}
		if p.End > p.First {
			q.First, q.End = &p.First, &p.End
		}
		out = append(out, q)
	}
	return out
}

func (q problem) String() string {
	s := q.File
	if q.Page >= 0 {
		s += fmt.Sprintf(" page %d", q.Page)
	}
	s += ": " + q.What
	if q.First != nil {
		s += fmt.Sprintf("; blocks %d to %d", *q.First, *q.End-1)
	}
	return s
}

func verifyCommand(p *program, ctx context.Context, args []string) error {
	f := p.flags("verify", "DIR [--json], or --receipt FILE [--json], or --proof FILE [--out FILE] [--burned] [--json]")
	asJSON := f.Bool("json", false, "print the report as JSON")
	receipt := f.String("receipt", "", "check a receipt of edge buy: that its buyer paid its seller, and for what; nobody is asked")
	shown := f.String("proof", "", "check a file that edge buy --proof wrote: that the seller signed these readings for this buyer; nobody is asked")
	readings := f.String("out", "", "with --proof: write the readings that are proved to this new file")
	ask := f.Bool("burned", false, "with --proof: ask the network whether the seller has burned the feed since")
	bootstrap := reach.NodesFlag(f, "with --burned: ")
	want := 1
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--receipt") || strings.HasPrefix(a, "--proof") }) {
		want = 0
	}
	rest, err := p.parse(f, args, want)
	var burned func([][32]byte) (bool, error)
	if *ask {
		burned = func(keys [][32]byte) (bool, error) { return reach.Burned(ctx, keys, *bootstrap) }
	}
	switch {
	case err != nil:
		return err
	case *receipt != "" && *shown != "":
		return p.usage(f.Usage, "--receipt or --proof, one at a time")
	case (*readings != "" || *ask) && *shown == "":
		return p.usage(f.Usage, "--out and --burned are for what a proof proves: --proof FILE")
	case *receipt != "":
		return show.Printer{Out: p.stdout, Err: p.stderr, JSON: *asJSON}.Receipt(*receipt)
	case *shown != "":
		return show.Printer{Out: p.stdout, Err: p.stderr, JSON: *asJSON}.Proof(*shown, *readings, burned)
	case want == 0:
		return p.usage(f.Usage, "which file?")
	}
	out, err := verifyDir(rest[0])
	if err != nil {
		return err
	}
	if *asJSON {
		if err := json.NewEncoder(p.stdout).Encode(out); err != nil {
			return err
		}
	} else {
		p.printReport(out)
	}
	if !out.OK {
		return show.ErrUnproven
	}
	return nil
}

// verifyDir checks all logs, the vault and the database in a directory.
func verifyDir(dir string) (*verifyOutput, error) {
	dirs, err := logDirs(dir)
	if err != nil {
		return nil, err
	}
	out := &verifyOutput{Logs: []verifyLog{}, Problems: []problem{}}
	devices, err := out.checkState(dir)
	if err != nil {
		return nil, err
	}
	out.OK = len(out.Problems) == 0
	for _, d := range dirs {
		r, err := verifyLogDir(d, devices)
		if err != nil && !errors.Is(err, storage.ErrCorrupt) {
			return nil, err
		}
		if err != nil {
			r.Problems = append(r.Problems, storage.Problem{File: d, Page: -1, What: err.Error()})
		}
		out.OK = out.OK && len(r.Problems) == 0
		out.Logs = append(out.Logs, verifyLog{
			filepath.Base(d), d, r.Segments, r.First, r.Length, r.Blocks, r.Bytes, hex.EncodeToString(r.TreeHash[:]), r.Clean,
			r.Signatures, r.Unsigned, r.Malformed, problems(r.Problems), problems(r.Known), problems(r.Notes),
		})
	}
	return out, nil
}

// verifyLogDir verifies one log. One that is being written changes underneath:
// what looks wrong then is looked at again.
func verifyLogDir(dir string, devices []ed25519.PublicKey) (r *feed.VerifyReport, err error) {
	for range 5 {
		r, err = feed.Verify(feed.VerifyConfig{FS: durable.OS(), Dir: dir, Name: filepath.Base(dir), Devices: devices})
		if err == nil && len(r.Problems) == 0 || !inUse(dir) {
			break
		}
	}
	return r, err
}

// inUse tells whether a process has the log open.
func inUse(dir string) bool {
	lock, err := durable.OS().Lock(filepath.Join(dir, lockName))
	if err != nil {
		return errors.Is(err, durable.ErrLocked)
	}
	return lock.Close() != nil
}

// checkState checks vault and database where they are, and returns the device
// keys if they can be had without a passphrase.
func (out *verifyOutput) checkState(dir string) ([]ed25519.PublicKey, error) {
	add := func(file, what string) {
		out.Problems = append(out.Problems, problem{File: file, Page: -1, What: what})
	}
	err := vault.Verify(durable.OS(), dir)
	if whole := exists(filepath.Join(dir, logsName)); err != nil && (whole || !errors.Is(err, fs.ErrNotExist)) {
		add(filepath.Join(dir, vault.Name), err.Error())
	}
	if name := filepath.Join(dir, dbName); exists(name) {
		d, err := db.Open(name, 0, true)
		switch {
		case errors.Is(err, storage.ErrLocked): // in use: whoever has it open checks what it reads
		case err != nil:
			add(name, err.Error())
		default:
			if err := d.Verify(func(what string) { add(name, what) }); err != nil {
				add(name, err.Error())
			}
			if err := d.Close(); err != nil {
				return nil, err
			}
		}
	}
	secret, err := passphrase()
	if err != nil {
		return nil, err
	}
	v, err := vault.Open(durable.OS(), dir, secret, vault.Here("/", dir))
	if err != nil {
		out.Unchecked = err.Error()
		return nil, nil
	}
	return v.Devices(), nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func (p *program) printReport(out *verifyOutput) {
	for _, l := range out.Logs {
		how := "closed in order"
		if !l.Clean {
			how = "not closed in order, or in use"
		}
		fmt.Fprintf(p.stdout, "%s: %d blocks (%d bytes) from %d to %d in %d segments, %s\n", l.Name, l.Blocks, l.Bytes, l.First, l.Length, l.Segments, how)
		fmt.Fprintf(p.stdout, "%s: tree hash %s, %d device signatures right\n", l.Name, l.TreeHash, l.Signatures)
		if l.Unsigned > 0 {
			fmt.Fprintf(p.stdout, "%s: %d segments without a device signature\n", l.Name, l.Unsigned)
		}
		if l.Malformed > 0 {
			fmt.Fprintf(p.stdout, "%s: %d blocks are of no known encoding\n", l.Name, l.Malformed)
		}
		for _, q := range l.Known {
			fmt.Fprintf(p.stdout, "%s: known, with a gap entry: %s\n", l.Name, q)
		}
		for _, q := range l.Notes {
			fmt.Fprintf(p.stdout, "%s: note: %s\n", l.Name, q)
		}
		for _, q := range l.Problems {
			fmt.Fprintf(p.stdout, "%s: PROBLEM: %s\n", l.Name, q)
		}
	}
	for _, q := range out.Problems {
		fmt.Fprintf(p.stdout, "PROBLEM: %s\n", q)
	}
	if out.Unchecked != "" {
		fmt.Fprintf(p.stdout, "NO SIGNATURE WAS CHECKED: %s\n", out.Unchecked)
	}
	if out.OK {
		fmt.Fprintln(p.stdout, "every live byte is as it was written")
	} else {
		fmt.Fprintln(p.stdout, "not everything is as it was written: edge repair cuts or marks what is damaged")
	}
}
