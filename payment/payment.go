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
	Expiry      time.Duration
}

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

// Wallet pays invoices. Its methods are called one at a time.
type Wallet interface {
	// Network is the one that it pays on.
	Network() bolt11.Network
	// Pay pays an invoice and returns the preimage; for one that it paid before it
	// returns that preimage again. An error that wraps [ErrDeclined] says that
	// nothing was paid, nor will be; after any other nobody knows.
	Pay(ctx context.Context, request string) (preimage [32]byte, err error)
}

// Gateway is a wallet that receives. All methods are safe for concurrent use.
type Gateway interface {
	// Name tells gateways of one configuration apart.
	Name() string
	// Create makes an invoice. The error wraps [ErrUnpayable] while invoices
	// could not be paid: the wallet is locked, not in step, or without capacity.
	Create(ctx context.Context, r Request) (*bolt11.Invoice, string, error)
	// Lookup returns how an invoice stands now. The error wraps [ErrUnknown] if
	// the wallet has no such invoice.
	Lookup(ctx context.Context, hash [32]byte) (Status, error)
	// Watch calls f for what is settled behind the cursor, and from now on, until
	// ctx ends or f fails; an invoice may come more than once. f gets the cursor
	// to begin with next time. An empty cursor begins now: what was settled
	// before must be looked up.
	Watch(ctx context.Context, cursor string, f func(s Status, cursor string) error) error
}
