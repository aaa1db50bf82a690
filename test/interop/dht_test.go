//go:build interop

package interop

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
)

// stockNet starts a network of stock nodes and returns a bootstrap address.
func stockNet(t testing.TB, p *peer, nodes int) string {
	t.Helper()
	var at string
	p.do(`
		s.DHT = s.require('hyperdht')
		s.testnet = await s.require('hyperdht/testnet')(a.nodes)
		return '127.0.0.1:' + s.testnet.bootstrap[0].port`, map[string]any{"nodes": nodes}, &at)
	return at
}

// ourNode starts a node of ours on loopback.
func ourNode(t testing.TB, bootstrap string, cfg dht.Config) *dht.Node {
	t.Helper()
	cfg.Bootstrap = []string{bootstrap}
	if !cfg.Host.IsValid() {
		cfg.Host = netip.MustParseAddr("127.0.0.1")
	}
	n, err := dht.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func publicOf(k ed25519.PrivateKey) [32]byte { return [32]byte(k[32:]) }

// fill sends n bytes, the same each time, and returns their hash.
func fill(c *secretstream.Conn, n int) (string, error) {
	r := mrand.NewChaCha8([32]byte{3})
	h := sha256.New()
	b := make([]byte, 60<<10)
	for n > 0 {
		k := min(n, len(b))
		r.Read(b[:k])
		h.Write(b[:k])
		if err := c.WriteMessage(b[:k]); err != nil {
			return "", err
		}
		n -= k
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// drain reads n bytes and returns their hash.
func drain(c *secretstream.Conn, n int) (string, error) {
	h := sha256.New()
	for n > 0 {
		m, err := c.ReadMessage()
		if err != nil {
			return "", fmt.Errorf("%d bytes are missing: %w", n, err)
		}
		h.Write(m)
		n -= len(m)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// The stock side of a transfer: it reads a.size bytes and sends them back.
const stockMirror = `
	s.mirror = (socket, size) => new Promise((resolve, reject) => {
		const h = s.require('crypto').createHash('sha256')
		const all = []
		let n = 0
		socket.on('data', (b) => {
			all.push(b); n += b.length; h.update(b)
			if (n < size) return
			for (const b of all) socket.write(b)
			resolve(h.digest('hex'))
		})
		socket.on('error', reject)
		socket.on('close', () => reject(new Error('closed after ' + n)))
	})`

// mirrored sends size bytes, and expects the same back.
func mirrored(t *testing.T, c *secretstream.Conn, size int) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		sent, err := fill(c, size)
		if err != nil {
			t.Errorf("sending: %v", err)
		}
		_ = sent
	})
	got, err := drain(c, size)
	wg.Wait()
	want := mrandHash(size)
	if err != nil || got != want {
		t.Errorf("%s came back, not %s: %v", got, want, err)
	}
}

func mrandHash(n int) string {
	h := sha256.New()
	io.CopyN(h, mrand.NewChaCha8([32]byte{3}), int64(n)) //nolint:errcheck // it has no end
	return hex.EncodeToString(h.Sum(nil))
}

// TestDHTStockSeller: we connect to a stock server, found by stock nodes.
func TestDHTStockSeller(t *testing.T) {
	p := startPeer(t)
	boot := stockNet(t, p, 8)
	for _, c := range []struct {
		name, opts string
		size       int
		conn       func(udx.PacketConn) udx.PacketConn
	}{
		{"open", `{ firewalled: false, ephemeral: true }`, 1 << 20, nil},
		{"firewalled", `{ firewalled: true }`, 1 << 20, nil},
		{"large", `{ firewalled: false, ephemeral: true }`, 100 << 20, nil},
		{"5 % loss", `{ firewalled: false, ephemeral: true }`, 1 << 20, lossy},
	} {
		t.Run(c.name, func(t *testing.T) {
			var key string
			p.do(stockMirror+`
				s.node = s.testnet.createNode(`+c.opts+`)
				s.server = s.node.createServer((socket) => { s.last = s.mirror(socket, a.size) })
				await s.server.listen()
				return s.hex(s.server.publicKey)`, map[string]any{"size": c.size}, &key)
			n := ourNode(t, boot, dht.Config{Listen: listenThrough(c.conn)})
			b, _ := hex.DecodeString(key)
			begun := time.Now()
			conn, err := n.Dial(t.Context(), dht.DialConfig{Key: newKey(t), Remote: [32]byte(b), Stream: udx.StreamConfig{MaxWindow: 4 << 20, SendBuffer: 1 << 20}, Secret: secretstream.Config{MaxMessage: 1 << 20}})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("connected in %v", time.Since(begun))
			begun = time.Now()
			mirrored(t, conn, c.size)
			t.Logf("%.1f MB/s there and back", float64(c.size)/1e6/time.Since(begun).Seconds())
			conn.Close()
			p.do(`await s.server.close(); await s.node.destroy()`, nil, nil)
		})
	}
	// Nobody announces this one.
	n := ourNode(t, boot, dht.Config{})
	if _, err := n.Dial(t.Context(), dht.DialConfig{Key: newKey(t), Remote: publicOf(newKey(t))}); !errors.Is(err, dht.ErrUnknown) {
		t.Error(err)
	}
}

// TestDHTStockBuyer: a stock client connects to us.
func TestDHTStockBuyer(t *testing.T) {
	p := startPeer(t)
	boot := stockNet(t, p, 8)
	for _, c := range []struct {
		name, opts string
		size       int
		conn       func(udx.PacketConn) udx.PacketConn
	}{
		{"open", `{ firewalled: false, ephemeral: true }`, 1 << 20, nil},
		{"firewalled", `{ firewalled: true }`, 1 << 20, nil},
		{"large", `{ firewalled: true }`, 100 << 20, nil},
		{"5 % loss", `{ firewalled: true }`, 1 << 20, lossy},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := ourNode(t, boot, dht.Config{Listen: listenThrough(c.conn)})
			key := newKey(t)
			var allowed [32]byte
			l, err := n.Listen(dht.ListenConfig{Key: key, Stream: udx.StreamConfig{MaxWindow: 4 << 20, SendBuffer: 1 << 20}, Secret: secretstream.Config{MaxMessage: 1 << 20}, Accept: func(k [32]byte) bool { allowed = k; return true }})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			ready(t, l)
			done := p.begin(stockMirror+`
				s.node = s.testnet.createNode(`+c.opts+`)
				const socket = s.node.connect(Buffer.from(a.key, 'hex'))
				await new Promise((resolve, reject) => { socket.once('open', resolve); socket.once('error', reject) })
				s.last = s.mirror(socket, a.size)
				return s.hex(socket.publicKey)`, map[string]any{"size": c.size, "key": hex.EncodeToString(key[32:])})
			conn, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			var who string
			if err := done(&who); err != nil {
				t.Fatal(err)
			}
			if remote := conn.Remote(); hex.EncodeToString(remote[:]) != who || allowed != remote {
				t.Errorf("%x connected, and it is %s", remote, who)
			}
			begun := time.Now()
			mirrored(t, conn, c.size)
			t.Logf("%.1f MB/s there and back", float64(c.size)/1e6/time.Since(begun).Seconds())
			conn.Close()
			p.do(`await s.last; await s.node.destroy()`, nil, nil)
		})
	}
}

