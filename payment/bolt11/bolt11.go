// Package bolt11 reads, checks and writes Lightning invoices.
//
//	lnbc2500u 1 timestamp, tagged fields, signature, checksum
//
// in bech32: a prefix with network and amount, then words of 5 bits. A field is a
// type in one word, a length in two, and as many words. The signature is over
// SHA-256 of the prefix and all words before it, padded to whole bytes.
//
// A signature that is right proves little: recovery gives some key for any
// signature. Who pays must compare [Invoice.Payee] with whom he means to pay.
//
// Source: BOLT 11, BIP 173.
package bolt11

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// Errors that [Parse] wraps.
var (
	ErrText      = errors.New("bolt11: not an invoice")
	ErrField     = errors.New("bolt11: bad field")
	ErrSignature = errors.New("bolt11: the signature does not verify")
	ErrNetwork   = errors.New("bolt11: unknown network")
)

// Network is a chain, by the name that configurations use.
type Network string

// Networks.
const (
	Bitcoin Network = "bitcoin"
	Testnet Network = "testnet"
	Signet  Network = "signet"
	Regtest Network = "regtest"
)

// prefixes of the networks, those that begin another one behind it.
var prefixes = [...]struct {
	prefix  string
	network Network
}{{"lnbcrt", Regtest}, {"lnbc", Bitcoin}, {"lntbs", Signet}, {"lntb", Testnet}}

// Defaults of fields that are not there.
const (
	DefaultExpiry = time.Hour
	DefaultCLTV   = 18
)

// Limits.
const (
	// MaxText is the longest invoice that is read.
	MaxText = 8192
	// MaxDescription is the longest description, in bytes.
	MaxDescription = 639
	// MaxMsat bounds amounts: all bitcoin there will be.
	MaxMsat = 21e6 * 1e11
)

// Invoice is what an invoice says.
type Invoice struct {
	Network Network
	Msat    uint64    // 0 leaves the amount to the payer
	Time    time.Time // when it was made, in whole seconds
	Expiry  time.Duration
	Hash    [32]byte // of the preimage
	Secret  [32]byte
	// Description says what is paid for; DescriptionHash is its SHA-256 if it is
	// not in the invoice itself.
	Description     string
	DescriptionHash *[32]byte
	Payee           [33]byte // public key of the node that is paid, compressed
	CLTV            uint64   // min_final_cltv_expiry_delta
	Features        []byte   // big endian; bit 0 is the last one
	Metadata        []byte
}

// ExpiresAt is when it can no longer be paid.
func (v *Invoice) ExpiresAt() time.Time { return v.Time.Add(v.Expiry) }

// Types of fields.
const (
	typeHash            = 1
	typeRoute           = 3
	typeFeatures        = 5
	typeExpiry          = 6
	typeFallback        = 9
	typeDescription     = 13
	typeSecret          = 16
	typePayee           = 19
	typeDescriptionHash = 23
	typeCLTV            = 24
	typeMetadata        = 27
)

const (
	timeWords      = 7
	signatureWords = 104
	hashWords      = 52
	keyWords       = 53
)

// known are the even feature bits that a payer of ours need not understand to check
// an invoice: those of BOLT 9 that may stand in one.
const known uint64 = 1<<8 | 1<<14 | 1<<16 | 1<<24 | 1<<48

// Parse reads an invoice, with or without "lightning:", and checks all of it but
// whom and what it is for.
func Parse(text string) (*Invoice, error) {
	text = strings.TrimSpace(text)
	if n := len("lightning:"); len(text) > n && strings.EqualFold(text[:n], "lightning:") {
		text = text[n:]
	}
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: %d characters", ErrText, len(text))
	}
	prefix, words, err := splitText(text)
	if err != nil {
		return nil, err
	}
	v := &Invoice{Expiry: DefaultExpiry, CLTV: DefaultCLTV}
	if err := v.parsePrefix(prefix); err != nil {
		return nil, err
	}
	if len(words) < timeWords+signatureWords {
		return nil, fmt.Errorf("%w: it is too short", ErrText)
	}
	signed, sig := words[:len(words)-signatureWords], words[len(words)-signatureWords:]
	seconds, _ := number(signed[:timeWords])
	v.Time = time.Unix(int64(seconds), 0)
	payee, err := v.parseFields(signed[timeWords:])
	if err != nil {
		return nil, err
	}
	return v, v.verify(digest(prefix, signed), sig, payee)
}

// parsePrefix reads network and amount.
func (v *Invoice) parsePrefix(prefix string) error {
	for _, p := range prefixes {
		if amount, ok := strings.CutPrefix(prefix, p.prefix); ok && (amount == "" || amount[0] >= '0' && amount[0] <= '9') {
			v.Network = p.network
			return v.parseAmount(amount)
		}
	}
	return fmt.Errorf("%w: %q", ErrNetwork, prefix)
}

// msatPerBitcoin, and what the letters behind an amount divide it by.
const msatPerBitcoin = 1e11

var multipliers = [...]struct {
	letter byte
	msat   uint64 // that one is worth; a pico is a tenth of one
}{{'m', msatPerBitcoin / 1e3}, {'u', msatPerBitcoin / 1e6}, {'n', msatPerBitcoin / 1e9}}

