package replicate

import (
	"bytes"
	"slices"
	"sync"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
	"dazaar-edge/protocol/replicate/replicatetest"
)

// A session, for fuzzing, is a list of messages as a Protomux batch has them: of
// each its length, its type and its payload.

func appendMessage(b []byte, typ uint64, payload []byte) []byte {
	b = compact.AppendUint(b, uint64(compact.UintSize(typ)+len(payload)))
	return append(compact.AppendUint(b, typ), payload...)
}

// session returns what one side of a capture says.
func session(t testing.TB, c *replicatetest.Capture, from string) (out []byte) {
	for _, f := range c.Frames {
		if f.From != from {
			continue
		}
		for _, m := range replicatetest.Split(t, f.Hex) {
			if m.Channel != 0 {
				out = appendMessage(out, m.Type, m.Payload)
			}
		}
	}
	return out
}

// eachMessage calls f until it fails or the session is over.
func eachMessage(b []byte, f func(typ uint64, payload []byte) error) {
	for len(b) > 0 {
		n, rest, err := compact.ParseUint(b)
		if err != nil || n > uint64(len(rest)) {
			return
		}
		typ, payload, err := compact.ParseUint(rest[:n])
		if err != nil || f(typ, payload) != nil {
			return
		}
		b = rest[n:]
	}
}

// fuzzLog is the feed that is sold while fuzzing: pruned, and unsure of what it
// signed if it lost its tail.
func fuzzLog(lost bool) *memory {
	m := newMemory(1)
	m.append(testBlocks(0, 40, 20)...)
	m.first, m.signed = 5, 1<<40
	if lost {
		m.signed = 40
		m.truncate(30)
		m.append(testBlocks(1030, 4, 20)...)
	}
	return m
}

// recorded is a stream that notes what is sent on it.
type recorded struct {
	mux.Stream
	t    testing.TB
	mu   sync.Mutex
	said []byte
}

func (r *recorded) WriteMessage(m []byte) error {
	r.mu.Lock()
	for _, x := range replicatetest.Split(r.t, bytes.Clone(m)) {
		if x.Channel != 0 {
			r.said = appendMessage(r.said, x.Type, x.Payload)
		}
	}
	r.mu.Unlock()
	return r.Stream.WriteMessage(m)
}

// window is a Meter that knows what may be sold.
type window struct {
	t           testing.TB
	first, last uint64
}

func (w *window) Admit(i uint64, _ int) bool {
	if i < w.first || i >= w.last {
		w.t.Errorf("block %d is outside [%d, %d)", i, w.first, w.last)
	}
	return i%7 != 3
}

// FuzzSeller lets a peer say anything to a seller.
func FuzzSeller(f *testing.F) {
	for _, c := range replicatetest.Captures(f) {
		f.Add(session(f, c, "buyer"), false)
	}
	f.Add(talk(f, false), false)
	f.Add(talkLost(f), true)
	f.Fuzz(func(t *testing.T, b []byte, lost bool) {
		m := fuzzLog(lost)
		x := mux.New(newTape(t), mux.Config{})
		hash := [64]byte{1}
		s := newSeller(t, SellerConfig{
			Session: Session{Mux: x, HandshakeHash: hash}, Feed: m, Blocks: blocks{m}, First: 10, Length: 30, Meter: &window{t, 10, 30},
		})
		h := (*sellerHandler)(s)
		hello := message.Handshake{Seeks: true, Capability: message.Capability(m.Key(), hash, true)}
		if err := h.Opened(hello.Append(nil)); err != nil {
			t.Fatal(err)
		}
		n := 0
		eachMessage(b, func(typ uint64, payload []byte) error {
			if err := h.Message(typ, payload); err != nil {
				return err
			}
			n++
			for range 3 {
				var batch mux.Batch
				h.Produce(&batch)
			}
			if n%16 == 0 {
				s.Resume()
			}
			return nil
		})
		for i, b := range m.lost {
			if i < 30 || i >= 40 || !bytes.Equal(b, testBlock(int(i), 20)) {
				t.Errorf("block %d is taken back as %x", i, b)
			}
		}
		st := s.Stats()
		if st.Parked > maxRequests || len(s.requests.buf) > maxRequestBytes || cap(s.theirs) > 2*maxRanges || len(s.asks.slots) > maxAsks {
			t.Errorf("it holds %+v", st)
		}
		s.Revoke()
		if st := s.Stats(); st.Parked > 0 {
			t.Error("a revoked seller holds requests")
		}
	})
}