// ready waits until a key is announced.
func ready(t *testing.T, l *dht.Listener) {
	t.Helper()
	for deadline := time.Now().Add(patience); l.Announced().At.IsZero(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is not announced: %v", l.Announced().Err)
		}
	}
}

// TestDHTOurNetwork: stock peers find each other, and keep records, by nodes of ours alone.
func TestDHTOurNetwork(t *testing.T) {
	// The first has an address of its own on loopback, so that nobody takes its port.
	first := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 78, byte(os.Getpid() >> 8), byte(os.Getpid())}), 49737)
	boot := first.String()
	for i := range 6 {
		cfg := dht.Config{Persistent: true}
		if i == 0 {
			cfg.Host, cfg.Port, cfg.Public = first.Addr(), first.Port(), first
		}
		n := ourNode(t, boot, cfg)
		if !n.RPC().Persistent() {
			a, open := n.Address()
			t.Fatalf("node %d does not serve: %v, %v", i, a, open)
		}
	}
	p := startPeer(t)
	var got struct {
		Echo, Mutable, Immutable string
		Seq                      int
		Peers                    []string
		Gone                     int
	}
	p.do(`
		const DHT = s.require('hyperdht')
		const bootstrap = [{ host: a.host, port: a.port }]
		const seller = new DHT({ bootstrap, host: '127.0.0.1' })
		const buyer = new DHT({ bootstrap, host: '127.0.0.1' })
		// A stock buyer that finds out in the middle of a dial that it is open tells the seller
		// no address in the rounds of punching, which a stock seller takes for the end.
		await seller.fullyBootstrapped()
		await buyer.fullyBootstrapped()
		const server = seller.createServer((socket) => { socket.on('data', (b) => socket.write(b)) })
		await server.listen()
		const socket = buyer.connect(server.publicKey)
		const echo = new Promise((resolve, reject) => { socket.once('data', (b) => resolve(b.toString())); socket.once('error', reject) })
		socket.write('hello')
		const out = { Echo: await echo }
		socket.destroy()
		const k = DHT.keyPair()
		await seller.mutablePut(k, Buffer.from('first'))
		await seller.mutablePut(k, Buffer.from('second'), { seq: 1 })
		const m = await buyer.mutableGet(k.publicKey)
		out.Mutable = m.value.toString(); out.Seq = m.seq
		const { hash } = await seller.immutablePut(Buffer.from('for ever'))
		out.Immutable = (await buyer.immutableGet(hash)).value.toString()
		const topic = Buffer.alloc(32, 7)
		await seller.announce(topic, k).finished()
		out.Peers = []
		for await (const x of buyer.lookup(topic)) for (const p of x.peers) out.Peers.push(s.hex(p.publicKey))
		out.Peers = [...new Set(out.Peers)].map((h) => h === s.hex(k.publicKey) ? 'it' : h)
		await seller.unannounce(topic, k)
		out.Gone = 0
		for await (const x of buyer.lookup(topic)) out.Gone += x.peers.length
		await server.close()
		await seller.destroy(); await buyer.destroy()
		return out`, map[string]any{"host": first.Addr().String(), "port": first.Port()}, &got)
	if got.Echo != "hello" || got.Mutable != "second" || got.Seq != 1 || got.Immutable != "for ever" || len(got.Peers) != 1 || got.Peers[0] != "it" || got.Gone != 0 {
		t.Errorf("%+v", got)
	}
}

