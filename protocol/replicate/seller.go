package replicate

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// Feed is what a [Seller] sells: a log under a key of the buyer's own. Its
// methods must be safe for concurrent use.
type Feed interface {
	Key() merkle.Hash
	Manifest() merkle.Manifest
	Fork() uint64
	// Bounds returns the blocks that are there: committed, and not dropped.
	Bounds() (first, length uint64)
	// CanUpgrade tells whether one who has the head of length blocks can be
	// proved the present one.
	CanUpgrade(length uint64) bool
	// Proof builds a proof with block bytes and, in an upgrade, the signature
	// of the present head. Errors wrap merkle.ErrRequest for what cannot be,
	// and merkle.ErrMissing for what is not there any more.
	Proof(req merkle.Request) (merkle.Proof, merkle.Head, error)
	// Node returns a node of the log's tree. Errors wrap merkle.ErrMissing.
	Node(index uint64) (merkle.Node, error)
	// Settled tells whether heads may be signed for a buyer that shows this
	// fork and length; Settle decides how to go on after it was asked what it
	// has (DESIGN.md, "Forks").
	// Errors of Settle that wrap merkle.ErrMissing say that the buyer needs a new
	// feed.
	Settled(fork, length uint64) bool
	Settle(head *merkle.Head, claimed uint64) error
	// Recover takes a block that the log had lost and the buyer returned.
	Recover(index, fork uint64, data []byte) error
}

// Blocks reads the blocks of a feed with the nodes that prove them: the siblings
// on the lowest levels of a block's path. It is used by one goroutine at a time
// and should be fast for blocks in order.
type Blocks interface {
	// Read returns block i and its path, both valid until the next call.
	// Errors are those of Feed.Proof.
	Read(i, levels uint64) ([]byte, []merkle.Node, error)
	// Release gives back memory while there is nothing to read.
	Release()
}

// Meter passes each block before it is framed. Its methods are called one at a
// time, with the seller's lock held.
type Meter interface {
	// Admit tells whether a block of size bytes may be sent. If not, the
	// seller pauses.
	Admit(index uint64, size int) bool
}

// SellerConfig says what to sell. Session, Feed and Blocks are required.
type SellerConfig struct {
	Session Session
	Feed    Feed
	// Blocks reads the feed's blocks, for this seller alone.
	Blocks Blocks
	// First and Length are the window [First, Length) of blocks that are
	// announced and served; Length 0 is all there will be.
	First, Length uint64
	// Meter passes each block; nil passes all.
	Meter Meter
	// Uplink is shared by all sellers; nil is one of its own.
	Uplink *Uplink
	// Paused begins without serving.
	Paused bool
	// Ended, if not nil, is called once when the session ends, except by
	// Revoke: with ErrTooOld if the buyer needs a new feed.
	Ended func(error)
	// Greeted, if not nil, is called with how many blocks the peer has, as far as it
	// showed, before it is served. It must not wait, nor call the seller.
	Greeted func(length uint64)
	// Log receives what happens; nil discards.
	Log *slog.Logger
}

// Limits of what a peer may do to a seller.
const (
	// maxInvalid is how many impossible requests end a connection.
	maxInvalid = 64
	// maxNoData is after how many refusals the channel is opened anew: at 32
	// a stock buyer gives the peer up for good.
	maxNoData = 24
	// resync is how often an idle seller says again where it stands: what a
	// stock buyer sometimes needs to go on after a get that timed out.
	resync = 10 * time.Second
	// reopenEvery is how far apart a channel is opened anew at least.
	reopenEvery = 10 * time.Second
	// maxSettled is how many checks of what it has a peer may cause on one
	// connection, maxMisses how many requests it may take back that are none.
	maxSettled = 8
	maxMisses  = 1000
)

// Seller serves one feed to one peer. All methods are safe for concurrent use.
type Seller struct {
	cfg  SellerConfig
	feed Feed
	key  merkle.Hash
	up   *Uplink
	log  *slog.Logger

	mu        sync.Mutex
	ch        *mux.Channel // guarded by mu, like all below
	open      bool         // the other side opened too
	ended     bool
	why       error        // to be told to cfg.Ended
	remote    message.Sync // what the peer said last
	heard     bool         // it said something
	greeted   bool         // it was told where the log stands
	settling  *settling
	requests  queue
	blocks    Blocks
	block     merkle.BlockPart // what blocks read last
	data      message.Data     // with it
	part      merkle.NodeRequest
	built     *message.Data // the answer to the first request, which did not fit yet
	paused    bool
	first     uint64 // of the window
	length    uint64
	told      bounds    // what was announced
	nextTell  time.Time // when the next announcement may be made
	changed   bool      // there may be something to announce
	syncNow   bool      // a sync is due, but no news
	lastSync  time.Time
	greetedAt time.Time
	theirs    ranges // blocks that the peer announced
	invalid   int
	noData    int
	misses    int
	settles   int
	holes     ranges // blocks of the window that are damaged
	signedAt  uint64 // length of the head that was proved last
	// reopened is when the channel was opened anew last; nothing is served
	// before quietUntil.
	reopened, quietUntil time.Time
	asks                 asks
	seen                 idSet // of the requests that wait
	sent                 SellerStats
}

