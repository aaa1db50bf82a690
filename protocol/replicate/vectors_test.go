package replicate

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/mux"
)

// hexBytes is a byte string as vectors have it.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func (h hexBytes) hash() merkle.Hash { return merkle.Hash(h) }

func load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(name, err)
	}
}

// recode reads a message of a type and writes it again. It returns what is left
// over, too.
func recode(typ uint64, b []byte) (again, rest []byte, err error) {
	switch typ {
	case typeSync:
		m, rest, err := ParseSync(b)
		return m.Append(nil), rest, err
	case typeRequest:
		m, rest, err := ParseRequest(b)
		return m.Append(nil), rest, err
	case typeCancel:
		id, rest, err := compact.ParseUint(b)
		return compact.AppendUint(nil, id), rest, err
	case typeData:
		m, rest, err := ParseData(b)
		if err != nil {
			return nil, nil, err
		}
		return m.Append(nil), rest, nil
	case typeNoData:
		m, rest, err := ParseNoData(b)
		return m.Append(nil), rest, err
	case typeWant, typeUnwant:
		m, rest, err := ParseWant(b)
		return m.Append(nil), rest, err
	case typeBitfield:
		m, rest, err := ParseBitfield(b)
		return m.Append(nil), rest, err
	case typeRange:
		m, rest, err := ParseRange(b)
		return m.Append(nil), rest, err
	case typeExtension:
		m, rest, err := ParseExtension(b)
		return m.Append(nil), rest, err
	}
	return nil, nil, fmt.Errorf("type %d", typ)
}

func TestVectorsMessages(t *testing.T) {
	var v struct {
		Handshake []struct{ Hex hexBytes }
		Messages  []struct {
			Name  string
			Type  uint64
			Hex   hexBytes
			Value json.RawMessage
			Note  string
		}
	}
	load(t, "messages.json", &v)
	for _, c := range v.Handshake {
		h, rest, err := ParseHandshake(c.Hex)
		if err != nil || len(rest) > 0 || !bytes.Equal(h.Append(nil), c.Hex) {
			t.Errorf("handshake %x: %+v, %v", c.Hex, h, err)
		}
	}
	seen := map[uint64]bool{}
	for _, c := range v.Messages {
		seen[c.Type] = true
		again, rest, err := recode(c.Type, c.Hex)
		if err != nil || len(rest) > 0 {
			t.Errorf("%s %x: %v, %d left", c.Name, c.Hex, err, len(rest))
			continue
		}
		// Old peers send no flags with a refusal.
		if want := []byte(c.Hex); !bytes.Equal(again, want) && !(c.Type == typeNoData && bytes.Equal(again, append(want, 0))) {
			t.Errorf("%s %s\n %x comes out as\n %x", c.Name, c.Note, want, again)
		}
		// Cut anywhere it is no message, or a shorter one of those that may be.
		for i := range c.Hex {
			if again, rest, err := recode(c.Type, c.Hex[:i]); err == nil && len(again)+len(rest) < i {
				t.Errorf("%s cut at %d is read", c.Name, i)
			}
		}
	}
	if len(seen) != typeExtension+1 {
		t.Errorf("vectors of %d types", len(seen))
	}
}

