package message

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/compact"
	"dazaar-edge/protocol/replicate/replicatetest"
)

// recode reads a message of a type and writes it again. It returns what is left
// over, too.
func recode(typ uint64, b []byte) (again, rest []byte, err error) {
	switch typ {
	case TypeSync:
		m, rest, err := ParseSync(b)
		return m.Append(nil), rest, err
	case TypeRequest:
		m, rest, err := ParseRequest(b)
		return m.Append(nil), rest, err
	case TypeCancel:
		id, rest, err := compact.ParseUint(b)
		return compact.AppendUint(nil, id), rest, err
	case TypeData:
		m, rest, err := ParseData(b)
		if err != nil {
			return nil, nil, err
		}
		return m.Append(nil), rest, nil
	case TypeNoData:
		m, rest, err := ParseNoData(b)
		return m.Append(nil), rest, err
	case TypeWant, TypeUnwant:
		m, rest, err := ParseWant(b)
		return m.Append(nil), rest, err
	case TypeBitfield:
		m, rest, err := ParseBitfield(b)
		return m.Append(nil), rest, err
	case TypeRange:
		m, rest, err := ParseRange(b)
		return m.Append(nil), rest, err
	case TypeExtension:
		m, rest, err := ParseExtension(b)
		return m.Append(nil), rest, err
	}
	return nil, nil, fmt.Errorf("type %d", typ)
}

func TestVectorsMessages(t *testing.T) {
	var v struct {
		Handshake []struct{ Hex replicatetest.Hex }
		Messages  []struct {
			Name  string
			Type  uint64
			Hex   replicatetest.Hex
			Value json.RawMessage
			Note  string
		}
	}
	replicatetest.Load(t, "messages.json", &v)
	for _, c := range v.Handshake {
		h, rest, err := ParseHandshake(c.Hex)
		if err != nil || len(rest) > 0 || !bytes.Equal(h.Append(nil), c.Hex) {
			t.Errorf("handshake %x: %+v, %v", c.Hex, h, err)
		}
	}
	seen := map[uint64]bool{}
	for _, c := range v.Messages {
		seen[c.Type] = true
		again, rest, err := recode(c.Type, c.Hex)
		if err != nil || len(rest) > 0 {
			t.Errorf("%s %x: %v, %d left", c.Name, c.Hex, err, len(rest))
			continue
		}
		// Old peers send no flags with a refusal.
		if want := []byte(c.Hex); !bytes.Equal(again, want) && !(c.Type == TypeNoData && bytes.Equal(again, append(want, 0))) {
			t.Errorf("%s %s\n %x comes out as\n %x", c.Name, c.Note, want, again)
		}
		// Cut anywhere it is no message, or a shorter one of those that may be.
		for i := range c.Hex {
			if again, rest, err := recode(c.Type, c.Hex[:i]); err == nil && len(again)+len(rest) < i {
				t.Errorf("%s cut at %d is read", c.Name, i)
			}
		}
	}
	if len(seen) != TypeExtension+1 {
		t.Errorf("vectors of %d types", len(seen))
	}
}

