package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/source"
	"dazaar-edge/cmd/edge/till"
	"dazaar-edge/configs"
	"dazaar-edge/market/device"
	"dazaar-edge/monitor"
	"dazaar-edge/payment"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/sensors"
)

// socketName is the socket in storage.path on which edge run answers to the owner's
// commands: HTTP, for who may write to that file.
const socketName = "edge.sock"

// station is edge run, as the owner's commands see it.
type station struct {
	cfg    *configs.Config // as it was at the start
	listed *configs.Config // what the cards say; owned by sample, like stale
	stale  bool            // cards do not say yet who is paid now
	clock  sensors.Clock
	till   *till.Till
	offers []*offer
	net    *reach.Network // nil if it has no part in it
	start  time.Time
	log    *slog.Logger
	writes monitor.Pace // to disks

	server *http.Server
	served chan struct{}
}

// usage returns what the process took.
func (st *station) usage() monitor.Usage {
	u := monitor.ReadUsage()
	u.PerDay = st.writes.PerDay(time.Now(), u.Writes)
	return u
}

// listen answers on the socket.
func (st *station) listen() error {
	name := filepath.Join(st.cfg.Storage.Path, socketName)
	if len(name) > maxSocket {
		return fmt.Errorf("storage.path: the path of its socket has %d bytes, and a socket's has at most %d: a shorter one", len(name), maxSocket)
	}
	// The directory is locked: an old socket is that of a process that is gone.
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", name)
	if err != nil {
		return fmt.Errorf("storage.path: %w", err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		return errors.Join(err, ln.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", st.status)
	mux.HandleFunc("GET /sensors", st.sensors)
	mux.HandleFunc("GET /buyers", st.buyers)
	mux.HandleFunc("GET /ledger", st.ledger)
	mux.HandleFunc("GET /card/{feed}", st.card)
	mux.HandleFunc("POST /revoke", st.revoke)
	mux.HandleFunc("POST /trust", st.trust)
	st.server = &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 8 << 10}
	st.served = make(chan struct{})
	go func() {
		defer close(st.served)
		st.server.Serve(&few{ln, make(chan struct{}, maxCallers)}) //nolint:errcheck // close ends it
	}()
	return nil
}

// maxCallers is how many commands are answered at once.
const maxCallers = 16

// few is a listener that has few connections at a time.
type few struct {
	net.Listener
	room chan struct{}
}

func (l *few) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &one{Conn: c, free: sync.OnceFunc(func() { <-l.room })}, nil
}

type one struct {
	net.Conn
	free func()
}

func (c *one) Close() error {
	defer c.free()
	return c.Conn.Close()
}

func (st *station) close() error {
	if st.server == nil {
		return nil
	}
	err := st.server.Close()
	<-st.served
	return err
}

// answer writes lines of JSON.
func answer[T any](w http.ResponseWriter, lines ...T) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	for _, l := range lines {
		if e.Encode(l) != nil {
			return // he hung up
		}
	}
}

func fail(w http.ResponseWriter, err error) { http.Error(w, err.Error(), http.StatusConflict) }

// Status is what edge status prints; docs/json.md explains it.
type status struct {
	Device  string        `json:"device"`
	Version string        `json:"version"`
	Boot    uint32        `json:"boot"`
	Mono    float64       `json:"mono"`
	Time    *time.Time    `json:"time"`
	Err     float64       `json:"err,omitempty"`
	Uptime  float64       `json:"uptime"`
	Feeds   []feedStatus  `json:"feeds"`
	Network *reach.Status `json:"network,omitempty"`
	Payment *payStatus    `json:"payment,omitempty"`
	Process monitor.Usage `json:"process"`
}

type feedStatus struct {
	Name        string `json:"name"`
	SellerKey   string `json:"sellerKey,omitempty"`
	TCP         string `json:"tcp,omitempty"`
	First       uint64 `json:"first"`
	Length      uint64 `json:"length"`
	Bytes       int64  `json:"bytes"`
	Readings    uint64 `json:"readings"`
	Failed      uint64 `json:"failed"`
	Dropped     uint64 `json:"dropped"`
	Waiting     int    `json:"waiting"`
	Error       string `json:"error,omitempty"`
	Buyers      int    `json:"buyers"`
	Connections int    `json:"connections"`
	Refused     uint64 `json:"refused"`
	CardVersion uint64 `json:"cardVersion,omitempty"`

	Network *reach.Offer `json:"network,omitempty"`
}

