package dht_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/simnet"
)

// rogue is a hostile host: a socket that says what it likes.
type rogue struct {
	t    *testing.T
	conn *simnet.Conn
	addr netip.AddrPort
	// asks answers requests, nil with nothing; hears gets responses.
	asks  func(packet.Request, netip.AddrPort) *packet.Response
	hears func(packet.Response)
	gone  chan struct{}
}

func (w *world) rogue(at string, link simnet.Link) *rogue {
	w.t.Helper()
	c, err := w.net.Public().Host(at, link).Listen(1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return &rogue{t: w.t, conn: c, addr: c.LocalAddr(), gone: make(chan struct{})}
}

// start reads what comes, until stop.
func (r *rogue) start() (stop func()) {
	go func() {
		defer close(r.gone)
		buf := make([]byte, 1<<16)
		for {
			n, size, from, err := r.conn.Read(buf)
			if err != nil {
				return
			}
			for b := buf[:n]; len(b) > 0; {
				k := min(len(b), max(size, 1))
				p := b[:k]
				b = b[k:]
				if q, err := packet.ParseRequest(p); err == nil && r.asks != nil {
					if a := r.asks(q, from); a != nil {
						r.answer(q, from, *a)
					}
				} else if a, err := packet.ParseResponse(p); err == nil && r.hears != nil {
					r.hears(a)
				}
			}
		}
	}()
	return func() { r.conn.Close(); <-r.gone }
}

// answer answers as a node with its true id.
func (r *rogue) answer(q packet.Request, to netip.AddrPort, a packet.Response) {
	if a.TID = q.TID; !a.To.IsValid() {
		a.To = to
	}
	a.Flags |= packet.HasID
	a.ID = packet.NodeID(r.addr)
	if len(a.Closer) > 0 {
		a.Flags |= packet.HasNodes
	}
	r.send(a.Append(nil), to)
}

func (r *rogue) send(b []byte, to netip.AddrPort) { r.conn.Write(b, len(b), to, 0) }

// request sends a request with a value about a target.
func (r *rogue) request(to netip.AddrPort, command uint64, target packet.ID, tid uint16, value []byte) {
	q := packet.Request{Flags: packet.HasTo | packet.HasValue, To: to, Command: command, Target: target, Value: value, TID: tid}
	r.send(q.Append(nil), to)
}

// hail makes somebody know the rogue: a ping with its id.
func (r *rogue) hail(to netip.AddrPort) {
	q := packet.Request{Flags: packet.Internal | packet.HasID, To: to, ID: packet.NodeID(r.addr), Command: packet.Ping, TID: 7}
	r.send(q.Append(nil), to)
}

// greet returns a first message to a key, and the handshake that it begins.
func greet(t *testing.T, seed uint64, remote [32]byte, p packet.Payload) ([]byte, *noise.Handshake) {
	t.Helper()
	h, err := noise.New(noise.Config{Pattern: noise.IK, Initiator: true, Static: key(seed), Remote: remote, Prologue: packet.Prologue(), Rand: random(seed)})
	if err != nil {
		t.Fatal(err)
	}
	b, err := h.Write(nil, p.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	return b, h
}

// shop is a seller that answers, in a world, and who may buy from it.
type shop struct {
	*world
	seller, buyer *dht.Node
	l             *dht.Listener
	target        packet.ID
}

// sells makes one: behind a router, or not if kind is nil.
func sells(t *testing.T, kind *simnet.NAT) *shop {
	w := newWorld(t, 8, 1)
	h := w.net.Public().Host("7.0.0.1", wan)
	if kind != nil {
		h = w.home(*kind, "7.0.0.2", "192.168.1.10")
	}
	s := &shop{world: w, seller: w.node(h, dht.Config{}), buyer: w.node(w.home(simnet.PortRestricted, "8.0.0.1", "192.168.1.20"), dht.Config{})}
	var err error
	if s.l, err = s.seller.Listen(dht.ListenConfig{Key: key(1)}); err != nil {
		t.Fatal(err)
	}
	go echo(s.l)
	announced(t, s.l)
	pk := public(key(1))
	s.target = packet.Target(pk[:])
	return s
}

// buys fails unless the buyer reaches the seller.
func (s *shop) buys(when string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := call(ctx, s.buyer, key(2), public(key(1))); err != nil {
		s.t.Errorf("%s: %v", when, err)
	}
}

var restricted = simnet.PortRestricted

// TestMovesBehindRouter: an open node that gets behind a router is no longer open, though
// those it spoke to are let in; it is reached again before long.
func TestMovesBehindRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		h := w.net.Public().Host("7.0.0.1", wan)
		s := &shop{world: w, seller: w.node(h, dht.Config{}), buyer: w.node(w.home(simnet.PortRestricted, "8.0.0.1", "192.168.1.20"), dht.Config{})}
		defer w.close(s.buyer, s.seller)
		var err error
		if s.l, err = s.seller.Listen(dht.ListenConfig{Key: key(1)}); err != nil {
			t.Fatal(err)
		}
		go echo(s.l)
		announced(t, s.l)
		s.buys("before")
		time.Sleep(10 * time.Minute)
		if _, open := s.seller.Address(); !open {
			t.Fatal("it is not open at first")
		}
		router := w.net.Public().Router("7.7.7.7", simnet.PortRestricted, wan)
		h.Move(router.Inside(), "192.168.1.10")
		for i := range 40 {
			time.Sleep(3 * time.Minute)
			if i > 0 {
				s.buys(fmt.Sprintf("%d minutes behind the router", 3*i+3))
			}
		}
		if a, open := s.seller.Address(); open {
			t.Errorf("it thinks that anybody can send to %v", a)
		}
	})
}

