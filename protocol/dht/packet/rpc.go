// Package packet is the bytes of dht-rpc and HyperDHT: each datagram, value and payload, as
// specs/hyperdht.md has them, sections 1 to 6. It knows nothing of sockets or time.
//
// What is parsed aliases the datagram. Parsing is strict about lengths, and lenient about
// what a later version may add behind.
package packet

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/protocol/compact"
)

// MaxSize is how large a datagram is at most that every path carries.
const MaxSize = 1200 - 28

// ErrPacket says that a datagram is none of this protocol.
var ErrPacket = errors.New("dht: not a packet")

// Flags say what a packet has.
type Flags byte

// Flags of a [Request] and of a [Response].
const (
	HasID    Flags = 1
	HasToken Flags = 2
	Internal Flags = 4 // of a request: an internal command
	HasNodes Flags = 4 // of a response
	HasTo    Flags = 8 // of a request: a target
	HasError Flags = 8 // of a response
	HasValue Flags = 16
)

// Commands that every node knows, sent with [Internal].
const (
	Ping        uint64 = 0
	PingNAT     uint64 = 1
	FindNode    uint64 = 2
	DownHint    uint64 = 3
	DelayedPing uint64 = 4
)

// Commands of HyperDHT.
const (
	PeerHandshake uint64 = 0
	PeerHolepunch uint64 = 1
	FindPeer      uint64 = 2
	Lookup        uint64 = 3
	Announce      uint64 = 4
	Unannounce    uint64 = 5
	MutablePut    uint64 = 6
	MutableGet    uint64 = 7
	ImmutablePut  uint64 = 8
	ImmutableGet  uint64 = 9
)

// Errors that a response tells.
const (
	UnknownCommand uint64 = 1
	InvalidToken   uint64 = 2
	SeqReused      uint64 = 16
	SeqTooLow      uint64 = 17
)

const (
	requestByte  = 0x03
	responseByte = 0x13
)

// ID names a node, or what is looked for.
type ID = [32]byte

// NodeID returns the id of the node at an address.
func NodeID(a netip.AddrPort) ID {
	var b [addrSize]byte
	return blake2b.Sum256(AppendAddr(b[:0], a))
}

// addrSize is the size of an address.
const addrSize = 6

// AppendAddr appends an IPv4 address; one that is not is all zero.
func AppendAddr(b []byte, a netip.AddrPort) []byte {
	var ip [4]byte
	if a.Addr().Is4() {
		ip = a.Addr().As4()
	}
	b = append(b, ip[:]...)
	return binary.LittleEndian.AppendUint16(b, a.Port())
}

// ParseAddr takes an address off b.
func ParseAddr(b []byte) (netip.AddrPort, []byte, error) {
	if len(b) < addrSize {
		return netip.AddrPort{}, nil, ErrPacket
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.LittleEndian.Uint16(b[4:])), b[addrSize:], nil
}

func appendAddrs(b []byte, all []netip.AddrPort) []byte {
	return compact.AppendArray(b, all, AppendAddr)
}

// maxAddrs is how many addresses a list may have.
const maxAddrs = 128

func parseAddrs(b []byte) ([]netip.AddrPort, []byte, error) {
	return compact.ParseArray(b, maxAddrs, addrSize, ParseAddr)
}

// appendHead appends what both kinds begin with.
func appendHead(b []byte, first byte, flags Flags, tid uint16, to netip.AddrPort, id *ID, token *[32]byte) []byte {
	b = append(b, first, byte(flags))
	b = binary.LittleEndian.AppendUint16(b, tid)
	b = AppendAddr(b, to)
	if flags&HasID != 0 {
		b = append(b, id[:]...)
	}
	if flags&HasToken != 0 {
		b = append(b, token[:]...)
	}
	return b
}

// Request asks a node for something.
type Request struct {
	Flags   Flags
	TID     uint16         // which the response repeats
	To      netip.AddrPort // where it is sent to
	ID      ID             // of the sender, if it is persistent
	Token   [32]byte       // that the receiver gave
	Command uint64
	Target  ID
	Value   []byte
}

// Append appends the datagram.
func (r *Request) Append(b []byte) []byte {
	b = appendHead(b, requestByte, r.Flags, r.TID, r.To, &r.ID, &r.Token)
	b = compact.AppendUint(b, r.Command)
	if r.Flags&HasTo != 0 {
		b = append(b, r.Target[:]...)
	}
	if r.Flags&HasValue != 0 {
		b = compact.AppendBuffer(b, r.Value)
	}
	return b
}

// Response answers a request.
type Response struct {
	Flags  Flags
	TID    uint16
	To     netip.AddrPort // from where the request came
	ID     ID             // of the sender, if it is persistent
	Token  [32]byte       // for a write
	Closer []netip.AddrPort
	Error  uint64
	Value  []byte
}

// Append appends the datagram.
func (r *Response) Append(b []byte) []byte {
	b = appendHead(b, responseByte, r.Flags, r.TID, r.To, &r.ID, &r.Token)
	if r.Flags&HasNodes != 0 {
		b = appendAddrs(b, r.Closer)
	}
	if r.Flags&HasError != 0 {
		b = compact.AppendUint(b, r.Error)
	}
	if r.Flags&HasValue != 0 {
		b = compact.AppendBuffer(b, r.Value)
	}
	return b
}

// Kind tells whether a datagram is a request, a response, or neither.
func Kind(b []byte) (request, response bool) {
	if len(b) < 10 {
		return false, false
	}
	return b[0] == requestByte, b[0] == responseByte
}

// head takes off what both kinds begin with.
func head(b []byte, first byte) (flags Flags, tid uint16, to netip.AddrPort, rest []byte, err error) {
	if len(b) < 10 || b[0] != first {
		return 0, 0, to, nil, ErrPacket
	}
	to, rest, err = ParseAddr(b[4:])
	return Flags(b[1]), binary.LittleEndian.Uint16(b[2:]), to, rest, err
}

// ParseRequest parses a datagram.
func ParseRequest(b []byte) (r Request, err error) {
	if r.Flags, r.TID, r.To, b, err = head(b, requestByte); err != nil {
		return r, err
	}
	if r.Flags&HasID != 0 && err == nil {
		r.ID, b, err = compact.ParseFixed32(b)
	}
	if r.Flags&HasToken != 0 && err == nil {
		r.Token, b, err = compact.ParseFixed32(b)
	}
	if err == nil {
		r.Command, b, err = compact.ParseUint(b)
	}
	if r.Flags&HasTo != 0 && err == nil {
		r.Target, b, err = compact.ParseFixed32(b)
	}
	if r.Flags&HasValue != 0 && err == nil {
		r.Value, _, err = compact.ParseBuffer(b)
	}
	return r, err
}

// ParseResponse parses a datagram.
func ParseResponse(b []byte) (r Response, err error) {
	if r.Flags, r.TID, r.To, b, err = head(b, responseByte); err != nil {
		return r, err
	}
	if r.Flags&HasID != 0 && err == nil {
		r.ID, b, err = compact.ParseFixed32(b)
	}
	if r.Flags&HasToken != 0 && err == nil {
		r.Token, b, err = compact.ParseFixed32(b)
	}
	if r.Flags&HasNodes != 0 && err == nil {
		r.Closer, b, err = parseAddrs(b)
	}
	if r.Flags&HasError != 0 && err == nil {
		r.Error, b, err = compact.ParseUint(b)
	}
	if r.Flags&HasValue != 0 && err == nil {
		r.Value, _, err = compact.ParseBuffer(b)
	}
	return r, err
}
