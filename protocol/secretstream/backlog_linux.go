package secretstream

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// tcpBacklog returns how many bytes of a TCP connection the other side has not
// acknowledged.
func tcpBacklog(raw net.Conn) (n int, ok bool) {
	sc, ok := raw.(syscall.Conn)
	if !ok {
		return 0, false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return 0, false
	}
	err = rc.Control(func(fd uintptr) {
		var e error
		n, e = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		ok = e == nil
	})
	return n, ok && err == nil
}
