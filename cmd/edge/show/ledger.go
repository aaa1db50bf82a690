package show

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"dazaar-edge/market/purse"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/storage/durable"
)

// Daily prints what came in on each day.
func (p Printer) Daily(all []ledger.Row) error {
	for _, d := range ledger.Daily(all) {
		if p.JSON {
			if err := json.NewEncoder(p.Out).Encode(d); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(p.Out, "%s %s: %d payments of %d buyers, %d msat\n", d.Day, d.Offer, d.Payments, d.Buyers, d.Msat)
	}
	return nil
}

// Bought prints receipts: those of the seller whose state is in dir, or, if that is "", of
// all in base.
func (p Printer) Bought(dir, base string) error {
	dirs := []string{dir}
	if dir == "" {
		entries, err := os.ReadDir(base)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		dirs = nil
		for _, e := range entries {
			dirs = append(dirs, filepath.Join(base, e.Name()))
		}
	}
	n, paid, fees := 0, uint64(0), uint64(0)
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("--state %s: there is no such directory", dir)
		}
		book, err := purse.Open(durable.OS(), dir)
		if err != nil {
			return err
		}
		var failed error
		book.Receipts(func(r *purse.Receipt, err error) bool {
			if failed = err; err != nil {
				return false
			}
			n++
			if r.State == purse.Paid || r.State == purse.Credited {
				paid += r.Msat
				fees += r.Fee
			}
			if p.JSON {
				failed = json.NewEncoder(p.Out).Encode(r)
				return failed == nil
			}
			fmt.Fprintf(p.Out, "%s %x… %s %d msat", r.At.Format(time.RFC3339), r.Seller[:4], r.State, r.Msat)
			if r.Fee > 0 {
				fmt.Fprintf(p.Out, ", fee %d", r.Fee)
			}
			fmt.Fprintln(p.Out)
			return true
		})
		if failed != nil {
			return failed
		}
	}
	if !p.JSON {
		fmt.Fprintf(p.Out, "%d invoices, %d msat paid, %d msat of fees\n", n, paid, fees)
	}
	return nil
}