// TestDHTRecords: records of ours are read by stock nodes and kept by them, and theirs by
// us.
func TestDHTRecords(t *testing.T) {
	p := startPeer(t)
	boot := stockNet(t, p, 8)
	n := ourNode(t, boot, dht.Config{})
	ctx := t.Context()
	key := newKey(t)
	for i, v := range []string{"one", "two"} {
		if kept, err := n.PutMutable(ctx, key, dht.Record{Seq: uint64(i), Value: []byte(v)}); err != nil || kept < 5 {
			t.Fatal(kept, err)
		}
	}
	if _, err := n.PutMutable(ctx, key, dht.Record{Seq: 0, Value: []byte("old")}); !errors.Is(err, dht.ErrOlder) {
		t.Error(err)
	}
	if r, err := n.Mutable(ctx, publicOf(key), 0); err != nil || r.Seq != 1 || string(r.Value) != "two" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := n.Mutable(ctx, publicOf(key), 5); !errors.Is(err, dht.ErrNotFound) {
		t.Error(err)
	}
	target, kept, err := n.PutImmutable(ctx, []byte("stays"))
	if err != nil || kept < 5 {
		t.Fatal(kept, err)
	}
	topic := [32]byte{9}
	l, err := n.Listen(dht.ListenConfig{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ready(t, l)
	if kept, err := n.AnnounceTopic(ctx, topic, key); err != nil || kept < 5 {
		t.Fatal(kept, err)
	}
	var got struct {
		Mutable, Immutable, Theirs string
		Seq                        int
		Peers                      []string
	}
	p.do(`
		const node = s.testnet.createNode()
		const m = await node.mutableGet(Buffer.from(a.key, 'hex'))
		const out = { Mutable: m.value.toString(), Seq: m.seq, Peers: [] }
		out.Immutable = (await node.immutableGet(Buffer.from(a.target, 'hex'))).value.toString()
		for await (const x of node.lookup(Buffer.from(a.topic, 'hex'))) for (const p of x.peers) out.Peers.push(s.hex(p.publicKey))
		out.Peers = [...new Set(out.Peers)]
		const k = s.DHT.keyPair()
		await node.mutablePut(k, Buffer.from('theirs'), { seq: 4 })
		await node.announce(Buffer.from(a.topic, 'hex'), k).finished()
		out.Theirs = s.hex(k.publicKey)
		return out`, map[string]any{"key": hex.EncodeToString(key[32:]), "target": hex.EncodeToString(target[:]), "topic": hex.EncodeToString(topic[:])}, &got)
	if got.Mutable != "two" || got.Seq != 1 || got.Immutable != "stays" || len(got.Peers) != 1 || got.Peers[0] != hex.EncodeToString(key[32:]) {
		t.Errorf("%+v", got)
	}
	theirs, _ := hex.DecodeString(got.Theirs)
	if r, err := n.Mutable(ctx, [32]byte(theirs), 0); err != nil || r.Seq != 4 || string(r.Value) != "theirs" {
		t.Errorf("%+v, %v", r, err)
	}
	var found []string
	if err := n.Lookup(ctx, topic, func(p packet.Peer) bool { found = append(found, hex.EncodeToString(p.PublicKey[:])); return true }); err != nil || len(found) != 2 {
		t.Errorf("%v, %v", found, err)
	}
	if err := n.UnannounceTopic(ctx, topic, key); err != nil {
		t.Error(err)
	}
	found = nil
	if err := n.Lookup(ctx, topic, func(p packet.Peer) bool { found = append(found, hex.EncodeToString(p.PublicKey[:])); return true }); err != nil || strings.Join(found, "") != got.Theirs {
		t.Errorf("%v, %v", found, err)
	}
}

// TestHyperswarm: a stock swarm that joins a topic finds us, and connects.
func TestHyperswarm(t *testing.T) {
	p := startPeer(t)
	boot := stockNet(t, p, 8)
	n := ourNode(t, boot, dht.Config{})
	key, topic := newKey(t), [32]byte{4, 2}
	l, err := n.Listen(dht.ListenConfig{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ready(t, l)
	if _, err := n.AnnounceTopic(t.Context(), topic, key); err != nil {
		t.Fatal(err)
	}
	done := p.begin(`
		const Hyperswarm = s.require('hyperswarm')
		s.swarm = new Hyperswarm({ bootstrap: s.testnet.bootstrap, dht: s.testnet.createNode() })
		const got = new Promise((resolve) => s.swarm.on('connection', (c, info) => { c.on('error', () => {}); c.on('data', (b) => resolve(s.hex(info.publicKey) + ' ' + b)) }))
		s.swarm.join(Buffer.from(a.topic, 'hex'), { server: true, client: true })
		const r = await got
		return { r, key: s.hex(s.swarm.keyPair.publicKey) }`, map[string]any{"topic": hex.EncodeToString(topic[:])})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WriteMessage([]byte("welcome")); err != nil {
		t.Fatal(err)
	}
	var got struct{ R, Key string }
	if err := done(&got); err != nil || got.R != hex.EncodeToString(key[32:])+" welcome" {
		t.Fatalf("%+v, %v", got, err)
	}
	// And we find the swarm by its topic.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		found := false
		if err := n.Lookup(ctx, topic, func(p packet.Peer) bool {
			found = found || hex.EncodeToString(p.PublicKey[:]) == got.Key
			return !found
		}); err != nil {
			t.Fatal(err)
		}
		if found {
			break
		}
	}
	p.do(`await s.swarm.destroy()`, nil, nil)
}

// listenThrough opens sockets of which each is wrapped.
func listenThrough(wrap func(udx.PacketConn) udx.PacketConn) func(uint16, bool) (udx.PacketConn, error) {
	if wrap == nil {
		return nil
	}
	return func(port uint16, lean bool) (udx.PacketConn, error) {
		c, err := udx.ListenUDP(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), lean)
		if err != nil {
			return nil, err
		}
		return wrap(c), nil
	}
}

// lossy loses one datagram of twenty, in each direction, but of those at the beginning.
func lossy(c udx.PacketConn) udx.PacketConn {
	return &lossyConn{PacketConn: c, rand: mrand.New(mrand.NewPCG(1, 2))}
}

type lossyConn struct {
	udx.PacketConn
	mu   sync.Mutex
	rand *mrand.Rand // guarded by mu
}

func (l *lossyConn) lost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rand.IntN(20) == 0
}

func (l *lossyConn) Write(b []byte, size int, to netip.AddrPort, ttl int) error {
	for ; len(b) > 0; b = b[min(size, len(b)):] {
		if p := b[:min(size, len(b))]; !l.lost() {
			if err := l.PacketConn.Write(p, size, to, ttl); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lossyConn) Read(b []byte) (n, size int, from netip.AddrPort, err error) {
	for {
		n, size, from, err = l.PacketConn.Read(b)
		if err != nil {
			return n, size, from, err
		}
		kept := 0
		for at := 0; at < n; at += size {
			k := min(size, n-at)
			if !l.lost() {
				copy(b[kept:], b[at:at+k])
				kept += k
			}
		}
		if kept > 0 {
			return kept, size, from, nil
		}
	}
}
