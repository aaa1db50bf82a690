package configs

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Gateway is a wallet that is paid, or one that pays.
type Gateway struct {
	Kind string // devnet, lnd, nwc or lnurl
	// Network is what its invoices are of.
	Network string
	// Listen is where the test wallet takes payments.
	Listen string
	// URL is an lnd node's, Cert and Macaroon are files; Private adds hints how it is
	// reached.
	URL, Cert, Macaroon string
	Private             bool
	// Connection is the nostr+walletconnect URI, as its file has it; MaySpend says that
	// it is all right if it allows payments.
	Connection string
	MaySpend   bool
	// Address is a Lightning address, and CA a file with the certificate of its service,
	// if no public authority vouches for it.
	Address, CA string
	// Custodial: a service signs the invoices, with keys that may change.
	Custodial bool
}

// rawGateway is a wallet as it is written.
type rawGateway struct {
	Gateway   string  `yaml:"gateway"`
	Wallet    string  `yaml:"wallet"`
	Network   *string `yaml:"network"`
	Listen    *string `yaml:"listen"`
	URL       *string `yaml:"url"`
	Cert      *string `yaml:"cert"`
	Macaroon  *string `yaml:"macaroon"`
	Private   *bool   `yaml:"private"`
	File      *string `yaml:"connection_file"`
	MaySpend  *bool   `yaml:"may_spend"`
	Address   *string `yaml:"address"`
	CA        *string `yaml:"ca"`
	Custodial *bool   `yaml:"custodial"`
}

// networks are those of Lightning.
var networks = []string{"bitcoin", "testnet", "signet", "regtest"}

// kinds are the gateways, each with what it is.
var kinds = [...][2]string{
	{"lnd", "a node by its REST interface"}, {"nwc", "a wallet by Nostr Wallet Connect"}, {"lnurl", "a Lightning address whose service says what is paid"},
	{"devnet", "the test wallet, whose money is worth nothing"},
}

// payment reads the wallets that are paid.
func (r *reader) payment(in *raw, c *Config) {
	for i := range in.Payment {
		g := &in.Payment[i]
		path := fmt.Sprintf("payment[%d]", i)
		if g.Wallet != "" {
			r.fail(path+".wallet", "is for wallets that pay: write gateway")
		}
		known := slices.ContainsFunc(kinds[:], func(k [2]string) bool { return k[0] == g.Gateway })
		switch {
		case g.Gateway == "":
			r.fail(path, "has no gateway: which wallet is paid? %s", kindList())
		case !known:
			r.fail(path+".gateway", "%q is unknown: there are %s", g.Gateway, kindList())
		case g.Gateway == "devnet" && slices.ContainsFunc(c.Payment, func(o Gateway) bool { return o.Kind == "devnet" }):
			r.fail(path, "one test wallet is enough")
		}
		out := r.gateway(path, g.Gateway, g, "one that may make invoices and look at them, and nothing else")
		if g.Gateway == "devnet" {
			out.Network = "regtest"
			if out.Listen == "" {
				out.Listen = "127.0.0.1:49739"
			}
			r.address(path+".listen", out.Listen)
		}
		if i > 0 && out.Network != c.Payment[0].Network {
			r.fail(path, "is on %s, and payment[0] on %s: a card names one network", out.Network, c.Payment[0].Network)
		}
		if slices.ContainsFunc(c.Payment, func(o Gateway) bool { return known && o.Kind == out.Kind && o.Name() == out.Name() }) {
			r.fail(path, "is there twice")
		}
		c.Payment = append(c.Payment, out)
	}
}

func kindList() string {
	var out []string
	for _, k := range kinds {
		out = append(out, k[0]+", "+k[1])
	}
	return strings.Join(out, "; ")
}

// Name tells wallets of one configuration apart, also when others come before it, and
// says nothing that is secret.
func (g Gateway) Name() string {
	switch g.Kind {
	case "lnd":
		return "lnd " + g.URL
	case "nwc":
		key, _, _ := strings.Cut(strings.TrimPrefix(g.Connection, nwcScheme), "?")
		return "nwc " + key[:min(len(key), 16)]
	case "lnurl":
		return "lnurl " + g.Address
	}
	return g.Kind
}

// nwcScheme begins a connection of Nostr Wallet Connect.
const nwcScheme = "nostr+walletconnect://"

