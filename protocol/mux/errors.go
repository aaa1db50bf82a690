package mux

import "errors"

// Errors of this package. They are wrapped with what was wrong.
var (
	// ErrProtocol says that the other side broke the rules of Protomux.
	ErrProtocol = errors.New("mux: protocol violation")
	// ErrSlow says that the other side does not read what it is sent.
	ErrSlow = errors.New("mux: other side does not read")
	// ErrTooLarge says that a message is larger than Send takes.
	ErrTooLarge = errors.New("mux: message is too large")
	// ErrExists says that a channel is open already.
	ErrExists = errors.New("mux: channel is open already")
	// ErrTooMany says that there are as many channels as there may be.
	ErrTooMany = errors.New("mux: too many channels")
	// ErrRejected says that the other side does not want a channel.
	ErrRejected = errors.New("mux: channel was rejected")
	// ErrRemoteClosed says that the other side closed a channel.
	ErrRemoteClosed = errors.New("mux: channel was closed by the other side")
	// ErrClosed says that a channel or connection was closed by this side.
	ErrClosed = errors.New("mux: closed")
)
