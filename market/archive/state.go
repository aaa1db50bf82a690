package archive

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"slices"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
)

// envelope is state.json: the state with its CRC32C in hex, over the bytes as they
// are there.
type envelope struct {
	Version int             `json:"version"`
	Sum     string          `json:"sum"`
	State   json.RawMessage `json:"state"`
}

// file is what is in it. Numbers above 2^53 do not occur.
type file struct {
	Seller     string     `json:"seller"`
	Buyer      string     `json:"buyer"`
	Feed       string     `json:"feed"`
	Generation uint64     `json:"generation"`
	Manifest   string     `json:"manifest,omitempty"`
	Fork       uint64     `json:"fork"`
	Length     uint64     `json:"length"`
	TreeHash   string     `json:"treeHash,omitempty"`
	Roots      []string   `json:"roots,omitempty"`
	Signature  string     `json:"signature,omitempty"`
	Cursor     *uint64    `json:"cursor"` // null: from the end
	Left       []string   `json:"left,omitempty"`
	Right      []string   `json:"right,omitempty"`
	Parts      []filePart `json:"parts,omitempty"`
	From       *uint64    `json:"from"` // null: from the end
	Foreign    bool       `json:"foreign,omitempty"`
	Output     int64      `json:"output"`
	Mark       string     `json:"mark,omitempty"`
}

type filePart struct {
	File  string   `json:"file"`
	First uint64   `json:"first"`
	Bytes uint64   `json:"bytes"`
	Roots []string `json:"roots,omitempty"`
}

func hexNodes(nodes []merkle.Node) (out []string) {
	for _, n := range nodes {
		out = append(out, hex.EncodeToString(merkle.AppendNode(nil, n)))
	}
	return out
}

func parseNodes(list []string) (out []merkle.Node, err error) {
	for _, s := range list {
		b, err := hex.DecodeString(s)
		if err != nil {
			return nil, err
		}
		n, _, err := merkle.ParseNode(b)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// maxState bounds state.json: some 500 nodes.
const maxState = 4 << 20

// loadState reads the state and which files are its parts.
func (a *Archive) loadState() ([]filePart, error) {
	b, err := durable.ReadFile(a.fsys, path.Join(a.dir, stateName), maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	f, err := parseState(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", stateName, err)
	}
	if f.Buyer != a.buyer() {
		return nil, fmt.Errorf("%w: %s is of buyer %s, and %s of %s", ErrCorrupt, stateName, f.Buyer, keyName, a.buyer())
	}
	if a.state, err = f.state(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, stateName, err)
	}
	return f.Parts, nil
}

// parseState reads the bytes of state.json.
func parseState(b []byte) (*file, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if e.Version != 1 {
		return nil, fmt.Errorf("%w: version %d", durable.ErrNewer, e.Version)
	}
	if e.Sum != checksum(e.State) {
		return nil, fmt.Errorf("%w: the checksum is not right", ErrCorrupt)
	}
	var f file
	if err := json.Unmarshal(e.State, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return &f, nil
}

func checksum(b []byte) string { return fmt.Sprintf("%08x", crc32.Checksum(b, table)) }

// key parses a key of 32 bytes.
func key(s string) (k [32]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("%q is no key", s)
	}
	return [32]byte(b), nil
}

func (f *file) state() (*State, error) {
	st := &State{Generation: f.Generation, Output: f.Output, Mark: f.Mark}
	k := &st.Kept
	k.Cursor, k.From, k.Foreign = replicate.FromEnd, replicate.FromEnd, f.Foreign
	if f.Cursor != nil {
		k.Cursor = *f.Cursor
	}
	if f.From != nil {
		k.From = *f.From
	}
	k.Head.Fork, k.Head.Length = f.Fork, f.Length
	var err error
	if st.Seller, err = key(f.Seller); err != nil {
		return nil, fmt.Errorf("seller: %w", err)
	}
	feed, err := key(f.Feed)
	if err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	st.Feed = feed
	if f.TreeHash != "" {
		h, err := hex.DecodeString(f.TreeHash)
		if err != nil || len(h) != merkle.HashSize {
			return nil, errors.New("treeHash")
		}
		k.Head.TreeHash = merkle.Hash(h)
	}
	if f.Manifest != "" {
		b, err := hex.DecodeString(f.Manifest)
		if err != nil {
			return nil, err
		}
		if k.Manifest, _, err = merkle.ParseManifest(b); err != nil {
			return nil, err
		}
	}
	if k.Signature, err = hex.DecodeString(f.Signature); err != nil {
		return nil, err
	}
	for _, l := range []struct {
		to   *[]merkle.Node
		from []string
	}{{&k.Roots, f.Roots}, {&k.Left, f.Left}, {&k.Right, f.Right}} {
		if *l.to, err = parseNodes(l.from); err != nil {
			return nil, err
		}
	}
	if k.Head.Length > 0 && merkle.TreeHash(k.Roots) != k.Head.TreeHash || k.Head.Length == 0 && f.TreeHash+f.Signature != "" {
		return nil, errors.New("treeHash is not that of the roots")
	}
	for _, p := range f.Parts {
		roots, err := parseNodes(p.Roots)
		if err != nil {
			return nil, err
		}
		k.Parts = append(k.Parts, replicate.Part{First: p.First, Roots: roots, Bytes: p.Bytes})
	}
	return st, nil
}

// Save makes the state durable, after the tail that it speaks of.
func (a *Archive) Save(st State) error {
	if err := a.sync(); err != nil {
		return err
	}
	k := &st.Kept
	f := file{
		Seller: hex.EncodeToString(st.Seller[:]), Buyer: a.buyer(), Feed: hex.EncodeToString(st.Feed[:]), Generation: st.Generation, Fork: k.Head.Fork, Length: k.Head.Length,
		Roots: hexNodes(k.Roots), Signature: hex.EncodeToString(k.Signature), Left: hexNodes(k.Left), Right: hexNodes(k.Right),
		Foreign: k.Foreign, Output: st.Output, Mark: st.Mark,
	}
	if k.Head.Length > 0 {
		f.TreeHash = hex.EncodeToString(k.Head.TreeHash[:])
	}
	if k.Manifest != nil {
		f.Manifest = hex.EncodeToString(k.Manifest.Append(nil))
	}
	if k.Cursor != replicate.FromEnd {
		f.Cursor = &k.Cursor
	}
	if k.From != replicate.FromEnd {
		f.From = &k.From
	}
	for _, p := range k.Parts {
		i := slices.IndexFunc(a.parts, func(x *part) bool { return x.first == p.First })
		if i < 0 {
			return fmt.Errorf("archive: no part begins at block %d", p.First)
		}
		f.Parts = append(f.Parts, filePart{path.Base(a.parts[i].name), p.First, p.Bytes, hexNodes(p.Roots)})
	}
	inner, err := json.Marshal(f)
	if err != nil {
		return err
	}
	b, err := json.Marshal(envelope{1, checksum(inner), inner})
	if err != nil {
		return err
	}
	if len(b) >= maxState {
		return fmt.Errorf("archive: a state of %d bytes", len(b))
	}
	if err := durable.WriteFile(a.fsys, path.Join(a.dir, stateName), append(b, '\n')); err != nil {
		return err
	}
	for len(a.garbage) > 0 {
		if err := a.fsys.Remove(a.garbage[0]); err != nil {
			return err
		}
		a.garbage = a.garbage[1:]
	}
	return nil
}

// buyer is the public key in hex.
func (a *Archive) buyer() string { return hex.EncodeToString(a.key[ed25519.SeedSize:]) }
