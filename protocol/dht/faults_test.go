package dht_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/simnet"
)

// feeds sends a message to each who connects, twice a second.
func feeds(l *dht.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			for { // by what is read a stream knows where its other side is
				if _, err := c.ReadMessage(); err != nil {
					return
				}
			}
		}()
		go func() {
			defer c.Close()
			for c.WriteMessage([]byte("reading")) == nil {
				time.Sleep(500 * time.Millisecond)
			}
		}()
	}
}

// follow reads from a key, and dials again when the connection ends. It sends when something
// came to got.
func follow(ctx context.Context, n *dht.Node, got chan<- time.Time) {
	wait := 500 * time.Millisecond
	for ctx.Err() == nil {
		c, err := n.Dial(ctx, dht.DialConfig{Key: key(2), Remote: public(key(1)), Watch: true})
		if err != nil {
			time.Sleep(wait)
			wait = min(2*wait, 2*time.Second)
			continue
		}
		wait = 500 * time.Millisecond
		stop := context.AfterFunc(ctx, func() { c.Close() })
		for {
			if _, err := c.ReadMessage(); err != nil {
				break
			}
			got <- time.Now()
		}
		stop()
		c.Close()
	}
	close(got)
}

// cutOff is a fault: nothing passes a router for a while.
func cutOff(r *simnet.Router, d time.Duration) time.Duration {
	r.SetLink(simnet.Link{Blocked: true})
	time.Sleep(d)
	r.SetLink(wan)
	return d
}

// TestForgottenUnnoticed: the seller's router forgets its ways while a buyer is served by a
// relay, of which nobody notices anything: who comes anew must reach it all the same.
func TestForgottenUnnoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, 3)
		sr := w.net.Public().Router("7.0.0.1", simnet.Symmetric, wan)
		seller := w.node(sr.Inside().Host("192.168.1.10", lan), dht.Config{})
		nodes := []*dht.Node{seller}
		for range 2 {
			nodes = append(nodes, w.node(w.net.Public().Router(fmt.Sprintf("8.0.0.%d", len(nodes)), simnet.Symmetric, wan).Inside().Host("192.168.1.20", lan), dht.Config{}))
		}
		defer time.Sleep(2 * time.Second) // for those who feed
		defer func() { w.close(nodes...) }()
		host := w.node(w.net.Public().Host("5.5.77.1", wan), dht.Config{Persistent: true})
		nodes = append(nodes, host)
		r, err := host.Relay(key(9), relay.ServerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for r.Announced().At.IsZero() {
			time.Sleep(time.Second)
		}
		defer r.Close()
		l, err := seller.Listen(dht.ListenConfig{Key: key(1), Relays: [][32]byte{public(key(9))}})
		if err != nil {
			t.Fatal(err)
		}
		go feeds(l)
		announced(t, l)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan time.Time, 10000)
		go follow(ctx, nodes[1], got)
		for i := range 7 {
			// Later each time than who says again and again that we moved is not believed.
			for end := time.Now().Add(11*time.Minute + time.Duration(i)*1300*time.Millisecond); time.Now().Before(end); {
				<-got
			}
			sr.Reset()
			begun := time.Now()
			c, err := nodes[2].Dial(t.Context(), dht.DialConfig{Key: key(3), Remote: public(key(1))})
			if took := time.Since(begun); err != nil || took > 4500*time.Millisecond {
				t.Errorf("%d: it took %v: %v", i, took, err)
			}
			if err == nil {
				c.Close()
			}
		}
		cancel()
		for range got { //nolint:revive // until it is over
		}
	})
}

// TestFaults: data comes again soon after what happens to networks.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name          string
		seller, buyer simnet.NAT
		fault         func(s, b *simnet.Router) (lasts time.Duration)
		most          time.Duration // without data, after the fault
	}{
		{"the seller gets another address", simnet.PortRestricted, simnet.PortRestricted, func(s, _ *simnet.Router) time.Duration { s.Move("7.7.7.7"); return 0 }, 5 * time.Second},
		{"the buyer gets another address", simnet.PortRestricted, simnet.PortRestricted, func(_, b *simnet.Router) time.Duration { b.Move("8.8.8.8"); return 0 }, 5 * time.Second},
		{"the seller's router forgets", simnet.PortRestricted, simnet.PortRestricted, func(s, _ *simnet.Router) time.Duration { s.Reset(); return 0 }, 5 * time.Second},
		{"the seller's router forgets, and takes any port", simnet.FullCone, simnet.PortRestricted, func(s, _ *simnet.Router) time.Duration { s.Reset(); return 0 }, 5 * time.Second},
		{"the seller is cut off for 20 s", simnet.PortRestricted, simnet.PortRestricted, func(s, _ *simnet.Router) time.Duration { return cutOff(s, 20*time.Second) }, 3 * time.Second},
		{"the buyer is cut off for 20 s", simnet.PortRestricted, simnet.PortRestricted, func(_, b *simnet.Router) time.Duration { return cutOff(b, 20*time.Second) }, 3 * time.Second},
		{"the seller is cut off for 5 minutes", simnet.PortRestricted, simnet.PortRestricted, func(s, _ *simnet.Router) time.Duration { return cutOff(s, 5*time.Minute) }, 6 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 8, 3)
				sr, br := w.net.Public().Router("7.0.0.1", c.seller, wan), w.net.Public().Router("8.0.0.1", c.buyer, wan)
				seller := w.node(sr.Inside().Host("192.168.1.10", lan), dht.Config{})
				buyer := w.node(br.Inside().Host("192.168.1.20", lan), dht.Config{})
				defer time.Sleep(2 * time.Second) // for those who feed
				defer w.close(buyer, seller)
				l, err := seller.Listen(dht.ListenConfig{Key: key(1)})
				if err != nil {
					t.Fatal(err)
				}
				go feeds(l)
				announced(t, l)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan time.Time, 10000)
				go follow(ctx, buyer, got)
				for range 20 {
					<-got
				}
				lasted := c.fault(sr, br)
				ended := time.Now()
				began := ended.Add(-lasted)
				last := began
				longest := time.Duration(0)
				for at := range got {
					if at.Before(began) {
						continue
					}
					gap := at.Sub(last)
					if last.Before(ended) && at.After(ended) {
						gap = at.Sub(ended)
					}
					if last = at; at.After(ended) {
						longest = max(longest, gap)
					}
					if at.Sub(ended) > time.Minute {
						cancel()
					}
				}
				t.Logf("%v without data after it", longest.Round(time.Millisecond))
				if longest > c.most {
					t.Error("that is too long")
				}
			})
		})
	}
}