// TestLiars: a node that names an impossible key in the place of the seller, and sees
// everybody elsewhere, breaks nothing.
func TestLiars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, &restricted)
		defer s.close(s.buyer, s.seller)
		peer, heard := packet.Peer{PublicKey: public(key(1))}, 0
		r := s.rogue("66.6.6.6", simnet.Link{Delay: time.Millisecond})
		r.asks = func(q packet.Request, from netip.AddrPort) *packet.Response {
			a := &packet.Response{To: netip.AddrPortFrom(netip.MustParseAddr("1.2.3.4"), uint16(1000+heard))}
			switch {
			case q.Flags&packet.Internal != 0:
				for range 40 {
					r.answer(q, from, *a)
				}
			case q.Command == packet.FindPeer && q.Target == s.target:
				a.Flags, a.Value = packet.HasValue, peer.Append(nil)
			case q.Command == packet.PeerHandshake:
				heard++
				h := packet.Handshake{Mode: packet.Reply, Noise: make([]byte, 64)}
				a.Flags, a.Value = packet.HasValue, h.Append(nil)
			}
			return a
		}
		stop := r.start()
		for range 5 {
			for _, n := range s.nodes {
				a, _ := n.Address()
				r.hail(a)
			}
			time.Sleep(time.Minute)
			s.buys("with a liar")
		}
		stop()
		if heard == 0 {
			t.Error("the liar was never asked")
		}
		if a, _ := s.seller.Address(); a.Addr() == netip.MustParseAddr("1.2.3.4") {
			t.Error("the seller believes the liar")
		}
	})
}

// TestStrangersClose: strangers who make themselves known, and do not answer, do not close a
// public node.
func TestStrangersClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		host := w.node(w.net.Public().Host("9.0.0.1", wan), dht.Config{Persistent: true})
		defer w.close(host)
		to, open := host.Address()
		if !open {
			t.Fatal("it is not open at first")
		}
		var all []*rogue
		for i := range 5 {
			r := w.rogue(fmt.Sprintf("66.6.%d.6", i), wan)
			defer r.start()()
			all = append(all, r)
		}
		for i := range 8 * 3600 {
			time.Sleep(500 * time.Millisecond)
			for _, r := range all {
				r.hail(to)
			}
			if _, open := host.Address(); !open || !host.RPC().Persistent() {
				t.Fatalf("closed after %d s", i/2)
			}
		}
	})
}

// TestRounds: rounds of punching that nobody sealed take none from who shook hands.
func TestRounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, &restricted)
		defer s.close(s.buyer, s.seller)
		r := s.rogue("66.6.6.6", wan)
		defer r.start()()
		relays := s.l.Announced().Relays
		stop, gone := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(gone)
			for n := uint16(0); ; n++ {
				for id := range uint64(8) {
					h := packet.Holepunch{Mode: packet.FromClient, ID: id, Payload: []byte{1}}
					r.request(relays[0], packet.PeerHolepunch, s.target, n, h.Append(nil))
				}
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}()
		time.Sleep(time.Second)
		s.buys("with rounds of strangers")
		close(stop)
		<-gone
	})
}

