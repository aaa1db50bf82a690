package merkle

import (
	"crypto/ed25519"
	"encoding/binary"
	"fmt"

	"dazaar-edge/protocol/compact"
)

// Head is what a signature covers: a length and tree hash on a fork. The byte
// length is inside the tree hash.
type Head struct {
	Fork     uint64
	Length   uint64
	TreeHash Hash
}

// SignatureSize is the length of a single signer's signature on the wire: the
// container of one Ed25519 signature (specs/hypercore.md, section 5).
const SignatureSize = 68

// signable returns the bytes that are signed: with a context for a feed that
// has a manifest (112 bytes), without for a legacy one (80 bytes).
func signable(context *Hash, h Head) []byte {
	ns := treeNamespace()
	b := append(make([]byte, 0, 112), ns[:]...)
	if context != nil {
		b = append(b, context[:]...)
	}
	b = append(b, h.TreeHash[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.Length)
	return binary.LittleEndian.AppendUint64(b, h.Fork)
}

// Signable returns the bytes that signer number i of the feed with this key
// signs for head h.
func (m *Manifest) Signable(key Hash, i int, h Head) []byte {
	switch {
	case m.isCompat(key):
		return signable(nil, h)
	case m.Version == 0:
		return signable(&m.Signers[i].Namespace, h)
	}
	return signable(&key, h)
}

// raw tells whether the signature travels without a container.
func (m *Manifest) raw(key Hash) bool {
	return m.isCompat(key) || m.Version == 0 && len(m.Signers) == 1 && !m.AllowPatch
}

// Sign signs head h of the single-signer feed with this key and returns the
// signature as it travels: 68 bytes, 64 for a legacy feed.
func (m *Manifest) Sign(priv ed25519.PrivateKey, key Hash, h Head) []byte {
	sig := ed25519.Sign(priv, m.Signable(key, 0, h))
	if m.raw(key) {
		return sig
	}
	b := append(make([]byte, 0, SignatureSize), 1, 0) // one proof, by signer 0
	b = append(b, sig...)
	return append(b, 0, 0) // no patch, no nodes
}

// Verify checks the signature of head h under the feed key. Errors wrap
// [ErrSignature].
func (m *Manifest) Verify(key Hash, h Head, signature []byte) error {
	if p := m.Prologue; p != nil && h.Length <= p.Length && !m.isCompat(key) {
		if h.Length == p.Length && h.TreeHash == p.TreeHash {
			return nil
		}
		return fmt.Errorf("%w: head of %d blocks is not the prologue's", ErrSignature, h.Length)
	}
	if m.raw(key) {
		if !m.check(key, 0, h, signature) {
			return fmt.Errorf("%w: head of %d blocks, fork %d", ErrSignature, h.Length, h.Fork)
		}
		return nil
	}
	if m.Version == 0 {
		return fmt.Errorf("%w: several signers in a version 0 manifest are not supported", ErrSignature)
	}
	return m.verifyContainer(key, h, signature)
}

func (m *Manifest) check(key Hash, signer int, h Head, sig []byte) bool {
	pub := m.Signers[signer].PublicKey
	return len(sig) == ed25519.SignatureSize && ed25519.Verify(pub[:], m.Signable(key, signer, h), sig)
}

// partial is one signer's entry in a signature container.
type partial struct {
	signer    uint64
	signature [64]byte
	patch     uint64
}

func parsePartial(b []byte) (p partial, rest []byte, err error) {
	if p.signer, rest, err = compact.ParseUint(b); err != nil {
		return p, nil, err
	}
	if p.signature, rest, err = compact.ParseFixed64(rest); err != nil {
		return p, nil, err
	}
	p.patch, rest, err = compact.ParseUint(rest)
	return p, rest, err
}

func (m *Manifest) verifyContainer(key Hash, h Head, signature []byte) error {
	parts, rest, err := compact.ParseArray(signature, maxSigners, 66, parsePartial)
	if err == nil {
		_, rest, err = ParseNodes(rest) // of patches, which are not supported
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	if len(rest) > 0 {
		return fmt.Errorf("%w: %d bytes behind it", ErrSignature, len(rest))
	}
	if m.Quorum == 0 || m.Quorum > uint64(len(parts)) {
		return fmt.Errorf("%w: %d signatures for a quorum of %d", ErrSignature, len(parts), m.Quorum)
	}
	var seen [maxSigners]bool
	for _, p := range parts[:m.Quorum] {
		switch {
		case p.patch != 0:
			return fmt.Errorf("%w: patched signatures are not supported", ErrSignature)
		case p.signer >= uint64(len(m.Signers)) || seen[p.signer]:
			return fmt.Errorf("%w: signer %d unknown or twice", ErrSignature, p.signer)
		case !m.check(key, int(p.signer), h, p.signature[:]):
			return fmt.Errorf("%w: head of %d blocks, fork %d, signer %d", ErrSignature, h.Length, h.Fork, p.signer)
		}
		seen[p.signer] = true
	}
	return nil
}