// TestVectorsFields checks what the bytes mean, not only that they come back.
func TestVectorsFields(t *testing.T) {
	var v struct {
		Messages []struct {
			Type  uint64
			Hex   hexBytes
			Value struct {
				Fork, Length, RemoteLength, ID, Priority, Start, Request, Reason uint64

				CanUpgrade, Uploading, Downloading, HasManifest, AllowPush, Drop, Any bool

				Block, Hash, Seek, Upgrade, Manifest json.RawMessage
			}
		}
	}
	load(t, "messages.json", &v)
	is := func(r json.RawMessage) bool { return len(r) > 0 && string(r) != "null" && string(r) != "false" }
	for _, c := range v.Messages {
		w := c.Value
		switch c.Type {
		case typeSync:
			m, _, _ := ParseSync(c.Hex)
			if m != (Sync{w.Fork, w.Length, w.RemoteLength, w.CanUpgrade, w.Uploading, w.Downloading, w.HasManifest, w.AllowPush}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case typeRequest:
			m, _, _ := ParseRequest(c.Hex)
			if m.ID != w.ID || m.Fork != w.Fork || m.Priority != w.Priority || (m.Block != nil) != is(w.Block) || (m.Hash != nil) != is(w.Hash) ||
				(m.Seek != nil) != is(w.Seek) || (m.Upgrade != nil) != is(w.Upgrade) || m.Manifest != is(w.Manifest) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case typeData:
			m, _, _ := ParseData(c.Hex)
			if m.Request != w.Request || m.Fork != w.Fork || (m.Block != nil) != is(w.Block) || (m.Hash != nil) != is(w.Hash) ||
				(m.Seek != nil) != is(w.Seek) || (m.Upgrade != nil) != is(w.Upgrade) || (m.Manifest != nil) != is(w.Manifest) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case typeNoData:
			if m, _, _ := ParseNoData(c.Hex); m != (NoData{w.Request, w.Reason}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case typeWant, typeUnwant:
			if m, _, _ := ParseWant(c.Hex); m != (Want{w.Start, w.Length, w.Any}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case typeRange:
			if m, _, _ := ParseRange(c.Hex); m != (Range{w.Drop, w.Start, w.Length}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		}
	}
}

func TestVectorsCapability(t *testing.T) {
	var v struct {
		Cases []struct {
			CoreKey, HandshakeHash, Capability hexBytes
			SenderIsInitiator                  bool
		}
		DiscoveryKeys []struct{ Key, DiscoveryKey hexBytes }
	}
	load(t, "capability-discovery.json", &v)
	if len(v.Cases) == 0 || len(v.DiscoveryKeys) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range v.Cases {
		if got := Capability(c.CoreKey.hash(), [64]byte(c.HandshakeHash), c.SenderIsInitiator); got != c.Capability.hash() {
			t.Errorf("%x", got)
		}
	}
	for _, c := range v.DiscoveryKeys {
		if got := merkle.DiscoveryKey(c.Key.hash()); got != c.DiscoveryKey.hash() {
			t.Errorf("%x", got)
		}
	}
}

// capture is a recorded session of stock peers.
type capture struct {
	HandshakeHash hexBytes
	Initiator     string
	Frames        []struct {
		From, Marker string
		Hex          hexBytes
	}
	// Of a raised fork: what is in the log on each fork, as numbers of blocks,
	// and where the buyer stood before and after.
	Logs                 map[uint64][]int
	BuyerBefore, Outcome struct {
		Length, Fork uint64
		TreeHash     hexBytes
	}
	name string
	file *captureFile
}

type captureFile struct {
	SellerKeySeed hexBytes
	Scenarios     map[string]*capture
}

var captureFiles = []string{"captures-js-to-js.json", "captures-rekey.json", "captures-forks.json"}

func captures(t testing.TB) (out []*capture) {
	for _, name := range captureFiles {
		var f captureFile
		load(t, name, &f)
		for _, n := range slices.Sorted(maps.Keys(f.Scenarios)) {
			c := f.Scenarios[n]
			c.name, c.file = strings.TrimSuffix(name, ".json")+"/"+n, &f
			out = append(out, c)
		}
	}
	if len(out) < 20 {
		t.Fatalf("%d captures", len(out))
	}
	return out
}

// message is one message of a frame.
type message struct {
	ch, typ uint64
	payload []byte
}

// split takes a frame apart.
func split(t testing.TB, b []byte) (out []message) {
	t.Helper()
	u := func() (v uint64) {
		var err error
		if v, b, err = compact.ParseUint(b); err != nil {
			t.Fatalf("frame: %v", err)
		}
		return v
	}
	ch := u()
	typ := u()
	if ch != 0 || typ != 0 {
		return []message{{ch, typ, b}}
	}
	ch = u()
	for len(b) > 0 {
		n := u()
		if n == 0 {
			ch = u()
			continue
		}
		rest := b[n:]
		b = b[:n]
		typ := u()
		out = append(out, message{ch, typ, b})
		b = rest
	}
	return out
}

// TestVectorsCaptures reads every message of every captured session, in both
// directions, and writes it again.
func TestVectorsCaptures(t *testing.T) {
	n := 0
	for _, c := range captures(t) {
		for _, f := range c.Frames {
			if f.From == "" {
				continue
			}
			for _, m := range split(t, f.Hex) {
				if m.ch == 0 {
					continue
				}
				again, rest, err := recode(m.typ, m.payload)
				if err != nil || len(rest) > 0 || !bytes.Equal(again, m.payload) {
					t.Errorf("%s: type %d: %v\n %x\n %x", c.name, m.typ, err, m.payload, again)
				}
				n++
			}
		}
	}
	if n < 400 {
		t.Errorf("%d messages only", n)
	}
}

// tape is a mux.Stream whose one end is a test.
type tape struct {
	mu     sync.Mutex
	cond   sync.Cond
	in     [][]byte
	out    []message
	closed bool
	t      testing.TB
}

func newTape(t testing.TB) *tape {
	s := &tape{t: t}
	s.cond.L = &s.mu
	return s
}

func (s *tape) ReadMessage() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.in) == 0 && !s.closed {
		s.cond.Wait()
	}
	if len(s.in) == 0 {
		return nil, io.EOF
	}
	b := s.in[0]
	s.in = s.in[1:]
	return b, nil
}

func (s *tape) WriteMessage(m []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out = append(s.out, split(s.t, bytes.Clone(m))...)
	s.cond.Broadcast()
	return nil
}

func (s *tape) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.cond.Broadcast()
	return nil
}

func (s *tape) Backlog() (int, bool) { return 0, true }
func (s *tape) SetMaxMessage(int)    {}
func (s *tape) CloseWrite() error    { return s.Close() }

func (s *tape) feed(b []byte) {
	s.mu.Lock()
	s.in = append(s.in, b)
	s.cond.Broadcast()
	s.mu.Unlock()
}

// await takes the first message out that f accepts.
func (s *tape) await(f func(message) bool) (message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if i := slices.IndexFunc(s.out, f); i >= 0 {
			m := s.out[i]
			s.out = slices.Delete(s.out, i, i+1)
			return m, true
		}
		if s.closed {
			return message{}, false
		}
		s.cond.Wait()
	}
}

