package packet

import (
	"crypto/rand"
	"errors"
	"net/netip"

	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/nacl/secretbox"

	"dazaar-edge/protocol/compact"
)

// Mode says who passes a handshake or a hole punch on to whom.
type Mode uint64

// Modes.
const (
	FromClient Mode = iota
	FromServer
	FromRelay
	FromSecondRelay
	Reply
)

const (
	hasPeerAddr  = 1
	hasRelayAddr = 2
)

// Handshake is the value of a peer handshake.
type Handshake struct {
	Mode  Mode
	Noise []byte
	// Peer is the other end, as who passes it on sees it, and Relay the first of two
	// relays; not valid if it is not there.
	Peer, Relay netip.AddrPort
}

// Append appends the value.
func (h *Handshake) Append(b []byte) []byte {
	flags := uint64(0)
	if h.Peer.IsValid() {
		flags |= hasPeerAddr
	}
	if h.Relay.IsValid() {
		flags |= hasRelayAddr
	}
	b = compact.AppendUint(compact.AppendUint(b, flags), uint64(h.Mode))
	b = compact.AppendBuffer(b, h.Noise)
	if h.Peer.IsValid() {
		b = AppendAddr(b, h.Peer)
	}
	if h.Relay.IsValid() {
		b = AppendAddr(b, h.Relay)
	}
	return b
}

// ParseHandshake parses a value.
func ParseHandshake(b []byte) (h Handshake, err error) {
	var flags uint64
	if b, err = compact.ParseUints(b, &flags, (*uint64)(&h.Mode)); err == nil {
		h.Noise, b, err = compact.ParseBuffer(b)
	}
	if flags&hasPeerAddr != 0 && err == nil {
		h.Peer, b, err = ParseAddr(b)
	}
	if flags&hasRelayAddr != 0 && err == nil {
		h.Relay, _, err = ParseAddr(b)
	}
	return h, err
}

// Holepunch is the value of a peer hole punch.
type Holepunch struct {
	Mode    Mode
	ID      uint64 // the server's, for this connection
	Payload []byte // sealed
	Peer    netip.AddrPort
}

// Append appends the value.
func (h *Holepunch) Append(b []byte) []byte {
	flags := uint64(0)
	if h.Peer.IsValid() {
		flags = hasPeerAddr
	}
	b = compact.AppendUint(compact.AppendUint(compact.AppendUint(b, flags), uint64(h.Mode)), h.ID)
	b = compact.AppendBuffer(b, h.Payload)
	if h.Peer.IsValid() {
		b = AppendAddr(b, h.Peer)
	}
	return b
}

// ParseHolepunch parses a value.
func ParseHolepunch(b []byte) (h Holepunch, err error) {
	var flags uint64
	if b, err = compact.ParseUints(b, &flags, (*uint64)(&h.Mode), &h.ID); err == nil {
		h.Payload, b, err = compact.ParseBuffer(b)
	}
	if flags&hasPeerAddr != 0 && err == nil {
		h.Peer, _, err = ParseAddr(b)
	}
	return h, err
}

// Firewall is what kind of router is before a node.
type Firewall uint64

// Firewalls.
const (
	Unknown    Firewall = iota
	Open                // none: whoever sends to its address reaches it
	Consistent          // the same outer address for all
	Random              // another outer port for each
)

func (f Firewall) String() string {
	return [...]string{"unknown", "open", "consistent", "random", "?"}[min(f, 4)]
}

// Errors of a payload.
const (
	NoError         uint64 = 0
	Aborted         uint64 = 1
	VersionMismatch uint64 = 2
	TryLater        uint64 = 3
)

const (
	hasHolepunch = 1 << iota
	hasAddrs4
	hasAddrs6
	hasUDX
	hasSecretStream
	hasRelayThrough
	hasRelays
)

// version is that of all parts of a payload.
const version = 1

// ErrVersion says that the other side speaks a later version.
var ErrVersion = errors.New("dht: the other side speaks another version")

// Relays is a pair of a relay and the address of a server as that relay sees it.
type Relays struct{ Relay, Peer netip.AddrPort }

// RelayThrough names a blind relay, and the token by which the two ends meet there.
type RelayThrough struct{ PublicKey, Token [32]byte }

