package udx

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// lonely is a stream whose other side is nowhere.
func lonely(t *testing.T, cfg StreamConfig) (s *Stream, sock *Socket, from netip.AddrPort) {
	t.Helper()
	e := NewEndpoint(nil)
	sock = e.NewSocket(nowhere{make(chan struct{})}, true, nil)
	s, err := e.NewStream(cfg)
	if err != nil {
		t.Fatal(err)
	}
	from = netip.MustParseAddrPort("1.2.3.4:5")
	if err := s.Bind(sock, from, 7); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close(); sock.Close() })
	return s, sock, from
}

func (s *Stream) feed(sock *Socket, from netip.AddrPort, h header, rest ...byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.id = s.id
	s.packet(sock, from, append(appendHeader(nil, h), rest...))
	s.settle()
}

// TestBlocks: blocks of what was never sent are nothing, whatever their numbers.
func TestBlocks(t *testing.T) {
	s, sock, from := lonely(t, StreamConfig{})
	blocks := func() {
		t.Helper()
		for _, k := range [][2]uint32{{1 << 30, 3<<30 - 1}, {1<<30 + 1, 3 << 30}, {1, 0}, {0, 1 << 31}, {1<<32 - 1, 1}, {5, 1<<32 - 1}} {
			b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, k[0]), k[1])
			s.feed(sock, from, header{flags: flagSACK, window: 1 << 16}, b...)
			s.check(t)
			if s.delivered != 0 {
				t.Fatalf("%v is taken", k)
			}
		}
	}
	blocks()
	if _, err := s.Write([]byte("something on its way")); err != nil {
		t.Fatal(err)
	}
	blocks()
}

// TestStrangers: who knows a stream's number, and is elsewhere, neither closes its window nor
// acknowledges for the other side.
func TestStrangers(t *testing.T) {
	s, sock, from := lonely(t, StreamConfig{})
	stranger := netip.MustParseAddrPort("6.6.6.6:6")
	s.feed(sock, stranger, header{seq: 1<<31 - 256})
	if _, err := s.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	s.feed(sock, stranger, header{ack: 1, window: 1 << 16})
	if s.sent != 1 || s.una != 0 || s.Backlog() != 5 {
		t.Errorf("sent %d, acknowledged %d, backlog %d", s.sent, s.una, s.Backlog())
	}
	s.feed(sock, from, header{ack: 1, window: 1 << 16})
	if s.Backlog() != 0 {
		t.Error("the other side is not heard")
	}
}

// TestContract: a stream is a net.Conn also where that is inconvenient.
func TestContract(t *testing.T) {
	s, sock, from := lonely(t, StreamConfig{})
	s.feed(sock, from, header{flags: flagData, window: 1 << 16}, []byte("four")...)
	b := make([]byte, 1)
	s.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // it never fails
	if n, err := s.Read(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(n, err)
	}
	if n, err := s.Write(b); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(n, err)
	}
	s.SetDeadline(time.Time{}) //nolint:errcheck // it never fails
	// Several readers, and one packet for all of them.
	if n, err := s.Read(make([]byte, 4)); n != 4 || err != nil {
		t.Error(n, err)
	}
	got := make(chan int)
	for range 4 {
		go func() {
			n, _ := s.Read(make([]byte, 1))
			got <- n
		}()
	}
	s.feed(sock, from, header{flags: flagData, seq: 1, window: 1 << 16}, []byte("four")...)
	for range 4 {
		select {
		case n := <-got:
			if n != 1 {
				t.Error(n)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("a reader sleeps")
		}
	}
	// Closed after it failed.
	s.feed(sock, from, header{flags: flagData, seq: 2, window: 1 << 16}, []byte("four")...)
	s.feed(sock, from, header{flags: flagDestroy, seq: 3})
	if _, err := s.Write(b); !errors.Is(err, ErrReset) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if n, err := s.Read(b); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Error(n, err)
	}
	if _, err := s.Write(b); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	// A socket that is gone binds nothing.
	sock.Close()
	x, err := sock.Endpoint().NewStream(StreamConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Bind(sock, from, 7); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
