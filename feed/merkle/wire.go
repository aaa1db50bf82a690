package merkle

import (
	"bytes"

	"dazaar-edge/protocol/compact"
)

// Flags say which parts of a request or proof are present; they are the low
// bits of the wire's flags (specs/hypercore.md, section 9, messages 1 and 3).
const (
	FlagBlock = 1 << iota
	FlagHash
	FlagSeek
	FlagUpgrade
)

// maxProofNodes bounds each list of nodes: two for each level of the largest
// tree.
const maxProofNodes = 128

// AppendNode appends a node: uint index, uint size, 32 bytes.
func AppendNode(b []byte, n Node) []byte {
	b = compact.AppendUint(b, n.Index)
	b = compact.AppendUint(b, n.Size)
	return append(b, n.Hash[:]...)
}

// ParseNode takes a node off b.
func ParseNode(b []byte) (n Node, rest []byte, err error) {
	if n.Index, rest, err = compact.ParseUint(b); err != nil {
		return n, nil, err
	}
	if n.Size, rest, err = compact.ParseUint(rest); err != nil {
		return n, nil, err
	}
	n.Hash, rest, err = parseHash(rest)
	return n, rest, err
}

// AppendNodes appends a list of nodes.
func AppendNodes(b []byte, nodes []Node) []byte { return compact.AppendArray(b, nodes, AppendNode) }

// ParseNodes takes a list of at most 128 nodes off b.
func ParseNodes(b []byte) ([]Node, []byte, error) {
	return compact.ParseArray(b, maxProofNodes, 34, ParseNode)
}

// ScanNodes is [ParseNodes] that appends to dst, which need not be allocated
// again for each message.
func ScanNodes(dst []Node, b []byte) ([]Node, []byte, error) {
	n, b, err := compact.ParseUint(b)
	if err != nil {
		return dst, nil, err
	}
	if n > maxProofNodes {
		return dst, nil, compact.ErrRange
	}
	for range n {
		var x Node
		if x, b, err = ParseNode(b); err != nil {
			return dst, nil, err
		}
		dst = append(dst, x)
	}
	return dst, b, nil
}

// Flags returns which parts r has.
func (r *Request) Flags() uint64 {
	return flags(r.Block != nil, r.Hash != nil, r.Seek != nil, r.Upgrade != nil)
}

// Flags returns which parts p has.
func (p *Proof) Flags() uint64 {
	return flags(p.Block != nil, p.Hash != nil, p.Seek != nil, p.Upgrade != nil)
}

func flags(parts ...bool) (f uint64) {
	for i, set := range parts {
		if set {
			f |= 1 << i
		}
	}
	return f
}

func appendPair(b []byte, x, y uint64) []byte {
	return compact.AppendUint(compact.AppendUint(b, x), y)
}

func parsePair(b []byte) (x, y uint64, rest []byte, err error) {
	if x, rest, err = compact.ParseUint(b); err != nil {
		return 0, 0, nil, err
	}
	y, rest, err = compact.ParseUint(rest)
	return x, y, rest, err
}

// Append appends the parts of the request, without flags, id and fork.
func (r *Request) Append(b []byte) []byte {
	if r.Block != nil {
		b = appendPair(b, r.Block.Index, r.Block.Nodes)
	}
	if r.Hash != nil {
		b = appendPair(b, r.Hash.Index, r.Hash.Nodes)
	}
	if r.Seek != nil {
		b = appendPair(b, r.Seek.Bytes, r.Seek.Padding)
	}
	if r.Upgrade != nil {
		b = appendPair(b, r.Upgrade.Start, r.Upgrade.Length)
	}
	return b
}

