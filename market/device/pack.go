package device

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
	"unicode/utf8"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/sensors"
	"dazaar-edge/storage"
)

// packer makes blocks of samples and brings them to the log in order. One
// goroutine uses it.
type packer struct {
	d *Device
	w *feed.Writer

	pack    *block.Pack
	text    int           // bytes of text in it
	newest  time.Duration // monotonic time of the newest block
	offset  time.Duration // of the newest clock entry
	fixed   time.Duration // monotonic time of that
	clocked bool          // there is one for this boot

	waiting []parcel // not submitted
	flying  []flight // submitted, not known to be durable
	acks    int      // how many in pack, waiting and flying want to hear
	packed  []func(error)
	lost    *span  // packs that were dropped, behind flying and before waiting
	notes   []byte // what earlier runs left, and is not durable yet
	failing bool
	why     error     // of failing
	busy    time.Time // since when more waits than the log takes; zero if it takes it
	// hurrying: what is submitted is being committed at once.
	hurrying bool
}

// errDropped says that the card took nothing for so long that readings were dropped.
var errDropped = errors.New("the card takes no readings")

// span is from when to when packs were dropped.
type span struct{ from, to time.Duration }

// parcel is a block with those who want to hear what became of it.
type parcel struct {
	block.Block
	done []func(error)
}

// flight is a batch on its way. If lost is set, its first block is the gap
// entry for that.
type flight struct {
	parcels []parcel
	ticket  *feed.Ticket
	lost    *span
}

// hangs is how long a commit may take before it is said that the card hangs.
const hangs = 5 * time.Second

// hurryAt is how many acknowledgements may wait for a commit.
const hurryAt = 10

// hurry has everything committed now, if enough wait to hear of it: not while that is
// being done, or the card takes nothing, since each reading would be a block.
func (p *packer) hurry() {
	if p.acks < hurryAt || p.hurrying || p.failing {
		return
	}
	p.finish()
	p.fly()
	p.d.cfg.Feed.Hurry()
	p.hurrying = len(p.flying) > 0
}

// tell tells those of a parcel what became of it.
func (p *packer) tell(x parcel, err error) {
	for _, f := range x.done {
		f(err)
	}
	p.acks -= len(x.done)
}

// add encodes an entry for the log.
func (p *packer) add(n block.Entry) {
	p.newest = max(p.newest, n.Stamp.Mono)
	n.Stamp.Mono = p.newest
	b, err := p.d.cfg.Encoding.Entry(&n)
	if err != nil { // no entry of ours is impossible in any encoding
		p.d.log.Error("entry", "kind", n.Kind, "error", err)
		return
	}
	p.waiting = append(p.waiting, parcel{Block: b})
}

// clockStep is by how much the clock must be set for an entry that says so,
// beyond its own uncertainty.
const clockStep = 500 * time.Millisecond

// clock adds an entry when the clock became known or was set.
func (p *packer) clock(now sensors.Time) {
	if now.Wall.IsZero() {
		return
	}
	offset := time.Duration(now.Wall.UnixMicro())*time.Microsecond - now.Mono
	if now.Mono < p.fixed {
		return // taken before the clock was set, and comes behind that
	}
	if p.clocked && (offset-p.offset).Abs() <= clockStep+now.Err {
		return
	}
	p.clocked, p.offset, p.fixed = true, offset, now.Mono
	p.finish() // what was sensed before stands before
	p.add(block.Entry{Kind: block.Clock, Stamp: stamp(now), Offset: offset, OffsetErr: now.Err})
}

// loop packs until done is closed and nothing is left.
func (p *packer) loop(done <-chan struct{}) {
	tick := time.NewTicker(p.d.cfg.Pack)
	defer tick.Stop()
	for {
		p.submit()
		p.hurry()
		p.count()
		select {
		case s := <-p.d.samples:
			p.sample(s)
		case n := <-p.d.events:
			p.finish()
			p.add(n)
		case <-tick.C:
			p.finish()
		case <-p.landed():
		case <-done:
			for {
				select {
				case s := <-p.d.samples:
					p.sample(s)
					continue
				case n := <-p.d.events:
					p.finish()
					p.add(n)
					continue
				default:
				}
				break
			}
			p.finish()
			return
		}
	}
}

// landed is ready when the oldest submitted batch is done.
func (p *packer) landed() <-chan struct{} {
	if len(p.flying) == 0 {
		return nil
	}
	return p.flying[0].ticket.Done()
}

