package bolt11

import (
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
)

// Sign writes the invoice, signed by the node's key; Payee is not looked at.
func (v *Invoice) Sign(node *secp256k1.PrivateKey) (string, error) {
	prefix, err := v.prefix()
	if err != nil {
		return "", err
	}
	words, err := v.words()
	if err != nil {
		return "", err
	}
	hash := digest(prefix, words)
	compact := ecdsa.SignCompact(node, hash[:], true)
	sig := append(compact[1:], compact[0]-27-4)
	return joinText(prefix, append(words, toWords(sig)...)), nil
}

func (v *Invoice) prefix() (string, error) {
	for _, p := range prefixes {
		if p.network == v.Network {
			amount, err := v.amount()
			return p.prefix + amount, err
		}
	}
	return "", fmt.Errorf("%w: %q", ErrNetwork, v.Network)
}

// amount writes the amount with the largest letter that leaves it whole.
func (v *Invoice) amount() (string, error) {
	switch {
	case v.Msat == 0:
		return "", nil
	case v.Msat > MaxMsat:
		return "", fmt.Errorf("%w: %d msat are more than there is", ErrField, v.Msat)
	case v.Msat%msatPerBitcoin == 0:
		return strconv.FormatUint(v.Msat/msatPerBitcoin, 10), nil
	}
	for _, m := range multipliers {
		if v.Msat%m.msat == 0 {
			return strconv.FormatUint(v.Msat/m.msat, 10) + string(m.letter), nil
		}
	}
	return strconv.FormatUint(v.Msat, 10) + "0p", nil
}

// words writes time and fields, in the order of the standard's examples.
func (v *Invoice) words() ([]byte, error) {
	seconds := v.Time.Unix()
	if seconds < 0 || seconds >= 1<<(5*timeWords) {
		return nil, fmt.Errorf("%w: made at %v", ErrField, v.Time)
	}
	words := fixed(uint64(seconds), timeWords)
	field := func(typ byte, data []byte) {
		words = append(words, typ, byte(len(data)>>5), byte(len(data)&31))
		words = append(words, data...)
	}
	field(typeSecret, toWords(v.Secret[:]))
	field(typeHash, toWords(v.Hash[:]))
	switch d := []byte(v.Description); {
	case v.DescriptionHash != nil && len(d) > 0:
		return nil, fmt.Errorf("%w: a description and its hash", ErrField)
	case v.DescriptionHash != nil:
		field(typeDescriptionHash, toWords(v.DescriptionHash[:]))
	case len(d) > MaxDescription || !utf8.Valid(d):
		return nil, fmt.Errorf("%w: a description of %d bytes", ErrField, len(d))
	default:
		field(typeDescription, toWords(d))
	}
	if len(v.Metadata) > 0 {
		if len(v.Metadata) > MaxDescription {
			return nil, fmt.Errorf("%w: %d bytes of metadata", ErrField, len(v.Metadata))
		}
		field(typeMetadata, toWords(v.Metadata))
	}
	if v.Expiry != DefaultExpiry {
		if v.Expiry < time.Second {
			return nil, fmt.Errorf("%w: it expires after %v", ErrField, v.Expiry)
		}
		field(typeExpiry, shortest(uint64(v.Expiry/time.Second)))
	}
	if v.CLTV != DefaultCLTV {
		field(typeCLTV, shortest(v.CLTV))
	}
	if f := featureWords(v.Features); len(f) > 0 {
		field(typeFeatures, f)
	}
	return words, nil
}

// fixed writes a number as n words.
func fixed(number uint64, n int) (words []byte) {
	for i := range n {
		words = append(words, byte(number>>(5*(n-1-i))&31))
	}
	return words
}

// shortest writes a number as few words as it takes.
func shortest(number uint64) []byte {
	n := 0
	for m := number; m > 0; m >>= 5 {
		n++
	}
	return fixed(number, n)
}

// featureWords writes feature bits as few words as it takes.
func featureWords(b []byte) (words []byte) {
	for bit := 8*len(b) - 1; bit >= 0; bit-- {
		set := b[len(b)-1-bit/8]>>(bit%8)&1 != 0
		if words == nil && set {
			words = make([]byte, bit/5+1)
		}
		if set {
			words[len(words)-1-bit/5] |= 1 << (bit % 5)
		}
	}
	return words
}
