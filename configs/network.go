package configs

import (
	"encoding/hex"
	"net"
	"strconv"
	"strings"
)

// Network says how feeds are reached over the Hyperswarm network.
type Network struct {
	Host      string     // to listen at; "" is all addresses
	Port      uint16     // 0 is the usual one, or another that is free
	Bootstrap []string   // nodes to begin with, host:port; none is the public network
	Relays    [][32]byte // keys of relays, for where no direct way can be made
}

// rawNetwork is a network as it is written.
type rawNetwork struct {
	Listen    string   `yaml:"listen"`
	Bootstrap []string `yaml:"bootstrap"`
	Relays    []string `yaml:"relays"`
}

// network reads how feeds are reached; nil is not at all by the network.
func (r *reader) network(in *rawNetwork) *Network {
	if in == nil {
		return nil
	}
	n := &Network{Bootstrap: in.Bootstrap}
	if in.Listen != "" {
		host, port, err := net.SplitHostPort(in.Listen)
		p, bad := strconv.ParseUint(port, 10, 16)
		if err != nil || bad != nil || host != "" && net.ParseIP(host).To4() == nil {
			r.fail("network.listen", "%q is not an IPv4 address and a UDP port: write \":49737\"", in.Listen)
		}
		n.Host, n.Port = host, uint16(p)
	}
	for _, s := range in.Bootstrap {
		if BadNode(s) {
			r.fail("network.bootstrap", "%q is not a node: write host:port, or 1.2.3.4@host:port", s)
		}
	}
	for _, s := range in.Relays {
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != 32 {
			r.fail("network.relays", "%q is not the key of a relay: 64 hex digits, as edge relay prints them", s)
			continue
		}
		n.Relays = append(n.Relays, [32]byte(b))
	}
	return n
}

// BadNode tells whether a text is not host:port, perhaps with an address before it.
func BadNode(s string) bool {
	if ip, rest, ok := strings.Cut(s, "@"); ok {
		if net.ParseIP(ip).To4() == nil {
			return true
		}
		s = rest
	}
	host, port, err := net.SplitHostPort(s)
	n, bad := strconv.ParseUint(port, 10, 16)
	return err != nil || bad != nil || host == "" || n == 0
}
