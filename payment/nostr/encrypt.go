package nostr

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/crypto/chacha20"
)

// Encryption is how contents are encrypted.
type Encryption string

// Encryptions, by the names that NIP-47 has for them.
const (
	NIP44 Encryption = "nip44_v2"
	NIP04 Encryption = "nip04"
)

// Encrypt encrypts a text for the owner of a public key.
func (k *Key) Encrypt(how Encryption, peer, text string) (string, error) {
	x, err := k.shared(peer)
	if err != nil {
		return "", err
	}
	if how == NIP04 {
		return encrypt04(x, []byte(text))
	}
	var nonce [32]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return "", err
	}
	key, err := conversationKey(x)
	if err != nil {
		return "", err
	}
	return encrypt44(key, nonce, []byte(text))
}

// Decrypt decrypts what the owner of a public key encrypted. It fails with
// [ErrEncryption].
func (k *Key) Decrypt(how Encryption, peer, text string) (string, error) {
	x, err := k.shared(peer)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrEncryption, err)
	}
	var b []byte
	if how == NIP04 {
		b, err = decrypt04(x, text)
	} else {
		var key []byte
		if key, err = conversationKey(x); err == nil {
			b, err = decrypt44(key, text)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrEncryption, how, err)
	}
	return string(b), nil
}

// Layout of NIP-44: version, nonce, text, code.
const (
	version44 = 2
	maxText   = 65535
	head44    = 1 + 32
	code44    = 32
)

func conversationKey(x [32]byte) ([]byte, error) {
	return hkdf.Extract(sha256.New, x[:], []byte("nip44-v2"))
}

// keys44 returns the keys of one message.
func keys44(conversation, nonce []byte) (stream *chacha20.Cipher, code []byte, err error) {
	b, err := hkdf.Expand(sha256.New, conversation, string(nonce), 76)
	if err != nil {
		return nil, nil, err
	}
	stream, err = chacha20.NewUnauthenticatedCipher(b[:32], b[32:44])
	return stream, b[44:], err
}

// padded returns how long a text of n bytes is made.
func padded(n int) int {
	if n <= 32 {
		return 32
	}
	next := 1 << bits.Len(uint(n-1))
	chunk := max(next/8, 32)
	return chunk * ((n-1)/chunk + 1)
}

func encrypt44(conversation []byte, nonce [32]byte, text []byte) (string, error) {
	if len(text) < 1 || len(text) > maxText {
		return "", fmt.Errorf("nostr: a text of %d bytes", len(text))
	}
	stream, code, err := keys44(conversation, nonce[:])
	if err != nil {
		return "", err
	}
	body := make([]byte, 2+padded(len(text)))
	binary.BigEndian.PutUint16(body, uint16(len(text)))
	copy(body[2:], text)
	stream.XORKeyStream(body, body)
	out := append(append([]byte{version44}, nonce[:]...), body...)
	return base64.StdEncoding.EncodeToString(append(out, authenticate(code, out[1:])...)), nil
}

func authenticate(key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(b)
	return h.Sum(nil)
}

func decrypt44(conversation []byte, text string) ([]byte, error) {
	if strings.HasPrefix(text, "#") {
		return nil, fmt.Errorf("a newer encryption")
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	if len(b) < head44+2+32+code44 || len(b) > head44+2+maxText+1+code44 || b[0] != version44 {
		return nil, fmt.Errorf("%d bytes", len(b))
	}
	nonce, body, code := b[1:head44], b[head44:len(b)-code44], b[len(b)-code44:]
	stream, key, err := keys44(conversation, nonce)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(authenticate(key, b[1:len(b)-code44]), code) {
		return nil, fmt.Errorf("the code does not fit")
	}
	stream.XORKeyStream(body, body)
	n := int(binary.BigEndian.Uint16(body))
	if n < 1 || len(body) != 2+padded(n) || len(bytes.Trim(body[2+n:], "\x00")) > 0 {
		return nil, fmt.Errorf("the padding does not fit")
	}
	return body[2 : 2+n], nil
}

// separator04 stands between the text and the first block of NIP-04.
const separator04 = "?iv="

func encrypt04(key [32]byte, text []byte) (string, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return "", err
	}
	iv := make([]byte, aes.BlockSize)
	if _, err := rand.Read(iv); err != nil {
		return "", err
	}
	n := aes.BlockSize - len(text)%aes.BlockSize
	b := append(bytes.Clone(text), bytes.Repeat([]byte{byte(n)}, n)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(b, b)
	return base64.StdEncoding.EncodeToString(b) + separator04 + base64.StdEncoding.EncodeToString(iv), nil
}

func decrypt04(key [32]byte, text string) ([]byte, error) {
	body, first, ok := strings.Cut(text, separator04)
	b, err := base64.StdEncoding.DecodeString(body)
	iv, bad := base64.StdEncoding.DecodeString(first)
	if !ok || err != nil || bad != nil || len(iv) != aes.BlockSize || len(b) == 0 || len(b)%aes.BlockSize != 0 {
		return nil, fmt.Errorf("not a text and its first block")
	}
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	cipher.NewCBCDecrypter(block, iv).CryptBlocks(b, b)
	n := int(b[len(b)-1])
	if n < 1 || n > aes.BlockSize || !bytes.Equal(b[len(b)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		return nil, fmt.Errorf("the padding does not fit")
	}
	return b[:len(b)-n], nil
}
