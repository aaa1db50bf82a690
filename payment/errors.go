package payment

import "errors"

// Errors of a [Gateway] and a [Wallet].
var (
	// ErrUnpayable says that invoices could not be paid now.
	ErrUnpayable = errors.New("payment: cannot be paid now")
	// ErrUnknown says that the wallet has no such invoice.
	ErrUnknown = errors.New("payment: no such invoice")
	// ErrNoEvents says that a wallet must be asked about each invoice.
	ErrNoEvents = errors.New("payment: this wallet sends no events")
	// ErrDeclined says that a wallet did not pay, and will not.
	ErrDeclined = errors.New("payment: the wallet did not pay")
	// ErrShown says that somebody was asked to pay by hand.
	ErrShown = errors.New("payment: to be paid by hand")
)
