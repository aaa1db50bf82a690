package cashier

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/bolt11"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// puppet is a wallet that says what it is told to say.
type puppet struct {
	name string
	key  *secp256k1.PrivateKey

	mu      sync.Mutex
	n       uint64                      // invoices; guarded by mu, like all below
	said    map[[32]byte]payment.Status // of its invoices
	health  error
	fails   error // what all calls say
	creates int
	events  chan payment.Status
	cursors []string // with which it was watched
	alter   func(*bolt11.Invoice)
}

func newPuppet(name string) *puppet {
	seed := sha256.Sum256([]byte(name))
	return &puppet{name: name, key: secp256k1.PrivKeyFromBytes(seed[:]), said: map[[32]byte]payment.Status{}, events: make(chan payment.Status, 100)}
}

func (p *puppet) Name() string { return p.name }

func (p *puppet) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *puppet) Create(_ context.Context, r payment.Request) (payment.Issued, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fails != nil {
		return payment.Issued{}, p.fails
	}
	p.n++
	p.creates++
	preimage := preimageOf(p.name, p.n)
	v := &bolt11.Invoice{
		Network: bolt11.Regtest, Msat: r.Msat, Time: time.Now().Truncate(time.Second), Expiry: r.Expiry, Hash: sha256.Sum256(preimage[:]), Description: r.Description,
		CLTV: 80, Features: []byte{0x41, 0},
	}
	if p.alter != nil {
		p.alter(v)
	}
	text, err := v.Sign(p.key)
	if err != nil {
		return payment.Issued{}, err
	}
	v.Payee = [33]byte(p.key.PubKey().SerializeCompressed())
	p.said[v.Hash] = payment.Status{Hash: v.Hash}
	return payment.Issued{Invoice: v, Request: text}, nil
}

func preimageOf(name string, n uint64) [32]byte {
	return sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(strings.Repeat(name, 2)), n))
}

func (p *puppet) Lookup(_ context.Context, hash [32]byte, _ string) (payment.Status, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st, ok := p.said[hash]
	switch {
	case p.fails != nil:
		return st, p.fails
	case !ok:
		return st, payment.ErrUnknown
	}
	return st, nil
}

// say has it say something of an invoice from now on.
func (p *puppet) say(hash [32]byte, state payment.State, paid uint64, preimage *[32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.said[hash] = payment.Status{Hash: hash, State: state, Paid: paid, Preimage: preimage}
}

var errEOF = errors.New("the stream ended")

func (p *puppet) Watch(ctx context.Context, cursor string, f func(payment.Status, string) error) error {
	p.set(func() { p.cursors = append(p.cursors, cursor) })
	for {
		select {
		case st := <-p.events:
			if st.Hash == [32]byte{} {
				return errEOF
			}
			if err := f(st, "after "+st.State.String()); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *puppet) Identity(context.Context) (payment.Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return payment.Identity{Network: bolt11.Regtest, Payee: [33]byte(p.key.PubKey().SerializeCompressed())}, p.fails
}

func (p *puppet) Health(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.health
}
