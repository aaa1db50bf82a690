package replicate

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// stranger is a peer of a seller that sends what the test likes and notes what it
// gets.
type stranger struct {
	session Session
	key     merkle.Hash
	seller  *Seller
	sold    chan error // why the seller's connection ended

	mu   sync.Mutex
	cond sync.Cond
	ch   *mux.Channel
	got  map[uint64]int // messages by type
	size int            // bytes in them
	on   func(typ uint64, m []byte)
}

func (s *stranger) Opened([]byte) error { return nil }

// Closed opens the channel again when the seller closed it, as stock buyers do.
func (s *stranger) Closed(err error) {
	if errors.Is(err, mux.ErrRemoteClosed) {
		s.mu.Lock()
		s.ch, _ = s.session.open(s.key, s)
		s.mu.Unlock()
		s.sync(0, 0)
	}
}

func (s *stranger) Message(typ uint64, m []byte) error {
	s.mu.Lock()
	s.got[typ]++
	s.size += len(m)
	on := s.on
	s.cond.Broadcast()
	s.mu.Unlock()
	if on != nil {
		on(typ, m)
	}
	return nil
}

func (s *stranger) send(typ uint64, m []byte) {
	s.mu.Lock()
	ch := s.ch
	s.mu.Unlock()
	ch.Send(typ, m) //nolint:errcheck // it may be cut off by now
}

func (s *stranger) sync(fork, length uint64) {
	s.send(message.TypeSync, message.Sync{Fork: fork, Length: length, Downloading: true}.Append(nil))
}

func (s *stranger) block(id, i uint64) {
	r := message.Request{ID: id, Request: merkle.Request{Block: &merkle.NodeRequest{Index: i}}}
	s.send(message.TypeRequest, r.Append(nil))
}

func (s *stranger) wait(f func() bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !f() {
		s.cond.Wait()
	}
}

// meet connects a stranger to a seller of the feed, by TCP.
func meet(t testing.TB, feed Feed, from Blocks, up *Uplink, rate float64, config func(*SellerConfig)) *stranger {
	t.Helper()
	ra, rb := byTCP(t)
	a, b := streams(t, ra, rb)
	share := up.Share(rate)
	ma := mux.New(a, mux.Config{Window: share.Window(), Pace: share})
	mb := mux.New(b, mux.Config{})
	s := &stranger{session: Session{Mux: mb, HandshakeHash: b.HandshakeHash(), Initiator: true}, key: feed.Key(), sold: make(chan error, 1), got: map[uint64]int{}}
	s.cond.L = &s.mu
	var err error
	if s.ch, err = s.session.open(s.key, s); err != nil {
		t.Fatal(err)
	}
	cfg := SellerConfig{Session: Session{Mux: ma, HandshakeHash: a.HandshakeHash()}, Feed: feed, Blocks: from, Uplink: up, Log: testLog()}
	if config != nil {
		config(&cfg)
	}
	s.seller = newSeller(t, cfg)
	var wg sync.WaitGroup
	wg.Go(func() { s.sold <- ma.Run() })
	wg.Go(func() { mb.Run() }) //nolint:errcheck // the seller's side is looked at
	t.Cleanup(func() {
		ma.Close()
		mb.Close()
		wg.Wait()
	})
	return s
}

// TestCapAcrossConnections: one who comes again and again for a large block each
// does not get more than the common cap, nor leaves others to wait for it.
func TestCapAcrossConnections(t *testing.T) {
	const rate, size = 1 << 20, 128 << 10
	m := newMemory(1)
	m.append(testBlocks(0, 10, size)...)
	up := &Uplink{Coalesce: 1, Rate: rate}
	start := time.Now()
	const rounds = 12
	for range rounds {
		s := meet(t, m, blocks{m}, up, 256<<10, nil)
		s.sync(0, 0)
		s.block(1, 3)
		s.wait(func() bool { return s.got[message.TypeData] > 0 })
		s.session.Mux.Close()
	}
	if took := time.Since(start).Seconds(); took < 0.9*(rounds-1)*size/rate {
		t.Errorf("%d bytes took %.2f s, at a cap of %d a second", rounds*size, took, rate)
	}
	if d := time.Until(up.Share(0).Spend(1000)); d > 500*time.Millisecond {
		t.Errorf("who comes next waits %v", d)
	}
}

