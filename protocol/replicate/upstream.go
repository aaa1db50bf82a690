package replicate

import (
	"errors"
	"fmt"
	"time"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate/message"
)

// upstream is a buyer's session with a seller. All of it is guarded by the
// buyer's mu.
type upstream struct {
	b       *Buyer
	session Session
	ch      *mux.Channel
	open    bool
	remote  message.Sync
	synced  bool         // the seller said where it stands
	said    message.Sync // what it was told last
	asks    asks
	theirs  ranges // blocks that the seller announced
	forgot  uint64 // from which block on theirs is not complete

	// nothing is asked for before notBefore, as the seller refused without a
	// reason. Then the download begins anew.
	notBefore time.Time
	held      bool
	served    int // bytes of blocks that were returned

	// The download: blocks [Next, ask) are in flight or wait in early.
	ask     uint64 // block that is asked for next
	begin   uint64 // where this run of requests began: its path is asked for whole
	length  uint64 // of the log in which blocks are asked for: that of the head, or of the one that is asked for
	early   map[uint64]block
	waiting int    // bytes in early
	window  int    // how many blocks may be in flight
	average int    // bytes of a block, about, of the larger ones
	upgrade uint64 // the request for a head, 0 if there is none
	missing bool   // block refused was refused; nothing is asked for until it is clear where to go on
	refused uint64
	since   time.Time
	page    uint64 // blocks [refused, page) are not there, but for those in theirs
	queried bool   // the seller was asked, since then, what there is on that page
	scratch []merkle.Node

	fork     *following // under way to a higher fork
	requests queue      // of the seller, for what we have
}

// block is an answer that came before its turn.
type block struct {
	value []byte
	nodes []merkle.Node
}

// firstWindow and maxBuffered bound what a download has in flight at first, and
// what comes out of turn.
const (
	firstWindow = 32
	maxBuffered = 16 << 20
)

// restart plans the download from where the walk is.
func (u *upstream) restart() {
	u.ask, u.begin, u.length = 0, 0, u.b.k.Head.Length
	if u.b.begun {
		u.ask = u.b.walk.Next()
		u.begin = u.ask
	}
	u.early, u.waiting, u.missing = nil, 0, false
	for i := range u.asks.slots {
		if a := u.asks.slots[i]; a.state == askPending && a.reply == nil {
			u.cancel(uint64(i) + 1)
		}
	}
}

// cancel takes a request back.
func (u *upstream) cancel(id uint64) {
	if u.asks.ignore(id) {
		u.ch.Send(message.TypeCancel, compact.AppendUint(nil, id)) //nolint:errcheck // the connection ends
	}
}

// over ends what waits for answers.
func (u *upstream) over() {
	for i, a := range u.asks.slots {
		if a.state == askPending && a.reply != nil {
			u.asks.ignore(uint64(i) + 1)
			a.reply(nil, ErrClosed) //nolint:errcheck // nothing is left to end
		}
	}
}

// hold asks for nothing for a while: the seller is on its way to another fork, or
// cannot answer now.
func (u *upstream) hold() {
	u.notBefore, u.held = time.Now().Add(lastResort), true
	u.restart()
}

// request asks for something besides the download. It returns 0 if the seller
// leaves too much unanswered, which ends the connection.
func (u *upstream) request(r message.Request, reply func(*message.Data, error) error) uint64 {
	if r.ID = u.asks.add(ask{reply: reply}); r.ID == 0 {
		u.fail(fmt.Errorf("%w: the seller leaves %d unanswered", ErrFlood, len(u.asks.slots)))
		return 0
	}
	u.b.got.Asked++
	u.ch.Send(message.TypeRequest, r.Append(nil)) //nolint:errcheck // the connection ends
	return r.ID
}

// sendSync tells where we stand, if that is news.
func (u *upstream) sendSync() {
	h := u.b.k.Head
	if u.b.k.Foreign {
		h = merkle.Head{} // of this feed nothing is known
	}
	s := message.Sync{Fork: h.Fork, Length: h.Length, Uploading: true, Downloading: true, HasManifest: u.b.k.Manifest != nil}
	if u.remote.Fork == h.Fork {
		s.RemoteLength = u.remote.Length
	}
	if s != u.said {
		u.said = s
		u.ch.Send(message.TypeSync, s.Append(nil)) //nolint:errcheck // the connection ends
	}
}

