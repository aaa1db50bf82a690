package market

import (
	"bufio"
	"context"
	"crypto/ed25519"
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/edwards25519"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/archive"
	"dazaar-edge/market/client"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/replicate/message"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/storage/durable"
)

// report is what a shop in another process says of itself.
type report struct {
	Address string
	CPU     time.Duration // used so far
	RSS     int           // KiB
	Stats   Stats
	Feed    string // key of the feed of buyer 2
}

// TestShopProcess is no test: it is the other process.
func TestShopProcess(t *testing.T) {
	if os.Getenv("EDGE_SHOP") != "1" {
		t.Skip("it runs for other tests only")
	}
	s := newShop(t, func(c *OfferConfig) { c.Buyers = 1000 })
	s.append(200_000, 64)
	f, err := s.log.Rekey([32]byte(key(2)[32:]))
	if err != nil {
		t.Fatal(err)
	}
	k := f.Key()
	serveReports(t, func() report {
		return report{Address: s.address, Stats: s.offer.Stats(), Feed: hex.EncodeToString(k[:])}
	})
}

// serveReports answers on standard output until standard input ends.
func serveReports(t *testing.T, now func() report) {
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "memory" {
			debug.FreeOSMemory()
		}
		r := now()
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		r.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		fmt.Sscan(rest, &r.RSS) //nolint:errcheck // the test sees it
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("report %s\n", b)
	}
}

// otherShop is a shop in another process.
type otherShop struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

func startShop(t *testing.T, kind string) *otherShop {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^Test(Shop|Bare)Process$")
	cmd.Env = append(os.Environ(), "EDGE_SHOP="+kind)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait() //nolint:errcheck // it said what it had to
	})
	return &otherShop{t, in, bufio.NewScanner(out)}
}

// report asks how it is; for "memory" after all garbage was given back.
func (o *otherShop) report(about string) (r report) {
	o.t.Helper()
	fmt.Fprintln(o.in, about)
	for o.out.Scan() {
		if line, ok := strings.CutPrefix(o.out.Text(), "report "); ok {
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				o.t.Fatal(err)
			}
			return r
		}
	}
	o.t.Fatal("the shop is gone")
	return r
}

// stranger comes from an address of its own.
type stranger struct {
	rng  *rand.Rand
	to   string
	from net.IP
	feed merkle.Hash
	got  *atomic.Int64 // bytes of data messages
	in   *atomic.Int64 // handshakes that were finished
}

func (s *stranger) dial() (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: s.from}, Timeout: 5 * time.Second}
	return d.Dial("tcp", s.to)
}

// with dials and calls f.
func (s *stranger) with(f func(net.Conn)) {
	if c, err := s.dial(); err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second)) //nolint:errcheck // the test would hang
		f(c)
	}
}

// come does one of the things that strangers do.
func (s *stranger) come() { s.with(s.misbehave) }

func (s *stranger) misbehave(c net.Conn) {
	switch s.rng.IntN(4) {
	case 0:
		b := make([]byte, 1+s.rng.IntN(300))
		for i := range b {
			b[i] = byte(s.rng.Uint32())
		}
		c.Write(b)             //nolint:errcheck // the shop may have closed
		io.Copy(io.Discard, c) //nolint:errcheck // likewise
	case 1:
		h, err := noise.New(noise.Config{Pattern: noise.XX, Initiator: true, Static: key(9)})
		if err != nil {
			return
		}
		m, err := h.Write(make([]byte, 3), nil)
		if err != nil {
			return
		}
		m[0] = byte(len(m) - 3)
		c.Write(m) //nolint:errcheck // likewise
		c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		io.ReadFull(c, make([]byte, 3+96)) //nolint:errcheck // likewise
	default:
		s.handshake(c)
	}
}

