package configs

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestExample(t *testing.T) {
	c, err := Parse("edge.example.yaml", Example)
	if err != nil {
		t.Fatal(err)
	}
	if c.Storage.MaxSize != 4<<30 || c.Storage.CommitEvery != 10*time.Second || c.Storage.CommitBytes != 4096 || c.Limits.Memory != 48<<20 {
		t.Errorf("%+v", c)
	}
	if len(c.Feeds) != 2 || c.Feeds[0].MaxSize != (4<<30-32<<20)*3/4 || c.Feeds[1].MaxSize != (4<<30-32<<20)/4 {
		t.Errorf("shares: %+v", c.Feeds)
	}
	if s := c.Feeds[1].Sensors[2]; s.Driver != "sysfs" || s.Path != "/sys/class/thermal/thermal_zone0/temp" || s.Field != "temperature" || s.Scale != 0.001 || s.Unit != "Cel" {
		t.Errorf("%+v", s)
	}
	if s := c.Feeds[0].Sensors[0]; s.Driver != "bme280" || s.Bus != 1 || s.Address != 0x76 {
		t.Errorf("%+v", s)
	}
}

// TestDefaults checks that the example says what the defaults are.
func TestDefaults(t *testing.T) {
	c, err := Parse("x", []byte("feeds: [{name: a, sensors: [{name: s, driver: bme280}]}]"))
	if err != nil {
		t.Fatal(err)
	}
	e, _ := Parse("x", Example)
	if c.Storage != e.Storage || c.Feeds[0].Pack != e.Feeds[0].Pack || c.Feeds[0].Encoding != e.Feeds[0].Encoding {
		t.Errorf("%+v\n%+v", c, e)
	}
	if got, want := c.Feeds[0].Sensors[0], e.Feeds[0].Sensors[0]; got.Every != want.Every || got.Bus != want.Bus || got.Address != want.Address {
		t.Errorf("%+v\n%+v", got, want)
	}
}

// TestBeside: what is named is beside the file, and a file that is not there is an error
// of the configuration.
func TestBeside(t *testing.T) {
	c, err := Parse("/etc/edge/edge.yaml", []byte("storage: {path: data}\nfeeds: [{name: a, sensors: [{name: s, driver: sim}]}]"))
	if err != nil || c.Storage.Path != "/etc/edge/data" {
		t.Error(c, err)
	}
	var e *Error
	if _, err := Load("/no/such/edge.yaml"); !errors.As(err, &e) || !strings.Contains(err.Error(), "edge init") {
		t.Error(err)
	}
}

