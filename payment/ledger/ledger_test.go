package ledger

import (
	"encoding/binary"
	"encoding/csv"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dazaar-edge/payment/meter"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/storage/db"
)

func openDB(t testing.TB) *db.DB {
	t.Helper()
	d, err := db.Open(filepath.Join(t.TempDir(), "edge.db"), 64<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func books(t testing.TB, d *db.DB) *Ledger {
	t.Helper()
	l, err := New(Config{DB: d})
	if err != nil {
		t.Fatal(err)
	}
	l.Register("air", Offer{})
	return l
}

// marks are those of a log with room for three: set with a commit that may fail,
// or be torn off.
type marks struct{ durable, set map[string][]byte }

func (m *marks) Mark(key string) []byte { return m.durable[key] }
func (m *marks) RemoveMark(key string)  { delete(m.set, key); delete(m.durable, key) }

func (m *marks) put(key string, value []byte) error {
	if len(value) > maxMark {
		panic("a mark that is too large")
	}
	if _, ok := m.set[key]; !ok && len(m.set) == 3 {
		return errors.New("full")
	}
	m.set[key] = value
	return nil
}

// commit is one of the log, which fails at times.
func (m *marks) commit(l *Ledger, rng *rand.Rand) error {
	m.set = maps.Clone(m.durable)
	if err := l.Ride("air", m.put); err != nil {
		return err
	}
	if rng.IntN(4) == 0 {
		err := errors.New("no")
		l.Landed("air", err)
		return err
	}
	m.durable = m.set
	l.Landed("air", nil)
	return nil
}

func hash(n int) (h jcs.Hex32) {
	binary.LittleEndian.PutUint64(h[:], uint64(n))
	return h
}

// perReading costs 1 msat a reading.
var perReading = meter.Price{Unit: meter.Readings, Interval: 1, Amount: 1, History: 1}

func row(n int, buyer byte, msat uint64) Row {
	return Row{
		Hash: hash(n), Gateway: "test", Offer: "air", Buyer: jcs.Hex32{buyer}, Request: fmt.Sprint("lnbcrt", n), Msat: msat, Price: perReading,
		Made: time.Unix(1e9, 0).UTC(), Expires: time.Unix(1e9+600, 0).UTC(),
	}
}

// TestSettle credits what came, once, to whom it was for, whatever was asked for
// and however often it is told.
func TestSettle(t *testing.T) {
	d := openDB(t)
	l := books(t, d)
	for i, r := range []Row{row(1, 1, 100), row(2, 1, 200), row(3, 2, 300)} {
		if err := l.Issue(r); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := l.Issue(row(2, 9, 1)); !errors.Is(err, ErrDuplicate) {
		t.Error(err)
	}
	if err := l.Expire(hash(2)); err != nil {
		t.Fatal(err)
	}
	at := time.Unix(1e9+700, 0).UTC()
	settle := func(n int, msat uint64, cursor string) (bool, error) {
		_, credited, err := l.Settle(Payment{Hash: hash(n), Msat: msat, At: at, Gateway: "test", Cursor: cursor})
		return credited, err
	}
	for _, c := range []struct {
		n        int
		msat     uint64
		credited bool
		err      error
	}{
		{1, 100, true, nil}, {1, 100, false, nil}, {1, 5000, false, nil},
		{2, 350, true, nil}, // late, and more than was asked for
		{3, 299, true, nil}, {77, 1, false, ErrUnknown},
	} {
		if credited, err := settle(c.n, c.msat, fmt.Sprint("at ", c.n)); credited != c.credited || !errors.Is(err, c.err) {
			t.Errorf("invoice %d: %v, %v", c.n, credited, err)
		}
		if cursor, err := l.Cursor("test"); err != nil || cursor != fmt.Sprint("at ", c.n) {
			t.Errorf("cursor %q, %v", cursor, err)
		}
	}
	if err := l.Expire(hash(1)); err != nil { // too late
		t.Fatal(err)
	}
	l = books(t, d) // all of it is durable
	for buyer, want := range map[byte]uint64{1: 450, 2: 299, 3: 0} {
		s, err := l.Sale("air", [32]byte{buyer})
		if err != nil {
			t.Fatal(err)
		}
		st := s.State()
		if got := units(&st); got != want {
			t.Errorf("buyer %d has %d, want %d", buyer, got, want)
		}
		s.Close()
	}
	if other, err := l.Sale("water", [32]byte{1}); err != nil || len(other.State().Lots) > 0 {
		t.Error("credit of one offer is another's", err)
	}
	r, err := l.Row(hash(2))
	want := row(2, 1, 200)
	want.State, want.Paid, want.SettledAt = Settled, 350, &at
	if err != nil || fmt.Sprintf("%+v", r.SettledAt) != fmt.Sprintf("%+v", want.SettledAt) || r.Paid != 350 || r.State != Settled || r.Price != perReading || r.Msat != 200 {
		t.Errorf("%+v, %v", r, err)
	}
	n := 0
	if err := l.Rows(func(r Row, err error) bool { n++; return err == nil && r.State == Settled }); err != nil || n != 3 {
		t.Error(n, err)
	}
	if _, err := l.Row(hash(4)); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func units(s *meter.State) (n uint64) {
	for _, l := range s.Lots {
		n += l.Units()
	}
	return n
}

// TestCrashes: payments, told of twice and late, blocks and checkpoints at random,
// with crashes at any moment. In the end each buyer got what it paid for, and at most
// what was sent since the last checkpoint before each crash once more: not a unit is
// lost or doubled.
func TestCrashes(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		d := openDB(t)
		l := books(t, d)
		m := &marks{durable: map[string][]byte{}}
		l.Register("air", Offer{Marks: m})
		const buyers = 5
		var paid, got, again, since [buyers]uint64
		var open [buyers]*Sale
		var issued []Row
		next := uint64(0)
		use := func(b int) *Sale {
			if open[b] == nil {
				s, err := l.Sale("air", [32]byte{byte(b)})
				if err != nil {
					t.Fatal(err)
				}
				open[b] = s
			}
			return open[b]
		}
		for range 400 {
			b := rng.IntN(buyers)
			switch rng.IntN(13) {
			case 0:
				r := row(len(issued)+1, byte(b), 1+rng.Uint64N(1000))
				if err := l.Issue(r); err != nil {
					t.Fatal(err)
				}
				issued = append(issued, r)
			case 1, 2:
				if len(issued) == 0 {
					continue
				}
				r := issued[rng.IntN(len(issued))]
				_, credited, err := l.Settle(Payment{Hash: r.Hash, Msat: r.Msat, At: time.Unix(2e9, 0)})
				if err != nil {
					t.Fatal(err)
				}
				if credited {
					paid[r.Buyer[0]] += r.Msat
					since[r.Buyer[0]] = 0 // it is a checkpoint, too
				}
			case 3:
				if err := use(b).toDatabase(); err != nil {
					t.Fatal(err)
				}
				since[b] = 0
			case 4:
				if open[b] != nil {
					if err := open[b].Close(); err != nil {
						t.Fatal(err)
					}
					open[b], since[b] = nil, 0
				}
			case 5: // the process is gone, with all that was in memory
				l, open = books(t, d), [buyers]*Sale{}
				l.Register("air", Offer{Marks: m})
				for b := range since {
					again[b] += since[b]
				}
				since = [buyers]uint64{}
			case 6:
				if m.commit(l, rng) == nil {
					since = [buyers]uint64{}
				}
			default:
				n := rng.Uint64N(60)
				next++ // no block comes twice, so none is free
				if use(b).Admit(next, meter.Weight{Readings: n, Bytes: 10 * n}) {
					got[b] += n
					since[b] += n
				}
			}
		}
		for b := range buyers {
			for next++; use(b).Admit(next, meter.Weight{Readings: 1, Bytes: 10}); next++ {
				got[b]++
			}
			// A commit that failed may have written what found no room in marks.
			if got[b] < paid[b] || got[b] > paid[b]+again[b] {
				t.Errorf("seed %d: buyer %d paid %d, and got %d; %d were sent since checkpoints before crashes", seed, b, paid[b], got[b], again[b])
			}
		}
	}
}

// TestParallel: blocks pass while payments come and checkpoints are written.
func TestParallel(t *testing.T) {
	l := books(t, openDB(t))
	s, err := l.Sale("air", [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := l.Issue(row(i+1, 1, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		defer close(done)
		for i := range 50 {
			for range 2 { // twice, as from a list and a stream
				if _, _, err := l.Settle(Payment{Hash: hash(i + 1), Msat: 1000}); err != nil {
					t.Error(err)
				}
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := s.toDatabase(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	got := uint64(0)
	for i := uint64(0); ; i++ {
		if s.Admit(i, meter.Weight{Readings: 1, Bytes: 1}) {
			got++
			continue
		}
		select {
		case <-done:
		default:
			continue
		}
		if !s.Admit(i, meter.Weight{Readings: 1, Bytes: 1}) {
			break
		}
		got++
	}
	wg.Wait()
	if got != 50_000 {
		t.Errorf("%d units of 50,000", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := l.Sale("air", [32]byte{1})
	if err != nil || len(again.State().Lots) > 0 {
		t.Error("credit is left over", err)
	}
}

// TestTooManyPrices: no invoice is made when credit of many prices is unspent.
func TestTooManyPrices(t *testing.T) {
	l := books(t, openDB(t))
	for i := range 100 {
		r := row(i+1, 1, 10)
		r.Price.Amount += uint64(i)
		if err := l.Issue(r); errors.Is(err, meter.ErrLots) {
			if i < meter.MaxLots/2 {
				t.Errorf("after %d prices", i)
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if _, credited, err := l.Settle(Payment{Hash: r.Hash, Msat: 10}); err != nil || !credited {
			t.Fatal(err)
		}
	}
	t.Error("100 prices have credit")
}

// TestChange is durable at once, or not at all.
func TestChange(t *testing.T) {
	d := openDB(t)
	l := books(t, d)
	s, err := l.Sale("air", [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	trial := meter.Trial{From: 7, Span: 60_000, Bytes: 64 << 10}
	if err := s.Change(func(m *meter.State) { m.Trial = trial; m.Begin(8, 9) }); err != nil {
		t.Fatal(err)
	}
	again, err := books(t, d).Sale("air", [32]byte{1})
	if st := again.State(); err != nil || st.Trial != trial || st.Start != 9 {
		t.Errorf("%+v, %v", st, err)
	}
	d.Close()
	if err := s.Change(func(m *meter.State) { m.Trial = meter.Trial{} }); err == nil || s.State().Trial != trial {
		t.Error("it was changed, and is not durable")
	}
}

// FuzzRecords reads any bytes as a row and as a meter.
func FuzzRecords(f *testing.F) {
	r := record{number: 3}
	r.state.Credit(perReading, 10) //nolint:errcheck // it is a price
	f.Add(r.encode())
	f.Add([]byte(`{"hash":"00","price":{"Unit":1,"Interval":1,"Amount":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := parseRecord(b); err == nil {
			if again, err := parseRecord(r.encode()); err != nil || again.number != r.number || !slices.Equal(again.state.Lots, r.state.Lots) {
				t.Errorf("%+v comes back as %+v, %v", r, again, err)
			}
		}
		if r, err := parseRow(b); err == nil && r.Price.Check() != nil {
			t.Error("an impossible price is read")
		}
	})
}

// TestClock: credit that runs by the clock does so while the books are open, whether
// its buyer is there or not, and from the payment on.
func TestClock(t *testing.T) {
	d := openDB(t)
	var now time.Duration
	open := func() *Ledger {
		l, err := New(Config{DB: d, Mono: func() time.Duration { return now }})
		if err != nil {
			t.Fatal(err)
		}
		l.Register("air", Offer{})
		return l
	}
	l := open()
	wall := Row{Hash: hash(1), Offer: "air", Buyer: jcs.Hex32{1}, Msat: 600, Price: meter.Price{Unit: meter.Wall, Interval: 1000, Amount: 1, History: 1}}
	if err := l.Issue(wall); err != nil {
		t.Fatal(err)
	}
	left := func(want uint64) {
		t.Helper()
		s, err := l.Sale("air", wall.Buyer)
		if err != nil {
			t.Fatal(err)
		}
		st := s.State()
		if got := units(&st); got != want || st.Dry() != (want == 0) {
			t.Errorf("%d ms left, want %d", got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	now += time.Hour
	if _, _, err := l.Settle(Payment{Hash: hash(1), Msat: 600}); err != nil {
		t.Fatal(err)
	}
	left(600_000)
	now += 100 * time.Second
	left(500_000)
	if err := l.Tick(0); err != nil {
		t.Fatal(err)
	}
	now += 1000 * time.Hour // it is off
	l = open()
	left(500_000)
	now += 499 * time.Second
	left(1000)
	now += 2 * time.Second
	left(0)
}

// TestBegin: the first payment says what is included, later ones do not.
func TestBegin(t *testing.T) {
	l := books(t, openDB(t))
	length := uint64(100)
	l.Register("air", Offer{Begin: func(h History, _ time.Time, _ bool) (uint64, uint64) { return length - uint64(h), length }})
	for i, want := range [...][2]uint64{{60, 100}, {60, 100}} {
		r := row(i+1, 1, 10)
		r.History = 40
		if err := l.Issue(r); err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.Settle(Payment{Hash: r.Hash, Msat: 10}); err != nil {
			t.Fatal(err)
		}
		s, err := l.Sale("air", r.Buyer)
		if err != nil {
			t.Fatal(err)
		}
		if st := s.State(); !st.Begun || st.From != want[0] || st.Start != want[1] {
			t.Errorf("%+v", st)
		}
		if s.Admit(59, meter.Weight{Readings: 1}) || !s.Admit(60, meter.Weight{Readings: 1}) {
			t.Error("what is not included passes, or what is does not")
		}
		length += 100
	}
}

// toDatabase makes durable what was charged, without the log's commits.
func (s *Sale) toDatabase() error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	return s.checkpoint()
}

// TestS11: what was used and not yet written down when the power was cut is the buyer's;
// what rode on a commit of the log is not.
func TestS11(t *testing.T) {
	d, m := openDB(t), &marks{durable: map[string][]byte{}}
	open := func() (*Ledger, *Sale) {
		l := books(t, d)
		l.Register("air", Offer{Marks: m})
		s, err := l.Sale("air", [32]byte{1})
		if err != nil {
			t.Fatal(err)
		}
		return l, s
	}
	left := func(s *Sale) uint64 { st := s.State(); return units(&st) }
	l, s := open()
	if err := l.Issue(row(1, 1, 100)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.Settle(Payment{Hash: hash(1), Msat: 100}); err != nil {
		t.Fatal(err)
	}
	serve := func(s *Sale, from uint64) {
		for i := range uint64(10) {
			if !s.Admit(from+i, meter.Weight{Readings: 1}) {
				t.Fatal("it is not admitted")
			}
		}
	}
	serve(s, 0)
	if left(s) != 90 {
		t.Errorf("%d left", left(s))
	}
	if _, s = open(); left(s) != 100 { // the power was cut
		t.Errorf("%d left", left(s))
	}
	l, s = open()
	serve(s, 0)
	m.set = maps.Clone(m.durable)
	if err := l.Ride("air", m.put); err != nil {
		t.Fatal(err)
	}
	m.durable = m.set
	l.Landed("air", nil)
	serve(s, 10)
	if _, s = open(); left(s) != 90 {
		t.Errorf("%d left", left(s))
	}
}

// TestExport: what is printed for other programs, and what came in on which day.
func TestExport(t *testing.T) {
	at := func(text string) *time.Time {
		v, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return &v
	}
	rows := []Row{row(3, 1, 1000), row(1, 1, 2000), row(2, 2, 3000), row(4, 2, 9000)}
	for i, when := range []string{"2026-11-21T23:59:59Z", "2026-11-21T00:00:00Z", "2026-11-22T01:00:00+02:00"} {
		rows[i].State, rows[i].Paid, rows[i].SettledAt = Settled, rows[i].Msat+1, at(when)
	}
	Sort(rows)
	got := Daily(rows)
	want := []Day{{"2026-11-21", "air", 3, 2, 6003}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	var b strings.Builder
	if err := WriteCSV(&b, rows); err != nil {
		t.Fatal(err)
	}
	lines, err := csv.NewReader(strings.NewReader(b.String())).ReadAll()
	if err != nil || len(lines) != 5 || lines[0][0] != "made" || lines[1][6] != "2001" || lines[4][1] != "" {
		t.Errorf("%q, %v", lines, err)
	}
}
