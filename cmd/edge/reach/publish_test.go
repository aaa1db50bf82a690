package reach

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market/card"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/dht/packet"
)

// shelf is an offer with nothing but a card.
type shelf struct {
	t       *testing.T
	key     ed25519.PrivateKey
	version uint64
	burned  []ledger.Burned
}

func (s *shelf) Card() []byte {
	c := card.Card{Name: "air", Version: s.version, Updated: time.Unix(1<<30, 0)}
	b, err := c.Sign(s.key)
	if err != nil {
		s.t.Error(err)
	}
	return b
}

func (s *shelf) Raise(version uint64) error {
	s.version = max(version, s.version)
	return nil
}

func (s *shelf) Burned() ([]ledger.Burned, error) { return s.burned, nil }

// liar is a node that says of each record that there is a newer one, and has none.
func liar(t *testing.T, first netip.AddrPort) (puts *atomic.Int64) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	puts = new(atomic.Int64)
	me := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 4096); ; {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			q, err := packet.ParseRequest(b[:n])
			if err != nil {
				continue
			}
			a := packet.Response{TID: q.TID, To: from, Flags: packet.HasID, ID: packet.NodeID(me)}
			if q.Flags&packet.Internal == 0 {
				if a.Flags |= packet.HasToken; q.Command == packet.MutablePut {
					puts.Add(1)
					a.Flags, a.Error = a.Flags|packet.HasError, packet.SeqTooLow
				}
			}
			conn.WriteToUDPAddrPort(a.Append(nil), from) //nolint:errcheck // it is asked again
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	hail := packet.Request{Flags: packet.Internal | packet.HasID, To: first, ID: packet.NodeID(me), Command: packet.Ping, TID: 7}
	if _, err := conn.WriteToUDPAddrPort(hail.Append(nil), first); err != nil {
		t.Fatal(err)
	}
	return puts
}

// TestPublish: a card is published once, also where one node says that it is too old, and raised
// only above one that was signed. Keys that were burned follow, each as often as it must.
func TestPublish(t *testing.T) {
	ctx := t.Context()
	var first netip.AddrPort
	for i := range 5 {
		cfg := dht.Config{Host: netip.MustParseAddr("127.0.0.1"), Persistent: true}
		if i == 0 {
			conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			first = conn.LocalAddr().(*net.UDPAddr).AddrPort() // a free port
			conn.Close()
			cfg.Port, cfg.Public = first.Port(), first
		}
		cfg.Bootstrap = []string{first.String()}
		n, err := dht.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		if err := n.Bootstrap(ctx); err != nil && i > 0 {
			t.Fatal(err)
		}
	}
	puts := liar(t, first)
	n, err := Open(Config{Network: configs.Network{Host: "127.0.0.1", Bootstrap: []string{first.String()}}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.waitJoined(ctx); err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	s := &shelf{t: t, key: key, version: 5}
	begin := func() *publisher {
		return &publisher{n: n, key: key, sold: s, log: n.cfg.Log, burned: map[[32]byte]time.Time{}}
	}
	p := begin()
	for range 3 {
		if err := p.card(ctx); err != nil {
			t.Fatal(err)
		}
		p.at = p.at.Add(-time.Minute)
	}
	if puts.Load() != 1 || s.version != 5 {
		t.Errorf("%d puts, version %d", puts.Load(), s.version)
	}
	p.at = p.at.Add(-publishEvery)
	if err := p.card(ctx); err != nil || puts.Load() != 2 || s.version != 5 {
		t.Errorf("a day later: %d puts, version %d, %v", puts.Load(), s.version, err)
	}
	s.version = 9
	if err := p.card(ctx); err != nil {
		t.Fatal(err)
	}
	s.version = 7 // it was restored
	p = begin()
	if err := p.card(ctx); err != nil || s.version != 10 {
		t.Errorf("version %d, %v", s.version, err)
	}
	if b, err := n.ShortCard(ctx, [32]byte(key[32:])); err != nil {
		t.Error(err)
	} else if c, err := card.ParseShort(b); err != nil || c.Version != 10 {
		t.Errorf("%+v, %v", c, err)
	}

	secret := ed25519.NewKeyFromSeed(append(make([]byte, 31), 1))
	signer := [32]byte(secret[32:])
	old := ledger.Burned{Signer: [32]byte{1}, At: time.Now().Add(-2 * burnedTime)}
	s.burned = []ledger.Burned{old, {Signer: signer, Seed: [32]byte(secret.Seed())}} // no clock said when
	before := puts.Load()
	for range 2 {
		if err := p.burnedKeys(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if k := puts.Load() - before; k != 1 {
		t.Errorf("%d puts", k)
	}
	if is, err := Burned(ctx, [][32]byte{{9}, signer}, []string{first.String()}); err != nil || !is {
		t.Errorf("%v, %v", is, err)
	}
	if is, err := Burned(ctx, [][32]byte{{9}}, []string{first.String()}); err != nil || is {
		t.Errorf("%v, %v", is, err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	p.at = time.Time{}
	if !errors.Is(p.card(gone), context.Canceled) {
		t.Error("it was published without a network")
	}
}

// TestPatience: what fails is tried less and less often, and at once again after it worked.
func TestPatience(t *testing.T) {
	var p patience
	for want := publishLook; want < 2*publishLate; want *= 2 {
		if p.note(errors.New("no")); p.wait != min(want, publishLate) || p.over() {
			t.Errorf("%v, should be %v", p.wait, want)
		}
	}
	if p.note(nil); !p.over() {
		t.Error("it waits")
	}
}