// log returns the feed that a capture is of.
func (c *capture) log(t *testing.T) (*memory, func(i int) []byte) {
	t.Helper()
	id := c.discoveryKey(t)
	var block func(i int) []byte
	switch {
	case c.Logs != nil:
		block = func(i int) []byte { return testBlock(i, 20) }
	case c.file.SellerKeySeed != nil:
		block = captureBlock
	default:
		block = func(i int) []byte {
			if i == 10 {
				return testBlock(10, 33)
			}
			return testBlock(i, 20+i)
		}
	}
	for seed := range 256 {
		if m := newMemory(byte(seed)); merkle.DiscoveryKey(m.Key()) == id {
			return m, block
		}
	}
	t.Fatal(c.name, "is of an unknown feed")
	return nil, nil
}

func captureBlock(i int) []byte {
	return fmt.Appendf(nil, "block %d %s", i, strings.Repeat("x", i))
}

// discoveryKey is what the first channel was opened with.
func (c *capture) discoveryKey(t *testing.T) merkle.Hash {
	for _, f := range c.Frames {
		if f.From == "" {
			continue
		}
		for _, m := range split(t, f.Hex) {
			if m.ch == 0 && m.typ == 1 {
				_, b, _ := compact.ParseUint(m.payload)
				_, b, _ = compact.ParseString(b)
				id, _, err := compact.ParseBuffer(b)
				if err != nil {
					t.Fatal(err)
				}
				return merkle.Hash(id)
			}
		}
	}
	t.Fatal(c.name, "opens nothing")
	return merkle.Hash{}
}

// TestReplay lets our seller meet what stock buyers said in every captured
// session. It answers each request with the very bytes that the seller there did.
func TestReplay(t *testing.T) {
	for _, c := range captures(t) {
		t.Run(c.name, func(t *testing.T) { replay(t, c) })
	}
}

