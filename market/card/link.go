package card

import (
	"fmt"
	"strings"
)

// scheme begins a link.
const scheme = "dazaar:"

// zbase32 is the alphabet of z-base-32.
const zbase32 = "ybndrfg8ejkmcpqxot1uwisza345h769"

// linkDigits is how many digits a key has: 256 bits, 5 each, the last one padded.
const linkDigits = 52

// Link returns the link to a seller.
func Link(seller [32]byte) string {
	var b strings.Builder
	b.WriteString(scheme)
	acc, bits := uint(0), 0
	for _, v := range seller {
		acc = acc<<8 | uint(v)
		for bits += 8; bits >= 5; {
			bits -= 5
			b.WriteByte(zbase32[acc>>bits&31])
		}
		acc &= 1<<bits - 1
	}
	b.WriteByte(zbase32[acc<<(5-bits)&31])
	return b.String()
}

// ParseLink reads a link. The error wraps [ErrCard].
func ParseLink(s string) (seller [32]byte, err error) {
	digits, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return seller, fmt.Errorf("%w: %q does not begin with %s", ErrCard, s, scheme)
	}
	digits = strings.ToLower(strings.TrimPrefix(digits, "//"))
	if len(digits) != linkDigits {
		return seller, fmt.Errorf("%w: a link has %d letters and digits behind %s, not %d", ErrCard, linkDigits, scheme, len(digits))
	}
	acc, bits, n := uint(0), 0, 0
	for i := range len(digits) {
		v := strings.IndexByte(zbase32, digits[i])
		if v < 0 {
			return seller, fmt.Errorf("%w: %q in a link", ErrCard, digits[i])
		}
		acc = acc<<5 | uint(v)
		if bits += 5; bits >= 8 {
			bits -= 8
			seller[n] = byte(acc >> bits)
			n++
			acc &= 1<<bits - 1
		}
	}
	if acc != 0 {
		return [32]byte{}, fmt.Errorf("%w: the last letter of the link is wrong", ErrCard)
	}
	return seller, nil
}
