package udx_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/protocol/simnet"
	"dazaar-edge/protocol/udx"
)

// seeded is what is random, from a seed.
type seeded struct{ *rand.ChaCha8 }

func random(seed byte) io.Reader { return seeded{rand.NewChaCha8([32]byte{seed})} }

// peer is a host with an endpoint and one socket.
type peer struct {
	host *simnet.Host
	ep   *udx.Endpoint
	sock *udx.Socket
}

func newPeer(t *testing.T, h *simnet.Host, seed byte) *peer {
	t.Helper()
	c, err := h.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{host: h, ep: udx.NewEndpoint(random(seed))}
	p.sock = p.ep.NewSocket(c, false, nil)
	return p
}

func (p *peer) close() {
	p.ep.Close()
	p.sock.Close()
}

func (p *peer) stream(t testing.TB, cfg udx.StreamConfig) *udx.Stream {
	t.Helper()
	s, err := p.ep.NewStream(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pair is two hosts with links, and a stream between them.
type pair struct {
	net  *simnet.Net
	a, b *peer
	x, y *udx.Stream
}

// connected calls f, in a bubble, with two streams that are connected.
func connected(t *testing.T, a, b simnet.Link, cfg udx.StreamConfig, f func(*testing.T, *pair)) {
	t.Helper()
	connectedBy(t, 7, a, b, cfg, f)
}

// connectedBy is connected with a seed of its own.
func connectedBy(t *testing.T, seed uint64, a, b simnet.Link, cfg udx.StreamConfig, f func(*testing.T, *pair)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(seed)
		defer n.Close()
		p := &pair{net: n}
		p.a, p.b = newPeer(t, n.Public().Host("1.0.0.1", a), 1), newPeer(t, n.Public().Host("1.0.0.2", b), 2)
		defer p.b.close()
		defer p.a.close()
		p.x, p.y = p.a.stream(t, cfg), p.b.stream(t, cfg)
		p.bind(t)
		f(t, p)
	})
}

func (p *pair) bind(t *testing.T) {
	t.Helper()
	if err := errors.Join(p.x.Bind(p.a.sock, p.b.sock.LocalAddr(), p.y.ID()), p.y.Bind(p.b.sock, p.a.sock.LocalAddr(), p.x.ID())); err != nil {
		t.Fatal(err)
	}
}

// data returns n bytes that are the same each time.
func data(n int) []byte {
	b := make([]byte, n)
	random(9).Read(b)
	return b
}

// send writes b to x and closes it for writing; what y reads must be the same. It returns
// how long that took.
func send(t *testing.T, x, y *udx.Stream, b []byte) time.Duration {
	t.Helper()
	begun := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := x.Write(b); n != len(b) || err != nil {
			t.Errorf("%d of %d bytes are written: %v", n, len(b), err)
		}
		if err := x.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	h := sha256.New()
	n, err := io.Copy(h, y)
	if err != nil || n != int64(len(b)) {
		t.Errorf("%d of %d bytes came: %v", n, len(b), err)
	} else if want := sha256.Sum256(b); !bytes.Equal(h.Sum(nil), want[:]) {
		t.Error("other bytes came than were sent")
	}
	wg.Wait()
	return time.Since(begun)
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
