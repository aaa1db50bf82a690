package configs

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

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
		case "":
			r.fail(path, "has no driver: bme280, host, sim, sysfs or exec")
		default:
			r.fail(path+".driver", "%q is unknown: bme280, host, sim, sysfs or exec", s.Driver)
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
		out = append(out, o)
	}
	return out
}

// only refuses a key that other drivers have.
func (r *reader) only(path, driver string, owners ...string) {
	if !slices.Contains(owners, driver) {
		r.fail(path, "belongs to driver %s, not %s", strings.Join(owners, " and "), driver)
	}
}

// named reads the keys of drivers that do not know what they measure.
func (r *reader) named(in *raw, feed, i int, at string, o *Sensor) {
	s := &in.Feeds[feed].Sensors[i]
	o.Field, o.Scale = "value", 1
	if s.Field != nil {
		o.Field = *s.Field
		r.only(at+".field", s.Driver, "sysfs", "exec")
	}
	if s.Unit != nil {
		o.Unit = *s.Unit
		r.only(at+".unit", s.Driver, "sysfs", "exec")
	}
	if s.Path != nil {
		o.Path = *s.Path
		r.only(at+".path", s.Driver, "sysfs")
	}
	if s.Scale != nil {
		o.Scale = *s.Scale
		r.only(at+".scale", s.Driver, "sysfs")
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
	if o.Scale == 0 {
		r.fail(at+".scale", "0 makes every value 0: write 0.001 where the kernel has thousandths, or leave it out")
	}
}
