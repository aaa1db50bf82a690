// Package feedtest has what a log needs besides a disk, in memory, for tests.
package feedtest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"sync"

	"dazaar-edge/feed"
)

// Keys derive from names alone. It implements [feed.Keys].
type Keys struct{}

// FeedSeed implements [feed.Keys].
func (Keys) FeedSeed(buyer [32]byte, generation uint64) ([32]byte, error) {
	return sha256.Sum256(binary.LittleEndian.AppendUint64(buyer[:], generation)), nil
}

// SignDevice implements [feed.Keys].
func (Keys) SignDevice(m []byte) []byte {
	return ed25519.Sign(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), m)
}

// Sales live as long as the process. It implements [feed.Sales]; the zero value
// has none.
type Sales struct {
	mu    sync.Mutex
	all   map[[32]byte]feed.SaleState
	epoch feed.Epoch
}

// Load implements [feed.Sales].
func (s *Sales) Load(buyer [32]byte) (feed.SaleState, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.all[buyer]
	return st, ok, nil
}

// Save implements [feed.Sales].
func (s *Sales) Save(states map[[32]byte]feed.SaleState) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[[32]byte]feed.SaleState{}
	}
	maps.Copy(s.all, states)
	return nil
}

// Each implements [feed.Sales].
func (s *Sales) Each(f func([32]byte, feed.SaleState) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b, st := range s.all {
		if !f(b, st) {
			break
		}
	}
	return nil
}

// Epoch implements [feed.Sales].
func (s *Sales) Epoch() (feed.Epoch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch, nil
}

// SetEpoch implements [feed.Sales].
func (s *Sales) SetEpoch(e feed.Epoch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch = e
	return nil
}