// TestCapCountsAnswers: answers without blocks count against the caps like those
// with.
func TestCapCountsAnswers(t *testing.T) {
	const rate = 64 << 10
	m := newMemory(1)
	m.append(testBlocks(0, 1<<12, 8)...)
	s := meet(t, m, blocks{m}, &Uplink{Coalesce: 1, Rate: rate}, rate, nil)
	ask := func(id uint64) {
		r := message.Request{ID: id, Request: merkle.Request{Hash: &merkle.NodeRequest{Index: 2 * id, Nodes: 12}}}
		s.send(message.TypeRequest, r.Append(nil))
	}
	s.on = func(typ uint64, m []byte) {
		if d, _, err := message.ParseData(m); typ == message.TypeData && err == nil {
			ask(d.Request)
		}
	}
	start := time.Now()
	s.sync(0, 0)
	for i := range uint64(1000) {
		ask(i + 1)
	}
	s.wait(func() bool { return s.size > 4*rate })
	if took := time.Since(start).Seconds(); took < 2.5 { // a window of 64 KiB is free
		t.Errorf("%d bytes came in %.2f s, at a cap of %d a second", s.size, took, rate)
	}
}

// holed is a feed some of whose blocks cannot be read.
type holed struct {
	*memory
	bad func(i uint64) bool
}

func (h holed) Proof(r merkle.Request) (merkle.Proof, merkle.Head, error) {
	if r.Block != nil && h.bad(r.Block.Index) {
		return merkle.Proof{}, merkle.Head{}, merkle.ErrMissing
	}
	return h.memory.Proof(r)
}

func (h holed) Release() {}
func (h holed) Read(i, levels uint64) ([]byte, []merkle.Node, error) {
	if h.bad(i) {
		return nil, nil, merkle.ErrMissing
	}
	return blocks{h.memory}.Read(i, levels)
}

// TestHoles: our buyer passes by damaged blocks, says so, and asks for each once;
// also for those that it meets later, and right behind a drop.
func TestHoles(t *testing.T) {
	bad := []uint64{0, 7, 8, 63, 199, 210}
	m := newMemory(1)
	m.append(testBlocks(0, 200, 50)...)
	h := holed{m, func(i uint64) bool { return slices.Contains(bad, i) }}
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	l := connect(t, sale{feed: m, buyer: b, config: func(c *SellerConfig) { c.Feed, c.Blocks = h, h }})
	// Neighbours may be told of as one gap or two.
	passed := func(n int) bool {
		for _, i := range bad {
			if int(i) < n && !in.missed(i) {
				return false
			}
		}
		return true
	}
	in.wait(func() bool { return len(in.blocks) == 195 && passed(200) })
	m.append(testBlocks(200, 20, 50)...)
	in.wait(func() bool { return len(in.blocks) == 214 && passed(220) })
	for i, data := range in.blocks {
		if h.bad(i) || in.missed(i) || string(data) != string(m.blocks[i]) {
			t.Errorf("block %d is wrong", i)
		}
	}
	// What was in flight behind a hole when it was met is refused, too, or
	// served again; nothing is asked for without end.
	l.with(func(s *Seller) {
		if st := s.Stats(); st.NoData > uint64(2*len(bad)) {
			t.Errorf("%+v", st)
		}
	})
}

// TestInsistence: one who asks for a damaged block as fast as it is refused is
// answered a few times a second, and the others in its feed stay to be had.
func TestInsistence(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 200, 50)...)
	h := holed{m, func(i uint64) bool { return i == 7 }}
	s := meet(t, h, h, &Uplink{Coalesce: 1}, 0, nil)
	s.on = func(typ uint64, _ []byte) {
		switch typ {
		case message.TypeNoData:
			s.block(1, 7)
		case message.TypeRange: // also after the channel was opened anew
			s.sync(0, 0)
			s.block(1, 7)
		}
	}
	s.sync(0, 0)
	time.Sleep(2 * time.Second) // that is what is measured
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.got[message.TypeNoData]; n == 0 || n > 3*maxNoData {
		t.Errorf("%d refusals in two seconds", n)
	}
}

