// Package rows writes what was bought: a line of JSON for each reading and entry, and
// for what is missing or was replaced, or the blocks' own bytes.
//
// What the lines say stands in docs/json.md. The file that a Writer writes to is known
// again by a hash of its end, so that a purchase goes on where it ended, and nowhere
// else.
package rows

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"dazaar-edge/feed/block"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage/durable"
)

// Config says where to write, and what.
type Config struct {
	// File is appended to; "" writes to Stdout.
	File   string
	Stdout io.Writer
	// Raw writes the blocks' own bytes: JSON with a line end each, CBOR as a sequence
	// (RFC 8742), and of the raw encoding the readings alone.
	Raw bool
	// Since leaves out readings before it; zero leaves out none.
	Since time.Time
	Log   *slog.Logger // nil discards
}

// Writer writes what was bought. It implements market.Output. Not safe for concurrent
// use.
type Writer struct {
	cfg  Config
	log  *slog.Logger
	file *os.File // nil for standard output
	made bool     // the file is new
	w    *bufio.Writer
	n    int64 // bytes written
	head merkle.Head
	// flushed is when a block was, last.
	flushed time.Time

	resumed bool // the file is the right one
	began   bool // a reading at or after Since came
	before  bool // and one before
	times   block.Resolver
}

// New opens the file, and makes it if need be.
func New(cfg Config) (w *Writer, err error) {
	w = &Writer{cfg: cfg, log: cfg.Log}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if cfg.File == "" {
		w.w = bufio.NewWriterSize(cfg.Stdout, 32<<10)
		return w, nil
	}
	if st, err := os.Stat(cfg.File); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file: for a pipe or a device write to standard output, which the shell leads there", cfg.File)
	} else if errors.Is(err, fs.ErrNotExist) {
		w.made = true
	}
	if w.file, err = os.OpenFile(cfg.File, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, err
	}
	if err := durable.OS().SyncDir(filepath.Dir(cfg.File)); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", cfg.File, err), w.file.Close())
	}
	w.w = bufio.NewWriterSize(w.file, 32<<10)
	return w, nil
}