// talk returns what our own seller or buyer says when one buys from the other,
// and the log grows and raises its fork.
func talk(t testing.TB, seller bool) []byte {
	m := newMemory(1)
	m.append(testBlocks(0, 40, 20)...)
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	r := &recorded{t: t}
	l := connectBy(t, sale{feed: m, buyer: b}, func(s mux.Stream, sells bool) mux.Stream {
		if sells != seller {
			return s
		}
		r.Stream = s
		return r
	})
	in.wait(func() bool { return len(in.blocks) == 40 })
	m.append(testBlocks(40, 3, 20)...)
	in.wait(func() bool { return len(in.blocks) == 43 })
	m.raise(1, 30, testBlocks(1030, 4, 20)...)
	in.wait(func() bool { return in.head.Fork == 1 && bytes.Equal(in.blocks[33], m.blocks[33]) })
	l.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.said)
}

// talkLost returns what our buyer says to a seller that lost its tail.
func talkLost(t testing.TB) []byte {
	m := newMemory(1)
	m.append(testBlocks(0, 40, 20)...)
	m.first = 5
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	l := connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 35 })
	l.close()
	m.truncate(30)
	m.append(testBlocks(1030, 4, 20)...)
	r := &recorded{t: t}
	l = connectBy(t, sale{feed: m, buyer: b}, func(s mux.Stream, sells bool) mux.Stream {
		if sells {
			return s
		}
		r.Stream = s
		return r
	})
	in.wait(func() bool { return in.head.Fork == 1 && bytes.Equal(in.blocks[33], m.blocks[33]) })
	l.close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.said)
}

// truth is a Sink and Store that knows what the log is.
type truth struct {
	*shelf
	t      testing.TB
	blocks map[string]bool // blocks, each behind its index
	next   uint64
}

func (c *truth) Block(i uint64, b []byte) error {
	if i != c.next {
		c.t.Errorf("block %d comes, and %d was due", i, c.next)
	}
	c.next++
	if !c.blocks[string(compact.AppendUint(nil, i))+string(b)] {
		c.t.Errorf("block %d is %x, which nobody signed", i, b)
	}
	return nil
}

func (c *truth) Gap(from, to uint64) error {
	if from != c.next || to <= from {
		c.t.Errorf("a gap [%d, %d), and %d was due", from, to, c.next)
	}
	c.next = to
	return nil
}

func (c *truth) Fork(_, from uint64) error {
	if from > c.next {
		c.t.Errorf("a fork from block %d, and %d was due", from, c.next)
	}
	c.next = from
	return nil
}

func (c *truth) Head(merkle.Head) error { return nil }

// both keeps what it delivers as a Store does.
type both struct{ *truth }

func (b both) Block(i uint64) ([]byte, error) { return b.shelf.Block(i) }

// FuzzBuyer lets a peer say anything to a buyer. It cannot forge a signature, so
// that all that is delivered must be of the logs that were signed.
func FuzzBuyer(f *testing.F) {
	known := map[string]bool{}
	add := func(i int, b []byte) { known[string(compact.AppendUint(nil, uint64(i)))+string(b)] = true }
	keys := map[byte]merkle.Hash{0: newMemory(1).Key(), 1: newMemory(0x50).Key()}
	for i := range 50 {
		add(i, testBlock(i, 20))
		add(i, testBlock(i+1000, 20))
		add(i, testBlock(i+100, 20))
		add(i, testBlock(i+200, 20))
		add(i, captureBlock(i))
	}
	for _, c := range replicatetest.Captures(f) {
		id := byte(0)
		if c.Logs != nil {
			id = 1
		}
		f.Add(id, session(f, c, "seller"))
	}
	f.Add(byte(0), talk(f, true))
	f.Fuzz(func(t *testing.T, feed byte, session []byte) {
		key, ok := keys[feed%2]
		if !ok {
			return
		}
		x := mux.New(newTape(t), mux.Config{})
		hash := [64]byte{1}
		sink := &truth{shelf: newShelf(), t: t, blocks: known}
		b, err := NewBuyer(BuyerConfig{Key: key, Sink: sink, Store: both{sink}})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Attach(Session{Mux: x, HandshakeHash: hash, Initiator: true}); err != nil {
			t.Fatal(err)
		}
		u := b.up
		hello := message.Handshake{Seeks: true, Capability: message.Capability(key, hash, false)}
		if err := u.Opened(hello.Append(nil)); err != nil {
			t.Fatal(err)
		}
		eachMessage(session, func(typ uint64, payload []byte) error {
			if err := u.Message(typ, payload); err != nil {
				return err
			}
			var batch mux.Batch
			u.Produce(&batch)
			return nil
		})
		if u.waiting > maxBuffered+len(session) || len(u.asks.slots) > maxSlots || len(u.theirs) > maxBuyerRanges {
			t.Errorf("it holds %d bytes, %d requests, %d ranges", u.waiting, len(u.asks.slots), len(u.theirs))
		}
		if err := b.Checkpoint(func(k Kept) error {
			_, err := NewBuyer(BuyerConfig{Key: key, Sink: sink, Kept: &k})
			return err
		}); err != nil {
			t.Errorf("what it keeps cannot be read: %v", err)
		}
	})
}
