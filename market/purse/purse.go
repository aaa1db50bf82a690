// Package purse is what a buyer keeps of its dealings with one seller: the newest
// card, the terms that were accepted, and every invoice, from before it is paid on.
//
// # Files
//
//	card.json            the newest card, as the seller signed it
//	terms-SHA256.txt     terms that were accepted
//	receipts/HASH.json   an invoice, and the card that it was made under: written
//	                     before it is paid, and when it is known what became of that
//
// A [Receipt] of what was paid has all that a third party needs to check what was bought.
//
// Source: specs/lightning.md, B1, B5, B6, B8.
package purse

import (
	"bytes"
	"cmp"
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

	"dazaar-edge/payment/bolt11"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/durable"
)

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
	receipts map[jcs.Hex32]*summary // all there are
}

// summary is what is looked at often of a receipt.
type summary struct {
	hash      jcs.Hex32
	state     State
	msat, fee uint64
	at        time.Time
	payee     [33]byte
}

func (r *Receipt) summary() *summary {
	s := &summary{hash: r.Invoice.Hash, state: r.State, msat: r.Msat, fee: r.Fee, at: r.At}
	if v, err := bolt11.Parse(r.Invoice.Request); err == nil {
		s.payee = v.Payee
	}
	return s
}

// Open opens the directory and makes it if need be.
func Open(fsys durable.FS, dir string) (*Purse, error) {
	p := &Purse{fsys: fsys, dir: dir, receipts: map[jcs.Hex32]*summary{}}
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
		r, err := p.read(name)
		if err != nil {
			return nil, err
		}
		p.receipts[r.Invoice.Hash] = r.summary()
	}
	return p, nil
}

// read reads a receipt.
func (p *Purse) read(name string) (*Receipt, error) {
	b, err := durable.ReadFile(p.fsys, path.Join(p.dir, receiptsDir, name), maxFile)
	if err != nil {
		return nil, err
	}
	r, err := ParseReceipt(b)
	if err == nil && name != receiptName(r.Invoice.Hash) {
		err = errors.New("it is of another invoice")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(p.dir, receiptsDir, name), err)
	}
	return r, nil
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

// Begin notes a receipt of what is going to be paid, in doubt until it is known what
// became of it. It fails with [ErrHash] if the invoice was there before, and was or may
// have been paid.
func (p *Purse) Begin(r Receipt) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.receipts[r.Invoice.Hash]; old != nil && old.state != Failed {
		return fmt.Errorf("%w: %x", ErrHash, r.Invoice.Hash)
	}
	r.State, r.Preimage, r.Error, r.At = Doubt, nil, "", r.At.UTC()
	return p.put(&r)
}

// put writes a receipt. mu is held.
func (p *Purse) put(r *Receipt) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // a card is as long as it was signed
	e.SetIndent("", " ")
	if err := e.Encode(r); err != nil {
		return err
	}
	if err := durable.WriteFile(p.fsys, path.Join(p.dir, receiptsDir, receiptName(r.Invoice.Hash)), b.Bytes()); err != nil {
		return err
	}
	p.receipts[r.Invoice.Hash] = r.summary()
	return nil
}

// Done notes that it was paid, with what it cost besides, in msat.
func (p *Purse) Done(hash jcs.Hex32, preimage [32]byte, fee uint64) error {
	if sha256.Sum256(preimage[:]) != hash {
		return fmt.Errorf("purse: the wallet's preimage is not that of invoice %x", hash)
	}
	return p.change(hash, func(r *Receipt) { r.State, r.Preimage, r.Fee, r.Error = Paid, (*jcs.Hex32)(&preimage), fee, "" })
}

// Fail notes that it was not paid, and will not be.
func (p *Purse) Fail(hash jcs.Hex32, why error) error {
	return p.change(hash, func(r *Receipt) { r.State, r.Fee, r.Error = Failed, 0, why.Error() })
}

// Credit notes that the seller says it was paid, of what somebody else was to pay.
func (p *Purse) Credit(hash jcs.Hex32) error {
	return p.change(hash, func(r *Receipt) { r.State, r.Fee, r.Error = Credited, 0, "" })
}

func (p *Purse) change(hash jcs.Hex32, f func(*Receipt)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.receipts[hash] == nil {
		return fmt.Errorf("purse: no invoice %x", hash)
	}
	r, err := p.read(receiptName(hash))
	if err != nil {
		return err
	}
	f(r)
	return p.put(r)
}

// Show notes that somebody is asked to pay it.
func (p *Purse) Show(hash jcs.Hex32) error {
	return p.change(hash, func(r *Receipt) { r.Shown = true })
}

// Newest returns the newest receipt of what was paid, or may have been; nil if there is
// none.
func (p *Purse) Newest() (*Receipt, error) {
	all := p.sorted()
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].state != Failed {
			return p.read(receiptName(all[i].hash))
		}
	}
	return nil, nil
}

// Spent returns the msat that were paid since a time, or may have been, with what it cost
// besides.
func (p *Purse) Spent(since time.Time) (msat uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.receipts {
		if r.state != Failed && r.at.After(since) {
			msat += r.msat + r.fee
		}
	}
	return msat
}

// Received returns the msat that arrived at the seller, as far as is known.
func (p *Purse) Received() (msat uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.receipts {
		if r.state == Paid || r.state == Credited {
			msat += r.msat
		}
	}
	return msat
}

// Payee returns who was paid first, or may have been; false if nobody was.
func (p *Purse) Payee() (payee [33]byte, ok bool) {
	for _, r := range p.sorted() {
		if r.state != Failed {
			return r.payee, true
		}
	}
	return payee, false
}

// InDoubt returns an invoice of which nobody knows whether it was paid.
func (p *Purse) InDoubt() (r Receipt, ok bool, err error) {
	for _, s := range p.sorted() {
		if s.state == Doubt {
			x, err := p.read(receiptName(s.hash))
			if err != nil {
				return r, false, err
			}
			return *x, true, nil
		}
	}
	return r, false, nil
}

// Receipts calls f for each, the oldest first, until it returns false.
func (p *Purse) Receipts(f func(r *Receipt, err error) bool) {
	for _, s := range p.sorted() {
		if !f(p.read(receiptName(s.hash))) {
			return
		}
	}
}

// sorted returns all, the oldest first.
func (p *Purse) sorted() (out []*summary) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.receipts {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *summary) int {
		return cmp.Or(a.at.Compare(b.at), strings.Compare(string(a.hash[:]), string(b.hash[:])))
	})
	return out
}
