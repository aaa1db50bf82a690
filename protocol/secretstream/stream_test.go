package secretstream

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"dazaar-edge/protocol/noise"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func load(t *testing.T, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// sealFrame returns the encrypted message without length.
func sealFrame(t *testing.T, s *state, m []byte) []byte {
	t.Helper()
	b := make([]byte, blockSize+len(m), blockSize+len(m)+macSize)
	copy(b[blockSize:], m)
	b, err := s.seal(b)
	if err != nil {
		t.Fatal(err)
	}
	b[blockSize-1] = b[0]
	return b[blockSize-1:]
}

func openFrame(t *testing.T, s *state, f []byte) ([]byte, bool) {
	t.Helper()
	b := append(make([]byte, blockSize-1), f...)
	m, ok, err := s.open(b, f[0])
	if err != nil {
		t.Fatal(err)
	}
	return m, ok
}

func TestVectorsCipher(t *testing.T) {
	var v struct {
		Cases []struct {
			Key, Header hexBytes
			Frames      []struct{ Plain, Cipher hexBytes }
		}
	}
	load(t, "secretstream.json", &v)
	for _, c := range v.Cases {
		push, err := newState([32]byte(c.Key), c.Header)
		if err != nil {
			t.Fatal(err)
		}
		pull, _ := newState([32]byte(c.Key), c.Header)
		for i, f := range c.Frames {
			if got := sealFrame(t, push, f.Plain); !bytes.Equal(got, f.Cipher) {
				t.Fatalf("frame %d is %x, want %x", i, got, f.Cipher)
			}
			if got, ok := openFrame(t, pull, f.Cipher); !ok || !bytes.Equal(got, f.Plain) {
				t.Fatalf("frame %d opens as %x, %v; want %x", i, got, ok, f.Plain)
			}
		}
	}
}

// TestCipherLengths goes through every length modulo the block sizes, through
// the counter's end, and flips a bit of each frame.
func TestCipherLengths(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	header := bytes.Repeat([]byte{5}, headerSize)
	push, _ := newState([32]byte{1}, header)
	pull, _ := newState([32]byte{1}, header)
	for _, s := range []*state{push, pull} {
		copy(s.nonce[:], []byte{0x80, 0xff, 0xff, 0xff})
	}
	for n := range 300 {
		m := make([]byte, n)
		for i := range m {
			m[i] = byte(r.Uint32())
		}
		f := sealFrame(t, push, m)
		if len(f) != n+overhead {
			t.Fatalf("a message of %d bytes takes %d", n, len(f))
		}
		bad := bytes.Clone(f)
		bad[r.IntN(len(bad))] ^= 1 << r.IntN(8)
		was := *pull
		if _, ok := openFrame(t, pull, bad); ok {
			t.Fatalf("%d bytes: a flipped bit is not seen", n)
		}
		*pull = was
		if got, ok := openFrame(t, pull, f); !ok || !bytes.Equal(got, m) {
			t.Fatalf("%d bytes: %v", n, ok)
		}
	}
	if push.key == [32]byte{1} || push.key != pull.key {
		t.Error("the key did not change when the counter wrapped")
	}
}

// script is a net.Conn that reads what was recorded and keeps what is written.
type script struct {
	net.Conn
	in  io.Reader
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *script) Read(b []byte) (int, error) { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(b)
}
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// TestVectorsConnection replays recorded connections: from the same keys each
// side writes the same bytes, and understands the other's.
func TestVectorsConnection(t *testing.T) {
	type step struct {
		From, What         string
		Raw, Header, Plain hexBytes
	}
	var built struct{ FullConnection struct{ Steps []step } }
	load(t, "secretstream.json", &built)
	var v struct {
		Captures []struct {
			Pattern              string
			Initiator, Responder struct{ StaticSeed, EphemeralSeed hexBytes }
			HandshakeHash        hexBytes
			StreamLog            []step
			Received             []hexBytes
		}
	}
	load(t, "secret-stream-live.json", &v)
	replay := func(t *testing.T, who, pattern string, static, ephemeral, responder []byte, steps []step) {
		s := &script{}
		var in, want []byte
		var header []byte
		for _, st := range steps {
			if st.From != who {
				in = append(in, st.Raw...)
				continue
			}
			want = append(want, st.Raw...)
			if len(st.Raw) == 3+56 && header == nil {
				header = st.Raw[3+32:]
			}
		}
		s.in = bytes.NewReader(in)
		cfg := Config{
			Static: ed25519.NewKeyFromSeed(static), KeepAlive: -1,
			Rand: bytes.NewReader(append(bytes.Clone(ephemeral), header...)),
		}
		open := Server
		if who == "initiator" {
			open = Client
			copy(cfg.Remote[:], ed25519.NewKeyFromSeed(responder)[32:])
		}
		if pattern == "IK" {
			cfg.Pattern = noise.IK
		}
		c, err := open(context.Background(), s, cfg)
		if err != nil {
			t.Fatal(err)
		}
		// What we said is not in the capture in plain: read it with our own key.
		own, _ := newState(c.keys.TX, header)
		for rest := want; len(rest) > 0; {
			n := int(rest[0]) | int(rest[1])<<8
			f := rest[3 : 3+n]
			rest = rest[3+n:]
			if len(want)-len(rest) <= s.out.Len() { // handshake and header
				continue
			}
			m, ok := openFrame(t, own, bytes.Clone(f))
			if !ok {
				t.Fatal("a recorded frame of this side does not open")
			}
			if err := c.WriteMessage(m); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(s.out.Bytes(), want) {
			t.Errorf("wrote\n%x, want\n%x", s.out.Bytes(), want)
		}
		for {
			if _, err := c.ReadMessage(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range v.Captures {
		t.Run(c.Pattern, func(t *testing.T) {
			replay(t, "initiator", c.Pattern, c.Initiator.StaticSeed, c.Initiator.EphemeralSeed, c.Responder.StaticSeed, c.StreamLog)
			replay(t, "responder", c.Pattern, c.Responder.StaticSeed, c.Responder.EphemeralSeed, nil, c.StreamLog)
		})
	}
	t.Run("built", func(t *testing.T) {
		seed := func(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }
		replay(t, "initiator", "XX", seed(0x21), seed(0x23), seed(0x22), built.FullConnection.Steps)
		replay(t, "responder", "XX", seed(0x22), seed(0x24), nil, built.FullConnection.Steps)
	})
	if len(v.Captures) == 0 || len(built.FullConnection.Steps) == 0 {
		t.Fatal("no captures")
	}
}

// tcpPair returns two ends of a TCP connection.
func tcpPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

// connect shakes hands over TCP.
func connect(t testing.TB, client, server Config) (a, b *Conn) {
	t.Helper()
	ra, rb := tcpPair(t)
	done := make(chan error, 1)
	go func() {
		var err error
		b, err = Server(context.Background(), rb, server)
		done <- err
	}()
	a, err := Client(context.Background(), ra, client)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestConn(t *testing.T) {
	for _, p := range []noise.Pattern{noise.XX, noise.IK} {
		t.Run(p.String(), func(t *testing.T) {
			client := Config{Pattern: p, Static: key(1), Remote: [32]byte(key(2)[32:]), MaxMessage: 1 << 20}
			a, b := connect(t, client, Config{Pattern: p, Static: key(2), MaxMessage: 1 << 20})
			if a.Remote() != b.Local() || b.Remote() != a.Local() || a.HandshakeHash() != b.HandshakeHash() || !a.Initiator() || b.Initiator() {
				t.Error("the two sides differ about who they are")
			}
			r := rand.New(rand.NewPCG(3, uint64(p)))
			sizes := []int{1, 2, 4000, 5000, 65536, 1 << 20, 3, 70000, 1}
			for range 300 {
				sizes = append(sizes, 1+r.IntN(2000))
			}
			msg := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, sizes[i]) }
			go func() {
				for i := range sizes {
					if err := a.WriteMessage(msg(i)); err != nil {
						t.Error(err)
					}
				}
			}()
			for i := range sizes {
				m, err := b.ReadMessage()
				if err != nil || !bytes.Equal(m, msg(i)) {
					t.Fatalf("message %d of %d bytes: %d bytes, %v", i, sizes[i], len(m), err)
				}
			}
			a.raw.(*net.TCPConn).CloseWrite() //nolint:errcheck // seen by the reader
			if _, err := b.ReadMessage(); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v", err)
			}
			a.Close()
			if err := a.WriteMessage([]byte("x")); err == nil {
				t.Error("wrote to a closed connection")
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	for _, p := range []noise.Pattern{noise.XX, noise.IK} {
		ra, rb := tcpPair(t)
		go Server(context.Background(), rb, Config{Pattern: p, Static: key(2)}) //nolint:errcheck // the client is looked at
		_, err := Client(context.Background(), ra, Config{Pattern: p, Static: key(1), Remote: [32]byte(key(3)[32:])})
		if err == nil || p == noise.XX && !errors.Is(err, ErrIdentity) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// TestRefusals sends what no honest peer sends, behind a good handshake.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"too short":   {[]byte{16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, ErrFrame},
		"too large":   {[]byte{0, 0, 1}, ErrTooLarge},
		"forged":      {append([]byte{17, 0, 0}, make([]byte, 17)...), ErrAuth},
		"cut":         {[]byte{17, 0, 0, 1}, io.ErrUnexpectedEOF},
		"cut in size": {[]byte{17}, io.ErrUnexpectedEOF},
	} {
		a, b := connect(t, Config{Static: key(1)}, Config{Static: key(2), MaxMessage: 65000})
		if _, err := a.raw.Write(c.raw); err != nil {
			t.Fatal(err)
		}
		a.raw.(*net.TCPConn).CloseWrite() //nolint:errcheck // seen by the reader
		if _, err := b.ReadMessage(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if b.Err() == nil {
			t.Errorf("%s: still open", name)
		}
	}
}

func TestKeepAlive(t *testing.T) {
	a, b := connect(t, Config{Static: key(1), KeepAlive: 5 * time.Millisecond}, Config{Static: key(2)})
	tap := &counting{Conn: b.raw}
	b.raw = tap
	go b.ReadMessage() //nolint:errcheck // ends with the test
	for tap.total() < 5*20 {
		select {
		case <-a.Done():
			t.Fatal(a.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

type counting struct {
	net.Conn
	mu sync.Mutex
	n  int
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	c.n += n
	c.mu.Unlock()
	return n, err
}

func (c *counting) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// TestSlowReader is cut off, not waited for.
func TestSlowReader(t *testing.T) {
	a, _ := connect(t, Config{Static: key(1), WriteTimeout: 20 * time.Millisecond}, Config{Static: key(2)})
	m := make([]byte, 1<<16)
	for range 10000 {
		if err := a.WriteMessage(m); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) || a.Err() == nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("640 MB went to one who does not read")
}

// TestIdleMemory checks that a connection gives back what a burst took.
func TestIdleMemory(t *testing.T) {
	a, b := connect(t, Config{Static: key(1)}, Config{Static: key(2)})
	go func() {
		for range 300 {
			a.WriteMessage(make([]byte, 60000)) //nolint:errcheck // seen by the reader
		}
		for range 100 {
			a.WriteMessage([]byte("x")) //nolint:errcheck // seen by the reader
		}
	}()
	for range 400 {
		if _, err := b.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < 100 && len(b.in.buf) > smallBuffer; i++ {
		if err := a.WriteMessage([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := b.ReadMessage(); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.in.buf) > smallBuffer {
		t.Errorf("%d bytes are kept for reading", len(b.in.buf))
	}
}

// FuzzRead gives a connection arbitrary bytes behind the handshake.
func FuzzRead(f *testing.F) {
	f.Add([]byte{56, 0, 0, 1, 2})
	f.Add(append([]byte{17, 0, 0}, make([]byte, 17)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Conn{raw: &script{in: bytes.NewReader(b)}, closed: make(chan struct{})}
		c.max.Store(4096)
		c.rx, _ = newState([32]byte{1}, make([]byte, headerSize))
		for {
			if _, err := c.ReadMessage(); err != nil {
				break
			}
		}
		if len(c.in.buf) > largeBuffer {
			t.Fatalf("%d bytes were kept for %d", len(c.in.buf), len(b))
		}
	})
}

func benchmark(b *testing.B, size int) {
	x, y := connect(b, Config{Static: key(1)}, Config{Static: key(2), MaxMessage: MaxMessage})
	m := make([]byte, size)
	b.SetBytes(int64(size))
	go func() {
		for b.Loop() {
			x.WriteMessage(m) //nolint:errcheck // seen by the reader
		}
		x.Close()
	}()
	for {
		if _, err := y.ReadMessage(); err != nil {
			return
		}
	}
}

func BenchmarkConn16KiB(b *testing.B) { benchmark(b, 16<<10) }
func BenchmarkConnOdd(b *testing.B)   { benchmark(b, 16<<10+5) }
func BenchmarkConn64B(b *testing.B)   { benchmark(b, 64) }
