package cashier

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/storage/db"
)

var (
	sequences = flag.Int("sequences", 20_000, "how many random sequences TestModel runs")
	modelSeed = flag.Uint64("seed", 1, "the first seed of TestModel")
)

// model is what balances should be: 50 lines against which all else is held.
type model struct {
	asked   map[[32]byte]asked // invoices of ours, by hash
	now     map[byte]account   // as they are in memory
	durable map[byte]account   // as they are after a crash
}

type asked struct {
	buyer   byte
	wallet  int
	settled bool
}

type account struct{ paid, used uint64 }

// settles says what a wallet's word does: only that of the one that made the invoice, only
// that it is settled, only once, and only with the right preimage, if there is one. What
// was used until then is written down with it.
func (m *model) settles(wallet int, st payment.Status, rightPreimage bool) {
	v, ours := m.asked[st.Hash]
	if !ours || v.wallet != wallet || v.settled || st.State != payment.Settled || !rightPreimage {
		return
	}
	v.settled = true
	m.asked[st.Hash] = v
	a := m.now[v.buyer]
	a.paid += st.Paid
	m.now[v.buyer], m.durable[v.buyer] = a, a
}

// uses takes readings at 1 msat while there is credit.
func (m *model) uses(buyer byte, n uint64) {
	a := m.now[buyer]
	a.used += min(n, a.paid-a.used)
	m.now[buyer] = a
}

func (m *model) saves(buyer byte) { m.durable[buyer] = m.now[buyer] }

func (m *model) crashes() {
	m.now = map[byte]account{}
	for b, a := range m.durable {
		m.now[b] = a
	}
}

// play is one sequence.
type play struct {
	t      *testing.T
	r      *rand.Rand
	d      *desk
	model  model
	walls  []*puppet
	hashes [][32]byte
	sales  map[byte]*ledger.Sale
	next   map[byte]uint64 // block, by buyer
	index  uint64
}

// TestModel: whatever wallets say, in whatever order and however often, whenever the
// device crashes and however its clock jumps: balances are those of the model.
func TestModel(t *testing.T) {
	dir := t.TempDir()
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() { // a million on a disk take their time
		if dir, err = os.MkdirTemp("/dev/shm", "model-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	const perFile = 8
	for n := 0; n < *sequences; n += perFile {
		base, err := db.Open(filepath.Join(dir, "edge.db"), 256<<20, false)
		if err != nil {
			t.Fatal(err)
		}
		for i := n; i < min(n+perFile, *sequences); i++ {
			seed := *modelSeed + uint64(i)
			p := &play{t: t, r: rand.New(rand.NewPCG(seed, 5)), index: seed, d: &desk{t: t, db: base, told: make(chan ledger.Row, 100)}}
			p.run()
			if t.Failed() {
				t.Fatalf("-seed %d -sequences 1", seed)
			}
		}
		if err := base.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, "edge.db")); err != nil {
			t.Fatal(err)
		}
	}
}

// open begins anew, as after a crash: what was in memory is gone.
func (p *play) open() {
	var err error
	if p.d.books, err = ledger.New(ledger.Config{DB: p.d.db, Mono: func() time.Duration { return 0 }}); err != nil {
		p.t.Fatal(err)
	}
	p.d.books.Register("air", ledger.Offer{})
	if p.d.c, err = New(Config{Ledger: p.d.books, Gateways: []payment.Gateway{p.walls[0], p.walls[1]}, Now: func() time.Time { return p.d.now }}); err != nil {
		p.t.Fatal(err)
	}
	if err := p.d.c.Identify(context.Background()); err != nil {
		p.t.Fatal(err)
	}
	p.d.c.Subscribe("air", func(ledger.Row) {})
	p.sales = map[byte]*ledger.Sale{}
}

// buyer returns a buyer's key, which is another one in each sequence.
func (p *play) buyer(b byte) [32]byte {
	return [32]byte{b, byte(p.index), byte(p.index >> 8), byte(p.index >> 16), byte(p.index >> 24)}
}

func (p *play) sale(b byte) *ledger.Sale {
	if p.sales[b] == nil {
		s, err := p.d.books.Sale("air", p.buyer(b))
		if err != nil {
			p.t.Fatal(err)
		}
		p.sales[b] = s
	}
	return p.sales[b]
}

func (p *play) run() {
	p.d.now = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	p.walls = []*puppet{newPuppet("a"), newPuppet("b")}
	for _, w := range p.walls {
		w.n = p.index << 20
	}
	p.model = model{asked: map[[32]byte]asked{}, now: map[byte]account{}, durable: map[byte]account{}}
	p.next = map[byte]uint64{}
	p.open()
	for range 4 + p.r.IntN(12) {
		p.step()
	}
	for b := range byte(3) {
		p.compare(b)
	}
	p.open()
	p.model.crashes()
	for b := range byte(3) {
		p.compare(b)
	}
}

