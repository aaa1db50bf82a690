package till

import (
	"strconv"
	"time"

	"dazaar-edge/configs"
	"dazaar-edge/market"
	"dazaar-edge/market/card"
)

// List returns what a feed is, costs and includes.
func (t *Till) List(cfg *configs.Config, fc *configs.Feed) (out market.Listing) {
	c := card.Card{
		Name: fc.Name, Description: fc.Description, Provider: cfg.Device.Name, Burnable: fc.Burnable,
		Delay: seconds(fc.Pack + cfg.Storage.CommitEvery), Feed: card.Feed{Encoding: fc.Encoding, Every: seconds(fc.Pack), Schema: schema(fc.Sensors)},
	}
	if p := cfg.Device.Place; p != nil {
		c.Place = &card.Place{Lat: p.Lat, Lon: p.Lon}
	}
	if cfg.Network != nil {
		for _, r := range cfg.Network.Relays {
			c.Relays = append(c.Relays, r.String())
		}
	}
	if p := fc.Price; p != nil {
		w := card.Payment{Method: "lnd", Currency: "LightningSats", Unit: p.Unit, Interval: strconv.FormatUint(p.Interval, 10), Amount: p.Amount}
		if p.Wall {
			w.Clock = "wall"
		}
		who := t.Cashier.Payees()
		c.Payment, c.Network, out.Floating = []card.Payment{w}, who.Network, who.Floats
		if !who.Floats {
			c.SetPayees(who.Keys)
		}
		if who.Unbound {
			c.Memo = card.MemoSigned
		}
		switch {
		case p.All:
			c.History = &card.History{All: true, Amount: p.HistoryAmount}
		case p.History > 0:
			c.History = &card.History{Seconds: uint64(p.History / time.Second), Amount: p.HistoryAmount}
		}
		if fc.Trial > 0 {
			c.Trial = &card.Trial{Seconds: uint64(fc.Trial / time.Second), Bytes: market.TrialBytes}
		}
	}
	out.Card, out.Terms = c, fc.Terms
	return out
}

// seconds is a duration as a decimal number of seconds.
func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// schema says what a feed's sensors measure, where that is known before.
func schema(list []configs.Sensor) (out []card.Field) {
	for _, s := range list {
		add := func(name, unit string) {
			out = append(out, card.Field{Name: s.Name + "/" + name, Unit: unit, Sensor: s.Driver, Every: seconds(s.Every)})
		}
		switch s.Driver {
		case "bme280":
			add("temperature", "Cel")
			add("humidity", "%RH")
			add("pressure", "Pa")
		case "sim":
			add("temperature", "Cel")
		case "host":
			add("load1", "/")
			add("memory_used", "/")
			add("disk_used", "/")
			add("cpu_temperature", "Cel")
		default:
			add(s.Field, s.Unit)
		}
	}
	return out
}
