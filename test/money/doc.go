// Package money has tests with real Lightning nodes, a real Nostr relay and a real HTTPS
// service: make lightning.
package money