type payStatus struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// monitor says how the device does to a broker; nil if there is none.
func (st *station) monitor(id string) (*monitor.Monitor, error) {
	b := st.cfg.Monitor.MQTT
	if b == nil {
		return nil, nil
	}
	t, err := source.Trust(b.CA)
	if err != nil {
		return nil, fmt.Errorf("monitor.mqtt.ca: %w", err)
	}
	return monitor.New(monitor.Config{
		Broker: b.Broker, Username: b.Username, Password: b.Password, TLS: t, Prefix: st.cfg.Monitor.Prefix, ID: id,
		Health: func() any { return st.health() }, Log: st.log,
	}), nil
}

func (st *station) status(w http.ResponseWriter, _ *http.Request) { answer(w, st.health()) }

// health is how everything does.
func (st *station) health() status {
	now := st.clock.Now()
	out := status{
		Device: st.cfg.Device.Name, Version: version, Boot: now.Boot, Mono: now.Mono.Seconds(), Err: now.Err.Seconds(),
		Uptime: time.Since(st.start).Seconds(), Process: st.usage(),
	}
	if !now.Wall.IsZero() {
		out.Time = &now.Wall
	}
	for _, o := range st.offers {
		h, d := o.log.Head(), o.dev.Stats()
		f := feedStatus{
			Name: o.name, SellerKey: o.seller, TCP: o.tcp, First: h.First, Length: h.Length, Bytes: o.log.Size(),
			Readings: d.Readings, Failed: d.Failed, Dropped: d.Dropped, Waiting: d.Waiting, Error: d.Error,
		}
		if o.market != nil {
			m := o.market.Stats()
			f.Buyers, f.Connections, f.Refused, f.CardVersion = m.Buyers, m.Connections, m.Strangers.Refused, m.Card
		}
		if st.net != nil {
			f.Network = st.net.Offer(o.name)
		}
		out.Feeds = append(out.Feeds, f)
	}
	if st.net != nil {
		s := st.net.Status()
		out.Network = &s
	}
	if len(st.cfg.Payment) > 0 {
		p := payStatus{OK: true}
		if err := st.till.Cashier.Health(); err != nil {
			p = payStatus{Error: err.Error()}
		}
		out.Payment = &p
	}
	return out
}

// sensorStatus is a line of edge sensors.
type sensorStatus struct {
	Feed   string `json:"feed"`
	Sensor string `json:"sensor"`
	device.SensorState
}

func (st *station) sensors(w http.ResponseWriter, _ *http.Request) {
	var out []sensorStatus
	for _, o := range st.offers {
		for name, s := range o.dev.Sensors() {
			out = append(out, sensorStatus{o.name, name, s})
		}
	}
	answer(w, out...)
}

// feed returns the offer of a name; "" is the only one.
func (st *station) feed(name string) (*offer, error) {
	var found *offer
	for _, o := range st.offers {
		if o.name == name || name == "" && len(st.offers) == 1 {
			found = o
		}
	}
	switch {
	case found == nil && name == "":
		return nil, errors.New("which feed? --feed NAME")
	case found == nil:
		return nil, fmt.Errorf("there is no feed %q", name)
	case found.market == nil:
		return nil, fmt.Errorf("feed %s is not sold: it needs a price and a tcp address, and a board that may sign", found.name)
	}
	return found, nil
}

// buyerStatus is a line of edge buyers.
type buyerStatus struct {
	Feed      string `json:"feed"`
	Buyer     string `json:"buyer"`
	Connected bool   `json:"connected"`
	Type      string `json:"type"`
	Remaining *int64 `json:"remaining"`
	Credit    string `json:"creditMsat"`
	Paid      string `json:"paidMsat"`
	Bytes     uint64 `json:"bytes"` // that were paid for
	Revoked   bool   `json:"revoked,omitempty"`
	Trial     bool   `json:"trial,omitempty"`
}

func (st *station) buyers(w http.ResponseWriter, _ *http.Request) {
	var out []buyerStatus
	for _, o := range st.offers {
		if o.market == nil {
			continue
		}
		there := o.market.Connected()
		err := st.till.Books.Accounts(o.name, func(a ledger.Account, err error) bool {
			if err != nil {
				st.log.Error("a sale cannot be read", "feed", o.name, "error", err)
				return true
			}
			v := o.market.Describe(a.Meter)
			out = append(out, buyerStatus{
				Feed: o.name, Buyer: hex.EncodeToString(a.Buyer[:]), Connected: there[a.Buyer], Type: v.Type, Remaining: v.Remaining,
				Credit: v.CreditMsat, Paid: v.PaidMsat, Bytes: a.Meter.Paid, Revoked: a.Contract.Revoked, Trial: a.Meter.Tried,
			})
			delete(there, a.Buyer)
			return true
		})
		if err != nil {
			fail(w, err)
			return
		}
		for buyer := range there { // those of what is free
			out = append(out, buyerStatus{Feed: o.name, Buyer: hex.EncodeToString(buyer[:]), Connected: true, Type: "free", Credit: "0", Paid: "0"})
		}
	}
	answer(w, out...)
}

