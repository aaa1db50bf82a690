package configs

import (
	"errors"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// rawPrice is a price as it is written.
type rawPrice struct {
	Amount        string `yaml:"amount"`
	Currency      string `yaml:"currency"`
	Per           string `yaml:"per"`
	History       string `yaml:"history"`
	HistoryAmount string `yaml:"history_amount"`
	Clock         string `yaml:"clock"`
}

// place reads where the board is.
func (r *reader) place(lat, lon string) *Place {
	for _, d := range []struct {
		name, text string
		most       float64
	}{{"lat", lat, 90}, {"lon", lon, 180}} {
		if n, err := strconv.ParseFloat(d.text, 64); err != nil || math.IsNaN(n) || math.Abs(n) > d.most {
			r.fail("device.place."+d.name, "%q is not a number of degrees from -%g to %g: write \"60.18\"", d.text, d.most, d.most)
		}
	}
	return &Place{lat, lon}
}

// address checks an address to listen on.
func (r *reader) address(path, text string) {
	host, port, err := net.SplitHostPort(text)
	n, bad := strconv.ParseUint(port, 10, 16)
	if err != nil || bad != nil {
		r.fail(path, "%q is not an address to listen on: write \":49738\" or \"127.0.0.1:49738\"", text)
		return
	}
	if n == 0 {
		return // any that is free
	}
	for other, at := range r.listen {
		h, p, _ := net.SplitHostPort(other) //nolint:errcheck // it was checked
		if p == port && (h == host || anywhere(h) || anywhere(host)) {
			r.fail(path, "%q is taken by %s: each needs a port of its own", text, at)
		}
	}
	if r.listen == nil {
		r.listen = map[string]string{}
	}
	r.listen[text] = path
}

// anywhere tells whether a host is every address of this one.
func anywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// maxTerms bounds terms of use: they travel in one message.
const maxTerms = 48 << 10

// sale reads what is asked for a feed, and where it is sold.
func (r *reader) sale(in *raw, i int, path string, c *Config, out *Feed) {
	f := &in.Feeds[i]
	out.Description, out.Burnable, out.TCP = f.Description, f.Burnable, f.TCP
	if len(f.Description) > 1000 {
		r.fail(path+".description", "%d bytes are too many for a card: at most 1000", len(f.Description))
	}
	switch n := f.Price.(type) {
	case nil:
	case *ast.StringNode:
		if out.Free = n.Value == "free"; !out.Free {
			r.fail(path+".price", "%q: write free, or {amount: 100, currency: sat, per: 10m}", n.Value)
		}
	case *ast.MappingNode, *ast.MappingValueNode:
		out.Price = r.price(path+".price", n)
		if len(c.Payment) == 0 {
			r.fail(path+".price", "nobody can pay it: add payment: [{gateway: devnet}] for the test wallet, or write price: free")
		}
	default:
		r.fail(path+".price", "write free, or {amount: 100, currency: sat, per: 10m}")
	}
	if out.TCP != "" {
		r.address(path+".tcp", out.TCP)
		if !out.Free && f.Price == nil {
			r.fail(path+".tcp", "is for a feed that is sold: add a price, or price: free")
		}
	}
	out.Trial = r.duration(path+".trial", f.Trial, 0, time.Second)
	for key, set := range map[string]bool{"trial": f.Trial != "", "terms": f.Terms != "", "burnable": f.Burnable} {
		if set && f.Price == nil {
			r.fail(path+"."+key, "is for a feed that is sold: add a price")
		} else if set && out.Free && key == "trial" {
			r.fail(path+".trial", "of what is free anyway: leave it out")
		}
	}
	if f.Terms == "" {
		return
	}
	name := r.beside(f.Terms)
	text, err := os.ReadFile(name)
	switch {
	case err != nil:
		r.fail(path+".terms", "is the name of a text file, beside this one or absolute: %v", errors.Unwrap(err))
	case len(text) == 0 || len(text) > maxTerms:
		r.fail(path+".terms", "%s has %d bytes: 1 to %d", name, len(text), maxTerms)
	}
	out.Terms = string(text)
}

// price reads a price.
func (r *reader) price(path string, n ast.Node) *Price {
	var in rawPrice
	if err := yaml.NodeToValue(n, &in, yaml.Strict()); err != nil {
		r.errs = append(r.errs, r.syntax(err))
		return nil
	}
	p := &Price{Amount: in.Amount, HistoryAmount: in.HistoryAmount}
	if in.Currency != "" && in.Currency != "sat" {
		r.fail(path+".currency", "%q is unknown: sat, a hundred millionth of a bitcoin", in.Currency)
	}
	if !amount(in.Amount) || zero(in.Amount) {
		r.fail(path+".amount", "%q is not an amount in sat: write 100, or 0.5; at most three places", in.Amount)
	}
	if in.HistoryAmount != "" && !amount(in.HistoryAmount) {
		r.fail(path+".history_amount", "%q is not an amount in sat: write 50, or 0", in.HistoryAmount)
	}
	if p.Unit, p.Interval = per(in.Per); p.Unit == "" {
		r.fail(path+".per", "%q: for how much is that? write 10m, 1h, 100 readings, 1MB or once", in.Per)
	}
	switch in.History {
	case "", "none":
		if in.HistoryAmount != "" {
			r.fail(path+".history_amount", "of no history: add history: 24h, or all")
		}
	case "all":
		p.All = true
	default:
		p.History = r.duration(path+".history", in.History, 0, time.Second)
	}
	switch in.Clock {
	case "", "sensed":
	case "wall":
		if p.Wall = true; !slices.Contains([]string{"seconds", "minutes", "hours", "days"}, p.Unit) {
			r.fail(path+".clock", "wall is for a price per time: per: 10m")
		}
	default:
		r.fail(path+".clock", "%q is unknown: sensed counts the time of what was delivered, wall the time since the payment", in.Clock)
	}
	return p
}

// amount tells whether a text is a number of sat with up to three places.
func amount(text string) bool {
	whole, places, dot := strings.Cut(text, ".")
	n, err := strconv.ParseUint(whole, 10, 53)
	ok := err == nil && n < 1e9 && !strings.HasPrefix(whole, "+")
	for _, c := range places {
		ok = ok && c >= '0' && c <= '9'
	}
	return ok && (!dot || places != "" && len(places) <= 3)
}

func zero(text string) bool { return strings.Trim(text, "0.") == "" }

// per reads what an amount is for; the unit is "" if that cannot be read.
func per(text string) (unit string, n uint64) {
	if text == "once" {
		return "once", 1
	}
	if digits, ok := strings.CutSuffix(text, "readings"); ok {
		n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 40)
		if err != nil || n == 0 {
			return "", 0
		}
		return "readings", n
	}
	for _, u := range []struct{ suffix, unit string }{
		{"kB", "kilobytes"}, {"MB", "megabytes"}, {"B", "bytes"}, {"s", "seconds"}, {"m", "minutes"}, {"h", "hours"}, {"d", "days"},
	} {
		if digits, ok := strings.CutSuffix(text, u.suffix); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 40)
			if err != nil || n == 0 {
				return "", 0
			}
			return u.unit, n
		}
	}
	return "", 0
}