// TestVectorsFields checks what the bytes mean, not only that they come back.
func TestVectorsFields(t *testing.T) {
	var v struct {
		Messages []struct {
			Type  uint64
			Hex   replicatetest.Hex
			Value struct {
				Fork, Length, RemoteLength, ID, Priority, Start, Request, Reason uint64

				CanUpgrade, Uploading, Downloading, HasManifest, AllowPush, Drop, Any bool

				Block, Hash, Seek, Upgrade, Manifest json.RawMessage
			}
		}
	}
	replicatetest.Load(t, "messages.json", &v)
	is := func(r json.RawMessage) bool { return len(r) > 0 && string(r) != "null" && string(r) != "false" }
	for _, c := range v.Messages {
		w := c.Value
		switch c.Type {
		case TypeSync:
			m, _, _ := ParseSync(c.Hex)
			if m != (Sync{w.Fork, w.Length, w.RemoteLength, w.CanUpgrade, w.Uploading, w.Downloading, w.HasManifest, w.AllowPush}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case TypeRequest:
			m, _, _ := ParseRequest(c.Hex)
			if m.ID != w.ID || m.Fork != w.Fork || m.Priority != w.Priority || (m.Block != nil) != is(w.Block) || (m.Hash != nil) != is(w.Hash) ||
				(m.Seek != nil) != is(w.Seek) || (m.Upgrade != nil) != is(w.Upgrade) || m.Manifest != is(w.Manifest) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case TypeData:
			m, _, _ := ParseData(c.Hex)
			if m.Request != w.Request || m.Fork != w.Fork || (m.Block != nil) != is(w.Block) || (m.Hash != nil) != is(w.Hash) ||
				(m.Seek != nil) != is(w.Seek) || (m.Upgrade != nil) != is(w.Upgrade) || (m.Manifest != nil) != is(w.Manifest) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case TypeNoData:
			if m, _, _ := ParseNoData(c.Hex); m != (NoData{w.Request, w.Reason}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case TypeWant, TypeUnwant:
			if m, _, _ := ParseWant(c.Hex); m != (Want{w.Start, w.Length, w.Any}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		case TypeRange:
			if m, _, _ := ParseRange(c.Hex); m != (Range{w.Drop, w.Start, w.Length}) {
				t.Errorf("%x is %+v", c.Hex, m)
			}
		}
	}
}

func TestVectorsCapability(t *testing.T) {
	var v struct {
		Cases []struct {
			CoreKey, HandshakeHash, Capability replicatetest.Hex
			SenderIsInitiator                  bool
		}
		DiscoveryKeys []struct{ Key, DiscoveryKey replicatetest.Hex }
	}
	replicatetest.Load(t, "capability-discovery.json", &v)
	if len(v.Cases) == 0 || len(v.DiscoveryKeys) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range v.Cases {
		if got := Capability(c.CoreKey.Hash(), [64]byte(c.HandshakeHash), c.SenderIsInitiator); got != c.Capability.Hash() {
			t.Errorf("%x", got)
		}
	}
	for _, c := range v.DiscoveryKeys {
		if got := merkle.DiscoveryKey(c.Key.Hash()); got != c.DiscoveryKey.Hash() {
			t.Errorf("%x", got)
		}
	}
}

// TestVectorsCaptures reads every message of every captured session, in both
// directions, and writes it again.
func TestVectorsCaptures(t *testing.T) {
	n := 0
	for _, c := range replicatetest.Captures(t) {
		for _, f := range c.Frames {
			if f.From == "" {
				continue
			}
			for _, m := range replicatetest.Split(t, f.Hex) {
				if m.Channel == 0 {
					continue
				}
				again, rest, err := recode(m.Type, m.Payload)
				if err != nil || len(rest) > 0 || !bytes.Equal(again, m.Payload) {
					t.Errorf("%s: type %d: %v\n %x\n %x", c.Name, m.Type, err, m.Payload, again)
				}
				n++
			}
		}
	}
	if n < 400 {
		t.Errorf("%d messages only", n)
	}
}

// FuzzMessages reads anything as each message and writes it again.
func FuzzMessages(f *testing.F) {
	for _, c := range replicatetest.Captures(f) {
		for _, fr := range c.Frames {
			if fr.From == "" {
				continue
			}
			for _, m := range replicatetest.Split(f, fr.Hex) {
				if m.Channel != 0 {
					f.Add(byte(m.Type), m.Payload)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, typ byte, b []byte) {
		typ %= TypeExtension + 1
		again, _, err := recode(uint64(typ), b)
		if err != nil {
			return
		}
		once, rest, err := recode(uint64(typ), again)
		if err != nil || !bytes.Equal(once, again) || len(rest) > 0 {
			t.Errorf("type %d: %x comes out as %x, then %x: %v", typ, b, again, once, err)
		}
	})
}
