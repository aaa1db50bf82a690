package dht

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/crypto/blake2b"

	"dazaar-edge/protocol/dht/packet"
	"dazaar-edge/protocol/dht/rpc"
	"dazaar-edge/protocol/punch"
	"dazaar-edge/protocol/udx"
)

// seenAt asks a node where it sees a socket.
func (n *Node) seenAt(ctx context.Context, s *udx.Socket, to netip.AddrPort) (netip.AddrPort, error) {
	r, err := n.rpc.Ask(ctx, rpc.Ask{To: to, Internal: true, Command: packet.Ping, Socket: s, Tries: 1})
	if err != nil {
		return netip.AddrPort{}, err
	}
	return r.To, nil
}

// skipNewest is how many of the newest nodes are not asked where they see a socket: they may
// be those that both sides just talked to.
const skipNewest = 5

// someNodes returns nodes that answer.
func (n *Node) someNodes(most int) []netip.AddrPort { return n.rpc.Recent(most, skipNewest) }

// Router finds out what kind of router is before this node, and where others see a socket of
// it.
func (n *Node) Router(ctx context.Context) (packet.Firewall, []netip.AddrPort) {
	p, err := n.newPuncher(n.public(), true)
	if err != nil {
		return packet.Unknown, nil
	}
	defer p.Close()
	return p.Verdict(ctx)
}

// punchToken proves to who has the key that the other side receives at a host: only there it
// is told.
func punchToken(key [32]byte, host netip.Addr) *[32]byte {
	h, err := blake2b.New256(key[:])
	if err != nil {
		panic(err) // 32 bytes are fine
	}
	h.Write([]byte(host.String()))
	return (*[32]byte)(h.Sum(nil))
}

// newPuncher begins an attempt.
func (n *Node) newPuncher(open netip.AddrPort, initiator bool) (*punch.Puncher, error) {
	return punch.New(punch.Config{NewSocket: n.rpc.NewSocket, Ping: n.seenAt, Nodes: n.someNodes, Open: open, Initiator: initiator, Rand: n.cfg.Rand})
}

// reachable tells whether an address that a node says it has may be tried, where others see
// it at seen.
func reachable(a, seen netip.Addr) bool {
	return a.Is4() && !a.IsUnspecified() && !a.IsMulticast() && (a == seen || !a.IsPrivate() && !a.IsLoopback() && !a.IsLinkLocalUnicast())
}

// lan looks whether the other side is in the same network, at one of the addresses that it
// says: the one that is most like ours.
func (d *dialing) lan(ctx context.Context) (punch.Path, error) {
	best, bits := netip.AddrPort{}, -1
	for _, a := range d.theirs.Addrs {
		if !a.Addr().IsPrivate() && !a.Addr().IsLoopback() {
			continue
		}
		if best.Port() == 0 {
			best = a
		}
		for _, own := range d.n.local() {
			for _, k := range [...]int{8, 16, 24} {
				if p, err := own.Addr().Prefix(k); err == nil && p.Contains(a.Addr()) && k > bits {
					best, bits = a, k
				}
			}
		}
	}
	if best.Port() == 0 {
		return punch.Path{}, ErrNoPath
	}
	if _, err := d.n.rpc.Ask(ctx, rpc.Ask{To: best, Internal: true, Command: packet.Ping, Tries: 2}); err != nil {
		return punch.Path{}, err
	}
	return punch.Path{Socket: d.n.rpc.ServerSocket(), Remote: best}, nil
}

// token proves to us that who has it receives at a host.
func (d *dialing) token(host netip.Addr) *[32]byte { return punchToken(d.tokenKey, host) }

