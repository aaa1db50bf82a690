package nostr

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// Key is a secret key.
type Key struct {
	d  secp256k1.ModNScalar // that of the point with the even y coordinate
	px [32]byte             // its x coordinate
}

// ParseKey reads a secret key in hex.
func ParseKey(text string) (*Key, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != 32 {
		return nil, errors.New("nostr: a secret key has 64 hex digits")
	}
	k := &Key{}
	if k.d.SetByteSlice(b) || k.d.IsZero() {
		return nil, errors.New("nostr: this number is no secret key")
	}
	p := multiply(&k.d)
	if p.Y.IsOdd() {
		k.d.Negate()
	}
	p.X.PutBytes(&k.px)
	return k, nil
}

// Public returns the public key in hex.
func (k *Key) Public() string { return hex.EncodeToString(k.px[:]) }

// multiply returns d times the generator, with coordinates that are normal.
func multiply(d *secp256k1.ModNScalar) (p secp256k1.JacobianPoint) {
	secp256k1.ScalarBaseMultNonConst(d, &p)
	p.ToAffine()
	return p
}

// tagged is the hash of BIP-340.
func tagged(tag string, parts ...[]byte) [32]byte {
	t := sha256.Sum256([]byte(tag))
	h := sha256.New()
	h.Write(t[:])
	h.Write(t[:])
	for _, b := range parts {
		h.Write(b)
	}
	return [32]byte(h.Sum(nil))
}

// sign signs a message of 32 bytes (BIP-340).
func (k *Key) sign(message [32]byte) ([64]byte, error) {
	var aux [32]byte
	if _, err := rand.Read(aux[:]); err != nil {
		return [64]byte{}, err
	}
	return k.signWith(message, aux)
}

// signWith is sign with what is random.
func (k *Key) signWith(message, aux [32]byte) (sig [64]byte, err error) {
	masked, mask := k.d.Bytes(), tagged("BIP0340/aux", aux[:])
	for i := range masked {
		masked[i] ^= mask[i]
	}
	nonce := tagged("BIP0340/nonce", masked[:], k.px[:], message[:])
	var n, e secp256k1.ModNScalar
	n.SetBytes(&nonce)
	if n.IsZero() {
		return sig, errors.New("nostr: no nonce")
	}
	r := multiply(&n)
	if r.Y.IsOdd() {
		n.Negate()
	}
	rx := r.X.Bytes()
	challenge := tagged("BIP0340/challenge", rx[:], k.px[:], message[:])
	e.SetBytes(&challenge)
	s := e.Mul(&k.d).Add(&n).Bytes()
	copy(sig[:32], rx[:])
	copy(sig[32:], s[:])
	return sig, nil
}

// lift returns the point with this x coordinate and an even y.
func lift(x [32]byte) (p secp256k1.JacobianPoint, ok bool) {
	if p.X.SetByteSlice(x[:]) || !secp256k1.DecompressY(&p.X, false, &p.Y) {
		return p, false
	}
	p.Y.Normalize()
	p.Z.SetInt(1)
	return p, true
}

// verify checks a signature of a message of 32 bytes (BIP-340).
func verify(key, message [32]byte, sig [64]byte) bool {
	p, ok := lift(key)
	var s, e secp256k1.ModNScalar
	var rx secp256k1.FieldVal
	if !ok || rx.SetByteSlice(sig[:32]) || s.SetByteSlice(sig[32:]) {
		return false
	}
	challenge := tagged("BIP0340/challenge", sig[:32], key[:], message[:])
	e.SetBytes(&challenge)
	e.Negate()
	var a, b, r secp256k1.JacobianPoint
	secp256k1.ScalarBaseMultNonConst(&s, &a)
	secp256k1.ScalarMultNonConst(&e, &p, &b)
	secp256k1.AddNonConst(&a, &b, &r)
	if r.X.IsZero() && r.Y.IsZero() || r.Z.IsZero() {
		return false
	}
	r.ToAffine()
	return !r.Y.IsOdd() && r.X.Equals(&rx)
}

// shared returns the x coordinate that both keys lead to.
func (k *Key) shared(peer string) (x [32]byte, err error) {
	b, err := hex.DecodeString(peer)
	if err != nil || len(b) != 32 {
		return x, errors.New("nostr: a public key has 64 hex digits")
	}
	p, ok := lift([32]byte(b))
	if !ok {
		return x, errors.New("nostr: this is no public key")
	}
	var r secp256k1.JacobianPoint
	secp256k1.ScalarMultNonConst(&k.d, &p, &r)
	r.ToAffine()
	r.X.PutBytes(&x)
	return x, nil
}
