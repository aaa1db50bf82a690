package dht

import (
	"crypto/ed25519"
	"sync"

	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/secretstream"
)

// Relay is a blind relay that is reached by its key.
type Relay struct {
	l      *Listener
	server *relay.Server
	wg     sync.WaitGroup
}

// maxRelayClients is how many clients of a relay may wait to be served.
const maxRelayClients = 256

// Relay relays for others, under a key. Only a node that anybody can send to is of use as
// one. cfg.Endpoint is the node's.
func (n *Node) Relay(key ed25519.PrivateKey, cfg relay.ServerConfig) (*Relay, error) {
	cfg.Endpoint = n.ep
	if cfg.Log == nil {
		cfg.Log = n.log
	}
	l, err := n.Listen(ListenConfig{Key: key, Pending: maxRelayClients, NoPunch: true})
	if err != nil {
		return nil, err
	}
	r := &Relay{l: l, server: relay.NewServer(cfg)}
	r.wg.Go(r.run)
	return r, nil
}

func (r *Relay) run() {
	for {
		a, err := r.l.next()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serve(a) })
	}
}

// serve relays for one client, until it goes.
func (r *Relay) serve(a accepted) {
	remote := a.conn.Remote()
	m := mux.New(a.conn, mux.Config{MaxChannels: 4, Accept: func(string, []byte) bool { return false }})
	if _, err := r.server.Serve(m, remote, a.stream); err != nil {
		a.conn.Close()
		return
	}
	stop := make(chan struct{})
	r.wg.Go(func() {
		select {
		case <-r.l.ctx.Done():
			m.Close()
		case <-stop:
		}
	})
	m.Run() //nolint:errcheck // it ends when the client goes
	close(stop)
}

// ServeStreams relays between those who connect by TCP, too; see [relay.Server.ServeStreams].
func (r *Relay) ServeStreams(l *secretstream.Listener) error { return r.server.ServeStreams(l) }

// Stats returns what the relay does and did.
func (r *Relay) Stats() relay.Stats { return r.server.Stats() }

// Announced returns how the relay is announced.
func (r *Relay) Announced() Announced { return r.l.Announced() }

// Close ends the relay, and all that it passes on.
func (r *Relay) Close() error {
	err := r.l.Close()
	r.server.Close()
	r.wg.Wait()
	return err
}
