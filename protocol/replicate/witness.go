package replicate

import (
	"slices"

	"dazaar-edge/feed/merkle"
)

// Witness is told what a buyer verified, and by what, so that it can be shown to others.
// Its methods are called one at a time, with the buyer's lock held.
type Witness interface {
	// Begin says that blocks follow from i on, and which roots the log of the blocks
	// before has.
	Begin(i uint64, left []merkle.Node) error
	// Block takes the next block; data is valid during the call. It tells whether it
	// wants an end of what it has.
	Block(i uint64, data []byte) (full bool, err error)
	// End says what signs the blocks since Begin.
	End(e Evidence) error
}

// Evidence is what shows that blocks are of a feed.
type Evidence struct {
	Until     uint64 // the block behind the last one
	Manifest  merkle.Manifest
	Head      merkle.Head
	Signature []byte // of Head
	// Right are the nodes over the blocks from Until to the end of the head.
	Right []merkle.Node
}

// testify tells the witness of a block; left are the roots of the log before it, if they
// are known. mu is held.
func (b *Buyer) testify(i uint64, data []byte, left []merkle.Node, known bool, path []merkle.Node) error {
	if b.cfg.Witness == nil {
		return nil
	}
	if !b.seen {
		if !known { // the first block brought what is left of it
			if left, known = merkle.Cover(0, i, i, merkle.Among(append(path[:len(path):len(path)], b.k.Roots...))); !known {
				return nil // the next one knows
			}
		}
		if err := b.cfg.Witness.Begin(i, left); err != nil {
			return err
		}
		b.seen = true
	}
	full, err := b.cfg.Witness.Block(i, data)
	if err == nil && full {
		err = b.conclude()
	}
	return err
}

// conclude tells the witness what signs what it has; if that is not known, it stays open.
// mu is held.
func (b *Buyer) conclude() error {
	if !b.seen {
		return nil
	}
	manifest := merkle.CompatManifest(b.cfg.Key) // of a feed that needs none
	if b.k.Manifest != nil {
		manifest = *b.k.Manifest
	}
	next := b.walk.Next()
	right, ok := merkle.Cover(next, b.k.Head.Length, b.k.Head.Length, merkle.Among(b.walk.Right(slices.Clone(b.k.Roots))))
	if !ok {
		return nil
	}
	b.seen = false
	return b.cfg.Witness.End(Evidence{Until: next, Manifest: manifest, Head: b.k.Head, Signature: b.k.Signature, Right: right})
}

// Conclude tells the witness what signs the blocks that it has. Without one it does
// nothing.
func (b *Buyer) Conclude() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conclude()
}
