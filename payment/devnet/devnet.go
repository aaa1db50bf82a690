// Package devnet is a wallet for tests and demonstrations. Its invoices are real
// BOLT 11 on regtest, signed by a key of its own; its money is worth nothing, and
// whoever can reach it may pay as much of it as he likes.
//
// # Protocol
//
//	POST /pay {"request": bolt11}  ->  {"preimage": hex}  or  {"error": text}
//
// # File
//
// devnet.json holds the node's key and every invoice, and is replaced as a whole
// before anybody hears of a change.
package devnet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"
	"dazaar-edge/storage/durable"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// Limits.
const (
	// maxInvoices is how many are kept; then the oldest that are not open go.
	maxInvoices = 10_000
	maxFile     = 32 << 20
	// MaxMsat is the largest invoice: a thousandth of a bitcoin.
	MaxMsat = 100_000_000
)

// fileName is the file in the directory.
const fileName = "devnet.json"

// Node is the wallet. It implements [payment.Gateway]; all methods are safe for
// concurrent use.
type Node struct {
	fsys durable.FS
	file string
	now  func() time.Time

	mu       sync.Mutex
	key      *secp256k1.PrivateKey
	invoices map[[32]byte]*invoice // guarded by mu, like all below
	settled  uint64                // how many were, ever
	change   chan struct{}         // closed when one is settled
}

// invoice is one as the file has it.
type invoice struct {
	Preimage string        `json:"preimage"`
	Request  string        `json:"request"`
	State    payment.State `json:"state"`
	Paid     uint64        `json:"paid,string"`
	Number   uint64        `json:"number"` // among those that were settled, from 1
	Expires  time.Time     `json:"expires"`

	hash [32]byte
	msat uint64
}

type file struct {
	Key      string     `json:"key"`
	Settled  uint64     `json:"settled"`
	Invoices []*invoice `json:"invoices"`
}

// Open opens the wallet in a directory, or makes one with a new key.
func Open(fsys durable.FS, dir string) (*Node, error) {
	n := &Node{
		fsys: fsys, file: filepath.Join(dir, fileName), now: time.Now, invoices: map[[32]byte]*invoice{}, change: make(chan struct{}),
	}
	if err := fsys.Mkdir(dir); err != nil {
		return nil, err
	}
	b, err := durable.ReadFile(fsys, n.file, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		if n.key, err = secp256k1.GeneratePrivateKeyFromRand(rand.Reader); err != nil {
			return nil, err
		}
		return n, n.save()
	} else if err != nil {
		return nil, err
	}
	if err := n.load(b); err != nil {
		return nil, fmt.Errorf("devnet: %s: %w; remove it to begin anew", n.file, err)
	}
	return n, nil
}

func (n *Node) load(b []byte) error {
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	key, err := hex.DecodeString(f.Key)
	if err != nil || len(key) != 32 {
		return errors.New("no key")
	}
	n.key, n.settled = secp256k1.PrivKeyFromBytes(key), f.Settled
	for _, x := range f.Invoices {
		v, err := bolt11.Parse(x.Request)
		if err != nil {
			return err
		}
		x.hash, x.msat = v.Hash, v.Msat
		n.invoices[x.hash] = x
	}
	return nil
}

// save writes everything. mu is held, or nobody else has n yet.
func (n *Node) save() error {
	key := n.key.Serialize()
	f := file{Key: hex.EncodeToString(key), Settled: n.settled}
	for _, x := range n.invoices {
		f.Invoices = append(f.Invoices, x)
	}
	slices.SortFunc(f.Invoices, func(a, b *invoice) int { return a.Expires.Compare(b.Expires) })
	if over := len(f.Invoices) - maxInvoices; over > 0 {
		f.Invoices = slices.DeleteFunc(f.Invoices, func(x *invoice) bool {
			if over <= 0 || n.state(x) == payment.Open || n.state(x) == payment.Accepted {
				return false
			}
			over--
			delete(n.invoices, x.hash)
			return true
		})
	}
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
	}
	return durable.WriteFile(n.fsys, n.file, append(b, '\n'))
}

// Name implements [payment.Gateway].
func (n *Node) Name() string { return "devnet" }

// Payee returns the node's public key, which signs its invoices.
func (n *Node) Payee() [33]byte { return [33]byte(n.key.PubKey().SerializeCompressed()) }

// features are those of an invoice with a payment secret: var_onion_optin and
// payment_secret, both required.
var features = [...]byte{0x41, 0}

// Create implements [payment.Gateway].
func (n *Node) Create(_ context.Context, r payment.Request) (payment.Issued, error) {
	return n.create(r, nil)
}

// CreateHash makes an invoice that has only the hash of a description, as services of
// Lightning addresses do.
func (n *Node) CreateHash(_ context.Context, msat uint64, hash [32]byte) (payment.Issued, error) {
	return n.create(payment.Request{Msat: msat, Expiry: bolt11.DefaultExpiry}, &hash)
}

