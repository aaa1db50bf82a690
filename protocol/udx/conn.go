package udx

import (
	"fmt"
	"net"
	"net/netip"
)

// A PacketConn is what a [Socket] sends and receives datagrams with: of IPv4, as there is
// no other on this network. Its methods may be called at the same time.
type PacketConn interface {
	// Read waits for datagrams. Several of one source may be returned at once, one
	// behind the other in buf: n bytes in all, each datagram as long as size but the
	// last, which may be shorter.
	Read(buf []byte) (n, size int, from netip.AddrPort, err error)
	// Write sends the datagrams in buf, each as long as size but the last, which may be
	// shorter. ttl 0 is the usual one. What the network does not take is lost, as on its
	// way: an error is for what will never be taken.
	Write(buf []byte, size int, to netip.AddrPort, ttl int) error
	// LocalAddr is where it is bound; its address may be unspecified.
	LocalAddr() netip.AddrPort
	// Fragment says whether packets may be fragmented from now on; at first not.
	Fragment(bool)
	Close() error
}

// ListenUDP opens a UDP socket at an address of this machine; port 0 is any. A lean one
// has less room: it is for punching holes, of which there may be hundreds.
func ListenUDP(at netip.AddrPort, lean bool) (PacketConn, error) {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("udx: %w", err)
	}
	u := &udp{UDPConn: c}
	u.setup(lean)
	return u, nil
}

// udp is a PacketConn of the system.
type udp struct {
	*net.UDPConn
	offload
}

func (u *udp) LocalAddr() netip.AddrPort {
	a := u.UDPConn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