// Close frees the file, and removes it if it is new and nothing was written. What was not
// synced may be lost.
func (w *Writer) Close() error {
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	if st, e := os.Stat(w.cfg.File); w.made && !w.resumed && e == nil && st.Size() == 0 {
		err = errors.Join(err, os.Remove(w.cfg.File))
	}
	return err
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

func (w *Writer) print(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	n, err := w.w.Write(append(b, '\n'))
	w.n += int64(n)
	return err
}

// Block implements replicate.Sink.
func (w *Writer) Block(i uint64, data []byte) error {
	enc, ok := block.Guess(data)
	if !ok {
		return w.opaque(i, data)
	}
	pack, entry, err := enc.Parse(data)
	switch {
	case err != nil:
		return w.opaque(i, data)
	case w.cfg.Raw:
		return w.bytes(i, enc, pack, data)
	case entry != nil:
		b, err := block.SenMLJSON.Entry(entry)
		if err != nil {
			return w.opaque(i, data)
		}
		w.times.Add(entry)
		return w.print(struct {
			Index uint64          `json:"index"`
			Entry json.RawMessage `json:"entry"`
		}{i, b.Data})
	}
	at, off, held := w.times.Publish(pack.Stamp)
	for _, r := range pack.Readings {
		l := line{Index: i, Name: pack.BaseName + r.Name, Unit: r.Unit, Value: value(r.Value), Boot: pack.Stamp.Boot, Quality: r.Quality}
		l.Mono = (pack.Stamp.Mono + r.Offset).Seconds()
		if !at.IsZero() {
			t := at.Add(r.Offset)
			if w.early(t) {
				continue
			}
			if held && !slices.Contains(l.Quality, "clock") {
				l.Quality = append(slices.Clone(l.Quality), "clock")
			}
			text := t.UTC().Format(time.RFC3339Nano)
			l.Time = &text
		}
		l.Err = off.Seconds()
		if err := w.print(l); err != nil {
			return err
		}
	}
	return w.end(i)
}

// early tells whether a reading is before what is wanted. The first that comes should
// be, or the seller named too late a block.
func (w *Writer) early(t time.Time) bool {
	if w.cfg.Since.IsZero() || w.began {
		return false
	}
	if t.Before(w.cfg.Since) {
		w.before = true
		return true
	}
	if w.began = true; !w.before {
		w.log.Warn("the first readings that came are later than --from: either there were none before, or the seller named the wrong block", "from", w.cfg.Since, "first", t)
	}
	return false
}

// bytes writes the block's own bytes: JSON with a line end, CBOR as it is (RFC 8742),
// and of the raw encoding the readings alone.
func (w *Writer) bytes(i uint64, enc block.Encoding, pack *block.Pack, data []byte) error {
	var err error
	write := func(b []byte) {
		n, e := w.w.Write(b)
		w.n, err = w.n+int64(n), errors.Join(err, e)
	}
	switch {
	case enc != block.Raw:
		if write(data); enc == block.SenMLJSON {
			write([]byte{'\n'})
		}
	case pack != nil:
		for _, r := range pack.Readings {
			write(r.Value.Data)
		}
	}
	return errors.Join(err, w.end(i))
}

// flushEvery is how long a block may wait for others while more are on their way.
const flushEvery = 50 * time.Millisecond

// end flushes behind the newest block, and now and then: somebody may be waiting for it.
func (w *Writer) end(i uint64) error {
	now := time.Now()
	if i+1 != w.head.Length && now.Sub(w.flushed) < flushEvery {
		return nil
	}
	w.flushed = now
	return w.w.Flush()
}

// opaque prints a block that is none of ours.
func (w *Writer) opaque(i uint64, data []byte) error {
	if w.cfg.Raw {
		n, err := w.w.Write(data)
		w.n += int64(n)
		return errors.Join(err, w.end(i))
	}
	err := w.print(struct {
		Index uint64 `json:"index"`
		Data  string `json:"data"`
	}{i, base64.StdEncoding.EncodeToString(data)})
	return errors.Join(err, w.end(i))
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
func (w *Writer) Gap(from, to uint64) error {
	if w.cfg.Raw {
		w.log.Warn("blocks are not to be had", "from", from, "to", to)
		return nil
	}
	type span struct {
		From uint64 `json:"from"`
		To   uint64 `json:"to"`
	}
	return w.print(struct {
		Unavailable span `json:"unavailable"`
	}{span{from, to}})
}

// Fork implements replicate.Sink.
func (w *Writer) Fork(fork, from uint64) error {
	if w.cfg.Raw {
		w.log.Warn("the seller lost what it had: what follows replaces blocks that were written", "fork", fork, "from", from)
		return w.w.Flush()
	}
	err := w.print(struct {
		Fork uint64 `json:"fork"`
		From uint64 `json:"from"`
	}{fork, from})
	return errors.Join(err, w.w.Flush())
}

// Head implements replicate.Sink.
func (w *Writer) Head(h merkle.Head) error {
	w.head = h
	return nil
}

// Sync implements market.Output.
func (w *Writer) Sync() (at int64, mark string, err error) {
	if err := w.w.Flush(); err != nil {
		return 0, "", err
	}
	if w.file == nil {
		return w.n, w.kind() + standardOutput, nil
	}
	if err := w.file.Sync(); err != nil {
		return 0, "", err
	}
	mark, err = w.mark(w.n)
	return w.n, w.kind() + mark, err
}

// standardOutput is the mark of what is not a file.
const standardOutput = "stdout"

// rawKind begins the marks of outputs with the blocks' own bytes.
const rawKind = "raw "

func (w *Writer) kind() string {
	if w.cfg.Raw {
		return rawKind
	}
	return ""
}

// markSize is how many bytes before a place in a file its mark is made of.
const markSize = 4096

// mark is what a file is known by at a place: a hash of what is before it; at its
// beginning, where that is nothing, which file it is.
func (w *Writer) mark(at int64) (string, error) {
	if at == 0 {
		which, err := durable.Identity(w.file)
		return "new " + which, err
	}
	b := make([]byte, min(at, markSize))
	if _, err := w.file.ReadAt(b, at-int64(len(b))); err != nil {
		return "", err
	}
	h := sha256.Sum256(b)
	return "file " + hex.EncodeToString(h[:8]), nil
}

// Resume implements market.Output: what a file has behind the place is what was
// not yet known to be there, and is cut.
func (w *Writer) Resume(at int64, mark string) error {
	w.n = at
	kept, raw := strings.CutPrefix(mark, rawKind)
	if at > 0 && raw != w.cfg.Raw {
		return fmt.Errorf("what was bought is %s: give the same --format, or a new --state", map[bool]string{true: "raw", false: "ndjson"}[raw])
	}
	mark = kept
	if w.file == nil {
		if at > 0 && mark != standardOutput {
			return errors.New("what was bought went into a file: give it as --out, or a new --state")
		}
		w.began = at > 0
		return nil
	}
	have, err := w.mark(at)
	if errors.Is(err, io.EOF) {
		have, err = "", nil // it is too short
	}
	if err != nil {
		return err
	}
	size, err := w.file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	switch {
	case mark == standardOutput && at > 0:
		return errors.New("what was bought went to standard output: give no --out, or a new --state")
	case at == 0 && size > 0 && mark != have:
		return fmt.Errorf("%s is not empty, and nothing was bought into it yet: give another file", w.file.Name())
	case size < at:
		return fmt.Errorf("%s has %d bytes, and %d were written: it was cut or is another file; give the right one, or a new --state", w.file.Name(), size, at)
	case at > 0 && mark != have:
		return fmt.Errorf("%s is not the file that was written: give the right one, or a new --state", w.file.Name())
	}
	w.resumed = true
	if err := w.file.Truncate(at); err != nil {
		return err
	}
	w.recall(at)
	_, err = w.file.Seek(at, io.SeekStart)
	return err
}

// recall finds the newest time in what was written before.
func (w *Writer) recall(at int64) {
	b := make([]byte, min(at, markSize))
	if _, err := w.file.ReadAt(b, at-int64(len(b))); err != nil {
		return
	}
	var newest time.Time
	for l := range bytes.Lines(b) {
		var x line
		if json.Unmarshal(l, &x) == nil && x.Time != nil {
			if t, err := time.Parse(time.RFC3339Nano, *x.Time); err == nil && t.After(newest) {
				newest = t
			}
		}
	}
	w.times.Resume(newest)
	w.began = at > 0
}