// Payload is what is said inside of the Noise handshake.
type Payload struct {
	Error     uint64
	Firewall  Firewall
	PunchID   uint64   // with Relays
	Relays    []Relays // through which holes may be punched; nil if not
	Punch     bool     // PunchID and Relays are there
	Addrs     []netip.AddrPort
	Addrs6    []byte // as it was, 18 bytes each
	UDX       bool   // StreamID is there
	Reusable  bool
	StreamID  uint32
	Seq       uint64 // means nothing
	Stream    bool   // a secret stream is spoken
	Through   *RelayThrough
	RelayList []netip.AddrPort
}

// Append appends the payload.
func (p *Payload) Append(b []byte) []byte {
	flags := uint64(0)
	for i, on := range [...]bool{p.Punch, len(p.Addrs) > 0, len(p.Addrs6) > 0, p.UDX, p.Stream, p.Through != nil, len(p.RelayList) > 0} {
		if on {
			flags |= 1 << i
		}
	}
	b = compact.AppendUint(b, version)
	b = compact.AppendUint(compact.AppendUint(compact.AppendUint(b, flags), p.Error), uint64(p.Firewall))
	if p.Punch {
		b = compact.AppendUint(b, p.PunchID)
		b = compact.AppendArray(b, p.Relays, func(b []byte, r Relays) []byte { return AppendAddr(AppendAddr(b, r.Relay), r.Peer) })
	}
	if len(p.Addrs) > 0 {
		b = appendAddrs(b, p.Addrs)
	}
	if len(p.Addrs6) > 0 {
		b = append(compact.AppendUint(b, uint64(len(p.Addrs6)/addr6Size)), p.Addrs6...)
	}
	if p.UDX {
		features := uint64(0)
		if p.Reusable {
			features = 1
		}
		b = compact.AppendUint(compact.AppendUint(b, version), features)
		b = compact.AppendUint(compact.AppendUint(b, uint64(p.StreamID)), p.Seq)
	}
	if p.Stream {
		b = compact.AppendUint(b, version)
	}
	if p.Through != nil {
		b = compact.AppendUint(compact.AppendUint(b, version), 0)
		b = append(append(b, p.Through.PublicKey[:]...), p.Through.Token[:]...)
	}
	if len(p.RelayList) > 0 {
		b = appendAddrs(b, p.RelayList)
	}
	return b
}

const addr6Size = 18

// ParsePayload parses a payload. It fails with [ErrVersion] if it is of a later version.
func ParsePayload(b []byte) (p Payload, err error) {
	var v, flags, n uint64
	if b, err = compact.ParseUints(b, &v); err != nil {
		return p, err
	} else if v != version {
		return p, ErrVersion
	}
	if b, err = compact.ParseUints(b, &flags, &p.Error, (*uint64)(&p.Firewall)); err != nil {
		return p, err
	}
	if flags&hasHolepunch != 0 {
		p.Punch = true
		if p.PunchID, b, err = compact.ParseUint(b); err == nil {
			p.Relays, b, err = compact.ParseArray(b, maxAddrs, 2*addrSize, parseRelays)
		}
	}
	if flags&hasAddrs4 != 0 && err == nil {
		p.Addrs, b, err = parseAddrs(b)
	}
	if flags&hasAddrs6 != 0 && err == nil {
		if n, b, err = compact.ParseUint(b); err == nil && n > maxAddrs {
			err = ErrPacket
		} else if err == nil {
			p.Addrs6, b, err = compact.ParseFixed(b, int(n)*addr6Size)
		}
	}
	if flags&hasUDX != 0 && err == nil {
		var features, id uint64
		b, err = compact.ParseUints(b, &v, &features, &id, &p.Seq)
		p.UDX, p.Reusable, p.StreamID = true, features&1 != 0, uint32(id)
		if id > 1<<32-1 {
			err = ErrPacket
		}
	}
	if flags&hasSecretStream != 0 && err == nil {
		p.Stream = true
		b, err = compact.ParseUints(b, &v)
	}
	if flags&hasRelayThrough != 0 && err == nil {
		p.Through = &RelayThrough{}
		if b, err = compact.ParseUints(b, &v, &n); err == nil {
			p.Through.PublicKey, b, err = compact.ParseFixed32(b)
		}
		if err == nil {
			p.Through.Token, b, err = compact.ParseFixed32(b)
		}
	}
	if flags&hasRelays != 0 && err == nil {
		p.RelayList, _, err = parseAddrs(b)
	}
	return p, err
}

