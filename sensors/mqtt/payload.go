package mqtt

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"dazaar-edge/sensors"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// CheckFilter returns an error if a topic filter cannot be.
func CheckFilter(filter string) error {
	if filter == "" || len(filter) > 65535 || strings.ContainsRune(filter, 0) {
		return fmt.Errorf("mqtt: %q is no topic", filter)
	}
	levels := strings.Split(filter, "/")
	for i, l := range levels {
		switch {
		case strings.Contains(l, "#") && (l != "#" || i != len(levels)-1):
			return fmt.Errorf("mqtt: %q: # stands for the rest, behind the last /", filter)
		case strings.Contains(l, "+") && l != "+":
			return fmt.Errorf("mqtt: %q: + stands for a whole level, between two /", filter)
		}
	}
	return nil
}

// Match tells whether a topic is one of a filter's.
func Match(filter, topic string) bool {
	_, ok := wild(filter, topic)
	return ok
}

// wild returns what the wildcards of a filter stand for.
func wild(filter, topic string) (levels []string, ok bool) {
	if strings.HasPrefix(topic, "$") && !strings.HasPrefix(filter, "$") {
		return nil, false
	}
	f, t := strings.Split(filter, "/"), strings.Split(topic, "/")
	for i, l := range f {
		if l == "#" {
			if i > len(t) {
				return nil, false
			}
			return append(levels, t[min(i, len(t)):]...), true
		}
		switch {
		case i >= len(t):
			return nil, false
		case l == "+":
			levels = append(levels, t[i])
		case l != t[i]:
			return nil, false
		}
	}
	return levels, len(f) == len(t)
}

// name makes a name of SenML: what may not stand in one becomes an underscore.
func name(parts ...string) string {
	s := strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), "/")
	b := []byte(s)
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9':
		case i > 0 && strings.IndexByte("-:./_", c) >= 0:
		default:
			b[i] = '_'
		}
	}
	if len(b) > 0 && b[0] == '_' {
		b = append([]byte{'x'}, b...)
	}
	return string(b)
}

// errNothing says that a payload has no field that was asked for.
var errNothing = errors.New("no field that was asked for")

// parse reads a message.
func (c *SourceConfig) parse(m paho.Message) ([]sensors.Reading, error) {
	levels, _ := wild(c.Topic, m.Topic())
	var quality []string
	if m.Duplicate() {
		quality = append(quality, "dup")
	}
	if m.Retained() {
		quality = append(quality, "stale")
	}
	if len(c.Fields) == 0 {
		v, err := plain(m.Payload())
		if err != nil {
			return nil, err
		}
		if _, text := v.(string); text && c.Unit != "" {
			return nil, errNothing
		}
		return []sensors.Reading{{Name: name(append(levels, c.Name)...), Unit: c.Unit, Value: v, Quality: quality}}, nil
	}
	var doc any
	if err := json.Unmarshal(m.Payload(), &doc); err != nil {
		return nil, err
	}
	var out []sensors.Reading
	for path, unit := range c.Fields {
		v, ok := value(find(doc, path))
		if _, text := v.(string); ok && !(text && unit != "") { // "unavailable" is no temperature
			out = append(out, sensors.Reading{Name: name(append(slices.Clone(levels), path)...), Unit: unit, Value: v, Quality: quality})
		}
	}
	if len(out) == 0 {
		return nil, errNothing
	}
	slices.SortFunc(out, func(a, b sensors.Reading) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// find returns what is at a path; nil if nothing is. A name may have dots of its own, as
// "pm2.5" has.
func find(doc any, path string) any {
	switch d := doc.(type) {
	case map[string]any:
		if v, ok := d[path]; ok {
			return v
		}
		for i, c := range path {
			if c != '.' {
				continue
			}
			if v, ok := d[path[:i]]; ok {
				return find(v, path[i+1:])
			}
		}
	case []any:
		key, rest, more := strings.Cut(path, ".")
		if i, err := strconv.ParseUint(key, 10, 31); err == nil && int(i) < len(d) {
			if !more {
				return d[i]
			}
			return find(d[i], rest)
		}
	}
	return nil
}

// value returns what a reading may have of a JSON value.
func value(v any) (any, bool) {
	switch v := v.(type) {
	case float64, bool:
		return v, true
	case string:
		// Some devices put their numbers in quotes.
		if n, ok := number(v); ok {
			return n, true
		}
		return v, v != ""
	}
	return nil, false
}

func number(s string) (float64, bool) {
	n, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	return n, err == nil && !math.IsNaN(n) && !math.IsInf(n, 0)
}

// plain reads a payload that is one value.
func plain(b []byte) (any, error) {
	s := strings.TrimSpace(string(b))
	if n, ok := number(s); ok {
		return n, nil
	}
	switch s {
	case "true", "false":
		return s == "true", nil
	case "":
		return nil, errNothing
	}
	var v any
	if err := json.Unmarshal(b, &v); err == nil {
		if v, ok := value(v); ok {
			return v, nil
		}
		return nil, fmt.Errorf("it is JSON: which fields are wanted? %.40q", s)
	}
	if len(s) > 1024 || strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
		return nil, errors.New("it is no text")
	}
	return s, nil
}
