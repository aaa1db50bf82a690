package nwc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"dazaar-edge/payment"
	"dazaar-edge/payment/nostr"
)

// Kinds of events.
const (
	kindInfo     = 13194
	kindRequest  = 23194
	kindResponse = 23195
	kindNotice04 = 23196
	kindNotice   = 23197
)

// Times.
const (
	// answerTime is how long a wallet may take to answer.
	answerTime = 20 * time.Second
	// restTime is for how long a relay that failed is not tried, while there are others.
	restTime = time.Minute
	// skew is how far this clock and the wallet's may be apart.
	skew = 10 * time.Minute
	// silence is after how long a wallet that did not answer when ctx ended is called
	// silent.
	silence = 4 * time.Second
)

// Connection is what a wallet's nostr+walletconnect URI says.
type Connection struct {
	Wallet string // public key, in hex
	Relays []string
	key    *nostr.Key
}

// ParseConnection reads a URI. Errors do not say what is in it: there is a secret.
func ParseConnection(text string) (*Connection, error) {
	u, err := url.Parse(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("nwc: the connection is no URI")
	}
	q := u.Query()
	c := &Connection{Wallet: u.Host, Relays: q["relay"]}
	if c.Wallet == "" { // nostr+walletconnect:KEY?… is seen, too
		c.Wallet = u.Opaque
	}
	switch {
	case u.Scheme != "nostr+walletconnect":
		err = errors.New("nwc: the connection does not begin with nostr+walletconnect://")
	case len(c.Wallet) != 64:
		err = errors.New("nwc: the connection has no public key of a wallet")
	case len(c.Relays) == 0:
		err = errors.New("nwc: the connection names no relay")
	default:
		c.key, err = nostr.ParseKey(q.Get("secret"))
	}
	for i, r := range c.Relays {
		if err == nil && !strings.HasPrefix(r, "wss://") && !strings.HasPrefix(r, "ws://") {
			err = fmt.Errorf("nwc: relay %d of the connection does not begin with wss://", i+1) // there may be a secret in it
		}
	}
	return c, err
}

// walletError is what a wallet says when it does not do it.
type walletError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Error implements error.
func (e *walletError) Error() string { return fmt.Sprintf("nwc: %s: %.200q", e.Code, e.Message) }

// isCode tells whether an error is a wallet's with one of these codes.
func isCode(err error, codes ...string) bool {
	var e *walletError
	return errors.As(err, &e) && slices.Contains(codes, e.Code)
}

// notice is what a wallet says by itself.
type notice struct {
	Type   string      `json:"notification_type"`
	Notice transaction `json:"notification"`
}

// transaction is an invoice or a payment, as a wallet describes it.
type transaction struct {
	Type      string `json:"type"`
	State     string `json:"state"`
	Invoice   string `json:"invoice"`
	Hash      string `json:"payment_hash"`
	Preimage  string `json:"preimage"`
	Amount    number `json:"amount"` // msat
	Fees      loose  `json:"fees_paid"`
	SettledAt number `json:"settled_at"`
}

// number is a number, or null, or one that somebody wrote as a text.
type number uint64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *number) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	if text == "null" || text == "" {
		*n = 0
		return nil
	}
	v, err := strconv.ParseUint(text, 10, 63)
	*n = number(v)
	return err
}

// loose is a number that does not matter much: 0 if it is none.
type loose uint64

// UnmarshalJSON implements [json.Unmarshaler].
func (n *loose) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(b), `"`), 10, 63)
	if err == nil {
		*n = loose(v)
	}
	return nil
}

// settled tells whether it was paid.
func (t *transaction) settled() bool {
	return t.State == "settled" || t.State == "" && t.SettledAt > 0
}

// info is what is known of a wallet.
type info struct {
	how     nostr.Encryption
	methods []string
	// notices are the kinds of events that it sends by itself; nil if it does not say so.
	notices []string
	network string
}

// may tells whether a method may be called.
func (i *info) may(method string) bool { return slices.Contains(i.methods, method) }

// client asks a wallet over one of its relays.
type client struct {
	c   *Connection
	log *slog.Logger

	dialing chan struct{} // has a token while somebody dials

	mu    sync.Mutex
	conn  *nostr.Conn // guarded by mu, like all below; nil while there is none
	info  *info       // of the wallet, as conn says it
	wait  map[string]chan *nostr.Event
	tell  func(notice)         // who watches; nil is nobody
	tired map[string]time.Time // relays, and when they failed
}

