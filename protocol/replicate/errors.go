package replicate

import (
	"errors"
	"fmt"

	"dazaar-edge/feed/merkle"
)

// Errors of this package. They are wrapped with what was wrong.
var (
	// ErrCapability says that the other side does not know the feed key.
	ErrCapability = errors.New("replicate: other side does not know the feed key")
	// ErrMessage says that a message cannot be read.
	ErrMessage = errors.New("replicate: bad message")
	// ErrFlood says that a peer asked for more than it may at once, or for too
	// much that cannot be.
	ErrFlood = errors.New("replicate: too many requests")
	// ErrUnavailable says that the other side has not what was asked for.
	ErrUnavailable = errors.New("replicate: not available")
	// ErrInvalid says that what a seller sent does not verify.
	ErrInvalid = errors.New("replicate: the seller's answer does not verify")
	// ErrClosed says that a session ended.
	ErrClosed = errors.New("replicate: session is over")
)

// ConflictError says that a feed key signed two different logs of one fork: the
// proof that its owner, or whoever has its key, is not honest or lost data.
type ConflictError struct {
	// Ours is the head that was held, Theirs the one that does not extend it,
	// with both signatures.
	Ours, Theirs                 merkle.Head
	OurSignature, TheirSignature []byte
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("replicate: two signed logs of fork %d: one of %d blocks, %x, and one of %d blocks, %x",
		e.Ours.Fork, e.Ours.Length, e.Ours.TreeHash[:8], e.Theirs.Length, e.Theirs.TreeHash[:8])
}
