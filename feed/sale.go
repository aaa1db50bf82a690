package feed

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/storage"
)

// SaleState is what must survive of a sale besides its money.
type SaleState struct {
	// Generation counts the feeds of the sale.
	Generation uint64
	// Fork is the fork that heads are signed for.
	Fork uint64
	// Settled is the epoch in which the feed was last compared with the
	// buyer's copy.
	Settled uint64
	// Signed is at least as long as the newest head that was signed before the
	// last orderly save.
	Signed uint64
}

// Sales keeps the state of sales durably: Save returns when it survives a power
// cut.
type Sales interface {
	Load(buyer [32]byte) (SaleState, bool, error)
	Save(states map[[32]byte]SaleState) error
	// Each calls f for every sale until it returns false.
	Each(f func(buyer [32]byte, s SaleState) bool) error
	// Epoch returns the epoch and the log it counts for; zeros at first.
	Epoch() (epoch uint64, log [16]byte, err error)
	SetEpoch(epoch uint64, log [16]byte) error
}

// mark is the newest head that was signed for a sale.
type mark struct{ length, fork uint64 }

const markPrefix = "s"

// loadMarks reads the signed heads that rode on commits.
func (l *Log) loadMarks() {
	l.st.Marks(func(key string, v []byte) bool {
		if len(key) == 1+32 && key[:1] == markPrefix && len(v) == 16 {
			l.signed[[32]byte([]byte(key[1:]))] = mark{binary.LittleEndian.Uint64(v), binary.LittleEndian.Uint64(v[8:])}
		}
		return true
	})
}

// writeMarks hands signed heads to the running commit. When there is no room
// for more, all go to the sales' own store.
func (l *Log) writeMarks() {
	l.marksMu.Lock()
	defer l.marksMu.Unlock()
	for buyer := range l.unsaved {
		m := l.signed[buyer]
		v := binary.LittleEndian.AppendUint64(nil, m.length)
		v = binary.LittleEndian.AppendUint64(v, m.fork)
		err := l.st.SetMark(markPrefix+string(buyer[:]), v)
		if errors.Is(err, storage.ErrMarksFull) {
			err = l.spill()
		}
		if err != nil {
			l.log.Warn("signed heads are not noted", "log", l.cfg.Dir, "error", err)
			return
		}
		delete(l.unsaved, buyer)
	}
}

// spill moves all signed heads from the marks to the sales' store.
func (l *Log) spill() error {
	states := make(map[[32]byte]SaleState, len(l.signed))
	for buyer, m := range l.signed {
		s, _, err := l.cfg.Sales.Load(buyer)
		if err != nil {
			return err
		}
		s.Signed = m.length
		states[buyer] = s
	}
	if err := l.cfg.Sales.Save(states); err != nil {
		return err
	}
	for buyer := range l.signed {
		l.st.RemoveMark(markPrefix + string(buyer[:]))
	}
	clear(l.signed)
	clear(l.unsaved)
	return nil
}

// eachSignedLength calls f with the signed lengths before first, longest first
// among those that changed lately, until it returns false.
func (l *Log) eachSignedLength(first uint64, f func(length uint64) bool) {
	l.marksMu.Lock()
	recent := make(map[[32]byte]uint64, len(l.signed))
	for b, m := range l.signed {
		recent[b] = m.length
	}
	l.marksMu.Unlock()
	more := true
	for _, n := range recent {
		if more && n > 0 && n < first {
			more = f(n)
		}
	}
	err := l.cfg.Sales.Each(func(b [32]byte, s SaleState) bool {
		if _, ok := recent[b]; !ok && s.Signed > 0 && s.Signed < first {
			more = more && f(s.Signed)
		}
		return more
	})
	if err != nil {
		l.log.Warn("sales cannot be read", "log", l.cfg.Dir, "error", err)
	}
}

// beginEpoch begins a new epoch, in which all sales must be settled, unless the
// log was closed in order and is the one that the sales are of.
func (l *Log) beginEpoch(found storage.Recovery) error {
	epoch, id, err := l.cfg.Sales.Epoch()
	if err != nil {
		return err
	}
	l.epoch = epoch
	if epoch > 0 && found.Clean && id == l.st.ID() {
		return nil
	}
	l.epoch++
	return l.cfg.Sales.SetEpoch(l.epoch, l.st.ID())
}

// Feed is the log under the key of one sale. All methods are safe for
// concurrent use.
type Feed struct {
	l        *Log
	buyer    [32]byte
	key      merkle.Hash
	manifest merkle.Manifest
	priv     ed25519.PrivateKey

	mu    sync.Mutex
	state SaleState   // guarded by mu, like all below
	last  merkle.Head // signed last
	sig   []byte      // of it
}

// Rekey returns the feed of a sale to buyer, and begins the sale if there was
// none. Use one Feed for a buyer at a time.
func (l *Log) Rekey(buyer [32]byte) (*Feed, error) {
	s, ok, err := l.cfg.Sales.Load(buyer)
	if err != nil {
		return nil, err
	}
	if !ok {
		s = SaleState{Settled: l.epoch}
		if err := l.cfg.Sales.Save(map[[32]byte]SaleState{buyer: s}); err != nil {
			return nil, err
		}
	}
	f := &Feed{l: l, buyer: buyer, state: s}
	return f, f.derive()
}

