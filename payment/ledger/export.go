package ledger

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/hex"
	"io"
	"slices"
	"strconv"
	"time"

	"dazaar-edge/protocol/jcs"
)

// Sort puts invoices in the order in which they were made.
func Sort(rows []Row) {
	slices.SortFunc(rows, func(a, b Row) int { return cmp.Or(a.Made.Compare(b.Made), bytes.Compare(a.Hash[:], b.Hash[:])) })
}

// csvColumns are the first line of [WriteCSV].
var csvColumns = [...]string{"made", "settled", "feed", "buyer", "state", "asked_msat", "paid_msat", "gateway", "hash", "card", "unit", "interval", "amount_msat"}

// WriteCSV writes invoices as comma-separated values (RFC 4180), with a first line that
// names the columns. Times are RFC 3339 in UTC; amounts are in msat.
func WriteCSV(w io.Writer, rows []Row) error {
	out := csv.NewWriter(w)
	out.Write(csvColumns[:]) //nolint:errcheck // Error tells
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	for _, r := range rows {
		settled := ""
		if r.SettledAt != nil {
			settled = r.SettledAt.UTC().Format(time.RFC3339)
		}
		out.Write([]string{ //nolint:errcheck // as above
			r.Made.UTC().Format(time.RFC3339), settled, r.Offer, hex.EncodeToString(r.Buyer[:]), string(r.State), number(r.Msat), number(r.Paid), r.Gateway,
			hex.EncodeToString(r.Hash[:]), number(r.Card), r.Price.Unit.String(), number(r.Price.Interval), number(r.Price.Amount),
		})
	}
	out.Flush()
	return out.Error()
}

// Day is what came in on a day, in UTC, for an offer.
type Day struct {
	Day      string `json:"day"` // 2026-11-21
	Offer    string `json:"feed"`
	Payments int    `json:"payments"`
	Buyers   int    `json:"buyers"`
	Msat     uint64 `json:"msat,string"`
}

// Daily sums up what was paid, by the day on which this side saw it, and by offer.
func Daily(rows []Row) (out []Day) {
	type key struct{ day, offer string }
	days := map[key]*Day{}
	buyers := map[key]map[jcs.Hex32]bool{}
	for _, r := range rows {
		if r.State != Settled || r.SettledAt == nil {
			continue
		}
		k := key{r.SettledAt.UTC().Format(time.DateOnly), r.Offer}
		if days[k] == nil {
			days[k], buyers[k] = &Day{Day: k.day, Offer: k.offer}, map[jcs.Hex32]bool{}
		}
		days[k].Payments++
		days[k].Msat += r.Paid
		buyers[k][r.Buyer] = true
	}
	for k, d := range days {
		d.Buyers = len(buyers[k])
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Day) int { return cmp.Or(cmp.Compare(a.Day, b.Day), cmp.Compare(a.Offer, b.Offer)) })
	return out
}
