//go:build interop

package interop

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate"
)

// follow opens a stock core for key and replicates it from the shop.
const follow = `
	s.c = await s.core(a.dir || s.tmp(), Buffer.from(a.key, 'hex'))
	s.stream = await s.dial(a.port)
	s.replicate(s.c, s.stream)
	await s.c.update({ wait: true })
`

// all waits until the core has every block and returns what it is.
const all = `
	await s.until(() => s.c.length >= a.length)
	await s.c.download({ start: a.start || 0, end: a.length }).done()
	const h = s.require('crypto').createHash('sha256')
	for (let i = a.start || 0; i < a.length; i++) h.update(await s.c.get(i, { wait: false }))
	return { length: s.c.length, fork: s.c.fork, digest: h.digest('hex'), treeHash: s.hex(await s.c.treeHash()), errors: s.errors }
`

type state struct {
	Length, Fork     uint64
	Digest, TreeHash string
	Errors           []string
}

// check compares what a stock buyer has with the log.
func (s *shop) check(got state, start uint64, fork uint64) {
	s.t.Helper()
	h := sha256.New()
	head := s.log.Head()
	for i := start; i < head.Length; i++ {
		b, _, err := s.log.Get(i)
		if err != nil {
			s.t.Fatal(err)
		}
		h.Write(b)
	}
	want := state{Length: head.Length, Fork: fork, Digest: hex.EncodeToString(h.Sum(nil)), TreeHash: hex.EncodeToString(head.TreeHash[:])}
	if got.Length != want.Length || got.Fork != want.Fork || got.Digest != want.Digest || got.TreeHash != want.TreeHash || len(got.Errors) > 0 {
		s.t.Errorf("buyer has %+v, want %+v", got, want)
	}
}

func (s *shop) args(key string, more ...any) map[string]any {
	m := map[string]any{"key": key, "port": s.port, "length": s.log.Head().Length}
	for i := 0; i+1 < len(more); i += 2 {
		m[more[i].(string)] = more[i+1]
	}
	return m
}

// TestCorestore: 20 rekeyed feeds over one connection to a stock corestore.
func TestCorestore(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.fill(sizes(300, 64)...)
	var keys []string
	for i := range byte(20) {
		keys = append(keys, s.rekey(i+1))
	}
	p := startPeer(t)
	var got []state
	p.do(`
		const store = new s.Corestore(s.tmp())
		const stream = await s.dial(a.port)
		store.replicate(stream)
		return await Promise.all(a.keys.map(async (key) => {
			const c = store.get({ key: Buffer.from(key, 'hex') })
			await c.ready()
			await c.update({ wait: true })
			await c.download({ start: 0, end: c.length }).done()
			const h = s.require('crypto').createHash('sha256')
			for (let i = 0; i < c.length; i++) h.update(await c.get(i, { wait: false }))
			return { length: c.length, fork: c.fork, digest: h.digest('hex'), treeHash: s.hex(await c.treeHash()), errors: s.errors }
		}))
	`, map[string]any{"keys": keys, "port": s.port}, &got)
	if len(got) != 20 {
		t.Fatal(len(got))
	}
	for _, g := range got {
		s.check(g, 0, 0)
	}
}

// TestLive: 200 blocks a second are followed, by one who downloads and by one
// who gets.
func TestLive(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.fill(sizes(10, 64)...)
	k := s.rekey(1)
	p := startPeer(t)
	p.do(follow+`s.c.download({ start: 0, end: -1 })`, s.args(k), nil)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		<-tick.C
		s.fill(64)
	}
	var got state
	p.do(`
		await s.until(() => s.c.contiguousLength >= a.length)
	`+all, s.args(k), &got)
	s.check(got, 0, 0)
	if st := s.seller(k).Stats(); st.NoData > 0 {
		t.Errorf("%+v", st)
	}
}