// TestErrors checks that each mistake is named at its place, with the remedy.
func TestErrors(t *testing.T) {
	const head = "feeds: [{name: a, sensors: [{name: s, driver: sim}]}]\n"
	const pay = "payment: [{gateway: devnet}]\n"
	for _, c := range []struct{ yaml, want string }{
		{head + "storag: {}", `edge.yaml:2:1: unknown key "storag": did you mean "storage"?`},
		{head + "storage:\n  max_size: 4 GB i", `edge.yaml:3:13: storage.max_size: "4 GB i" is not a size`},
		{head + "storage: {max_size: 1MiB}", "edge.yaml:2:21: storage.max_size: 1MiB is too small"},
		{head + "storage: {commit: {every: 10}}", "edge.yaml:2:27: storage.commit.every: \"10\" is not a time"},
		{head + "storage: {max_age: 7x}", `"7x" is not a time: write 500ms, 10s`},
		{head + "storage: {commit: {bytes: 2MiB}}", "storage.commit.bytes: 2MiB is too much to wait for"},
		{head + "---\nstorag: {}", "there is more than one document in it"},
		{head + "limits: {buyers: many}", `edge.yaml:2:18: "many": a whole number that is not too large is wanted here`},
		{"feeds: [{name: a, sensors: [{name: s, driver: bme280, address: 300000}]}]", `"300000": a whole number that is not negative, and not too large, is wanted here`},
		{"feeds: [{name: a, price: free, tcp: ':99999', sensors: [{name: s, driver: sim}]}]", `":99999" is not an address to listen on`},
		{"feeds: [{name: a, price: free, tcp: ':abc', sensors: [{name: s, driver: sim}]}]", `":abc" is not an address to listen on`},
		{pay + "feeds: [{name: a, price: free, tcp: ':49739', sensors: [{name: s, driver: sim}]}]", `feeds[0].tcp: ":49739" is taken by payment[0].listen`},
		{"feeds: [{name: s, sensors: [{name: s, driver: sysfs, path: /x, scale: .nan}]}]", "scale: NaN is no number to compute with"},
		{"mqtt: {broker: 'tcp://edge:hunter2@host'}\n" + head, "has a user or a password in it"},
		{"feeds: []", "edge.yaml:1:8: feeds: nothing to sell"},
		{"", "nothing to sell"},
		{"feeds: [{name: a b, sensors: [{name: s, driver: sim}]}]", `edge.yaml:1:16: feeds[0].name: "a b" is not a name`},
		{"feeds: [{name: a}]", "feeds[0]: has no sensors"},
		{"feeds: [{name: a, encoding: xml, sensors: [{name: s, driver: sim}]}]", `feeds[0].encoding: "xml" is unknown`},
		{"feeds: [{name: a, max_share: 120%, sensors: [{name: s, driver: sim}]}]", `feeds[0].max_share: "120%" is not a share`},
		{"feeds: [{name: a, sensors: [{name: s, driver: bme208}]}]", `edge.yaml:1:47: feeds[0].sensors[0].driver: "bme208" is unknown: bme280, gpio, host, sim, sysfs, mqtt or exec`},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, bus: 1}]}]", "feeds[0].sensors[0].bus: belongs to driver bme280, not sim"},
		{"feeds: [{name: a, sensors: [{name: s, driver: bme280, address: 0x50}]}]", "0x50 is not an address of this chip"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, every: 1ms}]}]", "1ms is too short: at least 10ms"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sysfs}]}]", "has no path: which file of the kernel's?"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sysfs, path: temp}]}]", `edge.yaml:1:60: feeds[0].sensors[0].path: "temp" is not an absolute path`},
		{"feeds: [{name: a, sensors: [{name: s, driver: sysfs, path: '/sys/['}]}]", `"/sys/[" is not an absolute path`},
		{"feeds: [{name: a, sensors: [{name: s, driver: sysfs, path: /x, field: a/b}]}]", `field: "a/b" is not a name`},
		{"feeds: [{name: a, sensors: [{name: s, driver: sysfs, path: /x, scale: 0}]}]", "0 makes every value 0"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, unit: Cel}]}]", "unit: belongs to driver sysfs, exec, mqtt and gpio, not sim"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, scale: 2}]}]", "scale: belongs to driver sysfs and gpio, not sim"},
		{"feeds: [{name: a, sensors: [{name: s, driver: exec}]}]", "has no command: which program"},
		{"feeds: [{name: a, sensors: [{name: s, driver: exec, command: [x], path: /x}]}]", "path: belongs to driver sysfs, not exec"},
		{"feeds: [{name: a, sensors: [{name: s, driver: exec, command: [x], field: 'a*'}]}]", `"a*" is not a name`},
		{"feeds: [{name: a, sensors: [{name: s, driver: exec, command: [x], timeout: 5}]}]", `timeout: "5" is not a time`},
		{"payment: [{gateway: lnd}]\n" + head, "payment[0]: has no url: where is the node's REST interface?"},
		{"payment: [{gateway: lnd, url: 'https://n:1', cert: c, macaroon: no-such}]\n" + head, "payment[0].macaroon: is the name of a file"},
		{"payment: [{gateway: lnd, listen: ':1'}]\n" + head, "payment[0].listen: belongs to gateway devnet, not lnd"},
		{"payment: [{gateway: devnet, url: 'https://n:1'}]\n" + head, "payment[0].url: belongs to gateway lnd, not devnet"},
		{"payment: [{gateway: lnd, network: dogecoin}]\n" + head, `payment[0].network: "dogecoin" is unknown: bitcoin, testnet, signet, regtest`},
		{"payment: [{gateway: devnet}, {gateway: lnd}]\n" + head, "payment[1]: is on bitcoin, and payment[0] on regtest"},
		{"payment: [{gateway: phoenix}]\n" + head, `payment[0].gateway: "phoenix" is unknown: there are lnd`},
		{"feeds: [{name: a, price: cheap, sensors: [{name: s, driver: sim}]}]", `edge.yaml:1:26: feeds[0].price: "cheap": write free, or {amount: 100, currency: sat, per: 10m}`},
		{"feeds: [{name: a, price: {amount: 1, per: 10m}, sensors: [{name: s, driver: sim}]}]", "nobody can pay it: add payment: [{gateway: devnet}]"},
		{pay + "feeds: [{name: a, price: {amount: 1.0001, per: 10m}, sensors: [{name: s, driver: sim}]}]", `edge.yaml:2:35: feeds[0].price.amount: "1.0001" is not an amount in sat`},
		{pay + "feeds: [{name: a, price: {amount: 0, per: 10m}, sensors: [{name: s, driver: sim}]}]", `"0" is not an amount`},
		{pay + "feeds: [{name: a, price: {amount: 1, per: 10 apples}, sensors: [{name: s, driver: sim}]}]", `feeds[0].price.per: "10 apples": for how much is that?`},
		{pay + "feeds: [{name: a, price: {amount: 1, per: 10m, clok: wall}, sensors: [{name: s, driver: sim}]}]", `unknown key "clok": did you mean "clock"?`},
		{pay + "feeds: [{name: a, price: {amount: 1, per: 1MB, clock: wall}, sensors: [{name: s, driver: sim}]}]", "wall is for a price per time"},
		{pay + "feeds: [{name: a, price: {amount: 1, per: once, history_amount: 2}, sensors: [{name: s, driver: sim}]}]", "of no history: add history: 24h, or all"},
		{pay + "feeds: [{name: a, price: {amount: 1, per: once, currency: EUR}, sensors: [{name: s, driver: sim}]}]", `"EUR" is unknown: sat`},
		{"feeds: [{name: a, price: free, trial: 60s, sensors: [{name: s, driver: sim}]}]", "trial: of what is free anyway"},
		{"feeds: [{name: a, terms: terms.txt, sensors: [{name: s, driver: sim}]}]", "terms: is for a feed that is sold"},
		{pay + "feeds: [{name: a, price: free, terms: no-such.txt, sensors: [{name: s, driver: sim}]}]", "terms: is the name of a text file"},
		{"device: {clock: maybe}\n" + head, `device.clock: "maybe" is unknown`},
		{"device: {place: {lat: \"91\", lon: \"0\"}}\n" + head, `device.place.lat: "91" is not a number of degrees`},
		{"feeds: [{name: a, sensors: [{name: s, driver: mqtt, topic: x}]}]", "needs a broker: add mqtt:"},
		{"mqtt: {broker: localhost}\nfeeds: [{name: a, sensors: [{name: s, driver: mqtt, topic: x}]}]", `mqtt.broker: "localhost" is not a broker: write tcp://127.0.0.1:1883`},
		{"mqtt: {broker: 'tcp://u:p@h:1'}\n" + head, "mqtt.broker: has a user or a password in it"},
		{"mqtt: {broker: 'tcp://h:1', username: u, password_file: none.pass}\n" + head, "mqtt.password_file: is the name of a file"},
		{"mqtt: {broker: 'tcp://h:1', prefix: x}\n" + head, "mqtt.prefix: belongs to monitor.mqtt"},
		{"mqtt: {broker: 'tcp://h:1'}\nfeeds: [{name: a, sensors: [{name: s, driver: mqtt, topic: x, every: 1s}]}]", "messages come when they come"},
		{"feeds: [{name: a, sensors: [{name: s, driver: gpio}]}]", "has no line: which one of the chip?"},
		{"feeds: [{name: a, sensors: [{name: s, driver: gpio, line: 3, mode: count}]}]", `mode: "count" is unknown: level, edge, counter, rate`},
		{"feeds: [{name: a, sensors: [{name: s, driver: gpio, line: 3, debounce: 5ms}]}]", "edge and debounce are for the modes edge, counter and rate"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, pull: up}]}]", "pull: belongs to driver gpio, not sim"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, limits: {temperature: {min: 5, max: 3}}}]}]", "limits.temperature: nothing is above 5 and below 3"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, limits: {temperature: {jump: 0}}}]}]", "limits.temperature.jump: 0 flags everything"},
		{"feeds: [{name: a, sensors: [{name: s, driver: sim, limits: {temperature: {low: 0}}}]}]", `unknown key "low"`},
		{head + "feeds: []", "feeds"},
		{"feeds: {", "edge.yaml:1:"},
		{"feeds: 3", "edge.yaml:1:8"},
	} {
		_, err := Parse("edge.yaml", []byte(c.yaml))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.yaml, err, c.want)
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("%s: not an Error: %v", c.yaml, err)
		}
	}
	_, err := Parse("e", []byte("storage: {max_size: 1, max_age: 1}\nfeeds: [{name: a, sensors: [{name: s, driver: x}]}]"))
	if n := strings.Count(err.Error(), "\n"); n != 2 {
		t.Errorf("three mistakes, %d lines: %v", n+1, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example)
	f.Add([]byte("feeds: [{name: a, max_share: 1%, sensors: [{name: s, driver: bme280, every: 9d}]}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f", b)
		if err == nil && (len(c.Feeds) == 0 || c.Feeds[0].MaxSize < minLogSize) {
			t.Fatalf("accepted: %+v", c)
		}
	})
}
