// Package reach is how a device is reached, and how a buyer reaches one: the Hyperswarm
// network as configurations and flags say.
package reach

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market"
	"dazaar-edge/market/card"
	"dazaar-edge/market/client"
	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
	"dazaar-edge/storage/durable"
)

// maxWindow is how much a buyer lets a seller send ahead; a seller itself needs little.
const maxWindow = 4 << 20

// Config says how to be part of the network.
type Config struct {
	configs.Network
	// File is where the last good nodes are kept; "" is nowhere.
	File string
	Log  *slog.Logger
}

// Network is this process's part in the network. All methods are safe for concurrent use.
type Network struct {
	cfg    Config
	node   *dht.Node
	ctx    context.Context //nolint:containedctx // it ends what goes on
	cancel context.CancelFunc
	wg     sync.WaitGroup
	joined chan struct{} // closed when the node is part of the network

	mu     sync.Mutex
	offers map[string]*listening // guarded by mu, by name
	kept   []netip.AddrPort      // in the file; guarded by mu
}

// listening is how an offer is reached.
type listening struct {
	*dht.Listener
	relays []*relay.StreamListener // by TCP
}

// Open begins to become part of the network, and goes on with that for as long as it takes.
func Open(cfg Config) (*Network, error) {
	n := &Network{cfg: cfg, offers: map[string]*listening{}, joined: make(chan struct{})}
	if cfg.File != "" {
		b, err := os.ReadFile(cfg.File)
		if err == nil {
			err = json.Unmarshal(b, &n.kept)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			cfg.Log.Warn("the nodes that were good before are not known: it begins with the first ones", "error", err)
		}
	}
	c := dht.Config{Port: cfg.Port, Bootstrap: cfg.Bootstrap, Nodes: n.kept, Log: cfg.Log}
	if cfg.Host != "" {
		host, err := netip.ParseAddr(cfg.Host)
		if err != nil {
			return nil, err
		}
		c.Host = host
	}
	if len(c.Bootstrap) == 0 {
		c.Bootstrap = nil
	}
	var err error
	if n.node, err = dht.New(c); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.wg.Go(func() { n.join(n.ctx) })
	return n, nil
}

// Times of joining, and of keeping what is good to know.
const (
	firstWait = time.Second
	lastWait  = time.Minute
	keepFirst = 10 * time.Minute
	keepEvery = 24 * time.Hour
)