func (n *Node) create(r payment.Request, hash *[32]byte) (issued payment.Issued, err error) {
	if r.Msat == 0 || r.Msat > MaxMsat {
		return issued, fmt.Errorf("%w: an invoice of %d msat; 1 to %d are possible", payment.ErrUnpayable, r.Msat, uint64(MaxMsat))
	}
	var preimage [32]byte
	v := &bolt11.Invoice{
		Network: bolt11.Regtest, Msat: r.Msat, Time: n.now().Truncate(time.Second), Expiry: r.Expiry.Truncate(time.Second), Description: r.Description,
		DescriptionHash: hash,
		CLTV:            80, Features: features[:], Payee: n.Payee(),
	}
	if _, err := rand.Read(preimage[:]); err != nil {
		return issued, err
	}
	if _, err := rand.Read(v.Secret[:]); err != nil {
		return issued, err
	}
	v.Hash = sha256.Sum256(preimage[:])
	text, err := v.Sign(n.key)
	if err != nil {
		return issued, err
	}
	x := &invoice{Preimage: hex.EncodeToString(preimage[:]), Request: text, Expires: v.ExpiresAt(), hash: v.Hash, msat: v.Msat}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.invoices[v.Hash] = x
	if err := n.save(); err != nil {
		delete(n.invoices, v.Hash)
		return issued, err
	}
	return payment.Issued{Invoice: v, Request: text}, nil
}

// Identity implements [payment.Gateway].
func (n *Node) Identity(context.Context) (payment.Identity, error) {
	return payment.Identity{Network: bolt11.Regtest, Payee: n.Payee()}, nil
}

// Health implements [payment.Gateway].
func (n *Node) Health(context.Context) error { return nil }

// state is how an invoice stands now. mu is held.
func (n *Node) state(x *invoice) payment.State {
	if x.State == payment.Open && !n.now().Before(x.Expires) {
		return payment.Canceled
	}
	return x.State
}

// status says how an invoice stands, as a node does: an accepted payment has its
// amount already. mu is held.
func (n *Node) status(x *invoice) payment.Status {
	st := payment.Status{Hash: x.hash, State: n.state(x), Paid: x.Paid}
	if st.State == payment.Settled {
		b, err := hex.DecodeString(x.Preimage)
		if err == nil && len(b) == 32 {
			st.Preimage = (*[32]byte)(b)
		}
	}
	return st
}

// Lookup implements [payment.Gateway].
func (n *Node) Lookup(_ context.Context, hash [32]byte, _ string) (payment.Status, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.invoices[hash]
	if x == nil {
		return payment.Status{}, fmt.Errorf("%w: %x", payment.ErrUnknown, hash)
	}
	return n.status(x), nil
}

// Watch implements [payment.Gateway]. The cursor is the number of the invoice among
// those that were settled.
func (n *Node) Watch(ctx context.Context, cursor string, f func(payment.Status, string) error) error {
	n.mu.Lock()
	at := n.settled
	n.mu.Unlock()
	if cursor != "" {
		var err error
		if at, err = strconv.ParseUint(cursor, 10, 64); err != nil {
			return fmt.Errorf("devnet: cursor %q: %w", cursor, err)
		}
	}
	for {
		n.mu.Lock()
		change := n.change
		var news []*invoice
		for _, x := range n.invoices {
			if x.State == payment.Settled && x.Number > at {
				news = append(news, x)
			}
		}
		slices.SortFunc(news, func(a, b *invoice) int { return int(a.Number) - int(b.Number) })
		var list []payment.Status
		for _, x := range news {
			list = append(list, n.status(x))
		}
		n.mu.Unlock()
		for i, st := range list {
			at = news[i].Number
			if err := f(st, strconv.FormatUint(at, 10)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-change:
		}
	}
}

// Errors of a payment.
var (
	errExpired = errors.New("devnet: the invoice expired or was canceled")
	errPaid    = errors.New("devnet: the invoice is paid already")
	errShort   = errors.New("devnet: less than what is asked for")
)

// Pay pays an invoice of this wallet, with msat or, if that is 0, what it asks for,
// and returns the preimage.
func (n *Node) Pay(request string, msat uint64) (preimage [32]byte, err error) {
	x, err := n.Accept(request, msat)
	if err != nil {
		return preimage, err
	}
	return n.Settle(x)
}

// Accept is the first half of a payment, which can still be taken back: money is on
// its way, and not there.
func (n *Node) Accept(request string, msat uint64) (hash [32]byte, err error) {
	v, err := bolt11.Parse(request)
	if err != nil {
		return hash, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.invoices[v.Hash]
	switch {
	case x == nil || v.Payee != n.Payee():
		return hash, fmt.Errorf("%w: %x", payment.ErrUnknown, v.Hash)
	case x.State == payment.Settled || x.State == payment.Accepted:
		return hash, errPaid
	case n.state(x) != payment.Open:
		return hash, errExpired
	}
	if msat == 0 {
		msat = x.msat
	}
	if msat < x.msat {
		return hash, errShort
	}
	x.State, x.Paid = payment.Accepted, msat
	if err := n.save(); err != nil {
		x.State, x.Paid = payment.Open, 0
		return hash, err
	}
	return x.hash, nil
}

// Settle is the second half of a payment.
func (n *Node) Settle(hash [32]byte) (preimage [32]byte, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.invoices[hash]
	if x == nil || x.State != payment.Accepted {
		return preimage, fmt.Errorf("%w: nothing was accepted for %x", payment.ErrUnknown, hash)
	}
	x.State, x.Number = payment.Settled, n.settled+1
	n.settled++
	if err := n.save(); err != nil {
		x.State, x.Number = payment.Accepted, 0
		n.settled--
		return preimage, err
	}
	close(n.change)
	n.change = make(chan struct{})
	b, err := hex.DecodeString(x.Preimage)
	copy(preimage[:], b)
	return preimage, err
}

// Cancel takes back what was accepted.
func (n *Node) Cancel(hash [32]byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.invoices[hash]
	if x == nil || x.State == payment.Settled {
		return fmt.Errorf("%w: nothing to cancel for %x", payment.ErrUnknown, hash)
	}
	x.State = payment.Canceled
	return n.save()
}