// TestRelayRefuses: a dial ends when no hole can be made and the relay refuses.
func TestRelayRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		host := w.node(w.net.Public().Host("9.0.0.1", wan), dht.Config{Persistent: true})
		full, err := host.Relay(key(9), relay.ServerConfig{Pairs: -1})
		if err != nil {
			t.Fatal(err)
		}
		for full.Announced().At.IsZero() {
			time.Sleep(100 * time.Millisecond)
		}
		seller := w.node(w.home(simnet.Symmetric, "7.0.0.1", "192.168.1.10"), dht.Config{})
		buyer := w.node(w.home(simnet.Symmetric, "8.0.0.1", "192.168.1.20"), dht.Config{})
		defer w.close(buyer, seller, host)
		defer full.Close()
		l, err := seller.Listen(dht.ListenConfig{Key: key(1), Relays: [][32]byte{public(key(9))}})
		if err != nil {
			t.Fatal(err)
		}
		go echo(l)
		announced(t, l)
		begun := time.Now()
		if _, err := call(t.Context(), buyer, key(2), public(key(1))); !errors.Is(err, dht.ErrNoPath) {
			t.Error(err)
		}
		if took := time.Since(begun); took > time.Minute {
			t.Errorf("it took %v", took)
		}
	})
}

// TestHandshakesOfStrangers: one network does not take all sessions of a seller, also where
// it says that it passes on what others say, nor makes it connect to relays without end.
func TestHandshakesOfStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, nil)
		defer s.close(s.buyer, s.seller)
		r := s.rogue("66.6.6.6", wan)
		defer r.start()()
		to, open := s.seller.Address()
		if !open {
			t.Fatal("the seller is not open")
		}
		before := s.seller.RPC().Traffic()
		for i := range 1000 {
			x := packet.RelayThrough{PublicKey: public(key(uint64(5000 + i)))}
			g, _ := greet(t, uint64(100+i), public(key(1)), packet.Payload{UDX: true, Stream: true, StreamID: 5, Through: &x})
			h := packet.Handshake{Mode: packet.FromRelay, Noise: g, Peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, byte(i), 1, 1}), 5)}
			r.request(to, packet.PeerHandshake, s.target, uint16(i), h.Append(nil))
			time.Sleep(20 * time.Millisecond)
			if i%200 == 199 {
				s.buys("among handshakes of strangers")
			}
		}
		if c := s.l.Counts(); c.Admitted > 300 {
			t.Errorf("%+v", c)
		}
		after := s.seller.RPC().Traffic()
		if sent := after.SentBytes - before.SentBytes; sent > 1<<20 {
			t.Errorf("the seller sent %d bytes", sent)
		}
	})
}

// near returns a host whose node is close to a target.
func near(target packet.ID) (host string) {
	best := 256
	for i := range 1 << 12 {
		a := netip.AddrFrom4([4]byte{66, 6, byte(i >> 8), byte(i)})
		if id := packet.NodeID(netip.AddrPortFrom(a, 1000)); id[0] == target[0] && int(id[1]^target[1]) < best {
			host, best = a.String(), int(id[1]^target[1])
		}
	}
	return host
}

// TestRelayLies: a node at which a key is announced, and that sees its owner elsewhere each
// time, does not make it announce without end.
func TestRelayLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := sells(t, &restricted)
		defer s.close(s.buyer, s.seller)
		n := 0
		r := s.rogue(near(s.target), simnet.Link{Delay: time.Millisecond})
		r.asks = func(q packet.Request, from netip.AddrPort) *packet.Response {
			n++
			a := &packet.Response{To: netip.AddrPortFrom(from.Addr(), uint16(2000+n))}
			if q.Command == packet.FindPeer {
				a.Flags = packet.HasToken
			}
			return a
		}
		stop := r.start()
		for _, x := range s.nodes {
			a, _ := x.Address()
			r.hail(a)
		}
		time.Sleep(10 * time.Minute)
		times := 0
		for at, end := s.l.Announced().At, time.Now().Add(15*time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if is := s.l.Announced().At; !is.Equal(at) {
				at = is
				times++
			}
		}
		s.buys("with a relay that lies")
		stop()
		if n == 0 {
			t.Error("the liar was never asked")
		}
		if times > 20 {
			t.Errorf("announced %d times in 15 minutes", times)
		}
	})
}

// TestDelayedPings: pings that ask to be answered later keep nobody from asking.
func TestDelayedPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		defer w.close()
		r := w.rogue("66.6.6.6", wan)
		defer r.start()()
		victim, other := w.nodes[3], w.nodes[1]
		at, _ := victim.Address()
		to, _ := other.Address()
		for range 300 {
			q := packet.Request{Flags: packet.Internal | packet.HasValue, To: at, Command: packet.DelayedPing, Value: []byte{0x10, 0x27, 0, 0}}
			r.send(q.Append(nil), at)
		}
		time.Sleep(time.Second)
		begun := time.Now()
		if _, err := victim.RPC().Ask(t.Context(), rpc.Ask{To: to, Internal: true, Command: packet.Ping}); err != nil || time.Since(begun) > time.Second {
			t.Error(err, time.Since(begun))
		}
	})
}