// SellerStats say what a seller did.
type SellerStats struct {
	Blocks, Bytes uint64 // that were framed
	Upgrades      uint64 // heads that were proved
	NoData        uint64
	Recovered     uint64 // blocks that the log had lost and the buyer returned
	// Parked is how many requests wait.
	Parked int
}

// bounds is where a feed stands: its fork and length, and the blocks [first, end)
// that are in the window.
type bounds struct{ fork, first, end, length uint64 }

// NewSeller opens the channel of a feed.
func NewSeller(cfg SellerConfig) (*Seller, error) {
	s := &Seller{
		cfg: cfg, feed: cfg.Feed, key: cfg.Feed.Key(), up: cfg.Uplink, log: logger(cfg.Log),
		paused: cfg.Paused, first: cfg.First, length: cfg.Length, blocks: cfg.Blocks,
	}
	if s.up == nil {
		s.up = &Uplink{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ch, err := cfg.Session.open(s.key, (*sellerHandler)(s))
	s.ch = ch
	return s, err
}

// unlock releases mu and tells if the session came to an end.
func (s *Seller) unlock() {
	why := s.why
	s.why = nil
	s.mu.Unlock()
	if why != nil && s.cfg.Ended != nil {
		s.cfg.Ended(why)
	}
}

// bounds returns what may be announced. mu is held.
func (s *Seller) bounds() bounds {
	first, length := s.feed.Bounds()
	return bounds{s.feed.Fork(), max(first, s.first), s.end(length), length}
}

// end returns the end of the window in a log of this length. mu is held.
func (s *Seller) end(length uint64) uint64 {
	if s.length > 0 {
		return min(s.length, length)
	}
	return length
}

// Update says that the log changed: blocks were committed or dropped. It never
// waits.
func (s *Seller) Update() {
	s.mu.Lock()
	s.changed = true
	ch := s.ch
	s.mu.Unlock()
	if ch != nil {
		ch.Wake()
	}
}

// SetWindow changes which blocks are announced and served; length 0 is all
// there will be.
func (s *Seller) SetWindow(first, length uint64) {
	s.mu.Lock()
	s.first, s.length = first, length
	s.built = nil
	s.mu.Unlock()
	s.Update()
}

// Pause stops serving: what is asked for is parked. No block is framed after it
// returned.
func (s *Seller) Pause() { s.setPaused(true) }

// Resume serves again, beginning with what was parked.
func (s *Seller) Resume() { s.setPaused(false) }

func (s *Seller) setPaused(paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused == paused || s.ended {
		return
	}
	s.paused = paused
	s.built = nil
	if s.greeted {
		s.sendSync()
	}
	s.ch.Wake()
}

// Revoke ends the session for good: the peer is told that nothing will be
// served, then the channel is closed. No block is framed after it returned.
// Whoever accepts channels must reject the next one.
func (s *Seller) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.stop()
	if s.open {
		b := s.told
		s.send(message.TypeSync, message.Sync{Fork: b.fork, Length: b.length, RemoteLength: s.remoteLength(b.fork), HasManifest: true}.Append(nil))
	}
	s.ch.Close()
}

// stop forgets all that is to do. mu is held.
func (s *Seller) stop() {
	s.ended = true
	s.requests.clear()
	s.built, s.settling = nil, nil
	s.asks = asks{}
}

// Stats returns what was done so far.
func (s *Seller) Stats() SellerStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.sent
	st.Parked = s.requests.n
	return st
}

// send queues a small message. If it cannot, the connection ends, which the
// handler hears of. mu is held.
func (s *Seller) send(typ uint64, payload []byte) {
	if err := s.ch.Send(typ, payload); err != nil && !errors.Is(err, mux.ErrClosed) {
		s.log.Debug("replicate: cannot send", "error", err)
	}
}

// remoteLength is what a sync on this fork echoes. mu is held.
func (s *Seller) remoteLength(fork uint64) uint64 {
	if s.remote.Fork != fork {
		return 0
	}
	return s.remote.Length
}

// sync returns what to say about what was announced. mu is held.
func (s *Seller) sync() message.Sync {
	t := s.told
	out := message.Sync{
		Fork: t.fork, Length: t.length, RemoteLength: s.remoteLength(t.fork), Uploading: !s.paused, HasManifest: true,
	}
	// To a buyer on another fork nothing can be upgraded; a stock one with
	// nothing yet would ask 48 times.
	out.CanUpgrade = s.remote.Fork == t.fork && s.feed.CanUpgrade(s.remote.Length)
	return out
}

func (s *Seller) sendSync() {
	s.syncNow, s.lastSync = false, time.Now()
	s.send(message.TypeSync, s.sync().Append(nil))
}