// handshake shakes hands and asks for blocks of a feed that is another's.
func (s *stranger) handshake(raw net.Conn) {
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = byte(s.rng.Uint32())
	}
	c, err := secretstream.Client(context.Background(), raw, secretstream.Config{Static: ed25519.NewKeyFromSeed(seed)})
	if err != nil {
		return
	}
	s.in.Add(1)
	defer c.Close()
	m := mux.New(c, mux.Config{})
	id := merkle.DiscoveryKey(s.feed)
	h := &thief{s: s, m: m}
	ch, err := m.Open(mux.ChannelConfig{
		Protocol: message.Protocol, ID: id[:], Handler: h,
		Handshake: message.Handshake{Seeks: true, Capability: merkle.Hash{1}}.Append(nil),
	})
	if err != nil {
		return
	}
	// It does not wait until it is let in.
	ch.Send(0, message.Sync{Downloading: true}.Append(nil)) //nolint:errcheck // the shop may have closed
	for i := range uint64(20) {
		r := message.Request{ID: i + 1}
		r.Block = &merkle.NodeRequest{Index: i, Nodes: 3}
		ch.Send(1, r.Append(nil)) //nolint:errcheck // likewise
	}
	time.AfterFunc(200*time.Millisecond, m.Close)
	m.Run() //nolint:errcheck // it ends either way
}

// thief counts what it is given.
type thief struct {
	s *stranger
	m *mux.Mux
}

func (h *thief) Opened([]byte) error { return nil }
func (h *thief) Closed(error)        { h.m.Close() }
func (h *thief) Message(typ uint64, b []byte) error {
	if typ == 3 {
		h.s.got.Add(int64(len(b)))
	}
	return nil
}

// flood lets n strangers come, perSecond of them, from addresses that from makes.
func flood(r report, n, perSecond int, from func(i int) net.IP) (got, in int64) {
	var data, done atomic.Int64
	var feed merkle.Hash
	hex.Decode(feed[:], []byte(r.Feed)) //nolint:errcheck // one without a feed is asked for none
	var wg sync.WaitGroup
	start := time.Now()
	slots := make(chan struct{}, 200)
	for i := range n {
		time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))))
		slots <- struct{}{}
		wg.Go(func() {
			s := &stranger{rand.New(rand.NewPCG(uint64(i), 5)), r.Address, from(i), feed, &data, &done}
			s.come()
			<-slots
		})
	}
	wg.Wait()
	return data.Load(), done.Load()
}

func anywhere(i int) net.IP { return net.IPv4(127, byte(1+i%200), byte(i/200), byte(1+i%250)) }
func nearby(int) net.IP     { return net.IPv4(127, 0, 1, 1) }

// TestStrangers lets 10,000 strangers come: with garbage, with half a handshake,
// with a whole one and a capability that is not theirs.
func TestStrangers(t *testing.T) {
	o := startShop(t, "1")
	flood(o.report("memory"), 1000, 1000, anywhere) // what is made once is made
	before, start := o.report("memory"), time.Now()
	got, in := flood(before, 10_000, 1500, anywhere)
	after, took := o.report("memory"), time.Since(start)
	if got > 0 {
		t.Errorf("strangers got %d bytes of data", got)
	}
	a, b := after.Stats.Strangers, before.Stats.Strangers
	admitted, refused := a.Admitted-b.Admitted, a.Refused-b.Refused
	if limit := uint64(50*took.Seconds()) + 100; admitted > limit || admitted < limit/4 {
		t.Errorf("%d were admitted in %v, at most %d may be", admitted, took, limit)
	}
	if in == 0 || after.Stats.Buyers > 0 {
		t.Errorf("%d shook hands, %d became buyers", in, after.Stats.Buyers)
	}
	growth := after.RSS - before.RSS
	if growth > 2<<10 {
		t.Errorf("it grew by %d KiB", growth)
	}
	t.Logf("10,000 strangers in %v: %d admitted, %d refused, %d shook hands, 0 bytes of data; memory %+d KiB", took.Round(time.Second), admitted, refused, in, growth)
}

var unauthorised = flag.Int("unauthorised", 1500, "how many buyers without a right to anything come")

var quiet = flag.Bool("quiet", false, "nothing else runs on this machine: hold to the budget of CPU itself")

