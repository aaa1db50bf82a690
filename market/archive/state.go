package archive

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate"
	"dazaar-edge/storage/durable"
)

// file is state.json. Numbers above 2^53 do not occur in it.
type file struct {
	Version    int        `json:"version"`
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
	Output     int64      `json:"output"`
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
	if a.state, err = f.state(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, stateName, err)
	}
	return f.Parts, nil
}

// parseState reads the bytes of state.json.
func parseState(b []byte) (*file, error) {
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if f.Version != 1 {
		return nil, fmt.Errorf("%w: version %d", durable.ErrNewer, f.Version)
	}
	return &f, nil
}

func (f *file) state() (*State, error) {
	st := &State{Generation: f.Generation, Output: f.Output}
	k := &st.Kept
	k.Cursor = replicate.FromEnd
	if f.Cursor != nil {
		k.Cursor = *f.Cursor
	}
	k.Head.Fork, k.Head.Length = f.Fork, f.Length
	feed, err := hex.DecodeString(f.Feed)
	if err != nil || len(feed) != merkle.HashSize {
		return nil, errors.New("feed")
	}
	st.Feed = merkle.Hash(feed)
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
		Version: 1, Feed: hex.EncodeToString(st.Feed[:]), Generation: st.Generation, Fork: k.Head.Fork, Length: k.Head.Length,
		Roots: hexNodes(k.Roots), Signature: hex.EncodeToString(k.Signature), Left: hexNodes(k.Left), Right: hexNodes(k.Right), Output: st.Output,
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
	for _, p := range k.Parts {
		i := slices.IndexFunc(a.parts, func(x *part) bool { return x.first == p.First })
		if i < 0 {
			return fmt.Errorf("archive: no part begins at block %d", p.First)
		}
		f.Parts = append(f.Parts, filePart{path.Base(a.parts[i].name), p.First, p.Bytes, hexNodes(p.Roots)})
	}
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return err
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
