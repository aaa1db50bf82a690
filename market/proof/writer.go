package proof

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/protocol/replicate"
)

// sectionSize is how many bytes of blocks a section has, about.
const sectionSize = 1 << 20

// Writer writes a file. It implements [replicate.Witness]; its errors wrap [ErrFile]. Not
// safe for concurrent use.
type Writer struct {
	file          *os.File // nil if it is none
	w             *bufio.Writer
	n             int      // bytes of blocks in this section
	feed          [32]byte // that was said last
	seller, buyer [32]byte
	owner         *line // who it is of, if it has something already
}

// NewWriter returns a writer to what is empty.
func NewWriter(w io.Writer) *Writer { return &Writer{w: bufio.NewWriterSize(w, 64<<10)} }

// Open opens a file to go on behind what it has, and makes it if need be. A line that was
// cut off by a crash is ended.
func Open(name string) (*Writer, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	w := NewWriter(file)
	w.file = file
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, maxLine)
	if lines.Scan() {
		w.owner = &line{}
		json.Unmarshal(lines.Bytes(), w.owner) //nolint:errcheck // then it is nobody's
	}
	if err = lines.Err(); err == nil {
		err = w.endLine()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, errors.Join(err, file.Close()))
	}
	return w, nil
}

// endLine ends a line that has no end.
func (w *Writer) endLine() error {
	st, err := w.file.Stat()
	if err != nil || st.Size() == 0 {
		return err
	}
	last := make([]byte, 1)
	if _, err := w.file.ReadAt(last, st.Size()-1); err != nil || last[0] == '\n' {
		return err
	}
	_, err = w.file.Write([]byte("\n"))
	return err
}

// Close writes what there is and frees the file.
func (w *Writer) Close() error {
	err := w.w.Flush()
	if w.file != nil {
		err = errors.Join(err, w.file.Sync(), w.file.Close())
	}
	return fileError(err)
}

func fileError(err error) error {
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrFile, err)
	}
	return err
}

// For says for whom it is written. It fails if what there is is another one's.
func (w *Writer) For(seller, buyer [32]byte) error {
	w.seller, w.buyer = seller, buyer
	o := w.owner
	switch {
	case o == nil:
	case o.Seller == nil || o.Buyer == nil:
		return fmt.Errorf("%w: it has something else in it: choose another name", ErrFile)
	case *o.Seller != jcs.Hex32(seller) || *o.Buyer != jcs.Hex32(buyer):
		return fmt.Errorf("%w: it is of seller %x and buyer %x: choose another name for others", ErrFile, *o.Seller, *o.Buyer)
	}
	return nil
}

func (w *Writer) line(l line) error {
	e := json.NewEncoder(w.w)
	e.SetEscapeHTML(false) // a card is as long as it was signed
	return fileError(e.Encode(l))
}

// Feed says whose feed the next sections are of, with the seller's card, if there is one.
func (w *Writer) Feed(f dazaar.OneTimeFeed, signed []byte) error {
	if w.feed == f.Key {
		return nil
	}
	w.feed = f.Key
	sig, seller, buyer := jcs.Hex64(f.Signature), jcs.Hex32(w.seller), jcs.Hex32(w.buyer)
	return w.line(line{Seller: &seller, Buyer: &buyer, Feed: (*jcs.Hex32)(&f.Key), Generation: &f.Generation, Sig: &sig, Card: signed})
}

// Begin implements [replicate.Witness].
func (w *Writer) Begin(i uint64, left []merkle.Node) error {
	w.n = 0
	return w.line(line{From: &i, Left: toJSON(left)})
}

// Block implements [replicate.Witness]. It asks for an end when the section is long.
func (w *Writer) Block(i uint64, data []byte) (full bool, err error) {
	w.n += len(data)
	return w.n >= sectionSize, w.line(line{Index: &i, Block: data})
}

// End implements [replicate.Witness].
func (w *Writer) End(e replicate.Evidence) error {
	l := line{Until: &e.Until, Fork: e.Head.Fork, Length: e.Head.Length, Right: toJSON(e.Right), Manifest: e.Manifest.Append(nil), Signature: e.Signature}
	return errors.Join(w.line(l), fileError(w.w.Flush()))
}
