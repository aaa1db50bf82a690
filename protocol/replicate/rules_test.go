package replicate

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// TestWindowOfSession: a session announces and serves its window and nothing
// else, until it is moved.
func TestWindowOfSession(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 300, 50)...)
	in := newInbox()
	b := newBuyer(t, m, in, nil)
	meter := &window{t, 100, 200}
	l := connect(t, sale{feed: m, buyer: b, config: func(c *SellerConfig) { c.First, c.Length, c.Meter = 100, 200, meterFunc(meter.Admit0) }})
	in.wait(func() bool { return len(in.blocks) == 100 })
	for _, i := range []uint64{0, 99, 200, 299} {
		if data, err := b.Get(context.Background(), i); !errors.Is(err, ErrUnavailable) {
			t.Errorf("get(%d) outside the window: %d bytes, %v", i, len(data), err)
		}
	}
	if data, err := b.Get(context.Background(), 150); err != nil || !bytes.Equal(data, m.blocks[150]) {
		t.Errorf("get(150): %v", err)
	}
	if !slices.Equal(in.gaps, []string{"0-100"}) {
		t.Error(in.gaps)
	}
	l.with(func(s *Seller) { s.mu.Lock(); meter.last = 300; s.mu.Unlock(); s.SetWindow(100, 0) })
	in.wait(func() bool { return len(in.blocks) == 200 })
	same(t, in, m, 100)
}

// Admit0 is Admit that passes all in the window.
func (w *window) Admit0(i uint64, n int) bool { w.Admit(i, n); return true }

type meterFunc func(uint64, int) bool

func (f meterFunc) Admit(i uint64, n int) bool { return f(i, n) }

// TestMeter: each block is passed once before it is sent, and one that is not
// passed pauses the session until it is resumed.
func TestMeter(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 200, 50)...)
	in := newInbox()
	asked, stop := map[uint64]int{}, uint64(70)
	b := newBuyer(t, m, in, nil)
	refused := make(chan struct{}, 10)
	l := connect(t, sale{feed: m, buyer: b, config: func(c *SellerConfig) {
		c.Meter = meterFunc(func(i uint64, n int) bool {
			if n != 50 {
				t.Errorf("block %d of %d bytes", i, n)
			}
			if i >= stop {
				refused <- struct{}{}
				return false
			}
			asked[i]++
			return true
		})
	}})
	in.wait(func() bool { return len(in.blocks) == 70 })
	<-refused
	var parked int
	l.with(func(s *Seller) { parked = s.Stats().Parked })
	if parked == 0 {
		t.Error("nothing is parked")
	}
	l.with(func(s *Seller) { s.mu.Lock(); stop = 1000; s.mu.Unlock(); s.Resume() })
	in.wait(func() bool { return len(in.blocks) == 200 })
	for i := range uint64(200) {
		if asked[i] != 1 {
			t.Errorf("block %d was passed %d times", i, asked[i])
		}
	}
	l.with(func(s *Seller) {
		if st := s.Stats(); st.NoData > 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestSignaturesCoalesce: a log that grows a thousand times a second is signed a
// few times a second for each buyer.
func TestSignaturesCoalesce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(1)
		m.append(testBlocks(0, 1, 50)...)
		in := newInbox()
		b := newBuyer(t, m, in, nil)
		l := connect(t, sale{feed: m, buyer: b, up: &Uplink{}, pipe: true})
		in.wait(func() bool { return len(in.blocks) == 1 })
		n := 1
		for ; n <= 2000; n++ {
			time.Sleep(time.Millisecond)
			m.append(testBlock(n, 50))
		}
		in.wait(func() bool { return len(in.blocks) == n })
		l.with(func(s *Seller) {
			if st := s.Stats(); st.Upgrades > 10 || st.Upgrades < 8 {
				t.Errorf("%d signatures for %d appends in two seconds", st.Upgrades, n)
			}
		})
		// After a quiet time a block is announced at once.
		time.Sleep(300 * time.Millisecond)
		start := time.Now()
		m.append(testBlock(n, 50))
		in.wait(func() bool { return len(in.blocks) == n+1 })
		if d := time.Since(start); d > 0 {
			t.Errorf("news took %v", d)
		}
	})
}

// TestFromEnd begins with what is appended after the first contact.
func TestFromEnd(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 100, 50)...)
	in := newInbox()
	b := newBuyer(t, m, in, func(c *BuyerConfig) { c.From, c.Store = FromEnd, newShelf() })
	connect(t, sale{feed: m, buyer: b})
	in.wait(func() bool { return in.head.Length == 100 })
	m.append(testBlocks(100, 5, 50)...)
	in.wait(func() bool { return len(in.blocks) == 5 })
	if !slices.Equal(in.order, []uint64{100, 101, 102, 103, 104}) || len(in.gaps) > 0 {
		t.Error(in.order, in.gaps)
	}
	same(t, in, m, 100)
}

