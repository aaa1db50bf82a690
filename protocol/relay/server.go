package relay

import (
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/udx"
)

// ServerConfig says what a relay does. Endpoint is required.
type ServerConfig struct {
	Endpoint *udx.Endpoint
	// Pairs is how many pairings there may be at once, and how many may listen for streams;
	// 0 is 256. Each client may have as many as PairsPerClient; 0 is 16.
	Pairs, PairsPerClient int
	// Share is how much of that the clients of one network (/24) may have together, each for
	// itself: pairings, ends that wait, who listens, connections; 0 is a quarter.
	Share int
	// Rate is how many bytes a second are passed on in all, and PairRate for each pairing;
	// 0 is no limit.
	Rate, PairRate float64
	// Time is how long a pairing may last; 0 is no limit.
	Time time.Duration
	Log  *slog.Logger // nil discards
}

// Times of a relay.
const (
	// pairTime is how long an end may wait for the other.
	pairTime = 15 * time.Second
	// quietTime is how long an end of a pairing may be silent.
	quietTime = time.Minute
	sweep     = 5 * time.Second
	// idleClient is how long a client may be connected without anything to relay.
	idleClient = 2 * time.Minute
)

// Server pairs streams. All methods are safe for concurrent use.
type Server struct {
	cfg  ServerConfig
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	closed  bool                  // guarded by mu, like all below
	waiting map[[32]byte]*request // by token
	pairs   map[*pairing]bool
	hall    hall // of streams
	clients map[*Session]bool
	stats   Stats

	allMu sync.Mutex
	all   [2]*bucket.Bucket // bytes by kind of pair, guarded by allMu; nil is no limit
}

// Stats say what a relay did.
type Stats struct {
	Clients, Pairs, Waiting int    // now
	Paired, Refused         uint64 // in all
	Bytes, Dropped          uint64 // in all
}

// request is an end that waits for the other.
type request struct {
	s  *Session
	p  pair
	at time.Time
}

// pairing is two ends that were paired.
type pairing struct {
	j     *udx.Junction
	ends  [2]*request
	since time.Time
}

// NewServer returns a relay.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Pairs == 0 {
		cfg.Pairs = 256
	}
	if cfg.PairsPerClient == 0 {
		cfg.PairsPerClient = 16
	}
	if cfg.Share == 0 {
		cfg.Share = max(cfg.Pairs/4, 1)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, stop: make(chan struct{}), clients: map[*Session]bool{}, waiting: map[[32]byte]*request{}, pairs: map[*pairing]bool{}}
	s.hall = hall{conns: map[io.Closer]bool{}, seats: map[[32]byte]*seat{}, meetings: map[[32]byte]*meeting{}, by: map[netip.Prefix]int{}}
	if cfg.Rate > 0 {
		for kind := range s.all {
			s.all[kind] = bucket.New(cfg.Rate/2, burst(cfg.Rate)/2, time.Now())
		}
	}
	s.wg.Go(s.run)
	return s
}

// burst is how many bytes may pass at once, at a rate: those of a quarter of a second.
func burst(rate float64) float64 { return max(rate/4, 16<<10) }

// Close ends all pairings.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	close(s.stop)
	for p := range s.pairs {
		s.end(p)
	}
	for c := range s.hall.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Stats returns what the relay does and did.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Clients += len(s.hall.seats)
	st.Pairs, st.Waiting = len(s.pairs)+s.hall.pipes, len(s.waiting)+len(s.hall.meetings)
	for p := range s.pairs {
		b, d := p.j.Passed()
		st.Bytes, st.Dropped = st.Bytes+b, st.Dropped+d
	}
	return st
}

// run ends what has lasted too long.
func (s *Server) run() {
	t := time.NewTicker(sweep)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-s.stop:
			return
		}
		s.mu.Lock()
		now := time.Now()
		for token, r := range s.waiting {
			if now.Sub(r.at) > pairTime {
				s.drop(token, r)
			}
		}
		var idle []*Session
		for x := range s.clients {
			if x.n > 0 {
				x.since = now
			} else if now.Sub(x.since) > idleClient {
				idle = append(idle, x)
			}
		}
		for p := range s.pairs {
			if p.j.Quiet() > quietTime || s.cfg.Time > 0 && now.Sub(p.since) > s.cfg.Time {
				s.end(p)
			}
		}
		s.mu.Unlock()
		for _, x := range idle {
			x.mux.Close()
		}
	}
}

// drop forgets an end that waits. mu is held.
func (s *Server) drop(token [32]byte, r *request) {
	delete(s.waiting, token)
	r.s.n--
}

// end ends a pairing. mu is held.
func (s *Server) end(p *pairing) {
	if !s.pairs[p] {
		return
	}
	p.j.Close()
	b, d := p.j.Passed()
	s.stats.Bytes, s.stats.Dropped = s.stats.Bytes+b, s.stats.Dropped+d
	delete(s.pairs, p)
	for _, r := range p.ends {
		r.s.n--
		delete(r.s.pairs, r.p.token)
	}
}

