package feed

import (
	"math/rand/v2"
	"testing"

	"dazaar-edge/feed/merkle"
)

// FuzzDiskBytes parses any bytes as each thing this package keeps on the disk.
func FuzzDiskBytes(f *testing.F) {
	var fo forest
	rng := rand.New(rand.NewPCG(1, 1))
	fo.tiles.start(0)
	for i := range uint64(40) {
		fo.add(merkle.Leaf(i, []byte{byte(rng.Uint32())}))
	}
	f.Add(uint8(0), uint8(40), fo.tiles.encode(nil, 1<<16))
	f.Add(uint8(0), uint8(40), fo.State())
	f.Add(uint8(3), uint8(7), sum([]byte(`[{"First":1,"End":2}]`)))
	f.Add(uint8(3), uint8(7), sum(make([]byte, 2*pinSize)))
	f.Fuzz(func(t *testing.T, first, more uint8, b []byte) {
		from, end := uint64(first), uint64(first)+uint64(more)
		if tl, _, err := parseTiles(b, from, end); err == nil {
			again := tl.encode(nil, 1<<20)
			if back, rest, err := parseTiles(again, from, end); err != nil || len(rest) != 0 || back.low != tl.low {
				t.Fatalf("tiles do not survive: %v", err)
			}
			_ = checkJoins(tl)
			tl.cut(from + uint64(more/2))
			_, _ = tl.find(2 * from)
		}
		if tree, err := parseRoots(b, end); err == nil && len(encodeRoots(nil, tree.Roots())) != len(b) {
			t.Fatal("roots do not survive")
		}
		_, _ = parseLost(b)
		_, _ = parsePins(b)
		_, _ = parseLost(sum(b))
		_, _ = parsePins(sum(b))
	})
}