// TestRandom: single blocks, seeks, and a seek before any length is known.
func TestRandom(t *testing.T) {
	s := newShop(t, "", 1<<30)
	rng := rand.New(rand.NewPCG(5, 5))
	var all []int
	for range 1000 {
		all = append(all, rng.IntN(300))
	}
	s.fill(all...)
	k := s.rekey(1)
	p := startPeer(t)
	type query struct{ Bytes, Block, Rest int }
	var queries []query
	sum := 0
	for i, n := range all {
		if n > 0 && i%37 == 0 {
			queries = append(queries, query{sum + n/2, i, n / 2})
		}
		sum += n
	}
	var bad []string
	p.do(follow+`
		const bad = []
		for (let n = 0; n < 60; n++) {
			const i = Math.floor(Math.random() * s.c.length)
			if (!s.block(i, a.sizes[i]).equals(await s.c.get(i))) bad.push('block ' + i)
		}
		for (const q of a.queries) {
			const r = await s.c.seek(q.Bytes)
			if (!r || r[0] !== q.Block || r[1] !== q.Rest) bad.push('seek ' + q.Bytes + ' is ' + JSON.stringify(r) + ', want ' + q.Block + ' ' + q.Rest)
		}
		const fresh = await s.core(s.tmp(), Buffer.from(a.key2, 'hex'))
		s.replicate(fresh, s.stream)
		const r = await fresh.seek(a.queries[3].Bytes)
		if (!r || r[0] !== a.queries[3].Block) bad.push('first seek ' + JSON.stringify(r))
		return bad.concat(s.errors)
	`, s.args(k, "sizes", all, "queries", queries, "key2", s.rekey(2)), &bad)
	if len(bad) > 0 {
		t.Error(bad)
	}
}

// TestKilled: a stock buyer is killed in the middle, again and again, and goes
// on.
func TestKilled(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.fill(sizes(20000, 64)...)
	k := s.rekey(1)
	dir := t.TempDir()
	for i := range 4 {
		p := startPeer(t)
		p.do(follow+`
			s.c.download({ start: 0, end: -1 })
			await s.until(() => s.c.contiguousLength >= a.some)
		`, s.args(k, "dir", dir, "some", 300*(i+1)), nil)
		p.kill()
	}
	p := startPeer(t)
	var got state
	p.do(follow+all, s.args(k, "dir", dir), &got)
	s.check(got, 0, 0)
}

// TestHundredThousand blocks to a stock buyer.
func TestHundredThousand(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.fill(sizes(100000, 64)...)
	k := s.rekey(1)
	p := startPeer(t)
	var got state
	p.do(follow+all, s.args(k), &got)
	s.check(got, 0, 0)
}

// TestPauses: 20 times the buyer is paused with the pipe full.
func TestPauses(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.rate = 512 << 10 // so that the pipe is full
	s.fill(sizes(9000, 64)...)
	k := s.rekey(1)
	p := startPeer(t)
	p.do(follow+`s.done = s.c.download({ start: 0, end: a.length }).done()`, s.args(k), nil)
	x := s.seller(k)
	for i := range 20 {
		for st := x.Stats(); st.Blocks < uint64((i+1)*400) || st.Parked < 10; st = x.Stats() {
			time.Sleep(100 * time.Microsecond)
		}
		x.Pause()
		before := x.Stats()
		time.Sleep(20 * time.Millisecond) // in which nothing may happen
		if after := x.Stats(); after.Blocks != before.Blocks || after.Parked == 0 {
			t.Fatalf("cycle %d: %d blocks while paused, %d requests are parked", i, after.Blocks-before.Blocks, after.Parked)
		}
		x.Resume()
	}
	var got state
	p.do(`await s.done
	`+all, s.args(k), &got)
	s.check(got, 0, 0)
	if st := x.Stats(); st.NoData > 0 {
		t.Errorf("%+v", st)
	}
}

