package feed

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
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
	// Signed is the longest head of this generation and fork that was signed
	// when the state was saved; later ones are in the log's marks.
	Signed uint64
}

// Epoch counts the opens of a log after which sales must be settled.
type Epoch struct {
	Number uint64
	Log    [16]byte // the log's id
	// Length and TreeHash are the head when the log was closed in order. A log
	// that comes back with another one was restored from a copy.
	Length   uint64
	TreeHash merkle.Hash
}

// Sales keeps the state of sales durably: Save and SetEpoch return when it
// survives a power cut. The log calls Load and Save of a sale one at a time.
type Sales interface {
	Load(buyer [32]byte) (SaleState, bool, error)
	Save(states map[[32]byte]SaleState) error
	// Each calls f for every sale until it returns false.
	Each(f func(buyer [32]byte, s SaleState) bool) error
	Epoch() (Epoch, error)
	SetEpoch(Epoch) error
}

// mark is the newest head that was signed for a sale.
type mark struct{ length, fork, generation uint64 }

// of tells whether the mark is of the feed in this state.
func (m mark) of(s SaleState) bool { return m.fork == s.Fork && m.generation == s.Generation }

const (
	markPrefix = "s"
	markSize   = 24
)

func (m mark) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, m.length)
	b = binary.LittleEndian.AppendUint64(b, m.fork)
	return binary.LittleEndian.AppendUint64(b, m.generation)
}

// loadMarks reads the signed heads that rode on commits.
func (l *Log) loadMarks() {
	l.st.Marks(func(key string, v []byte) bool {
		if len(key) == 1+32 && key[:1] == markPrefix && len(v) == markSize {
			l.signed[[32]byte([]byte(key[1:]))] = mark{
				binary.LittleEndian.Uint64(v), binary.LittleEndian.Uint64(v[8:]), binary.LittleEndian.Uint64(v[16:]),
			}
		}
		return true
	})
}

// maxUnsaved is how many signed heads may wait for a commit.
const maxUnsaved = 256

// writeMarks hands signed heads to the running commit. When there is no room
// for more, all go to the sales' own store. No lock is held while the storage
// is called, which may call back.
func (l *Log) writeMarks() {
	l.marksMu.Lock()
	unsaved := l.unsaved
	l.unsaved = map[[32]byte]bool{}
	todo := make(map[[32]byte]mark, len(unsaved))
	for buyer := range unsaved {
		todo[buyer] = l.signed[buyer]
	}
	l.marksMu.Unlock()
	for buyer, m := range todo {
		err := l.st.SetMark(markPrefix+string(buyer[:]), m.encode())
		if errors.Is(err, storage.ErrMarksFull) {
			err = l.spill()
			if err == nil {
				return // it took all
			}
		}
		if err != nil {
			l.log.Warn("signed heads are not noted", "log", l.cfg.Dir, "error", err)
			l.marksMu.Lock()
			for b := range unsaved {
				l.unsaved[b] = true
			}
			l.marksMu.Unlock()
			return
		}
	}
}

// copySigned notes all signed heads in the sales' store, too, and returns them.
// salesMu is held.
func (l *Log) copySigned() (map[[32]byte]mark, error) {
	l.marksMu.Lock()
	signed := maps.Clone(l.signed)
	l.marksMu.Unlock()
	states := make(map[[32]byte]SaleState, len(signed))
	for buyer, m := range signed {
		s, ok, err := l.cfg.Sales.Load(buyer)
		if err != nil {
			return nil, err
		}
		if ok && m.of(s) && m.length > s.Signed {
			s.Signed = m.length
			states[buyer] = s
		}
	}
	if len(states) == 0 {
		return signed, nil
	}
	return signed, l.cfg.Sales.Save(states)
}

// spill moves all signed heads from the marks to the sales' store.
func (l *Log) spill() error {
	l.salesMu.Lock()
	defer l.salesMu.Unlock()
	signed, err := l.copySigned()
	if err != nil {
		return err
	}
	l.marksMu.Lock()
	for buyer, m := range signed {
		if l.signed[buyer] == m { // else it changed meanwhile, and is written later
			delete(l.signed, buyer)
			delete(l.unsaved, buyer)
		}
	}
	l.marksMu.Unlock()
	for buyer := range signed {
		l.st.RemoveMark(markPrefix + string(buyer[:]))
	}
	return nil
}