// Renew ends the feed of a sale and begins its next one: after a burn, or when
// the buyer's head lies too far back. The old key is never used again.
func (l *Log) Renew(buyer [32]byte) (*Feed, error) {
	s, _, err := l.cfg.Sales.Load(buyer)
	if err != nil {
		return nil, err
	}
	s = SaleState{Generation: s.Generation + 1, Settled: l.epoch}
	if err := l.cfg.Sales.Save(map[[32]byte]SaleState{buyer: s}); err != nil {
		return nil, err
	}
	l.marksMu.Lock()
	l.signed[buyer] = mark{}
	l.unsaved[buyer] = true
	l.marksMu.Unlock()
	f := &Feed{l: l, buyer: buyer, state: s}
	return f, f.derive()
}

func (f *Feed) derive() error {
	seed, err := f.l.cfg.Keys.FeedSeed(f.buyer, f.state.Generation)
	if err != nil {
		return err
	}
	f.priv = ed25519.NewKeyFromSeed(seed[:])
	f.manifest = merkle.NewManifest(f.priv.Public().(ed25519.PublicKey))
	f.key = f.manifest.Key()
	return nil
}

// Key returns the 32-byte feed key.
func (f *Feed) Key() merkle.Hash { return f.key }

// Manifest returns the manifest; its hash is the key.
func (f *Feed) Manifest() merkle.Manifest { return f.manifest }

// Generation returns which of the sale's feeds this is, from 0.
func (f *Feed) Generation() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Generation
}

// Fork returns the fork that heads are signed for.
func (f *Feed) Fork() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Fork
}

// signedLength returns the longest head known to be signed.
func (f *Feed) signedLength() uint64 {
	f.l.marksMu.Lock()
	defer f.l.marksMu.Unlock()
	n := max(f.l.signed[f.buyer].length, f.state.Signed)
	if f.sig != nil {
		n = max(n, f.last.Length)
	}
	return n
}

// Settled tells whether heads may be signed for a buyer that shows this fork and
// length: not before Settle after an unclean start, and not if the buyer shows
// what it was never given.
func (f *Feed) Settled(fork, length uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.settled() && fork <= f.state.Fork && (fork < f.state.Fork || length <= f.signedLength())
}

// settled also refuses when the log is shorter than what it signed.
func (f *Feed) settled() bool {
	return f.state.Settled == f.l.epoch && f.signedLength() <= f.l.st.Length()
}

// Settle decides how the feed goes on after the buyer was asked for the head it
// has. head is its answer, verified under the feed key; nil if it gave none.
// claimed is the highest fork it showed. If its head is one of this log, the
// feed goes on; if not, or if nobody knows, it goes on with a fork that was
// never used. It fails with [ErrTooOld] if the head lies so far in the dropped
// part that this cannot be told: then [Log.Renew] is the way.
func (f *Feed) Settle(head *merkle.Head, claimed uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	length := f.l.st.Length()
	same := head != nil && head.Fork == s.Fork && head.Length <= length && claimed <= s.Fork && f.signedLength() <= length
	if same && head.Length > 0 {
		h, err := f.l.TreeHashAt(head.Length)
		if err != nil {
			return fmt.Errorf("%w: %d blocks: %w", ErrTooOld, head.Length, err)
		}
		same = h == head.TreeHash
	}
	if !same {
		s.Fork = max(s.Fork, claimed)
		if head != nil {
			s.Fork = max(s.Fork, head.Fork)
		}
		s.Fork++
		s.Signed = 0
	}
	s.Settled = f.l.epoch
	if err := f.l.cfg.Sales.Save(map[[32]byte]SaleState{f.buyer: s}); err != nil {
		return err
	}
	if !same {
		f.sig = nil
		f.l.note(f.buyer, mark{0, s.Fork}, true)
	} else {
		f.l.note(f.buyer, mark{head.Length, s.Fork}, false)
	}
	f.state = s
	return nil
}

// note takes a signed head as the newest of a sale.
func (l *Log) note(buyer [32]byte, m mark, reset bool) {
	l.marksMu.Lock()
	if reset || l.signed[buyer].length < m.length {
		l.signed[buyer] = m
		l.unsaved[buyer] = true
	}
	l.marksMu.Unlock()
}

// Head returns the committed head and its signature under the feed key. It
// fails with [ErrUnsettled] before [Feed.Settle] where that is needed.
func (f *Feed) Head() (merkle.Head, []byte, error) {
	return f.signHead(f.l.tree.published())
}

// signHead signs a committed head, once.
func (f *Feed) signHead(h head) (merkle.Head, []byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.settled() {
		return merkle.Head{}, nil, ErrUnsettled
	}
	out := merkle.Head{Fork: f.state.Fork, Length: h.tree.Length(), TreeHash: h.tree.Hash()}
	if f.sig == nil || f.last != out {
		f.sig, f.last = f.manifest.Sign(f.priv, f.key, out), out
		f.l.note(f.buyer, mark{out.Length, out.Fork}, false)
	}
	return out, f.sig, nil
}

// Proof builds the proof that req asks for, with block bytes and, in an
// upgrade, the signature. Errors are those of [Log.Proof] and [Feed.Head].
func (f *Feed) Proof(req merkle.Request) (merkle.Proof, merkle.Head, error) {
	h := f.l.tree.published()
	p, err := f.l.proofAt(h, req)
	if err != nil || p.Upgrade == nil {
		return p, merkle.Head{Fork: f.Fork(), Length: h.tree.Length(), TreeHash: h.tree.Hash()}, err
	}
	signed, sig, err := f.signHead(h)
	p.Upgrade.Signature = sig
	return p, signed, err
}
