// Package nostr speaks Nostr as far as a wallet at the other end of a relay needs it:
// signed events (NIP-01), their encryption (NIP-44, and NIP-04 of older wallets), and a
// connection to one relay (with NIP-42).
//
// # Wire
//
// JSON arrays over a WebSocket. To the relay ["EVENT", event], ["REQ", name, filter …],
// ["AUTH", event]; from it ["EVENT", name, event], ["OK", id, taken, why], ["EOSE", name],
// ["CLOSED", name, why], ["NOTICE", text], ["AUTH", challenge].
//
// An event's id is the SHA-256 of [0, public key, time, kind, tags, content], and its
// signature a Schnorr signature (BIP-340) of that.
package nostr

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Errors that callers tell apart.
var (
	// ErrSignature says that an event is not signed by whom it names.
	ErrSignature = errors.New("nostr: the signature does not verify")
	// ErrEncryption says that a text cannot be decrypted.
	ErrEncryption = errors.New("nostr: cannot be decrypted")
	// ErrClosed says that a connection has ended.
	ErrClosed = errors.New("nostr: the connection to the relay ended")
	// ErrRefused says that a relay does not take an event.
	ErrRefused = errors.New("nostr: the relay refuses it")
)

// Event is a signed event.
type Event struct {
	ID      string     `json:"id"`
	PubKey  string     `json:"pubkey"` // x coordinate, in hex
	Created int64      `json:"created_at"`
	Kind    int        `json:"kind"`
	Tags    [][]string `json:"tags"`
	Content string     `json:"content"`
	Sig     string     `json:"sig"`
}

// Tag returns the first value of a tag; "" if it is not there.
func (e *Event) Tag(name string) string {
	for _, t := range e.Tags {
		if len(t) > 1 && t[0] == name {
			return t[1]
		}
	}
	return ""
}

// hash returns what is signed.
func (e *Event) hash() ([32]byte, error) {
	tags := e.Tags
	if tags == nil {
		tags = [][]string{}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode([]any{0, e.PubKey, e.Created, e.Kind, tags, e.Content}); err != nil {
		return [32]byte{}, err
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	// NIP-01 escapes fewer characters than this encoder does.
	text = bytes.ReplaceAll(text, []byte(`\u2028`), []byte("\u2028"))
	text = bytes.ReplaceAll(text, []byte(`\u2029`), []byte("\u2029"))
	return sha256.Sum256(text), nil
}

// NewEvent returns an event that a key signed now.
func NewEvent(k *Key, kind int, content string, tags ...[]string) (*Event, error) {
	if tags == nil {
		tags = [][]string{}
	}
	e := &Event{PubKey: k.Public(), Created: time.Now().Unix(), Kind: kind, Tags: tags, Content: content}
	hash, err := e.hash()
	if err != nil {
		return nil, err
	}
	sig, err := k.sign(hash)
	if err != nil {
		return nil, err
	}
	e.ID, e.Sig = hex.EncodeToString(hash[:]), hex.EncodeToString(sig[:])
	return e, nil
}

// Verify checks id and signature. It fails with [ErrSignature].
func (e *Event) Verify() error {
	hash, err := e.hash()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSignature, err)
	}
	key, err := hex.DecodeString(e.PubKey)
	sig, bad := hex.DecodeString(e.Sig)
	if err != nil || bad != nil || len(key) != 32 || len(sig) != 64 || e.ID != hex.EncodeToString(hash[:]) ||
		!verify([32]byte(key), hash, [64]byte(sig)) {
		return fmt.Errorf("%w: event %.16q", ErrSignature, e.ID)
	}
	return nil
}

// Filter selects events.
type Filter struct {
	Kinds   []int    `json:"kinds,omitempty"`
	Authors []string `json:"authors,omitempty"`
	To      []string `json:"#p,omitempty"`
	Since   int64    `json:"since,omitempty"`
	Limit   int      `json:"limit,omitempty"`
}
