package client

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
)

const (
	// nextWay is after how long without a connection the next way is tried as well, and
	// reachTime bounds an attempt where there are several.
	nextWay   = 500 * time.Millisecond
	reachTime = 45 * time.Second
	// soonLook is when one who goes by another way than the best first looks for a better
	// one.
	soonLook = 2 * time.Second
	// agreeTime is how long the seller may take to agree to a hand-over.
	agreeTime = 10 * time.Second
)

// path is a connection with the seller.
type path struct {
	conn *secretstream.Conn
	rank int    // of the way
	name string // of the way
}

// A Way leads to a seller.
type Way struct {
	// Name says to people which way it is.
	Name string
	// Dial connects to the seller, who must prove to have the key remote, as who has key.
	Dial func(ctx context.Context, key ed25519.PrivateKey, remote [32]byte) (*secretstream.Conn, error)
}

// TCP returns the ways by addresses, host:port; d may be nil for an ordinary dialer.
func TCP(d *net.Dialer, addresses ...string) []Way {
	if d == nil {
		d = &net.Dialer{}
	}
	var out []Way
	for _, a := range addresses {
		out = append(out, Way{a, func(ctx context.Context, key ed25519.PrivateKey, remote [32]byte) (*secretstream.Conn, error) {
			raw, err := d.DialContext(ctx, "tcp", a)
			if err != nil {
				return nil, err
			}
			conn, err := secretstream.Client(ctx, raw, secretstream.Config{Pattern: noise.XX, Static: key, Remote: remote, MaxMessage: replicate.MaxMessage})
			if errors.Is(err, secretstream.ErrIdentity) {
				err = fmt.Errorf("%w: at %s is another offer than the one that is wanted", err, a)
			}
			return conn, err
		}})
	}
	return out
}

// ways returns the ways to the seller, the best first.
func (c *Client) ways() []Way {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.ByCard == nil || c.card == nil {
		return c.cfg.Ways
	}
	return append(slices.Clip(c.cfg.Ways), c.cfg.ByCard(c.card)...)
}

// attempt is what became of the attempt to go one way.
type attempt struct {
	path
	err error
}

// reach returns a connection by the first of the ways that leads to the seller: the better
// ones are tried a little earlier. At the addresses of another network may be anybody: that
// is an error of its own only where no other way is left.
func (c *Client) reach(ctx context.Context, ways []Way) (path, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if len(ways) > 1 {
		ctx, cancel = context.WithTimeout(ctx, reachTime)
		defer cancel()
	}
	results := make(chan attempt, len(ways))
	begun, ended, strangers := 0, 0, 0
	next := func() {
		w, rank := ways[begun], begun
		begun++
		c.wg.Go(func() {
			conn, err := w.Dial(ctx, c.cfg.Archive.Key(), c.cfg.Seller)
			results <- attempt{path{conn, rank, w.Name}, err}
		})
	}
	next()
	hurry := time.NewTicker(nextWay)
	defer hurry.Stop()
	all := make([]error, len(ways))
	for ended < len(ways) {
		select {
		case r := <-results:
			ended++
			if r.err == nil {
				cancel()
				c.wg.Go(func() { closeAll(results, begun-ended) })
				return r.path, nil
			}
			all[r.rank] = r.err
			if errors.Is(r.err, secretstream.ErrIdentity) {
				strangers++
			}
			if begun < len(ways) {
				next()
			}
		case <-hurry.C:
			if begun < len(ways) {
				next()
			}
		}
	}
	err := errors.Join(all...)
	if strangers == len(all) {
		return path{}, err
	}
	return path{}, fmt.Errorf("%w: %v", ErrUnreachable, err) //nolint:errorlint // who is at one address says nothing about the seller
}

// closeAll closes the connections of those attempts that came too late.
func closeAll(results <-chan attempt, n int) {
	for range n {
		if r := <-results; r.conn != nil {
			r.conn.Close()
		}
	}
}

// visit talks with the seller by a path, in place of another visit if old is not nil.
func (c *Client) visit(p path, old *visit) (*visit, error) {
	v := &visit{c: c, path: p, old: old, ended: make(chan error, 1), since: time.Now()}
	v.mux = mux.New(p.conn, mux.Config{Accept: v.accept, MaxChannels: 8})
	hs := dazaar.Handshake{Agent: c.cfg.Agent}
	if old != nil {
		hs.Features, hs.HandOver = dazaar.FeatureHandOver, old.conn.HandshakeHash()
	}
	var err error
	if v.ch, err = dazaar.OpenBuyer(v.mux, c.cfg.Seller, hs, (*visitor)(v)); err != nil {
		p.conn.Close()
		return nil, err
	}
	c.wg.Go(func() { v.ended <- v.mux.Run() })
	return v, nil
}

