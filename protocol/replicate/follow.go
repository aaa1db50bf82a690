package replicate

import (
	"fmt"
	"slices"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/protocol/replicate/message"
)

// following is the way to a higher fork: the new head is fetched, then nodes of
// it from the first one that differs downward, until it is clear how much of the
// old log is in the new one.
type following struct {
	fork     uint64
	manifest *merkle.Manifest
	head     *merkle.Head
	roots    []merkle.Node
	sig      []byte
	ours     *tail
	common   uint64        // blocks that are the same for sure
	left     []merkle.Node // roots of these, as far as they were compared
}

// follow begins to follow the seller to its fork.
func (u *upstream) follow() {
	f := &following{fork: u.remote.Fork}
	u.fork = f
	u.b.changed()
	u.b.log.Info("replicate: the seller is on a higher fork", "fork", f.fork, "was", u.b.k.Head.Fork)
	r := message.Request{Fork: f.fork, Manifest: u.b.k.Manifest == nil}
	r.Upgrade = &merkle.UpgradeRequest{Length: u.remote.Length}
	u.request(r, func(d *message.Data, err error) error {
		if u.fork != f {
			return nil
		}
		if err != nil || d.Upgrade == nil {
			// It will say again where it stands; if not, it is asked again.
			u.fork = nil
			u.b.changed()
			u.hold()
			u.ch.Wake()
			return nil
		}
		return u.onForkHead(d)
	})
}

// onForkHead takes the head of the new fork.
func (u *upstream) onForkHead(d *message.Data) error {
	f, b := u.fork, u.b
	v := &merkle.Verifier{Key: b.cfg.Key, Manifest: b.k.Manifest, Fork: f.fork}
	if d.Fork != f.fork {
		return fmt.Errorf("%w: fork %d was asked for, and %d came", ErrInvalid, f.fork, d.Fork)
	}
	got, err := v.Verify(&d.Proof, d.Manifest)
	if err != nil {
		return fmt.Errorf("%w: head of fork %d: %w", ErrInvalid, f.fork, err)
	}
	f.manifest = b.k.Manifest
	if got.Manifest != nil {
		f.manifest = got.Manifest
	}
	f.head, f.roots, f.sig = got.Head, slices.Clone(got.Roots), d.Upgrade.Signature
	f.ours = b.newTail()
	for _, r := range f.roots {
		if !u.same(r) {
			return u.descend(r)
		}
		f.add(r)
	}
	return u.followed()
}

// same tells whether a node of the new log is one of ours.
func (u *upstream) same(n merkle.Node) bool {
	_, end := merkle.Span(n.Index)
	if end > u.b.k.Head.Length {
		return false
	}
	ours, err := u.fork.ours.Node(n.Index)
	return err == nil && ours.Hash == n.Hash
}

// add notes that the blocks below n are the same.
func (f *following) add(n merkle.Node) {
	f.left = append(f.left, n)
	_, f.common = merkle.Span(n.Index)
}

// descend looks for the first block that differs below a node that does.
func (u *upstream) descend(n merkle.Node) error {
	f := u.fork
	first, _ := merkle.Span(n.Index)
	if merkle.Level(n.Index) == 0 || first >= u.b.k.Head.Length {
		return u.followed()
	}
	l, _ := merkle.Children(n.Index)
	r := message.Request{Fork: f.fork}
	r.Hash = &merkle.NodeRequest{Index: l, Nodes: 1}
	u.request(r, func(d *message.Data, err error) error {
		if u.fork != f {
			return nil
		}
		if err != nil {
			return u.followed() // it does not know either; what is before is the same
		}
		if d.Hash == nil || len(d.Hash.Nodes) != 2 || d.Hash.Nodes[0].Index != l || d.Hash.Nodes[1].Index != merkle.Sibling(l) ||
			merkle.Join(d.Hash.Nodes[0], d.Hash.Nodes[1]).Hash != n.Hash {
			return fmt.Errorf("%w: node %d of fork %d", ErrInvalid, l, f.fork)
		}
		if left := d.Hash.Nodes[0]; !u.same(left) {
			return u.descend(left)
		}
		f.add(d.Hash.Nodes[0])
		return u.descend(d.Hash.Nodes[1])
	})
	return nil
}

// followed goes on with the new fork.
func (u *upstream) followed() error {
	f, b := u.fork, u.b
	u.fork = nil
	cursor := b.walk.Next()
	at := min(cursor, max(f.common, b.k.From)) // what was not wanted is not replaced
	if err := b.conclude(); err != nil {       // what was had is signed by the old head
		return err
	}
	b.seen = false
	if b.begun && cursor > b.k.From && (at < cursor || f.fork > b.k.Head.Fork) {
		if err := b.cfg.Sink.Fork(f.fork, at); err != nil {
			return err
		}
	}
	b.log.Info("replicate: followed a fork", "fork", f.fork, "length", f.head.Length, "common", f.common)
	b.k.Manifest, b.k.Head, b.k.Roots, b.k.Signature, b.k.Foreign = f.manifest, *f.head, f.roots, f.sig, false
	if b.begun {
		b.walk.Reset(at, f.head.Length, f.roots)
		b.walk.Trust(f.left)
		if at < cursor {
			b.cut(at)
		}
	} else {
		b.walk.Reset(f.head.Length, f.head.Length, f.roots)
		b.begun, b.k.From = true, f.head.Length
	}
	b.got.Forks++
	b.got.Upgrades++
	u.cancel(u.upgrade)
	u.upgrade = 0
	u.restart()
	b.changed()
	if err := b.cfg.Sink.Head(*f.head); err != nil {
		return err
	}
	u.sendSync()
	return nil
}

// cut takes the tail back to before block i, where the walk is. mu is held.
func (b *Buyer) cut(i uint64) {
	for n := len(b.k.Parts); n > 0 && b.k.Parts[n-1].First >= i; n-- {
		b.k.Parts = b.k.Parts[:n-1]
	}
	// What follows begins a part of its own.
	b.part = partSize
	if _, known := b.walk.Left(nil); !known {
		b.gap = true
	}
}
