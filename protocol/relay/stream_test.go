package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/secretstream"
)

func key(n byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(append(make([]byte, 31), n))
}

func public(k ed25519.PrivateKey) [32]byte { return [32]byte(k[32:]) }

// hosted is a relay on loopback.
type hosted struct {
	*Server
	ln net.Listener
	at Address
}

func host(t *testing.T, address string, cfg ServerConfig) *hosted {
	t.Helper()
	return hostBy(t, address, cfg, secretstream.ListenConfig{Config: StreamConfig(key(1)), NetworkBurst: 1000, NetworkPerSecond: 1000, Burst: 1000, PerSecond: 1000})
}

func hostBy(t *testing.T, address string, cfg ServerConfig, door secretstream.ListenConfig) *hosted {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	h := &hosted{NewServer(cfg), ln, Address{public(key(1)), ln.Addr().String()}}
	l := secretstream.Listen(ln, door)
	done := make(chan struct{})
	go func() {
		h.ServeStreams(l) //nolint:errcheck // it ends with l
		close(done)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		h.Close()
	})
	return h
}

func listen(t *testing.T, h *hosted, n byte) *StreamListener {
	t.Helper()
	l := ListenStream(ListenStreamConfig{Relay: h.at, Secret: secretstream.Config{Pattern: noise.XX, Static: key(n)}})
	t.Cleanup(func() { l.Close() })
	reached(t, l)
	return l
}

func reached(t *testing.T, l *StreamListener) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		since, err := l.Reached()
		if !since.IsZero() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not reached: %v", err)
		}
	}
}

func dial(t *testing.T, h *hosted, from, to byte) (*secretstream.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	return Dial(ctx, h.at, secretstream.Config{Pattern: noise.XX, Static: key(from), Remote: public(key(to))})
}

// connected returns both ends of a connection.
func connected(t *testing.T, h *hosted, l *StreamListener, from, to byte) (a, b *secretstream.Conn) {
	t.Helper()
	accepted := make(chan *secretstream.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	a, err := dial(t, h, from, to)
	if err != nil {
		t.Fatal(err)
	}
	b = <-accepted
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// TestStream: who dials and who listens know each other, and all comes through, both ways, in
// order.
func TestStream(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{})
	a, b := connected(t, h, listen(t, h, 2), 3, 2)
	if a.Remote() != public(key(2)) || b.Remote() != public(key(3)) {
		t.Fatal("somebody else")
	}
	const n, size = 500, 16 << 10
	sums := make(chan [32]byte, 4)
	send := func(c *secretstream.Conn, seed byte) {
		r, sum := rand.NewChaCha8([32]byte{seed}), sha256.New()
		m := make([]byte, size)
		for range n {
			r.Read(m) //nolint:errcheck // it never fails
			sum.Write(m)
			if err := c.WriteMessage(m); err != nil {
				t.Error(err)
				break
			}
		}
		sums <- [32]byte(sum.Sum(nil))
	}
	receive := func(c *secretstream.Conn) (out [32]byte) {
		sum := sha256.New()
		for range n {
			m, err := c.ReadMessage()
			if err != nil {
				t.Error(err)
				break
			}
			sum.Write(m)
		}
		return [32]byte(sum.Sum(nil))
	}
	for _, ends := range [][2]*secretstream.Conn{{a, b}, {b, a}} {
		go send(ends[0], byte(len(sums)))
		if got := receive(ends[1]); got != <-sums {
			t.Error("not what was sent")
		}
	}
	if st := h.Stats(); st.Pairs != 1 || st.Clients != 1 || st.Bytes < 2*n*size {
		t.Errorf("%+v", st)
	}
	// The end of one is the end of the other.
	a.Close()
	if _, err := b.ReadMessage(); err == nil {
		t.Error("it goes on")
	}
	for h.Stats().Pairs > 0 {
		time.Sleep(time.Millisecond)
	}
}

// TestStreamUnknown: nobody listens, or somebody else.
func TestStreamUnknown(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{})
	if _, err := dial(t, h, 3, 2); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	listen(t, h, 4)
	if _, err := dial(t, h, 3, 2); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	// A relay that is another one is not told anything.
	h.at.Key = public(key(9))
	if _, err := dial(t, h, 3, 4); err == nil {
		t.Error("it talks to anybody")
	}
}

