// Package payment says what a seller needs of the wallet that is paid: a [Gateway]
// makes invoices and says what became of them, and never pays; and what a buyer needs
// of the one that does, a [Wallet].
//
// Amounts are integers in msat (thousandths of a satoshi), everywhere.
//
// Source: specs/lightning.md, sections 1 to 3.
package payment

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"dazaar-edge/payment/bolt11"
)

// State is how an invoice stands. Only Settled means that money came: an accepted
// payment may still be taken back, and has its full amount all the same.
type State uint8

// States of an invoice.
const (
	Open State = iota
	Accepted
	Settled
	Canceled // or expired
)

var stateNames = [...]string{"open", "accepted", "settled", "canceled"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// Request says which invoice to make.
type Request struct {
	Msat        uint64 // not 0
	Description string
	// Short says the same in few characters, and nothing about who is who, for wallets of
	// others; "" is Description.
	Short  string
	Expiry time.Duration
}

// Check reads an invoice that a wallet made, and tells whether it is for the amount
// that was asked for, on the right network. Errors wrap [ErrUnpayable] where the
// configuration must be mended.
func (r Request) Check(text string, network bolt11.Network) (*bolt11.Invoice, error) {
	v, err := bolt11.Parse(text)
	switch {
	case err != nil:
	case v.Msat != r.Msat:
		err = fmt.Errorf("it is for %d msat, and %d were asked for", v.Msat, r.Msat)
	case v.Network != network:
		err = fmt.Errorf("%w: it is on %s, and the configuration says %s", ErrUnpayable, v.Network, network)
	}
	if err != nil {
		return nil, fmt.Errorf("the wallet's invoice: %w", err)
	}
	return v, nil
}

// Issued is an invoice that a gateway made.
type Issued struct {
	*bolt11.Invoice
	Request string // the invoice itself
	// Handle is what the gateway wants to see when it is asked about the invoice, at
	// most [MaxHandle] bytes; "" if the hash is enough.
	Handle string
}

// MaxHandle bounds a handle.
const MaxHandle = 1024

// Status is what a gateway says of an invoice.
type Status struct {
	Hash  [32]byte
	State State
	// Paid is what came, in msat; it may be more than was asked for. It means
	// nothing unless State is Settled.
	Paid uint64
	// Preimage hashes to Hash, if the gateway tells it.
	Preimage *[32]byte
}

// Identity is who is paid.
type Identity struct {
	Network bolt11.Network
	// Payee is the key that signs the invoices.
	Payee [33]byte
	// Floats: a service signs them, with several keys, which may change.
	Floats bool
	// Unbound: what invoices say is up to the wallet.
	Unbound bool
}

// Gateway is a wallet that receives. All methods are safe for concurrent use.
type Gateway interface {
	// Name tells gateways of one configuration apart.
	Name() string
	// Create makes an invoice. The error wraps [ErrUnpayable] while invoices
	// could not be paid: the wallet is locked, not in step, or without capacity.
	Create(ctx context.Context, r Request) (Issued, error)
	// Lookup returns how an invoice stands now; handle is that of Issued. The error
	// wraps [ErrUnknown] if the wallet has no such invoice.
	Lookup(ctx context.Context, hash [32]byte, handle string) (Status, error)
	// Watch calls f for what is settled behind the cursor, and from now on, until
	// ctx ends or f fails; an invoice may come more than once. f gets the cursor
	// to begin with next time; where it is empty, a next time begins with what is
	// settled from then on. An empty cursor begins now: what was settled before must be
	// looked up. A wallet that tells nothing of itself fails with [ErrNoEvents].
	Watch(ctx context.Context, cursor string, f func(s Status, cursor string) error) error
	// Identity returns who signs the invoices today. It may make one to see.
	Identity(ctx context.Context) (Identity, error)
	// Health returns why invoices could not be made or paid now, as far as the wallet
	// says so, and nil if nothing is known against it.
	Health(ctx context.Context) error
}

// Payment is what a [Wallet] is to pay.
type Payment struct {
	Request string // BOLT 11, with an amount
	Msat    uint64 // that amount
	// MaxFee is what may be paid to those on the way, in msat.
	MaxFee uint64
}

// Proof is what a payer has when it paid.
type Proof struct {
	Preimage [32]byte
	Fee      uint64 // what was paid to those on the way, in msat, if the wallet says it
}

// Check tells whether the proof is of the invoice with this hash.
func (p Proof) Check(hash [32]byte) error {
	if sha256.Sum256(p.Preimage[:]) != hash {
		return errors.New("payment: the wallet's preimage is not the invoice's")
	}
	return nil
}

// Wallet pays invoices. Its methods are called one at a time.
type Wallet interface {
	// Network is the one that it pays on; "" if it does not say.
	Network() bolt11.Network
	// Pay pays an invoice, or finds out that it was paid before. It never pays one a
	// second time, nor while the first attempt may still arrive. An error that wraps
	// [ErrDeclined] says that nothing was paid, nor will be; one that wraps
	// [ErrShown] that it is up to somebody else, who was told; after any other nobody
	// knows.
	Pay(ctx context.Context, p Payment) (Proof, error)
}
