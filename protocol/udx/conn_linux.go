package udx

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// offload is what Linux does for many datagrams at once: a buffer of several of the same
// size goes through it as one (UDP_SEGMENT), and several that came are given as one
// (UDP_GRO).
type offload struct {
	segment atomic.Bool // false once the system or the device refused
}

// bufferSize is what a socket that is not lean asks for in each direction, in bytes.
const bufferSize = 1 << 20

func (u *udp) setup(lean bool) {
	u.control(func(fd int) {
		// None of these must work: each has a fall-back, or is a matter of speed.
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE) //nolint:errcheck
		if !lean {
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize) //nolint:errcheck
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize) //nolint:errcheck
			unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)           //nolint:errcheck
			_, err := unix.GetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT)
			u.segment.Store(err == nil)
		}
	})
}

func (u *udp) control(f func(fd int)) {
	if raw, err := u.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { f(int(fd)) }) //nolint:errcheck // it is closed
	}
}

// Fragment lets routers cut what is too large for them, or does not.
func (u *udp) Fragment(may bool) {
	how := unix.IP_PMTUDISC_PROBE
	if may {
		how = unix.IP_PMTUDISC_DONT
	}
	u.control(func(fd int) {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, how) //nolint:errcheck // then they drop it
	})
}

func (u *udp) Read(buf []byte) (n, size int, from netip.AddrPort, err error) {
	var oob [64]byte
	for {
		n, k, _, from, err := u.ReadMsgUDPAddrPort(buf, oob[:])
		if err != nil {
			if passing(err) {
				continue // what an ICMP message said of an earlier datagram
			}
			return 0, 0, from, err
		}
		return n, segmentSize(oob[:k], n), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), nil
	}
}

// segmentSize returns how long each datagram is of n bytes that came together.
func segmentSize(oob []byte, n int) int {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 2 {
			if size := int(binary.NativeEndian.Uint16(data)); size > 0 {
				return size
			}
		}
		oob = rest
	}
	return n
}

// maxSegments is how many datagrams Linux takes at once.
const maxSegments = 64

func (u *udp) Write(buf []byte, size int, to netip.AddrPort, ttl int) error {
	var space [64]byte
	oob := space[:0]
	if ttl > 0 {
		oob = appendControl(oob, unix.IPPROTO_IP, unix.IP_TTL, 4, uint32(ttl))
	}
	if len(buf) > size && u.segment.Load() {
		all := appendControl(oob, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2, uint32(size))
		for rest := buf; ; {
			k := min(len(rest), size*maxSegments)
			_, _, err := u.WriteMsgUDPAddrPort(rest[:k], all, to)
			if errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE) {
				if errors.Is(err, unix.EIO) {
					u.segment.Store(false) // the device cannot
				}
				buf = rest // one at a time
				break
			}
			if err := lost(err); err != nil {
				return err
			}
			if rest = rest[k:]; len(rest) == 0 {
				return nil
			}
		}
	}
	for {
		k := min(len(buf), size)
		_, _, err := u.WriteMsgUDPAddrPort(buf[:k], oob, to)
		if err := lost(err); err != nil {
			return err
		}
		if buf = buf[k:]; len(buf) == 0 {
			return nil
		}
	}
}

// appendControl appends a control message with a number of size bytes, 2 or 4: a struct
// cmsghdr, whose length is a word.
func appendControl(b []byte, level, typ uint32, size int, n uint32) []byte {
	at, length := len(b), unix.CmsgLen(size)
	if unix.SizeofCmsghdr == 16 {
		b = binary.NativeEndian.AppendUint64(b, uint64(length))
	} else {
		b = binary.NativeEndian.AppendUint32(b, uint32(length))
	}
	b = binary.NativeEndian.AppendUint32(b, level)
	b = binary.NativeEndian.AppendUint32(b, typ)
	if size == 2 {
		b = binary.NativeEndian.AppendUint16(b, uint16(n))
	} else {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return append(b, make([]byte, at+unix.CmsgSpace(size)-len(b))...)
}

// passing tells whether an error says something of one datagram only.
func passing(err error) bool {
	for _, e := range []syscall.Errno{
		unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN, unix.EPERM,
		unix.ENOBUFS, unix.ENOMEM, unix.EMSGSIZE, unix.EACCES, unix.EINVAL, unix.EADDRNOTAVAIL,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// lost makes nothing of errors that are the same as a datagram that is lost on its way:
// no route, a full queue, a firewall.
func lost(err error) error {
	if err != nil && passing(err) {
		return nil
	}
	return err
}
