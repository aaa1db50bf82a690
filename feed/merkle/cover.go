package merkle

import "slices"

// Cover returns nodes over the blocks [from, to) of a log of length blocks, the largest
// that are known, from left to right. It fails if the known ones leave something out.
func Cover(from, to, length uint64, known func(x uint64) (Node, bool)) (out []Node, ok bool) {
	var over func(x uint64) bool
	over = func(x uint64) bool {
		first, end := Span(x)
		if end <= from || first >= to {
			return true
		}
		if n, ok := known(x); ok && first >= from && end <= to {
			out = append(out, n)
			return true
		}
		if Level(x) == 0 {
			return false
		}
		l, r := Children(x)
		return over(l) && over(r)
	}
	for _, x := range AppendRoots(nil, length) {
		if !over(x) {
			return nil, false
		}
	}
	return out, true
}

// Among returns how to find a node in a list, for [Cover].
func Among(nodes []Node) func(x uint64) (Node, bool) {
	return func(x uint64) (Node, bool) {
		i := slices.IndexFunc(nodes, func(n Node) bool { return n.Index == x })
		if i < 0 {
			return Node{}, false
		}
		return nodes[i], true
	}
}
