package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/market"
	"dazaar-edge/market/archive"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
)

func buyCommand(p *program, ctx context.Context, args []string) (err error) {
	f := p.flags("buy", "KEY --seller HOST:PORT [--follow] [--from INDEX] [--out FILE] [--state DIR] [--verbose]")
	seller := f.String("seller", "", "where the seller is: HOST:PORT")
	follow := f.Bool("follow", false, "go on with what is appended, until stopped")
	from := f.String("from", "0", "first block wanted, or \"end\" for what comes from now on; where there is a state it is not looked at")
	out := f.String("out", "", "append readings to this file instead of standard output, and resume where it ends")
	dir := f.String("state", "", "directory for what must not be forgotten (default: one for each seller in your state directory)")
	verbose := f.Bool("verbose", false, "say more")
	rest, err := p.parse(f, args, 1)
	if err != nil {
		return err
	}
	cfg := market.ClientConfig{Address: *seller, Follow: *follow, Agent: agent()}
	key, err := hex.DecodeString(rest[0])
	if err != nil || len(key) != len(cfg.Seller) {
		return p.usage(f.Usage, "%q is not a seller's key: 64 hex digits, as edge run prints them", rest[0])
	}
	cfg.Seller = [32]byte(key)
	rest[0] = hex.EncodeToString(key) // however it was written
	if *seller == "" {
		return p.usage(f.Usage, "where is the seller? --seller HOST:PORT")
	}
	if *from == "end" {
		cfg.From = replicate.FromEnd
	} else if cfg.From, err = strconv.ParseUint(*from, 10, 53); err != nil {
		return p.usage(f.Usage, "--from %q is not a block's index, nor \"end\"", *from)
	}
	level := slog.LevelInfo
	if *verbose {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	if *dir == "" {
		if *dir, err = stateDir(rest[0]); err != nil {
			return err
		}
	}
	if cfg.Archive, err = archive.Open(durable.OS(), *dir); err != nil {
		return fmt.Errorf("--state %s: %w", *dir, err)
	}
	defer func() { err = errors.Join(err, cfg.Archive.Close()) }()
	o := &output{w: bufio.NewWriterSize(p.stdout, 32<<10)}
	if *out != "" {
		if o.file, err = os.OpenFile(*out, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.file.Close()) }()
		if err := durable.OS().SyncDir(filepath.Dir(*out)); err != nil {
			return fmt.Errorf("--out %s: %w", *out, err)
		}
		o.w.Reset(o.file)
	}
	cfg.Output = o
	c, err := market.NewClient(cfg)
	if err != nil {
		return fmt.Errorf("--state %s: %w", *dir, err)
	}
	return c.Run(ctx)
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

// output writes what was bought, a line of JSON for each reading.
type output struct {
	file *os.File // nil for standard output
	w    *bufio.Writer
	n    int64 // bytes written
	head merkle.Head
}

// line is one reading; docs/json.md explains it.
type line struct {
	Index   uint64   `json:"index"`
	Name    string   `json:"name"`
	Unit    string   `json:"unit,omitempty"`
	Value   any      `json:"value"`
	Time    *string  `json:"time"`
	Err     float64  `json:"err,omitempty"`
	Boot    uint32   `json:"boot"`
	Mono    float64  `json:"mono"`
	Quality []string `json:"quality,omitempty"`
}

func (o *output) print(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	n, err := o.w.Write(append(b, '\n'))
	o.n += int64(n)
	return err
}

// Block implements replicate.Sink.
func (o *output) Block(i uint64, data []byte) error {
	enc, ok := block.Guess(data)
	if !ok {
		return o.opaque(i, data)
	}
	pack, entry, err := enc.Parse(data)
	switch {
	case err != nil:
		return o.opaque(i, data)
	case entry != nil:
		b, err := block.SenMLJSON.Entry(entry)
		if err != nil {
			return o.opaque(i, data)
		}
		return o.print(struct {
			Index uint64          `json:"index"`
			Entry json.RawMessage `json:"entry"`
		}{i, b.Data})
	}
	for _, r := range pack.Readings {
		l := line{Index: i, Name: pack.BaseName + r.Name, Unit: r.Unit, Value: value(r.Value), Boot: pack.Stamp.Boot}
		l.Mono = (pack.Stamp.Mono + r.Offset).Seconds()
		l.Err = pack.Stamp.Err.Seconds()
		if !pack.Stamp.Wall.IsZero() {
			t := pack.Stamp.Wall.Add(r.Offset).UTC().Format(time.RFC3339Nano)
			l.Time = &t
		}
		l.Quality = r.Quality
		if err := o.print(l); err != nil {
			return err
		}
	}
	return o.end(i)
}

// end flushes behind the newest block: somebody may be waiting for it.
func (o *output) end(i uint64) error {
	if i+1 == o.head.Length {
		return o.w.Flush()
	}
	return nil
}

// opaque prints a block that is none of ours.
func (o *output) opaque(i uint64, data []byte) error {
	err := o.print(struct {
		Index uint64 `json:"index"`
		Data  string `json:"data"`
	}{i, base64.StdEncoding.EncodeToString(data)})
	return errors.Join(err, o.end(i))
}

// value is a reading's value as JSON has it.
func value(v block.Value) any {
	switch v.Kind {
	case block.Float:
		return v.Float
	case block.Text:
		return v.Text
	case block.Bool:
		return v.Bool
	default:
		return base64.StdEncoding.EncodeToString(v.Data)
	}
}

// Gap implements replicate.Sink.
func (o *output) Gap(from, to uint64) error {
	type span struct {
		From uint64 `json:"from"`
		To   uint64 `json:"to"`
	}
	return o.print(struct {
		Unavailable span `json:"unavailable"`
	}{span{from, to}})
}

// Fork implements replicate.Sink.
func (o *output) Fork(fork, from uint64) error {
	err := o.print(struct {
		Fork uint64 `json:"fork"`
		From uint64 `json:"from"`
	}{fork, from})
	return errors.Join(err, o.w.Flush())
}

// Head implements replicate.Sink.
func (o *output) Head(h merkle.Head) error {
	o.head = h
	return nil
}

// Sync implements market.Output.
func (o *output) Sync() (at int64, mark string, err error) {
	if err := o.w.Flush(); err != nil {
		return 0, "", err
	}
	if o.file == nil {
		return o.n, standardOutput, nil
	}
	if err := o.file.Sync(); err != nil {
		return 0, "", err
	}
	mark, err = o.mark(o.n)
	return o.n, mark, err
}

// standardOutput is the mark of what is not a file.
const standardOutput = "stdout"

// markSize is how many bytes before a place in a file its mark is made of.
const markSize = 4096

// mark is what a file is known by at a place: a hash of what is before it.
func (o *output) mark(at int64) (string, error) {
	b := make([]byte, min(at, markSize))
	if _, err := o.file.ReadAt(b, at-int64(len(b))); err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return "file " + hex.EncodeToString(h[:8]), nil
}

// Resume implements market.Output: what a file has behind the place is what was
// not yet known to be there, and is cut.
func (o *output) Resume(at int64, mark string) error {
	o.n = at
	if o.file == nil {
		if at > 0 && mark != standardOutput {
			return errors.New("what was bought went into a file: give it as --out, or a new --state")
		}
		return nil
	}
	size, err := o.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	switch {
	case mark == standardOutput && at > 0:
		return errors.New("what was bought went to standard output: give no --out, or a new --state")
	case at == 0 && size > 0:
		return fmt.Errorf("%s is not empty, and nothing was bought into it yet: give another file", o.file.Name())
	case size < at:
		return fmt.Errorf("%s has %d bytes, and %d were written: it was cut or is another file; give the right one, or a new --state", o.file.Name(), size, at)
	}
	if at > 0 {
		if have, err := o.mark(at); err != nil {
			return err
		} else if have != mark {
			return fmt.Errorf("%s is not the file that was written: give the right one, or a new --state", o.file.Name())
		}
	}
	if err := o.file.Truncate(at); err != nil {
		return err
	}
	_, err = o.file.Seek(at, io.SeekStart)
	return err
}
