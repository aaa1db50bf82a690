package secretstream

import "errors"

// Errors of this package. They are wrapped with what was wrong.
var (
	// ErrFrame says that a frame's length is impossible.
	ErrFrame = errors.New("secretstream: bad frame length")
	// ErrTooLarge says that a frame is longer than the limit of this side.
	ErrTooLarge = errors.New("secretstream: frame is too large")
	// ErrAuth says that a frame is not what the other side sent.
	ErrAuth = errors.New("secretstream: frame does not authenticate")
	// ErrHeader says that the stream's header is not of this handshake.
	ErrHeader = errors.New("secretstream: header is not of this handshake")
	// ErrIdentity says that the other side has another key than expected.
	ErrIdentity = errors.New("secretstream: the other side has another key")
)