func parseRelays(b []byte) (r Relays, rest []byte, err error) {
	if r.Relay, b, err = ParseAddr(b); err == nil {
		r.Peer, rest, err = ParseAddr(b)
	}
	return r, rest, err
}

const (
	isConnected = 1 << iota
	isPunching
	hasPunchAddrs
	hasRemoteAddr
	hasPunchToken
	hasRemoteToken
)

// Round is what the two ends tell each other while they punch a hole.
type Round struct {
	Connected, Punching bool
	Error               uint64
	Firewall            Firewall
	Round               uint64
	Addrs               []netip.AddrPort
	Remote              netip.AddrPort // where the sender sees the other; not valid if it is not there
	// Token proves that who repeats it as RemoteToken receives at an address; nil if it is
	// not there.
	Token, RemoteToken *[32]byte
}

// Append appends the round.
func (r *Round) Append(b []byte) []byte {
	flags := uint64(0)
	for i, on := range [...]bool{r.Connected, r.Punching, len(r.Addrs) > 0, r.Remote.IsValid(), r.Token != nil, r.RemoteToken != nil} {
		if on {
			flags |= 1 << i
		}
	}
	b = compact.AppendUint(compact.AppendUint(b, flags), r.Error)
	b = compact.AppendUint(compact.AppendUint(b, uint64(r.Firewall)), r.Round)
	if len(r.Addrs) > 0 {
		b = appendAddrs(b, r.Addrs)
	}
	if r.Remote.IsValid() {
		b = AppendAddr(b, r.Remote)
	}
	if r.Token != nil {
		b = append(b, r.Token[:]...)
	}
	if r.RemoteToken != nil {
		b = append(b, r.RemoteToken[:]...)
	}
	return b
}

// ParseRound parses a round.
func ParseRound(b []byte) (r Round, err error) {
	var flags uint64
	b, err = compact.ParseUints(b, &flags, &r.Error, (*uint64)(&r.Firewall), &r.Round)
	r.Connected, r.Punching = flags&isConnected != 0, flags&isPunching != 0
	if flags&hasPunchAddrs != 0 && err == nil {
		r.Addrs, b, err = parseAddrs(b)
	}
	if flags&hasRemoteAddr != 0 && err == nil {
		r.Remote, b, err = ParseAddr(b)
	}
	if flags&hasPunchToken != 0 && err == nil {
		r.Token = new([32]byte)
		*r.Token, b, err = compact.ParseFixed32(b)
	}
	if flags&hasRemoteToken != 0 && err == nil {
		r.RemoteToken = new([32]byte)
		*r.RemoteToken, _, err = compact.ParseFixed32(b)
	}
	return r, err
}

// Secret is what the two ends of a handshake seal rounds with.
type Secret [32]byte

// PunchSecret returns the secret of a handshake by its hash.
func PunchSecret(handshakeHash [64]byte) (s Secret) {
	h, err := blake2b.New256(handshakeHash[:])
	if err != nil {
		panic(err) // 64 bytes are fine
	}
	h.Write(nsHolepunch[:])
	h.Sum(s[:0])
	return s
}

const nonceSize = 24

// Seal seals a round.
func (s *Secret) Seal(r *Round) []byte {
	var nonce [nonceSize]byte
	rand.Read(nonce[:]) //nolint:errcheck // it never fails
	return s.seal(r, nonce)
}

func (s *Secret) seal(r *Round, nonce [nonceSize]byte) []byte {
	return secretbox.Seal(nonce[:], r.Append(nil), &nonce, (*[32]byte)(s))
}

// Open opens what was sealed.
func (s *Secret) Open(b []byte) (Round, error) {
	if len(b) < nonceSize {
		return Round{}, ErrPacket
	}
	nonce := [nonceSize]byte(b)
	plain, ok := secretbox.Open(nil, b[nonceSize:], &nonce, (*[32]byte)(s))
	if !ok {
		return Round{}, ErrPacket
	}
	return ParseRound(plain)
}
