package secretstream

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"runtime"

	"golang.org/x/crypto/chacha20"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/poly1305"
)

const (
	// headerSize is the length of the header that seeds one direction.
	headerSize = 24
	macSize    = 16
	// blockSize is the length of the tag block in front of each message, of
	// which only the first byte travels.
	blockSize = 64
	// overhead is what a frame is longer than its message.
	overhead = 1 + macSize
)

// state is one direction of libsodium's secretstream_xchacha20poly1305.
type state struct {
	key   [chacha20.KeySize]byte
	nonce [chacha20.NonceSize]byte // LE32 counter, then 8 bytes
	aead  cipher.AEAD
}

// newState derives a direction from its transport key and header.
func newState(key [32]byte, header []byte) (*state, error) {
	k, err := chacha20.HChaCha20(key[:], header[:16])
	if err != nil {
		return nil, err
	}
	s := &state{}
	copy(s.key[:], k)
	copy(s.nonce[4:], header[16:headerSize])
	return s, s.restart()
}

// restart begins a new count under the present key.
func (s *state) restart() (err error) {
	binary.LittleEndian.PutUint32(s.nonce[:], 1)
	s.aead, err = chacha20poly1305.New(s.key[:])
	return err
}

// advance moves the state behind a message with this MAC.
func (s *state) advance(mac []byte) error {
	subtle.XORBytes(s.nonce[4:], s.nonce[4:], mac[:8])
	n := binary.LittleEndian.Uint32(s.nonce[:]) + 1
	binary.LittleEndian.PutUint32(s.nonce[:], n)
	if n != 0 {
		return nil
	}
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		return err
	}
	var b [chacha20.KeySize + 8]byte
	copy(b[copy(b[:], s.key[:]):], s.nonce[4:])
	c.XORKeyStream(b[:], b[:])
	copy(s.nonce[4:], b[copy(s.key[:], b[:]):])
	return s.restart()
}

// standard tells whether libsodium's padding of a message of n bytes, n mod 16
// zeros, happens to be what RFC 8439 asks for. Then the AEAD does all at once.
func standard(n int) bool { return n%8 == 0 }

// fastAEAD: where the AEAD has assembly, its key stream and a second pass for
// the MAC are faster than package chacha20, which has none there.
const fastAEAD = runtime.GOARCH == "amd64"

// seal encrypts b, a tag block and a message, in place and returns it with the
// MAC behind it. b needs capacity for that.
func (s *state) seal(b []byte) ([]byte, error) {
	if standard(len(b)) {
		b = s.aead.Seal(b[:0], s.nonce[:], b, nil)
		return b, s.advance(b[len(b)-macSize:])
	}
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		return nil, err
	}
	mac := newMAC(c)
	if fastAEAD {
		n := len(b)
		b = s.aead.Seal(b[:0], s.nonce[:], b, nil)[:n] // for its key stream
	} else {
		c.XORKeyStream(b, b)
	}
	b = sum(mac, b)
	return b, s.advance(b[len(b)-macSize:])
}

// open decrypts b, room for a tag block, a message and its MAC, in place and
// returns the message. tag is the encrypted tag. It tells whether the MAC is right.
func (s *state) open(b []byte, tag byte) ([]byte, bool, error) {
	c, err := chacha20.NewUnauthenticatedCipher(s.key[:], s.nonce[:])
	if err != nil {
		return nil, false, err
	}
	block := b[:blockSize]
	clear(block)
	mac := newMAC(c)
	c.XORKeyStream(block, block)
	block[0] = tag
	var next [macSize]byte
	copy(next[:], b[len(b)-macSize:])
	m := b[:len(b)-macSize]
	if standard(len(m)) {
		if m, err = s.aead.Open(b[:0], s.nonce[:], b, nil); err != nil {
			return nil, false, nil
		}
	} else {
		var want [macSize]byte
		if subtle.ConstantTimeCompare(sumInto(mac, m, &want), next[:]) != 1 {
			return nil, false, nil
		}
		if fastAEAD {
			s.aead.Seal(b[:0], s.nonce[:], m, nil) // the key stream goes both ways
		} else {
			c.XORKeyStream(m[blockSize:], m[blockSize:])
		}
	}
	return m[blockSize:], true, s.advance(next[:])
}

// newMAC takes the MAC's key off the key stream's first block.
func newMAC(c *chacha20.Cipher) *poly1305.MAC {
	var b [blockSize]byte
	c.XORKeyStream(b[:], b[:])
	var key [32]byte
	copy(key[:], b[:])
	return poly1305.New(&key)
}

func sum(mac *poly1305.MAC, b []byte) []byte {
	var out [macSize]byte
	return append(b, sumInto(mac, b, &out)...)
}

// sumInto computes the MAC over an encrypted tag block and message.
func sumInto(mac *poly1305.MAC, b []byte, out *[macSize]byte) []byte {
	mac.Write(b)
	var tail [16 + 16]byte
	pad := tail[:len(b)%16]
	lengths := tail[len(pad) : len(pad)+16]
	binary.LittleEndian.PutUint64(lengths[8:], uint64(len(b)))
	mac.Write(tail[:len(pad)+16])
	return mac.Sum(out[:0])
}
