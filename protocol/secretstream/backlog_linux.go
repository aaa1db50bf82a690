package secretstream

import (
	"net"
	"syscall"
	"time"

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

// setUserTimeout ends a TCP connection whose other side acknowledges nothing for
// so long, 0 is as the kernel likes: the keepalives see to it that there is something to
// acknowledge.
func setUserTimeout(raw net.Conn, d time.Duration) {
	sc, ok := raw.(syscall.Conn)
	if !ok || d < 0 {
		return
	}
	if rc, err := sc.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { //nolint:errcheck // without it the kernel takes longer
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds())) //nolint:errcheck // likewise
		})
	}
}