// Session is a client's connection with a relay.
type Session struct {
	s      *Server
	mux    *mux.Mux
	ch     *mux.Channel
	stream *udx.Stream

	since time.Time             // it has had nothing to relay; guarded by the server's mu, like all below
	n     int                   // pairings, and waits for one; of this client
	pairs map[[32]byte]*pairing // by token
	open  bool
}

// Serve relays for a client; remote is its public key, and stream what the connection with it
// runs on. It is called when the other side opens the channel, or before.
func (s *Server) Serve(m *mux.Mux, remote [32]byte, stream *udx.Stream) (*Session, error) {
	x := &Session{s: s, mux: m, stream: stream, since: time.Now(), pairs: map[[32]byte]*pairing{}, open: true}
	s.mu.Lock()
	crowd := 0
	for y := range s.clients {
		if y.network() == x.network() {
			crowd++
		}
	}
	if crowd < s.cfg.Share {
		s.clients[x] = true
	} else {
		s.stats.Refused++
	}
	s.mu.Unlock()
	if crowd >= s.cfg.Share {
		return nil, ErrRefused
	}
	var err error
	if x.ch, err = m.Open(mux.ChannelConfig{Protocol: Protocol, ID: remote[:], Handler: (*serverHandler)(x)}); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.clients, x)
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Clients++
	return x, nil
}

// serverHandler is a Session as its channel sees it.
type serverHandler Session

// Opened implements mux.Handler.
func (h *serverHandler) Opened([]byte) error { return nil }

// Message implements mux.Handler.
func (h *serverHandler) Message(typ uint64, m []byte) error {
	x := (*Session)(h)
	switch typ {
	case typePair:
		p, err := parsePair(m)
		if err != nil {
			return err
		}
		x.s.pair(x, p)
	case typeUnpair:
		var ignored bool
		token, _, err := parseToken(m, &ignored)
		if err != nil {
			return err
		}
		x.s.unpair(x, token)
	}
	return nil
}

// Closed implements mux.Handler.
func (h *serverHandler) Closed(error) {
	x := (*Session)(h)
	s := x.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if !x.open {
		return
	}
	x.open = false
	delete(s.clients, x)
	s.stats.Clients--
	for token, r := range s.waiting {
		if r.s == x {
			s.drop(token, r)
		}
	}
	for _, p := range x.pairs {
		s.end(p)
	}
}

// unpair ends what a client has under a token.
func (s *Server) unpair(x *Session, token [32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.waiting[token]; r != nil && r.s == x {
		s.drop(token, r)
	}
	if p := x.pairs[token]; p != nil {
		s.end(p)
	}
}

// pair notes that a client waits under a token, or pairs it with who does.
func (s *Server) pair(x *Session, p pair) {
	s.mu.Lock()
	defer s.mu.Unlock()
	other := s.waiting[p.token]
	if other == nil && s.used() >= s.cfg.Pairs {
		s.makeRoom(x.network())
	}
	if s.closed || x.n >= s.cfg.PairsPerClient || s.crowd(x.network()) >= s.cfg.Share || other == nil && s.used() >= s.cfg.Pairs || other != nil && other.p.initiator == p.initiator || x.pairs[p.token] != nil {
		s.stats.Refused++
		return
	}
	r := &request{s: x, p: p, at: time.Now()}
	x.n++
	if other == nil {
		s.waiting[p.token] = r
		return
	}
	delete(s.waiting, p.token)
	q := &pairing{ends: [2]*request{other, r}, since: time.Now()}
	var err error
	q.j, err = s.cfg.Endpoint.Join(udx.JunctionConfig{
		IDs: [2]uint32{other.p.id, p.id}, Host: [2]func() netip.Addr{other.s.host, x.host}, Allow: s.newPace(byUDX).allow,
	})
	if err != nil {
		x.n--
		other.s.n--
		s.stats.Refused++
		return
	}
	s.pairs[q] = true
	s.stats.Paired++
	for i, r := range q.ends {
		r.s.pairs[p.token] = q
		r.s.ch.Send(typePair, pair{r.p.initiator, p.token, q.j.ID(i)}.append(nil)) //nolint:errcheck // the connection ends
	}
}

// crowd returns what the clients of a network have: pairings, and ends that wait. mu is held.
func (s *Server) crowd(of netip.Prefix) (n int) {
	for x := range s.clients {
		if x.n > 0 && x.network() == of {
			n += x.n
		}
	}
	return n
}

// makeRoom drops an end that waits, of a network that has more than one which is to get the
// place. mu is held.
func (s *Server) makeRoom(of netip.Prefix) {
	var worst [32]byte
	most, at := s.crowd(of), time.Time{}
	for token, r := range s.waiting {
		if k := s.crowd(r.s.network()); k > most || k == most && !at.IsZero() && r.at.Before(at) {
			worst, most, at = token, k, r.at
		}
	}
	if !at.IsZero() {
		s.drop(worst, s.waiting[worst])
	}
}

// network is that of a client.
func (x *Session) network() netip.Prefix {
	p, _ := x.host().Prefix(24)
	return p
}

// host is where a client is.
func (x *Session) host() netip.Addr {
	_, a := x.stream.Way()
	return a.Addr()
}