// TestStrangersCost measures what a stranger costs the seller, beside what the
// kernel takes for the same connections: a process that only accepts and resets,
// one that exchanges as many bytes, and one that also does the multiplications which
// no handshake can do without. The last is what the seller is held to, as all of it
// takes longer on a slower or a busy machine.
func TestStrangersCost(t *testing.T) {
	shop, bare, keys := startShop(t, "1"), startShop(t, "bare"), startShop(t, "keys")
	refusals := func(o *otherShop) (each time.Duration, n uint64) {
		before := o.report("")
		flood(before, 5000, 2000, nearby)
		after := o.report("")
		n = after.Stats.Strangers.Refused - before.Stats.Strangers.Refused
		return (after.CPU - before.CPU) / time.Duration(n), n
	}
	handshakes := func(o *otherShop, come func(s *stranger)) (each time.Duration, n uint64) {
		before := o.report("")
		var wg sync.WaitGroup
		var data, in atomic.Int64
		for i := range 100 {
			time.Sleep(21 * time.Millisecond)
			wg.Go(func() {
				s := &stranger{rand.New(rand.NewPCG(uint64(i), 6)), before.Address, anywhere(i), merkle.Hash{}, &data, &in}
				come(s)
			})
		}
		wg.Wait()
		after := o.report("")
		n = after.Stats.Strangers.Admitted - before.Stats.Strangers.Admitted
		return (after.CPU - before.CPU) / time.Duration(n), n
	}
	flood(shop.report(""), 200, 2000, nearby) // the network's bucket is empty
	const rounds = 3                          // of which the cheapest count: what else runs here only adds
	refused, floor := time.Hour, time.Hour
	for range rounds {
		each, n := refusals(shop)
		if n < 4500 {
			t.Errorf("%d were refused", n)
		}
		refused = min(refused, each)
		each, _ = refusals(bare)
		floor = min(floor, each)
	}
	t.Logf("one that is refused costs %v, of which the kernel takes %v", refused, floor)
	if float64(refused) > 1.5*float64(floor) {
		t.Errorf("one that is refused costs %v, a bare refusal %v", refused, floor)
	}
	time.Sleep(3 * time.Second) // the common bucket fills
	mixed, n := handshakes(shop, (*stranger).come)
	if n < 60 {
		t.Errorf("%d were admitted", n)
	}
	whole, empty, least := time.Hour, time.Hour, time.Hour
	for range rounds {
		a, _ := handshakes(shop, func(s *stranger) { s.with(s.handshake) })
		b, _ := handshakes(bare, func(s *stranger) { s.with(exchange) })
		c, _ := handshakes(keys, func(s *stranger) { s.with(exchange) })
		t.Logf("one that shakes hands to the end and asks for blocks costs %v; an exchange without cryptography takes %v, with multiplications alone %v", a, b, c)
		whole, empty, least = min(whole, a), min(empty, b), min(least, c)
	}
	more, times := whole-empty, float64(whole)/float64(least)
	t.Logf("one that is admitted costs %v, those of all kinds mixed; the dearest kind %v above a bare exchange, %.2f of one that only multiplies", mixed, more, times)
	if *quiet && more > 600*time.Microsecond {
		t.Errorf("one that is admitted costs %v more than a bare exchange", more)
	}
	if times > 2.5 {
		t.Errorf("one that is admitted costs %.2f of one that only multiplies", times)
	}
}

