package configs

import (
	"fmt"
	"strings"
)

// Starter returns a commented configuration to begin with: name and path of the device,
// what its first feed costs ("free", or satoshi), for how much, and where it is sold: at a TCP
// address, and over the Hyperswarm network if hyperswarm is "yes".
func Starter(name, path, price, per, tcp, hyperswarm string) string {
	quote := func(s string) string { return fmt.Sprintf("%q", s) }
	var b strings.Builder
	b.WriteString("# Every key, with its default: configs/edge.example.yaml in the source, or the\n# documentation. Check with: edge check -c THIS-FILE\n\n")
	fmt.Fprintf(&b, "device: {name: %s}\n", quote(name))
	fmt.Fprintf(&b, "storage: {path: %s, max_size: 1GiB}   # logs, keys and database; never more than max_size\n", quote(path))
	if price != "free" {
		b.WriteString("\n# Whom buyers pay. The test wallet's money is worth nothing; gateway: lnd is a node of your own, nwc a wallet by\n# Nostr Wallet Connect, lnurl a Lightning address.\npayment: [{gateway: devnet}]\n")
	}
	network := "network: {}"
	if hyperswarm != "yes" {
		network = "# " + network
	}
	fmt.Fprintf(&b, "\n# Over the Hyperswarm network buyers reach the board by its key alone, also behind a router.\n%s\n", network)
	b.WriteString("\nfeeds:\n  - name: board\n    description: Load, memory, disk and temperature of this board\n    pack: {every: 10s}                  # readings that go into one block\n")
	if price == "free" {
		b.WriteString("    price: free                         # or {amount: 100, currency: sat, per: 10m}, with payment:\n")
	} else {
		fmt.Fprintf(&b, "    price: {amount: %s, currency: sat, per: %s, history: 24h}\n", price, per)
		b.WriteString("    trial: 60s                          # once for each buyer\n")
	}
	fmt.Fprintf(&b, "    tcp: %s                       # also here: edge buy KEY --seller THIS-HOST:PORT\n", quote(tcp))
	b.WriteString("    sensors:\n      - {name: host, driver: host, every: 10s}\n")
	b.WriteString("      # - {name: roof, driver: bme280, every: 10s, bus: 1, address: 0x76}\n")
	b.WriteString("      # - {name: rain, driver: gpio, every: 60s, line: 17, mode: counter, pull: up, edge: falling, debounce: 5ms, field: rain, unit: mm, scale: 0.2794}\n")
	b.WriteString("      # - {name: street, driver: mqtt, topic: \"zigbee2mqtt/+\", fields: {pm25: ug/m3}}   # and mqtt: {broker: \"tcp://127.0.0.1:1883\"} above\n")
	return b.String()
}
