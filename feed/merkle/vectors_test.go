package merkle

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"

	"dazaar-edge/protocol/compact"
)

// hexBytes is hex in a vector file.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

func (h hexBytes) hash() Hash { return Hash(h) }

func load(t testing.TB, name string, v any) {
	t.Helper()
	raw, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// genBlock is the block generator of the vectors.
func genBlock(i, n int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(i*31 + j*7 + j>>8)
	}
	return b
}

type nodeVector struct {
	Index, Size uint64
	Hash        hexBytes
}

type treeVector struct {
	Length, ByteLength uint64
	Blocks             []json.RawMessage
	Nodes              []nodeVector
	Roots              []uint64
	TreeHash           hexBytes
	Signable           hexBytes `json:"signable_default_manifest_seed01_fork0"`
	SignableCompat     hexBytes `json:"signable_compat_fork0"`
}

func (v treeVector) blocks(t testing.TB) (out [][]byte) {
	for _, raw := range v.Blocks {
		var h hexBytes
		if json.Unmarshal(raw, &h) == nil {
			out = append(out, h)
			continue
		}
		var g struct{ Gen struct{ I, Len int } }
		if err := json.Unmarshal(raw, &g); err != nil {
			t.Fatal(err)
		}
		out = append(out, genBlock(g.Gen.I, g.Gen.Len))
	}
	return out
}

func loadTrees(t testing.TB) map[string]treeVector {
	var f struct{ Lists map[string]treeVector }
	load(t, "tree-hashes.json", &f)
	return f.Lists
}

// memory is a log in memory: every node, by index.
type memory struct {
	tree  Tree
	nodes map[uint64]Node
}

func newMemory(blocks [][]byte) *memory {
	m := &memory{nodes: map[uint64]Node{}}
	for i, b := range blocks {
		for _, n := range m.tree.Append(nil, Leaf(uint64(i), b)) {
			m.nodes[n.Index] = n
		}
	}
	return m
}

func (m *memory) Node(i uint64) (Node, error) {
	n, ok := m.nodes[i]
	if !ok {
		return n, ErrMissing
	}
	return n, nil
}

func seedKey(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32))
}

