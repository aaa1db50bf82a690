package market

import (
	"context"
	"flag"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dazaar-edge/market/client"
	"dazaar-edge/payment"
	"dazaar-edge/payment/cashier"
	"dazaar-edge/payment/devnet"
	"dazaar-edge/protocol/dazaar"
)

var floodTime = flag.Duration("flood", 3*time.Second, "how long strangers ask for invoices in TestInvoiceFlood")

// counted is a wallet that counts what it makes.
type counted struct {
	*devnet.Node
	made atomic.Int64
}

func (c *counted) Create(ctx context.Context, r payment.Request) (payment.Issued, error) {
	c.made.Add(1)
	return c.Node.Create(ctx, r)
}

// TestInvoiceFlood: strangers ask for a thousand invoices a second, of all amounts. The wallet
// hears of no more than the limits allow, memory stays as it is, and one who pays is served
// meanwhile as ever.
func TestInvoiceFlood(t *testing.T) {
	wallet := &counted{}
	x := newTill(t, nil)
	x.close()
	wallet.Node = x.node
	config := x.shop.config
	x.shop.config = func(c *OfferConfig) {
		config(c)
		var err error
		if x.pays, err = cashier.New(cashier.Config{Ledger: x.books, Gateways: []payment.Gateway{wallet}, Now: time.Now}); err != nil {
			t.Fatal(err)
		}
		c.Cashier = x.pays
	}
	x.open()
	x.sense(5)
	good := x.rich(100_000)
	rich := good.config
	good.config = func(cfg *client.Config) { rich(cfg); cfg.Step = 50 } // else it asks for many, too
	stop := good.start(x.shop)
	had := func() int {
		good.paper.mu.Lock()
		defer good.paper.mu.Unlock()
		return len(good.paper.lines)
	}
	for deadline := time.Now().Add(60 * time.Second); had() == 0; time.Sleep(10 * time.Millisecond) {
		if x.sense(1); time.Now().After(deadline) {
			t.Fatal("the buyer gets nothing")
		}
	}
	const callers, each = 40, 25 // connections, and requests of each in a second
	var callersList []*caller
	for i := range callers {
		c, err := call(x.address, x.offer.key(), buyerKey(100+i), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.m.Close()
		callersList = append(callersList, c)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	made := wallet.made.Load()
	asked := atomic.Int64{}
	var wg sync.WaitGroup
	var slowest time.Duration
	ctx, cancel := context.WithTimeout(t.Context(), *floodTime)
	defer cancel()
	for i, c := range callersList {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for tick := time.NewTicker(time.Second / each); ; {
				select {
				case <-tick.C:
				case <-ctx.Done():
					tick.Stop()
					return
				}
				q := dazaar.InvoiceRequest{ID: r.Uint64N(1 << 40), Units: "1"}
				if r.IntN(2) == 0 {
					q = dazaar.InvoiceRequest{ID: q.ID, Msat: []string{"1000", "2000", "0", "-1", "99999999999999999999", "1000000001", "3000", "x"}[r.IntN(8)]}
				}
				if c.ch.InvoiceRequest(q) != nil {
					return
				}
				asked.Add(1)
			}
		})
	}
	x.sense(1)
	n := 0
	for was := -1; n != was; time.Sleep(500 * time.Millisecond) { // what is on its way
		was, n = n, had()
	}
	for ctx.Err() == nil {
		x.sense(1)
		n++
		begun := time.Now()
		good.paper.wait(n)
		slowest = max(slowest, time.Since(begun))
	}
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := float64(int64(after.HeapInuse)-int64(before.HeapInuse)) / (1 << 20)
	theirs := wallet.made.Load() - made
	if err := stop(); err != nil {
		t.Error(err)
	}
	bought := good.payments()
	t.Logf("%d requests in %v, %d invoices made, of which the buyer's %d or fewer; heap %+.1f MiB; the buyer waited %v at most", asked.Load(), *floodTime, theirs, bought, grown, slowest)
	// A network of strangers has 20 invoices, and one more every ten seconds.
	if limit := int64(invoicesBurst+2) + int64(floodTime.Seconds()*invoicesPerSecond) + bought; theirs > limit {
		t.Errorf("%d invoices were made, at most %d should be", theirs, limit)
	}
	if slowest > 10*time.Second {
		t.Errorf("the buyer waited %v", slowest)
	}
	if grown > 8 {
		t.Errorf("the heap grew by %.1f MiB", grown)
	}
	if float64(asked.Load()) < 100*floodTime.Seconds() {
		t.Errorf("only %d requests were sent", asked.Load())
	}
}
