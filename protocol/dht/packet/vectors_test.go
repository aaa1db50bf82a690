package packet

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/secretstream"
)

// vectors is where captures of stock peers are.
const vectors = "../../../../shared/vectors/hyperdht"

// captured is one datagram.
type captured struct {
	From, To netip.AddrPort
	Hex      string
	b        []byte
}

// captures returns the datagrams of each file, by directory and name.
func captures(t *testing.T) map[string][]captured {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(vectors, "*", "*.jsonl"))
	if err != nil || len(files) < 20 {
		t.Fatalf("%d captures in %s: %v", len(files), vectors, err)
	}
	all := map[string][]captured{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		s := bufio.NewScanner(f)
		for s.Scan() {
			var c captured
			if err := json.Unmarshal(s.Bytes(), &c); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if c.b, err = hex.DecodeString(c.Hex); err != nil {
				t.Fatal(err)
			}
			all[name] = append(all[name], c)
		}
		if err := s.Err(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return all
}

// text is bytes in hex.
type text []byte

func (h *text) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// secrets is a file of keys.
type secrets struct {
	Keys map[string]struct {
		PublicKey, SecretKey, Target text
	}
	Noise []struct {
		Who, Role                 string
		EphemeralSeed, Sent, Recv text
		Final                     struct {
			Hash, TX, RX, HolepunchSecret text
		}
	}
}

func keyFiles(t *testing.T) map[string]secrets {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(vectors, "*", "*keys.json"))
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files of keys: %v", len(files), err)
	}
	all := map[string]secrets{}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var s secrets
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = s
	}
	return all
}

// same fails unless err is nil and what was written again is what was read.
func same(t *testing.T, what string, err error, want, got []byte) {
	t.Helper()
	if err != nil || !bytes.Equal(want, got) {
		t.Errorf("%s: %v\n%x\n%x", what, err, want, got)
	}
}

// value checks the value of a request, and returns whether it is of a kind that is known.
func value(t *testing.T, what string, command uint64, internal bool, b []byte) bool {
	switch {
	case internal:
		return command <= DelayedPing
	case command == PeerHandshake:
		x, err := ParseHandshake(b)
		same(t, what, err, b, x.Append(nil))
	case command == PeerHolepunch:
		x, err := ParseHolepunch(b)
		same(t, what, err, b, x.Append(nil))
	case command == Announce || command == Unannounce:
		x, err := ParseAnnouncement(b)
		same(t, what, err, b, x.Append(nil))
	case command == MutablePut:
		x, err := ParsePut(b)
		same(t, what, err, b, x.AppendPut(nil))
		if !x.Verify() {
			t.Errorf("%s: the signature does not verify", what)
		}
	case command == MutableGet, command == ImmutablePut:
	default:
		return false
	}
	return true
}

// answer checks the value of a response.
func answer(t *testing.T, what string, command uint64, b []byte) bool {
	switch command {
	case PeerHandshake:
		x, err := ParseHandshake(b)
		same(t, what, err, b, x.Append(nil))
	case PeerHolepunch:
		x, err := ParseHolepunch(b)
		same(t, what, err, b, x.Append(nil))
	case FindPeer:
		x, _, err := ParsePeer(b)
		same(t, what, err, b, x.Append(nil))
	case Lookup:
		x, err := ParseFound(b)
		same(t, what, err, b, x.Append(nil))
	case MutableGet:
		x, err := ParseGot(b)
		same(t, what, err, b, x.AppendGot(nil))
	case ImmutableGet:
	default:
		return false
	}
	return true
}

// TestVectors: each datagram of dht-rpc that stock peers sent is understood, and written
// again as it was.
func TestVectors(t *testing.T) {
	requests, responses, values, announced := 0, 0, 0, 0
	for name, all := range captures(t) {
		type asked struct {
			by  netip.AddrPort
			tid uint16
		}
		commands := map[asked]Request{}
		tokens := map[asked]Response{}
		for _, c := range all {
			request, response := Kind(c.b)
			switch {
			case request:
				r, err := ParseRequest(c.b)
				same(t, name, err, c.b, r.Append(nil))
				requests++
				commands[asked{c.From, r.TID}] = r
				if r.Flags&HasValue != 0 {
					values++
					if !value(t, name, r.Command, r.Flags&Internal != 0, r.Value) {
						t.Errorf("%s: a value for command %d", name, r.Command)
					}
				}
				if r.Flags&Internal == 0 && (r.Command == Announce || r.Command == Unannounce) {
					a, err := ParseAnnouncement(r.Value)
					// It is for the node that it is sent to.
					if err != nil || !a.Verify(r.Command == Unannounce, r.Target, NodeID(r.To), r.Token) {
						t.Errorf("%s: an announcement does not verify: %v", name, err)
					}
					announced++
				}
			case response:
				r, err := ParseResponse(c.b)
				same(t, name, err, c.b, r.Append(nil))
				responses++
				if r.Flags&HasID != 0 && r.ID != NodeID(c.From) && c.From.Addr().IsLoopback() {
					t.Errorf("%s: %v is %x", name, c.From, r.ID)
				}
				q, ok := commands[asked{c.To, r.TID}]
				tokens[asked{c.From, r.TID}] = r
				if r.Flags&HasValue != 0 && ok {
					values++
					if !answer(t, name, q.Command, r.Value) {
						t.Errorf("%s: a value in answer to command %d", name, q.Command)
					}
				}
			}
		}
	}
	t.Logf("%d requests, %d responses, %d values, %d announcements", requests, responses, values, announced)
	if requests < 500 || responses < 500 || values < 100 || announced < 20 {
		t.Error("that is too little")
	}
}

