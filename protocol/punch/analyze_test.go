package punch

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/simnet"
	"dazaar-edge/protocol/udx"
)

// TestFewNodes: who comes back from an outage, and knows no node for an instant, or hears none,
// still finds out what its router is.
func TestFewNodes(t *testing.T) {
	us := netip.MustParseAddrPort("7.0.0.1:40001")
	four := []netip.AddrPort{addrOf(1), addrOf(2), addrOf(3), addrOf(4)}
	for _, c := range []struct {
		name         string
		known, heard time.Duration // since when
	}{{"known late", 500 * time.Millisecond, 0}, {"heard late", 0, 1500 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := simnet.New(1)
				defer n.Close()
				conn, err := n.Public().Host("7.0.0.1", simnet.Link{}).Listen(0)
				if err != nil {
					t.Fatal(err)
				}
				ep, begun := udx.NewEndpoint(rand.Reader), time.Now()
				defer ep.Close()
				sock := ep.NewSocket(conn, false, nil)
				p, err := New(Config{
					NewSocket: func(func(*udx.Socket, []byte, netip.AddrPort)) (*udx.Socket, error) { return sock, nil },
					Nodes: func(k int) []netip.AddrPort {
						if time.Since(begun) < c.known {
							return nil
						}
						return four[:k]
					},
					Ping: func(context.Context, *udx.Socket, netip.AddrPort) (netip.AddrPort, error) {
						if time.Since(begun) < c.heard {
							return netip.AddrPort{}, errors.New("no answer")
						}
						return us, nil
					},
					Rand: rand.Reader,
				})
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				kind, addrs := p.Verdict(t.Context())
				if kind != packet.Consistent || len(addrs) == 0 || addrs[0] != us {
					t.Errorf("%v %v after %v", kind, addrs, time.Since(begun))
				}
			})
		})
	}
}

func addrOf(i byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{5, 5, i, 1}), 49737)
}