// ParseRequest takes the parts named by flags off b.
func ParseRequest(flags uint64, b []byte) (r Request, rest []byte, err error) {
	var parts [4][2]uint64
	rest = b
	for i := range parts {
		if flags>>i&1 == 0 {
			continue
		}
		if parts[i][0], parts[i][1], rest, err = parsePair(rest); err != nil {
			return Request{}, nil, err
		}
	}
	if flags&FlagBlock != 0 {
		r.Block = &NodeRequest{parts[0][0], parts[0][1]}
	}
	if flags&FlagHash != 0 {
		r.Hash = &NodeRequest{parts[1][0], parts[1][1]}
	}
	if flags&FlagSeek != 0 {
		r.Seek = &SeekRequest{parts[2][0], parts[2][1]}
	}
	if flags&FlagUpgrade != 0 {
		r.Upgrade = &UpgradeRequest{parts[3][0], parts[3][1]}
	}
	return r, rest, nil
}

// Append appends the parts of the proof, without flags, id and fork.
func (p *Proof) Append(b []byte) []byte {
	if p.Block != nil {
		b = compact.AppendUint(b, p.Block.Index)
		b = compact.AppendBuffer(b, p.Block.Value)
		b = AppendNodes(b, p.Block.Nodes)
	}
	if p.Hash != nil {
		b = AppendNodes(compact.AppendUint(b, p.Hash.Index), p.Hash.Nodes)
	}
	if p.Seek != nil {
		b = AppendNodes(compact.AppendUint(b, p.Seek.Bytes), p.Seek.Nodes)
	}
	if p.Upgrade != nil {
		b = appendPair(b, p.Upgrade.Start, p.Upgrade.Length)
		b = AppendNodes(b, p.Upgrade.Nodes)
		b = AppendNodes(b, p.Upgrade.Additional)
		b = compact.AppendBuffer(b, p.Upgrade.Signature)
	}
	return b
}

// ParseProof takes the parts named by flags off b. Block.Value aliases b.
func ParseProof(flags uint64, b []byte) (p Proof, rest []byte, err error) {
	rest = b
	if flags&FlagBlock != 0 {
		p.Block = &BlockPart{}
		if p.Block.Index, rest, err = compact.ParseUint(rest); err != nil {
			return Proof{}, nil, err
		}
		if p.Block.Value, rest, err = compact.ParseBuffer(rest); err != nil {
			return Proof{}, nil, err
		}
		if p.Block.Nodes, rest, err = ParseNodes(rest); err != nil {
			return Proof{}, nil, err
		}
	}
	if flags&FlagHash != 0 {
		p.Hash = &HashPart{}
		if p.Hash.Index, p.Hash.Nodes, rest, err = parseNodesAt(rest); err != nil {
			return Proof{}, nil, err
		}
	}
	if flags&FlagSeek != 0 {
		p.Seek = &SeekPart{}
		if p.Seek.Bytes, p.Seek.Nodes, rest, err = parseNodesAt(rest); err != nil {
			return Proof{}, nil, err
		}
	}
	if flags&FlagUpgrade != 0 {
		if p.Upgrade, rest, err = parseUpgrade(rest); err != nil {
			return Proof{}, nil, err
		}
	}
	return p, rest, nil
}

func parseNodesAt(b []byte) (at uint64, nodes []Node, rest []byte, err error) {
	if at, rest, err = compact.ParseUint(b); err != nil {
		return 0, nil, nil, err
	}
	nodes, rest, err = ParseNodes(rest)
	return at, nodes, rest, err
}

func parseUpgrade(b []byte) (u *UpgradePart, rest []byte, err error) {
	u = &UpgradePart{}
	if u.Start, u.Length, rest, err = parsePair(b); err != nil {
		return nil, nil, err
	}
	if u.Nodes, rest, err = ParseNodes(rest); err != nil {
		return nil, nil, err
	}
	if u.Additional, rest, err = ParseNodes(rest); err != nil {
		return nil, nil, err
	}
	sig, rest, err := compact.ParseOptionalBuffer(rest)
	u.Signature = bytes.Clone(sig)
	return u, rest, err
}
