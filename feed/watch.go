package feed

import (
	"sync"

	"dazaar-edge/feed/merkle"
)

// change tells whoever waits that something changed.
type change struct {
	mu sync.Mutex
	ch chan struct{} // closed at the next change; guarded by mu
}

func (c *change) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch == nil {
		c.ch = make(chan struct{})
	}
	return c.ch
}

func (c *change) tell() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ch != nil {
		close(c.ch)
		c.ch = nil
	}
}

// Changed returns a channel that is closed when blocks are committed or dropped
// the next time.
func (l *Log) Changed() <-chan struct{} { return l.tree.change.wait() }

// Bounds returns which blocks the feed has: committed, and not dropped.
func (f *Feed) Bounds() (first, length uint64) {
	length = f.l.tree.length()
	return min(f.l.st.First(), length), length
}

// CanUpgrade is [Log.CanUpgrade].
func (f *Feed) CanUpgrade(length uint64) bool { return f.l.CanUpgrade(length) }

// Node returns a node of the log's tree. Errors wrap [merkle.ErrMissing].
func (f *Feed) Node(index uint64) (merkle.Node, error) {
	return nodeReader{f.l, f.l.tree.published()}.Node(index)
}

// Recover is [Log.Recover], and does not wait.
func (f *Feed) Recover(index, fork uint64, data []byte) error {
	_, err := f.l.Recover(index, fork, data)
	return err
}
