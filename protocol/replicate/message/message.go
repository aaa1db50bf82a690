// Package message has the messages of a replication channel as Hypercore 11 has
// them on the wire (shared specification, hypercore.md, section 9). Nothing
// is allocated for what a message only claims.
package message

import (
	"fmt"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
)

// Protocol is the name of the channel; its id is the feed's discovery key.
const Protocol = "hypercore/alpha"

// Message types.
const (
	TypeSync = iota
	TypeRequest
	TypeCancel
	TypeData
	TypeNoData
	TypeWant
	TypeUnwant
	TypeBitfield
	TypeRange
	TypeExtension
)

// Handshake opens a channel.
type Handshake struct {
	Seeks      bool // seeks are understood
	Capability merkle.Hash
}

// Append appends uint flags (1: seeks) and 32 bytes.
func (h Handshake) Append(b []byte) []byte {
	return append(compact.AppendUint(b, bit(h.Seeks, 1)), h.Capability[:]...)
}

// ParseHandshake takes a handshake off b.
func ParseHandshake(b []byte) (h Handshake, rest []byte, err error) {
	f, rest, err := compact.ParseUint(b)
	if err != nil {
		return h, nil, err
	}
	h.Seeks = f&1 != 0
	c, rest, err := compact.ParseFixed32(rest)
	h.Capability = c
	return h, rest, err
}

// Capability proves to the other side of a connection that its sender knows the
// feed key.
func Capability(key merkle.Hash, handshakeHash [64]byte, initiator bool) merkle.Hash {
	role := byte(2)
	if initiator {
		role = 1
	}
	h, err := blake2b.New256(handshakeHash[:])
	if err != nil {
		panic(err) // a key of 64 bytes is allowed
	}
	ns := merkle.Namespace("hypercore", role)
	h.Write(ns[:])
	h.Write(key[:])
	return merkle.Hash(h.Sum(nil))
}

// bit returns value if set.
func bit(set bool, value uint64) uint64 {
	if set {
		return value
	}
	return 0
}

// Sync tells where a peer stands.
type Sync struct {
	Fork, Length uint64
	// RemoteLength is the receiver's length as the sender knows it; 0 if their
	// forks differ.
	RemoteLength uint64
	// CanUpgrade: the sender can prove its length to who has the receiver's.
	// Uploading: it serves. Downloading: it wants data. HasManifest: it can
	// send it. AllowPush: it takes what it did not ask for.
	CanUpgrade, Uploading, Downloading, HasManifest, AllowPush bool
}

// Append appends uint flags, fork, length and remote length.
func (s Sync) Append(b []byte) []byte {
	b = compact.AppendUint(b, bit(s.CanUpgrade, 1)|bit(s.Uploading, 2)|bit(s.Downloading, 4)|bit(s.HasManifest, 8)|bit(s.AllowPush, 16))
	b = compact.AppendUint(b, s.Fork)
	b = compact.AppendUint(b, s.Length)
	return compact.AppendUint(b, s.RemoteLength)
}

// ParseSync takes a sync off b.
func ParseSync(b []byte) (s Sync, rest []byte, err error) {
	var f uint64
	rest, err = compact.ParseUints(b, &f, &s.Fork, &s.Length, &s.RemoteLength)
	s.CanUpgrade, s.Uploading, s.Downloading, s.HasManifest, s.AllowPush = f&1 != 0, f&2 != 0, f&4 != 0, f&8 != 0, f&16 != 0
	return s, rest, err
}

// Flags of requests and data beside those of package merkle.
const (
	flagManifest = 16
	flagPriority = 32
)

// Request asks for a proof, a manifest, or both. ID 0 is a probe after an
// invalid answer.
type Request struct {
	ID, Fork uint64
	merkle.Request
	Manifest bool
	Priority uint64
}

// Append appends uint flags, id, fork, the parts and the priority if it is not 0.
func (r *Request) Append(b []byte) []byte {
	b = compact.AppendUint(b, r.Flags()|bit(r.Manifest, flagManifest)|bit(r.Priority != 0, flagPriority))
	b = compact.AppendUint(b, r.ID)
	b = compact.AppendUint(b, r.Fork)
	b = r.Request.Append(b)
	if r.Priority != 0 {
		b = compact.AppendUint(b, r.Priority)
	}
	return b
}

// ParseRequest takes a request off b.
func ParseRequest(b []byte) (r Request, rest []byte, err error) {
	var f uint64
	if rest, err = compact.ParseUints(b, &f, &r.ID, &r.Fork); err != nil {
		return Request{}, nil, err
	}
	if r.Request, rest, err = merkle.ParseRequest(f, rest); err != nil {
		return Request{}, nil, err
	}
	r.Manifest = f&flagManifest != 0
	if f&flagPriority != 0 {
		rest, err = compact.ParseUints(rest, &r.Priority)
	}
	return r, rest, err
}

// Data answers a request.
type Data struct {
	Request, Fork uint64
	merkle.Proof
	Manifest *merkle.Manifest
}

// Append appends uint flags, request, fork, the parts and the manifest.
func (d *Data) Append(b []byte) []byte {
	b = compact.AppendUint(b, d.Flags()|bit(d.Manifest != nil, flagManifest))
	b = compact.AppendUint(b, d.Request)
	b = compact.AppendUint(b, d.Fork)
	b = d.Proof.Append(b)
	if d.Manifest != nil {
		b = d.Manifest.Append(b)
	}
	return b
}

