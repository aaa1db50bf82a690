//go:build e2e

package bolt11

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

var differential = flag.Int("invoices", 20_000, "how many invoices TestZpay compares")

// zpay is lnd's own codec, as test/lightning/zpay says it.
type zpay struct {
	Error, Network, Payee, Hash, Secret string
	Description, DescriptionHash        string
	Time, Expiry                        int64
	CLTV, Msat                          uint64
}

// hints are what lnd says of fields that only a payer's node reads, ways to the payee, or
// of bits behind the last byte of one: who pays hears of it from his node.
var hints = map[string]bool{
	"length is not a multiple of hop hint length": true, "EOF": true, "unexpected EOF": true, "invalid incomplete group": true,
	"empty fallback address field": true,
}

// lndCLTV is what lnd takes where an invoice does not say it; BOLT 11 has 18.
const lndCLTV = 24

// TestZpay compares with lnd's codec: random invoices, and such that were changed behind
// the checksum, half of them signed again. What we take it takes, too, and reads the same.
// What it takes and we do not is counted by why.
func TestZpay(t *testing.T) {
	cmd := exec.Command(os.Getenv("ZPAY"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal("ZPAY names the program, make lightning does: ", err)
	}
	defer cmd.Wait() //nolint:errcheck // it ends with its input
	defer in.Close()
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	ask := func(text string) (z zpay) {
		if _, err := in.Write([]byte(text + "\n")); err != nil || !lines.Scan() {
			t.Fatal("zpay ended: ", err)
		}
		if err := json.Unmarshal(lines.Bytes(), &z); err != nil {
			t.Fatal(err)
		}
		return z
	}
	r := rand.New(rand.NewPCG(11, 11))
	stricter, laxer, both, neither := map[string]int{}, map[string]int{}, 0, 0
	for range *differential {
		text := randomInvoice(t, r)
		v, err := Parse(text)
		z := ask(text)
		switch {
		case err != nil && z.Error != "":
			neither++
			continue
		case err != nil:
			why, _, _ := strings.Cut(strings.TrimPrefix(err.Error(), "bolt11: "), ",")
			stricter[why]++
			continue
		case hints[z.Error]:
			laxer[z.Error]++
			continue
		case z.Error != "":
			t.Errorf("we take %s, and lnd does not: %s", text, z.Error)
			continue
		}
		both++
		hash := ""
		if v.DescriptionHash != nil {
			hash = hex.EncodeToString(v.DescriptionHash[:])
		}
		names := map[Network]string{Bitcoin: "mainnet", Testnet: "testnet3", Signet: "signet", Regtest: "regtest"}
		got := zpay{
			Network: names[v.Network], Payee: hex.EncodeToString(v.Payee[:]), Hash: hex.EncodeToString(v.Hash[:]), Secret: hex.EncodeToString(v.Secret[:]),
			Description: v.Description, DescriptionHash: hash, Time: v.Time.Unix(), Expiry: int64(v.Expiry / time.Second), CLTV: v.CLTV, Msat: v.Msat,
		}
		if v.CLTV == DefaultCLTV && z.CLTV == lndCLTV {
			z.CLTV = DefaultCLTV
		}
		if got != z {
			t.Errorf("%s: we read\n%+v, lnd\n%+v", text, got, z)
		}
	}
	t.Logf("both take %d, neither %d; lnd takes and we do not: %v; we take and lnd does not: %v", both, neither, stricter, laxer)
	if both < *differential/4 {
		t.Error("too few are taken")
	}
}

// randomInvoice returns one whose checksum is right.
func randomInvoice(t *testing.T, r *rand.Rand) string {
	t.Helper()
	bytes := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	v := Invoice{
		Network: prefixes[r.IntN(len(prefixes))].network, Time: time.Unix(r.Int64N(1<<35), 0), Expiry: time.Duration(1+r.IntN(1<<20)) * time.Second,
		Hash: [32]byte(bytes(32)), Secret: [32]byte(bytes(32)), CLTV: uint64(r.IntN(1 << 12)), Features: []byte{0x41, 0},
	}
	if v.CLTV == 0 {
		v.CLTV = DefaultCLTV
	}
	switch r.IntN(4) {
	case 0:
	case 1:
		v.Msat = uint64(r.IntN(1e6)) + 1
	default:
		v.Msat = (uint64(r.IntN(1e6)) + 1) * []uint64{1, 100, 1000, 1e5, 1e8}[r.IntN(5)]
	}
	if r.IntN(3) == 0 {
		v.DescriptionHash = (*[32]byte)(bytes(32))
	} else {
		v.Description = strings.Repeat("ü", r.IntN(60))
	}
	key := secp256k1.PrivKeyFromBytes(bytes(32))
	text, err := v.Sign(key)
	if err != nil {
		t.Fatalf("%+v: %v", v, err)
	}
	if r.IntN(3) == 0 {
		return text
	}
	prefix, words, err := splitText(text)
	if err != nil {
		t.Fatal(err)
	}
	signed := words[:len(words)-signatureWords]
	for range 1 + r.IntN(3) {
		switch i := r.IntN(len(signed)); r.IntN(4) {
		case 0:
			signed[i] = byte(r.IntN(32))
		case 1: // the type of a field, most likely
			signed[timeWords] = byte(r.IntN(32))
		case 2: // a field that may be unknown, or there already
			data := toWords(bytes(r.IntN(40)))
			signed = append(append(signed[:len(signed):len(signed)], byte(r.IntN(32)), byte(len(data)>>5), byte(len(data)&31)), data...)
		case 3:
			words[len(words)-1-r.IntN(signatureWords)] ^= byte(1 << r.IntN(5))
		}
	}
	sig := words[len(words)-signatureWords:]
	if r.IntN(2) == 0 {
		hash := digest(prefix, signed)
		compact := ecdsa.SignCompact(key, hash[:], true)
		sig = toWords(append(compact[1:], compact[0]-27-4))
	}
	return joinText(prefix, append(signed[:len(signed):len(signed)], sig...))
}
