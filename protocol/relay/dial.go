package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"dazaar-edge/protocol/bucket"
	"dazaar-edge/protocol/noise"
	"dazaar-edge/protocol/secretstream"
)

// ErrUnknown says that nobody listens at the relay under the key.
var ErrUnknown = errors.New("relay: nobody listens there under this key")

// Address is where a relay is reached by TCP.
type Address struct {
	Key [32]byte
	TCP string // host:port
}

// StreamConfig is how a relay, whose key is static, and its clients talk.
func StreamConfig(static ed25519.PrivateKey) secretstream.Config {
	return secretstream.Config{Pattern: noise.IK, Static: static, MaxMessage: 1 << 10, KeepAlive: -1, WriteTimeout: takeTime}
}

// connect connects to a relay as who has static.
func connect(ctx context.Context, at Address, static ed25519.PrivateKey) (*secretstream.Conn, error) {
	cfg := StreamConfig(static)
	cfg.Remote = at.Key
	c, err := secretstream.Dial(ctx, at.TCP, cfg)
	if err != nil {
		return nil, fmt.Errorf("relay %s: %w", at.TCP, err)
	}
	return c, nil
}

// pipe asks a relay for a pipe.
func pipe(ctx context.Context, at Address, static ed25519.PrivateKey, op byte, arg [32]byte) (net.Conn, error) {
	c, err := connect(ctx, at, static)
	if err != nil {
		return nil, err
	}
	if err := ask(ctx, c, append([]byte{op}, arg[:]...)); err != nil {
		c.Close()
		return nil, fmt.Errorf("relay %s: %w", at.TCP, err)
	}
	return c.Detach()
}

// Dial connects by TCP, through a relay, to who listens there under cfg.Remote. The relay
// learns neither who dials nor what is said. cfg.Pattern is that of the other end's
// [ListenStreamConfig].
func Dial(ctx context.Context, at Address, cfg secretstream.Config) (*secretstream.Conn, error) {
	_, nobody, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	raw, err := pipe(ctx, at, nobody, opDial, cfg.Remote)
	if err != nil {
		return nil, err
	}
	return secretstream.Client(ctx, raw, cfg)
}

// ListenStreamConfig says how to be reached through a relay by TCP. Relay and Secret, which
// has this side's key as Static, are required.
type ListenStreamConfig struct {
	Relay  Address
	Secret secretstream.Config // of the connections
	// Pending is how many may be under way, or wait for Accept; 0 is 16.
	Pending int
	Log     *slog.Logger // nil discards
}

// Each connection costs public-key work, and the relay says for whom.
const (
	streamRate  = 5
	streamBurst = 20
)

// Waits between attempts to be reached at a relay again.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
	eagerRetry = 2 * time.Second
	eagerTime  = 10 * time.Minute // after it worked
)

// StreamListener is reached through a relay. All methods are safe for concurrent use.
type StreamListener struct {
	cfg    ListenStreamConfig
	accept chan *secretstream.Conn
	ctx    context.Context //nolint:containedctx // it ends what the listener began
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	since time.Time // it is reached; zero if it is not; guarded by mu, like all below
	err   error     // why it is not
	n     int       // connections under way
	rate  *bucket.Bucket
}

// ListenStream keeps a connection with a relay, and takes those whom it announces.
func ListenStream(cfg ListenStreamConfig) *StreamListener {
	if cfg.Pending == 0 {
		cfg.Pending = 16
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &StreamListener{cfg: cfg, accept: make(chan *secretstream.Conn), rate: bucket.New(streamRate, streamBurst, time.Now())}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.run)
	return l
}

// Accept returns the next connection. After Close it fails with [net.ErrClosed].
func (l *StreamListener) Accept() (*secretstream.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends listening. Connections that Accept returned stay open.
func (l *StreamListener) Close() error {
	l.cancel()
	l.wg.Wait()
	return nil
}

// Relay returns where the listener is reached.
func (l *StreamListener) Relay() Address { return l.cfg.Relay }

// Reached returns since when the relay has known the listener, or zero and why it does not.
func (l *StreamListener) Reached() (since time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.since, l.err
}

func (l *StreamListener) run() {
	wait := firstRetry
	var worked time.Time
	refused := false // and told so
	for l.ctx.Err() == nil {
		err := l.register()
		l.mu.Lock()
		if !l.since.IsZero() {
			worked, wait = time.Now(), firstRetry
		}
		l.since, l.err = time.Time{}, err
		l.mu.Unlock()
		level := slog.LevelDebug
		if errors.Is(err, ErrRefused) && !refused {
			level, refused = slog.LevelWarn, true // it is full, or has too many of our network
		}
		if l.ctx.Err() == nil {
			l.cfg.Log.Log(l.ctx, level, "not reached through the relay", "relay", l.cfg.Relay.TCP, "error", err, "again", wait)
		}
		select {
		case <-time.After(wait/2 + mathrand.N(wait)):
		case <-l.ctx.Done():
		}
		if wait = min(2*wait, lastRetry); time.Since(worked) < eagerTime {
			wait = min(wait, eagerRetry)
		}
	}
}

// register is reached for as long as the relay answers.
func (l *StreamListener) register() error {
	ctx, cancel := context.WithTimeout(l.ctx, requestTime)
	defer cancel()
	c, err := connect(ctx, l.cfg.Relay, l.cfg.Secret.Static)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := ask(ctx, c, []byte{opListen}); err != nil {
		return err
	}
	l.mu.Lock()
	l.since, l.err = time.Now(), nil
	l.mu.Unlock()
	defer context.AfterFunc(l.ctx, func() { c.Close() })()
	// It is asked whether it is there, from time to time, and must say so soon.
	late := time.AfterFunc(time.Hour, func() { c.Close() })
	defer late.Stop()
	late.Stop()
	ping := time.AfterFunc(time.Hour, func() {
		late.Reset(pongTime)
		c.WriteMessage([]byte{opPing}) //nolint:errcheck // then the connection ends
	})
	defer ping.Stop()
	for {
		ping.Reset(pingEvery)
		m, err := c.ReadMessage()
		if err != nil {
			return err
		}
		late.Stop()
		if len(m) >= 33 && m[0] == opIncoming {
			l.incoming([32]byte(m[1:33]))
		}
	}
}

// incoming takes one who dialed, if there are not too many.
func (l *StreamListener) incoming(token [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= l.cfg.Pending || !bucket.Take(time.Now(), l.rate) {
		return
	}
	l.n++
	l.wg.Go(func() {
		if err := l.take(token); err != nil {
			l.cfg.Log.Debug("one who came through the relay is gone", "error", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.n--
	})
}

func (l *StreamListener) take(token [32]byte) error {
	ctx, cancel := context.WithTimeout(l.ctx, requestTime)
	defer cancel()
	raw, err := pipe(ctx, l.cfg.Relay, l.cfg.Secret.Static, opTake, token)
	if err != nil {
		return err
	}
	c, err := secretstream.Server(ctx, raw, l.cfg.Secret)
	if err != nil {
		return err
	}
	select {
	case l.accept <- c:
		return nil
	case <-c.Done():
		return c.Err()
	case <-ctx.Done():
		c.Close()
		return ctx.Err()
	}
}
