package bolt11

import (
	"fmt"
	"strings"
)

const alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

// checksum of the words behind a prefix; a valid text has 1.
func checksum(prefix string, words []byte) uint32 {
	c := uint32(1)
	step := func(v byte) {
		top := c >> 25
		c = c&0x1ffffff<<5 ^ uint32(v)
		for i, g := range [...]uint32{0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3} {
			if top>>i&1 != 0 {
				c ^= g
			}
		}
	}
	for _, ch := range []byte(prefix) {
		step(ch >> 5)
	}
	step(0)
	for _, ch := range []byte(prefix) {
		step(ch & 31)
	}
	for _, w := range words {
		step(w)
	}
	return c
}

const checkWords = 6

// splitText takes a bech32 text apart (BIP 173, without its limit of 90
// characters): what stands before the last 1, and the words of 5 bits behind it.
func splitText(s string) (prefix string, words []byte, err error) {
	if strings.ToLower(s) != s && strings.ToUpper(s) != s {
		return "", nil, fmt.Errorf("%w: large and small letters", ErrText)
	}
	s = strings.ToLower(s)
	at := strings.LastIndexByte(s, '1')
	if at < 1 || len(s)-at-1 < checkWords {
		return "", nil, fmt.Errorf("%w: it is too short", ErrText)
	}
	for i, ch := range []byte(s) {
		if ch < 33 || ch > 126 {
			return "", nil, fmt.Errorf("%w: character %d", ErrText, i+1)
		}
		if i <= at {
			continue
		}
		w := strings.IndexByte(alphabet, ch)
		if w < 0 {
			return "", nil, fmt.Errorf("%w: character %d is %q", ErrText, i+1, ch)
		}
		words = append(words, byte(w))
	}
	prefix = s[:at]
	if checksum(prefix, words) != 1 {
		return "", nil, fmt.Errorf("%w: the checksum is not right, a character is wrong", ErrText)
	}
	return prefix, words[:len(words)-checkWords], nil
}

// joinText is the bech32 text of a prefix and words.
func joinText(prefix string, words []byte) string {
	var zeros [checkWords]byte
	sum := checksum(prefix, append(words[:len(words):len(words)], zeros[:]...)) ^ 1
	var b strings.Builder
	b.WriteString(prefix)
	b.WriteByte('1')
	for _, w := range words {
		b.WriteByte(alphabet[w])
	}
	for i := range checkWords {
		b.WriteByte(alphabet[sum>>(5*(checkWords-1-i))&31])
	}
	return b.String()
}

// toBytes packs words into whole bytes. What is left over, n bits, is returned as
// the upper ones of a byte.
func toBytes(words []byte) (b []byte, left byte, n int) {
	acc, bits := uint(0), 0
	for _, w := range words {
		acc = acc<<5 | uint(w)
		if bits += 5; bits >= 8 {
			bits -= 8
			b = append(b, byte(acc>>bits))
		}
		acc &= 1<<bits - 1
	}
	return b, byte(acc << (8 - bits)), bits
}

// toWords splits bytes into words; the last one is padded with zeros.
func toWords(b []byte) (words []byte) {
	acc, bits := uint(0), 0
	for _, v := range b {
		acc = acc<<8 | uint(v)
		for bits += 8; bits >= 5; {
			bits -= 5
			words = append(words, byte(acc>>bits&31))
		}
		acc &= 1<<bits - 1
	}
	if bits > 0 {
		words = append(words, byte(acc<<(5-bits)&31))
	}
	return words
}
