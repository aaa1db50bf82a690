package merkle

import (
	"bytes"
	"crypto/ed25519"
	"fmt"

	"dazaar-edge/protocol/compact"

	"golang.org/x/crypto/blake2b"
)

// Namespace returns the 32 bytes that separate uses of a key: the hash of the
// hash of name and one byte.
func Namespace(name string, id byte) Hash {
	inner := blake2b.Sum256([]byte(name))
	return blake2b.Sum256(append(inner[:], id))
}

// Namespaces of Hypercore (specs/hypercore.md, section 3).
func treeNamespace() Hash     { return Namespace("hypercore", 0) }
func manifestNamespace() Hash { return Namespace("hypercore", 3) }

// DefaultNamespace is the signing context of ordinary feeds.
func DefaultNamespace() Hash { return Namespace("hypercore", 4) }

// DiscoveryKey returns the name under which a feed is looked for and replicated;
// it does not tell the key.
func DiscoveryKey(key Hash) Hash {
	h, _ := blake2b.New256(key[:]) // a 32-byte key is never too long
	h.Write([]byte("hypercore"))
	return Hash(h.Sum(nil))
}

// Caps on what a manifest may hold.
const (
	maxSigners  = 64
	maxLinked   = 64
	maxUserData = 4096
)

// Manifest says who may sign a feed. The hash of its encoding is the feed key.
type Manifest struct {
	// Version is 0 to 3; we write 1.
	Version    uint64
	AllowPatch bool
	// Quorum is how many of the Signers must sign a head.
	Quorum  uint64
	Signers []Signer
	// Prologue pins the log's beginning; heads up to it need no signature.
	Prologue *Prologue
	// Linked and UserData are opaque, and for versions from 2 on.
	Linked   []Hash
	UserData []byte
}

// Signer is an Ed25519 public key with its context.
type Signer struct {
	Namespace Hash
	PublicKey Hash
}

// Prologue is a head that is fixed by the manifest itself.
type Prologue struct {
	TreeHash Hash
	Length   uint64
}

// Flags of a manifest from version 1 on.
const (
	manifestAllowPatch = 1 << iota
	manifestPrologue
	manifestLinked
	manifestUserData
)

// NewManifest returns the manifest that stock writers make by default: version
// 1, one signer, default namespace; 70 bytes on the wire.
func NewManifest(publicKey ed25519.PublicKey) Manifest {
	return Manifest{Version: 1, Quorum: 1, Signers: []Signer{{DefaultNamespace(), Hash(publicKey)}}}
}

// CompatManifest returns the manifest of a legacy feed, whose key is its
// signer's public key and whose manifest is never sent.
func CompatManifest(key Hash) Manifest {
	return Manifest{Version: 0, Quorum: 1, Signers: []Signer{{DefaultNamespace(), key}}}
}

func (m *Manifest) isCompat(key Hash) bool {
	return len(m.Signers) == 1 && m.Signers[0].PublicKey == key
}

// Key returns the feed key: the hash of the encoded manifest.
func (m *Manifest) Key() Hash {
	ns := manifestNamespace()
	return blake2b.Sum256(m.Append(ns[:]))
}

func appendSigner(b []byte, s Signer) []byte {
	b = compact.AppendUint(b, 0) // ed25519
	b = append(b, s.Namespace[:]...)
	return append(b, s.PublicKey[:]...)
}

func appendHash(b []byte, h Hash) []byte { return append(b, h[:]...) }

// Append appends the encoded manifest.
func (m *Manifest) Append(b []byte) []byte {
	b = compact.AppendUint(b, m.Version)
	if m.Version == 0 {
		return m.append0(b)
	}
	flags := uint64(0)
	if m.AllowPatch {
		flags |= manifestAllowPatch
	}
	if m.Prologue != nil {
		flags |= manifestPrologue
	}
	if m.Linked != nil {
		flags |= manifestLinked
	}
	if m.UserData != nil {
		flags |= manifestUserData
	}
	b = compact.AppendUint(b, flags)
	b = compact.AppendUint(b, 0) // blake2b
	b = compact.AppendUint(b, m.Quorum)
	b = compact.AppendArray(b, m.Signers, appendSigner)
	if m.Prologue != nil {
		b = appendHash(b, m.Prologue.TreeHash)
		b = compact.AppendUint(b, m.Prologue.Length)
	}
	if m.Linked != nil {
		b = compact.AppendArray(b, m.Linked, appendHash)
	}
	if m.UserData != nil {
		b = compact.AppendBuffer(b, m.UserData)
	}
	return b
}

// Kinds of a version 0 manifest.
const (
	manifest0Prologue = 0
	manifest0Signer   = 1
	manifest0Multi    = 2
)

