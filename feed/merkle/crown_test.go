package merkle

import "testing"

func TestCrown(t *testing.T) {
	var blocks [][]byte
	for i := range 600 {
		blocks = append(blocks, []byte{byte(i), byte(i >> 8)})
	}
	m := newMemory(blocks)
	node := func(x uint64) (Node, bool) {
		n, err := m.Node(x)
		return n, err == nil
	}
	for level := uint(CrownLevels); level <= 9; level++ {
		root := Ancestor(0, level)
		for i := uint64(0); i < 600; i += 1 << level {
			root = Ancestor(i, level)
			c := NewCrown(root, node)
			_, end := Span(root)
			if (c == nil) != (end > 600) {
				t.Fatalf("crown of node %d: %v", root, c)
			}
			if c == nil {
				continue
			}
			n := 0
			for x := uint64(0); x < 1300; x++ {
				got, ok := c.Node(x)
				first, e := Span(x)
				s, _ := Span(root)
				if want := first >= s && e <= end && Level(x) >= c.Low; ok != want {
					t.Fatalf("node %d in the crown of %d: %v", x, root, ok)
				}
				if ok {
					if n++; got != m.nodes[x] {
						t.Fatalf("node %d is %+v", x, got)
					}
				}
			}
			if n != 2<<CrownLevels-1 {
				t.Errorf("%d nodes", n)
			}
		}
	}
	var none *Crown
	if _, ok := none.Node(3); ok {
		t.Error("a node of nothing")
	}
}
