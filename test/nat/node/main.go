// Command node is a program for a lab of routers: a node of the network, one who listens or
// one who dials, as the lab's environment says. See test/nat/run.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/protocol/udx"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	role := os.Getenv("NATLAB_ROLE")
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	var err error
	switch role {
	case "bootstrap":
		err = bootstrap(ctx)
	case "relay":
		err = relays(ctx)
	case "seller":
		err = seller(ctx)
	case "buyer":
		err = buyer(ctx)
	case "follower":
		err = follower(ctx)
	case "bulk":
		err = bulk(ctx)
	case "edge-relay":
		err = edgeRelay(ctx)
	case "edge-seller":
		err = edgeSeller(ctx)
	case "edge-buyer":
		err = edgeBuyer(ctx)
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

// keys returns the key pair of a role in this try.
func keys(role string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(os.Getenv("NATLAB_SEED") + role))
	if b, err := hex.DecodeString(os.Getenv("NATLAB_SEED")); role == "seller" && err == nil && len(b) == 32 {
		seed = [32]byte(b)
	}
	return ed25519.NewKeyFromSeed(seed[:])
}

func config() dht.Config {
	return dht.Config{Bootstrap: strings.Split(os.Getenv("NATLAB_BOOTSTRAP"), ","), Port: 49737}
}

// join starts a node that the network knows.
func join(ctx context.Context, cfg dht.Config) (*dht.Node, error) {
	n, err := dht.New(cfg)
	if err != nil {
		return nil, err
	}
	if err := n.Bootstrap(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// dial connects to the seller.
func dial(ctx context.Context, n *dht.Node, cfg dht.DialConfig) (*secretstream.Conn, error) {
	cfg.Key, cfg.Remote, cfg.Stream = keys("buyer"), [32]byte(keys("seller")[32:]), streams()
	return n.Dial(ctx, cfg)
}

// lasts is for how long a program runs that ends by itself.
func lasts() (time.Duration, error) { return time.ParseDuration(os.Getenv("RUN_S") + "s") }

func bootstrap(ctx context.Context) error {
	cfg := config()
	cfg.Public = netip.AddrPortFrom(netip.MustParseAddr(os.Getenv("NATLAB_IP")), cfg.Port)
	n, err := join(ctx, cfg)
	if err != nil {
		return err
	}
	defer n.Close()
	fmt.Println("READY")
	<-ctx.Done()
	return nil
}

// relayKey is the key of the lab's relay.
func relayKey() ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("natlab relay"))
	return ed25519.NewKeyFromSeed(seed[:])
}

// usesRelay tells whether there is a relay to name.
func usesRelay() bool { return os.Getenv("USE_RELAY") != "" }

func relays(ctx context.Context) error {
	cfg := config()
	cfg.Persistent = true
	n, err := join(ctx, cfg)
	if err != nil {
		return err
	}
	defer n.Close()
	r, err := n.Relay(relayKey(), relay.ServerConfig{})
	if err != nil {
		return err
	}
	defer r.Close()
	for r.Announced().At.IsZero() {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("READY")
	<-ctx.Done()
	return nil
}

const size = 1 << 20

func streams() udx.StreamConfig { return udx.StreamConfig{MaxWindow: 4 << 20, SendBuffer: 1 << 20} }

func seller(ctx context.Context) error {
	n, err := join(ctx, config())
	if err != nil {
		return err
	}
	defer n.Close()
	lc := dht.ListenConfig{Key: keys("seller"), Stream: streams()}
	if usesRelay() {
		lc.Relays = [][32]byte{[32]byte(relayKey()[32:])}
	}
	l, err := n.Listen(lc)
	if err != nil {
		return err
	}
	for l.Announced().At.IsZero() {
		time.Sleep(10 * time.Millisecond)
	}
	addr, open := n.Address()
	fmt.Println("READY", addr, open, l.Announced().Relays)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Println("connection", c.RemoteAddr())
			switch os.Getenv("FEED") {
			case "":
				go serve(c)
			case "after":
				go func() {
					if send(c) {
						feed(c)
					}
				}()
			case "bulk":
				go func() {
					for send(c) {
					}
				}()
			default:
				go feed(c)
			}
		}
	}()
	<-ctx.Done()
	return nil
}

// feedEvery is how often a feed has something to say, if FEED is set; if that is "after", then
// behind size bytes.
const feedEvery = 500 * time.Millisecond

// feed says something to who connects, twice a second.
func feed(c *secretstream.Conn) {
	defer c.Close()
	go func() {
		for { // by what is read a stream knows where its other side is
			if _, err := c.ReadMessage(); err != nil {
				return
			}
		}
	}()
	for c.WriteMessage([]byte("reading")) == nil {
		time.Sleep(feedEvery)
	}
}

// followed is what a follower prints.
type followed struct {
	OK      bool    `json:"ok"`
	Connect int64   `json:"connect_ms"` // the first time
	Lines   int     `json:"lines"`
	Gap     float64 `json:"gap_s"` // the longest, after the first ten lines
	Dials   int     `json:"dials"`
	Mbps    float64 `json:"mbps"`
	Path    string  `json:"path"`
	Error   string  `json:"error,omitempty"`
	Elapsed int64   `json:"elapsed_ms"`
}

