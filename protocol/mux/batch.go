package mux

import "dazaar-edge/protocol/compact"

// frameTarget is the size from which on a frame takes no further message.
const frameTarget = 16 << 10

// control is the channel number of control messages.
const control = 0

// Control message types.
const (
	typeBatch = iota
	typeOpen
	typeReject
	typeClose
)

// maxMerged is how large a frame of small messages may grow, unless one alone is
// larger: every peer reads 64 KiB.
const maxMerged = 32 << 10

// Batch is a frame under construction. Only a [Producer] gets one.
type Batch struct {
	m       *Mux     // whose queue goes before what is produced; nil has none
	ahead   [][]byte // frames that go before this one
	size    int      // bytes in them
	made    int      // bytes produced since a channel was asked
	buf     []byte   // 00 00, then entries
	ch      uint64   // of the last entry
	n       int      // entries
	first   int      // where the first entry's message begins
	begin   int      // where the open entry's message begins
	prefix  int      // length of the open entry's length field
	who     *Channel // whose producer is asked; nil is nobody's
	from    uint64   // its number
	begun   bool     // a message was begun at undo, behind one of channel undoCh
	undo    int
	undoCh  uint64
	charged int
	// window and backlog bound what may be sent and not yet acknowledged; no
	// window, no bound.
	window, backlog int
	refused         bool // Fits said no
}

func (b *Batch) reset() {
	*b = Batch{m: b.m, buf: b.buf[:0]}
}

func (b *Batch) empty() bool { return b.n == 0 && len(b.ahead) == 0 }

// load takes what is in q; b is empty.
func (b *Batch) load(q *Batch) {
	b.buf = append(b.buf[:0], q.buf...)
	b.ch, b.n, b.first = q.ch, q.n, q.first
}

// merge appends what is in q.
func (b *Batch) merge(q *Batch) {
	if b.n == 0 {
		b.load(q)
		return
	}
	b.buf = append(append(b.buf, 0), q.buf[2:]...) // the channel of its entries is named first
	b.ch = q.ch
	b.n += q.n
}

// seal makes what there is a frame that goes before.
func (b *Batch) seal() {
	if b.n == 0 {
		return
	}
	b.ahead = append(b.ahead, b.frame())
	b.size += len(b.buf)
	b.buf, b.n = nil, 0
}

// catchUp puts what was sent since the frame was begun before what comes next, a
// message of about size bytes: a handler that sends and then produces is heard in
// this order. Of a channel that was closed meanwhile the last words are before its
// close, which is queued; behind it the number may be another channel's.
func (b *Batch) catchUp(size int) {
	if b.m == nil || b.m.pending.Load() == 0 {
		return
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	if b.who != nil && b.who.closed {
		return
	}
	for i := range b.m.queue {
		q := &b.m.queue[i]
		if len(b.buf)+len(q.buf) > maxMerged {
			b.seal()
		}
		b.merge(q)
	}
	if len(b.buf)+size > maxMerged {
		b.seal()
	}
	b.m.queue = b.m.queue[:0]
	b.m.setQueued(0)
}

// open begins an entry of a message of about size bytes.
func (b *Batch) open(ch, typ uint64, size int) []byte {
	switch {
	case b.n == 0:
		b.buf = append(b.buf, control, typeBatch)
		b.buf = compact.AppendUint(b.buf, ch)
	case ch != b.ch:
		b.buf = append(b.buf, 0)
		b.buf = compact.AppendUint(b.buf, ch)
	}
	b.ch = ch
	b.prefix = compact.UintSize(uint64(size + compact.UintSize(typ)))
	for range b.prefix {
		b.buf = append(b.buf, 0)
	}
	b.begin = len(b.buf)
	if b.n == 0 {
		b.first = b.begin
	}
	b.buf = compact.AppendUint(b.buf, typ)
	return b.buf
}

// close ends the entry.
func (b *Batch) close(buf []byte) {
	n := len(buf) - b.begin
	if size := compact.UintSize(uint64(n)); size != b.prefix {
		var pad [9]byte
		at := b.begin - b.prefix
		if size > b.prefix {
			buf = append(buf, pad[:size-b.prefix]...)
		}
		copy(buf[at+size:], buf[b.begin:b.begin+n])
		buf = buf[:at+size+n]
		if b.n == 0 {
			b.first = at + size
		}
		b.begin, b.prefix = at+size, size
	}
	compact.AppendUint(buf[:b.begin-b.prefix], uint64(n))
	b.buf = buf
	b.n++
}

// frame returns what goes into one message of the stream: a batch, or the bare
// message if there is but one.
func (b *Batch) frame() []byte {
	if b.n != 1 {
		return b.buf
	}
	size := compact.UintSize(b.ch)
	compact.AppendUint(b.buf[:b.first-size], b.ch)
	return b.buf[b.first-size:]
}

// Begin starts a message of the producer's channel and returns the buffer to
// append it to. size is about how long it will be. Without End it is as if it
// had not begun.
func (b *Batch) Begin(typ uint64, size int) []byte {
	if b.begun {
		b.buf, b.ch = b.buf[:b.undo], b.undoCh
	}
	b.catchUp(size)
	b.begun, b.undo, b.undoCh = true, len(b.buf), b.ch
	return b.open(b.from, typ, size)
}

// abandon takes back a message that was begun and not ended.
func (b *Batch) abandon() {
	if b.begun {
		b.buf, b.ch, b.begun = b.buf[:b.undo], b.undoCh, false
	}
}

// End completes the message that Begin started. charged is how many bytes of it
// count against the upload cap.
func (b *Batch) End(buf []byte, charged int) {
	b.close(buf)
	b.made += len(b.buf) - b.undo
	b.begun = false
	b.charged += charged
}

// Full tells that no further message shall be begun.
func (b *Batch) Full() bool { return b.size+len(b.buf) >= frameTarget }

// fewBytes on their way are small messages: they do not hold up one that is
// larger than the window.
const fewBytes = 2 << 10

// Fits tells whether a message of size bytes may be framed now: with what is on
// its way it does not exceed the window, but for what is queued, or next to nothing
// is on its way.
func (b *Batch) Fits(size int) bool {
	ok := b.window == 0 || b.backlog+b.size+len(b.buf)+size <= b.window || b.backlog < fewBytes && b.charged == 0
	b.refused = !ok
	return ok
}
