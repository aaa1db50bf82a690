package dht_test

import (
	"flag"
	"fmt"
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

// TestNewAddress: a board that nobody buys from notices within a ping's time that its router has
// another address, and announces all its offers there; not later with five than with one.
func TestNewAddress(t *testing.T) {
	for _, offers := range []int{1, 5} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 20, 1)
			home := w.net.Public().Router("7.0.0.1", simnet.PortRestricted, wan)
			seller := w.node(home.Inside().Host("192.168.1.10", lan), dht.Config{})
			defer w.close(seller)
			var all []*dht.Listener
			for i := range offers {
				l, err := seller.Listen(dht.ListenConfig{Key: key(uint64(10 + i))})
				if err != nil {
					t.Fatal(err)
				}
				go echo(l)
				all = append(all, l)
			}
			for _, l := range all {
				announced(t, l)
			}
			var worst time.Duration
			for i := range 20 {
				time.Sleep(8*time.Minute + time.Duration(i)*2700*time.Millisecond)
				home.Move(fmt.Sprintf("7.7.7.%d", i+1))
				at := time.Now()
				for _, l := range all {
					for l.Announced().At.Before(at) {
						time.Sleep(100 * time.Millisecond)
					}
					worst = max(worst, l.Announced().At.Sub(at))
				}
			}
			t.Logf("%d offers: all are announced at the new address after %v at most", offers, worst.Round(time.Millisecond))
			if worst > 27*time.Second {
				t.Error("that is too long")
			}
		})
	}
}