// TestBareProcess is no test either: it takes connections as a shop does, and
// does nothing.
func TestBareProcess(t *testing.T) {
	kind := os.Getenv("EDGE_SHOP")
	if kind != "bare" && kind != "keys" {
		t.Skip("it runs for other tests only")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused, admitted atomic.Uint64
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if c.RemoteAddr().(*net.TCPAddr).IP.Equal(nearby(0)) {
				c.(*net.TCPConn).SetLinger(0) //nolint:errcheck // as a shop does
				c.Close()
				refused.Add(1)
				continue
			}
			admitted.Add(1)
			go func() {
				defer c.Close()
				for i, n := range []int{35, 126} {
					if _, err := io.ReadFull(c, make([]byte, n)); err != nil {
						return
					}
					if kind == "keys" {
						multiply(3 - 2*i)
					}
					c.Write(make([]byte, 99)) //nolint:errcheck // the other side may have left
				}
				io.Copy(io.Discard, c) //nolint:errcheck // likewise
			}()
		}
	}()
	serveReports(t, func() (r report) {
		r.Address = ln.Addr().String()
		r.Stats.Strangers.Refused, r.Stats.Strangers.Admitted = refused.Load(), admitted.Load()
		return r
	})
}

// multiply does what n steps with keys of a handshake cannot do without: the first makes
// a key pair, the others are multiplications with a peer's key. A responder of Noise XX
// has four.
func multiply(n int) {
	var wide [64]byte
	crand.Read(wide[:])
	s, err := edwards25519.NewScalar().SetUniformBytes(wide[:])
	if err != nil {
		panic(err)
	}
	p := edwards25519.NewGeneratorPoint()
	if n > 1 {
		p.ScalarBaseMult(s)
		n--
	}
	for range n {
		p.ScalarMult(s, p)
	}
}

// exchange sends and reads what a handshake does, without its meaning.
func exchange(c net.Conn) {
	for _, n := range []int{35, 126} {
		c.Write(make([]byte, n))         //nolint:errcheck // the other side may have left
		io.ReadFull(c, make([]byte, 99)) //nolint:errcheck // likewise
	}
	c.Write(make([]byte, 600)) //nolint:errcheck // likewise
}

// speed buys the whole feed again and again for a while and returns blocks a
// second.
func speed(t *testing.T, r report, d time.Duration) float64 {
	t.Helper()
	key := key(1)
	start, blocks := time.Now(), 0
	for time.Since(start) < d {
		a, err := archive.Open(durable.OS(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		out := &tally{}
		c, err := client.New(client.Config{Seller: [32]byte(key[32:]), Ways: client.TCP(nil, r.Address), Archive: a, Purse: testPurse(t), Output: out})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		a.Close()
		blocks += out.n
	}
	return float64(blocks) / time.Since(start).Seconds()
}

// tally is an Output that counts.
type tally struct{ n int }

func (o *tally) Block(uint64, []byte) error   { o.n++; return nil }
func (o *tally) Gap(uint64, uint64) error     { return nil }
func (o *tally) Fork(uint64, uint64) error    { return nil }
func (o *tally) Head(merkle.Head) error       { return nil }
func (o *tally) Sync() (int64, string, error) { return int64(o.n), "", nil }
func (o *tally) Resume(int64, string) error   { return nil }

// TestStrangersAndBuyers: those who buy keep nine tenths of their speed while 500
// strangers come each second. That is looked at in two ways, of which either shows it: by
// how much of its processor the seller spends on strangers alone, and by the speed of
// buyers beside them, who take their time from the same processors, as does whatever else
// runs on this machine.
func TestStrangersAndBuyers(t *testing.T) {
	o := startShop(t, "1")
	r := o.report("")
	speed(t, r, time.Second)
	flood(r, 500, 500, anywhere) // what is made once is made
	best := 0.
	for range 4 {
		before, start := o.report("").CPU, time.Now()
		flood(r, 500, 500, anywhere)
		left := 1 - (o.report("").CPU-before).Seconds()/time.Since(start).Seconds()
		alone := speed(t, r, time.Second)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					flood(r, 500, 500, anywhere)
				}
			}
		})
		crowded := speed(t, r, time.Second)
		close(stop)
		wg.Wait()
		t.Logf("strangers leave %.2f of a processor; %.0f blocks/s alone, %.0f with them: %.2f", left, alone, crowded, crowded/alone)
		best = max(best, left, crowded/alone)
	}
	if best < 0.9 {
		t.Errorf("buyers keep %.2f of their speed", best)
	}
}
