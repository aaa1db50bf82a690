package feed

import "testing"

// FuzzDiskBytes parses any bytes as the small files that this package keeps on the
// disk; those of package nodes have a fuzz target there.
func FuzzDiskBytes(f *testing.F) {
	f.Add(sum([]byte(`[{"First":1,"End":2}]`)))
	f.Add(sum(make([]byte, 96)))
	f.Fuzz(func(_ *testing.T, b []byte) {
		for _, b := range [][]byte{b, sum(b)} {
			_, _ = parseLost(b)
			_, _ = parsePins(b)
		}
	})
}