func (v *Invoice) parseAmount(s string) error {
	if s == "" {
		return nil
	}
	digits, unit, pico := s, uint64(msatPerBitcoin), false
	if last := s[len(s)-1]; last == 'p' {
		digits, unit, pico = s[:len(s)-1], 1, true
	} else {
		for _, m := range multipliers {
			if last == m.letter {
				digits, unit = s[:len(s)-1], m.msat
			}
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || digits[0] == '+' || digits[0] == '0' {
		return fmt.Errorf("%w: amount %q", ErrField, s)
	}
	if pico {
		if n%10 != 0 {
			return fmt.Errorf("%w: amount %q is no whole number of millisatoshi", ErrField, s)
		}
		n /= 10
	}
	if n > MaxMsat/unit {
		return fmt.Errorf("%w: amount %q is more than there is", ErrField, s)
	}
	v.Msat = n * unit
	return nil
}

// number reads words as a big-endian number. It tells whether that is as short as
// it can be.
func number(words []byte) (n uint64, minimal bool) {
	for _, w := range words {
		if n >= 1<<58 {
			return 0, false
		}
		n = n<<5 | uint64(w)
	}
	return n, len(words) == 0 || words[0] != 0
}

// parseFields reads the tagged fields. It returns the payee's key if it is there.
func (v *Invoice) parseFields(words []byte) (payee []byte, err error) {
	seen := map[byte]bool{}
	for len(words) > 0 {
		if len(words) < 3 || len(words)-3 < int(words[1])<<5+int(words[2]) {
			return nil, fmt.Errorf("%w: type %d ends too early", ErrField, words[0])
		}
		typ, data := words[0], words[3:][:int(words[1])<<5+int(words[2])]
		words = words[3+len(data):]
		// One of a wrong length is passed over, as the examples of the standard
		// have it; then it is not there.
		switch typ {
		case typeHash, typeSecret, typeDescriptionHash:
			if len(data) != hashWords {
				continue
			}
		case typePayee:
			if len(data) != keyWords {
				continue
			}
		case typeDescription, typeExpiry, typeCLTV, typeFeatures, typeMetadata:
		default:
			continue
		}
		if seen[typ] {
			return nil, fmt.Errorf("%w: type %d is there twice", ErrField, typ)
		}
		seen[typ] = true
		if typ == typePayee {
			payee, _, _ = toBytes(data)
		} else if err := v.parseField(typ, data); err != nil {
			return nil, err
		}
	}
	switch {
	case !seen[typeHash]:
		return nil, fmt.Errorf("%w: no payment hash", ErrField)
	case !seen[typeSecret]:
		return nil, fmt.Errorf("%w: no payment secret", ErrField)
	case seen[typeDescription] == seen[typeDescriptionHash]:
		return nil, fmt.Errorf("%w: a description or its hash must be there, and not both", ErrField)
	}
	return payee, nil
}

func (v *Invoice) parseField(typ byte, data []byte) error {
	b, _, _ := toBytes(data)
	switch typ {
	case typeHash:
		v.Hash = [32]byte(b)
	case typeSecret:
		v.Secret = [32]byte(b)
	case typeDescriptionHash:
		v.DescriptionHash = (*[32]byte)(b)
	case typeDescription:
		if !utf8.Valid(b) {
			return fmt.Errorf("%w: the description is no text", ErrField)
		}
		v.Description = string(b)
	case typeMetadata:
		v.Metadata = b
	case typeExpiry, typeCLTV:
		n, minimal := number(data)
		if !minimal || n > 1<<31 {
			return fmt.Errorf("%w: number of type %d", ErrField, typ)
		}
		if typ == typeCLTV {
			v.CLTV = n
		} else {
			v.Expiry = time.Duration(n) * time.Second
		}
	case typeFeatures:
		return v.parseFeatures(data)
	}
	return nil
}

// parseFeatures reads feature bits; the last word has bits 4 to 0.
func (v *Invoice) parseFeatures(words []byte) error {
	if len(words) == 0 || words[0] == 0 {
		return fmt.Errorf("%w: features", ErrField)
	}
	v.Features = make([]byte, (5*len(words)+7)/8)
	for i, w := range words {
		for k := range 5 {
			bit := 5*(len(words)-1-i) + k
			if w>>k&1 == 0 {
				continue
			}
			if bit%2 == 0 && (bit > 63 || known>>bit&1 == 0) {
				return fmt.Errorf("%w: feature %d must be understood", ErrField, bit)
			}
			v.Features[len(v.Features)-1-bit/8] |= 1 << (bit % 8)
		}
	}
	if v.Features[0] == 0 {
		v.Features = v.Features[1:]
	}
	return nil
}

// digest is what is signed.
func digest(prefix string, words []byte) [32]byte {
	b, left, n := toBytes(words)
	if n > 0 {
		b = append(b, left)
	}
	return sha256.Sum256(append([]byte(prefix), b...))
}

// verify checks the signature, and finds the payee's key or compares it.
func (v *Invoice) verify(hash [32]byte, words, payee []byte) error {
	sig, _, _ := toBytes(words) // 65 bytes
	if sig[64] > 3 {
		return fmt.Errorf("%w: recovery id %d", ErrSignature, sig[64])
	}
	compact := append([]byte{27 + 4 + sig[64]}, sig[:64]...)
	key, _, err := ecdsa.RecoverCompact(compact, hash[:])
	if payee != nil {
		// The signature must then be of the one form that has a small S.
		var r, s secp256k1.ModNScalar
		if r.SetByteSlice(sig[:32]) || s.SetByteSlice(sig[32:64]) || s.IsOverHalfOrder() {
			return fmt.Errorf("%w: it is not canonical", ErrSignature)
		}
		if key, err = secp256k1.ParsePubKey(payee); err == nil && !ecdsa.NewSignature(&r, &s).Verify(hash[:], key) {
			err = errors.New("it is another key's")
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	v.Payee = [33]byte(key.SerializeCompressed())
	return nil
}