// gateway reads the keys of a wallet.
func (r *reader) gateway(path, kind string, g *rawGateway, macaroon string) Gateway {
	at := func(key string) string { return strings.TrimPrefix(path+"."+key, ".") }
	out := Gateway{Kind: kind, Network: "bitcoin"}
	// owned refuses a key of another kind, and tells whether it is there.
	owned := func(key string, set bool, owners ...string) bool {
		if set && kind != "" && !slices.Contains(owners, kind) {
			r.fail(at(key), "belongs to gateway %s, not %s", strings.Join(owners, " and "), kind)
		}
		return set
	}
	// needed returns what must be there for its owner.
	needed := func(key string, text *string, owner, what string) string {
		owned(key, text != nil, owner)
		if text == nil || *text == "" {
			if kind == owner {
				r.fail(path, "has no %s: %s", key, what)
			}
			return ""
		}
		return *text
	}
	file := func(key string, text *string, owner, what string) string {
		if name := needed(key, text, owner, what+", beside this file or absolute"); name != "" {
			return r.beside(name)
		}
		return ""
	}
	out.URL = needed("url", g.URL, "lnd", "where is the node's REST interface? for example https://192.168.1.5:8080")
	out.Cert = file("cert", g.Cert, "lnd", "the node's tls.cert")
	if out.Macaroon = file("macaroon", g.Macaroon, "lnd", macaroon); out.Macaroon != "" {
		r.secret(at("macaroon"), out.Macaroon)
	}
	if owned("private", g.Private != nil, "lnd") {
		out.Private = *g.Private
	}
	if name := file("connection_file", g.File, "nwc", "a file with the wallet's nostr+walletconnect:// connection"); name != "" {
		if r.secret(at("connection_file"), name) {
			out.Connection = r.connection(at("connection_file"), name)
		}
	}
	if owned("may_spend", g.MaySpend != nil, "nwc") {
		out.MaySpend = *g.MaySpend
	}
	out.Address = needed("address", g.Address, "lnurl", "whose? for example roof@example.com")
	if user, host, ok := strings.Cut(out.Address, "@"); out.Address != "" && (!ok || user == "" || host == "") {
		r.fail(at("address"), "%q is not a Lightning address: write roof@example.com", out.Address)
	}
	if owned("ca", g.CA != nil, "lnurl") {
		if out.CA = r.beside(*g.CA); !readable(out.CA) {
			r.fail(at("ca"), "%s is not a file that can be read: a certificate in PEM form", out.CA)
		}
	}
	if owned("custodial", g.Custodial != nil, "nwc", "lnurl") {
		out.Custodial = *g.Custodial
	}
	if owned("network", g.Network != nil, "lnd", "nwc", "lnurl") {
		if out.Network = *g.Network; !slices.Contains(networks, out.Network) {
			r.fail(at("network"), "%q is unknown: %s", out.Network, strings.Join(networks, ", "))
		}
	}
	if owned("listen", g.Listen != nil, "devnet") {
		out.Listen = *g.Listen
	}
	return out
}

func readable(name string) bool {
	f, err := os.Open(name)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// secret looks at a file that only its owner should read, and tells whether it can be
// read.
func (r *reader) secret(path, name string) bool {
	st, err := os.Stat(name)
	switch {
	case err != nil:
		r.fail(path, "is the name of a file, beside this one or absolute: %v", errors.Unwrap(err))
	case st.Mode().Perm()&0o077 != 0:
		r.fail(path, "%s can be read by others: chmod 600 %s", name, name)
	}
	return err == nil
}

// connection reads a connection of Nostr Wallet Connect. What is wrong is said without
// what it says: there is a secret in it.
func (r *reader) connection(path, name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		r.fail(path, "%v", err)
		return ""
	}
	text := strings.TrimSpace(string(b))
	u, err := url.Parse(text)
	if err != nil || !strings.HasPrefix(text, nwcScheme) || u.Query().Get("secret") == "" || u.Query().Get("relay") == "" {
		r.fail(path, "%s does not hold a connection: one line that begins with %s, as the wallet shows it, with relay= and secret=", name, nwcScheme)
		return ""
	}
	return text
}

// LoadWallet reads the file of a wallet that pays: wallet: lnd, with url, cert, macaroon
// and network, or wallet: nwc, with connection_file and network.
func LoadWallet(file string) (g Gateway, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("there is no such file")
		}
		return g, &Error{File: file, Message: err.Error()}
	}
	r := &reader{file: file}
	var in rawGateway
	if err := r.decode(b, &in); err != nil {
		return g, r.syntax(err)
	}
	switch {
	case in.Gateway != "":
		r.fail("gateway", "is for wallets that are paid: write wallet")
	case in.Wallet != "lnd" && in.Wallet != "nwc":
		r.fail("wallet", "%q is unknown: there are lnd, a node by its REST interface, and nwc, a wallet by Nostr Wallet Connect", in.Wallet)
	default:
		g = r.gateway("", in.Wallet, &in, "one that may pay: offchain:read offchain:write")
	}
	return g, errors.Join(r.errs...)
}
