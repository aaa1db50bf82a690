package packet

import (
	"bytes"
	"testing"
)

// again fails unless what was understood is understood the same when it is written again.
func again[T any](t *testing.T, b []byte, parse func([]byte) (T, error), write func(*T) []byte) {
	t.Helper()
	x, err := parse(b)
	if err != nil {
		return
	}
	first := write(&x)
	y, err := parse(first)
	if err != nil {
		t.Fatalf("%x was written as %x, which is not understood: %v", b, first, err)
	}
	if second := write(&y); !bytes.Equal(first, second) {
		t.Fatalf("%x\n%x\n%x", b, first, second)
	}
}

// FuzzDatagram: requests and responses.
func FuzzDatagram(f *testing.F) {
	for _, h := range []string{"03140000000000000000000002aabb", "13040000000000000000017f0000010100"} {
		var b text
		if err := b.UnmarshalText([]byte(h)); err != nil {
			f.Fatal(err)
		}
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, ParseRequest, func(r *Request) []byte { return r.Append(nil) })
		again(t, b, ParseResponse, func(r *Response) []byte { return r.Append(nil) })
	})
}

// FuzzValue: all that is inside of them.
func FuzzValue(f *testing.F) {
	f.Add([]byte{1, 127, 0, 0, 0, 0})
	f.Add((&Payload{Punch: true, UDX: true, Stream: true, Through: &RelayThrough{}}).Append(nil))
	f.Add((&Round{Punching: true, Token: new([32]byte)}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		again(t, b, func(b []byte) (Peer, error) { p, _, err := ParsePeer(b); return p, err }, func(p *Peer) []byte { return p.Append(nil) })
		again(t, b, ParseAnnouncement, func(a *Announcement) []byte { return a.Append(nil) })
		again(t, b, ParseFound, func(x *Found) []byte { return x.Append(nil) })
		again(t, b, ParsePut, func(m *Mutable) []byte { return m.AppendPut(nil) })
		again(t, b, ParseGot, func(m *Mutable) []byte { return m.AppendGot(nil) })
		again(t, b, ParseHandshake, func(h *Handshake) []byte { return h.Append(nil) })
		again(t, b, ParseHolepunch, func(h *Holepunch) []byte { return h.Append(nil) })
		again(t, b, ParsePayload, func(p *Payload) []byte { return p.Append(nil) })
		again(t, b, ParseRound, func(r *Round) []byte { return r.Append(nil) })
	})
}