// Size is about how many bytes Append appends, not less.
func (d *Data) Size() int {
	n := 64
	nodes := func(list []merkle.Node) { n += 9 + 50*len(list) }
	if p := d.Block; p != nil {
		n += len(p.Value)
		nodes(p.Nodes)
	}
	if p := d.Hash; p != nil {
		nodes(p.Nodes)
	}
	if p := d.Seek; p != nil {
		nodes(p.Nodes)
	}
	if p := d.Upgrade; p != nil {
		n += len(p.Signature)
		nodes(p.Nodes)
		nodes(p.Additional)
	}
	if m := d.Manifest; m != nil {
		n += 64 + 66*len(m.Signers)
	}
	return n
}

// ParseData takes data off b. Block.Value aliases b.
func ParseData(b []byte) (d Data, rest []byte, err error) {
	var f uint64
	if rest, err = compact.ParseUints(b, &f, &d.Request, &d.Fork); err != nil {
		return Data{}, nil, err
	}
	if d.Proof, rest, err = merkle.ParseProof(f, rest); err != nil {
		return Data{}, nil, err
	}
	if f&flagManifest != 0 {
		d.Manifest, rest, err = merkle.ParseManifest(rest)
	}
	return d, rest, err
}

// Reasons of NoData.
const (
	ReasonNone         = 0
	ReasonNotAvailable = 1
	ReasonInvalid      = 2
)

// NoData refuses a request.
type NoData struct{ Request, Reason uint64 }

// Append appends uint request, uint flags (1: a reason follows) and the reason.
func (n NoData) Append(b []byte) []byte {
	b = compact.AppendUint(b, n.Request)
	if n.Reason == ReasonNone {
		return compact.AppendUint(b, 0)
	}
	return compact.AppendUint(compact.AppendUint(b, 1), n.Reason)
}

// ParseNoData takes a refusal off b; old peers send no flags.
func ParseNoData(b []byte) (n NoData, rest []byte, err error) {
	if rest, err = compact.ParseUints(b, &n.Request); err != nil || len(rest) == 0 {
		return n, rest, err
	}
	var f uint64
	if rest, err = compact.ParseUints(rest, &f); err == nil && f&1 != 0 {
		rest, err = compact.ParseUints(rest, &n.Reason)
	}
	return n, rest, err
}

// Want asks which blocks of a range the other side has; Unwant takes that back
// and has the same layout. Any asks for one of them.
type Want struct {
	Start, Length uint64
	Any           bool
}

// Append appends uint start and length, and uint flags (1: any) if not 0.
func (w Want) Append(b []byte) []byte {
	b = compact.AppendUint(compact.AppendUint(b, w.Start), w.Length)
	if w.Any {
		b = compact.AppendUint(b, 1)
	}
	return b
}

// ParseWant takes a want off b.
func ParseWant(b []byte) (w Want, rest []byte, err error) {
	if rest, err = compact.ParseUints(b, &w.Start, &w.Length); err != nil || len(rest) == 0 {
		return w, rest, err
	}
	var f uint64
	rest, err = compact.ParseUints(rest, &f)
	w.Any = f&1 != 0
	return w, rest, err
}

// maxWords bounds a bitfield: one for 2,097,152 blocks, the longest want.
const maxWords = 65536

// Bitfield tells for the blocks from Start, a multiple of 32, which ones are
// there: bit k of word i stands for block Start + 32i + k.
type Bitfield struct {
	Start uint64
	Words []uint32
}

// Append appends uint start and the words.
func (f Bitfield) Append(b []byte) []byte {
	return compact.AppendUint32Array(compact.AppendUint(b, f.Start), f.Words)
}

// ParseBitfield takes a bitfield off b.
func ParseBitfield(b []byte) (f Bitfield, rest []byte, err error) {
	if rest, err = compact.ParseUints(b, &f.Start); err != nil {
		return f, nil, err
	}
	if f.Start%32 != 0 {
		return f, nil, fmt.Errorf("message: bitfield starts at %d", f.Start)
	}
	f.Words, rest, err = compact.ParseUint32Array(rest, maxWords)
	return f, rest, err
}

// Range tells of blocks that are there, or no longer.
type Range struct {
	Drop          bool
	Start, Length uint64
}

// Append appends uint flags (1: drop, 2: of length 1), start, and the length
// unless it is 1.
func (r Range) Append(b []byte) []byte {
	b = compact.AppendUint(b, bit(r.Drop, 1)|bit(r.Length == 1, 2))
	b = compact.AppendUint(b, r.Start)
	if r.Length != 1 {
		b = compact.AppendUint(b, r.Length)
	}
	return b
}

// ParseRange takes a range off b.
func ParseRange(b []byte) (r Range, rest []byte, err error) {
	var f uint64
	if rest, err = compact.ParseUints(b, &f, &r.Start); err != nil {
		return r, nil, err
	}
	r.Drop, r.Length = f&1 != 0, 1
	if f&2 == 0 {
		rest, err = compact.ParseUints(rest, &r.Length)
	}
	if err == nil && r.Start > compact.MaxUint-r.Length {
		err = compact.ErrRange
	}
	return r, rest, err
}

// Extension is a message of the application. An empty name means that of the
// one before it.
type Extension struct {
	Name    string
	Message []byte
}

// Append appends the name and the raw message.
func (e Extension) Append(b []byte) []byte {
	return append(compact.AppendString(b, e.Name), e.Message...)
}

// ParseExtension takes an extension message, all of b. Message aliases b.
func ParseExtension(b []byte) (e Extension, rest []byte, err error) {
	e.Name, e.Message, err = compact.ParseString(b)
	return e, nil, err
}