// TestUploadCaps: what all send together stays under the common cap, shared
// fairly, and none is faster than its own.
func TestUploadCaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, own, peers = 4 << 20, 2 << 20, 4
		up := &Uplink{Rate: rate, Coalesce: 1}
		var ins []*inbox
		var all [][]byte
		for i := range 1000 {
			all = append(all, testBlock(i, 4<<10))
		}
		join := func(up *Uplink) *inbox {
			in := newInbox()
			feed := newMemory(1)
			feed.append(all...)
			connect(t, sale{feed: feed, buyer: newBuyer(t, feed, in, nil), up: up, rate: own, pipe: true})
			return in
		}
		got := func(in *inbox) int {
			in.mu.Lock()
			defer in.mu.Unlock()
			return len(in.blocks) * 4 << 10
		}
		start := time.Now()
		for range peers {
			ins = append(ins, join(up))
		}
		time.Sleep(2 * time.Second)
		total := 0
		var shares []int
		took := time.Since(start).Seconds()
		for _, in := range ins {
			n := got(in)
			shares = append(shares, n)
			total += n
		}
		if f := float64(total) / took; f > rate*1.05 || f < rate*0.95 {
			t.Errorf("%.0f bytes a second together, the cap is %d", f, rate)
		}
		if slices.Max(shares) > 3*slices.Min(shares)/2 {
			t.Errorf("shares: %v", shares)
		}
		// Alone, one gets its own cap and not more.
		start = time.Now()
		in := join(&Uplink{Coalesce: 1})
		time.Sleep(time.Second)
		if f := float64(got(in)) / time.Since(start).Seconds(); f > own*1.05 || f < own*0.95 {
			t.Errorf("%.0f bytes a second alone, the cap is %d", f, own)
		}
	})
}

// crooked is a seller's feed that lies in one way.
type crooked struct {
	*memory
	bend func(d *merkle.Proof)
}

func (c *crooked) Proof(r merkle.Request) (merkle.Proof, merkle.Head, error) {
	p, h, err := c.memory.Proof(r)
	if err == nil {
		c.bend(&p)
	}
	return p, h, err
}

func (c *crooked) Release() {}
func (c *crooked) Read(i, levels uint64) ([]byte, []merkle.Node, error) {
	p, _, err := c.Proof(merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: levels}})
	if err != nil {
		return nil, nil, err
	}
	return p.Block.Value, p.Block.Nodes, nil
}

// bent is a crooked feed with another manifest.
type bent struct {
	crooked
	other merkle.Manifest
}

func (b *bent) Manifest() merkle.Manifest { return b.other }

// TestTampered: whatever a seller bends, the buyer stores nothing of it and says
// what is wrong.
func TestTampered(t *testing.T) {
	flip := func(b []byte) []byte {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
		return b
	}
	node := func(list []merkle.Node) {
		if len(list) > 0 {
			list[len(list)-1].Hash[5] ^= 1
		}
	}
	for name, bend := range map[string]func(p *merkle.Proof){
		"block":     func(p *merkle.Proof) { setBlock(p, 20, flip) },
		"node":      func(p *merkle.Proof) { onBlock(p, 20, func() { node(p.Block.Nodes) }) },
		"size":      func(p *merkle.Proof) { onBlock(p, 20, func() { p.Block.Nodes[0].Size++ }) },
		"nodes":     func(p *merkle.Proof) { onBlock(p, 20, func() { p.Block.Nodes = p.Block.Nodes[1:] }) },
		"root":      func(p *merkle.Proof) { onUpgrade(p, func() { node(p.Upgrade.Nodes) }) },
		"signature": func(p *merkle.Proof) { onUpgrade(p, func() { p.Upgrade.Signature = flip(p.Upgrade.Signature) }) },
		"length":    func(p *merkle.Proof) { onUpgrade(p, func() { p.Upgrade.Length-- }) },
		"manifest":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(1)
			m.append(testBlocks(0, 32, 50)...)
			b := &bent{crooked{m, func(*merkle.Proof) {}}, m.manifest}
			if bend != nil {
				b.bend = bend
			} else {
				b.other = newMemory(2).manifest
			}
			in := newInbox()
			sh := newShelf()
			buyer := newBuyer(t, m, in, func(c *BuyerConfig) { c.Store = sh })
			l := connect(t, sale{feed: m, buyer: buyer, config: func(c *SellerConfig) { c.Feed, c.Blocks = b, b }})
			l.wg.Wait()
			if !errors.Is(l.errB, ErrInvalid) {
				t.Errorf("the buyer says %v", l.errB)
			}
			for i, x := range in.blocks {
				if !bytes.Equal(x, m.blocks[i]) || i >= 20 || !bytes.Equal(sh.blocks[i], x) {
					t.Errorf("block %d was taken", i)
				}
			}
			if head, cursor := buyer.Head(); cursor > 20 || head.Length > 0 && head.TreeHash != m.tree.Hash() {
				t.Errorf("head %+v, cursor %d", head, cursor)
			}
		})
	}
}