// signedLengths returns the signed lengths before first, longest first, at most
// limit.
func (l *Log) signedLengths(first uint64, limit int) []uint64 {
	lengths := map[uint64]bool{}
	l.marksMu.Lock()
	for _, m := range l.signed {
		if m.length > 0 && m.length < first {
			lengths[m.length] = true
		}
	}
	l.marksMu.Unlock()
	trim := func() []uint64 {
		all := slices.Sorted(maps.Keys(lengths))
		slices.Reverse(all)
		return all[:min(len(all), limit)]
	}
	err := l.cfg.Sales.Each(func(_ [32]byte, s SaleState) bool {
		if s.Signed > 0 && s.Signed < first {
			lengths[s.Signed] = true
		}
		if len(lengths) > 2*limit {
			kept := trim()
			clear(lengths)
			for _, n := range kept {
				lengths[n] = true
			}
		}
		return true
	})
	if err != nil {
		l.log.Warn("sales cannot be read", "log", l.cfg.Dir, "error", err)
	}
	return trim()
}

// beginEpoch begins a new epoch, in which all sales must be settled, unless the
// log is as it was when it was closed in order.
func (l *Log) beginEpoch(found storage.Recovery) error {
	e, err := l.cfg.Sales.Epoch()
	if err != nil {
		return err
	}
	h := l.tree.published()
	same := e.Number > 0 && found.Clean && e.Log == l.st.ID() && e.Length == h.tree.Length() && e.TreeHash == h.tree.Hash()
	if !same {
		e = Epoch{Number: e.Number + 1, Log: l.st.ID()}
		err = l.cfg.Sales.SetEpoch(e)
	}
	l.epoch = e.Number
	return err
}

// endEpoch notes the head of a log that was closed in order.
func (l *Log) endEpoch() error {
	h := l.tree.published()
	return l.cfg.Sales.SetEpoch(Epoch{Number: l.epoch, Log: l.st.ID(), Length: h.tree.Length(), TreeHash: h.tree.Hash()})
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
	l.salesMu.Lock()
	defer l.salesMu.Unlock()
	s, ok, err := l.cfg.Sales.Load(buyer)
	if err != nil {
		return nil, err
	}
	l.marksMu.Lock()
	m, marked := l.signed[buyer]
	l.marksMu.Unlock()
	// A mark that is ahead of the sale's state: that was lost or is an old one.
	// Epoch 0 never is, so the feed is not settled.
	if marked && (m.generation > s.Generation || m.generation == s.Generation && m.fork > s.Fork || !ok) {
		s = SaleState{Generation: max(m.generation, s.Generation), Fork: m.fork}
	} else if !ok {
		s = SaleState{Settled: l.epoch}
	} else {
		f := &Feed{l: l, buyer: buyer, state: s}
		return f, f.derive()
	}
	if err := l.cfg.Sales.Save(map[[32]byte]SaleState{buyer: s}); err != nil {
		return nil, err
	}
	f := &Feed{l: l, buyer: buyer, state: s}
	return f, f.derive()
}

// Sold tells whether a buyer has, or had, a feed.
func (l *Log) Sold(buyer [32]byte) (bool, error) {
	l.salesMu.Lock()
	defer l.salesMu.Unlock()
	_, ok, err := l.cfg.Sales.Load(buyer)
	l.marksMu.Lock()
	defer l.marksMu.Unlock()
	_, marked := l.signed[buyer]
	return ok || marked, err
}

