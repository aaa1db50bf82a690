// Package udx is UDX in pure Go: reliable streams over UDP sockets that they share with each
// other and with another protocol, as Hyperswarm has them (specs/hyperdht.md, section 7).
//
// An [Endpoint] holds the streams of a process, each with a number. A [Socket] reads
// datagrams and gives each to the stream whose number it carries, or else to the owner of
// the socket. A [Stream] is a [net.Conn] once it is bound to a socket, an address and the
// number of the other side's stream, which both sides learn by other means.
//
// Packets are not authentic: that is for what runs over them. [Stream.Authenticated] tells a
// stream what was, by which it follows its other side to another address.
package udx
