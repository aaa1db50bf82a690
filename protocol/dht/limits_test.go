package dht_test

import (
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/simnet"
	"dazaar-edge/protocol/udx"
)

// TestRelayLimits: a relay passes on no more, and for no longer, than it is told, and counts it.
func TestRelayLimits(t *testing.T) {
	const rate, lasts = 100 << 10, 40 * time.Second
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 1)
		host := w.node(w.net.Public().Host("9.0.0.1", wan), dht.Config{Persistent: true})
		r, err := host.Relay(key(9), relay.ServerConfig{PairRate: rate, Time: lasts, PairsPerClient: 1})
		if err != nil {
			t.Fatal(err)
		}
		seller := w.node(w.home(simnet.Symmetric, "7.0.0.1", "192.168.1.10"), dht.Config{})
		buyer := w.node(w.home(simnet.Symmetric, "8.0.0.1", "192.168.1.20"), dht.Config{})
		defer w.close(buyer, seller, host)
		defer r.Close()
		l, err := seller.Listen(dht.ListenConfig{Key: key(1), Relays: [][32]byte{public(key(9))}})
		if err != nil {
			t.Fatal(err)
		}
		announced(t, l)
		for r.Announced().At.IsZero() {
			time.Sleep(100 * time.Millisecond)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for c.WriteMessage(make([]byte, 10_000)) == nil {
					}
				}()
			}
		}()
		conn, err := buyer.Dial(t.Context(), dht.DialConfig{Key: key(2), Remote: public(key(1)), Stream: udx.StreamConfig{MaxWindow: 1 << 20}, Watch: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The seller has its only pairing.
		if _, err := buyer.Dial(t.Context(), dht.DialConfig{Key: key(3), Remote: public(key(1))}); err == nil {
			t.Error("a second pairing")
		}
		begun, got := time.Now(), 0
		for {
			m, err := conn.ReadMessage()
			if err != nil {
				break
			}
			got += len(m)
		}
		took := time.Since(begun)
		if took > lasts+10*time.Second {
			t.Errorf("it lasted %v", took)
		}
		if most := int(lasts.Seconds() * rate * 1.1); got > most || got < most/2 {
			t.Errorf("%d bytes, at most %d", got, most)
		}
		if st := r.Stats(); st.Paired != 1 || st.Refused == 0 || st.Dropped == 0 || st.Bytes < uint64(got) {
			t.Errorf("%+v", st)
		}
	})
}
