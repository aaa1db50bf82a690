package feed

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/feed/nodes"
	"dazaar-edge/storage"
	"dazaar-edge/storage/durable"
)

// pinsName is the file with the nodes that are kept of the dropped part.
const pinsName = storage.OwnerPrefix + "nodes"

// coarseLevel is the lowest level of which all dropped nodes are kept.
const coarseLevel = 12

// maxCoarse bounds them, together with the room there is; above it the lowest
// level is forgotten.
const maxCoarse = 1024

// ownerReserve is how many bytes of max are for our own files, which are
// replaced by writing them anew.
func ownerReserve(max int64) int64 { return min(max/32, 1<<20) }

// pinned are the nodes that are kept of the dropped part of the tree: what
// proves the present head to buyers whose head lies there, and coarse ones.
type pinned struct {
	fs    durable.FS
	name  string
	limit int

	mu    sync.RWMutex
	nodes map[uint64]merkle.Node // guarded by mu
}

func (p *pinned) node(x uint64) (merkle.Node, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	n, ok := p.nodes[x]
	return n, ok
}

func (p *pinned) load(fsys durable.FS, dir string, limit int64) error {
	p.fs, p.name, p.limit = fsys, filepath.Join(dir, pinsName), int(limit)/nodes.KeptSize
	p.nodes = map[uint64]merkle.Node{}
	b, err := durable.ReadFile(fsys, p.name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO) {
		return nil // buyers with old heads get new feeds
	}
	if err != nil {
		return err
	}
	kept, err := parsePins(b)
	if err != nil {
		return nil //nolint:nilerr // buyers with old heads get new feeds
	}
	p.nodes = kept
	return nil
}

func parsePins(b []byte) (map[uint64]merkle.Node, error) {
	b, err := unsum(b)
	if err != nil {
		return nil, err
	}
	return nodes.ParseKept(b)
}

func (p *pinned) save(kept map[uint64]merkle.Node) error {
	p.mu.Lock()
	p.nodes = kept
	p.mu.Unlock()
	return durable.WriteFile(p.fs, p.name, sum(nodes.AppendKept(nil, kept)))
}

// dropping keeps what later proofs need of the blocks before first. It is
// called by the storage while they are still there. If it cannot be kept, some
// buyers need a new feed; the drop goes on.
func (l *Log) dropping(first uint64) {
	if l.st == nil {
		return // inside Open, to make room for what is damaged
	}
	r := nodeReader{l, l.tree.published()}
	keep := map[uint64]merkle.Node{}
	l.keepCoarse(r, first, keep)
	for _, length := range l.signedLengths(first, l.pins.limit/4) {
		if !l.keepPath(r, length, first, keep) {
			break
		}
	}
	if err := l.pins.save(keep); err != nil {
		l.log.Warn("nodes of dropped blocks are not kept: buyers with old heads get new feeds", "log", l.cfg.Dir, "error", err)
	}
}

// keepCoarse keeps the nodes of the upper levels before first.
func (l *Log) keepCoarse(r nodeReader, first uint64, keep map[uint64]merkle.Node) {
	level := uint(coarseLevel)
	for first>>level > uint64(min(maxCoarse, l.pins.limit/2)/2) {
		level++
	}
	for ; first>>level > 0; level++ {
		for number := range first >> level {
			x := merkle.Ancestor(number<<level, level)
			if n, err := r.Node(x); err == nil {
				keep[x] = n
			}
		}
	}
}

// keepPath keeps what proves later heads to one whose head of length blocks lies
// before first: the right siblings above its last block; and the roots of that
// head, by which it is known again. It tells whether there is room for more.
func (l *Log) keepPath(r nodeReader, length, first uint64, keep map[uint64]merkle.Node) bool {
	var path []merkle.Node
	var buf [64]uint64
	for _, x := range merkle.AppendRoots(buf[:0], length) {
		n, err := r.Node(x)
		if err != nil {
			return true // it was lost before
		}
		path = append(path, n)
	}
	for x := 2 * (length - 1); ; x = merkle.Parent(x) {
		s := merkle.Sibling(x)
		if s < x {
			continue
		}
		if _, end := merkle.Span(s); end > first {
			break
		}
		n, err := r.Node(s)
		if err != nil {
			return true // it was lost before
		}
		path = append(path, n)
	}
	if len(keep)+len(path) > l.pins.limit {
		return false
	}
	for _, n := range path {
		keep[n.Index] = n
	}
	return true
}
