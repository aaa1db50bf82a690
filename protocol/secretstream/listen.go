package secretstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Dial connects to a TCP address and shakes hands.
func Dial(ctx context.Context, address string, cfg Config) (*Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return Client(ctx, raw, cfg)
}

// ListenConfig says whom a [Listener] lets in. Strangers cost public-key work, so
// they pass token buckets first, one in common and one for each network (/24 or
// /56); who finds one empty is closed before a byte of theirs is read.
type ListenConfig struct {
	Config
	// PerSecond and Burst are the common bucket; 0 is 50 and 100.
	PerSecond, Burst float64
	// NetworkPerSecond and NetworkBurst are those of a network; 0 is 10 and 50.
	NetworkPerSecond, NetworkBurst float64
	// Handshakes is how many may be under way at once; 0 is 32.
	Handshakes int
	// Now tells the time; nil is time.Now.
	Now func() time.Time
}

// Counts say what a [Listener] did since it began.
type Counts struct {
	Refused  uint64 // closed for want of a token or a place
	Admitted uint64 // handshakes that were begun
	Failed   uint64 // of these, those that were not finished
}

// Listener yields authenticated connections. All methods are safe for
// concurrent use.
type Listener struct {
	ln  net.Listener
	cfg ListenConfig

	ready  chan *Conn
	slots  chan struct{}
	ctx    context.Context //nolint:containedctx // ends handshakes when the listener closes
	cancel context.CancelFunc
	wg     sync.WaitGroup
	err    error // why accepting ended; read after ctx is done

	admission admission // owned by the accepting goroutine
	refused   atomic.Uint64
	admitted  atomic.Uint64
	failed    atomic.Uint64
}

// Listen takes connections from ln until Close, which closes ln too.
func Listen(ln net.Listener, cfg ListenConfig) *Listener {
	def := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&cfg.PerSecond, 50)
	def(&cfg.Burst, 100)
	def(&cfg.NetworkPerSecond, 10)
	def(&cfg.NetworkBurst, 50)
	if cfg.Handshakes == 0 {
		cfg.Handshakes = 32
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	l := &Listener{ln: ln, cfg: cfg, ready: make(chan *Conn), slots: make(chan struct{}, cfg.Handshakes)}
	l.admission = admission{cfg: &l.cfg, networks: map[netip.Prefix]*bucket{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Add(1)
	go l.accept()
	return l
}

// Addr returns the address that is listened on.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Counts returns what was done so far.
func (l *Listener) Counts() Counts {
	return Counts{Refused: l.refused.Load(), Admitted: l.admitted.Load(), Failed: l.failed.Load()}
}

// Accept returns the next authenticated connection. After Close it fails with
// [net.ErrClosed].
func (l *Listener) Accept() (*Conn, error) {
	select {
	case c := <-l.ready:
		return c, nil
	case <-l.ctx.Done():
		return nil, l.err
	}
}

// Close ends listening and the handshakes under way. Connections that Accept
// returned stay open.
func (l *Listener) Close() error {
	err := l.ln.Close()
	l.wg.Wait()
	return err
}

func (l *Listener) accept() {
	defer l.wg.Done()
	defer l.cancel()
	for {
		raw, err := l.ln.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && !errors.Is(err, net.ErrClosed) {
				// Out of descriptors or the like: others must be closed first.
				time.Sleep(50 * time.Millisecond)
				continue
			}
			l.err = err
			return
		}
		if !l.admission.admit(raw.RemoteAddr(), l.cfg.Now()) {
			l.refuse(raw)
			continue
		}
		select {
		case l.slots <- struct{}{}:
		default:
			l.refuse(raw)
			continue
		}
		l.admitted.Add(1)
		l.wg.Add(1)
		go l.handshake(raw)
	}
}

// refuse closes with a reset, which leaves nothing behind in the kernel.
func (l *Listener) refuse(raw net.Conn) {
	l.refused.Add(1)
	if t, ok := raw.(*net.TCPConn); ok {
		t.SetLinger(0) //nolint:errcheck // closed anyhow
	}
	raw.Close()
}

func (l *Listener) handshake(raw net.Conn) {
	defer l.wg.Done()
	c, err := Server(l.ctx, raw, l.cfg.Config)
	<-l.slots
	if err != nil {
		l.failed.Add(1)
		return
	}
	select {
	case l.ready <- c:
	case <-l.ctx.Done():
		c.Close()
	}
}

// bucket is a token bucket.
type bucket struct {
	tokens float64
	at     time.Time
}

// take takes a token if there is one.
func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.tokens = min(burst, b.tokens+rate*now.Sub(b.at).Seconds())
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// maxNetworks bounds how many networks are remembered.
const maxNetworks = 1024

// admission holds the buckets.
type admission struct {
	cfg      *ListenConfig
	common   *bucket
	networks map[netip.Prefix]*bucket
}

func (a *admission) admit(addr net.Addr, now time.Time) bool {
	if a.common == nil {
		a.common = &bucket{tokens: a.cfg.Burst, at: now}
	}
	if b := a.network(addr, now); b != nil && !b.take(now, a.cfg.NetworkPerSecond, a.cfg.NetworkBurst) {
		return false
	}
	return a.common.take(now, a.cfg.PerSecond, a.cfg.Burst)
}

// network returns the bucket of an address; nil if it has none.
func (a *admission) network(addr net.Addr, now time.Time) *bucket {
	t, ok := addr.(*net.TCPAddr)
	if !ok {
		return nil
	}
	ip := t.AddrPort().Addr().Unmap()
	bits := 24
	if ip.Is6() {
		bits = 56
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return nil
	}
	b := a.networks[p]
	if b == nil {
		if len(a.networks) >= maxNetworks {
			a.forget(now)
		}
		b = &bucket{tokens: a.cfg.NetworkBurst, at: now}
		a.networks[p] = b
	}
	return b
}

// forget drops the networks whose buckets are full again, and if there are none
// an arbitrary one: the common bucket still holds.
func (a *admission) forget(now time.Time) {
	for p, b := range a.networks {
		if b.tokens+a.cfg.NetworkPerSecond*now.Sub(b.at).Seconds() >= a.cfg.NetworkBurst {
			delete(a.networks, p)
		}
	}
	for p := range a.networks {
		if len(a.networks) < maxNetworks {
			return
		}
		delete(a.networks, p)
	}
}