// sample adds what a sensor gave to the running pack.
func (p *packer) sample(s sample) {
	p.clock(s.at)
	if len(s.readings) == 0 { // nothing to keep, and nothing to wait for
		if s.done != nil {
			s.done(nil)
		}
		return
	}
	readings, text := p.values(s)
	if p.pack != nil && (len(p.pack.Readings)+len(readings) > maxReadings || p.text+text > min(maxText, p.d.cfg.Feed.MaxBlock()/8) || p.pack.Stamp.Wall.IsZero() != s.at.Wall.IsZero()) {
		p.finish()
	}
	if p.pack == nil {
		p.pack, p.text = &block.Pack{Stamp: stamp(s.at)}, 0
		if late := p.newest - s.at.Mono; late > 0 { // blocks are in the order of time, its reading is not
			p.pack.Stamp.Mono = p.newest
			if !s.at.Wall.IsZero() {
				p.pack.Stamp.Wall = s.at.Wall.Add(late)
			}
		}
		p.newest = p.pack.Stamp.Mono
	}
	p.text += text
	if s.done != nil {
		p.packed = append(p.packed, s.done)
		p.acks++
	}
	for _, r := range readings {
		r.Offset = s.at.Mono - p.pack.Stamp.Mono
		p.pack.Readings = append(p.pack.Readings, r)
	}
}

// values returns what a block has of a sample, and about how many bytes that is. What
// no block can have is left out alone.
func (p *packer) values(s sample) (out []block.Reading, text int) {
	for _, r := range s.readings {
		v, err := Value(r.Value)
		if err != nil {
			p.d.failed.Add(1)
			p.d.log.Error("a reading is left out", "sensor", s.sensor, "name", r.Name, "error", err)
			continue
		}
		x := block.Reading{Name: s.sensor + "/" + r.Name, Unit: r.Unit, Value: v, Quality: r.Quality}
		text += len(x.Name) + len(x.Unit) + len(v.Text) + len(v.Data) + 32
		out = append(out, x)
	}
	return out, text
}

// Value returns what a block has of a reading's value.
func Value(v any) (block.Value, error) {
	switch v := v.(type) {
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return block.Value{}, fmt.Errorf("%v is no number", v)
		}
		return block.Number(v), nil
	case string:
		if !utf8.ValidString(v) {
			return block.Value{}, fmt.Errorf("%.40q is not UTF-8", v)
		}
		return block.Value{Kind: block.Text, Text: v}, nil
	case bool:
		return block.Value{Kind: block.Bool, Bool: v}, nil
	case []byte:
		return block.Value{Kind: block.Data, Data: v}, nil
	}
	return block.Value{}, fmt.Errorf("value of type %T", v)
}

// finish makes a block of the running pack.
func (p *packer) finish() {
	x := parcel{done: p.packed}
	p.packed = nil
	if p.pack == nil || len(p.pack.Readings) == 0 {
		p.pack = nil
		p.tell(x, nil) // of what cannot be encoded nothing comes, however often it does
		return
	}
	var err error
	x.Block, err = p.d.cfg.Encoding.Pack(p.pack)
	if most := p.d.cfg.Feed.MaxBlock(); err == nil && len(x.Data) > most {
		err = fmt.Errorf("%d bytes, and a block of this feed has at most %d: shorter texts, or a larger max_share", len(x.Data), most)
	}
	from := p.pack.Stamp
	p.pack = nil
	if err != nil { // it would not be better the next time
		p.d.log.Error("readings are left out", "error", err)
		p.d.dropped.Add(1)
		p.add(block.Entry{Kind: block.GapEntry, Stamp: from, From: &from.Mono, To: &p.newest, Cause: CauseInvalid})
		p.tell(x, nil)
		return
	}
	p.waiting = append(p.waiting, x)
}

// submit collects what became of submitted batches and submits what waits.
func (p *packer) submit() {
	for len(p.flying) > 0 {
		f := p.flying[0]
		select {
		case <-f.ticket.Done():
		default:
			p.fly()
			return
		}
		if err := f.ticket.Wait(context.Background()); err != nil {
			p.again(err)
			return // tried again with the next tick
		}
		for _, x := range f.parcels {
			p.tell(x, nil)
		}
		p.flying = p.flying[1:]
		p.failing, p.busy = false, time.Time{}
		p.d.trouble.Store(nil)
		p.hurrying = p.hurrying && len(p.flying) > 0
	}
	p.fly()
}