func (m *Manifest) append0(b []byte) []byte {
	b = compact.AppendUint(b, 0) // blake2b
	switch {
	case m.Prologue != nil && len(m.Signers) == 0:
		return appendHash(compact.AppendUint(b, manifest0Prologue), m.Prologue.TreeHash)
	case len(m.Signers) == 1 && m.Quorum == 1 && !m.AllowPatch:
		return appendSigner(compact.AppendUint(b, manifest0Signer), m.Signers[0])
	}
	b = compact.AppendUint(b, manifest0Multi)
	b = compact.AppendBool(b, m.AllowPatch)
	b = compact.AppendUint(b, m.Quorum)
	return compact.AppendArray(b, m.Signers, appendSigner)
}

// ParseManifest takes a manifest of version 0 to 3 off b. Byte fields are
// copied. Errors wrap [ErrManifest].
func ParseManifest(b []byte) (*Manifest, []byte, error) {
	m := &Manifest{}
	rest, err := m.parse(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, rest, nil
}

func parseSigner(b []byte) (s Signer, rest []byte, err error) {
	kind, rest, err := compact.ParseUint(b)
	if err != nil {
		return s, nil, err
	}
	if kind != 0 {
		return s, nil, fmt.Errorf("signature type %d, not ed25519", kind)
	}
	ns, rest, err := compact.ParseFixed32(rest)
	if err != nil {
		return s, nil, err
	}
	pub, rest, err := compact.ParseFixed32(rest)
	return Signer{Hash(ns), Hash(pub)}, rest, err
}

func parseHash(b []byte) (Hash, []byte, error) {
	h, rest, err := compact.ParseFixed32(b)
	return Hash(h), rest, err
}

func (m *Manifest) parse(b []byte) (rest []byte, err error) {
	var flags, kind uint64
	if m.Version, rest, err = compact.ParseUint(b); err != nil {
		return nil, err
	}
	if m.Version > 3 {
		return nil, fmt.Errorf("version %d is newer than this program", m.Version)
	}
	if m.Version > 0 {
		if flags, rest, err = compact.ParseUint(rest); err != nil {
			return nil, err
		}
	}
	if kind, rest, err = compact.ParseUint(rest); err != nil {
		return nil, err
	}
	if kind != 0 {
		return nil, fmt.Errorf("hash type %d, not blake2b", kind)
	}
	if m.Version == 0 {
		return m.parse0(rest)
	}
	m.AllowPatch = flags&manifestAllowPatch != 0
	if m.Quorum, rest, err = compact.ParseUint(rest); err != nil {
		return nil, err
	}
	if m.Signers, rest, err = compact.ParseArray(rest, maxSigners, 65, parseSigner); err != nil {
		return nil, err
	}
	if flags&manifestPrologue != 0 {
		p := &Prologue{}
		if p.TreeHash, rest, err = parseHash(rest); err != nil {
			return nil, err
		}
		if p.Length, rest, err = compact.ParseUint(rest); err != nil {
			return nil, err
		}
		m.Prologue = p
	}
	if flags&manifestLinked != 0 {
		if m.Linked, rest, err = compact.ParseArray(rest, maxLinked, 32, parseHash); err != nil {
			return nil, err
		}
	}
	if flags&manifestUserData != 0 {
		var data []byte
		if data, rest, err = compact.ParseBuffer(rest); err != nil {
			return nil, err
		}
		if len(data) > maxUserData {
			return nil, fmt.Errorf("user data of %d bytes", len(data))
		}
		m.UserData = bytes.Clone(data)
	}
	return rest, nil
}

func (m *Manifest) parse0(b []byte) (rest []byte, err error) {
	kind, rest, err := compact.ParseUint(b)
	if err != nil {
		return nil, err
	}
	switch kind {
	case manifest0Prologue:
		m.Prologue = &Prologue{}
		m.Prologue.TreeHash, rest, err = parseHash(rest)
		return rest, err
	case manifest0Signer:
		var s Signer
		s, rest, err = parseSigner(rest)
		m.Quorum, m.Signers = 1, []Signer{s}
		return rest, err
	case manifest0Multi:
		var flags uint64
		if flags, rest, err = compact.ParseUint(rest); err != nil {
			return nil, err
		}
		m.AllowPatch = flags&manifestAllowPatch != 0
		if m.Quorum, rest, err = compact.ParseUint(rest); err != nil {
			return nil, err
		}
		m.Signers, rest, err = compact.ParseArray(rest, maxSigners, 65, parseSigner)
		return rest, err
	}
	return nil, fmt.Errorf("type %d of version 0", kind)
}