// enter makes v the visit that counts: what another one hears from now on is nothing to
// the client. mu is held.
func (c *Client) enter(v *visit) {
	if c.current == v {
		return
	}
	c.current = v
	c.why, c.given, c.valid, c.terms = nil, false, nil, nil
	c.buying.asked, c.buying.need, c.declined = 0, false, false
}

// mover looks for better addresses than the one in use, and moves there. It belongs to
// the goroutine of Run.
type mover struct {
	c       *Client
	look    *time.Timer
	looking bool
	found   chan path  // what seek found; room for one
	next    *visit     // would take over
	ended   chan error // that of next
}

func newMover(c *Client) *mover {
	return &mover{c: c, look: time.NewTimer(min(soonLook, c.cfg.Times.Look)), found: make(chan path, 1)}
}

// seek begins to look whether there is a better address than that of v.
func (m *mover) seek(ctx context.Context, v *visit) {
	m.look.Reset(m.c.cfg.Times.Look)
	m.c.mu.Lock()
	busy := m.c.buying.busy() || v.old != nil // it has only just moved
	m.c.mu.Unlock()
	if busy || m.looking || m.next != nil || v.rank == 0 || !m.c.cfg.Follow {
		return
	}
	m.looking = true
	ways := m.c.ways()
	better := ways[:min(v.rank, len(ways))]
	m.c.wg.Go(func() {
		p, err := m.c.reach(ctx, better)
		if err != nil {
			m.c.log.Debug("no better address of the seller answers", "error", err)
		}
		m.found <- p
	})
}

// try asks the seller to hand v over to a path that was found, unless money is on its
// way.
func (m *mover) try(p path, v *visit) {
	m.looking = false
	if p.conn == nil {
		return
	}
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if m.c.buying.busy() || p.rank >= v.rank { // v may be another one by now
		p.conn.Close()
		return
	}
	next, err := m.c.visit(p, v)
	if err != nil {
		m.c.log.Debug("no hand-over", "error", err)
		return
	}
	m.next, m.ended, m.c.moving = next, next.ended, true
}

// settle returns the visit that counts, v or the one that took over. What waits for too
// long for the seller to agree is given up.
func (m *mover) settle(v *visit) *visit {
	if m.next == nil {
		return v
	}
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	switch {
	case m.c.current == m.next:
		v = m.next
		m.c.log.Info("moved to a better way to the seller", "way", v.name)
	case time.Since(m.next.since) > agreeTime:
		m.next.mux.Close()
		m.next.old = nil // it takes over no more, whatever comes
	default:
		return v
	}
	m.forget()
	return v
}

// forget forgets the one that would take over. The client's mu is held.
func (m *mover) forget() { m.next, m.ended, m.c.moving = nil, nil, false }

// gone takes note that the one that would take over ended.
func (m *mover) gone(err error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.c.log.Debug("no hand-over", "error", err)
	m.forget()
}

// instead returns the visit that goes on when the one that counted has ended, or nil: also
// where the seller said something that is the end of all.
func (m *mover) instead() *visit {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	v := m.next
	if v == nil || m.c.why != nil && fatal(m.c.why) {
		return nil
	}
	m.c.enter(v)
	m.c.log.Info("moved to a better way to the seller", "way", v.name)
	m.forget()
	return v
}

// stop ends what goes on, and v; it returns when nothing runs any more. A payment goes on
// for as long as it takes, but not when ctx ends: then it is in doubt, and tried again.
func (m *mover) stop(ctx context.Context, v *visit) {
	m.look.Stop()
	m.c.mu.Lock()
	for ; v != nil; v = v.old {
		v.mux.Close()
	}
	if m.next != nil {
		m.next.mux.Close()
	}
	m.forget()
	m.c.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		m.c.mu.Lock()
		defer m.c.mu.Unlock()
		if m.c.buying.paying {
			m.c.buying.giveUp()
		}
	})()
	m.c.wg.Wait()
	select {
	case p := <-m.found:
		if p.conn != nil {
			p.conn.Close()
		}
	default:
	}
}