func (st *station) ledger(w http.ResponseWriter, _ *http.Request) {
	var out []ledger.Row
	err := st.till.Books.Rows(func(r ledger.Row, err error) bool {
		if err != nil {
			st.log.Error("an invoice in the ledger cannot be read", "error", err)
		} else {
			out = append(out, r)
		}
		return true
	})
	if err != nil {
		fail(w, err)
		return
	}
	ledger.Sort(out)
	answer(w, out...)
}

// trusted is what edge ledger --trust asks for, and is answered.
type trusted struct {
	Gateway string `json:"gateway"`
	Network string `json:"network"`
	Payee   string `json:"payee"`
}

func (st *station) trust(w http.ResponseWriter, r *http.Request) {
	var q trusted
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&q)
	if err == nil {
		var id payment.Identity
		id, err = st.till.Cashier.Trust(r.Context(), q.Gateway)
		q.Network, q.Payee = string(id.Network), hex.EncodeToString(id.Payee[:])
	}
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, q)
}

func (st *station) card(w http.ResponseWriter, r *http.Request) {
	o, err := st.feed(r.PathValue("feed"))
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, json.RawMessage(o.market.Card()))
}

// revocation is what edge revoke asks for, and is answered.
type revocation struct {
	Feed  string `json:"feed"`
	Buyer string `json:"buyer"`
	Burn  bool   `json:"burn"`
	Undo  bool   `json:"undo"`
	// Known: somebody has this key.
	Known bool `json:"known"`
}

func (st *station) revoke(w http.ResponseWriter, r *http.Request) {
	var q revocation
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&q); err != nil {
		fail(w, err)
		return
	}
	o, err := st.feed(q.Feed)
	var buyer [32]byte
	if err == nil {
		buyer, err = reach.ParseKey(q.Buyer)
	}
	if err == nil {
		q.Known, err = st.knows(o, buyer)
	}
	if err == nil {
		switch {
		case q.Undo:
			err = o.market.Restore(buyer)
		case q.Burn:
			err = o.market.Burn(buyer)
		default:
			err = o.market.Revoke(buyer)
		}
	}
	if err != nil {
		fail(w, err)
		return
	}
	q.Feed = o.name
	answer(w, q)
}

// knows tells whether a buyer has ever had anything to do with an offer.
func (st *station) knows(o *offer, buyer [32]byte) (known bool, err error) {
	err = st.till.Books.Accounts(o.name, func(a ledger.Account, _ error) bool {
		known = known || a.Buyer == buyer
		return !known
	})
	return known || o.market.Connected()[buyer], err
}

// reload takes over prices, terms and descriptions of a configuration that changed.
func (st *station) reload(file string) error {
	cfg, err := source.Load(file)
	if err != nil {
		return err
	}
	if err := st.relist(cfg); err != nil {
		return err
	}
	st.listed = cfg
	for _, f := range cfg.Feeds {
		if !slices.ContainsFunc(st.offers, func(o *offer) bool { return o.name == f.Name }) {
			st.log.Warn("this feed is new: it begins when edge is restarted", "feed", f.Name)
		}
	}
	return nil
}

// payees publishes who is paid now.
func (st *station) payees() {
	err := st.relist(st.listed)
	if st.stale = err != nil; st.stale {
		st.log.Error("cards do not say who is paid now; trying again", "error", err)
	}
}

// relist publishes cards, as a configuration and the wallets say.
func (st *station) relist(cfg *configs.Config) error {
	for _, o := range st.offers {
		i := slices.IndexFunc(cfg.Feeds, func(f configs.Feed) bool { return f.Name == o.name })
		switch {
		case i < 0:
			st.log.Warn("this feed is not in the configuration any more: it goes on as it was until edge is restarted", "feed", o.name)
		case o.market == nil:
		default:
			if err := o.market.SetListing(st.till.List(cfg, &cfg.Feeds[i])); err != nil {
				return fmt.Errorf("feed %s, and those behind it: %w", o.name, err)
			}
		}
	}
	return nil
}
