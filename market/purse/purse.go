// Package purse is what a buyer keeps of its dealings with one seller: the newest
// card, the terms that were accepted, and every invoice, from before it is paid on.
//
// # Files
//
//	card.json            the newest card, as the seller signed it
//	card-VERSION-HASH.json   cards that something was paid under
//	terms-SHA256.txt     terms that were accepted
//	receipts/HASH.json   an invoice: written before it is paid, and when it is known
//	                     what became of that
//
// With the invoice, which the seller signed, the card, which says who is paid, and
// the preimage, which only who paid has, a third party can check what was bought.
//
// Source: specs/lightning.md, B5, B6, B8.
package purse

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/durable"
)

// State is what became of a payment.
type State string

// States. What is in doubt may have been paid.
const (
	Doubt  State = "doubt"
	Paid   State = "paid"
	Failed State = "failed" // and never will be paid
)

// Receipt is an invoice and what became of it.
type Receipt struct {
	State   State          `json:"state"`
	Invoice dazaar.Invoice `json:"invoice"`
	Msat    uint64         `json:"msat,string"`
	// Preimage is there when it was paid.
	Preimage *jcs.Hex32 `json:"preimage,omitempty"`
	At       time.Time  `json:"at"` // when it was to be paid
	Error    string     `json:"error,omitempty"`
}

// Names in the directory.
const (
	cardName    = "card.json"
	receiptsDir = "receipts"
	maxFile     = 256 << 10
)

// ErrHash says that an invoice was there before: paying it again pays nobody.
var ErrHash = errors.New("purse: this invoice was there before")

// Purse is an open directory. All methods are safe for concurrent use.
type Purse struct {
	fsys durable.FS
	dir  string

	mu       sync.Mutex
	card     []byte                 // guarded by mu, like all below
	receipts map[jcs.Hex32]*Receipt // all there are
}

// Open opens the directory and makes it if need be.
func Open(fsys durable.FS, dir string) (*Purse, error) {
	p := &Purse{fsys: fsys, dir: dir, receipts: map[jcs.Hex32]*Receipt{}}
	for _, d := range []string{dir, path.Join(dir, receiptsDir)} {
		if err := fsys.Mkdir(d); err != nil {
			return nil, err
		}
	}
	var err error
	if p.card, err = durable.ReadFile(fsys, path.Join(dir, cardName), maxFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	names, err := fsys.ReadDir(path.Join(dir, receiptsDir))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") {
			continue // what a crash left of one
		}
		b, err := durable.ReadFile(fsys, path.Join(dir, receiptsDir, name), maxFile)
		if err != nil {
			return nil, err
		}
		r, err := parseReceipt(b)
		if err == nil && name != receiptName(r.Invoice.Hash) {
			err = errors.New("it is of another invoice")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(dir, receiptsDir, name), err)
		}
		p.receipts[r.Invoice.Hash] = r
	}
	return p, nil
}

func parseReceipt(b []byte) (*Receipt, error) {
	var r Receipt
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	switch r.State {
	case Doubt, Failed:
	case Paid:
		if r.Preimage == nil || sha256.Sum256(r.Preimage[:]) != r.Invoice.Hash {
			return nil, errors.New("the preimage is not the invoice's")
		}
	default:
		return nil, fmt.Errorf("state %q", r.State)
	}
	return &r, nil
}

func receiptName(hash jcs.Hex32) string { return hex.EncodeToString(hash[:]) + ".json" }

// Card returns the newest card; nil if there is none.
func (p *Purse) Card() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.card
}

// SetCard keeps a card that was checked.
func (p *Purse) SetCard(signed []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if string(signed) == string(p.card) {
		return nil
	}
	b := slices.Clone(signed)
	if err := durable.WriteFile(p.fsys, path.Join(p.dir, cardName), b); err != nil {
		return err
	}
	p.card = b
	return nil
}

func (p *Purse) termsFile(hash [32]byte) string {
	return path.Join(p.dir, fmt.Sprintf("terms-%x.txt", hash))
}

// Accepted tells whether terms were accepted before.
func (p *Purse) Accepted(hash [32]byte) bool {
	b, err := durable.ReadFile(p.fsys, p.termsFile(hash), maxFile)
	return err == nil && sha256.Sum256(b) == hash
}

// Accept keeps terms that are accepted now.
func (p *Purse) Accept(text string) error {
	return durable.WriteFile(p.fsys, p.termsFile(sha256.Sum256([]byte(text))), []byte(text))
}

// Begin notes an invoice that is going to be paid, with the card that it was made
// under. It fails with [ErrHash] if it was there before, and was or may have been paid.
func (p *Purse) Begin(v dazaar.Invoice, msat uint64, c *card.Card, signed []byte, at time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.receipts[v.Hash]; old != nil && old.State != Failed {
		return fmt.Errorf("%w: %x", ErrHash, v.Hash)
	}
	sum := sha256.Sum256(signed)
	if err := durable.WriteFile(p.fsys, path.Join(p.dir, fmt.Sprintf("card-%d-%x.json", c.Version, sum[:4])), signed); err != nil {
		return err
	}
	return p.put(&Receipt{State: Doubt, Invoice: v, Msat: msat, At: at.UTC()})
}

// put writes a receipt. mu is held.
func (p *Purse) put(r *Receipt) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(p.fsys, path.Join(p.dir, receiptsDir, receiptName(r.Invoice.Hash)), append(b, '\n')); err != nil {
		return err
	}
	p.receipts[r.Invoice.Hash] = r
	return nil
}

// Done notes what became of it.
func (p *Purse) Done(hash jcs.Hex32, preimage [32]byte) error {
	if sha256.Sum256(preimage[:]) != hash {
		return fmt.Errorf("purse: the wallet's preimage is not that of invoice %x", hash)
	}
	return p.change(hash, func(r *Receipt) { r.State, r.Preimage, r.Error = Paid, (*jcs.Hex32)(&preimage), "" })
}

// Fail notes that it was not paid, and will not be.
func (p *Purse) Fail(hash jcs.Hex32, why error) error {
	return p.change(hash, func(r *Receipt) { r.State, r.Error = Failed, why.Error() })
}

func (p *Purse) change(hash jcs.Hex32, f func(*Receipt)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.receipts[hash]
	if old == nil {
		return fmt.Errorf("purse: no invoice %x", hash)
	}
	r := *old
	f(&r)
	return p.put(&r)
}

// Spent returns the msat that were paid, or may have been.
func (p *Purse) Spent() (msat uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.receipts {
		if r.State != Failed {
			msat += r.Msat
		}
	}
	return msat
}

// InDoubt returns an invoice of which nobody knows whether it was paid.
func (p *Purse) InDoubt() (Receipt, bool) {
	for _, r := range p.Receipts() {
		if r.State == Doubt {
			return r, true
		}
	}
	return Receipt{}, false
}

// Receipts returns all, the newest first.
func (p *Purse) Receipts() (out []Receipt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.receipts {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Receipt) int {
		if c := b.At.Compare(a.At); c != 0 {
			return c
		}
		return strings.Compare(a.Invoice.Request, b.Invoice.Request)
	})
	return out
}
