package dht_test

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/simnet"
)

// TestOpenBuyer: who is known to be open when it dials is connected to by the seller, whatever
// router that is behind.
func TestOpenBuyer(t *testing.T) {
	for _, kind := range []simnet.NAT{simnet.PortRestricted, simnet.Symmetric} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 8, 1)
			seller := w.node(w.home(kind, "7.0.0.1", "192.168.1.10"), dht.Config{})
			buyer := w.node(w.net.Public().Host("8.0.0.1", wan), dht.Config{})
			defer w.close(buyer, seller)
			l, err := seller.Listen(dht.ListenConfig{Key: key(1)})
			if err != nil {
				t.Fatal(err)
			}
			go echo(l)
			announced(t, l)
			time.Sleep(time.Minute)
			if _, open := buyer.Address(); !open {
				t.Fatal("the buyer is not open")
			}
			took, err := call(t.Context(), buyer, key(2), public(key(1)))
			if err != nil || took > 500*time.Millisecond {
				t.Error(took, err)
			}
		})
	}
}

// TestSecondRelay: a handshake that two nodes passed on is answered to the first of them, which
// is who knows the client.
func TestSecondRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, nil)
		defer s.close(s.buyer, s.seller)
		first, second := s.rogue("66.6.6.6", wan), s.rogue("66.6.7.7", wan)
		client := netip.MustParseAddrPort("20.1.1.1:5")
		hello, ours := greet(t, 100, public(key(1)), packet.Payload{UDX: true, Stream: true, StreamID: 5})
		answers := make(chan packet.Handshake, 10)
		first.asks = func(q packet.Request, _ netip.AddrPort) *packet.Response {
			if h, err := packet.ParseHandshake(q.Value); err == nil && q.Command == packet.PeerHandshake && q.Target == s.target && q.TID == 7 {
				h.Noise = slices.Clone(h.Noise)
				answers <- h
			}
			return nil
		}
		defer first.start()()
		defer second.start()()
		to, _ := s.seller.Address()
		h := packet.Handshake{Mode: packet.FromSecondRelay, Noise: hello, Peer: client, Relay: first.addr}
		second.request(to, packet.PeerHandshake, s.target, 7, h.Append(nil))
		time.Sleep(time.Second)
		select {
		case a := <-answers:
			if a.Mode != packet.FromServer || a.Peer != client {
				t.Errorf("%+v", a)
			}
			if _, err := ours.Read(a.Noise); err != nil || ours.Result().Remote != public(key(1)) {
				t.Errorf("another one answered: %v", err)
			}
		default:
			t.Error("no answer")
		}
	})
}

// TestDownHint: who named a node that does not answer hears of it, once in a query.
func TestDownHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, &restricted)
		defer s.close(s.buyer, s.seller)
		dead := netip.MustParseAddrPort("66.6.200.1:1000")
		hints := make(chan netip.AddrPort, 100)
		r := s.rogue(near(s.target), wan)
		r.asks = func(q packet.Request, from netip.AddrPort) *packet.Response {
			switch {
			case q.Flags&packet.Internal != 0 && q.Command == packet.DownHint:
				a, _, err := packet.ParseAddr(q.Value)
				if err != nil {
					t.Error(err)
				}
				hints <- a
			case q.Target == s.target:
				return &packet.Response{Closer: []netip.AddrPort{dead}}
			}
			return &packet.Response{}
		}
		stop := r.start()
		for _, x := range s.nodes {
			a, _ := x.Address()
			r.hail(a)
		}
		time.Sleep(time.Minute)
		for len(hints) > 0 {
			<-hints
		}
		if _, err := s.buyer.RPC().Query(t.Context(), rpc.Query{Target: s.target, Command: packet.FindPeer, Seeds: []netip.AddrPort{r.addr}}); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		stop()
		if n := len(hints); n != 1 {
			t.Errorf("%d hints", n)
		} else if a := <-hints; a != dead {
			t.Error(a)
		}
	})
}

// TestOpenClient: the answer to a client that says that it is open names nodes by which a hole
// could be made: a stock client waits to be called only then, and else calls itself where the
// relay sees us, which our router lets nobody do.
func TestOpenClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, &restricted)
		defer s.close(s.buyer, s.seller)
		hello, ours := greet(t, 100, public(key(1)), packet.Payload{UDX: true, Stream: true, StreamID: 5, Firewall: packet.Open})
		answers := make(chan []byte, 10)
		r := s.rogue(near(s.target), wan)
		sellers := make(chan netip.AddrPort, 100)
		r.asks = func(q packet.Request, from netip.AddrPort) *packet.Response {
			switch {
			case q.Target != s.target:
			case q.Command == packet.FindPeer:
				return &packet.Response{Flags: packet.HasToken}
			case q.Command == packet.Announce:
				sellers <- from
			case q.Command == packet.PeerHandshake:
				if h, err := packet.ParseHandshake(q.Value); err == nil && h.Mode == packet.FromServer {
					answers <- slices.Clone(h.Noise)
				}
				return nil
			}
			return &packet.Response{}
		}
		defer r.start()()
		for _, x := range s.nodes {
			a, _ := x.Address()
			r.hail(a)
		}
		for s.l.Announce(); len(sellers) == 0; s.l.Announce() {
			time.Sleep(time.Minute)
		}
		seller := <-sellers
		h := packet.Handshake{Mode: packet.FromRelay, Noise: hello, Peer: netip.MustParseAddrPort("20.1.1.1:5")}
		r.request(seller, packet.PeerHandshake, s.target, 7, h.Append(nil))
		time.Sleep(time.Second)
		select {
		case a := <-answers:
			b, err := ours.Read(a)
			if err != nil {
				t.Fatal(err)
			}
			p, err := packet.ParsePayload(b)
			if err != nil || !p.Punch || len(p.Relays) == 0 || p.Firewall == packet.Open {
				t.Errorf("%+v, %v", p, err)
			}
		default:
			t.Error("no answer")
		}
	})
}
