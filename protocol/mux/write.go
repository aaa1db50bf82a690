package mux

import (
	"fmt"
	"time"
)

// writer is the state of the writing goroutine.
type writer struct {
	m     *Mux
	b     Batch
	sent  int  // bytes written since backlog was asked for
	known int  // backlog then
	fresh bool // it was asked for in this round
	ask   bool // it must be
	tries int  // waits in a row for the transport
	stuck int  // bytes on their way, the fewest since
	since time.Time
	timer *time.Timer
}

// Waits for a transport that is full, doubled from the first to the last.
const (
	firstWait = time.Millisecond
	lastWait  = 32 * time.Millisecond
)

// maxGather is how long messages are gathered for one frame.
const maxGather = 300 * time.Microsecond

// keptBuffer is how large a buffer an idle connection keeps.
const keptBuffer = 512

func (m *Mux) write() error {
	w := &writer{m: m, b: Batch{m: m}, timer: time.NewTimer(time.Hour)}
	defer w.timer.Stop()
	for {
		if err := m.open(); err != nil {
			return err
		}
		until, err := w.round()
		if err != nil {
			return err
		}
		if until.IsZero() {
			w.trim()
			<-m.wake
			continue
		}
		wait := time.Until(until)
		if wait <= 0 {
			continue
		}
		if wait > lastWait {
			w.trim()
		}
		w.timer.Reset(wait)
		select {
		case <-m.wake:
		case <-w.timer.C:
		}
	}
}

// trim gives back what an idle connection does not need.
func (w *writer) trim() {
	if cap(w.b.buf) > keptBuffer {
		w.b.buf = nil
	}
	m := w.m
	m.mu.Lock()
	if q := m.queue[:cap(m.queue)]; len(m.queue) == 0 && len(q) > 0 && (len(q) > 1 || cap(q[0].buf) > keptBuffer) {
		m.queue = nil
	}
	m.mu.Unlock()
}

// round sends one frame. If there is nothing to send, it returns until when to
// wait; zero is until somebody wakes the writer. A time that is past means that
// there may be more.
func (w *writer) round() (time.Time, error) {
	m := w.m
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return time.Time{}, m.err
	}
	w.b.reset()
	if n := len(m.queue); n > 0 {
		// The first frame of the queue; producers may add to it.
		q := m.queue[0]
		w.b.load(&q)
		m.setQueued(m.queued - len(q.buf))
		copy(m.queue, m.queue[1:])
		m.queue[n-1], m.queue = q, m.queue[:n-1]
	}
	now := time.Now()
	hold, finishing, more := m.hold, m.finishing, len(m.queue) > 0
	m.mu.Unlock()
	if finishing && w.b.empty() {
		return time.Time{}, w.finish()
	}
	var next time.Time
	full := false
	switch {
	case finishing, more, w.b.Full():
	case hold.After(now):
		next = hold
	default:
		w.measure()
		next, full = w.produce(now)
	}
	if w.b.empty() {
		if full && !w.fresh {
			w.ask = true
			return now, nil
		}
		if full {
			if err := w.stall(now); err != nil {
				return time.Time{}, err
			}
			w.tries++
			t := now.Add(min(firstWait<<min(w.tries-1, 5), lastWait))
			if next.IsZero() || t.Before(next) {
				next = t
			}
		}
		return next, nil
	}
	w.tries, w.since = 0, time.Time{}
	for _, frame := range w.b.ahead {
		if err := m.stream.WriteMessage(frame); err != nil {
			return time.Time{}, err
		}
		w.sent += len(frame)
	}
	if w.b.n > 0 {
		frame := w.b.frame()
		if err := m.stream.WriteMessage(frame); err != nil {
			return time.Time{}, err
		}
		w.sent += len(frame)
	}
	if w.b.charged > 0 && m.cfg.Pace != nil {
		t := m.cfg.Pace.Spend(w.b.charged)
		m.mu.Lock()
		m.hold = t
		m.mu.Unlock()
	}
	return now, nil
}

// finish tells the other side that this was all, and waits until it heard it.
func (w *writer) finish() error {
	if w.m.stream.CloseWrite() != nil {
		return ErrClosed
	}
	w.timer.Reset(lastWords)
	for {
		select {
		case <-w.m.wake:
			w.m.mu.Lock()
			err := w.m.err
			w.m.mu.Unlock()
			if err != nil { // it read to the end and closed, or what else happened
				return ErrClosed
			}
		case <-w.timer.C:
			return ErrClosed
		}
	}
}

// stall cuts a peer off that acknowledges nothing of what is on its way.
func (w *writer) stall(now time.Time) error {
	if w.since.IsZero() || w.b.backlog < w.stuck {
		w.since, w.stuck = now, w.b.backlog
	}
	if now.Sub(w.since) > w.m.cfg.Stall {
		return fmt.Errorf("%w: %d bytes for %v", ErrSlow, w.stuck, w.m.cfg.Stall)
	}
	return nil
}

// measure sets the batch's idea of what is on its way. The transport is asked
// only when the guess, that nothing arrived, would say that there is no room.
func (w *writer) measure() {
	window := w.m.cfg.Window
	w.fresh = false
	if window == 0 {
		return
	}
	if w.ask || w.known+w.sent+2*frameTarget > window {
		n, ok := w.m.stream.Backlog()
		if !ok {
			return
		}
		w.known, w.sent, w.fresh, w.ask = n, 0, true, false
	}
	w.b.window, w.b.backlog = window, w.known+w.sent
}

// produce asks the channels in turn to fill the batch. It returns when the next
// one wants to be asked, and whether one has something that does not fit.
func (w *writer) produce(now time.Time) (next time.Time, full bool) {
	m := w.m
	for {
		m.mu.Lock()
		c, at := m.nextProducer(now)
		m.mu.Unlock()
		if c == nil {
			return at, full
		}
		w.b.who, w.b.from, w.b.refused, w.b.made = c, c.local, false, 0
		t := c.producer.Produce(&w.b)
		w.b.abandon()
		m.mu.Lock()
		if w.b.made > 0 || w.b.refused || w.b.Full() {
			c.ready = true // it may have more
		} else {
			c.next = t
		}
		c.spent += uint64(w.b.made)
		m.mu.Unlock()
		if w.b.Full() || time.Since(now) > maxGather {
			return now, full // the other side has something to do meanwhile
		}
		if w.b.refused {
			return time.Time{}, true
		}
	}
}

// nextProducer returns the channel whose turn it is, the one that has produced
// least of those that have something, or when the first one will want to be
// asked. The channel is no longer ready. mu is held.
func (m *Mux) nextProducer(now time.Time) (least *Channel, next time.Time) {
	for _, c := range m.locals {
		if c == nil || c.producer == nil || c.closed || !c.opened {
			continue
		}
		if !c.ready && !c.next.IsZero() {
			if c.next.After(now) {
				if next.IsZero() || c.next.Before(next) {
					next = c.next
				}
				continue
			}
			c.ready = true
		}
		if c.ready && (least == nil || c.spent < least.spent) {
			least = c
		}
	}
	if least == nil {
		return nil, next
	}
	// Who had nothing to send has saved up nothing.
	m.level = max(m.level, least.spent)
	least.spent = m.level
	least.ready, least.next = false, time.Time{}
	return least, next
}