// join makes the node part of the network, and keeps its good nodes from time to time.
func (n *Network) join(ctx context.Context) {
	for wait, said := firstWait, false; ; wait = min(2*wait, lastWait) {
		err := n.node.Bootstrap(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		if !said {
			n.cfg.Log.Warn("no node of the network answers; trying again", "error", err)
			said = true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
	close(n.joined)
	for wait := keepFirst; ; wait = keepEvery {
		select {
		case <-time.After(wait):
			n.keep()
		case <-ctx.Done():
			n.keep()
			return
		}
	}
}

// errSilent says that the network cannot be had.
var errSilent = fmt.Errorf("%w: no node of the network answers: where UDP is blocked, only relays that are reached by TCP help (--relay KEY@HOST:PORT, or the seller's card)", client.ErrUnreachable)

// waitJoined waits until the node is part of the network, for so long as that takes usually.
func (n *Network) waitJoined(ctx context.Context) error {
	t := time.NewTimer(joinTime)
	defer t.Stop()
	select {
	case <-n.joined:
		return nil
	case <-t.C:
		return errSilent
	case <-ctx.Done():
		return fmt.Errorf("%w (%w)", errSilent, ctx.Err())
	}
}

// keep writes down which nodes are good, if most of those that are written down no longer
// are: the card lives longer that way.
func (n *Network) keep() {
	good := n.node.Nodes()
	n.mu.Lock()
	defer n.mu.Unlock()
	same := 0
	for _, a := range n.kept {
		if slices.Contains(good, a) {
			same++
		}
	}
	if n.cfg.File == "" || len(good) == 0 || 2*same >= len(n.kept) && len(n.kept) > 0 {
		return
	}
	b, err := json.Marshal(good)
	if err == nil {
		err = durable.WriteFile(durable.OS(), n.cfg.File, b)
	}
	if err != nil {
		n.cfg.Log.Warn("the good nodes of the network cannot be kept", "error", err)
		return
	}
	n.kept = good
}

// Listen makes an offer reachable by its key, also through relays by TCP, and keeps the short
// form of its card on the network.
func (n *Network) Listen(name string, key ed25519.PrivateKey, sold Sold) ([]market.Listener, error) {
	var keys [][32]byte
	for _, r := range n.cfg.Relays {
		keys = append(keys, r.Key)
	}
	l, err := n.node.Listen(dht.ListenConfig{Key: key, Relays: keys})
	if err != nil {
		return nil, err
	}
	x := &listening{Listener: l}
	all := []market.Listener{l}
	for _, r := range n.cfg.Relays {
		if r.TCP == "" {
			continue
		}
		s := relay.ListenStream(relay.ListenStreamConfig{
			Relay: relay.Address{Key: r.Key, TCP: r.TCP}, Secret: secretstream.Config{Pattern: noise.XX, Static: key, MaxMessage: replicate.MaxMessage}, Log: n.cfg.Log,
		})
		x.relays = append(x.relays, s)
		all = append(all, s)
	}
	n.wg.Go(func() { n.publish(n.ctx, name, key, sold) })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.offers[name] = x
	return all, nil
}

// Way is the way to a seller over the network.
func (n *Network) Way() client.Way {
	return client.Way{Name: "the network", Dial: func(ctx context.Context, key ed25519.PrivateKey, remote [32]byte) (*secretstream.Conn, error) {
		if err := n.waitJoined(ctx); err != nil {
			return nil, err
		}
		return n.node.Dial(ctx, dht.DialConfig{
			Through: n.relay(), Watch: true, Key: key, Remote: remote, Stream: udx.StreamConfig{MaxWindow: maxWindow}, Secret: secretstream.Config{MaxMessage: replicate.MaxMessage},
		})
	}}
}

// relay returns the key of the relay that is named to sellers who name none, zero if there
// is none.
func (n *Network) relay() (key [32]byte) {
	if len(n.cfg.Relays) > 0 {
		key = n.cfg.Relays[0].Key
	}
	return key
}

// ByNetwork is the way by the network, among addresses.
const ByNetwork = "network"

// BadAddress tells whether a text is neither HOST:PORT nor the network.
func BadAddress(text string) bool { return text != ByNetwork && configs.BadAddress(text) }

// Ways are the ways by addresses, of which one may be ByNetwork, and then those by relays that
// are reached by TCP.
func (n *Network) Ways(addresses []string) (out []client.Way) {
	for _, a := range addresses {
		if a == ByNetwork {
			out = append(out, n.Way())
		} else {
			out = append(out, client.TCP(nil, a)...)
		}
	}
	return append(out, relayed(n.cfg.Relays)...)
}

// ByCard are the ways by the relays that a seller's card names.
func (n *Network) ByCard(c *card.Card) []client.Way {
	var all []configs.Relay
	for _, text := range c.Relays[:min(len(c.Relays), configs.MaxRelays)] {
		if r, err := configs.ParseRelay(text); err == nil && !slices.Contains(n.cfg.Relays, r) {
			all = append(all, r)
		}
	}
	return relayed(all)
}

// relayed are the ways by relays that are reached by TCP.
func relayed(relays []configs.Relay) (out []client.Way) {
	for _, r := range relays {
		if r.TCP == "" {
			continue
		}
		out = append(out, client.Way{Name: "relay " + r.TCP, Dial: func(ctx context.Context, key ed25519.PrivateKey, remote [32]byte) (*secretstream.Conn, error) {
			return dialRelay(ctx, r, key, remote)
		}})
	}
	return out
}

// dialRelay connects to a seller through a relay, by TCP.
func dialRelay(ctx context.Context, r configs.Relay, key ed25519.PrivateKey, remote [32]byte) (*secretstream.Conn, error) {
	return relay.Dial(ctx, relay.Address{Key: r.Key, TCP: r.TCP}, secretstream.Config{Pattern: noise.XX, Static: key, Remote: remote, MaxMessage: replicate.MaxMessage})
}

// Where says in words where an offer is sold: at a TCP address, over the network, or both.
func Where(tcp string, o *Offer) string {
	switch {
	case o == nil && tcp == "":
		return ""
	case o == nil:
		return "on " + tcp
	case tcp == "":
		return o.String()
	}
	return "on " + tcp + " and " + o.String()
}

// Status says how a device is reached.
type Status struct {
	Joined  bool   `json:"joined"`
	Nodes   int    `json:"nodes"`             // that are known
	Address string `json:"address,omitempty"` // where others see this device; port 0: each sees another
	Open    bool   `json:"open"`              // anybody can send to it there
	Serves  bool   `json:"serves"`            // it passes on what others say
	Sent    uint64 `json:"sent"`              // bytes, without what buyers get
	Came    uint64 `json:"received"`
}

// Offer says how an offer is announced.
type Offer struct {
	Announced string   `json:"announced,omitempty"` // when; none if it is not
	Relays    []string `json:"relays,omitempty"`    // nodes that pass on what buyers say
	TCP       []string `json:"tcpRelays,omitempty"` // relays through which it is reached by TCP
	Error     string   `json:"error,omitempty"`
}

// Status returns how the device is reached.
func (n *Network) Status() Status {
	a, open := n.node.Address()
	t := n.node.RPC().Traffic()
	s := Status{Nodes: n.node.RPC().Size(), Open: open, Serves: n.node.RPC().Persistent(), Sent: t.SentBytes, Came: t.ReceivedBytes}
	if a.IsValid() {
		s.Address = a.String()
	}
	select {
	case <-n.joined:
		s.Joined = true
	default:
	}
	return s
}

// Offer returns how an offer is announced; nil if it does not listen.
func (n *Network) Offer(name string) *Offer {
	n.mu.Lock()
	l := n.offers[name]
	n.mu.Unlock()
	if l == nil {
		return nil
	}
	a := l.Announced()
	o := &Offer{}
	if !a.At.IsZero() {
		o.Announced = a.At.UTC().Format(time.RFC3339)
	}
	if a.Err != nil {
		o.Error = a.Err.Error()
	}
	for _, r := range a.Relays {
		o.Relays = append(o.Relays, r.String())
	}
	for _, r := range l.relays {
		if since, _ := r.Reached(); !since.IsZero() {
			o.TCP = append(o.TCP, r.Relay().TCP)
		}
	}
	return o
}

// Close leaves the network.
func (n *Network) Close() error {
	n.cancel()
	n.wg.Wait()
	return n.node.Close()
}

// String says in words how a device is reached.
func (s *Status) String() string {
	switch {
	case !s.Joined:
		return "no node answers: nobody finds this device by its key; is there a way to the internet, for UDP?"
	case s.Open:
		return fmt.Sprintf("%d nodes are known; anybody can send to %s", s.Nodes, s.Address)
	case s.Address == "":
		return fmt.Sprintf("%d nodes are known; where others see this device is not known yet", s.Nodes)
	}
	return fmt.Sprintf("%d nodes are known; behind a router, seen at %s", s.Nodes, s.Address)
}

// String says in words how an offer is announced.
func (o *Offer) String() string {
	by := ""
	if len(o.TCP) > 0 {
		by = ", and by TCP through " + strings.Join(o.TCP, ", ")
	}
	switch {
	case len(o.Relays) > 0 && o.Error == "":
		return fmt.Sprintf("over the network, announced at %d nodes%s", len(o.Relays), by)
	case o.Error != "":
		return "over the network, NOT ANNOUNCED: " + o.Error + by
	}
	return "over the network, not announced yet" + by
}
