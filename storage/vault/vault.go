// Package vault keeps the one secret that all keys of a device come from, and
// knows whether it is still on the board and card it was made for.
//
// # File
//
// vault.json, mode 0600, replaced as a whole: version, binding, and the master
// secret, in the clear or sealed with XChaCha20-Poly1305 under Argon2id of a
// passphrase or systemd credential.
//
// # Binding
//
// Two devices with one key would sign two trees of one length, the fault that
// cannot be repaired. So the vault remembers hashes of what names the board (its
// serial or DMI uuid), the card (CID or serial), the first network address, and
// the inode of its own directory, which catches copied files. When any of them
// is another one, [Vault.Moved] names it and no key is given out until
// [Vault.Bind] says that this device is the one that goes on.
//
// # Keys
//
// All by BLAKE2b-256 keyed with the master secret (specs/exchange.md, "Flow").
package vault

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"dazaar-edge/storage/durable"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/blake2b"
	"golang.org/x/crypto/chacha20poly1305"
)

// Name is the vault's file name in its directory.
const Name = "vault.json"

const (
	formatVersion = 1
	secretSize    = 32
	maxFile       = 64 << 10
	// Argon2id: 16 MiB fits the smallest board.
	argonTime, argonMemory, argonThreads = 3, 16 << 10, 1
)

// Errors of this package.
var (
	// ErrNone says that there is no vault: the device has no keys yet.
	ErrNone = errors.New("vault: none here")
	// ErrSealed says that the vault needs a passphrase.
	ErrSealed = errors.New("vault: sealed: give the passphrase")
	// ErrSecret says that the passphrase is wrong or the file was changed.
	ErrSecret = errors.New("vault: wrong passphrase, or the file was changed")
	// ErrCorrupt says that the file is not a vault.
	ErrCorrupt = errors.New("vault: damaged file")
	// ErrNewer says that a newer program wrote it.
	ErrNewer = errors.New("vault: written by a newer version of this program")
	// ErrMoved says that no key is given out on this board or card.
	ErrMoved = errors.New("vault: this is not the board or card the keys were made on: edge repair --moved if this device goes on instead of the old one, --new-identity if both do")
)

// Vault holds the master secret. Safe for concurrent use.
type Vault struct {
	fs     durable.FS
	dir    string
	master [secretSize]byte
	seal   []byte // passphrase, nil if not sealed

	former []ed25519.PublicKey

	mu    sync.Mutex
	bound Binding  // guarded by mu
	moved []string // guarded by mu
}

type file struct {
	Version int     `json:"version"`
	Binding Binding `json:"binding"`
	Secret  []byte  `json:"secret,omitempty"`
	Salt    []byte  `json:"salt,omitempty"`
	Nonce   []byte  `json:"nonce,omitempty"`
	Sealed  []byte  `json:"sealed,omitempty"`
	// Former are public device keys of earlier identities: old segments are
	// signed by them.
	Former [][]byte `json:"former,omitempty"`
	Check  []byte   `json:"check,omitempty"` // hash of the file without it, against damage
}

// encode returns the file's bytes.
func (f file) encode() ([]byte, error) {
	f.Check = nil
	b, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	h := blake2b.Sum256(b)
	f.Check = h[:8]
	b, err = json.MarshalIndent(f, "", "  ")
	return append(b, '\n'), err
}

// Create makes a new vault in dir, bound to here, sealed if passphrase is not
// empty. It never replaces one. former are the device keys of identities that
// this one follows.
func Create(fsys durable.FS, dir string, passphrase []byte, here Binding, random io.Reader, former ...ed25519.PublicKey) (*Vault, error) {
	if _, err := durable.ReadFile(fsys, filepath.Join(dir, Name), maxFile); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fs.ErrExist
		}
		return nil, fmt.Errorf("vault %s: %w", dir, err)
	}
	v := &Vault{fs: fsys, dir: dir, seal: passphrase, bound: here, former: former}
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, v.master[:]); err != nil {
		return nil, err
	}
	return v, v.save()
}

// Open opens the vault in dir and compares its binding with here.
func Open(fsys durable.FS, dir string, passphrase []byte, here Binding) (*Vault, error) {
	name := filepath.Join(dir, Name)
	b, err := durable.ReadFile(fsys, name, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNone, name)
	} else if err != nil {
		return nil, err
	}
	f, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	v := &Vault{fs: fsys, dir: dir, bound: f.Binding, moved: f.Binding.differs(here)}
	for _, k := range f.Former {
		v.former = append(v.former, k)
	}
	secret, err := f.open(passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	v.master = [secretSize]byte(secret)
	if f.Sealed != nil {
		v.seal = passphrase
	}
	return v, nil
}

func parse(b []byte) (f file, err error) {
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	switch {
	case f.Version > formatVersion:
		return f, fmt.Errorf("%w: format %d, this one knows %d", ErrNewer, f.Version, formatVersion)
	case f.Version < 1 || (f.Sealed == nil) == (f.Secret == nil):
		return f, fmt.Errorf("%w: incomplete", ErrCorrupt)
	case slices.ContainsFunc(f.Former, func(k []byte) bool { return len(k) != ed25519.PublicKeySize }):
		return f, fmt.Errorf("%w: former keys", ErrCorrupt)
	case f.Secret != nil && len(f.Secret) != secretSize, f.Sealed != nil && len(f.Nonce) != chacha20poly1305.NonceSizeX:
		return f, fmt.Errorf("%w: wrong sizes", ErrCorrupt)
	}
	if again, err := f.encode(); err != nil || !bytes.Equal(again, b) {
		return f, fmt.Errorf("%w: it is not as it was written", ErrCorrupt)
	}
	return f, nil
}

