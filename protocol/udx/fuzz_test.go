package udx

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
)

// FuzzPacket: what is read as a packet is written as the same again.
func FuzzPacket(f *testing.F) {
	f.Add(appendHeader(nil, header{flags: flagData, id: 1, window: 2, seq: 3, ack: 4}))
	f.Add(append(appendHeader(nil, header{flags: flagData | flagSACK, skip: 8, id: 1}), 0, 0, 0, 0, 1, 0, 0, 0, 'x'))
	f.Add(append(appendHeader(nil, header{flags: flagSACK, id: 1}), 0, 0, 0, 0, 1, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, blocks, payload, err := parseHeader(b)
		if err != nil {
			return
		}
		again := appendHeader(nil, h)
		if h.flags&flagSACK != 0 {
			for rest := blocks; len(rest) > 0; rest = rest[8:] {
				again = appendBlock(again, blockAt(rest))
			}
		} else {
			again = append(again, b[headerSize:headerSize+int(h.skip)]...)
		}
		if again = append(again, payload...); !bytes.Equal(again, b) {
			t.Errorf("%x\n%x", b, again)
		}
	})
}

// nowhere is a PacketConn that nobody hears, and that hears nobody.
type nowhere struct{ closed chan struct{} }

func (n nowhere) Read([]byte) (int, int, netip.AddrPort, error) {
	<-n.closed
	return 0, 0, netip.AddrPort{}, net.ErrClosed
}
func (nowhere) Write(b []byte, size int, _ netip.AddrPort, _ int) error {
	for ; len(b) > 0; b = b[min(size, len(b)):] {
		if _, _, _, err := parseHeader(b[:min(size, len(b))]); err != nil {
			panic("it sends what is no packet")
		}
	}
	return nil
}
func (nowhere) LocalAddr() netip.AddrPort { return netip.AddrPort{} }
func (nowhere) Fragment(bool)             {}
func (n nowhere) Close() error            { close(n.closed); return nil }

// FuzzStream: whatever packets come, and whenever, a stream keeps its books.
func FuzzStream(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 4, 1, 0, 1, 4, 2, 0, 0, 9, 9})
	f.Add([]byte{3, byte(flagData), 1, 0, 40, 0, 0, 3, byte(flagEnd), 0, 0, 40, 0, 0}) // data beyond the end
	f.Fuzz(func(t *testing.T, script []byte) {
		e := NewEndpoint(nil)
		conn := nowhere{make(chan struct{})}
		sock := e.NewSocket(conn, true, nil)
		defer sock.Close()
		defer e.Close()
		s, err := e.NewStream(StreamConfig{Window: 4 << 10, MaxWindow: 16 << 10})
		if err != nil {
			t.Fatal(err)
		}
		from := netip.MustParseAddrPort("1.2.3.4:5")
		if err := s.Bind(sock, from, 7); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<10)
		for len(script) >= 7 {
			op, typ, seq, ack, n := script[0], script[1], int8(script[2]), script[3], int(script[4])
			k := block{s.una + uint32(int8(script[5])), s.una + uint32(int8(script[5])) + uint32(script[6])}
			if op >= 128 { // anything else
				k = block{uint32(script[5]) << 24, uint32(script[5])<<24 + uint32(script[6])<<23}
			}
			script = script[7:]
			switch op % 5 {
			case 0:
				s.Write(buf[:min(n*4, s.cfg.SendBuffer-s.Backlog())]) //nolint:errcheck // it may be over
			case 1:
				s.mu.Lock()
				some := s.in.n > 0
				s.mu.Unlock()
				if some {
					s.Read(buf) //nolint:errcheck // it may be over
				}
			case 2:
				s.mu.Lock()
				e.begun = e.begun.Add(-time.Duration(n) * 100 * time.Millisecond)
				s.expire(e.now())
				s.settle()
				s.mu.Unlock()
			default:
				h := header{flags: flags(typ) &^ flagDestroy, id: s.id, window: uint32(n) << 6, seq: s.expect + uint32(seq), ack: uint32(ack)}
				var b []byte
				if h.flags&flagSACK != 0 {
					h.skip = 8
					b = appendBlock(appendHeader(nil, h), k)
				} else {
					b = appendHeader(nil, h)
				}
				s.mu.Lock()
				s.packet(sock, from, append(b, buf[:n]...))
				s.settle()
				s.mu.Unlock()
			}
			s.check(t)
		}
	})
}

// check finds books that do not agree.
func (s *Stream) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	flew, lost, fly, size := 0, 0, int64(0), 0
	for seq := s.una; seq != s.next; seq++ {
		p := s.at(seq)
		size += int(p.size)
		switch p.state {
		case flying:
			flew++
			fly += p.wire()
		case missing:
			lost++
		}
	}
	if flew != s.flying.n || lost != s.missing.n || fly != s.inFlight || size != int(s.upTo-s.base) || size > s.out.n {
		t.Fatalf("%d packets fly, and %d; %d are missing, and %d; %d bytes fly, and %d; %d bytes were sent, and %d", flew, s.flying.n, lost, s.missing.n, fly, s.inFlight, size, s.upTo-s.base)
	}
	seen, last := 0, int64(0)
	for seq := s.flying.head; seen < s.flying.n; seq = s.at(seq).succ {
		if p := s.at(seq); p.state != flying || p.sentAt < last {
			t.Fatalf("packet %d is out of place", seq)
		} else {
			last = p.sentAt
		}
		seen++
	}
	early := uint32(0)
	for i, g := range s.gaps {
		early += g.len()
		if g.len() == 0 || !before(s.expect, g.start) || i > 0 && !before(s.gaps[i-1].end, g.start) {
			t.Fatalf("gaps %v, expected %d", s.gaps, s.expect)
		}
	}
	if int(early) != len(s.early) || s.in.n > s.window+maxMTU || s.earlyBytes > s.window {
		t.Fatalf("%d packets are early, and %d; %d bytes in, %d early, window %d", early, len(s.early), s.in.n, s.earlyBytes, s.window)
	}
}