// TestRevoked: at 200 random moments; what is on its way then is bounded, the
// buyer does not loop, and a new grant goes on.
func TestRevoked(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.rate = 4 << 20 // a quarter of a second of this is the bound
	bound := uint64(1 << 20)
	s.fill(sizes(40000, 300)...)
	p := startPeer(t)
	rng := rand.New(rand.NewPCG(7, 7))
	p.do(`s.stream = await s.dial(a.port)`, map[string]any{"port": s.port}, nil)
	var worst uint64
	for i := range 200 {
		k := s.rekey(byte(i))
		p.do(`
			if (s.c) await s.c.close()
			s.c = await s.core(s.tmp(), Buffer.from(a.key, 'hex'))
			s.replicate(s.c, s.stream)
			s.got = 0
			s.c.on('download', (i, n) => { s.got += n })
			await s.c.update({ wait: true })
			s.c.download({ start: 0, end: -1 })
		`, s.args(k), nil)
		x := s.seller(k)
		for target := rng.Uint64N(60); x.Stats().Blocks < target; {
			time.Sleep(100 * time.Microsecond)
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
		s.mu.Lock()
		delete(s.feeds, discovery(k)) // no new channel for it
		s.mu.Unlock()
		conn := s.conns[0]
		x.Revoke()
		st := x.Stats()
		backlog, _ := conn.Backlog()
		worst = max(worst, uint64(backlog))
		if after := x.Stats(); after.Blocks != st.Blocks {
			t.Fatalf("%d blocks after the revocation", after.Blocks-st.Blocks)
		}
		if uint64(backlog) > bound {
			t.Errorf("revocation %d: %d bytes on their way", i, backlog)
		}
		var got uint64
		p.do(`await s.until(() => s.c.peers.length === 0); return s.got`, nil, &got)
		if got > st.Bytes {
			t.Fatalf("the buyer got %d bytes, %d were framed before the revocation", got, st.Bytes)
		}
	}
	t.Logf("at most %d bytes on their way", worst)
	var errs []string
	p.do(`return s.errors.concat(s.stream.destroyed ? ['stream is closed'] : [])`, nil, &errs)
	if len(errs) > 0 {
		t.Error(errs)
	}
	// Granted again on the same connection, the last one goes on.
	k := s.rekey(199)
	p.do(`s.done = s.c.download({ start: 0, end: 1000 }).done()`, nil, nil)
	s.mu.Lock()
	s.sell(s.session, discovery(k))
	s.mu.Unlock()
	p.do(`await s.done`, nil, nil)
}

func discovery(key string) merkle.Hash {
	b, _ := hex.DecodeString(key)
	return merkle.DiscoveryKey(merkle.Hash(b))
}

// TestPrunedAndWindowed: what is not there is not waited for.
func TestPrunedAndWindowed(t *testing.T) {
	s := newShop(t, "", 4<<20)
	for s.log.Head().First < 3000 {
		s.fill(sizes(1000, 500)...)
	}
	first := s.log.Head().First
	k := s.rekey(1)
	p := startPeer(t)
	var got state
	p.do(follow+all, s.args(k, "start", first), &got)
	s.check(got, first, 0)
	// Live, while old blocks are dropped.
	p.do(`s.c.download({ start: a.start, end: -1 })`, s.args(k, "start", first), nil)
	for s.log.Head().First < first+2000 {
		s.fill(sizes(100, 500)...)
	}
	length := s.log.Head().Length
	p.do(`await s.until(() => s.c.length >= a.length); await s.c.get(a.length - 1)`, s.args(k), nil)
	// A window.
	k2 := s.rekey(2)
	window := length - 500
	s.config = func(c *replicate.SellerConfig) { c.First = window }
	var served int
	p.do(`
		s.c = await s.core(s.tmp(), Buffer.from(a.key, 'hex'))
		s.replicate(s.c, s.stream)
		await s.c.update({ wait: true })
		let timedOut = 0
		for (const i of [a.start - 1, a.start - 400]) await s.c.get(i, { timeout: 200 }).catch(() => timedOut++)
		if (timedOut !== 2) throw new Error('a block outside the window came')
		await s.c.download({ start: a.start, end: a.length }).done()
		let n = 0
		for (let i = a.start; i < a.length; i++) n += (await s.c.get(i, { wait: false })) ? 1 : 0
		return n
	`, s.args(k2, "start", window), &served)
	if served != 500 {
		t.Errorf("%d blocks", served)
	}
	if st := s.seller(k2).Stats(); st.Blocks != 500 {
		t.Errorf("%+v", st)
	}
}

// TestSellerComesBack: it lost its tail, came back diverged, or from an old
// image. No stock buyer freezes, full or sparse, and all go on.
func TestSellerComesBack(t *testing.T) {
	for _, c := range []struct {
		name           string
		had, kept, now int
		first          uint64 // of the window
		sparse         bool
	}{
		{name: "lost tail", had: 100, kept: 60, now: 60},
		{name: "diverged and shorter", had: 100, kept: 60, now: 80},
		{name: "diverged, same length", had: 100, kept: 60, now: 100},
		{name: "diverged and longer", had: 100, kept: 60, now: 170},
		{name: "sparse, diverged", had: 100, kept: 60, now: 100, sparse: true},
		{name: "sparse, lost tail", had: 100, kept: 60, now: 60, sparse: true},
		{name: "nothing lost", had: 100, kept: 100, now: 130},
		{name: "window, diverged", had: 100, kept: 60, now: 120, first: 40},
		{name: "window, parted before it", had: 100, kept: 60, now: 120, first: 80},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newShop(t, "", 1<<30)
			s.config = func(x *replicate.SellerConfig) { x.First = c.first }
			s.fill(sizes(c.kept, 64)...)
			image := s.image()
			s.fill(sizes(c.had-c.kept, 65)...)
			k := s.rekey(1)
			p := startPeer(t)
			dir := t.TempDir()
			if c.sparse {
				p.do(follow+`for (let i = 0; i < a.length; i += 7) await s.c.get(i)`, s.args(k, "dir", dir), nil)
			} else {
				p.do(follow+all, s.args(k, "dir", dir, "start", c.first), nil)
			}
			s.restore(image)
			s.fill(sizes(c.now-c.kept, 66)...)
			if k2 := s.rekey(1); k2 != k {
				t.Fatal("another key")
			}
			// The same connection state as after a reconnect.
			p.do(`
				s.stream = await s.dial(a.port)
				s.replicate(s.c, s.stream)
			`, s.args(k), nil)
			fork := 1
			if c.kept == c.had {
				fork = 0
			}
			p.do(`await s.until(() => s.c.fork === a.fork && s.c.length >= a.length)`, s.args(k, "fork", fork), nil)
			s.fill(sizes(20, 67)...)
			var got state
			start := max(c.first, 0)
			p.do(`if (s.conflicts || s.c.core.header.frozen) throw new Error('frozen')
			`+all, s.args(k, "start", start), &got)
			s.check(got, start, uint64(fork))
			if !c.sparse && c.kept < c.had && c.first == 0 {
				if st := s.seller(k).Stats(); st.Recovered != uint64(c.had-c.kept) {
					t.Errorf("%d blocks were returned, %d were lost", st.Recovered, c.had-c.kept)
				}
			}
		})
	}
}