func newClient(uri string, log *slog.Logger) (*client, error) {
	c, err := ParseConnection(uri)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &client{c: c, log: log, dialing: make(chan struct{}, 1), wait: map[string]chan *nostr.Event{}, tired: map[string]time.Time{}}, nil
}

// Close ends the connection. The client may be used again.
func (c *client) Close() {
	c.mu.Lock()
	conn := c.conn
	c.conn = nil
	c.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// current returns the connection that stands; nil if there is none.
func (c *client) current() (*nostr.Conn, *info) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn == nil || c.conn.Err() != nil {
		return nil, nil
	}
	return c.conn, c.info
}

// connect returns a connection that stands: to the first relay that works, those last that
// failed just now.
func (c *client) connect(ctx context.Context) (*nostr.Conn, *info, error) {
	select {
	case c.dialing <- struct{}{}:
		defer func() { <-c.dialing }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	if conn, i := c.current(); conn != nil {
		return conn, i, nil
	}
	c.Close()
	var errs error
	for _, relay := range c.order() {
		conn, i, err := c.dial(ctx, relay)
		if err == nil {
			return conn, i, nil
		}
		errs = errors.Join(errs, err)
		if ctx.Err() != nil {
			break // it may be a good one
		}
		c.tires(relay)
	}
	return nil, nil, fmt.Errorf("%w: no relay of the wallet works: %w", payment.ErrUnpayable, errs)
}

// order returns the relays in the order in which they are tried.
func (c *client) order() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := slices.Clone(c.c.Relays)
	slices.SortStableFunc(out, func(a, b string) int {
		ta, tb := c.tired[a], c.tired[b]
		if time.Since(ta) > restTime {
			ta = time.Time{}
		}
		if time.Since(tb) > restTime {
			tb = time.Time{}
		}
		return ta.Compare(tb)
	})
	return out
}

func (c *client) tires(relay string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tired[relay] = time.Now()
}

// dial connects to a relay and learns what the wallet can do.
func (c *client) dial(ctx context.Context, relay string) (*nostr.Conn, *info, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	got := make(chan *nostr.Event, 1)
	me := []string{c.c.key.Public()}
	from := []string{c.c.Wallet}
	conn, err := nostr.Dial(ctx, relay, c.c.key, func(e *nostr.Event) {
		if e.Kind == kindInfo && e.PubKey == c.c.Wallet {
			select {
			case got <- e:
			default:
			}
			return
		}
		c.event(e)
	}, nostr.Filter{Kinds: []int{kindInfo}, Authors: from, Limit: 1},
		nostr.Filter{Kinds: []int{kindResponse, kindNotice, kindNotice04}, Authors: from, To: me, Since: time.Now().Add(-skew).Unix()})
	if err != nil {
		return nil, nil, err
	}
	i := &info{how: nostr.NIP04}
	select {
	case e := <-got:
		i.methods = strings.Fields(e.Content)
		for _, how := range strings.FieldsFunc(e.Tag("encryption"), separates) {
			if how == string(nostr.NIP44) {
				i.how = nostr.NIP44
			}
		}
		i.notices = strings.FieldsFunc(e.Tag("notifications"), separates)
	default:
		conn.Close()
		return nil, nil, fmt.Errorf("nwc: %s knows nothing of this wallet: is the connection still allowed?", relay)
	}
	c.mu.Lock()
	c.conn, c.info = conn, i
	c.mu.Unlock()
	c.log.Debug("wallet connected", "relay", relay, "encryption", i.how, "methods", i.methods)
	return conn, i, nil
}

func separates(r rune) bool { return r == ' ' || r == ',' }

// event takes an answer, or what the wallet says by itself.
func (c *client) event(e *nostr.Event) {
	if e.PubKey != c.c.Wallet || e.Tag("p") != c.c.key.Public() {
		return
	}
	if e.Kind == kindResponse {
		c.mu.Lock()
		wait := c.wait[e.Tag("e")]
		c.mu.Unlock()
		if wait != nil {
			select {
			case wait <- e:
			default: // it came twice
			}
		}
		return
	}
	how := nostr.NIP44
	if e.Kind == kindNotice04 {
		how = nostr.NIP04
	}
	text, err := c.c.key.Decrypt(how, c.c.Wallet, e.Content)
	var n notice
	if err == nil {
		err = json.Unmarshal([]byte(text), &n)
	}
	if err != nil {
		c.log.Debug("what the wallet says cannot be read", "error", err)
		return
	}
	c.mu.Lock()
	tell := c.tell
	c.mu.Unlock()
	if tell != nil {
		tell(n)
	}
}