func replay(t *testing.T, c *capture) {
	m, block := c.log(t)
	m.signed = 1 << 40 // there is nothing to settle
	tp := newTape(t)
	x := mux.New(tp, mux.Config{})
	cfg := SellerConfig{
		Session: Session{Mux: x, HandshakeHash: [64]byte(c.HandshakeHash), Initiator: c.Initiator == "seller"},
		Feed:    m, Blocks: blocks{m}, Log: testLog(),
	}
	// grow takes the log to where the seller says that it is.
	grow := func(fork, n uint64) {
		from := m.tree.Length()
		if fork > m.fork {
			from = 0
		}
		var more [][]byte
		for i := from; i < n; i++ {
			k := int(i)
			if c.Logs != nil {
				k = c.Logs[fork][i]
			}
			more = append(more, block(k))
		}
		if fork > m.fork {
			m.raise(fork, 0, more...)
			m.signed = 1 << 40
		} else if more != nil {
			m.append(more...)
		}
	}
	first := true
	bySeek := map[uint64]bool{}
	var seller *Seller
	data := 0
	done := make(chan error, 1)
	for _, f := range c.Frames {
		switch {
		case f.From == "seller":
			for _, want := range split(t, f.Hex) {
				switch {
				case want.ch == 0:
				case want.typ == typeSync:
					s, _, _ := ParseSync(want.payload)
					grow(s.Fork, s.Length)
					if first {
						first = false
						seller = newSeller(t, cfg)
						m.changed = seller.Update
						go func() { done <- x.Run() }()
					}
				case want.typ == typeRange:
					if r, _, _ := ParseRange(want.payload); r.Drop && r.Start == 0 {
						m.prune(r.Length)
					} else if !r.Drop && m.first < r.Start && data == 0 {
						m.prune(r.Start)
					}
				case want.typ == typeBitfield && data == 0:
					b, _, _ := ParseBitfield(want.payload)
					var r ranges
					(&upstream{theirs: r}).setBits(b)
					for k := range uint64(32) {
						if b.Words[0]>>k&1 != 0 {
							m.prune(k)
							break
						}
					}
				case want.typ == typeData:
					d, _, err := ParseData(want.payload)
					if err != nil {
						t.Fatal(err)
					}
					got, ok := tp.await(func(m message) bool {
						if m.ch == 0 || m.typ != typeData && m.typ != typeNoData {
							return false
						}
						if m.typ == typeNoData {
							n, _, _ := ParseNoData(m.payload)
							return n.Request == d.Request
						}
						g, _, err := ParseData(m.payload)
						return err == nil && g.Request == d.Request
					})
					if !ok {
						t.Fatalf("the connection ended: %v", <-done)
					}
					if got.typ != typeData || !bytes.Equal(got.payload, want.payload) && !(bySeek[d.Request] && moreThan(m, got.payload, &d)) {
						t.Fatalf("request %d is answered with type %d\n %x, and was with\n %x", d.Request, got.typ, got.payload, want.payload)
					}
					data++
				}
			}
		case f.From == "buyer":
			for _, x := range split(t, f.Hex) {
				if x.ch != 0 && x.typ == typeRequest {
					r, _, _ := ParseRequest(x.payload)
					bySeek[r.ID] = r.Seek != nil
				}
			}
			tp.feed(f.Hex)
		default:
			if seller == nil {
				continue
			}
			switch {
			case f.Marker == "sync uploading=false":
				seller.Pause()
			case f.Marker == "sync uploading=true":
				seller.Resume()
			case strings.HasPrefix(f.Marker, "un-revoke"):
				seller = newSeller(t, cfg)
			case f.Marker == "revoke", strings.HasPrefix(f.Marker, "seller channel.close"), strings.HasPrefix(f.Marker, "seller.close"):
				seller.Revoke()
			}
		}
	}
	x.Close()
	if seller != nil {
		<-done
	}
	if data == 0 {
		t.Error("nothing was asked for")
	}
}

