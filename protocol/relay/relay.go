// Package relay is a blind relay, both sides: where no packet passes from one router to
// another, both ends connect to a third host, which passes on what it cannot read
// (specs/hyperdht.md, section 6).
//
// Both ends open the channel "blind-relay" on a connection with the relay, and name the same
// token. The relay gives each a stream number; packets to that come out at the other end.
//
// Where UDP does not pass at all, both ends connect to the relay by TCP ([Dial],
// [ListenStream], [Server.ServeStreams]; docs/relay.md): one who listens there under its key
// is told of who dials that, and comes for it; then both have a pipe.
package relay

import (
	"errors"

	"dazaar-edge/protocol/compact"
)

// Protocol is the name of the channel.
const Protocol = "blind-relay"

// Types of messages.
const (
	typePair   = 0
	typeUnpair = 1
)

// pair asks for a pairing, or answers that it was made.
type pair struct {
	initiator bool
	token     [32]byte
	id        uint32 // of the sender's stream
}

func (p pair) append(b []byte) []byte {
	b = append(compact.AppendBool(b, p.initiator), p.token[:]...)
	return compact.AppendUint(compact.AppendUint(b, uint64(p.id)), 0)
}

var errMessage = errors.New("relay: not a message")

func parsePair(b []byte) (p pair, err error) {
	if p.token, b, err = parseToken(b, &p.initiator); err != nil {
		return p, err
	}
	var id, seq uint64
	if _, err = compact.ParseUints(b, &id, &seq); err == nil && id > 1<<32-1 {
		err = errMessage
	}
	p.id = uint32(id)
	return p, err
}

// parseToken takes the flags and the token off a message.
func parseToken(b []byte, initiator *bool) (token [32]byte, rest []byte, err error) {
	if len(b) == 0 {
		return token, nil, errMessage
	}
	*initiator = b[0]&1 != 0
	return compact.ParseFixed32(b[1:])
}