// TestClaims: a feed that knows what it signed raises no fork for claims that
// nobody can show; who makes them is cut off, and so is one who makes many.
func TestClaims(t *testing.T) {
	for name, claim := range map[string]func(s *stranger, m *memory){
		"longer":       func(s *stranger, _ *memory) { s.sync(0, 500) },
		"higher fork":  func(s *stranger, _ *memory) { s.sync(3, 10) },
		"highest fork": func(s *stranger, _ *memory) { s.sync(1<<53-1, 10) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(1)
			m.append(testBlocks(0, 10, 50)...)
			s := meet(t, m, blocks{m}, &Uplink{Coalesce: 1}, 0, nil)
			s.on = func(typ uint64, b []byte) {
				if r, _, err := message.ParseRequest(b); typ == message.TypeRequest && err == nil {
					s.send(message.TypeNoData, message.NoData{Request: r.ID}.Append(nil))
				}
			}
			claim(s, m)
			if err := <-s.sold; !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
			if m.Fork() != 0 || len(m.settled) > 0 {
				t.Errorf("fork %d, settled %v", m.Fork(), m.settled)
			}
		})
	}
	t.Run("again and again", func(t *testing.T) {
		m := newMemory(1)
		m.append(testBlocks(0, 10, 50)...)
		m.unsure = true
		s := meet(t, m, blocks{m}, &Uplink{Coalesce: 1}, 0, nil)
		s.on = func(typ uint64, b []byte) {
			switch typ {
			case message.TypeRequest:
				if r, _, err := message.ParseRequest(b); err == nil {
					m.mu.Lock()
					m.unsure = true // as long as it is not sure it believes claims
					m.mu.Unlock()
					s.send(message.TypeNoData, message.NoData{Request: r.ID}.Append(nil))
				}
			case message.TypeSync:
				if x, _, err := message.ParseSync(b); err == nil && x.Length > 0 {
					m.mu.Lock()
					m.unsure = true
					m.mu.Unlock()
					s.sync(x.Fork, x.Length+1)
				}
			}
		}
		s.sync(0, 20)
		if err := <-s.sold; !errors.Is(err, ErrFlood) {
			t.Error(err)
		}
		if f := m.Fork(); f > 10 {
			t.Errorf("fork %d", f)
		}
	})
}

// droppedTree is a feed that has no nodes of what was dropped.
type droppedTree struct{ *memory }

func (d droppedTree) Node(x uint64) (merkle.Node, error) {
	if _, end := merkle.Span(x); end <= d.first {
		return merkle.Node{}, merkle.ErrMissing
	}
	return d.memory.Node(x)
}

// TestDroppedIsNotLost: of a buyer that has less than what was dropped meanwhile
// nothing is fetched: that was not lost.
func TestDroppedIsNotLost(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 100, 50)...)
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = newShelf() })
	l := connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return len(in.blocks) == 100 })
	l.close()
	m.append(testBlocks(100, 100, 50)...)
	m.first, m.unsure = 150, true
	connect(t, sale{feed: m, buyer: b, config: func(c *SellerConfig) { c.Feed = droppedTree{m} }})
	in.wait(func() bool { return len(in.blocks) == 150 })
	same(t, in, m, 150)
	if len(m.lost) > 0 {
		t.Errorf("%d blocks were fetched", len(m.lost))
	}
}

// TestPausedBehind: a buyer on an older fork that cannot follow because its
// session is paused keeps its feed; one that could and does not loses it.
func TestPausedBehind(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 10, 50)...)
	m.fork, m.signed = 1, 10
	var ended []error
	s := newSeller(t, SellerConfig{
		Session: Session{Mux: mux.New(newTape(t), mux.Config{})}, Feed: m, Blocks: blocks{m}, Paused: true,
		Ended: func(err error) { ended = append(ended, err) },
	})
	h := (*sellerHandler)(s)
	produce := func() { h.Produce(new(mux.Batch)) }
	if err := h.Message(message.TypeSync, message.Sync{Fork: 0, Length: 10}.Append(nil)); err != nil {
		t.Fatal(err)
	}
	wait := func() { // as if time had passed
		s.mu.Lock()
		s.greetedAt = s.greetedAt.Add(-2 * maxFollow)
		s.mu.Unlock()
	}
	wait()
	produce()
	if s.ended {
		t.Fatal("a paused session lost its feed")
	}
	s.Resume()
	produce()
	if s.ended {
		t.Fatal("a session lost its feed as soon as it went on")
	}
	wait()
	produce()
	if !s.ended || fmt.Sprint(ended) != fmt.Sprint([]error{ErrTooOld}) {
		t.Errorf("who does not follow goes on: %v", ended)
	}
}

// TestRefusedUpgrade: our buyer asks a seller that refuses heads once a second,
// not as fast as it can.
func TestRefusedUpgrade(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 10, 50)...)
	var mu sync.Mutex
	asked := 0
	f := &refusing{memory: m, refuse: func() bool {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return asked <= 2
	}}
	in := newInbox()
	start := time.Now()
	connect(t, sale{feed: m, buyer: newBuyer(t, m, in, nil), config: func(c *SellerConfig) { c.Feed = f }})
	in.wait(func() bool { return len(in.blocks) == 10 })
	if took := time.Since(start); asked != 3 || took < 2*lastResort {
		t.Errorf("%d requests in %v", asked, took)
	}
}

// refusing is a feed that cannot prove its head for a while.
type refusing struct {
	*memory
	refuse func() bool
}

func (r *refusing) Proof(q merkle.Request) (merkle.Proof, merkle.Head, error) {
	if q.Upgrade != nil && r.refuse() {
		return merkle.Proof{}, merkle.Head{}, merkle.ErrMissing
	}
	return r.memory.Proof(q)
}