// TestStreamStolen: who heard of a token and has another key gets nothing.
func TestStreamStolen(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{})
	cfg := StreamConfig(key(2))
	cfg.Remote = h.at.Key
	c, err := secretstream.Dial(t.Context(), h.at.TCP, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := ask(t.Context(), c, []byte{opListen}); err != nil {
		t.Fatal(err)
	}
	go dial(t, h, 3, 2) //nolint:errcheck // nobody comes
	m, err := c.ReadMessage()
	if err != nil || m[0] != opIncoming {
		t.Fatal(m, err)
	}
	token := [32]byte(m[1:])
	if _, err := pipe(t.Context(), h.at, key(5), opTake, token); !errors.Is(err, ErrUnknown) {
		t.Error("another one took it:", err)
	}
	raw, err := pipe(t.Context(), h.at, key(2), opTake, token)
	if err != nil {
		t.Fatal(err)
	}
	raw.Close()
	if _, err := pipe(t.Context(), h.at, key(2), opTake, token); !errors.Is(err, ErrUnknown) {
		t.Error("it was taken twice:", err)
	}
}

// TestStreamAgain: who listens is reached again when the relay was away, and when it came
// twice.
func TestStreamAgain(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{})
	l := listen(t, h, 2)
	h.ln.Close()
	h.Close()
	for since, _ := l.Reached(); !since.IsZero(); since, _ = l.Reached() {
		time.Sleep(time.Millisecond)
	}
	h = host(t, h.at.TCP, ServerConfig{})
	reached(t, l)
	connected(t, h, l, 3, 2)
	l.Close()
	again := listen(t, h, 2)
	connected(t, h, again, 3, 2)
}

// TestStreamLimits: no more pipes than may be, no faster, no longer.
func TestStreamLimits(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{PairsPerClient: 8, PairRate: 1 << 20, Time: 4 * time.Second})
	l := listen(t, h, 2)
	a, b := connected(t, h, l, 3, 2)
	connected(t, h, l, 4, 2)
	if _, err := dial(t, h, 5, 2); !errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	begun := time.Now()
	go func() {
		for a.WriteMessage(make([]byte, 16<<10)) == nil {
		}
	}()
	got := 0
	for {
		m, err := b.ReadMessage()
		if err != nil {
			break
		}
		got += len(m)
	}
	took := time.Since(begun).Seconds()
	if took > 20 {
		t.Errorf("it lasted %.1f s", took)
	}
	if most := (took + 0.5) * (1 << 20); float64(got) > most || float64(got) < most/20 {
		t.Errorf("%d bytes in %.1f s, at most %.0f", got, took, most)
	}
	if _, err := a.ReadMessage(); err == nil {
		t.Error("it goes on")
	}
}

// TestStreamSilent: who connects and says nothing, or nonsense, is let go.
func TestStreamSilent(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{})
	for _, m := range [][]byte{{opDial}, {opTake, 1}, {77}} {
		cfg := StreamConfig(key(6))
		cfg.Remote = h.at.Key
		c, err := secretstream.Dial(t.Context(), h.at.TCP, cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.WriteMessage(m); err != nil {
			t.Error(err)
		}
		if _, err := c.ReadMessage(); !errors.Is(err, io.EOF) && err == nil {
			t.Error(err)
		}
		c.Close()
	}
}

// TestStreamShare: who listens from one network does not take all places.
func TestStreamShare(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{Pairs: 8})
	listen(t, h, 10)
	listen(t, h, 11)
	l := ListenStream(ListenStreamConfig{Relay: h.at, Secret: secretstream.Config{Pattern: noise.XX, Static: key(12)}})
	t.Cleanup(func() { l.Close() })
	for {
		if since, err := l.Reached(); !since.IsZero() {
			t.Fatal("it has a third place of a network")
		} else if errors.Is(err, ErrRefused) {
			break
		}
		time.Sleep(time.Millisecond)
	}
}

// cork holds what is written until it is drawn.
type cork struct {
	net.Conn
	holds bool
	held  []byte
}

func (c *cork) Write(b []byte) (int, error) {
	if c.holds {
		c.held = append(c.held, b...)
		return len(b), nil
	}
	_, err := c.Conn.Write(append(c.held, b...))
	c.held = nil
	return len(b), err
}

// TestStreamEager: who says more together with what it asks for has no more room in the relay
// than others, and no other times.
func TestStreamEager(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{})
	l := listen(t, h, 2)
	go l.Accept() //nolint:errcheck // it ends with l
	raw, err := net.Dial("tcp", h.at.TCP)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	k := &cork{Conn: raw}
	cfg := StreamConfig(key(9))
	cfg.Remote = h.at.Key
	c, err := secretstream.Client(t.Context(), k, cfg)
	if err != nil {
		t.Fatal(err)
	}
	to := public(key(2))
	k.holds = true
	if err := c.WriteMessage(append([]byte{opDial}, to[:]...)); err != nil {
		t.Fatal(err)
	}
	k.holds = false
	if _, err := k.Write([]byte{1}); err != nil { // of a handshake
		t.Fatal(err)
	}
	if m, err := c.ReadMessage(); err != nil || m[0] != statusOK {
		t.Fatal(m, err)
	}
	piped := func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.hall.pipes == 1
	}
	for !piped() {
		time.Sleep(time.Millisecond)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	ends := 0
	for c := range h.hall.conns {
		end, ok := c.(net.Conn)
		if _, wrapped := c.(*secretstream.Conn); !ok || wrapped {
			continue
		}
		ends++
		rc, err := end.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		rc.Control(func(fd uintptr) { //nolint:errcheck // the ends are open
			in, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
			out, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
			late, _ := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			if in != 2*socketBuffer || out != 2*socketBuffer || late != 0 {
				t.Errorf("%d and %d bytes, a time-out of %d ms", in, out, late)
			}
		})
	}
	if ends != 2 {
		t.Errorf("%d ends", ends)
	}
}

