package noise

import (
	"crypto/ed25519"
	"crypto/rand"
	"testing"
)

// BenchmarkResponder is what a stranger can cost: the answering side of XX.
func BenchmarkResponder(b *testing.B) {
	_, mine, _ := ed25519.GenerateKey(rand.Reader)
	_, theirs, _ := ed25519.GenerateKey(rand.Reader)
	b.StopTimer()
	for range b.N {
		i, err := New(Config{Pattern: XX, Initiator: true, Static: theirs})
		if err != nil {
			b.Fatal(err)
		}
		m1, _ := i.Write(nil, nil)
		b.StartTimer()
		r, err := New(Config{Pattern: XX, Static: mine})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := r.Read(m1); err != nil {
			b.Fatal(err)
		}
		m2, err := r.Write(nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if _, err := i.Read(m2); err != nil {
			b.Fatal(err)
		}
		m3, _ := i.Write(nil, nil)
		b.StartTimer()
		if _, err := r.Read(m3); err != nil || r.Result() == nil {
			b.Fatal(err)
		}
		b.StopTimer()
	}
}
