package dht

import (
	"time"

	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
)

// Times of watching a connection.
const (
	watchEvery = 200 * time.Millisecond
	// askAfter is how long the other side may be silent, when something is due, until it is
	// asked for a sign of life, and deadAfter until it is given up.
	askAfter  = 500 * time.Millisecond
	deadAfter = 2 * time.Second
	// idleAfter is that where nothing is due: who lives says so every five seconds.
	idleAfter = 15 * time.Second
)

// watch ends a connection whose path is dead: where data usually comes often, soon after it
// should have; where it does not, when nothing at all came for a while.
func (n *Node) watch(conn *secretstream.Conn, s *udx.Stream) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var got uint64
	var usual time.Duration // between data, about; 0 is not known
	last, asked := time.Now(), time.Time{}
	for {
		select {
		case <-t.C:
		case <-conn.Done():
			return
		case <-s.Done():
			return
		case <-n.ctx.Done():
			return
		}
		now := time.Now()
		if is := s.Stats().Received; is != got {
			if got > 0 {
				usual += (now.Sub(last) - usual) / 4
			}
			got, last, asked = is, now, time.Time{}
			continue
		}
		silent := s.Heard()
		due := usual > 0 && now.Sub(last) > 2*usual+askAfter || s.Backlog() > 0 && silent > askAfter
		switch {
		case silent > idleAfter, due && silent > deadAfter && !asked.IsZero() && now.Sub(asked) > deadAfter-askAfter:
			n.log.Debug("dht: a path is dead", "remote", s.RemoteAddr(), "silent", silent.Round(time.Millisecond))
			conn.Close()
			return
		case due && silent > askAfter:
			if asked.IsZero() {
				asked = now
			}
			s.Heartbeat()
			conn.Touch() //nolint:errcheck // where our address is another one now, the other side follows an authentic frame
		case silent < askAfter:
			asked = time.Time{}
		}
	}
}

// suspect tells whether a buyer's stream gets no answer to what is on its way: the network,
// or our address, may be another one now.
func (l *Listener) suspect() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.streams {
		switch {
		case !s.Alive():
			delete(l.streams, s)
		case s.Backlog() > 0 && s.Heard() > 2*askAfter:
			return true
		}
	}
	return false
}
