package dht

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/punch"
	"dazaar-edge/protocol/secretstream"
)

// ways are several attempts to find a path, of which the first that does is taken; where
// that is the one by a relay, the others go on, and the stream moves to what they find.
type ways struct {
	d       *dialing
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	results chan outcome
	open    int // attempts whose outcome is not known
	hole    *punch.Puncher
	detour  *detour // that was taken
}

// outcome is that of one attempt.
type outcome struct {
	path   punch.Path
	detour *detour
	err    error
}

// connect finds a path to the other side and binds the stream to it. It returns ways that
// still look for a better one, nil if there is no need.
func (d *dialing) connect(ctx context.Context) (*ways, error) {
	select {
	case p := <-d.early:
		return nil, d.bind(p)
	default:
	}
	if !d.relayed || d.cfg.public && d.theirs.Firewall != packet.Open {
		return nil, d.bind(punch.Path{Socket: d.socket, Remote: d.server})
	}
	through, initiator := d.theirs.Through, false
	if through == nil {
		through, initiator = d.by, true
	}
	if d.cfg.NoRelay {
		through = nil
	}
	if d.theirs.Firewall == packet.Open || !d.open && through == nil && (!d.theirs.Punch || len(d.theirs.Relays) == 0) {
		to := d.server
		for _, a := range d.theirs.Addrs {
			if d.theirs.Firewall == packet.Open && reachable(a.Addr(), d.server.Addr()) {
				to = a
				break
			}
		}
		return nil, d.bind(punch.Path{Socket: d.n.rpc.Socket(), Remote: to})
	}
	inner, cancel := context.WithCancel(d.n.ctx)
	w := &ways{d: d, cancel: cancel, results: make(chan outcome, 4)}
	if err := w.begin(inner, through, initiator); err != nil {
		w.end()
		return nil, err
	}
	err := w.first(ctx)
	if err != nil || w.detour == nil {
		w.end()
		return nil, err
	}
	return w, nil
}

// begin starts all that may lead to the other side.
func (w *ways) begin(ctx context.Context, through *packet.RelayThrough, initiator bool) error {
	d := w.d
	if through != nil {
		d.detoured = make(chan struct{})
		w.try(func() outcome {
			defer close(d.detoured)
			x, err := d.n.detour(ctx, *through, initiator, d.stream.ID(), func(at netip.AddrPort) { d.near.Store(&at) })
			return outcome{detour: x, err: err}
		})
	}
	direct := func(f func(context.Context) (punch.Path, error)) {
		w.try(func() outcome {
			p, err := f(ctx)
			return outcome{path: p, err: err}
		})
	}
	if d.open { // it comes by itself
		direct(func(ctx context.Context) (punch.Path, error) {
			select {
			case <-time.After(connectTime):
				return punch.Path{}, ErrNoPath
			case <-ctx.Done():
				return punch.Path{}, ctx.Err()
			}
		})
		return nil
	}
	if d.client.Addr() == d.server.Addr() && len(d.theirs.Addrs) > 0 {
		direct(d.lan)
	}
	if !d.theirs.Punch || len(d.theirs.Relays) == 0 {
		return nil
	}
	p, err := d.n.newPuncher(netip.AddrPort{}, true)
	if err != nil {
		return err
	}
	w.hole = p
	direct(func(ctx context.Context) (punch.Path, error) { return d.punch(ctx, p) })
	return nil
}

// try starts one attempt.
func (w *ways) try(f func() outcome) {
	w.open++
	w.wg.Go(func() { w.results <- f() })
}

// next waits for the next path, or for the end of all attempts.
func (w *ways) next(done <-chan struct{}) (outcome, error) {
	var found <-chan punch.Path
	if w.hole != nil {
		found = w.hole.Found()
	}
	var why error
	for w.open > 0 {
		select {
		case p := <-w.d.early:
			return outcome{path: p}, nil
		case p := <-found:
			return outcome{path: p}, nil
		case r := <-w.results:
			if w.open--; r.err == nil {
				return r, nil
			}
			if why == nil || errors.Is(r.err, ErrNoPath) {
				why = r.err
			}
		case <-done:
			return outcome{}, context.Canceled
		}
	}
	if errors.Is(why, ErrNoPath) {
		return outcome{}, why
	}
	return outcome{}, fmt.Errorf("%w: %w", ErrNoPath, why)
}

// first binds the stream to the first path.
func (w *ways) first(ctx context.Context) error {
	r, err := w.next(ctx.Done())
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case r.detour == nil:
		return w.d.bind(r.path)
	}
	w.detour = r.detour
	w.d.stream.Direct(w.d.theirs.StreamID)
	return w.d.stream.Bind(r.detour.sock, r.detour.at, r.detour.id)
}

// improve waits for a direct path and moves the stream there.
func (w *ways) improve(conn *secretstream.Conn) {
	defer w.end()
	r, err := w.next(w.d.stream.Done())
	if err == nil && r.detour == nil {
		w.d.stream.Move(r.path.Socket, r.path.Remote, w.d.theirs.StreamID)
		// By this the other side knows that it may move, too.
		conn.Touch() //nolint:errcheck // the connection ends
	}
}

// end ends the attempts, and the detour if it was taken when it is not needed any more.
func (w *ways) end() {
	if w == nil {
		return
	}
	w.cancel()
	if w.hole != nil {
		w.hole.Close()
	}
	w.wg.Wait()
	for len(w.results) > 0 { // what came too late
		if r := <-w.results; r.detour != nil {
			r.detour.end()
		}
	}
	if x := w.detour; x != nil && !x.n.spawn(func() { x.follow(w.d.stream) }) {
		x.end()
	}
}
