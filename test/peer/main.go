// Command peer is one end of a measured transfer: a seller or a buyer in a
// process of its own, as little else as possible around it.
//
//	peer sell -dir DIR -blocks N -size BYTES    prints {"port","key"}, serves until stdin ends
//	peer buy -port PORT -key HEX -blocks N      downloads all, prints {"seconds","rss"}
//
// Both print {"rss"}, their peak resident set in KiB, at the end.
package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"dazaar-edge/feed"
	"dazaar-edge/feed/block"
	"dazaar-edge/feed/feedtest"
	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/mux"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/protocol/secretstream"
	"dazaar-edge/storage/durable"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("sell or buy?")
	}
	f := flag.NewFlagSet(args[0], flag.ExitOnError)
	dir := f.String("dir", "", "log")
	blocks := f.Int("blocks", 0, "how many")
	size := f.Int("size", 64, "bytes of each")
	port := f.Int("port", 0, "of the seller")
	key := f.String("key", "", "of the feed")
	profile := f.String("cpuprofile", "", "file")
	f.Parse(args[1:]) //nolint:errcheck // exits
	if *profile != "" {
		w, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer w.Close()
		if err := pprof.StartCPUProfile(w); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if args[0] == "sell" {
		return sell(*dir, *blocks, *size)
	}
	return buy(*port, *key, *blocks)
}

func say(v any) { json.NewEncoder(os.Stdout).Encode(v) } //nolint:errcheck // nobody to tell

// rss returns the peak resident set in KiB.
func rss() (n int) {
	b, _ := os.ReadFile("/proc/self/status")
	if _, rest, ok := strings.Cut(string(b), "VmHWM:"); ok {
		fmt.Sscan(rest, &n) //nolint:errcheck // 0 then
	}
	return n
}

func sell(dir string, blocks, size int) error {
	log, err := feed.Open(feed.Config{
		FS: durable.OS(), Dir: dir, MaxSize: 8 << 30, Name: "peer", Encoding: block.Raw, Keys: feedtest.Keys{}, Sales: &feedtest.Sales{},
		Now: func() block.Stamp { return block.Stamp{Boot: 1} }, CommitEvery: time.Minute, CommitBytes: 1 << 20,
	})
	if err != nil {
		return err
	}
	defer log.Close()
	var batch []block.Block
	for i := int(log.Head().Length); i < blocks; i++ {
		b := make([]byte, size)
		for j := range b {
			b[j] = byte(i*31 + j*7 + j>>8)
		}
		batch = append(batch, block.Block{Data: b})
		if len(batch)*(size+192) > 1<<20 || i+1 == blocks {
			if _, err := log.Append(context.Background(), batch...); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	f, err := log.Rekey([32]byte{1})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	l := secretstream.Listen(ln, secretstream.ListenConfig{Config: secretstream.Config{Static: static(1)}})
	up := &replicate.Uplink{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c, f, up) })
		}
	})
	k := f.Key()
	say(map[string]any{"port": ln.Addr().(*net.TCPAddr).Port, "key": hex.EncodeToString(k[:])})
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // until it ends
	say(map[string]any{"rss": rss()})
	return nil
}

func static(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func serve(c *secretstream.Conn, f *feed.Feed, up *replicate.Uplink) {
	var s replicate.Session
	share := up.Share(0)
	m := mux.New(c, mux.Config{Window: share.Window(), Pace: share, Accept: func(string, []byte) bool {
		replicate.NewSeller(replicate.SellerConfig{Session: s, Feed: f, Blocks: f.Reader(), Uplink: up}) //nolint:errcheck // nothing is sold then
		return false
	}})
	s = replicate.Session{Mux: m, HandshakeHash: c.HandshakeHash()}
	m.Run() //nolint:errcheck // ends with the buyer
}

// counter is a Sink that counts.
type counter struct {
	n, want int
	done    chan struct{}
}

func (c *counter) Block(uint64, []byte) error {
	if c.n++; c.n == c.want {
		close(c.done)
	}
	return nil
}
func (c *counter) Gap(from, to uint64) error {
	return fmt.Errorf("blocks %d to %d are missing", from, to)
}
func (c *counter) Fork(uint64, uint64) error { return errors.New("fork") }
func (c *counter) Head(merkle.Head) error    { return nil }

func buy(port int, key string, blocks int) error {
	k, err := hex.DecodeString(key)
	if err != nil {
		return err
	}
	sink := &counter{want: blocks, done: make(chan struct{})}
	b, err := replicate.NewBuyer(replicate.BuyerConfig{Key: merkle.Hash(k), Sink: sink})
	if err != nil {
		return err
	}
	start := time.Now()
	c, err := secretstream.Dial(context.Background(), fmt.Sprintf("127.0.0.1:%d", port), secretstream.Config{Static: static(2), MaxMessage: replicate.MaxMessage})
	if err != nil {
		return err
	}
	m := mux.New(c, mux.Config{})
	ended := make(chan error, 1)
	go func() { ended <- m.Run() }()
	if err := b.Attach(replicate.Session{Mux: m, HandshakeHash: c.HandshakeHash(), Initiator: true}); err != nil {
		return err
	}
	select {
	case <-sink.done:
		say(map[string]any{"seconds": time.Since(start).Seconds(), "rss": rss()})
		m.Close()
		<-ended
		return nil
	case err := <-ended:
		return fmt.Errorf("after %d blocks: %w", sink.n, err)
	}
}