// follower follows a feed for RUN_S seconds, dials again when that breaks, and prints for how
// long nothing came at most.
func follower(ctx context.Context) error {
	d, err := lasts()
	if err != nil {
		return err
	}
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	n, err := join(ctx, config())
	if err != nil {
		return err
	}
	defer n.Close()
	r := followed{Path: "feed"}
	var last time.Time
	for wait := feedEvery; ctx.Err() == nil; {
		r.Dials++
		from := time.Now()
		c, err := dial(ctx, n, dht.DialConfig{Watch: true})
		if err != nil {
			fmt.Printf("  # %.1f s: %v\n", time.Since(begun).Seconds(), err)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
			wait = min(2*wait, 2*time.Second)
			continue
		}
		fmt.Printf("  # %.1f s: connected to %v\n", time.Since(begun).Seconds(), c.RemoteAddr())
		if r.Connect == 0 {
			r.Connect = time.Since(from).Milliseconds()
		}
		wait = feedEvery
		stop := context.AfterFunc(ctx, func() { c.Close() })
		for {
			if _, err := c.ReadMessage(); err != nil {
				fmt.Printf("  # %.1f s: %v\n", time.Since(begun).Seconds(), err)
				break
			}
			if r.Lines++; r.Lines > 10 {
				r.Gap = max(r.Gap, time.Since(last).Seconds())
			}
			last = time.Now()
		}
		stop()
		c.Close()
	}
	if !last.IsZero() {
		r.Gap = max(r.Gap, time.Since(last).Seconds())
	}
	r.OK, r.Elapsed = r.Lines > 0, time.Since(begun).Milliseconds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// bulk reads for RUN_S seconds, and prints how fast that was.
func bulk(ctx context.Context) error {
	d, err := lasts()
	if err != nil {
		return err
	}
	n, err := join(ctx, config())
	if err != nil {
		return err
	}
	defer n.Close()
	begun := time.Now()
	c, err := dial(ctx, n, dht.DialConfig{})
	if err != nil {
		return err
	}
	defer c.Close()
	r := result{OK: true, Connect: time.Since(begun).Milliseconds(), Path: "direct"}
	got, open := 0, time.Now()
	for time.Since(open) < d {
		m, err := c.ReadMessage()
		if err != nil {
			return err
		}
		got += len(m)
	}
	r.Mbps, r.Elapsed = float64(got)*8/1e6/time.Since(open).Seconds(), time.Since(begun).Milliseconds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// serve sends size bytes to who connects, and waits until that ends the connection.
func serve(c *secretstream.Conn) {
	defer c.Close()
	if send(c) {
		c.ReadMessage() //nolint:errcheck // it ends when the other side does
	}
}

// send sends size bytes.
func send(c *secretstream.Conn) bool {
	b := make([]byte, 32<<10)
	for range size / len(b) {
		if err := c.WriteMessage(b); err != nil {
			fmt.Println("write:", err)
			c.Close()
			return false
		}
	}
	return true
}

// result is what the buyer prints.
type result struct {
	OK        bool    `json:"ok"`
	Connect   int64   `json:"connect_ms"`
	DHT       int64   `json:"dht_ms"`
	FirstByte int64   `json:"first_byte_ms"`
	Mbps      float64 `json:"mbps"`
	Path      string  `json:"path"`
	Remote    string  `json:"remote"`
	Error     string  `json:"error,omitempty"`
	Elapsed   int64   `json:"elapsed_ms"`
}

func buyer(ctx context.Context) error {
	begun := time.Now()
	var r result
	if err := r.buy(ctx, begun); err != nil {
		r.Error = err.Error()
	}
	r.OK = r.Error == ""
	r.Elapsed = time.Since(begun).Milliseconds()
	return json.NewEncoder(os.Stdout).Encode(r)
}

func (r *result) buy(ctx context.Context, begun time.Time) error {
	n, err := join(ctx, config())
	if err != nil {
		return err
	}
	defer n.Close()
	for end := begun.Add(10 * time.Second); os.Getenv("WAIT_OPEN") != "" && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, open := n.Address(); open {
			break
		}
	}
	r.DHT = time.Since(begun).Milliseconds()
	begun = time.Now()
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	c, err := dial(ctx, n, dht.DialConfig{Secret: secretstream.Config{MaxMessage: 2 * size}})
	if err != nil {
		return err
	}
	defer c.Close()
	r.Connect, r.Remote = time.Since(begun).Milliseconds(), c.RemoteAddr().String()
	open := time.Now()
	for got := 0; got < size; {
		m, err := c.ReadMessage()
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", got, err)
		}
		if got == 0 {
			r.FirstByte = time.Since(begun).Milliseconds()
		}
		got += len(m)
	}
	r.Path, r.Remote = "direct", c.RemoteAddr().String()
	if a, err := netip.ParseAddrPort(r.Remote); err == nil && a.Addr().IsPrivate() {
		r.Path = "lan"
	}
	if host, _, _ := strings.Cut(os.Getenv("NATLAB_RELAY"), ":"); host != "" && strings.HasPrefix(r.Remote, host+":") {
		r.Path = "relay"
	}
	r.Mbps = float64(size) * 8 / 1e6 / time.Since(open).Seconds()
	return nil
}