// Opened implements mux.Handler.
func (u *upstream) Opened(handshake []byte) error {
	u.b.mu.Lock()
	defer u.b.mu.Unlock()
	u.open = true
	if err := u.session.check(u.b.cfg.Key, handshake); err != nil {
		return err
	}
	// What can be returned to a seller that lost it.
	if p := u.b.k.Parts; len(p) > 0 && u.b.begun && !u.b.k.Foreign {
		r := message.Range{Start: p[0].First, Length: u.b.walk.Next() - p[0].First}
		if r.Length > 0 {
			return u.ch.Send(message.TypeRange, r.Append(nil))
		}
	}
	return nil
}

// Closed implements mux.Handler.
func (u *upstream) Closed(err error) {
	u.b.mu.Lock()
	defer u.b.mu.Unlock()
	u.over()
	if u.b.up == u {
		u.b.up = nil
		u.b.changed()
	}
	u.b.log.Debug("replicate: session is over", "error", err)
}

// Message implements mux.Handler.
func (u *upstream) Message(typ uint64, m []byte) error {
	b := u.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.up != u {
		return nil
	}
	var err error
	switch typ {
	case message.TypeSync:
		var s message.Sync
		if s, _, err = message.ParseSync(m); err != nil {
			return bad("sync", err)
		}
		err = u.onSync(s)
	case message.TypeData:
		err = u.onData(m)
	case message.TypeNoData:
		var n message.NoData
		if n, _, err = message.ParseNoData(m); err != nil {
			return bad("noData", err)
		}
		err = u.onNoData(n)
	case message.TypeRange:
		var r message.Range
		if r, _, err = message.ParseRange(m); err != nil {
			return bad("range", err)
		}
		u.theirs.set(r.Start, r.Start+r.Length, !r.Drop)
		u.remembered()
		err = u.onAvailable()
	case message.TypeBitfield:
		var f message.Bitfield
		if f, _, err = message.ParseBitfield(m); err != nil {
			return bad("bitfield", err)
		}
		u.setBits(f)
		err = u.onAvailable()
	case message.TypeRequest:
		if _, _, err = message.ParseRequest(m); err != nil {
			return bad("request", err)
		}
		if !u.requests.push(m) {
			return ErrFlood
		}
	case message.TypeCancel:
		var id uint64
		if id, _, err = compact.ParseUint(m); err != nil {
			return bad("cancel", err)
		}
		u.requests.remove(id)
	}
	if err == nil && u.wanted() {
		u.ch.Wake()
	}
	return err
}

// wanted tells whether there is something to send.
func (u *upstream) wanted() bool {
	return u.requests.n > 0 || u.held || u.missing || u.room() || u.upgradable()
}

// onSync notes where the seller stands.
func (u *upstream) onSync(s message.Sync) error {
	if s.Fork != u.remote.Fork || s.Length != u.remote.Length {
		u.notBefore = time.Time{} // it moved
	}
	u.remote, u.synced = s, true
	u.b.changed()
	if u.behind() && u.fork == nil {
		u.follow()
	}
	u.sendSync()
	return nil
}

// behind tells whether the seller is on a fork that must be followed.
func (u *upstream) behind() bool {
	return u.synced && u.remote.Length > 0 && (u.remote.Fork > u.b.k.Head.Fork || u.b.k.Foreign)
}

// upgradable tells whether to ask for a newer head: when all blocks of the
// present one are asked for.
func (u *upstream) upgradable() bool {
	h := u.b.k.Head
	return u.serves() && u.upgrade == 0 && u.remote.Length > h.Length && (u.ask >= h.Length || !u.b.begun)
}

// serves tells whether the seller serves the fork that we are on.
func (u *upstream) serves() bool {
	return u.synced && u.open && u.fork == nil && !u.held && u.remote.Uploading && u.remote.Fork == u.b.k.Head.Fork && !u.b.k.Foreign
}

// room tells whether a block may be asked for.
func (u *upstream) room() bool {
	if !u.serves() || !u.b.begun || u.missing || u.ask >= u.length {
		return false
	}
	window := u.window
	if n, ok := u.theirs.next(u.ask); !ok || n != u.ask {
		window = 1 // the seller did not say that it has it
	}
	return int(u.ask-u.b.walk.Next()) < window && u.asks.n < maxAsks && u.waiting < maxBuffered
}

