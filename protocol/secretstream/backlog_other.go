//go:build !linux

package secretstream

import (
	"net"
	"time"
)

// tcpBacklog returns nothing: only Linux tells.
func tcpBacklog(net.Conn) (int, bool) { return 0, false }

// setUserTimeout does nothing: the kernel's own time-out must do.
func setUserTimeout(net.Conn, time.Duration) {}