// fixed is a source of randomness that says one thing.
func fixed(b []byte) *bytes.Reader { return bytes.NewReader(b) }

// replay takes a handshake from both sides again, and returns its outcome and payloads.
func replay(t *testing.T, name string, k secrets, i int) (initiator, responder *noise.Result) {
	n := k.Noise[i]
	var server ed25519.PrivateKey
	client := ed25519.PrivateKey(k.Keys[n.Who].SecretKey)
	// Whose key opens the first message is the server.
	var h *noise.Handshake
	var payload []byte
	for _, x := range k.Keys {
		server = ed25519.PrivateKey(x.SecretKey)
		try, err := noise.New(noise.Config{Pattern: noise.IK, Static: server, Prologue: Prologue(), Rand: fixed(make([]byte, 32))})
		if err != nil {
			t.Fatal(err)
		}
		if payload, err = try.Read(n.Sent); err == nil {
			h = try
			break
		}
	}
	if h == nil {
		t.Errorf("%s: nobody opens handshake %d", name, i)
		return nil, nil
	}
	p, err := ParsePayload(payload)
	same(t, name, err, payload, p.Append(nil))
	c, err := noise.New(noise.Config{
		Pattern: noise.IK, Initiator: true, Static: client, Remote: [32]byte(server[32:]), Prologue: Prologue(), Rand: fixed(n.EphemeralSeed),
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Write(nil, payload)
	same(t, name, err, n.Sent, b)
	if len(n.Recv) == 0 {
		return nil, nil
	}
	back, err := c.Read(n.Recv)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return nil, nil
	}
	q, err := ParsePayload(back)
	same(t, name, err, back, q.Append(nil))
	// The server's side, if its ephemeral key is known.
	for _, s := range k.Noise {
		if s.Role == "responder" && bytes.Equal(s.Recv, n.Sent) {
			h, err := noise.New(noise.Config{Pattern: noise.IK, Static: server, Prologue: Prologue(), Rand: fixed(s.EphemeralSeed)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := h.Read(n.Sent); err != nil {
				t.Error(err)
			}
			b, err := h.Write(nil, back)
			same(t, name, err, s.Sent, b)
			responder = h.Result()
		}
	}
	return c.Result(), responder
}

// TestHandshakes: each handshake that was captured is made again from its keys.
func TestHandshakes(t *testing.T) {
	n, both := 0, 0
	for name, k := range keyFiles(t) {
		for i, x := range k.Noise {
			if x.Role != "initiator" {
				continue
			}
			a, b := replay(t, name, k, i)
			if a == nil {
				continue
			}
			n++
			if !bytes.Equal(a.Hash[:], x.Final.Hash) || !bytes.Equal(a.TX[:], x.Final.TX) || !bytes.Equal(a.RX[:], x.Final.RX) {
				t.Errorf("%s: handshake %d has other keys", name, i)
			}
			if s := PunchSecret(a.Hash); !bytes.Equal(s[:], x.Final.HolepunchSecret) {
				t.Errorf("%s: handshake %d has another secret for punching", name, i)
			}
			if b != nil {
				both++
				if b.Hash != a.Hash || b.TX != a.RX || b.RX != a.TX {
					t.Errorf("%s: the two sides of handshake %d differ", name, i)
				}
			}
		}
	}
	t.Logf("%d handshakes, %d of them from both sides", n, both)
	if n < 12 || both < 5 {
		t.Error("that is too little")
	}
}

// TestRounds: each round of hole punching that was captured is opened, and sealed again.
func TestRounds(t *testing.T) {
	secretsIn := map[string][]Secret{}
	for name, k := range keyFiles(t) {
		for _, n := range k.Noise {
			if len(n.Final.HolepunchSecret) == 32 {
				secretsIn[filepath.Dir(name)] = append(secretsIn[filepath.Dir(name)], Secret(n.Final.HolepunchSecret))
			}
		}
	}
	opened := 0
	for name, all := range captures(t) {
		punches := map[uint16]bool{}
		for _, c := range all {
			var v []byte
			if r, err := ParseRequest(c.b); err == nil && r.Command == PeerHolepunch && r.Flags&(Internal|HasValue) == HasValue {
				v = r.Value
				punches[r.TID] = true
			} else if r, err := ParseResponse(c.b); err == nil && r.Flags&HasValue != 0 && punches[r.TID] {
				v = r.Value
			}
			h, err := ParseHolepunch(v)
			if err != nil || len(h.Payload) < nonceSize {
				continue
			}
			done := false
			for _, s := range secretsIn[filepath.Dir(name)] {
				r, err := s.Open(h.Payload)
				if err != nil {
					continue
				}
				done = true
				opened++
				same(t, name, nil, h.Payload, s.seal(&r, [nonceSize]byte(h.Payload)))
			}
			if !done {
				t.Errorf("%s: nobody opens a round", name)
			}
		}
	}
	t.Logf("%d rounds", opened)
	if opened < 40 {
		t.Error("that is too little")
	}
}

// recorded is a connection that was captured: what one side sent.
type recorded struct {
	net.Conn
	*bytes.Reader
}

func (r recorded) Read(b []byte) (int, error)       { return r.Reader.Read(b) }
func (r recorded) Write(b []byte) (int, error)      { return len(b), nil }
func (r recorded) Close() error                     { return nil }
func (r recorded) SetDeadline(time.Time) error      { return nil }
func (r recorded) SetWriteDeadline(time.Time) error { return nil }
func (r recorded) RemoteAddr() net.Addr             { return nil }

// streams returns what was sent to each UDX stream in a capture, in order, as far as nothing
// is missing.
func streams(all []captured) map[uint32][]byte {
	type part struct {
		end  bool
		data []byte
	}
	parts := map[uint32]map[uint32]part{}
	for _, c := range all {
		if len(c.b) < 20 || c.b[0] != 0xff || c.b[1] != 1 || c.b[2]&3 == 0 {
			continue
		}
		id, seq := binary.LittleEndian.Uint32(c.b[4:]), binary.LittleEndian.Uint32(c.b[12:])
		if parts[id] == nil {
			parts[id] = map[uint32]part{}
		}
		parts[id][seq] = part{c.b[2]&2 != 0, c.b[20+int(c.b[3]):]}
	}
	out := map[uint32][]byte{}
	for id, m := range parts {
		for seq := uint32(0); ; seq++ {
			p, ok := m[seq]
			if !ok {
				break
			}
			out[id] = append(out[id], p.data...)
		}
	}
	return out
}

// TestStreams: what stock peers sent through their secret streams is decrypted, to the last
// frame that was captured whole.
func TestStreams(t *testing.T) {
	type side struct {
		keys      noise.Result
		initiator bool
	}
	sides := map[string][]side{}
	for name, k := range keyFiles(t) {
		for _, n := range k.Noise {
			if len(n.Final.Hash) != 64 {
				continue
			}
			r := noise.Result{TX: [32]byte(n.Final.TX), RX: [32]byte(n.Final.RX), Hash: [64]byte(n.Final.Hash)}
			initiator := n.Role == "initiator"
			back := r
			back.TX, back.RX = r.RX, r.TX
			sides[filepath.Dir(name)] = append(sides[filepath.Dir(name)], side{r, initiator}, side{back, !initiator})
		}
	}
	seen, opened, total := 0, 0, 0
	for name, all := range captures(t) {
		for id, b := range streams(all) {
			if len(b) < 59 {
				continue
			}
			seen++
			for _, s := range sides[filepath.Dir(name)] {
				want := secretstream.StreamID(s.keys.Hash, !s.initiator)
				if !bytes.Equal(b[3:35], want[:]) {
					continue
				}
				_, own, err := ed25519.GenerateKey(nil)
				if err != nil {
					t.Fatal(err)
				}
				open := secretstream.Server
				if s.initiator {
					open = secretstream.Client
				}
				c, err := open(t.Context(), recorded{Reader: bytes.NewReader(b)}, secretstream.Config{Static: own, Keys: &s.keys, KeepAlive: -1, MaxMessage: 1 << 22})
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				for {
					var m []byte
					if m, err = c.ReadMessage(); err != nil {
						break
					}
					n += len(m)
				}
				if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%s, stream %d: %v", name, id, err)
				}
				opened, total = opened+1, total+n
				break
			}
		}
	}
	t.Logf("%d of %d streams, %d bytes", opened, seen, total)
	if opened < 48 || total < 150_000 {
		t.Error("that is too little")
	}
}