// Produce implements mux.Producer: it asks for more while there is room.
func (u *upstream) Produce(b *mux.Batch) time.Time {
	u.b.mu.Lock()
	defer u.b.mu.Unlock()
	if u.b.up != u || !u.open {
		return time.Time{}
	}
	now := time.Now()
	u.serve(b)
	if u.held && !u.notBefore.After(now) {
		u.held = false
		u.b.changed()
		if u.behind() && u.fork == nil {
			u.follow()
		}
	}
	if u.upgradable() {
		h := u.b.k.Head
		n := u.remote.Length
		r := message.Request{Fork: h.Fork, Manifest: u.b.k.Manifest == nil}
		r.Upgrade = &merkle.UpgradeRequest{Start: h.Length, Length: n - h.Length}
		var id uint64
		id = u.asks.add(ask{reply: func(d *message.Data, err error) error {
			if u.upgrade != id {
				return nil // it was taken back
			}
			return u.onUpgrade(d, err)
		}})
		if r.ID = id; id != 0 {
			u.upgrade, u.length = id, n
			b.End(r.Append(b.Begin(message.TypeRequest, 24)), 0)
			u.b.got.Asked++
		}
	}
	for u.room() && !b.Full() {
		i := u.ask
		id := u.asks.add(ask{block: i})
		if id == 0 {
			break
		}
		buf := b.Begin(message.TypeRequest, 16)
		buf = append(buf, merkle.FlagBlock)
		buf = compact.AppendUint(buf, id)
		buf = compact.AppendUint(buf, u.b.k.Head.Fork)
		buf = compact.AppendUint(buf, i)
		buf = compact.AppendUint(buf, merkle.Levels(i, u.begin, u.length))
		b.End(buf, 0)
		u.b.got.Asked++
		u.ask++
	}
	if u.held {
		return u.notBefore
	}
	if !u.missing {
		return time.Time{}
	}
	due := u.since.Add(maxWait)
	if !u.queried {
		due = now.Add(lastResort) // earlier blocks are still to come
	} else if !due.After(now) {
		if err := u.onAvailable(); err != nil {
			u.fail(err)
		} else if !u.missing {
			u.ch.Wake()
		}
		due = now.Add(maxWait)
	}
	return due
}

// fail ends the connection from outside a handler.
func (u *upstream) fail(err error) { u.session.Mux.Fail(err) }

const (
	// lastResort is how long nothing is asked for after a refusal without a
	// reason.
	lastResort = time.Second
	// maxWait is how long a seller may leave a want without an answer.
	maxWait = 5 * time.Second
)

// onUpgrade takes a newer head.
func (u *upstream) onUpgrade(d *message.Data, err error) error {
	u.upgrade = 0
	if err != nil || d.Upgrade == nil {
		u.hold()
		return nil
	}
	if d.Fork != u.b.k.Head.Fork {
		return nil
	}
	v, err := u.b.verifier().Verify(&d.Proof, d.Manifest)
	if err != nil {
		if u.b.k.Head.Length > 0 && errors.Is(err, merkle.ErrSignature) {
			return u.compare(err)
		}
		return fmt.Errorf("%w: head of %d blocks: %w", ErrInvalid, d.Upgrade.Start+d.Upgrade.Length, err)
	}
	if err := u.b.grow(v, d.Upgrade.Signature); err != nil {
		return err
	}
	u.length = max(u.length, v.Head.Length)
	u.sendSync()
	return u.drain()
}

// compare asks for the whole head after one that does not extend ours: either
// the seller sent nonsense, or its key signed two logs.
func (u *upstream) compare(was error) error {
	h := u.b.k.Head
	r := message.Request{Fork: h.Fork}
	r.Upgrade = &merkle.UpgradeRequest{Length: h.Length}
	u.request(r, func(d *message.Data, err error) error {
		invalid := fmt.Errorf("%w: %w", ErrInvalid, was)
		if err != nil || d.Upgrade == nil {
			return invalid
		}
		v := &merkle.Verifier{Key: u.b.cfg.Key, Manifest: u.b.k.Manifest, Fork: h.Fork}
		got, err := v.Verify(&d.Proof, nil)
		if err != nil || merkle.TreeHash(d.Upgrade.Nodes) == h.TreeHash {
			return invalid
		}
		return &ConflictError{Ours: h, Theirs: *got.Head, OurSignature: u.b.k.Signature, TheirSignature: d.Upgrade.Signature}
	})
	return nil
}