// TestPrunedFork: a log that dropped its beginning, lost its tail, and goes on.
func TestPrunedFork(t *testing.T) {
	s := newShop(t, "", 4<<20)
	for s.log.Head().First < 2000 {
		s.fill(sizes(1000, 500)...)
	}
	image := s.image()
	first := s.log.Head().First
	s.fill(sizes(100, 501)...)
	k := s.rekey(1)
	p := startPeer(t)
	p.do(follow+all, s.args(k, "start", first), nil)
	s.restore(image)
	s.fill(sizes(30, 502)...)
	s.rekey(1)
	p.do(`
		s.stream = await s.dial(a.port)
		s.replicate(s.c, s.stream)
		await s.until(() => s.c.fork === 1 && s.c.length >= a.length)
	`, s.args(k), nil)
	var got state
	p.do(all, s.args(k, "start", first), &got)
	s.check(got, first, 1)
}

// holed is a feed one of whose blocks is damaged.
type holed struct {
	replicate.Feed
	replicate.Blocks
	hole uint64
}

func (h *holed) Proof(req merkle.Request) (merkle.Proof, merkle.Head, error) {
	if req.Block != nil && req.Block.Index == h.hole {
		return merkle.Proof{}, merkle.Head{}, merkle.ErrMissing
	}
	return h.Feed.Proof(req)
}

func (h *holed) Read(i, levels uint64) ([]byte, []merkle.Node, error) {
	if i == h.hole {
		return nil, nil, merkle.ErrMissing
	}
	return h.Blocks.Read(i, levels)
}

// TestHole: a stock buyer that wants all gets all but a damaged block, goes on with
// what is appended, and does not ask for it without end.
func TestHole(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.fill(sizes(100, 64)...)
	s.config = func(c *replicate.SellerConfig) {
		h := &holed{c.Feed, c.Blocks, 7}
		c.Feed, c.Blocks = h, h
	}
	k := s.rekey(1)
	p := startPeer(t)
	rest := `await s.until(() => { for (let i = a.length - 100; i < a.length; i++) if (i !== 7 && !s.c.core.bitfield.get(i)) return false; return true })`
	p.do(follow+`s.c.download({ start: 0, end: -1 })
	`+rest, s.args(k), nil)
	s.fill(sizes(100, 64)...)
	p.do(rest+`
		if (s.errors.length) throw new Error(s.errors.join())
	`, s.args(k), nil)
	if st := s.seller(k).Stats(); st.NoData == 0 || st.NoData > 2*32 {
		t.Errorf("%+v", st)
	}
}

