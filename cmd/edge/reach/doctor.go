package reach

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/protocol/dht"
	"dazaar-edge/protocol/secretstream"
)

// Diagnosis says why a device can be reached, or cannot. docs/json.md explains it.
type Diagnosis struct {
	Joined    bool     `json:"joined"` // some node of the network answers
	Nodes     int      `json:"nodes"`
	Router    string   `json:"router"`              // open, consistent, random or unknown
	Addresses []string `json:"addresses,omitempty"` // where others see a socket of this machine
	Calls     []Call   `json:"calls,omitempty"`
	Advice    []string `json:"advice,omitempty"`
}

// Call is a test call of the doctor's own node, which is another one than the device's.
type Call struct {
	Who       string `json:"who"` // feed NAME or relay KEY
	Announced string `json:"announced,omitempty"`
	OK        bool   `json:"ok"`
	Millis    int64  `json:"ms,omitempty"`
	Address   string `json:"address,omitempty"` // by which it went
	Error     string `json:"error,omitempty"`
}

// Called is whom the doctor calls.
type Called struct {
	Who       string
	Key       [32]byte
	Announced string
	By        configs.Relay // with TCP, by this relay alone
}

// callTime bounds one test call, and joinTime how long it may take until a node answers.
const (
	callTime = 15 * time.Second
	joinTime = 10 * time.Second
)

// Diagnose looks how this machine is reached, from a node of its own, and calls those who
// should answer.
func Diagnose(ctx context.Context, cfg configs.Network, called []Called, log *slog.Logger) (*Diagnosis, error) {
	c := dht.Config{Never: true, Log: log}
	if len(cfg.Bootstrap) > 0 {
		c.Bootstrap = cfg.Bootstrap
	}
	n, err := dht.New(c)
	if err != nil {
		return nil, err
	}
	defer n.Close()
	d := &Diagnosis{Router: "unknown"}
	joining, cancel := context.WithTimeout(ctx, joinTime)
	err = n.Bootstrap(joining)
	cancel()
	if d.Joined = err == nil; d.Joined {
		d.Nodes = n.RPC().Size()
		kind, addrs := n.Router(ctx)
		d.Router = kind.String()
		for _, a := range addrs {
			d.Addresses = append(d.Addresses, a.String())
		}
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	for _, x := range called {
		if d.Joined || x.By.TCP != "" {
			d.Calls = append(d.Calls, call(ctx, n, key, x))
		}
	}
	d.advise(cfg.Relays)
	return d, ctx.Err()
}

// call dials one who should answer.
func call(ctx context.Context, n *dht.Node, key ed25519.PrivateKey, x Called) Call {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	out := Call{Who: x.Who, Announced: x.Announced}
	begun := time.Now()
	var conn *secretstream.Conn
	var err error
	if x.By.TCP != "" {
		conn, err = dialRelay(ctx, x.By, key, x.Key)
	} else {
		conn, err = n.Dial(ctx, dht.DialConfig{Key: key, Remote: x.Key})
	}
	if err != nil {
		out.Error = err.Error()
		return out
	}
	defer conn.Close()
	out.OK, out.Millis, out.Address = true, time.Since(begun).Milliseconds(), conn.RemoteAddr().String()
	return out
}

// advise says what follows.
func (d *Diagnosis) advise(relays []configs.Relay) {
	say := func(format string, args ...any) { d.Advice = append(d.Advice, fmt.Sprintf(format, args...)) }
	byTCP := slices.ContainsFunc(relays, func(r configs.Relay) bool { return r.TCP != "" })
	switch {
	case !d.Joined && byTCP:
		say("no node of the network answers: UDP to other hosts is blocked, or there is no way to the internet; buyers come by TCP, through relays or to tcp: addresses, and need the card, which names those relays")
	case !d.Joined:
		say("no node of the network answers: UDP to other hosts is blocked, or there is no way to the internet; only TCP addresses (tcp: in the configuration) can be reached, and relays that are reached by TCP: run edge relay on a public host, and name it as KEY@HOST:PORT in network.relays")
	case d.Router == "random" && len(relays) == 0:
		say("the router takes another port for each address: buyers behind such a router (most mobile networks) cannot reach this device without a relay: run edge relay on a public host, and name it in network.relays")
	case d.Router == "unknown":
		say("too few nodes answered to tell what kind of router this is")
	}
	if d.Joined && len(relays) > 0 && !byTCP {
		say("no relay is reached by TCP: buyers in networks that block UDP cannot reach this device; name one as KEY@HOST:PORT in network.relays")
	}
	for _, c := range d.Calls {
		if !c.OK {
			say("%s does not answer: %s", c.Who, c.Error)
		}
	}
}

// Print says it in words.
func (d *Diagnosis) Print(out io.Writer) {
	if !d.Joined {
		fmt.Fprintln(out, "network: no node answers")
	} else {
		kinds := map[string]string{
			"open": "none, anybody can send to this machine", "consistent": "keeps its ports: holes can be made through it",
			"random": "takes another port for each address", "unknown": "of a kind that could not be found out",
		}
		fmt.Fprintf(out, "network: %d nodes are known\nrouter: %s\n", d.Nodes, kinds[d.Router])
		for _, a := range d.Addresses {
			fmt.Fprintf(out, "seen at %s\n", a)
		}
	}
	for _, c := range d.Calls {
		announced := ""
		if c.Announced != "" {
			announced = ", announced " + c.Announced
		}
		if c.OK {
			fmt.Fprintf(out, "ok    %s answers in %d ms from %s%s\n", c.Who, c.Millis, c.Address, announced)
		} else {
			fmt.Fprintf(out, "FAIL  %s: %s%s\n", c.Who, c.Error, announced)
		}
	}
	for _, a := range d.Advice {
		fmt.Fprintln(out, "advice:", a)
	}
}

// Relays are the relays of a configuration as those whom the doctor calls.
func Relays(cfg configs.Network) (out []Called) {
	for _, r := range cfg.Relays {
		out = append(out, Called{Who: "relay " + hex.EncodeToString(r.Key[:4]), Key: r.Key})
	}
	return out
}

// Feed are the ways by which a feed is called: over the network, and through each relay that
// is reached by TCP.
func Feed(cfg configs.Network, name string, key [32]byte, announced string) []Called {
	out := []Called{{Who: "feed " + name, Key: key, Announced: announced}}
	for _, r := range cfg.Relays {
		if r.TCP != "" {
			out = append(out, Called{Who: "feed " + name + " through " + r.TCP, Key: key, By: r})
		}
	}
	return out
}