// open returns the master secret.
func (f *file) open(passphrase []byte) ([]byte, error) {
	if f.Secret != nil {
		return f.Secret, nil
	}
	if len(passphrase) == 0 {
		return nil, ErrSealed
	}
	aead, err := chacha20poly1305.NewX(sealKey(passphrase, f.Salt))
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, f.Nonce, f.Sealed, nil)
	if err != nil || len(secret) != secretSize {
		return nil, ErrSecret
	}
	return secret, nil
}

func sealKey(passphrase, salt []byte) []byte {
	return argon2.IDKey(passphrase, salt, argonTime, argonMemory, argonThreads, chacha20poly1305.KeySize)
}

func (v *Vault) save() error {
	f := file{Version: formatVersion, Binding: v.bound}
	for _, k := range v.former {
		f.Former = append(f.Former, k)
	}
	if len(v.seal) == 0 {
		f.Secret = v.master[:]
	} else {
		f.Salt, f.Nonce = make([]byte, 16), make([]byte, chacha20poly1305.NonceSizeX)
		if _, err := rand.Read(f.Salt); err != nil {
			return err
		}
		if _, err := rand.Read(f.Nonce); err != nil {
			return err
		}
		aead, err := chacha20poly1305.NewX(sealKey(v.seal, f.Salt))
		if err != nil {
			return err
		}
		f.Sealed = aead.Seal(nil, f.Nonce, v.master[:], nil)
	}
	b, err := f.encode()
	if err != nil {
		return err
	}
	return durable.WriteFile(v.fs, filepath.Join(v.dir, Name), b)
}

// Verify checks that a vault's file is as it was written; no passphrase is
// needed.
func Verify(fsys durable.FS, dir string) error {
	b, err := durable.ReadFile(fsys, filepath.Join(dir, Name), maxFile)
	if err != nil {
		return err
	}
	_, err = parse(b)
	return err
}

// Moved names what is not as when the vault was bound; nothing if all is.
func (v *Vault) Moved() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.moved
}

// Bind says that this device is the one that goes on with the keys.
func (v *Vault) Bind(here Binding) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.bound, v.moved = here, nil
	return v.save()
}

// Retire renames the vault's file so that a new one can be made; the old keys
// stay in it. It returns the new name.
func Retire(fsys durable.FS, dir string, now time.Time) (string, error) {
	to := filepath.Join(dir, "vault-"+now.UTC().Format("20060102T150405Z")+".old")
	if err := fsys.Rename(filepath.Join(dir, Name), to); err != nil {
		return "", err
	}
	return to, fsys.SyncDir(dir)
}

// hash is BLAKE2b-256 keyed with the master secret.
func hash(master [secretSize]byte, parts ...[]byte) (seed [32]byte) {
	h, _ := blake2b.New256(master[:]) // 32 bytes are never too long a key
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(seed[:0])
	return seed
}

// derive returns a seed; it fails while the vault is on another board.
func (v *Vault) derive(parts ...[]byte) (seed [32]byte, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.moved) > 0 {
		return seed, ErrMoved
	}
	return hash(v.master, parts...), nil
}

// Devices returns the public device keys, also on another board: this one's and
// those of earlier identities.
func (v *Vault) Devices() []ed25519.PublicKey {
	seed := hash(v.master, []byte("dazaar device\n"))
	return append([]ed25519.PublicKey{ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)}, v.former...)
}

// Device returns the device key, which signs closed segments.
func (v *Vault) Device() (ed25519.PrivateKey, error) {
	seed, err := v.derive([]byte("dazaar device\n"))
	return ed25519.NewKeyFromSeed(seed[:]), err
}

// Offer holds the keys of one offer. Safe for concurrent use.
type Offer struct {
	v      *Vault
	device ed25519.PrivateKey // nil where nothing may be signed
	seller ed25519.PrivateKey
}

// Offer returns the keys of the offer with this name. Another name is another
// seller.
func (v *Vault) Offer(name string) (*Offer, error) {
	seed, err := v.derive([]byte("dazaar seller\n"), []byte(name))
	if err != nil {
		return &Offer{v: v}, err
	}
	device, err := v.Device()
	return &Offer{v, device, ed25519.NewKeyFromSeed(seed[:])}, err
}

// SellerKey returns the offer's public key; nil if the vault was moved.
func (o *Offer) SellerKey() ed25519.PublicKey {
	if o.seller == nil {
		return nil
	}
	return o.seller.Public().(ed25519.PublicKey)
}

// Seller returns the offer's private key, with which it is met on the network;
// nil if the vault was moved.
func (o *Offer) Seller() ed25519.PrivateKey { return o.seller }

// FeedSeed returns the Ed25519 seed of the feed of a sale.
func (o *Offer) FeedSeed(buyer [32]byte, generation uint64) ([32]byte, error) {
	return o.v.derive([]byte("dazaar feed seed\n"), o.SellerKey(), buyer[:], binary.LittleEndian.AppendUint64(nil, generation))
}

// SignDevice signs with the device key; nil if the vault was moved.
func (o *Offer) SignDevice(message []byte) []byte {
	if o.device == nil {
		return nil
	}
	return ed25519.Sign(o.device, message)
}
