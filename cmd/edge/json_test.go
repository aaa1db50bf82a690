package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"dazaar-edge/cmd/edge/reach"
	"dazaar-edge/cmd/edge/show"
	"dazaar-edge/market/device"
	"dazaar-edge/market/purse"
	"dazaar-edge/monitor"
	"dazaar-edge/payment/ledger"
	"dazaar-edge/payment/meter"
	"dazaar-edge/sensors"
)

// fields returns the names of a struct in JSON.
func fields(v any) (out []string) {
	t := reflect.TypeOf(v)
	for f := range t.Fields() {
		if f.Anonymous {
			out = append(out, fields(reflect.Zero(f.Type).Interface())...)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, name)
	}
	return out
}

// TestDocumented: docs/json.md names every field that is printed, and no other.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	code := regexp.MustCompile("(?s)`[^`]*`")
	quoted := regexp.MustCompile(`"([A-Za-z]+)"\??[,:}\]]`)
	word := regexp.MustCompile(`[A-Za-z]+`)
	for _, c := range []struct {
		from, to string // of the text
		types    []any
		more     string // fields of what others print
	}{
		{"## `edge run`", "## `edge verify", []any{ready{}, readyFeed{}}, ""},
		{"## `edge verify", "## `edge buy`", []any{verifyOutput{}, verifyLog{}, problem{}}, ""},
		{"## `edge doctor", "## `edge relay`", []any{reach.Diagnosis{}, reach.Call{}}, ""},
		{"## `edge status", "## `edge doctor", []any{status{}, feedStatus{}, payStatus{}, monitor.Usage{}, reach.Status{}, reach.Offer{}}, ""},
		{"Sensors: ", "Buyers: ", []any{sensorStatus{}, device.SensorState{}, sensors.Reading{}}, ""},
		{"Buyers: ", "Ledger: ", []any{buyerStatus{}}, ""},
		{"Ledger: ", "`edge ledger --daily`", []any{ledger.Row{}}, "unit interval amount"},
		{"`edge ledger --daily`", "`edge ledger --bought`", []any{ledger.Day{}, trusted{}}, ""},
		{"`edge ledger --bought`", "`edge verify --receipt", []any{purse.Receipt{}}, "id request hash expiresAt units terms sig"},
		{"`edge verify --receipt", "`edge card`", []any{show.ReceiptReport{}, show.ProofReport{}}, ""},
		{"`edge revoke`", "Exit codes", []any{revocation{}}, ""},
	} {
		_, section, ok := strings.Cut(text, c.from)
		if !ok {
			t.Fatal("no ", c.from)
		}
		section, _, ok = strings.Cut(c.from+section, c.to)
		if !ok {
			t.Fatal("no ", c.to)
		}
		said := map[string]bool{}
		spans := strings.Join(code.FindAllString(section, -1), " ")
		for _, w := range word.FindAllString(spans, -1) {
			said[w] = true
		}
		printed := map[string]bool{}
		for _, name := range strings.Fields(c.more) {
			printed[name] = true
		}
		for _, v := range c.types {
			for _, name := range fields(v) {
				printed[name] = true
			}
		}
		for name := range printed {
			if !said[name] {
				t.Errorf("%s: %q is printed, and not documented", c.from, name)
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(spans, -1) {
			if !printed[m[1]] {
				t.Errorf("%s: %q is documented, and not printed", c.from, m[1])
			}
		}
	}
	// The price prints itself.
	out, err := meter.Price{Unit: meter.Time, Interval: 600_000, Amount: 1000, History: 1}.MarshalJSON()
	var back meter.Price
	if err != nil || string(out) != `{"unit":"time","interval":600000,"amount":"1000","history":"1"}` || back.UnmarshalJSON(out) != nil || back.Interval != 600_000 {
		t.Errorf("%s, %v, %+v", out, err, back)
	}
}