// moreThan tells whether a valid answer has a byte's place that a stock peer's
// lacks: right of the first root they take its offset for NaN.
func moreThan(m *memory, answer []byte, stock *Data) bool {
	d, _, err := ParseData(answer)
	if err != nil || d.Hash == nil || stock.Hash == nil || d.Hash.Index != stock.Hash.Index || d.Seek == nil || stock.Seek != nil {
		return false
	}
	v := &merkle.Verifier{Key: m.Key(), Manifest: &m.manifest, Length: m.tree.Length(), Roots: m.tree.Roots()}
	_, err = v.Verify(&d.Proof, nil)
	return err == nil
}

func newSeller(t *testing.T, cfg SellerConfig) *Seller {
	t.Helper()
	s, err := NewSeller(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestVectorsProofs lets our verifier check every proof that a stock seller sent
// in a captured session.
func TestVectorsProofs(t *testing.T) {
	n := 0
	for _, c := range captures(t) {
		m, block := c.log(t)
		man := m.Manifest()
		known := map[uint64]merkle.Node{}
		v := &merkle.Verifier{Key: m.Key(), Manifest: &man, Node: func(x uint64) (merkle.Node, bool) { n, ok := known[x]; return n, ok }}
		for _, f := range c.Frames {
			if f.From != "seller" {
				continue
			}
			for _, x := range split(t, f.Hex) {
				if x.ch == 0 || x.typ != typeData {
					continue
				}
				d, _, err := ParseData(x.payload)
				if err != nil {
					t.Fatal(err)
				}
				if d.Fork != v.Fork {
					v.Fork, v.Length, v.Roots = d.Fork, 0, nil
					clear(known)
				}
				if d.Upgrade != nil && d.Upgrade.Start > v.Length { // the buyer had it from before
					var had merkle.Tree
					for i := range d.Upgrade.Start {
						had.Append(nil, merkle.Leaf(i, block(int(i))))
					}
					v.Length, v.Roots = had.Length(), had.Roots()
				}
				got, err := v.Verify(&d.Proof, d.Manifest)
				if err != nil {
					t.Errorf("%s: request %d: %v", c.name, d.Request, err)
					continue
				}
				n++
				if got.Head != nil {
					v.Length, v.Roots = got.Head.Length, got.Roots
				}
				for _, x := range got.Nodes {
					known[x.Index] = x
				}
			}
		}
		if h := c.Outcome.TreeHash; h != nil && c.Outcome.Length == v.Length && merkle.TreeHash(v.Roots) != h.hash() {
			t.Errorf("%s: ends with another tree", c.name)
		}
	}
	if n < 100 {
		t.Errorf("%d proofs", n)
	}
}

// TestVectorsHeads signs the heads of raised forks as stock writers did.
func TestVectorsHeads(t *testing.T) {
	var v struct {
		Heads []struct {
			Fork, Length        uint64
			TreeHash, Signature hexBytes
			Blocks              []int
		}
	}
	load(t, "captures-forks.json", &v)
	m := newMemory(0x50)
	if len(v.Heads) < 10 {
		t.Fatalf("%d heads", len(v.Heads))
	}
	for _, h := range v.Heads {
		var tree merkle.Tree
		for i, k := range h.Blocks {
			tree.Append(nil, merkle.Leaf(uint64(i), testBlock(k, 20)))
		}
		head := merkle.Head{Fork: h.Fork, Length: tree.Length(), TreeHash: tree.Hash()}
		if head.Length != h.Length || head.TreeHash != h.TreeHash.hash() {
			t.Errorf("fork %d: %+v", h.Fork, head)
		}
		if got := m.manifest.Sign(m.priv, m.Key(), head); !bytes.Equal(got, h.Signature) {
			t.Errorf("fork %d of %d blocks: signature %x", h.Fork, h.Length, got)
		}
		if err := m.manifest.Verify(m.Key(), head, h.Signature); err != nil {
			t.Error(err)
		}
		head.Fork++
		if m.manifest.Verify(m.Key(), head, h.Signature) == nil {
			t.Error("a signature is good for another fork")
		}
	}
}
