package reach

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/relay"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/storage/durable"
)

// RelayConfig says what a relay does.
type RelayConfig struct {
	KeyFile string // made if it is not there
	// Listen is a UDP address; the relay's host must be reached there by anybody.
	Listen    string
	TCP       string   // TCP address for those whose UDP is blocked; "" is none
	Bootstrap []string // none is the public network
	Public    string   // ADDRESS:PORT where it is reached, if the network need not find that out
	Limits    relay.ServerConfig
	Every     time.Duration // between lines that say what it does
	Log       *slog.Logger
}

// relayReady is what a relay prints when it can be used, as one line.
type relayReady struct {
	Ready   bool   `json:"ready"`
	Key     string `json:"relayKey"`
	Address string `json:"address,omitempty"`
	Relay   string `json:"relay"` // what network.relays names
}

// relayStats is what it prints from time to time.
type relayStats struct {
	Clients int    `json:"clients"`
	Pairs   int    `json:"pairs"`
	Waiting int    `json:"waiting"`
	Paired  uint64 `json:"paired"`
	Refused uint64 `json:"refused"`
	Bytes   uint64 `json:"bytes"`
	Dropped uint64 `json:"dropped"`
	Open    bool   `json:"open"`
}

// announceWait is after which it is said that the relay is not announced.
const announceWait = 10 * time.Second

// relayKey reads the key of a relay, or makes it.
func relayKey(file string) (ed25519.PrivateKey, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		seed := make([]byte, ed25519.SeedSize)
		rand.Read(seed) //nolint:errcheck // it never fails
		b = []byte(hex.EncodeToString(seed) + "\n")
		if err := durable.WriteFile(durable.OS(), file, b); err != nil {
			return nil, err
		}
		if err := os.Chmod(file, 0o600); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%s is not the key of a relay: 64 hex digits", file)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Relay relays until ctx ends. It prints a line when it is ready, and then what it does.
func Relay(ctx context.Context, cfg RelayConfig, out io.Writer) (err error) {
	key, err := relayKey(cfg.KeyFile)
	if err != nil {
		return err
	}
	c := dht.Config{Persistent: true, Log: cfg.Log}
	if len(cfg.Bootstrap) > 0 {
		c.Bootstrap = cfg.Bootstrap
	}
	host, port, err := net.SplitHostPort(cfg.Listen)
	n, bad := strconv.ParseUint(port, 10, 16)
	if err != nil || bad != nil {
		return fmt.Errorf("%q is not a UDP address: write :49737", cfg.Listen)
	}
	c.Port = uint16(n)
	if host != "" {
		if c.Host, err = netip.ParseAddr(host); err != nil {
			return err
		}
	}
	if cfg.Public != "" {
		if c.Public, err = netip.ParseAddrPort(cfg.Public); err != nil {
			return fmt.Errorf("%q is not an address and a port", cfg.Public)
		}
	}
	var streams net.Listener
	if cfg.TCP != "" {
		if streams, err = net.Listen("tcp", cfg.TCP); err != nil {
			return fmt.Errorf("%w: another address is named by --tcp, and --tcp none does without", err)
		}
		defer streams.Close()
	}
	node, err := dht.New(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	if err := node.Bootstrap(ctx); err != nil {
		return fmt.Errorf("no node of the network answers: %w", err)
	}
	addr, open := node.Address()
	if !open {
		cfg.Log.Warn("nobody can send to this host: a relay must be on a public address, with this UDP port open", "seen", addr)
	}
	cfg.Limits.Log = cfg.Log
	r, err := node.Relay(key, cfg.Limits)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	said := time.Now()
	for r.Announced().At.IsZero() {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil
		}
		if time.Since(said) > announceWait {
			said = time.Now()
			cfg.Log.Warn("the relay is not announced yet, and serves nobody", "error", r.Announced().Err)
		}
	}
	name := configs.Relay{Key: [32]byte(key[ed25519.SeedSize:])}
	ready := relayReady{Ready: true, Key: name.String()}
	if addr.IsValid() {
		ready.Address = addr.String()
	}
	if streams != nil {
		l := secretstream.Listen(streams, secretstream.ListenConfig{Config: relay.StreamConfig(key)})
		served := make(chan error, 1)
		go func() { served <- r.ServeStreams(l) }()
		defer func() { err = errors.Join(err, l.Close()); <-served }()
		name.TCP = streamAddress(streams.Addr(), addr)
	}
	ready.Relay = name.String()
	enc := json.NewEncoder(out)
	if err := enc.Encode(ready); err != nil {
		return err
	}
	t := time.NewTicker(cfg.Every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
		st := r.Stats()
		_, open := node.Address()
		if err := enc.Encode(relayStats{st.Clients, st.Pairs, st.Waiting, st.Paired, st.Refused, st.Bytes, st.Dropped, open}); err != nil {
			return err
		}
	}
}

// streamAddress is where a relay is reached by TCP: at the host that others see.
func streamAddress(listens net.Addr, seen netip.AddrPort) string {
	t, ok := listens.(*net.TCPAddr)
	if !ok {
		return listens.String()
	}
	a := t.AddrPort()
	switch {
	case !a.Addr().IsUnspecified():
	case seen.IsValid():
		a = netip.AddrPortFrom(seen.Addr(), a.Port())
	default:
		return fmt.Sprintf("HOST:%d", a.Port()) // who runs it knows where
	}
	return a.String()
}
