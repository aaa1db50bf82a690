package replicate

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
	"dazaar-edge/protocol/replicate/replicatetest"
)

// tape is a mux.Stream whose one end is a test.
type tape struct {
	mu     sync.Mutex
	cond   sync.Cond
	in     [][]byte
	out    []replicatetest.Message
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
	s.out = append(s.out, replicatetest.Split(s.t, bytes.Clone(m))...)
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
func (s *tape) await(f func(replicatetest.Message) bool) (replicatetest.Message, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if i := slices.IndexFunc(s.out, f); i >= 0 {
			m := s.out[i]
			s.out = slices.Delete(s.out, i, i+1)
			return m, true
		}
		if s.closed {
			return replicatetest.Message{}, false
		}
		s.cond.Wait()
	}
}

// capturedLog returns the feed that a capture is of.
func capturedLog(t *testing.T, c *replicatetest.Capture) (*memory, func(i int) []byte) {
	t.Helper()
	id := discoveryKey(t, c)
	var block func(i int) []byte
	switch {
	case c.Logs != nil:
		block = func(i int) []byte { return testBlock(i, 20) }
	case c.SellerKeySeed != nil:
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
	t.Fatal(c.Name, "is of an unknown feed")
	return nil, nil
}

func captureBlock(i int) []byte {
	return fmt.Appendf(nil, "block %d %s", i, strings.Repeat("x", i))
}

// discoveryKey is what the first channel was opened with.
func discoveryKey(t *testing.T, c *replicatetest.Capture) merkle.Hash {
	for _, f := range c.Frames {
		if f.From == "" {
			continue
		}
		for _, m := range replicatetest.Split(t, f.Hex) {
			if m.Channel == 0 && m.Type == 1 {
				_, b, _ := compact.ParseUint(m.Payload)
				_, b, _ = compact.ParseString(b)
				id, _, err := compact.ParseBuffer(b)
				if err != nil {
					t.Fatal(err)
				}
				return merkle.Hash(id)
			}
		}
	}
	t.Fatal(c.Name, "opens nothing")
	return merkle.Hash{}
}

// TestReplay lets our seller meet what stock buyers said in every captured
// session. It answers each request with the very bytes that the seller there did.
func TestReplay(t *testing.T) {
	for _, c := range replicatetest.Captures(t) {
		t.Run(c.Name, func(t *testing.T) { replay(t, c) })
	}
}

func replay(t *testing.T, c *replicatetest.Capture) {
	m, block := capturedLog(t, c)
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
			for _, want := range replicatetest.Split(t, f.Hex) {
				switch {
				case want.Channel == 0:
				case want.Type == message.TypeSync:
					s, _, _ := message.ParseSync(want.Payload)
					grow(s.Fork, s.Length)
					if first {
						first = false
						seller = newSeller(t, cfg)
						m.changed = seller.Update
						go func() { done <- x.Run() }()
					}
				case want.Type == message.TypeRange:
					if r, _, _ := message.ParseRange(want.Payload); r.Drop && r.Start == 0 {
						m.prune(r.Length)
					} else if !r.Drop && m.first < r.Start && data == 0 {
						m.prune(r.Start)
					}
				case want.Type == message.TypeBitfield && data == 0:
					b, _, _ := message.ParseBitfield(want.Payload)
					var r ranges
					(&upstream{theirs: r}).setBits(b)
					for k := range uint64(32) {
						if b.Words[0]>>k&1 != 0 {
							m.prune(k)
							break
						}
					}
				case want.Type == message.TypeData:
					d, _, err := message.ParseData(want.Payload)
					if err != nil {
						t.Fatal(err)
					}
					got, ok := tp.await(func(m replicatetest.Message) bool {
						if m.Channel == 0 || m.Type != message.TypeData && m.Type != message.TypeNoData {
							return false
						}
						if m.Type == message.TypeNoData {
							n, _, _ := message.ParseNoData(m.Payload)
							return n.Request == d.Request
						}
						g, _, err := message.ParseData(m.Payload)
						return err == nil && g.Request == d.Request
					})
					if !ok {
						t.Fatalf("the connection ended: %v", <-done)
					}
					if got.Type != message.TypeData || !bytes.Equal(got.Payload, want.Payload) && !(bySeek[d.Request] && moreThan(m, got.Payload, &d)) {
						t.Fatalf("request %d is answered with type %d\n %x, and was with\n %x", d.Request, got.Type, got.Payload, want.Payload)
					}
					data++
				}
			}
		case f.From == "buyer":
			for _, x := range replicatetest.Split(t, f.Hex) {
				if x.Channel != 0 && x.Type == message.TypeRequest {
					r, _, _ := message.ParseRequest(x.Payload)
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
func moreThan(m *memory, answer []byte, stock *message.Data) bool {
	d, _, err := message.ParseData(answer)
	if err != nil || d.Hash == nil || stock.Hash == nil || d.Hash.Index != stock.Hash.Index || d.Seek == nil || stock.Seek != nil {
		return false
	}
	v := &merkle.Verifier{Key: m.Key(), Manifest: &m.manifest, Length: m.tree.Length(), Roots: m.tree.Roots()}
	_, err = v.Verify(&d.Proof, nil)
	return err == nil
}

func newSeller(t testing.TB, cfg SellerConfig) *Seller {
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
	for _, c := range replicatetest.Captures(t) {
		m, block := capturedLog(t, c)
		man := m.Manifest()
		known := map[uint64]merkle.Node{}
		v := &merkle.Verifier{Key: m.Key(), Manifest: &man, Node: func(x uint64) (merkle.Node, bool) { n, ok := known[x]; return n, ok }}
		for _, f := range c.Frames {
			if f.From != "seller" {
				continue
			}
			for _, x := range replicatetest.Split(t, f.Hex) {
				if x.Channel == 0 || x.Type != message.TypeData {
					continue
				}
				d, _, err := message.ParseData(x.Payload)
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
					t.Errorf("%s: request %d: %v", c.Name, d.Request, err)
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
		if h := c.Outcome.TreeHash; h != nil && c.Outcome.Length == v.Length && merkle.TreeHash(v.Roots) != h.Hash() {
			t.Errorf("%s: ends with another tree", c.Name)
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
			TreeHash, Signature replicatetest.Hex
			Blocks              []int
		}
	}
	replicatetest.Load(t, "captures-forks.json", &v)
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
		if head.Length != h.Length || head.TreeHash != h.TreeHash.Hash() {
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
