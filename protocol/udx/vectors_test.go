package udx

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// TestVectors: each packet that stock peers sent is understood, and written again as it was.
func TestVectors(t *testing.T) {
	files, err := filepath.Glob("../../../shared/vectors/hyperdht/*/*.jsonl")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d captures: %v", len(files), err)
	}
	packets, withBlocks, padded := 0, 0, 0
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			var c struct{ Hex string }
			if err := json.Unmarshal(s.Bytes(), &c); err != nil {
				t.Fatal(err)
			}
			b, err := hex.DecodeString(c.Hex)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := IsPacket(b); !ok {
				continue
			}
			h, blocks, payload, err := parseHeader(b)
			if err != nil {
				t.Errorf("%s: %x: %v", name, b, err)
				continue
			}
			packets++
			again := appendHeader(nil, h)
			switch {
			case h.flags&flagSACK != 0:
				withBlocks++
				for rest := blocks; len(rest) > 0; rest = rest[8:] {
					k := blockAt(rest)
					if !before(h.ack, k.start) || !before(k.start, k.end) {
						t.Errorf("%s: block %v at %d", name, k, h.ack)
					}
					again = appendBlock(again, k)
				}
			case h.skip > 0:
				padded++
				again = append(again, zeros[:h.skip]...)
			}
			if again = append(again, payload...); !bytes.Equal(again, b) {
				t.Errorf("%s:\n%x\n%x", name, b, again)
			}
		}
		f.Close()
	}
	t.Logf("%d packets, %d with blocks, %d padded", packets, withBlocks, padded)
	if packets < 500 || withBlocks < 10 || padded < 2 {
		t.Error("that is too little")
	}
}
