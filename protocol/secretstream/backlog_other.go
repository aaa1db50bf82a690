//go:build !linux

package secretstream

import "net"

// tcpBacklog returns nothing: only Linux tells.
func tcpBacklog(net.Conn) (int, bool) { return 0, false }
