package packet

import (
	"crypto/ed25519"
	"net/netip"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/protocol/compact"
)

// namespace separates what is signed or hashed for one use from all others.
func namespace(name string, i byte) [32]byte {
	h := blake2b.Sum256([]byte(name))
	return blake2b.Sum256(append(h[:], i))
}

var (
	nsHandshake  = namespace("hyperswarm/dht", 0)
	nsHolepunch  = namespace("hyperswarm/dht", 1)
	nsAnnounce   = namespace("hyperswarm/dht", 4)
	nsUnannounce = namespace("hyperswarm/dht", 5)
	nsMutable    = namespace("hyperswarm/dht", 6)
)

// Prologue is that of the Noise handshake.
func Prologue() []byte { return nsHandshake[:] }

// Target is where a key, or what is immutable, is looked for: its hash.
func Target(b []byte) ID { return blake2b.Sum256(b) }

// MaxRelays is how many addresses of relays a record has at most.
const MaxRelays = 3

// Peer says through which nodes a key can be reached.
type Peer struct {
	PublicKey [32]byte
	Relays    []netip.AddrPort
}

// Append appends the record.
func (p Peer) Append(b []byte) []byte { return appendAddrs(append(b, p.PublicKey[:]...), p.Relays) }

// ParsePeer takes a record off b.
func ParsePeer(b []byte) (p Peer, rest []byte, err error) {
	if p.PublicKey, b, err = compact.ParseFixed32(b); err != nil {
		return p, nil, err
	}
	p.Relays, rest, err = parseAddrs(b)
	return p, rest, err
}

// Flags of an [Announcement].
const (
	hasPeer      = 1
	hasRefresh   = 2
	hasSignature = 4
	hasBump      = 8
)

// Announcement is the value of an announce or an unannounce.
type Announcement struct {
	Flags     uint64 // set by Sign; as it was by ParseAnnouncement
	Peer      Peer
	Refresh   [32]byte
	Signature [64]byte
	Bump      uint64 // milliseconds since 1970
}

// Append appends the value.
func (a *Announcement) Append(b []byte) []byte {
	b = compact.AppendUint(b, a.Flags)
	if a.Flags&hasPeer != 0 {
		b = a.Peer.Append(b)
	}
	if a.Flags&hasRefresh != 0 {
		b = append(b, a.Refresh[:]...)
	}
	if a.Flags&hasSignature != 0 {
		b = append(b, a.Signature[:]...)
	}
	if a.Flags&hasBump != 0 {
		b = compact.AppendUint(b, a.Bump)
	}
	return b
}

// ParseAnnouncement parses a value.
func ParseAnnouncement(b []byte) (a Announcement, err error) {
	a.Flags, b, err = compact.ParseUint(b)
	if a.Flags&hasPeer != 0 && err == nil {
		a.Peer, b, err = ParsePeer(b)
	}
	if a.Flags&hasRefresh != 0 && err == nil {
		a.Refresh, b, err = compact.ParseFixed32(b)
	}
	if a.Flags&hasSignature != 0 && err == nil {
		a.Signature, b, err = compact.ParseFixed64(b)
	}
	if a.Flags&hasBump != 0 && err == nil {
		a.Bump, _, err = compact.ParseUint(b)
	}
	return a, err
}

// Signed tells whether it has a peer and its signature.
func (a *Announcement) Signed() bool {
	return a.Flags&(hasPeer|hasSignature) == hasPeer|hasSignature
}

// signable is what an announcement signs: that this node, who gave this token, may keep it.
func (a *Announcement) signable(ns [32]byte, target, node ID, token [32]byte) []byte {
	b := append(append(target[:], node[:]...), token[:]...)
	b = a.Peer.Append(b)
	if a.Flags&hasRefresh != 0 {
		b = append(b, a.Refresh[:]...)
	}
	sum := blake2b.Sum256(b)
	return append(ns[:], sum[:]...)
}

func announceNamespace(off bool) [32]byte {
	if off {
		return nsUnannounce
	}
	return nsAnnounce
}

// Sign signs the announcement, or, if off, the end of one, for one node.
func (a *Announcement) Sign(key ed25519.PrivateKey, off bool, target, node ID, token [32]byte) {
	a.Flags |= hasPeer | hasSignature
	if a.Bump != 0 {
		a.Flags |= hasBump
	}
	a.Signature = [64]byte(ed25519.Sign(key, a.signable(announceNamespace(off), target, node, token)))
}

// Verify tells whether it was signed for this node, who gave this token.
func (a *Announcement) Verify(off bool, target, node ID, token [32]byte) bool {
	return a.Signed() && ed25519.Verify(a.Peer.PublicKey[:], a.signable(announceNamespace(off), target, node, token), a.Signature[:])
}

// Found is the value of the answer to a lookup.
type Found struct {
	Peers []Peer
	Bump  uint64
}

// MaxFound is how many peers an answer has at most.
const MaxFound = 20

// Append appends the value.
func (f Found) Append(b []byte) []byte {
	b = compact.AppendArray(b, f.Peers, func(b []byte, p Peer) []byte { return p.Append(b) })
	return compact.AppendUint(b, f.Bump)
}

// ParseFound parses a value; the bump may be missing.
func ParseFound(b []byte) (f Found, err error) {
	if f.Peers, b, err = compact.ParseArray(b, maxAddrs, 33, ParsePeer); err == nil && len(b) > 0 {
		f.Bump, _, err = compact.ParseUint(b)
	}
	return f, err
}

// Mutable is a signed value that its owner may replace by one with a higher Seq. Its target
// is the hash of the key.
type Mutable struct {
	PublicKey [32]byte // not in the answer to a get
	Seq       uint64
	Value     []byte
	Signature [64]byte
}

func (m *Mutable) signable() []byte {
	b := compact.AppendBuffer(compact.AppendUint(nil, m.Seq), m.Value)
	sum := blake2b.Sum256(b)
	return append(nsMutable[:], sum[:]...)
}

// Sign signs the value.
func (m *Mutable) Sign(key ed25519.PrivateKey) {
	m.PublicKey = [32]byte(key[ed25519.SeedSize:])
	m.Signature = [64]byte(ed25519.Sign(key, m.signable()))
}

// Verify tells whether the owner of PublicKey signed it.
func (m *Mutable) Verify() bool {
	return ed25519.Verify(m.PublicKey[:], m.signable(), m.Signature[:])
}

// AppendPut appends the value of a put.
func (m *Mutable) AppendPut(b []byte) []byte { return m.AppendGot(append(b, m.PublicKey[:]...)) }

// ParsePut parses the value of a put.
func ParsePut(b []byte) (m Mutable, err error) {
	if m.PublicKey, b, err = compact.ParseFixed32(b); err != nil {
		return m, err
	}
	key := m.PublicKey
	m, err = ParseGot(b)
	m.PublicKey = key
	return m, err
}

// AppendGot appends the value of the answer to a get.
func (m *Mutable) AppendGot(b []byte) []byte {
	b = compact.AppendBuffer(compact.AppendUint(b, m.Seq), m.Value)
	return append(b, m.Signature[:]...)
}

// ParseGot parses the value of the answer to a get.
func ParseGot(b []byte) (m Mutable, err error) {
	if m.Seq, b, err = compact.ParseUint(b); err == nil {
		m.Value, b, err = compact.ParseBuffer(b)
	}
	if err == nil {
		m.Signature, _, err = compact.ParseFixed64(b)
	}
	return m, err
}