// TestStreamDoor: strangers who only connect do not keep those out whose boards listen here.
func TestStreamDoor(t *testing.T) {
	h := hostBy(t, "127.0.0.1:0", ServerConfig{}, secretstream.ListenConfig{Config: StreamConfig(key(1))})
	listen(t, h, 2) // which makes 127.0.0.0/24 known
	flood := func(n int) {
		for i := range n {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(50+i%2), byte(i/2%200), 1)}}
			c, err := d.Dial("tcp", h.at.TCP)
			if err == nil {
				c.Close()
			}
		}
	}
	flood(400)
	for range 5 {
		flood(20)
		cfg := StreamConfig(key(3))
		cfg.Remote = h.at.Key
		c, err := secretstream.Dial(t.Context(), h.at.TCP, cfg)
		if err != nil {
			t.Fatalf("a board's network is kept out: %v", err)
		}
		c.Close()
	}
}

// TestStreamCrowd: four networks that have all pipes of a seller make room for a fifth; who came
// first there, stays.
func TestStreamCrowd(t *testing.T) {
	h := host(t, "127.0.0.1:0", ServerConfig{PairsPerClient: 16})
	l := listen(t, h, 2)
	var ours []*secretstream.Conn
	for n := range byte(5) {
		for i := range byte(4) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 60, n, 1)}}
			raw, err := d.Dial("tcp", h.at.TCP)
			if err != nil {
				t.Fatal(err)
			}
			cfg := StreamConfig(key(100 + 4*n + i))
			cfg.Remote = h.at.Key
			c, err := secretstream.Client(t.Context(), raw, cfg)
			if err != nil {
				t.Fatal(err)
			}
			to := public(key(2))
			taken := make(chan *secretstream.Conn, 1)
			go func() {
				x, _ := l.Accept()
				taken <- x
			}()
			if err := ask(t.Context(), c, append([]byte{opDial}, to[:]...)); err != nil {
				if n < 4 || i < 3 {
					t.Fatalf("network %d, guest %d: %v", n, i, err)
				}
				break // it has as many as the others
			}
			if raw, err = c.Detach(); err != nil {
				t.Fatal(err)
			}
			x, err := secretstream.Client(t.Context(), raw, secretstream.Config{Pattern: noise.XX, Static: key(100 + 4*n + i), Remote: to})
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			defer (<-taken).Close()
			go x.ReadMessage() //nolint:errcheck // it ends with x
			ours = append(ours, x)
		}
	}
	gone := func() (all []int) {
		for i, x := range ours {
			select {
			case <-x.Done():
				all = append(all, i)
			default:
			}
		}
		return all
	}
	for len(gone()) < 3 {
		time.Sleep(time.Millisecond)
	}
	for _, i := range gone() {
		if i%4 == 0 || i >= 16 {
			t.Errorf("guest %d had to go", i)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.hall.seats[public(key(2))].guests); n != 16 {
		t.Errorf("%d guests", n)
	}
}

// TestStreamHalf: pipes have their half of what a relay passes on, also where packets come all
// the time; who is alone has all of it.
func TestStreamHalf(t *testing.T) {
	const rate = 1 << 20
	for _, both := range []bool{true, false} {
		s := NewServer(ServerConfig{Rate: rate})
		now := time.Now()
		got := [2]int{}
		for i := range 10 * 1000 { // ten seconds
			now = now.Add(time.Millisecond)
			for range 3 { // three times as much as may be
				if s.allow(now, byUDX, 1200) {
					got[byUDX] += 1200
				}
			}
			if both && i%10 == 0 && s.allow(now, byTCP, pipeBuffer) {
				got[byTCP] += pipeBuffer
			}
		}
		s.Close()
		want := [2]int{byUDX: 10 * rate}
		if both {
			want = [2]int{5 * rate, 5 * rate}
		}
		for kind, n := range got {
			if n < want[kind]*9/10 || n > want[kind]*11/10+int(burst(rate)) {
				t.Errorf("both %v, kind %d: %d bytes, want %d", both, kind, n, want[kind])
			}
		}
	}
}
