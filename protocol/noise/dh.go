package noise

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	flynn "github.com/flynn/noise"
)

// ErrPoint says that a public key is none that may be used: not canonical, of
// small order, or outside the prime-order subgroup.
var ErrPoint = errors.New("noise: public key is not a point of the prime-order group")

// order is the group order L, less one, as a scalar: -1.
func minusOne() *edwards25519.Scalar {
	one, _ := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	return edwards25519.NewScalar().Negate(one)
}

// parsePoint decodes a public key as libsodium's scalar multiplication does.
func parsePoint(b []byte) (*edwards25519.Point, error) {
	p, err := new(edwards25519.Point).SetBytes(b)
	if err != nil || !bytes.Equal(p.Bytes(), b) {
		return nil, ErrPoint
	}
	if new(edwards25519.Point).MultByCofactor(p).Equal(edwards25519.NewIdentityPoint()) == 1 {
		return nil, ErrPoint
	}
	// P is in the subgroup iff (L-1)P = -P.
	q := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(minusOne(), p, edwards25519.NewScalar())
	if q.Add(q, p).Equal(edwards25519.NewIdentityPoint()) != 1 {
		return nil, ErrPoint
	}
	return p, nil
}

// DH returns the product of the point public and the secret scalar of an
// Ed25519 seed, compressed. It fails with [ErrPoint].
func DH(seed, public []byte) ([]byte, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("noise: a seed has %d bytes, this one has %d", ed25519.SeedSize, len(seed))
	}
	p, err := parsePoint(public)
	if err != nil {
		return nil, err
	}
	h := sha512.Sum512(seed)
	s, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		return nil, err
	}
	return p.ScalarMult(s, p).Bytes(), nil
}

// dh is the DH function of package flynn/noise; private keys are seeds.
type dh struct{}

func (dh) GenerateKeypair(rng io.Reader) (flynn.DHKey, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rng, seed); err != nil {
		return flynn.DHKey{}, err
	}
	priv := ed25519.NewKeyFromSeed(seed)
	return flynn.DHKey{Private: seed, Public: priv[ed25519.SeedSize:]}, nil
}

func (dh) DH(seed, public []byte) ([]byte, error) { return DH(seed, public) }
func (dh) DHLen() int                             { return KeySize }
func (dh) DHName() string                         { return "Ed25519" }
