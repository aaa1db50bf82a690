package dht_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/simnet"
	"dazaar-edge/protocol/udx"
)

func random(seed uint64) io.Reader {
	var b [32]byte
	for i := range 8 {
		b[i] = byte(seed >> (8 * i))
	}
	return &seeded{r: rand.NewChaCha8(b)}
}

// seeded is what is random, from a seed, for many at once.
type seeded struct {
	mu sync.Mutex
	r  *rand.ChaCha8 // guarded by mu
}

func (s *seeded) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.r.Read(b)
}

func key(seed uint64) ed25519.PrivateKey {
	var b [32]byte
	io.ReadFull(random(seed), b[:])
	return ed25519.NewKeyFromSeed(b[:])
}

func public(k ed25519.PrivateKey) [32]byte { return [32]byte(k[32:]) }

// world is an internet with a network of nodes on it.
type world struct {
	t     *testing.T
	net   *simnet.Net
	nodes []*dht.Node
	seed  uint64
}

// lan is a link at home, wan one to a provider.
var (
	lan = simnet.Link{Delay: time.Millisecond}
	wan = simnet.Link{Delay: 10 * time.Millisecond}
)

// newWorld returns an internet with n public nodes.
func newWorld(t *testing.T, n int, seed uint64) *world {
	t.Helper()
	w := &world{t: t, net: simnet.New(seed), seed: seed << 20}
	for i := range n {
		cfg := dht.Config{Persistent: true}
		if i == 0 {
			cfg.Public = netip.MustParseAddrPort("5.5.0.1:49737")
		}
		w.nodes = append(w.nodes, w.node(w.net.Public().Host(fmt.Sprintf("5.5.%d.1", i), wan), cfg))
	}
	return w
}

// node starts a node on a host, and makes it part of the network.
func (w *world) node(h *simnet.Host, cfg dht.Config) *dht.Node {
	w.t.Helper()
	w.seed++
	cfg.Rand = random(w.seed)
	cfg.Listen = func(port uint16, _ bool) (udx.PacketConn, error) {
		c, err := h.Listen(port)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	cfg.Addresses = func() []netip.Addr { return []netip.Addr{h.Addr()} }
	cfg.Bootstrap = []string{"5.5.0.1:49737"}
	n, err := dht.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := n.Bootstrap(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) close(more ...*dht.Node) {
	for _, n := range append(more, w.nodes...) {
		if err := n.Close(); err != nil {
			w.t.Error(err)
		}
	}
	w.net.Close()
}

// echo accepts connections and sends back what comes.
func echo(l *dht.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for {
				m, err := c.ReadMessage()
				if err != nil || c.WriteMessage(m) != nil {
					return
				}
			}
		}()
	}
}

// call dials a key and has a message sent back. It returns how long the dial took.
func call(ctx context.Context, n *dht.Node, k ed25519.PrivateKey, remote [32]byte) (took time.Duration, err error) {
	begun := time.Now()
	c, err := n.Dial(ctx, dht.DialConfig{Key: k, Remote: remote})
	if err != nil {
		return 0, err
	}
	took = time.Since(begun)
	defer c.Close()
	return took, say(c, "hello")
}

func say(c *secretstream.Conn, text string) error {
	if err := c.WriteMessage([]byte(text)); err != nil {
		return err
	}
	m, err := c.ReadMessage()
	if err != nil {
		return err
	}
	if string(m) != text {
		return fmt.Errorf("%q came back", m)
	}
	return nil
}

// announced waits until a key is.
func announced(t *testing.T, l *dht.Listener) {
	t.Helper()
	for range 600 {
		if !l.Announced().At.IsZero() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("it is not announced: %v", l.Announced().Err)
}

var _ = errors.Is
var _ net.Conn = (*udx.Stream)(nil)
