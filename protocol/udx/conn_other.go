//go:build !linux

package udx

import "net/netip"

type offload struct{}

func (*udp) setup(bool) {}

// Fragment is for Linux only; elsewhere the system does as it likes.
func (*udp) Fragment(bool) {}

func (u *udp) Read(buf []byte) (n, size int, from netip.AddrPort, err error) {
	n, from, err = u.ReadFromUDPAddrPort(buf)
	return n, n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// Write sends; a ttl is not kept elsewhere than on Linux.
func (u *udp) Write(buf []byte, size int, to netip.AddrPort, _ int) error {
	for len(buf) > 0 {
		k := min(len(buf), size)
		if _, err := u.WriteToUDPAddrPort(buf[:k], to); err != nil {
			return err
		}
		buf = buf[k:]
	}
	return nil
}
