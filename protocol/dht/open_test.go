package dht_test

import (
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
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
