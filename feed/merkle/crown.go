package merkle

// CrownLevels is how many levels a [Crown] has above its lowest nodes.
const CrownLevels = 4

// Crown is a subtree without its lower levels: 31 nodes in the place of many. It
// is immutable.
type Crown struct {
	// Low is the level of the lowest nodes.
	Low   uint
	first uint64 // index of the first of these
	nodes [2<<CrownLevels - 1]Node
}

// NewCrown takes the crown of the subtree below a root, which must be at least
// CrownLevels above the leaves, from what node knows; nil if a node is missing.
func NewCrown(root uint64, node func(x uint64) (Node, bool)) *Crown {
	c := &Crown{Low: Level(root) - CrownLevels}
	first, _ := Span(root)
	c.first = Ancestor(first, c.Low)
	for k := range c.nodes {
		n, ok := node(c.first + uint64(k)<<c.Low)
		if !ok {
			return nil
		}
		c.nodes[k] = n
	}
	return c
}

// Node returns a node of the crown; of none if c is nil.
func (c *Crown) Node(x uint64) (Node, bool) {
	if c == nil || x < c.first {
		return Node{}, false
	}
	k := (x - c.first) >> c.Low
	if k >= uint64(len(c.nodes)) || c.nodes[k].Index != x {
		return Node{}, false
	}
	return c.nodes[k], true
}
