// Command zpay reads invoices with lnd's own codec: a line with an invoice on standard
// input is a line of JSON on standard output, with what it says or with an error.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"

	"github.com/btcsuite/btcd/chaincfg"
	"github.com/lightningnetwork/lnd/zpay32"
)

// networks are those of invoices, by their prefixes.
var networks = []struct {
	prefix string
	params *chaincfg.Params
}{{"lnbcrt", &chaincfg.RegressionNetParams}, {"lntbs", &chaincfg.SigNetParams}, {"lntb", &chaincfg.TestNet3Params}, {"lnbc", &chaincfg.MainNetParams}}

func main() {
	out := bufio.NewWriter(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		json.NewEncoder(out).Encode(read(lines.Text())) //nolint:errcheck // the reader is gone
		out.Flush()
	}
}

func read(text string) map[string]any {
	for _, n := range networks {
		if !strings.HasPrefix(strings.ToLower(text), n.prefix) {
			continue
		}
		v, err := zpay32.Decode(text, n.params)
		if err != nil {
			return map[string]any{"error": err.Error()}
		}
		m := map[string]any{
			"network": n.params.Name, "time": v.Timestamp.Unix(), "expiry": int64(v.Expiry().Seconds()), "cltv": v.MinFinalCLTVExpiry(),
			"payee": hex.EncodeToString(v.Destination.SerializeCompressed()),
		}
		if v.MilliSat != nil {
			m["msat"] = uint64(*v.MilliSat)
		}
		if v.PaymentHash != nil {
			m["hash"] = hex.EncodeToString(v.PaymentHash[:])
		}
		if v.Description != nil {
			m["description"] = *v.Description
		}
		if v.DescriptionHash != nil {
			m["descriptionHash"] = hex.EncodeToString(v.DescriptionHash[:])
		}
		v.PaymentAddr.WhenSome(func(a [32]byte) { m["secret"] = hex.EncodeToString(a[:]) })
		return m
	}
	return map[string]any{"error": "unknown network"}
}