// punch makes a hole. What it finds it tells by the puncher; it returns only why it does not,
// or that the path is found.
func (d *dialing) punch(ctx context.Context, p *punch.Puncher) (punch.Path, error) {
	n := d.n
	server := d.server
	p.Open(server)
	by := d.theirs.Relays[0]
	for _, r := range d.theirs.Relays {
		if r.Relay == d.relay {
			by = r
		}
	}
	kind, addrs := p.Verdict(ctx)
	if kind == packet.Random && d.detoured != nil {
		// A stock server gives all up when it learns that both sides are random, unless they
		// have met at the relay already.
		select {
		case <-d.detoured:
		case <-ctx.Done():
			return punch.Path{}, ctx.Err()
		}
	}
	var answer *packet.Round
	var theirToken *[32]byte
	for try := range 2 {
		r, from, err := d.ask(ctx, p, by.Relay, by.Peer, &packet.Round{
			Firewall: kind, Addrs: addrs, Round: uint64(try), Remote: server, Token: d.token(server.Addr()),
		})
		if err != nil {
			return punch.Path{}, err
		}
		answer = r
		if r.Token != nil {
			theirToken = r.Token
		}
		if by.Relay == d.relay && from.IsValid() && from != server {
			server = from
			p.Open(server)
		}
		if r.Firewall != packet.Unknown && r.Token != nil {
			break
		}
		if try == 0 {
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return punch.Path{}, ctx.Err()
			}
			kind, addrs = p.Verdict(ctx)
		}
	}
	if err := punch.Possible(kind, answer.Firewall); err != nil {
		if !d.relayable() { // else the other side would give up the relay, too
			d.ask(ctx, p, by.Relay, by.Peer, &packet.Round{Error: packet.Aborted, Firewall: kind, Round: 2}) //nolint:errcheck // it ends by itself
		}
		return punch.Path{}, fmt.Errorf("%w: %w", ErrNoPath, err)
	}
	limit := connectTime + time.Second
	if punch.Guesses(kind, answer.Firewall) {
		if !n.throttle.Take() {
			return punch.Path{}, fmt.Errorf("%w: ports were guessed a moment ago: try later", ErrNoPath)
		}
		defer n.throttle.Free()
		limit = guessTime
	}
	p.Remote(answer.Addrs)
	r, _, err := d.ask(ctx, p, d.relay, server, &packet.Round{
		Punching: true, Firewall: kind, Addrs: addrs, Round: 2, Token: d.token(server.Addr()), RemoteToken: theirToken,
	})
	switch {
	case err != nil:
		return punch.Path{}, err
	case r.Error == packet.TryLater:
		return punch.Path{}, fmt.Errorf("%w: the other side guessed ports a moment ago: try later", ErrNoPath)
	case !r.Punching:
		return punch.Path{}, fmt.Errorf("%w: the other side makes no hole", ErrNoPath)
	}
	if r.RemoteToken != nil && *r.RemoteToken == *d.token(server.Addr()) {
		p.Verify(server.Addr())
	}
	p.Remote(r.Addrs)
	p.Punch(r.Firewall)
	select {
	case <-time.After(limit):
		return punch.Path{}, fmt.Errorf("%w: no datagram found the hole", ErrNoPath)
	case <-ctx.Done():
		return punch.Path{}, ctx.Err()
	}
}

// ask sends a round to the server, by a relay, and returns its answer, and from where the
// relay got it.
func (d *dialing) ask(ctx context.Context, p *punch.Puncher, relay, to netip.AddrPort, r *packet.Round) (*packet.Round, netip.AddrPort, error) {
	h := packet.Holepunch{Mode: packet.FromClient, ID: d.theirs.PunchID, Payload: d.secret.Seal(r), Peer: to}
	sock := p.Socket()
	reply, err := d.n.rpc.Ask(ctx, rpc.Ask{To: relay, Command: packet.PeerHolepunch, Target: &d.target, Value: h.Append(nil), Socket: sock, Tries: 3})
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	p.Sample(sock, reply.To)
	if h, err = packet.ParseHolepunch(reply.Value); err != nil {
		return nil, netip.AddrPort{}, err
	}
	out, err := d.secret.Open(h.Payload)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	if out.Error == packet.Aborted {
		return nil, netip.AddrPort{}, fmt.Errorf("%w: the other side gave up", ErrNoPath)
	}
	return &out, h.Peer, nil
}
