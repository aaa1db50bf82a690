package configs

import (
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Network says how feeds are reached over the Hyperswarm network.
type Network struct {
	Host      string   // to listen at; "" is all addresses
	Port      uint16   // 0 is the usual one, or another that is free
	Bootstrap []string // nodes to begin with, host:port; none is the public network
	Relays    []Relay  // for where no direct way can be made
}

// Relay is a host that passes on what others say to each other.
type Relay struct {
	Key [32]byte
	TCP string // host:port where it is reached by TCP; "" is not
}

// String is what ParseRelay reads.
func (r Relay) String() string {
	s := hex.EncodeToString(r.Key[:])
	if r.TCP != "" {
		s += "@" + r.TCP
	}
	return s
}

// MaxRelays is how many relays may be named.
const MaxRelays = 8

// ParseRelay reads KEY or KEY@HOST:PORT, with the key in hex.
func ParseRelay(s string) (r Relay, err error) {
	text, tcp, at := strings.Cut(s, "@")
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(r.Key) {
		return r, fmt.Errorf("%q is not a relay: write its key, 64 hex digits, or KEY@HOST:PORT, as edge relay prints it", s)
	}
	if at && BadAddress(tcp) {
		return r, fmt.Errorf("%q does not say where the relay is reached by TCP: write KEY@HOST:PORT", s)
	}
	return Relay{[32]byte(b), tcp}, nil
}

// BadAddress tells whether a text is not HOST:PORT.
func BadAddress(s string) bool {
	host, port, err := net.SplitHostPort(s)
	n, bad := strconv.ParseUint(port, 10, 16)
	return err != nil || bad != nil || host == "" || n == 0
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
	if len(in.Relays) > MaxRelays {
		r.fail("network.relays", "%d relays, at most %d", len(in.Relays), MaxRelays)
	}
	for _, s := range in.Relays {
		relay, err := ParseRelay(s)
		if err != nil {
			r.fail("network.relays", "%v", err)
			continue
		}
		n.Relays = append(n.Relays, relay)
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
	return BadAddress(s)
}