func onBlock(p *merkle.Proof, i uint64, f func()) {
	if p.Block != nil && p.Block.Index == i {
		f()
	}
}

func setBlock(p *merkle.Proof, i uint64, f func([]byte) []byte) {
	onBlock(p, i, func() { p.Block.Value = f(p.Block.Value) })
}

func onUpgrade(p *merkle.Proof, f func()) {
	if p.Upgrade != nil {
		f()
	}
}

// TestWrongCapability: who does not know the feed's key gets nothing.
func TestWrongCapability(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 10, 50)...)
	tp := newTape(t)
	x := mux.New(tp, mux.Config{})
	s := newSeller(t, SellerConfig{Session: Session{Mux: x}, Feed: m, Blocks: blocks{m}, Meter: meterFunc(func(i uint64, _ int) bool {
		t.Errorf("block %d is passed", i)
		return true
	})})
	h := (*sellerHandler)(s)
	for _, hello := range [][]byte{
		message.Handshake{Seeks: true}.Append(nil),
		message.Handshake{Capability: message.Capability(m.Key(), [64]byte{}, false)}.Append(nil), // our own role
		message.Handshake{Capability: message.Capability(m.Key(), [64]byte{1}, true)}.Append(nil), // of another connection
	} {
		if err := h.Opened(hello); !errors.Is(err, ErrCapability) {
			t.Errorf("%x: %v", hello, err)
		}
	}
	if err := h.Opened([]byte{1, 2}); !errors.Is(err, ErrMessage) {
		t.Error(err)
	}
}

// TestFlood: one who asks for more than may wait is cut off, and one who asks
// for what cannot be.
func TestFlood(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 10, 50)...)
	for name, c := range map[string]struct {
		request func(i uint64) message.Request
		produce bool
	}{
		"too many": {func(i uint64) message.Request {
			r := message.Request{ID: i + 1}
			r.Block = &merkle.NodeRequest{Index: 3}
			return r
		}, false},
		"impossible": {func(i uint64) message.Request {
			r := message.Request{ID: i + 1}
			r.Hash = &merkle.NodeRequest{Index: 1 << 40}
			return r
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			tp := newTape(t)
			x := mux.New(tp, mux.Config{})
			s := newSeller(t, SellerConfig{Session: Session{Mux: x}, Feed: m, Blocks: blocks{m}})
			h := (*sellerHandler)(s)
			if err := h.Message(message.TypeSync, message.Sync{}.Append(nil)); err != nil {
				t.Fatal(err)
			}
			for i := range uint64(maxRequests + 10) {
				r := c.request(i)
				if err := h.Message(message.TypeRequest, r.Append(nil)); errors.Is(err, ErrFlood) {
					return
				} else if err != nil {
					t.Fatal(err)
				}
				if c.produce {
					var b mux.Batch
					h.Produce(&b)
					if s.ended || !s.reopened.IsZero() {
						return // what comes next is answered some seconds later
					}
				}
			}
			t.Error("it goes on for ever")
		})
	}
}

// TestToldFirst: who asks for the length that it was told of, and gets a longer one as the
// log grew meanwhile, is told of that first. A stock buyer that is not may never say how
// long its log is, and waits for ever.
func TestToldFirst(t *testing.T) {
	m := newMemory(1)
	m.append(testBlocks(0, 10, 50)...)
	s := meet(t, m, blocks{m}, &Uplink{}, 0, nil)
	var told, got uint64
	s.on = func(typ uint64, b []byte) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch typ {
		case message.TypeSync:
			x, _, err := message.ParseSync(b)
			if err != nil {
				t.Error(err)
			}
			told = x.Length
		case message.TypeData:
			x, _, err := message.ParseData(b)
			if err != nil {
				t.Error(err)
			}
			if got = x.Proof.Upgrade.Start + x.Proof.Upgrade.Length; got+uint64(len(x.Proof.Upgrade.Additional)) <= 10 || told < 11 {
				t.Errorf("data up to %d with %d more, told of %d", got, len(x.Proof.Upgrade.Additional), told)
			}
		}
		s.cond.Broadcast()
	}
	s.sync(0, 0)
	s.wait(func() bool { return told == 10 })
	m.append(testBlock(10, 50))
	r := message.Request{ID: 1, Request: merkle.Request{Upgrade: &merkle.UpgradeRequest{Length: 10}}}
	s.send(message.TypeRequest, r.Append(nil))
	s.wait(func() bool { return got > 0 })
}