// step does something at random.
func (p *play) step() {
	b := byte(p.r.IntN(3))
	ctx := context.Background()
	switch p.r.IntN(12) {
	case 0, 1, 2: // an invoice, by the first wallet or, if that fails, by the second
		wallet := p.r.IntN(2)
		if wallet == 1 {
			p.walls[0].fails = context.DeadlineExceeded
		}
		o := order(b, 1000+uint64(p.r.IntN(5))*1000)
		o.Buyer = p.buyer(b)
		r, err := p.d.c.Invoice(ctx, o)
		p.walls[0].fails = nil
		if err != nil {
			return // three are unpaid, or the clock is wrong
		}
		if r.Gateway == p.walls[1].name {
			wallet = 1
		} else {
			wallet = 0
		}
		if _, known := p.model.asked[r.Hash]; !known {
			p.model.asked[r.Hash] = asked{buyer: b, wallet: wallet}
			p.hashes = append(p.hashes, r.Hash)
		}
	case 3, 4, 5, 6: // a wallet says something, true or not
		st := payment.Status{Hash: [32]byte{7, byte(p.r.IntN(3))}, State: payment.State(p.r.IntN(4)), Paid: uint64(p.r.IntN(10_000))}
		if len(p.hashes) > 0 && p.r.IntN(8) > 0 {
			st.Hash = p.hashes[p.r.IntN(len(p.hashes))]
		}
		if p.r.IntN(2) == 0 {
			st.State = payment.Settled
		}
		right := true
		if p.r.IntN(4) == 0 {
			st.Preimage, right = &[32]byte{byte(p.r.IntN(200))}, false
		}
		wallet := p.r.IntN(2)
		if v, ok := p.model.asked[st.Hash]; ok && p.r.IntN(4) > 0 {
			wallet = v.wallet
		}
		if p.r.IntN(3) == 0 && p.model.asked[st.Hash].buyer != 0 { // it is looked up instead
			p.walls[wallet].say(st.Hash, st.State, st.Paid, st.Preimage)
			if v := p.model.asked[st.Hash]; v.wallet == wallet {
				p.d.c.Look(ctx, st.Hash) //nolint:errcheck // it may be unknown
				p.model.settles(wallet, st, right)
			}
			return
		}
		if err := p.d.c.take(p.d.c.wallets[wallet], st, "c"); err != nil {
			p.t.Errorf("%+v: %v", st, err)
		}
		p.model.settles(wallet, st, right)
	case 7: // blocks are delivered
		n := uint64(p.r.IntN(3000))
		for range 1 + p.r.IntN(3) {
			if p.sale(b).Admit(p.next[b], meter.Weight{Readings: n}) {
				p.next[b]++
				p.model.uses(b, n)
			}
		}
	case 8: // what was used is written down
		if p.sales[b] != nil {
			if err := p.sales[b].Close(); err != nil {
				p.t.Error(err)
			}
			delete(p.sales, b)
			p.model.saves(b)
		}
	case 9: // the power is cut
		p.open()
		p.model.crashes()
	case 10: // the clock jumps
		p.d.now = []time.Time{{}, time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC), time.Date(2027, 5, 5, 0, 0, 0, 0, time.UTC)}[p.r.IntN(4)]
	case 11: // what is open is looked up, and what is over given up
		for i, w := range p.d.c.wallets {
			for _, st := range p.walls[i].said {
				right := st.Preimage == nil
				if v, ok := p.model.asked[st.Hash]; ok && !v.settled && p.isOpen(st.Hash) {
					p.model.settles(i, st, right)
				}
			}
			if err := p.d.c.reconcile(ctx, w, 0); err != nil {
				p.t.Error(err)
			}
		}
	}
}

// isOpen tells whether the cashier would look an invoice up by itself.
func (p *play) isOpen(hash [32]byte) bool {
	_, open := p.d.c.open[hash]
	return open
}

// compare holds a buyer's balance against the model's.
func (p *play) compare(b byte) {
	p.t.Helper()
	st := p.sale(b).State()
	left := uint64(0)
	for _, l := range st.Lots {
		left += l.Msat()
	}
	if want := p.model.now[b]; st.Msat != want.paid || left != want.paid-want.used {
		p.t.Errorf("buyer %d: %d msat paid and %d left, want %+v", b, st.Msat, left, want)
	}
}
