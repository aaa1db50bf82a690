package jcs

import (
	"encoding/hex"
	"fmt"
)

// Hex32 is 32 bytes that are hex in JSON.
type Hex32 [32]byte

// MarshalText implements [encoding.TextMarshaler].
func (h Hex32) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex32) UnmarshalText(b []byte) error { return decodeHex(h[:], b) }

// Same tells whether both are nil, or the same bytes.
func (h *Hex32) Same(o *Hex32) bool { return h == o || h != nil && o != nil && *h == *o }

// Hex33 is 33 bytes that are hex in JSON: a compressed public key of secp256k1.
type Hex33 [33]byte

// MarshalText implements [encoding.TextMarshaler].
func (h Hex33) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex33) UnmarshalText(b []byte) error { return decodeHex(h[:], b) }

// Hex64 is 64 bytes that are hex in JSON.
type Hex64 [64]byte

// MarshalText implements [encoding.TextMarshaler].
func (h Hex64) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (h *Hex64) UnmarshalText(b []byte) error { return decodeHex(h[:], b) }

func decodeHex(to, b []byte) error {
	if len(b) != 2*len(to) {
		return fmt.Errorf("%d hex digits, not %d", len(b), 2*len(to))
	}
	_, err := hex.Decode(to, b)
	return err
}