// liar is a feed that tells something else than it has.
type liar struct {
	*feed.Feed
	lie func(p *merkle.Proof)
}

func (l *liar) Proof(req merkle.Request) (merkle.Proof, merkle.Head, error) {
	p, h, err := l.Feed.Proof(req)
	if err == nil {
		l.lie(&p)
	}
	return p, h, err
}

type liarBlocks struct{ l *liar }

func (b liarBlocks) Release() {}
func (b liarBlocks) Read(i, levels uint64) ([]byte, []merkle.Node, error) {
	p, _, err := b.l.Proof(merkle.Request{Block: &merkle.NodeRequest{Index: i, Nodes: levels}})
	if err != nil {
		return nil, nil, err
	}
	return p.Block.Value, p.Block.Nodes, nil
}

// TestTampered: a stock buyer takes nothing that is not as it was signed.
func TestTampered(t *testing.T) {
	for name, lie := range map[string]func(p *merkle.Proof){
		"block": func(p *merkle.Proof) {
			if p.Block != nil {
				p.Block.Value = append([]byte(nil), append(p.Block.Value, 'x')...)
			}
		},
		"node": func(p *merkle.Proof) {
			if p.Block != nil && len(p.Block.Nodes) > 0 {
				p.Block.Nodes[0].Hash[3] ^= 1
			}
		},
		"signature": func(p *merkle.Proof) {
			if p.Upgrade != nil {
				p.Upgrade.Signature = append([]byte(nil), p.Upgrade.Signature...)
				p.Upgrade.Signature[9] ^= 1
			}
		},
		"root": func(p *merkle.Proof) {
			if p.Upgrade != nil && len(p.Upgrade.Nodes) > 0 {
				p.Upgrade.Nodes[0].Hash[0] ^= 1
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, "", 1<<30)
			s.fill(sizes(50, 64)...)
			s.config = func(c *replicate.SellerConfig) {
				l := &liar{c.Feed.(*feed.Feed), lie}
				c.Feed, c.Blocks = l, liarBlocks{l}
			}
			p := startPeer(t)
			var got struct {
				Blocks int
				Errors []string
			}
			p.do(`
				s.c = await s.core(s.tmp(), Buffer.from(a.key, 'hex'))
				s.stream = await s.dial(a.port)
				s.replicate(s.c, s.stream)
				s.c.download({ start: 0, end: a.length })
				await s.until(() => s.errors.length > 0)
				let blocks = 0
				for (let i = 0; i < a.length; i++) if (await s.c.has(i)) blocks++
				return { blocks, errors: s.errors }
			`, s.args(s.rekey(1)), &got)
			if len(got.Errors) == 0 || name != "node" && got.Blocks > 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// TestUnknown: a feed that is not sold, and a wrong capability.
func TestUnknown(t *testing.T) {
	s := newShop(t, "", 1<<30)
	s.fill(sizes(5, 64)...)
	k := s.rekey(1)
	p := startPeer(t)
	var got struct {
		Peers     int
		Destroyed bool
	}
	p.do(`
		const c = await s.core(s.tmp(), Buffer.alloc(32, 7))
		const stream = await s.dial(a.port)
		s.replicate(c, stream)
		await c.get(0, { timeout: 300 }).catch(() => {})
		return { peers: c.peers.length, destroyed: stream.destroyed }
	`, s.args(k), &got)
	if got.Peers != 0 || got.Destroyed {
		t.Errorf("unknown feed: %+v", got)
	}
	p.do(`
		const stream = await s.dial(a.port)
		const mux = new s.Protomux(stream)
		const ch = mux.createChannel({ protocol: 'hypercore/alpha', id: Buffer.from(a.id, 'hex'), handshake: s.require('compact-encoding').raw })
		ch.open(Buffer.concat([Buffer.from([1]), Buffer.alloc(32, 9)]))
		await s.until(() => stream.destroyed)
		return { destroyed: true }
	`, s.args(k, "id", fmt.Sprintf("%x", discovery(k))), &got)
}