func public(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func TestVectorsNamespaces(t *testing.T) {
	var f struct {
		Hypercore, SecretStream, DHT map[string]struct {
			ID  byte
			Hex hexBytes
		}
	}
	load(t, "namespaces.json", &f)
	for name, m := range map[string]map[string]struct {
		ID  byte
		Hex hexBytes
	}{"hypercore": f.Hypercore, "hyperswarm/secret-stream": f.SecretStream, "hyperswarm/dht": f.DHT} {
		for k, v := range m {
			if got := Namespace(name, v.ID); got != v.Hex.hash() {
				t.Errorf("%s %s: %x, want %x", name, k, got, v.Hex)
			}
		}
	}
}

func TestVectorsTree(t *testing.T) {
	m := NewManifest(public(seedKey(1)))
	for name, v := range loadTrees(t) {
		log := newMemory(v.blocks(t))
		if log.tree.Length() != v.Length || log.tree.ByteLength() != v.ByteLength {
			t.Errorf("%s: length %d, %d bytes", name, log.tree.Length(), log.tree.ByteLength())
		}
		for _, n := range v.Nodes {
			if got := log.nodes[n.Index]; got.Hash != n.Hash.hash() || got.Size != n.Size {
				t.Errorf("%s: node %d: %+v", name, n.Index, got)
			}
		}
		if len(v.Nodes) != len(log.nodes) {
			t.Errorf("%s: %d nodes, want %d", name, len(log.nodes), len(v.Nodes))
		}
		for i, r := range log.tree.Roots() {
			if r.Index != v.Roots[i] {
				t.Errorf("%s: root %d is %d, want %d", name, i, r.Index, v.Roots[i])
			}
		}
		if log.tree.Hash() != v.TreeHash.hash() {
			t.Errorf("%s: tree hash %x", name, log.tree.Hash())
		}
		h := Head{Length: v.Length, TreeHash: log.tree.Hash()}
		if got := m.Signable(m.Key(), 0, h); !bytes.Equal(got, v.Signable) {
			t.Errorf("%s: signable %x", name, got)
		}
		if got := m.Signable(m.Signers[0].PublicKey, 0, h); !bytes.Equal(got, v.SignableCompat) {
			t.Errorf("%s: legacy signable %x", name, got)
		}
	}
}

func TestVectorsManifests(t *testing.T) {
	var f struct {
		TreeHash hexBytes
		Length   uint64
		Cases    []struct {
			Name                               string
			Compat                             bool
			Fork                               uint64
			ManifestEncoded, ManifestHash      hexBytes
			CoreKey, DiscoveryKey, Seed        hexBytes
			Signable, Signature, WireSignature hexBytes
			VerifiedNoSignature                *bool
			Manifest                           struct{ Version uint64 }
		}
	}
	load(t, "manifests-signatures.json", &f)
	for _, c := range f.Cases {
		m, rest, err := ParseManifest(c.ManifestEncoded)
		if err != nil || len(rest) != 0 {
			t.Fatalf("%s: %v", c.Name, err)
		}
		if got := m.Append(nil); !bytes.Equal(got, c.ManifestEncoded) || m.Version != c.Manifest.Version {
			t.Errorf("%s: encodes as %x", c.Name, got)
		}
		if m.Key() != c.ManifestHash.hash() {
			t.Errorf("%s: key %x", c.Name, m.Key())
		}
		key := c.CoreKey.hash()
		if DiscoveryKey(key) != c.DiscoveryKey.hash() {
			t.Errorf("%s: discovery key", c.Name)
		}
		h := Head{Fork: c.Fork, Length: f.Length, TreeHash: f.TreeHash.hash()}
		if c.VerifiedNoSignature != nil {
			if err := m.Verify(key, h, nil); (err == nil) != *c.VerifiedNoSignature {
				t.Errorf("%s: without a signature: %v", c.Name, err)
			}
			continue
		}
		if got := m.Signable(key, 0, h); !bytes.Equal(got, c.Signable) {
			t.Errorf("%s: signable %x, want %x", c.Name, got, c.Signable)
		}
		sig := m.Sign(ed25519.NewKeyFromSeed(c.Seed), key, h)
		if !bytes.Equal(sig, c.WireSignature) {
			t.Errorf("%s: signature %x, want %x", c.Name, sig, c.WireSignature)
		}
		if err := m.Verify(key, h, sig); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		for i, wrong := range []Head{{h.Fork + 1, h.Length, h.TreeHash}, {h.Fork, h.Length + 1, h.TreeHash}, {h.Fork, h.Length, Hash{1}}} {
			if err := m.Verify(key, wrong, sig); !errors.Is(err, ErrSignature) {
				t.Errorf("%s: wrong head %d: %v", c.Name, i, err)
			}
		}
	}
}

// TestQuorum checks a container of two signatures.
func TestQuorum(t *testing.T) {
	a, b := seedKey(1), seedKey(2)
	m := NewManifest(public(a))
	m.Signers = append(m.Signers, NewManifest(public(b)).Signers...)
	m.Quorum = 2
	key, h := m.Key(), Head{Fork: 3, Length: 7, TreeHash: Hash{9}}
	entry := func(i uint64, k ed25519.PrivateKey) []byte {
		return append(append(compact.AppendUint(nil, i), ed25519.Sign(k, m.Signable(key, 0, h))...), 0)
	}
	join := func(parts ...[]byte) []byte {
		return append(compact.AppendArray(nil, parts, func(b, p []byte) []byte { return append(b, p...) }), 0)
	}
	if err := m.Verify(key, h, join(entry(0, a), entry(1, b))); err != nil {
		t.Error(err)
	}
	for name, sig := range map[string][]byte{
		"one": join(entry(0, a)), "twice": join(entry(0, a), entry(0, a)), "stranger": join(entry(0, a), entry(2, b)),
		"swapped": join(entry(0, b), entry(1, a)), "empty": nil, "count only": {2},
	} {
		if err := m.Verify(key, h, sig); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func indexes(nodes []Node) []uint64 {
	out := []uint64{}
	for _, n := range nodes {
		out = append(out, n.Index)
	}
	return out
}

// TestVectorsShapes asks for all 651 proofs and compares the node lists.
func TestVectorsShapes(t *testing.T) {
	var f struct {
		FullRoots []struct {
			Length uint64
			Roots  []uint64
		}
		MaxMissingNodes []struct {
			L      uint64
			Blocks []uint64
		}
		Cases []struct {
			B, H, U []uint64
			S       *uint64
			PB      []uint64 `json:"b"`
			PH      []uint64 `json:"h"`
			PS      []uint64 `json:"s"`
			PU      []uint64 `json:"u"`
			PA      []uint64 `json:"a"`
			Err     string
		}
	}
	// encoding/json matches names without regard to case: split them first.
	var raw struct {
		FullRoots, MaxMissingNodes json.RawMessage
		Cases                      []map[string]json.RawMessage
	}
	load(t, "proof-shapes-13.json", &raw)
	_ = json.Unmarshal(raw.FullRoots, &f.FullRoots)
	_ = json.Unmarshal(raw.MaxMissingNodes, &f.MaxMissingNodes)
	for _, r := range f.FullRoots {
		if got := AppendRoots([]uint64{}, r.Length); !slices.Equal(got, r.Roots) {
			t.Errorf("roots of %d: %v, want %v", r.Length, got, r.Roots)
		}
	}
	for _, m := range f.MaxMissingNodes {
		for i, want := range m.Blocks {
			if got := MissingNodes(2*uint64(i), m.L, nil); got != want {
				t.Errorf("missing nodes of block %d at %d: %d, want %d", i, m.L, got, want)
			}
		}
	}
	log := newMemory(loadTrees(t)["thirteen"].blocks(t))
	if len(raw.Cases) != 651 {
		t.Fatalf("%d cases", len(raw.Cases))
	}
	for _, c := range raw.Cases {
		list := func(k string) (out []uint64) { _ = json.Unmarshal(c[k], &out); return out }
		var req Request
		if v := list("B"); v != nil {
			req.Block = &NodeRequest{v[0], v[1]}
		}
		if v := list("H"); v != nil {
			req.Hash = &NodeRequest{v[0], v[1]}
		}
		if v := list("U"); v != nil {
			req.Upgrade = &UpgradeRequest{v[0], v[1]}
		}
		if s, ok := c["S"]; ok {
			req.Seek = &SeekRequest{}
			_ = json.Unmarshal(s, &req.Seek.Bytes)
		}
		id, _ := json.Marshal(c)
		p, err := Prove(log, 13, req)
		if _, bad := c["err"]; bad != (err != nil) {
			t.Errorf("%s: %v", id, err)
			continue
		} else if bad {
			if !errors.Is(err, ErrRequest) {
				t.Errorf("%s: %v", id, err)
			}
			continue
		}
		got := map[string][]uint64{}
		if p.Block != nil {
			got["b"] = indexes(p.Block.Nodes)
		}
		if p.Hash != nil {
			got["h"] = indexes(p.Hash.Nodes)
		}
		if p.Seek != nil {
			got["s"] = indexes(p.Seek.Nodes)
		}
		if p.Upgrade != nil {
			got["u"], got["a"] = indexes(p.Upgrade.Nodes), indexes(p.Upgrade.Additional)
		}
		for _, k := range []string{"b", "h", "s", "u", "a"} {
			if !slices.Equal(list(k), got[k]) || (list(k) == nil) != (got[k] == nil) {
				t.Errorf("%s: %s is %v", id, k, got[k])
			}
		}
	}
}

// TestVectorsProofs rebuilds the 28 proofs that JavaScript made, byte for byte,
// and verifies them.
func TestVectorsProofs(t *testing.T) {
	var f struct {
		Key   hexBytes
		Cases []struct{ RequestEncoded, DataEncoded hexBytes }
		With  struct{ DataEncoded hexBytes } `json:"withManifest"`
	}
	load(t, "proofs-13.json", &f)
	blocks := loadTrees(t)["thirteen"].blocks(t)
	log := newMemory(blocks)
	priv := seedKey(1)
	m := NewManifest(public(priv))
	key := m.Key()
	if key != f.Key.hash() {
		t.Fatal("key")
	}
	sign := func(log *memory) []byte {
		return m.Sign(priv, key, Head{Length: log.tree.Length(), TreeHash: log.tree.Hash()})
	}
	for i, c := range f.Cases {
		flags, rest, _ := compact.ParseUint(c.RequestEncoded)
		req, rest, err := ParseRequest(flags, rest[2:]) // behind id 1 and fork 0
		if err != nil || len(rest) != 0 || req.Flags() != flags {
			t.Fatalf("%d: request: %v", i, err)
		}
		if got := req.Append([]byte{byte(flags), 1, 0}); !bytes.Equal(got, c.RequestEncoded) {
			t.Errorf("%d: request %x", i, got)
		}
		p, err := Prove(log, 13, req)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if p.Block != nil {
			p.Block.Value = blocks[p.Block.Index]
		}
		if p.Upgrade != nil {
			p.Upgrade.Signature = sign(log)
		}
		got := p.Append([]byte{byte(p.Flags()), 1, 0})
		if !bytes.Equal(got, c.DataEncoded) {
			t.Errorf("%d: data\n%x want\n%x", i, got, c.DataEncoded)
		}
		flags, rest, _ = compact.ParseUint(c.DataEncoded)
		theirs, rest, err := ParseProof(flags, rest[2:])
		if err != nil || len(rest) != 0 {
			t.Fatalf("%d: data: %v", i, err)
		}
		start := uint64(13)
		if theirs.Upgrade != nil {
			start = theirs.Upgrade.Start
		}
		v := verifierAt(log, blocks, &m, start)
		if _, err := v.Verify(&theirs, nil); err != nil {
			t.Errorf("%d: verify: %v", i, err)
		}
	}
	flags, rest, _ := compact.ParseUint(f.With.DataEncoded)
	p, rest, err := ParseProof(flags, rest[2:])
	if err != nil {
		t.Fatal(err)
	}
	manifest, rest, err := ParseManifest(rest)
	if err != nil || len(rest) != 0 {
		t.Fatal(err)
	}
	v := Verifier{Key: key}
	got, err := v.Verify(&p, manifest)
	if err != nil || got.Manifest == nil || got.Head.Length != 13 {
		t.Fatalf("with manifest: %+v, %v", got, err)
	}
	other := Verifier{Key: Hash{1}}
	if _, err := other.Verify(&p, manifest); !errors.Is(err, ErrManifest) {
		t.Fatalf("manifest of another key: %v", err)
	}
}

// verifierAt returns a reader that knows the head of start blocks and all nodes
// below it.
func verifierAt(log *memory, blocks [][]byte, m *Manifest, start uint64) *Verifier {
	old := newMemory(blocks[:start])
	return &Verifier{Key: m.Key(), Manifest: m, Length: start, Roots: old.tree.Roots(), Node: func(i uint64) (Node, bool) {
		n, ok := old.nodes[i]
		return n, ok
	}}
}
