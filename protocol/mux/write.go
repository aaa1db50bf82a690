package mux

import "time"

// writer is the state of the writing goroutine.
type writer struct {
	m     *Mux
	b     Batch
	sent  int  // bytes written since backlog was asked for
	known int  // backlog then
	fresh bool // it was asked for in this round
	ask   bool // it must be
	tries int  // waits in a row for the transport
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
	w := &writer{m: m, timer: time.NewTimer(time.Hour)}
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
	w.m.mu.Lock()
	if w.m.queue.n == 0 && cap(w.m.queue.buf) > keptBuffer {
		w.m.queue.buf = nil
	}
	w.m.mu.Unlock()
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
	w.b, m.queue = m.queue, w.b
	now := time.Now()
	hold, finishing := m.hold, m.finishing
	m.mu.Unlock()
	if finishing && w.b.n == 0 {
		return time.Time{}, ErrClosed
	}
	var next time.Time
	full := false
	switch {
	case finishing:
	case hold.After(now):
		next = hold
	default:
		w.measure()
		next, full = w.produce(now)
	}
	if w.b.n == 0 {
		if full && !w.fresh {
			w.ask = true
			return now, nil
		}
		if full {
			w.tries++
			t := now.Add(min(firstWait<<min(w.tries-1, 5), lastWait))
			if next.IsZero() || t.Before(next) {
				next = t
			}
		}
		return next, nil
	}
	w.tries = 0
	frame := w.b.frame()
	if err := m.stream.WriteMessage(frame); err != nil {
		return time.Time{}, err
	}
	w.sent += len(frame)
	if w.b.charged > 0 && m.cfg.Pace != nil {
		t := m.cfg.Pace.Spend(w.b.charged)
		m.mu.Lock()
		m.hold = t
		m.mu.Unlock()
	}
	return now, nil
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
		before := w.b.n
		w.b.from, w.b.refused = c.local, false
		t := c.producer.Produce(&w.b)
		m.mu.Lock()
		if w.b.n > before || w.b.refused {
			c.ready = true // it may have more
		} else {
			c.next = t
		}
		if w.b.refused && w.b.n == before {
			m.turn-- // it is still its turn
		}
		m.mu.Unlock()
		if w.b.Full() || time.Since(now) > maxGather {
			return now, full // the other side has something to do meanwhile
		}
		if w.b.refused {
			return time.Time{}, true
		}
	}
}

// nextProducer returns the channel whose turn it is, or when the first one will
// want to be asked. The channel is no longer ready. mu is held.
func (m *Mux) nextProducer(now time.Time) (*Channel, time.Time) {
	var next time.Time
	for i := range m.locals {
		k := (m.turn + i) % len(m.locals)
		c := m.locals[k]
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
		if c.ready {
			c.ready, c.next = false, time.Time{}
			m.turn = k + 1
			return c, next
		}
	}
	return nil, next
}