// call asks the wallet. Where nothing was sent, or the wallet said no, the error wraps
// [errUnsent] or a walletError; after any other it may have been done. When a relay is
// lost meanwhile the next one is asked, but for payments.
func (c *client) call(ctx context.Context, method string, params, out any) error {
	err := c.once(ctx, method, params, out)
	if errors.Is(err, nostr.ErrRefused) || errors.Is(err, nostr.ErrClosed) && method != "pay_invoice" {
		err = c.once(ctx, method, params, out)
	}
	if errors.Is(err, nostr.ErrRefused) || errors.Is(err, nostr.ErrClosed) {
		err = fmt.Errorf("%w: %w", payment.ErrUnpayable, err)
	}
	return err
}

// once is call with one try.
func (c *client) once(ctx context.Context, method string, params, out any) error {
	patience := time.Duration(answerTime)
	if method == "pay_invoice" { // a payment takes its time
		patience = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, patience+answerTime)
	defer cancel()
	conn, i, err := c.connect(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsent, err)
	}
	b, err := json.Marshal(map[string]any{"method": method, "params": params})
	if err != nil {
		return err
	}
	text, err := c.c.key.Encrypt(i.how, c.c.Wallet, string(b))
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsent, err)
	}
	e, err := nostr.NewEvent(c.c.key, kindRequest, text, []string{"p", c.c.Wallet}, []string{"encryption", string(i.how)},
		[]string{"expiration", strconv.FormatInt(time.Now().Add(skew).Unix(), 10)})
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsent, err)
	}
	answer := make(chan *nostr.Event, 1)
	c.mu.Lock()
	c.wait[e.ID] = answer
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.wait, e.ID)
	}()
	if err := conn.Publish(ctx, e); err != nil {
		if errors.Is(err, nostr.ErrRefused) {
			c.tires(conn.URL())
			conn.Close()
		}
		return fmt.Errorf("nwc: %s: %w", method, err)
	}
	sent := time.Now()
	select {
	case r := <-answer:
		return c.read(i, method, r, out)
	case <-conn.Done():
		return conn.Err()
	case <-ctx.Done():
		if time.Since(sent) > silence && method != "pay_invoice" {
			c.tires(conn.URL())
			conn.Close()
		}
		return context.Cause(ctx)
	case <-time.After(patience):
		// The relay works, and the wallet is silent there: the next one, next time.
		c.tires(conn.URL())
		conn.Close()
		return fmt.Errorf("%w: the wallet does not answer to %s", payment.ErrUnpayable, method)
	}
}

// errUnsent says that the wallet heard of nothing.
var errUnsent = errors.New("nwc: the wallet was not asked")

// read reads an answer.
func (c *client) read(i *info, method string, e *nostr.Event, out any) error {
	how := i.how
	if strings.Contains(e.Content, "?iv=") { // an old wallet answers in its own way
		how = nostr.NIP04
	}
	text, err := c.c.key.Decrypt(how, c.c.Wallet, e.Content)
	if err != nil {
		return fmt.Errorf("nwc: %s: %w", method, err)
	}
	answer := struct {
		Error  *walletError `json:"error"`
		Result any          `json:"result"`
	}{Result: out}
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return fmt.Errorf("nwc: %s: %w", method, err)
	}
	if answer.Error != nil && answer.Error.Code+answer.Error.Message != "" {
		return answer.Error
	}
	return nil
}

// learn asks for what the wallet says of itself, once a connection.
func (c *client) learn(ctx context.Context) (*info, error) {
	_, i, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	known := i.network != "" || !i.may("get_info")
	c.mu.Unlock()
	if known {
		return i, nil
	}
	var out struct {
		Network string   `json:"network"`
		Methods []string `json:"methods"`
	}
	if err := c.call(ctx, "get_info", struct{}{}, &out); err != nil && !isCode(err, "NOT_IMPLEMENTED", "RESTRICTED") {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i.network = "?"
	if out.Network != "" {
		i.network = out.Network
	}
	if len(out.Methods) > 0 { // what this connection may, not what the wallet can
		i.methods = out.Methods
	}
	return i, nil
}
