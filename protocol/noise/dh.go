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

// scalar returns the secret scalar of an Ed25519 seed (RFC 8032, section 5.1.5).
func scalar(seed []byte) (*edwards25519.Scalar, error) {
	h := sha512.Sum512(seed)
	return edwards25519.NewScalar().SetBytesWithClamping(h[:32])
}

// DH returns the product of the point public and the secret scalar of an
// Ed25519 seed, compressed. It fails with [ErrPoint].
func DH(seed, public []byte) ([]byte, error) {
	return new(dh).DH(seed, public)
}

// dh is the DH function of package flynn/noise for one handshake; private keys
// are seeds.
type dh struct {
	public []byte              // that was checked last, as a handshake uses each twice
	point  *edwards25519.Point // the same
}

func (*dh) GenerateKeypair(rng io.Reader) (flynn.DHKey, error) {
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rng, seed); err != nil {
		return flynn.DHKey{}, err
	}
	s, err := scalar(seed)
	if err != nil {
		return flynn.DHKey{}, err
	}
	return flynn.DHKey{Private: seed, Public: new(edwards25519.Point).ScalarBaseMult(s).Bytes()}, nil
}

func (d *dh) DH(seed, public []byte) ([]byte, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("noise: a seed has %d bytes, this one has %d", ed25519.SeedSize, len(seed))
	}
	if err := d.check(public); err != nil {
		return nil, err
	}
	s, err := scalar(seed)
	if err != nil {
		return nil, err
	}
	return new(edwards25519.Point).ScalarMult(s, d.point).Bytes(), nil
}

// check fails if a public key is none.
func (d *dh) check(public []byte) error {
	if d.point != nil && bytes.Equal(d.public, public) {
		return nil
	}
	p, err := parsePoint(public)
	if err == nil {
		d.public, d.point = bytes.Clone(public), p
	}
	return err
}

func (*dh) DHLen() int     { return KeySize }
func (*dh) DHName() string { return "Ed25519" }
