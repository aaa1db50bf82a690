package dht_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/simnet"
)

func TestPublic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		seller := w.node(w.net.Public().Host("7.0.0.1", wan), dht.Config{})
		buyer := w.node(w.net.Public().Host("8.0.0.1", wan), dht.Config{})
		defer w.close(buyer, seller)
		time.Sleep(5 * time.Second)
		if a, open := seller.Address(); !open {
			t.Errorf("%v %v", a, open)
		}
		l, err := seller.Listen(dht.ListenConfig{Key: key(1)})
		if err != nil {
			t.Fatal(err)
		}
		go echo(l)
		announced(t, l)
		took, err := call(t.Context(), buyer, key(2), public(key(1)))
		t.Log(took, err)
		if err != nil || took > time.Second {
			t.Error(took, err)
		}
	})
}

// home is a host behind a router.
func (w *world) home(kind simnet.NAT, outer, inner string) *simnet.Host {
	return w.net.Public().Router(outer, kind, wan).Inside().Host(inner, lan)
}

func TestGrid(t *testing.T) {
	kinds := map[string]simnet.NAT{
		"full cone": simnet.FullCone, "restricted": simnet.RestrictedCone, "port restricted": simnet.PortRestricted, "symmetric": simnet.Symmetric,
	}
	for a, ka := range kinds {
		for b, kb := range kinds {
			t.Run(a+", "+b, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, 8, 1)
					seller := w.node(w.home(ka, "7.0.0.1", "192.168.1.10"), dht.Config{})
					buyer := w.node(w.home(kb, "8.0.0.1", "192.168.1.20"), dht.Config{})
					defer w.close(buyer, seller)
					l, err := seller.Listen(dht.ListenConfig{Key: key(1)})
					if err != nil {
						t.Fatal(err)
					}
					go echo(l)
					announced(t, l)
					took, err := call(t.Context(), buyer, key(2), public(key(1)))
					t.Log(took, err)
					if both := a == "symmetric" && b == "symmetric"; (err != nil) != both {
						t.Error(err)
					}
				})
			})
		}
	}
}

// TestRelay: where no hole can be made, both sides meet at a relay, in whichever way it is
// named; where one can, the stream leaves it.
func TestRelay(t *testing.T) {
	for _, c := range []struct {
		name          string
		seller, buyer simnet.NAT
		bySeller      bool
		direct        bool // in the end
		within        time.Duration
	}{
		{"random, named by the seller", simnet.Symmetric, simnet.Symmetric, true, false, time.Second},
		{"random, named by the buyer", simnet.Symmetric, simnet.Symmetric, false, false, time.Second},
		{"one random", simnet.Symmetric, simnet.PortRestricted, true, true, time.Second},
		{"consistent", simnet.PortRestricted, simnet.PortRestricted, true, true, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 8, 1)
				host := w.node(w.net.Public().Host("9.0.0.1", wan), dht.Config{Persistent: true})
				relay, err := host.Relay(key(9), relay.ServerConfig{})
				if err != nil {
					t.Fatal(err)
				}
				seller := w.node(w.home(c.seller, "7.0.0.1", "192.168.1.10"), dht.Config{})
				buyer := w.node(w.home(c.buyer, "8.0.0.1", "192.168.1.20"), dht.Config{})
				defer w.close(buyer, seller, host)
				defer relay.Close()
				listen, dial := dht.ListenConfig{Key: key(1)}, dht.DialConfig{Key: key(2), Remote: public(key(1))}
				if c.bySeller {
					listen.Relays = [][32]byte{public(key(9))}
				} else {
					dial.Through = public(key(9))
				}
				l, err := seller.Listen(listen)
				if err != nil {
					t.Fatal(err)
				}
				go echo(l)
				announced(t, l)
				for relay.Announced().At.IsZero() {
					time.Sleep(100 * time.Millisecond)
				}
				begun := time.Now()
				conn, err := buyer.Dial(t.Context(), dial)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				first := time.Since(begun)
				t.Logf("connected in %v by %v", first, conn.RemoteAddr())
				if first > c.within {
					t.Error("that is late")
				}
				// Much is on its way, both ways, when the stream leaves the relay.
				done := make(chan error, 1)
				go func() {
					for range 3000 {
						if _, err := conn.ReadMessage(); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
				for range 300 {
					for range 10 {
						if err := conn.WriteMessage(make([]byte, 4000)); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(20 * time.Millisecond)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				t.Logf("in the end by %v; %+v", conn.RemoteAddr(), relay.Stats())
				if direct := !strings.HasPrefix(conn.RemoteAddr().String(), "9.0.0.1"); direct != c.direct {
					t.Errorf("it goes by %v", conn.RemoteAddr())
				}
				before := relay.Stats().Bytes
				for range 20 {
					if err := say(conn, "hello again"); err != nil {
						t.Fatal(err)
					}
				}
				if after := relay.Stats(); c.direct != (after.Bytes == before) {
					t.Errorf("%d bytes went by the relay, then %+v", before, after)
				}
				time.Sleep(time.Minute)
				if st := relay.Stats(); c.direct && st.Pairs != 0 {
					t.Errorf("%+v", st)
				}
				conn.Close()
				time.Sleep(2 * time.Minute)
				if st := relay.Stats(); st.Pairs+st.Clients+st.Waiting != 0 {
					t.Errorf("left: %+v", st)
				}
			})
		})
	}
}
