//go:build interop

package interop

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/feedtest"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/storage/durable"
)

// shop is a log on disk with a TCP address at which its feeds are to be had.
type shop struct {
	t       testing.TB
	dir     string
	sales   *feedtest.Sales
	log     *feed.Log
	port    int
	up      *replicate.Uplink
	maxSize int64
	stop    chan struct{}
	wg      sync.WaitGroup

	mu      sync.Mutex
	feeds   map[merkle.Hash]*feed.Feed          // sold, by discovery key; guarded by mu, like all below
	sellers map[merkle.Hash][]*replicate.Seller // by discovery key
	config  func(c *replicate.SellerConfig)
	conns   []*secretstream.Conn
	rate    float64
	session replicate.Session // of the newest connection
}

// newShop opens a log in dir, or in a new directory, and listens.
func newShop(t testing.TB, dir string, maxSize int64) *shop {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	s := &shop{t: t, dir: dir, sales: &feedtest.Sales{}, up: &replicate.Uplink{Coalesce: time.Millisecond}}
	s.maxSize = maxSize
	s.open(maxSize)
	t.Cleanup(s.close)
	return s
}

func (s *shop) open(maxSize int64) {
	s.t.Helper()
	var err error
	s.log, err = feed.Open(feed.Config{
		FS: durable.OS(), Dir: s.dir, MaxSize: maxSize, Name: "shop", Encoding: block.Raw, Keys: feedtest.Keys{}, Sales: s.sales,
		Now: func() block.Stamp { return block.Stamp{Boot: 1} },
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.feeds, s.sellers = map[merkle.Hash]*feed.Feed{}, map[merkle.Hash][]*replicate.Seller{}
	s.stop = make(chan struct{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	s.port = ln.Addr().(*net.TCPAddr).Port
	l := secretstream.Listen(ln, secretstream.ListenConfig{
		Config: secretstream.Config{Static: key(2)}, PerSecond: 1000, Burst: 1000, NetworkPerSecond: 1000, NetworkBurst: 1000,
	})
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.wg.Add(1)
			go func() { defer s.wg.Done(); s.serve(c) }()
		}
	}()
	go func() {
		defer s.wg.Done()
		for {
			changed := s.log.Changed()
			s.each(func(x *replicate.Seller) { x.Update() })
			select {
			case <-changed:
			case <-s.stop:
				l.Close()
				return
			}
		}
	}()
}

func (s *shop) each(f func(*replicate.Seller)) {
	s.mu.Lock()
	var all []*replicate.Seller
	for _, l := range s.sellers {
		all = append(all, l...)
	}
	s.mu.Unlock()
	for _, x := range all {
		f(x)
	}
}

// hangUp ends all connections and waits until they are over.
func (s *shop) hangUp() {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

func (s *shop) closeNet() {
	close(s.stop)
	s.hangUp()
	s.wg.Wait()
}

func (s *shop) close() {
	s.closeNet()
	s.log.Close()
}

// serve accepts the channels of feeds that were sold.
func (s *shop) serve(c *secretstream.Conn) {
	share := s.up.Share(s.rate)
	var session replicate.Session
	m := mux.New(c, mux.Config{Window: share.Window(), Pace: share, Accept: func(protocol string, id []byte) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(id) != 32 || s.feeds[merkle.Hash(id)] == nil {
			return false
		}
		s.sell(session, merkle.Hash(id))
		return false
	}})
	session = replicate.Session{Mux: m, HandshakeHash: c.HandshakeHash(), Initiator: c.Initiator()}
	s.mu.Lock()
	s.session = session
	s.mu.Unlock()
	err := m.Run()
	if os.Getenv("EDGE_TEST_LOG") != "" {
		s.t.Logf("connection ended: %v", err)
	}
}

// sell opens a channel. mu is held.
func (s *shop) sell(session replicate.Session, id merkle.Hash) {
	cfg := replicate.SellerConfig{Session: session, Feed: s.feeds[id], Blocks: s.feeds[id].Reader(), Uplink: s.up}
	if os.Getenv("EDGE_TEST_LOG") != "" {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if s.config != nil {
		s.config(&cfg)
	}
	x, err := replicate.NewSeller(cfg)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.sellers[id] = append(s.sellers[id], x)
}

// image copies the log's files, which must be whole: it is closed meanwhile.
func (s *shop) image() string {
	s.t.Helper()
	s.closeNet()
	if err := s.log.Close(); err != nil {
		s.t.Fatal(err)
	}
	to := s.t.TempDir()
	if err := os.CopyFS(to+"/log", os.DirFS(s.dir)); err != nil {
		s.t.Fatal(err)
	}
	s.open(s.maxSize)
	return to + "/log"
}

// restore goes back to an image, as after a power cut or from a backup.
func (s *shop) restore(image string) {
	s.t.Helper()
	s.closeNet()
	s.log.Abort()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
	if err := os.CopyFS(s.dir, os.DirFS(image)); err != nil {
		s.t.Fatal(err)
	}
	s.open(s.maxSize)
}

// rekey sells the log to a buyer and returns the feed's key in hex.
func (s *shop) rekey(buyer byte) string {
	s.t.Helper()
	f, err := s.log.Rekey([32]byte{buyer})
	if err != nil {
		s.t.Fatal(err)
	}
	k := f.Key()
	s.mu.Lock()
	s.feeds[merkle.DiscoveryKey(k)] = f
	s.mu.Unlock()
	return hex.EncodeToString(k[:])
}

// seller returns the newest seller of a feed.
func (s *shop) seller(key string) *replicate.Seller {
	b, _ := hex.DecodeString(key)
	id := merkle.DiscoveryKey(merkle.Hash(b))
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.sellers[id]
	return l[len(l)-1]
}

// fill appends blocks of these sizes and returns them.
func (s *shop) fill(sizes ...int) (out [][]byte) {
	s.t.Helper()
	at := int(s.log.Head().Length)
	var all []block.Block
	for i, n := range sizes {
		b := genBlock(at+i, n)
		out = append(out, b)
		all = append(all, block.Block{Data: b})
	}
	for len(all) > 0 {
		n := 0
		for size := 0; n < len(all) && size < 1<<20; n++ {
			size += len(all[n].Data) + 200
		}
		if _, err := s.log.Append(context.Background(), all[:n]...); err != nil {
			s.t.Fatal(err)
		}
		all = all[n:]
	}
	return out
}

// genBlock is block i of n bytes, as peer.js makes it.
func genBlock(i, n int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(i*31 + j*7 + j>>8)
	}
	return b
}

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

// sizes returns n times size.
func sizes(n, size int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = size
	}
	return out
}

// TestStockBuyer: a stock hypercore that knows only the key gets everything.
func TestStockBuyer(t *testing.T) {
	s := newShop(t, "", 1<<30)
	all := append([]int{0, 1, 64, 64 << 10, 1 << 20, 0, 5}, sizes(200, 64)...)
	s.fill(all...)
	k := s.rekey(1)
	p := startPeer(t)
	var got struct {
		Length, Contiguous, Fork int
		Good                     bool
		TreeHash                 string
	}
	p.do(`
		s.c = await s.core(s.tmp(), Buffer.from(a.key, 'hex'))
		s.stream = await s.dial(a.port)
		s.replicate(s.c, s.stream)
		await s.c.update({ wait: true })
		await s.c.download({ start: 0, end: s.c.length }).done()
		let good = true
		for (let i = 0; i < s.c.length; i++) good = good && s.block(i, a.sizes[i]).equals(await s.c.get(i, { wait: false }))
		return { length: s.c.length, contiguous: s.c.contiguousLength, fork: s.c.fork, good, treeHash: s.hex(await s.c.treeHash()) }
	`, map[string]any{"key": k, "port": s.port, "sizes": all}, &got)
	h := s.log.Head().TreeHash
	if got.Length != len(all) || got.Contiguous != len(all) || !got.Good || got.TreeHash != hex.EncodeToString(h[:]) {
		t.Errorf("%+v", got)
	}
}
