package secretstream

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"dazaar-edge/protocol/bucket"
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
// they pass token buckets first: one of their network (/24 or /56), one of its
// region (/16 or /32), which is half as large as the common one, and the common
// one. Who finds one empty is closed before a byte of theirs is read. Networks
// that are in favor (see [Listener.Favor]) pass a common bucket of their own.
type ListenConfig struct {
	Config
	// PerSecond and Burst are the common bucket; 0 is 50 and 100.
	PerSecond, Burst float64
	// NetworkPerSecond and NetworkBurst are those of a network; 0 is 10 and 50.
	NetworkPerSecond, NetworkBurst float64
	// Handshakes is how many may be under way, or wait for Accept, at once; 0
	// is 32. When there are as many, the oldest one of the network that has
	// most makes place for another network's.
	Handshakes int
	// Now tells the time; nil is time.Now.
	Now func() time.Time
}

// Counts say what a [Listener] did since it began.
type Counts struct {
	Refused  uint64 // closed for want of a token or a place
	Admitted uint64 // handshakes that were begun
	Failed   uint64 // of these, those that were not finished
	Evicted  uint64 // of these, those that made place for others
}

// Listener yields authenticated connections. All methods are safe for
// concurrent use.
type Listener struct {
	ln  net.Listener
	cfg ListenConfig

	ready  chan *Conn
	ctx    context.Context //nolint:containedctx // ends handshakes when the listener closes
	cancel context.CancelFunc
	wg     sync.WaitGroup
	err    error // why accepting ended; read after ctx is done

	mu        sync.Mutex
	admission admission  // guarded by mu, like all below
	pending   []*pending // handshakes under way, oldest first
	counts    Counts
}

// pending is a handshake under way.
type pending struct {
	network netip.Prefix
	ctx     context.Context //nolint:containedctx // of this handshake
	cancel  context.CancelFunc
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
	l := &Listener{ln: ln, cfg: cfg, ready: make(chan *Conn)}
	l.admission = admission{
		cfg: &l.cfg, networks: bucket.NewKeyed[netip.Prefix](cfg.NetworkPerSecond, cfg.NetworkBurst),
		regions: bucket.NewKeyed[netip.Prefix](cfg.PerSecond/2, cfg.Burst/2),
		favored: map[netip.Prefix]time.Time{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Add(1)
	go l.accept()
	return l
}

// Addr returns the address that is listened on.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Counts returns what was done so far.
func (l *Listener) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Favor says that somebody at this address is known to be worth the work, as one
// who bought: for a day strangers cannot take the network's place away.
func (l *Listener) Favor(addr net.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.admission.favor(addr, l.cfg.Now())
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
		if p := l.admit(raw); p != nil {
			l.wg.Add(1)
			go l.handshake(raw, p)
		} else {
			refuse(raw)
		}
	}
}

// admit finds a place for a handshake; nil if there is none.
func (l *Listener) admit(raw net.Conn) *pending {
	p := &pending{network: bucket.Network(raw.RemoteAddr())}
	l.mu.Lock()
	defer l.mu.Unlock()
	full := len(l.pending) >= l.cfg.Handshakes
	victim := 0
	if full {
		victim = l.victim(p.network)
	}
	if victim < 0 || !l.admission.admit(raw.RemoteAddr(), l.cfg.Now()) {
		l.counts.Refused++
		return nil
	}
	if full {
		l.pending[victim].cancel()
		l.pending = slices.Delete(l.pending, victim, victim+1)
		l.counts.Evicted++
	}
	p.ctx, p.cancel = context.WithCancel(l.ctx)
	l.pending = append(l.pending, p)
	l.counts.Admitted++
	return p
}

// victim returns which handshake makes place for one of this network; -1 if none
// does. mu is held.
func (l *Listener) victim(of netip.Prefix) int {
	count := map[netip.Prefix]int{}
	for _, p := range l.pending {
		count[p.network]++
	}
	most := 0
	for i, p := range l.pending {
		if count[p.network] > count[l.pending[most].network] {
			most = i
		}
	}
	if count[l.pending[most].network] <= count[of] {
		return -1
	}
	return most
}

// refuse closes with a reset, which leaves nothing behind in the kernel.
func refuse(raw net.Conn) {
	if t, ok := raw.(*net.TCPConn); ok {
		t.SetLinger(0) //nolint:errcheck // closed anyhow
	}
	raw.Close()
}

// handshake holds its place until somebody took the connection.
func (l *Listener) handshake(raw net.Conn, p *pending) {
	defer l.wg.Done()
	c, err := Server(p.ctx, raw, l.cfg.Config)
	if err == nil {
		select {
		case l.ready <- c:
		case <-c.Done():
			err = c.Err()
		case <-p.ctx.Done():
			err = p.ctx.Err()
			c.Close()
		}
	}
	p.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.pending, p); i >= 0 {
		l.pending = slices.Delete(l.pending, i, i+1)
	}
	if err != nil {
		l.counts.Failed++
	}
}

const (
	// maxFavored and favorTime bound which ones are in favor.
	maxFavored = 1024
	favorTime  = 24 * time.Hour
)

// admission holds the buckets.
type admission struct {
	cfg      *ListenConfig
	common   *bucket.Bucket
	known    *bucket.Bucket // in the place of common, for those in favor
	networks *bucket.Keyed[netip.Prefix]
	regions  *bucket.Keyed[netip.Prefix]
	favored  map[netip.Prefix]time.Time // until when
}

// admit takes a token from each bucket if all have one.
func (a *admission) admit(addr net.Addr, now time.Time) bool {
	c := a.cfg
	if a.common == nil {
		a.common, a.known = bucket.New(c.PerSecond, c.Burst, now), bucket.New(c.PerSecond, c.Burst, now)
	}
	n := bucket.Network(addr)
	pass := []*bucket.Bucket{a.common}
	if until, ok := a.favored[n]; ok && now.Before(until) {
		pass[0] = a.known
	} else if n.IsValid() {
		pass = append(pass, a.regions.Get(region(n), now))
	}
	if n.IsValid() {
		pass = append(pass, a.networks.Get(n, now))
	}
	return bucket.Take(now, pass...)
}

// region returns the region of a network.
func region(n netip.Prefix) netip.Prefix {
	bits := 16
	if n.Addr().Is6() {
		bits = 32
	}
	p, _ := n.Addr().Prefix(bits)
	return p
}

// favor puts the network of an address in favor.
func (a *admission) favor(addr net.Addr, now time.Time) {
	n := bucket.Network(addr)
	if !n.IsValid() {
		return
	}
	if _, ok := a.favored[n]; !ok && len(a.favored) >= maxFavored {
		for p, until := range a.favored {
			if !now.Before(until) {
				delete(a.favored, p)
			}
		}
		for p := range a.favored {
			if len(a.favored) < maxFavored {
				break
			}
			delete(a.favored, p)
		}
	}
	a.favored[n] = now.Add(favorTime)
}