// Renew ends the feed of a sale and begins its next one: after a burn, or when
// the buyer's head lies too far back. The old key is never used again.
func (l *Log) Renew(buyer [32]byte) (*Feed, error) {
	l.salesMu.Lock()
	defer l.salesMu.Unlock()
	s, _, err := l.cfg.Sales.Load(buyer)
	if err != nil {
		return nil, err
	}
	s = SaleState{Generation: s.Generation + 1, Settled: l.epoch}
	if err := l.cfg.Sales.Save(map[[32]byte]SaleState{buyer: s}); err != nil {
		return nil, err
	}
	f := &Feed{l: l, buyer: buyer, state: s}
	f.note(0)
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

// signedLength returns the longest head of this fork that is known to be signed.
func (f *Feed) signedLength() uint64 {
	n := f.state.Signed
	f.l.marksMu.Lock()
	if m := f.l.signed[f.buyer]; m.of(f.state) {
		n = max(n, m.length)
	}
	f.l.marksMu.Unlock()
	if f.sig != nil && f.last.Fork == f.state.Fork {
		n = max(n, f.last.Length)
	}
	return n
}

// note takes a head of this many blocks as the newest that was signed. A mark
// of a later generation or fork stays.
func (f *Feed) note(length uint64) {
	m := mark{length, f.state.Fork, f.state.Generation}
	l := f.l
	l.marksMu.Lock()
	old, ok := l.signed[f.buyer]
	newer := !ok || m.generation > old.generation || m.generation == old.generation && (m.fork > old.fork || m.fork == old.fork && m.length > old.length)
	if newer {
		l.signed[f.buyer] = m
		l.unsaved[f.buyer] = true
	}
	many := len(l.unsaved) > maxUnsaved
	l.marksMu.Unlock()
	if many {
		l.queue.poke()
	}
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
	f.l.salesMu.Lock()
	defer f.l.salesMu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state
	length := f.l.st.Length()
	signed := f.signedLength()
	// An empty head is no proof of anything: nobody signs it.
	same := head != nil && head.Length > 0 && head.Fork == s.Fork && head.Length <= length && claimed <= s.Fork && signed <= length
	if same {
		h, err := f.l.TreeHashAt(head.Length)
		if errors.Is(err, storage.ErrClosed) {
			return err // that says nothing about the buyer's head
		} else if err != nil {
			return fmt.Errorf("%w: %d blocks: %w", ErrTooOld, head.Length, err)
		}
		same = h == head.TreeHash
	}
	if same {
		s.Signed = max(signed, head.Length)
	} else {
		s.Fork = max(s.Fork, claimed)
		if head != nil {
			s.Fork = max(s.Fork, head.Fork)
		}
		if s.Fork >= compact.MaxUint {
			return fmt.Errorf("%w: no fork is above %d", ErrTooOld, s.Fork)
		}
		s.Fork++
		s.Signed = 0
	}
	s.Settled = f.l.epoch
	if err := f.l.cfg.Sales.Save(map[[32]byte]SaleState{f.buyer: s}); err != nil {
		return err
	}
	f.state = s
	if !same {
		f.sig = nil
	}
	f.note(s.Signed)
	return nil
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
		f.note(out.Length)
	}
	return out, f.sig, nil
}

// Proof builds the proof that req asks for, with block bytes and, in an
// upgrade, the signature and the head that it is of. Errors are those of
// [Log.Proof] and [Feed.Head].
func (f *Feed) Proof(req merkle.Request) (merkle.Proof, merkle.Head, error) {
	h := f.l.tree.published()
	p, err := f.l.proofAt(h, req)
	if err != nil || p.Upgrade == nil {
		return p, merkle.Head{}, err
	}
	signed, sig, err := f.signHead(h)
	p.Upgrade.Signature = sig
	return p, signed, err
}

// Secret is the secret of a feed's key, which makes the key worthless where it is published.
type Secret struct{ Key, Signer, Seed [32]byte }

// maxSecrets is of how many feeds of a sale [Feed.Secrets] tells.
const maxSecrets = 1000

// Secrets returns the secrets of all feeds that the sale had, the present one last; of those that
// had more than a thousand, the last thousand.
func (f *Feed) Secrets() (out []Secret, err error) {
	last := f.Generation()
	for g := last - min(last, maxSecrets-1); g <= last; g++ {
		x := &Feed{l: f.l, buyer: f.buyer, state: SaleState{Generation: g}}
		if err := x.derive(); err != nil {
			return nil, err
		}
		out = append(out, Secret{x.key, [32]byte(x.priv.Public().(ed25519.PublicKey)), [32]byte(x.priv.Seed())})
	}
	return out, nil
}
