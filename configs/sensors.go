package configs

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"
)

const drivers = "bme280, gpio, host, sim, sysfs, mqtt or exec"

func (r *reader) sensors(in *raw, feed int) (out []Sensor) {
	list := in.Feeds[feed].Sensors
	if len(list) == 0 {
		r.fail(fmt.Sprintf("feeds[%d]", feed), "has no sensors")
	}
	for i := range list {
		s := &list[i]
		path := fmt.Sprintf("feeds[%d].sensors[%d]", feed, i)
		o := Sensor{Name: s.Name, Driver: s.Driver, Every: r.duration(path+".every", s.Every, 10*time.Second, minEvery), Bus: 1, Address: 0x76, Seed: 1}
		if !validName(s.Name) {
			r.fail(path+".name", "%q is not a name: letters, digits, - and _ only, at most 64", s.Name)
		}
		if slices.ContainsFunc(out, func(p Sensor) bool { return p.Name == s.Name }) {
			r.fail(path+".name", "%q is there twice in this feed", s.Name)
		}
		switch s.Driver {
		case "bme280", "host", "sim":
		case "sysfs":
			if s.Path == nil {
				r.fail(path, "has no path: which file of the kernel's? for example /sys/class/thermal/thermal_zone0/temp")
			}
		case "exec":
			if len(s.Command) == 0 || s.Command[0] == "" {
				r.fail(path, "has no command: which program, with which arguments? for example [/usr/local/bin/read-meter, --once]")
			}
		case "mqtt":
			if s.Topic == nil {
				r.fail(path, "has no topic: which messages? for example zigbee2mqtt/+")
			}
			if in.MQTT == nil {
				r.fail(path, "needs a broker: add mqtt: {broker: \"tcp://127.0.0.1:1883\"} at the top")
			}
		case "gpio":
			if s.Line == nil {
				r.fail(path, "has no line: which one of the chip? for example 17")
			}
		case "":
			r.fail(path, "has no driver: %s", drivers)
		default:
			r.fail(path+".driver", "%q is unknown: %s", s.Driver, drivers)
		}
		if s.Bus != nil {
			o.Bus = *s.Bus
			r.only(path+".bus", s.Driver, "bme280")
		}
		if s.Address != nil {
			o.Address = *s.Address
			r.only(path+".address", s.Driver, "bme280")
			if s.Driver == "bme280" && o.Address != 0x76 && o.Address != 0x77 {
				r.fail(path+".address", "0x%x is not an address of this chip: 0x76 or 0x77", o.Address)
			}
		}
		if s.Seed != nil {
			o.Seed = *s.Seed
			r.only(path+".seed", s.Driver, "sim")
		}
		r.named(in, feed, i, path, &o)
		r.messages(in, feed, i, path, &o)
		r.line(in, feed, i, path, &o)
		for name, l := range s.Limits {
			at := path + ".limits." + name
			if l.Min != nil && l.Max != nil && *l.Min > *l.Max {
				r.fail(at, "nothing is above %g and below %g", *l.Min, *l.Max)
			}
			if l.Jump != nil && *l.Jump <= 0 {
				r.fail(at+".jump", "%g flags everything: by how much may it change from one reading to the next?", *l.Jump)
			}
			if o.Limits == nil {
				o.Limits = map[string]Limit{}
			}
			o.Limits[name] = Limit{l.Min, l.Max, l.Jump, r.duration(at+".flat", l.Flat, 0, time.Second)}
		}
		out = append(out, o)
	}
	return out
}

// only refuses a key that other drivers have.
func (r *reader) only(path, driver string, owners ...string) {
	if !slices.Contains(owners, driver) {
		list := owners[0]
		for i, o := range owners[1:] {
			if sep := ", "; i == len(owners)-2 {
				list += " and " + o
			} else {
				list += sep + o
			}
		}
		r.fail(path, "belongs to driver %s, not %s", list, driver)
	}
}

