package dht_test

import (
	"flag"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/simnet"
)

var dayNodes = flag.Int("daynodes", 40, "how many nodes the network has whose traffic of a day is measured")

// TestDay: what an idle day costs, with one offer and with five, behind a router that forgets
// after two minutes, in bytes of IP packets both ways.
func TestDay(t *testing.T) {
	for _, c := range []struct {
		offers int
		most   float64 // MB
	}{{1, 3}, {5, 6}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, *dayNodes, 1)
			seller := w.node(w.home(simnet.PortRestricted, "7.0.0.1", "192.168.1.10"), dht.Config{})
			defer w.close(seller)
			for i := range c.offers {
				l, err := seller.Listen(dht.ListenConfig{Key: key(uint64(10 + i))})
				if err != nil {
					t.Fatal(err)
				}
				go echo(l)
				announced(t, l)
			}
			before := seller.RPC().Traffic()
			const hours = 4
			time.Sleep(hours * time.Hour)
			after := seller.RPC().Traffic()
			day := float64(after.SentBytes+after.ReceivedBytes-before.SentBytes-before.ReceivedBytes) / 1e6 * 24 / hours
			t.Logf("%d offers: %.2f MB a day, %d datagrams", c.offers, day, (after.Sent+after.Received-before.Sent-before.Received)*24/hours)
			if day > c.most {
				t.Errorf("%d offers: %.2f MB a day, at most %.0f", c.offers, day, c.most)
			}
		})
	}
}