// TestReflection: who asks in the name of another one does not make nodes send that much.
func TestReflection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		defer w.close()
		target, _, err := w.nodes[2].PutImmutable(t.Context(), make([]byte, 1000))
		if err != nil {
			t.Fatal(err)
		}
		r := w.rogue("66.6.6.6", wan)
		got := 0
		r.hears = func(a packet.Response) { got += len(a.Append(nil)) }
		stop := r.start()
		at, _ := w.nodes[1].Address()
		asked := 0
		for range 5000 {
			q := packet.Request{Flags: packet.HasTo, To: at, Command: packet.ImmutableGet, Target: packet.ID(target)}
			b := q.Append(nil)
			asked += len(b)
			r.send(b, at)
			time.Sleep(2 * time.Millisecond)
		}
		time.Sleep(time.Second)
		stop()
		if got > 256<<10+11*(32<<10)+5000*60 {
			t.Errorf("%d bytes for %d", got, asked)
		}
	})
}

// closest returns hosts, each in a network of its own, whose nodes are the closest to a target of
// many.
func closest(target packet.ID, k int) (hosts []string) {
	type host struct {
		at string
		id packet.ID
	}
	var all []host
	for i := range 1 << 12 {
		at := netip.AddrFrom4([4]byte{66, byte(i >> 8), byte(i), 6})
		h := host{at.String(), packet.NodeID(netip.AddrPortFrom(at, 1000))}
		for j := range h.id {
			h.id[j] ^= target[j]
		}
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b host) int { return bytes.Compare(a.id[:], b.id[:]) })
	for _, h := range all[:k] {
		hosts = append(hosts, h.at)
	}
	return hosts
}

// TestMoreRelaysLie: two of the three nodes at which a key is announced see its owner elsewhere
// each time: the other offers of the board go on as they did, and all of it costs little.
func TestMoreRelaysLie(t *testing.T) {
	const offers = 5
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20, 1)
		seller := w.node(w.home(simnet.PortRestricted, "7.0.0.1", "192.168.1.10"), dht.Config{})
		defer w.close(seller)
		var all []*dht.Listener
		for i := range offers {
			l, err := seller.Listen(dht.ListenConfig{Key: key(uint64(10 + i))})
			if err != nil {
				t.Fatal(err)
			}
			go echo(l)
			announced(t, l)
			all = append(all, l)
		}
		k := public(key(10))
		var n atomic.Int64
		lied := make([]bool, offers)
		var liars []netip.AddrPort
		for _, at := range closest(packet.Target(k[:]), 2) {
			r := w.rogue(at, simnet.Link{Delay: time.Millisecond})
			r.asks = func(q packet.Request, from netip.AddrPort) *packet.Response {
				a := &packet.Response{To: netip.AddrPortFrom(from.Addr(), uint16(2000+n.Add(1)%60000))}
				if q.Command == packet.FindPeer {
					a.Flags = packet.HasToken
				}
				return a
			}
			defer r.start()()
			liars = append(liars, r.addr)
			for _, x := range w.nodes {
				a, _ := x.Address()
				r.hail(a)
			}
		}
		time.Sleep(45 * time.Minute) // until the relays are looked for again
		said := n.Load()
		at, times := make([]time.Time, offers), make([]int, offers)
		closed := 0
		before := seller.RPC().Traffic()
		for end := time.Now().Add(time.Hour); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			for _, x := range w.nodes {
				if _, open := x.Address(); !open {
					closed++
				}
			}
			for i, l := range all {
				if is := l.Announced().At; !is.Equal(at[i]) {
					at[i] = is
					times[i]++
				}
				lied[i] = lied[i] || slices.ContainsFunc(l.Announced().Relays, func(a netip.AddrPort) bool { return slices.Contains(liars, a) })
			}
		}
		after := seller.RPC().Traffic()
		day := float64(after.SentBytes+after.ReceivedBytes-before.SentBytes-before.ReceivedBytes) / 1e6 * 24
		t.Logf("announced %v times in an hour, %.1f MB a day, %d lies", times, day, n.Load()-said)
		if n.Load()-said < 100 {
			t.Error("the liars are hardly asked")
		}
		if closed > 0 {
			t.Error("liars close public nodes")
		}
		for i, k := range times {
			if most := 12; k > most && (!lied[i] || k > 5*most) {
				t.Errorf("offer %d, %d times: that is too often", i, k)
			}
		}
		if day > 15 {
			t.Error("that is too much")
		}
	})
}