// fly submits what waits, with a gap entry before it if packs were dropped.
func (p *packer) fly() {
	if len(p.waiting) == 0 {
		return
	}
	f := flight{parcels: p.waiting}
	if p.lost != nil {
		from, to := p.lost.from, p.lost.to
		at := p.waiting[0].Stamp
		b, err := p.d.cfg.Encoding.Entry(&block.Entry{
			Kind: block.GapEntry, Stamp: block.Stamp{Boot: at.Boot, Mono: at.Mono}, From: &from, To: &to, Cause: CauseStorage,
		})
		if err != nil { // no entry of ours is impossible in any encoding
			p.d.log.Error("gap entry", "error", err)
			return
		}
		f.lost, f.parcels = p.lost, append([]parcel{{Block: b}}, p.waiting...)
	}
	blocks := make([]block.Block, len(f.parcels))
	for i, x := range f.parcels {
		blocks[i] = x.Block
	}
	var err error
	if f.ticket, err = p.w.Submit(blocks...); err == nil {
		p.busy = time.Time{}
		p.flying = append(p.flying, f)
		p.waiting, p.lost = nil, nil
		return
	}
	if !errors.Is(err, feed.ErrBusy) {
		p.complain(err)
		if len(p.flying) == 0 {
			p.shed()
		}
		return
	}
	// More waits than is committed at a time: that is a matter of a moment, or the card
	// hangs.
	if p.busy.IsZero() {
		p.busy = time.Now()
		p.d.cfg.Feed.Hurry()
	}
	if time.Since(p.busy) > hangs {
		p.complain(fmt.Errorf("the card has not answered for %v: %w", hangs, err))
	}
	p.shed()
}

func (p *packer) complain(err error) {
	why := err.Error()
	p.d.trouble.Store(&why)
	if !p.failing {
		p.d.log.Error("the card does not take readings; they wait in memory", "error", err)
	}
	p.failing, p.why = true, err
}

// again takes back everything from a failed batch on.
func (p *packer) again(err error) {
	p.complain(err)
	var back []parcel
	var lost *span
	for _, f := range p.flying {
		err := f.ticket.Wait(context.Background()) // those behind a failed one fail with it, at once
		parcels, durable := f.parcels, 0
		if partial := (*feed.PartialError)(nil); errors.As(err, &partial) {
			durable = partial.Durable
		} else if err == nil {
			durable = len(parcels)
		}
		for _, x := range parcels[:durable] {
			p.tell(x, nil)
		}
		parcels = parcels[durable:]
		if f.lost != nil && durable == 0 {
			lost, parcels = f.lost.join(lost), parcels[1:]
		}
		back = append(back, parcels...)
	}
	p.flying, p.hurrying = nil, false
	p.w.Reset()
	p.lost = p.lost.join(lost)
	p.waiting = append(back, p.waiting...)
	p.shed()
}

// join returns what covers both; either may be nil.
func (s *span) join(t *span) *span {
	if s == nil || t == nil {
		if s == nil {
			return t
		}
		return s
	}
	return &span{min(s.from, t.from), max(s.to, t.to)}
}

// count takes down how much waits.
func (p *packer) count() {
	n := len(p.waiting)
	for _, f := range p.flying {
		n += len(f.parcels)
	}
	p.d.waiting.Store(int64(n))
}

// shed drops the oldest packs when too many wait, and remembers from when to
// when. Entries stay: they are few, and say what nothing else does.
func (p *packer) shed() {
	for drop := len(p.waiting) - maxWaiting; drop > 0; drop-- {
		i := slices.IndexFunc(p.waiting, func(x parcel) bool { return x.Entry == "" })
		if i < 0 {
			return
		}
		gone := span{p.waiting[i].Stamp.Mono, p.newest}
		if i+1 < len(p.waiting) {
			gone.to = p.waiting[i+1].Stamp.Mono
		}
		p.lost = p.lost.join(&gone)
		p.tell(p.waiting[i], errDropped)
		p.waiting = slices.Delete(p.waiting, i, i+1)
		p.d.dropped.Add(1)
	}
}

// endTries is how often end tries again while nothing moves.
const endTries = 5

// end waits until everything is durable, or the card does not take it.
func (p *packer) end() error {
	for tries := 0; tries < endTries; tries++ {
		before := len(p.waiting)
		p.submit()
		if err := p.d.cfg.Feed.Flush(context.Background()); errors.Is(err, storage.ErrClosed) {
			break
		}
		p.submit()
		if len(p.waiting)+len(p.flying) == 0 {
			return nil
		}
		if len(p.waiting) < before {
			tries = 0
		}
	}
	p.count()
	return errors.Join(fmt.Errorf("the card did not take the last %d blocks", p.d.waiting.Load()), p.why, p.leave())
}
