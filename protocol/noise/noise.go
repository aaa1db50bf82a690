// Package noise is the handshake that opens every Hyperswarm connection: Noise
// XX or IK with a Diffie-Hellman on the edwards25519 curve.
//
//	Noise_XX_Ed25519_ChaChaPoly_BLAKE2b    -> e    <- e ee s es    -> s se
//	Noise_IK_Ed25519_ChaChaPoly_BLAKE2b    (<- s)  -> e es s ss    <- e ee se
//
// Empty payloads give messages of 32, 96 and 64 bytes for XX, 96 and 48 for IK.
// Static keys are Ed25519 key pairs: the secret scalar is the one that signs, the
// shared secret is the compressed product of it and the remote point. There is
// no X25519 in it. Points that are not canonical, of small order or outside the
// prime-order subgroup are refused, as libsodium refuses them.
//
// What the handshake yields are not the Noise transport ciphers but their keys,
// for package secretstream.
//
// Source: specs/hypercore.md, section 7; The Noise Protocol Framework, revision 34.
package noise

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	flynn "github.com/flynn/noise"
)

// Sizes in bytes.
const (
	KeySize  = 32 // a public key, a transport key
	HashSize = 64 // the handshake hash
)

// Pattern is a handshake pattern.
type Pattern int

const (
	// XX sends both static keys; the initiator learns the responder's.
	XX Pattern = iota
	// IK is for an initiator that knows the responder's static key.
	IK
)

func (p Pattern) String() string {
	if p == IK {
		return "IK"
	}
	return "XX"
}

// Config says how to shake hands. Static is required, and Remote for the
// initiator of IK.
type Config struct {
	Pattern   Pattern
	Initiator bool
	Static    ed25519.PrivateKey
	// Remote is the responder's static key.
	Remote [KeySize]byte
	// Prologue is what both sides must agree on; empty on a secret stream.
	Prologue []byte
	// Rand makes ephemeral keys; nil is crypto/rand.
	Rand io.Reader
}

// Result is what a finished handshake yields.
type Result struct {
	// TX and RX are the keys of the two directions, as this side sees them.
	TX, RX [KeySize]byte
	// Hash is the same on both sides and unique to the handshake.
	Hash [HashSize]byte
	// Remote is the other side's static key, which it proved to have.
	Remote [KeySize]byte
}

// Handshake is one handshake under way. Messages alternate, beginning with the
// initiator's. It is not safe for concurrent use.
type Handshake struct {
	cfg   Config
	dh    *dh
	state *flynn.HandshakeState
	done  *Result
}

// ErrState says that it is the other side's turn, or that the handshake is over.
var ErrState = errors.New("noise: message out of turn")

// New begins a handshake.
func New(cfg Config) (*Handshake, error) {
	if len(cfg.Static) != ed25519.PrivateKeySize {
		return nil, errors.New("noise: no static key")
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Reader
	}
	h := &Handshake{cfg: cfg, dh: &dh{}}
	c := flynn.Config{
		CipherSuite:   flynn.NewCipherSuite(h.dh, flynn.CipherChaChaPoly, flynn.HashBLAKE2b),
		Random:        cfg.Rand,
		Pattern:       flynn.HandshakeXX,
		Initiator:     cfg.Initiator,
		Prologue:      cfg.Prologue,
		StaticKeypair: flynn.DHKey{Private: cfg.Static.Seed(), Public: cfg.Static[ed25519.SeedSize:]},
	}
	if cfg.Pattern == IK {
		c.Pattern = flynn.HandshakeIK
		if cfg.Initiator {
			c.PeerStatic = cfg.Remote[:]
		}
	}
	var err error
	if h.state, err = flynn.NewHandshakeState(c); err != nil {
		return nil, fmt.Errorf("noise: %w", err)
	}
	return h, nil
}

// Write appends the next message to out.
func (h *Handshake) Write(out, payload []byte) ([]byte, error) {
	if h.done != nil || (h.state.MessageIndex()%2 == 0) != h.cfg.Initiator {
		return out, ErrState
	}
	out, a, b, err := h.state.WriteMessage(out, payload)
	if err != nil {
		return out, fmt.Errorf("noise: %s message %d: %w", h.cfg.Pattern, h.state.MessageIndex(), err)
	}
	return out, h.split(a, b)
}

// Read takes the other side's next message and returns its payload. Nothing
// that it says is true before Read returns without an error.
func (h *Handshake) Read(message []byte) ([]byte, error) {
	if h.done != nil || (h.state.MessageIndex()%2 == 0) == h.cfg.Initiator {
		return nil, ErrState
	}
	// The state is lost when an ephemeral key turns out to be none half-way: then no other
	// message, by another way, could be read any more.
	if h.state.MessageIndex() < 2 && len(message) >= KeySize {
		if err := h.dh.check(message[:KeySize]); err != nil {
			return nil, fmt.Errorf("noise: %s message %d: %w", h.cfg.Pattern, h.state.MessageIndex(), err)
		}
	}
	payload, a, b, err := h.state.ReadMessage(nil, message)
	if err != nil {
		return nil, fmt.Errorf("noise: %s message %d: %w", h.cfg.Pattern, h.state.MessageIndex(), err)
	}
	return payload, h.split(a, b)
}

// split takes the keys when the handshake is complete.
func (h *Handshake) split(a, b *flynn.CipherState) error {
	if a == nil {
		return nil
	}
	r := &Result{TX: a.UnsafeKey(), RX: b.UnsafeKey()}
	if !h.cfg.Initiator {
		r.TX, r.RX = r.RX, r.TX
	}
	copy(r.Hash[:], h.state.ChannelBinding())
	copy(r.Remote[:], h.state.PeerStatic())
	h.done = r
	return nil
}

// Remote returns the other side's static key, once it was read: in the first message of IK.
// Until the handshake is over that may be a copy of an old message.
func (h *Handshake) Remote() (key [KeySize]byte, ok bool) {
	b := h.state.PeerStatic()
	copy(key[:], b)
	return key, len(b) == KeySize
}

// Result returns the outcome, nil while messages are missing.
func (h *Handshake) Result() *Result { return h.done }
