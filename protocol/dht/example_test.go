package dht_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log"
	"net/netip"

	"dazaar-edge/protocol/dht"
)

// A network of one node, one who listens, and one who dials it by its key.
func Example() {
	local := netip.MustParseAddr("127.0.0.1")
	ctx := context.Background()
	open := func(cfg dht.Config) *dht.Node {
		cfg.Host = local
		n, err := dht.New(cfg)
		if err == nil {
			err = n.Bootstrap(ctx)
		}
		if err != nil {
			log.Fatal(err)
		}
		return n
	}
	first := open(dht.Config{Port: 40_737, Public: netip.AddrPortFrom(local, 40_737), Bootstrap: []string{}})
	defer first.Close()
	network := []string{"127.0.0.1:40737"}

	_, sellerKey, _ := ed25519.GenerateKey(nil)
	seller := open(dht.Config{Port: 40_738, Bootstrap: network})
	defer seller.Close()
	l, err := seller.Listen(dht.ListenConfig{Key: sellerKey})
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.WriteMessage([]byte("21.5 degrees")) //nolint:errcheck // the other side reads
	}()

	_, buyerKey, _ := ed25519.GenerateKey(nil)
	buyer := open(dht.Config{Port: 40_739, Bootstrap: network})
	defer buyer.Close()
	for { // until it is announced
		c, err := buyer.Dial(ctx, dht.DialConfig{Key: buyerKey, Remote: [32]byte(sellerKey[32:])})
		if err != nil {
			continue
		}
		m, err := c.ReadMessage()
		fmt.Println(string(m), err)
		c.Close()
		break
	}
	// Output: 21.5 degrees <nil>
}
