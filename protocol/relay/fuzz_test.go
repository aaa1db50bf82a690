package relay

import (
	"bytes"
	"testing"
)

// FuzzPair: what is read is written as the same again.
func FuzzPair(f *testing.F) {
	f.Add(pair{initiator: true, token: [32]byte{1}, id: 70000}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePair(b)
		if err != nil {
			return
		}
		again, err := parsePair(p.append(nil))
		if err != nil || again != p || !bytes.Equal(again.append(nil), p.append(nil)) {
			t.Errorf("%x: %+v, %+v, %v", b, p, again, err)
		}
	})
}
