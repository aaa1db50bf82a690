package dht_test

import (
	"context"
	"flag"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/simnet"
)

var (
	soakTime = flag.Duration("soak", 2*time.Hour, "how long TestSoak lasts, in simulated time")
	soakSeed = flag.Uint64("soakseed", 1, "what happens in TestSoak")
)

// sockets is how many UDP sockets the hosts have.
func sockets(hosts ...*simnet.Host) (n int) {
	for _, h := range hosts {
		n += h.Sockets()
	}
	return n
}

// TestSoak: a seller, its relay and three buyers, to whom networks do things at random for a
// long time. Data keeps coming, and nothing grows.
func TestSoak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8, *soakSeed)
		r := rand.New(rand.NewPCG(*soakSeed, 9))
		rh := w.net.Public().Host("9.0.0.1", wan)
		host := w.node(rh, dht.Config{Persistent: true})
		rel, err := host.Relay(key(9), relay.ServerConfig{})
		if err != nil {
			t.Fatal(err)
		}
		kinds := []simnet.NAT{simnet.PortRestricted, simnet.Symmetric, simnet.FullCone, simnet.RestrictedCone}
		var routers []*simnet.Router
		hosts := []*simnet.Host{rh}
		var nodes []*dht.Node
		addrs := []string{"7.0.0.1", "8.0.0.1", "8.0.1.1", "8.0.2.1"}
		for i, a := range addrs {
			x := w.net.Public().Router(a, kinds[i], wan)
			h := x.Inside().Host("192.168.1.10", lan)
			routers, hosts, nodes = append(routers, x), append(hosts, h), append(nodes, w.node(h, dht.Config{}))
		}
		defer time.Sleep(2 * time.Second)
		defer w.close(append(nodes, host)...)
		defer rel.Close()
		l, err := nodes[0].Listen(dht.ListenConfig{Key: key(1), Relays: [][32]byte{public(key(9))}})
		if err != nil {
			t.Fatal(err)
		}
		go feeds(l)
		announced(t, l)
		ctx, cancel := context.WithCancel(t.Context())
		got := make([]chan time.Time, 3)
		var counts [3]atomic.Int64
		done := make(chan int)
		for i := range got {
			got[i] = make(chan time.Time, 100)
			go follow(ctx, nodes[i+1], got[i])
			go func() {
				for range got[i] {
					counts[i].Add(1)
				}
				done <- i
			}()
		}
		time.Sleep(2 * time.Minute)
		base, socks := runtime.NumGoroutine(), sockets(hosts...)
		var m0, m1 runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m0)
		faults := 0
		for end := time.Now().Add(*soakTime); time.Now().Before(end); faults++ {
			i := r.IntN(len(routers))
			x := routers[i]
			switch r.IntN(6) {
			case 0:
				x.Move(addrs[i][:len(addrs[i])-1] + string(rune('1'+r.IntN(9))))
			case 1:
				x.Reset()
			case 2:
				x.SetLink(simnet.Link{Blocked: true})
				time.Sleep(time.Duration(r.IntN(40)) * time.Second)
				x.SetLink(wan)
			case 3:
				bad := wan
				bad.Loss, bad.Jitter, bad.Duplicate = 0.1, 30*time.Millisecond, 0.05
				x.SetLink(bad)
				time.Sleep(time.Minute)
				x.SetLink(wan)
			case 4:
				x.SetKind(kinds[r.IntN(len(kinds))])
			case 5:
				rh.SetLink(simnet.Link{Blocked: true})
				time.Sleep(10 * time.Second)
				rh.SetLink(wan)
			}
			time.Sleep(time.Duration(r.IntN(60)) * time.Second)
		}
		var had [3]int64
		for i := range counts {
			had[i] = counts[i].Load()
		}
		time.Sleep(3 * time.Minute)
		for i, n := range had {
			if late := counts[i].Load() - n; late < 200 {
				t.Errorf("buyer %d got %d readings in the last three minutes", i, late)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&m1)
		goroutines, open := runtime.NumGoroutine(), sockets(hosts...)
		t.Logf("%d faults; readings %v; goroutines %d, then %d; sockets %d, then %d; heap %d KiB, then %d", faults, had, base, goroutines, socks, open, m0.HeapAlloc>>10, m1.HeapAlloc>>10)
		if goroutines > base+30 || open > socks+10 || m1.HeapAlloc > m0.HeapAlloc+4<<20 {
			t.Error("something grows")
		}
		cancel()
		for range got {
			<-done
		}
	})
}
