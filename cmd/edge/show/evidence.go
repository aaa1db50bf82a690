// Package show prints what a buyer has, and what that proves to others.
package show

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"dazaar-edge/market/card"
	"dazaar-edge/market/proof"
	"dazaar-edge/market/purse"
	"dazaar-edge/market/rows"
)

// ReceiptReport is what [Printer.Receipt] prints; docs/json.md explains it.
type ReceiptReport struct {
	OK       bool      `json:"ok"`
	Seller   string    `json:"seller"`
	Buyer    string    `json:"buyer"`
	Name     string    `json:"name"`
	Network  string    `json:"network"`
	Msat     uint64    `json:"msat,string"`
	Units    uint64    `json:"units"`
	Interval string    `json:"interval"`
	Unit     string    `json:"unit"`
	Amount   string    `json:"amount"` // satoshi for the interval
	Hash     string    `json:"hash"`
	Card     uint64    `json:"card"`
	Terms    string    `json:"terms,omitempty"`
	Accepted bool      `json:"accepted"` // the buyer's signature under the terms is there
	At       time.Time `json:"at"`       // as the buyer says
	// Named: the card names the key that was paid; else only the seller's signature
	// says that this invoice pays it.
	Named bool `json:"named"`
}

// Printer says where to print.
type Printer struct {
	Out, Err io.Writer
	JSON     bool // lines of JSON instead of words
}

// ErrUnproven says that something does not verify and that this was said.
var ErrUnproven = errors.New("does not verify")

// Receipt says what a receipt proves.
func (p Printer) Receipt(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	r, err := purse.ParseReceipt(b)
	var c *card.Card
	named := false
	if err == nil {
		c, named, err = r.Verify()
	}
	if err != nil {
		fmt.Fprintf(p.Err, "edge: %s: %v\n", name, err)
		return ErrUnproven
	}
	out := ReceiptReport{
		OK: true, Seller: hex.EncodeToString(r.Seller[:]), Buyer: hex.EncodeToString(r.Buyer[:]), Name: c.Name, Network: string(c.Network), Msat: r.Msat, Units: r.Invoice.Units,
		Hash: hex.EncodeToString(r.Invoice.Hash[:]), Card: c.Version, Accepted: r.Accepted != nil, At: r.At, Named: named,
	}
	if len(c.Payment) > 0 {
		out.Interval, out.Unit, out.Amount = c.Payment[0].Interval, c.Payment[0].Unit, c.Payment[0].Amount
	}
	if c.Terms != nil {
		out.Terms = c.Terms.SHA256
	}
	if p.JSON {
		return json.NewEncoder(p.Out).Encode(out)
	}
	fmt.Fprintf(p.Out, "buyer %s paid %d msat to seller %s (%q), at %s sat for %s %s, card version %d\n",
		out.Buyer, out.Msat, out.Seller, out.Name, out.Amount, out.Interval, out.Unit, out.Card)
	if out.Network != "bitcoin" {
		fmt.Fprintf(p.Out, "on %s: THIS MONEY IS WORTH NOTHING\n", out.Network)
	}
	if out.Accepted {
		fmt.Fprintf(p.Out, "the buyer signed the terms of use with SHA-256 %s\n", out.Terms)
	}
	if !named {
		fmt.Fprintln(p.Out, "the card does not name the key that was paid: that this invoice pays the seller is what the seller's signature says")
	}
	return nil
}

// ProofReport is what [Printer.Proof] prints; docs/json.md explains it.
type ProofReport struct {
	OK       bool   `json:"ok"`
	Seller   string `json:"seller"`
	Buyer    string `json:"buyer"`
	Name     string `json:"name,omitempty"`
	Blocks   uint64 `json:"blocks"`
	Bytes    uint64 `json:"bytes"`
	First    uint64 `json:"first"`
	Last     uint64 `json:"last"`
	Missing  uint64 `json:"missing"`
	Forks    int    `json:"forks"`
	Unproven uint64 `json:"unproven"`
	Broken   int    `json:"broken"`
	Burnable bool   `json:"burnable"`
	Burned   *bool  `json:"burned,omitempty"` // as the network says, if it was asked
}

// Proof says what a file of proofs proves, and writes the readings to a new file, if its
// name is not "". burned, if it is not nil, tells whether one of some keys was burned.
func (p Printer) Proof(name, out string, burned func(signers [][32]byte) (bool, error)) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	block := func(uint64, []byte) error { return nil }
	if out != "" {
		if _, err := os.Stat(out); err == nil {
			return fmt.Errorf("--out %s: it is there: what was verified goes into a new file", out)
		}
		part := out + ".part"
		os.Remove(part) //nolint:errcheck // of a try before, if it is there
		w, err := rows.New(rows.Config{File: part})
		if err == nil {
			err = w.Resume(0, "")
		}
		if err != nil {
			return fmt.Errorf("--out %w", err)
		}
		defer func() {
			_, _, e := w.Sync()
			if err = errors.Join(err, e, w.Close()); err == nil {
				err = os.Rename(part, out)
			} else {
				os.Remove(part) //nolint:errcheck // it proves nothing
			}
		}()
		block = w.Block
	}
	sum, err := proof.Verify(f, block)
	if errors.Is(err, proof.ErrUnproven) {
		fmt.Fprintf(p.Err, "edge: %s: %v\n", name, err)
		return ErrUnproven
	} else if err != nil {
		return err
	}
	shown := ProofReport{
		OK: true, Seller: hex.EncodeToString(sum.Seller[:]), Buyer: hex.EncodeToString(sum.Buyer[:]), Blocks: sum.Blocks, Bytes: sum.Bytes,
		First: sum.First, Last: sum.Last, Missing: sum.Missing, Forks: sum.Forks, Unproven: sum.Unproven, Broken: sum.Broken,
	}
	if sum.Card != nil {
		shown.Name, shown.Burnable = sum.Card.Name, sum.Card.Burnable
	}
	if burned != nil {
		is, e := burned(sum.Signers)
		if e != nil {
			return e
		}
		shown.Burned = &is
		if shown.OK = !is; is {
			fmt.Fprintf(p.Err, "edge: %s: the secret of this feed was published: anybody could have signed this\n", name)
			defer func() { err = errors.Join(err, ErrUnproven) }()
		}
	}
	if p.JSON {
		return json.NewEncoder(p.Out).Encode(shown)
	}
	fmt.Fprintf(p.Out, "seller %s (%q) signed %d blocks, %d to %d, for buyer %s\n", shown.Seller, shown.Name, shown.Blocks, shown.First, shown.Last, shown.Buyer)
	if shown.Missing > 0 {
		fmt.Fprintf(p.Out, "%d blocks between them are not in the file\n", shown.Missing)
	}
	if shown.Forks > 0 {
		fmt.Fprintf(p.Out, "the seller replaced blocks %d times: what was replaced is in the file, too\n", shown.Forks)
	}
	if shown.Burnable && shown.Burned == nil {
		fmt.Fprintln(p.Out, "the seller may publish this feed's secret (edge revoke --burn): if it did, anybody could have signed this")
	}
	if shown.Burned != nil && !*shown.Burned {
		fmt.Fprintln(p.Out, "the network knows of no burn of its keys: it is told of one for 30 days")
	}
	if shown.Unproven > 0 {
		fmt.Fprintf(p.Out, "%d more are in the file without a signature: edge buy was not ended in order\n", shown.Unproven)
	}
	return nil
}