// named reads the keys of drivers that do not know what they measure.
func (r *reader) named(in *raw, feed, i int, at string, o *Sensor) {
	s := &in.Feeds[feed].Sensors[i]
	o.Field, o.Scale = "value", 1
	if s.Field != nil {
		o.Field = *s.Field
		r.only(at+".field", s.Driver, "sysfs", "exec", "mqtt", "gpio")
	}
	if s.Unit != nil {
		o.Unit = *s.Unit
		r.only(at+".unit", s.Driver, "sysfs", "exec", "mqtt", "gpio")
	}
	if s.Path != nil {
		o.Path = *s.Path
		r.only(at+".path", s.Driver, "sysfs")
	}
	if s.Scale != nil {
		o.Scale = *s.Scale
		r.only(at+".scale", s.Driver, "sysfs", "gpio")
	}
	if s.Offset != nil {
		o.Offset = *s.Offset
		r.only(at+".offset", s.Driver, "sysfs")
	}
	if s.Command != nil {
		o.Command = s.Command
		r.only(at+".command", s.Driver, "exec")
	}
	if o.Timeout = r.duration(at+".timeout", s.Timeout, 10*time.Second, 100*time.Millisecond); s.Timeout != "" {
		r.only(at+".timeout", s.Driver, "exec")
	}
	if _, err := path.Match(o.Path, ""); s.Path != nil && (err != nil || !path.IsAbs(o.Path)) {
		r.fail(at+".path", "%q is not an absolute path, in which * and ? may stand for letters", o.Path)
	}
	if !validName(strings.Replace(o.Field, "*", "x", 1)) || s.Driver == "exec" && strings.Contains(o.Field, "*") {
		r.fail(at+".field", "%q is not a name: letters, digits, - and _ only; for sysfs one * for what tells several files apart", o.Field)
	}
	for key, v := range map[string]float64{"scale": o.Scale, "offset": o.Offset} {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			r.fail(at+"."+key, "%g is no number to compute with", v)
		}
	}
	if o.Scale == 0 {
		r.fail(at+".scale", "0 makes every value 0: write 0.001 where the kernel has thousandths, or leave it out")
	}
}

// messages reads the keys of what comes from a broker.
func (r *reader) messages(in *raw, feed, i int, at string, o *Sensor) {
	s := &in.Feeds[feed].Sensors[i]
	if s.Topic != nil {
		o.Topic = *s.Topic
		r.only(at+".topic", s.Driver, "mqtt")
	}
	if s.Fields != nil {
		o.Fields = s.Fields
		r.only(at+".fields", s.Driver, "mqtt")
		if s.Field != nil || s.Unit != nil {
			r.fail(at+".fields", "have names and units of their own: leave out field and unit, which are for payloads that are one value")
		}
	}
	if s.Driver == "mqtt" && s.Every != "" {
		r.fail(at+".every", "messages come when they come: leave it out")
	}
}

// line reads the keys of a line of a GPIO chip.
func (r *reader) line(in *raw, feed, i int, at string, o *Sensor) {
	s := &in.Feeds[feed].Sensors[i]
	o.Chip, o.Mode, o.Edge = "gpiochip0", "level", "rising"
	text := func(key string, v *string, to *string, choices ...string) {
		if v == nil {
			return
		}
		*to = *v
		r.only(at+"."+key, s.Driver, "gpio")
		if len(choices) > 0 && !slices.Contains(choices, *v) {
			r.fail(at+"."+key, "%q is unknown: %s", *v, strings.Join(choices, ", "))
		}
	}
	text("chip", s.Chip, &o.Chip)
	text("mode", s.Mode, &o.Mode, "level", "edge", "counter", "rate")
	text("edge", s.Edge, &o.Edge, "rising", "falling", "both")
	text("pull", s.Pull, &o.Pull, "up", "down", "none")
	if s.Line != nil {
		o.Line = *s.Line
		r.only(at+".line", s.Driver, "gpio")
		if o.Line < 0 || o.Line > 1023 {
			r.fail(at+".line", "%d: 0 to 1023, as gpioinfo shows them", o.Line)
		}
	}
	if s.ActiveLow != nil {
		o.ActiveLow = *s.ActiveLow
		r.only(at+".active_low", s.Driver, "gpio")
	}
	if o.Debounce = r.duration(at+".debounce", s.Debounce, 0, 0); s.Debounce != "" {
		r.only(at+".debounce", s.Driver, "gpio")
	}
	if s.Driver != "gpio" {
		return
	}
	if s.Edge != nil && o.Mode == "level" || s.Debounce != "" && o.Mode == "level" {
		r.fail(at, "edge and debounce are for the modes edge, counter and rate")
	}
	if s.Scale != nil && (o.Mode == "level" || o.Mode == "edge") {
		r.fail(at+".scale", "of true and false: leave it out")
	}
	if o.Mode == "edge" && s.Every != "" {
		r.fail(at+".every", "edges come when they come: leave it out")
	}
	if s.Unit == nil {
		o.Unit = map[string]string{"counter": "count", "rate": "1/s"}[o.Mode]
	}
}
