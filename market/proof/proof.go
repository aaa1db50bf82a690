// Package proof writes down what a buyer got so that others can check it: that this seller
// signed these blocks for this buyer. Nothing else is needed, and nobody is asked.
//
// # File
//
// Lines of JSON. A file may have several sections, each with a signature of its own:
//
//	{"seller","buyer","feed","generation","sig","card"?}   whose feed it is; sig is the
//	                                  seller's, as in message 2 of the exchange
//	{"from":N,"left":[node,…]}        a section begins with block N; left are the roots of
//	                                  the log of the blocks before
//	{"index":N,"block":base64}        a block
//	{"until":N,"fork","length","right":[node,…],"manifest":base64,"signature":base64}
//	                                  the section ends before block N; the feed's signer
//	                                  signed a log of so many blocks, and right are the
//	                                  nodes over those from N on
//
// A node is {"index","size","hash"} of the flat tree. From left, the blocks and right follow
// the roots of the whole log, which are what is signed; the manifest's hash is the feed's
// key. Lines behind the last end prove nothing, and are passed over.
//
// Source: specs/exchange.md, message 2; specs/hypercore.md.
package proof

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"

	"dazaar-edge/feed/merkle"
	"dazaar-edge/market/card"
	"dazaar-edge/protocol/dazaar"
	"dazaar-edge/protocol/jcs"
	"dazaar-edge/protocol/replicate"
)

// Errors that callers tell apart.
var (
	// ErrUnproven says that a file does not show what it claims.
	ErrUnproven = errors.New("proof: does not verify")
	// ErrFile says that a file cannot be written, or is another one's.
	ErrFile = errors.New("proof: the file of proofs")
)

// maxLine bounds a line: the largest block that a buyer takes, in base64, and what is
// around it.
const maxLine = replicate.MaxMessage/3*4 + 1<<20

// blockCost is what a block takes in memory besides its bytes.
const blockCost = 64

// maxIndex bounds indexes of nodes, maxSection the bytes of a section's blocks.
const (
	maxIndex   = 1 << 54
	maxSection = 128 << 20
)

// node is one of the tree.
type node struct {
	Index uint64    `json:"index"`
	Size  uint64    `json:"size"`
	Hash  jcs.Hex32 `json:"hash"`
}

func toJSON(nodes []merkle.Node) []node {
	out := make([]node, 0, len(nodes))
	for _, n := range nodes {
		out = append(out, node{n.Index, n.Size, jcs.Hex32(n.Hash)})
	}
	return out
}

func fromJSON(nodes []node) (out []merkle.Node) {
	for _, n := range nodes {
		out = append(out, merkle.Node{Index: n.Index, Size: n.Size, Hash: merkle.Hash(n.Hash)})
	}
	return out
}

// line is any line of a file.
type line struct {
	Seller     *jcs.Hex32      `json:"seller,omitempty"`
	Buyer      *jcs.Hex32      `json:"buyer,omitempty"`
	Feed       *jcs.Hex32      `json:"feed,omitempty"`
	Generation *uint64         `json:"generation,omitempty"`
	Sig        *jcs.Hex64      `json:"sig,omitempty"`
	Card       json.RawMessage `json:"card,omitempty"`

	From *uint64 `json:"from,omitempty"`
	Left []node  `json:"left,omitempty"`

	Index *uint64 `json:"index,omitempty"`
	Block []byte  `json:"block,omitempty"`

	Until     *uint64 `json:"until,omitempty"`
	Fork      uint64  `json:"fork,omitempty"`
	Length    uint64  `json:"length,omitempty"`
	Right     []node  `json:"right,omitempty"`
	Manifest  []byte  `json:"manifest,omitempty"`
	Signature []byte  `json:"signature,omitempty"`
}

// Summary says what a file proves.
type Summary struct {
	Seller, Buyer [32]byte
	// Card is the newest one in the file, signed by the seller; nil if there is none.
	Card   *card.Card
	Blocks uint64
	Bytes  uint64
	// First and Last are the least and the greatest index of a block.
	First, Last uint64
	// Missing are blocks between them that are not in the file; Forks is how often the
	// seller replaced some.
	Missing uint64
	Forks   int
	// Broken are lines that are none, as a power cut leaves them. Unproven are blocks of
	// sections without an end.
	Broken   int
	Unproven uint64
	// Signers are the keys that signed: each is worthless if its seller burned it.
	Signers [][32]byte

	fork uint64
	seen spans // of any feed and fork
}

// spans are runs of blocks, sorted, with something between them.
type spans []span

type span struct{ from, to uint64 }

// has tells whether block i is in one.
func (s spans) has(i uint64) bool {
	k := sort.Search(len(s), func(k int) bool { return s[k].to > i })
	return k < len(s) && s[k].from <= i
}

// add adds blocks [from, to).
func (s spans) add(from, to uint64) spans {
	a := sort.Search(len(s), func(k int) bool { return s[k].to >= from })
	b := sort.Search(len(s), func(k int) bool { return s[k].from > to })
	if a < b {
		from, to = min(from, s[a].from), max(to, s[b-1].to)
	}
	return slices.Replace(s, a, b, span{from, to})
}

// section is one that is being read.
type section struct {
	from   uint64
	stack  []merkle.Node
	blocks [][]byte
	size   int
}

// push adds a node right of what there is.
func (s *section) push(n merkle.Node) error {
	if n.Index >= maxIndex {
		return fmt.Errorf("node %d is beyond any log", n.Index)
	}
	if first, _ := merkle.Span(n.Index); first != s.end() {
		return fmt.Errorf("node %d is out of its order", n.Index)
	}
	s.stack = append(s.stack, n)
	for k := len(s.stack); k > 1 && merkle.Sibling(s.stack[k-2].Index) == s.stack[k-1].Index && merkle.Parent(s.stack[k-2].Index) == merkle.Parent(s.stack[k-1].Index); k = len(s.stack) {
		s.stack = append(s.stack[:k-2], merkle.Join(s.stack[k-2], s.stack[k-1]))
	}
	return nil
}

// end returns how many blocks there are below the nodes.
func (s *section) end() uint64 {
	if len(s.stack) == 0 {
		return 0
	}
	_, end := merkle.Span(s.stack[len(s.stack)-1].Index)
	return end
}

// Verify checks a file. f is called for each block that is proved, in the order of the
// file, with data that is valid during the call. Errors wrap [ErrUnproven], or are those of
// reading.
func Verify(r io.Reader, f func(i uint64, data []byte) error) (sum Summary, err error) {
	bad := func(at int, format string, args ...any) error {
		return fmt.Errorf("%w: line %d: "+format, append([]any{ErrUnproven, at}, args...)...)
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var feed *dazaar.OneTimeFeed
	var s *section
	var shown spans // blocks of this feed that were, on this fork
	for at := 1; lines.Scan(); at++ {
		var l line
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		if json.Unmarshal(lines.Bytes(), &l) != nil { // the power was cut here, most likely
			sum.Broken++
			s = nil
			continue
		}
		switch {
		case s == nil && (l.Index != nil || l.Until != nil) && sum.Broken > 0:
			sum.Unproven++ // behind what is broken
		case l.Seller != nil:
			if l.Buyer == nil || l.Feed == nil || l.Generation == nil || l.Sig == nil {
				return sum, bad(at, "it does not say whose feed it is")
			}
			if feed != nil && (sum.Seller != *l.Seller || sum.Buyer != *l.Buyer) {
				return sum, bad(at, "another seller, or another buyer, than before")
			}
			if feed == nil || feed.Key != [32]byte(*l.Feed) {
				shown = nil
			}
			sum.Seller, sum.Buyer, s = *l.Seller, *l.Buyer, nil
			feed = &dazaar.OneTimeFeed{Key: *l.Feed, Generation: *l.Generation, Signature: *l.Sig}
			if err := feed.Verify(sum.Seller, sum.Buyer); err != nil {
				return sum, bad(at, "%w", err)
			}
			if l.Card != nil {
				signed, err := jcs.Transform(l.Card)
				if err != nil {
					return sum, bad(at, "%w", err)
				}
				c, err := card.Parse(signed, &sum.Seller, 0)
				if err != nil {
					return sum, bad(at, "%w", err)
				}
				if sum.Card == nil || c.Version >= sum.Card.Version {
					sum.Card = c
				}
			}
		case feed == nil:
			return sum, bad(at, "it is not said whose feed it is")
		case l.From != nil:
			s = &section{from: *l.From, stack: fromJSON(l.Left)}
			if _, err := merkle.NewTree(s.from, s.stack); err != nil {
				return sum, bad(at, "%w", err)
			}
		case s == nil:
			return sum, bad(at, "no section has begun")
		case l.Index != nil:
			if *l.Index != s.from+uint64(len(s.blocks)) {
				return sum, bad(at, "block %d is out of its order", *l.Index)
			}
			if err := s.push(merkle.Leaf(*l.Index, l.Block)); err != nil {
				return sum, bad(at, "%w", err)
			}
			if s.size += len(l.Block) + blockCost; s.size > maxSection {
				return sum, bad(at, "a section of more than %d bytes", maxSection)
			}
			s.blocks = append(s.blocks, l.Block)
			sum.Unproven++ // until its section ends
		case l.Until != nil:
			m, err := s.close(&l, feed)
			if err != nil {
				return sum, bad(at, "%w", err)
			}
			sum.signedBy(m)
			if shown, err = sum.take(s, l.Fork, shown, f); err != nil {
				return sum, err
			}
			s = nil
		default:
			return sum, bad(at, "it is no line of a proof")
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return sum, fmt.Errorf("%w: a line of more than %d bytes", ErrUnproven, maxLine)
	} else if err != nil {
		return sum, err
	}
	for i := 1; i < len(sum.seen); i++ {
		sum.Missing += sum.seen[i].from - sum.seen[i-1].to
	}
	if sum.Blocks == 0 {
		return sum, fmt.Errorf("%w: there is nothing in it that is signed", ErrUnproven)
	}
	return sum, nil
}

// close checks a section's end.
func (s *section) close(l *line, feed *dazaar.OneTimeFeed) (*merkle.Manifest, error) {
	if *l.Until != s.end() {
		return nil, fmt.Errorf("it ends before block %d, and has %d", *l.Until, s.end())
	}
	for _, n := range fromJSON(l.Right) {
		if err := s.push(n); err != nil {
			return nil, err
		}
	}
	tree, err := merkle.NewTree(l.Length, s.stack)
	if err != nil {
		return nil, err
	}
	m, rest, err := merkle.ParseManifest(l.Manifest)
	switch {
	case err != nil:
		return nil, err
	case len(rest) > 0 || m.Key() != feed.Key && !compat(m, feed.Key):
		return nil, errors.New("the manifest is not the feed's")
	}
	return m, m.Verify(feed.Key, merkle.Head{Fork: l.Fork, Length: l.Length, TreeHash: tree.Hash()}, l.Signature)
}

// signedBy notes who signed.
func (sum *Summary) signedBy(m *merkle.Manifest) {
	for _, s := range m.Signers {
		if key := [32]byte(s.PublicKey); !slices.Contains(sum.Signers, key) {
			sum.Signers = append(sum.Signers, key)
		}
	}
}

// compat tells whether a manifest is that of a feed without one: its key signs.
func compat(m *merkle.Manifest, key [32]byte) bool {
	c := merkle.CompatManifest(key)
	return bytes.Equal(m.Append(nil), c.Append(nil))
}

// take counts a section that was proved, and hands on those of its blocks that were not
// shown before.
func (sum *Summary) take(s *section, fork uint64, shown spans, f func(i uint64, data []byte) error) (spans, error) {
	if sum.Blocks > 0 && fork != sum.fork {
		sum.Forks++
		shown = nil
	}
	sum.fork = fork
	for k, b := range s.blocks {
		i := s.from + uint64(k)
		if shown.has(i) {
			continue
		}
		if sum.Blocks == 0 || i < sum.First {
			sum.First = i
		}
		sum.Last = max(sum.Last, i)
		sum.Blocks++
		sum.Bytes += uint64(len(b))
		if err := f(i, b); err != nil {
			return shown, err
		}
	}
	sum.Unproven -= uint64(len(s.blocks))
	if len(s.blocks) == 0 {
		return shown, nil
	}
	end := s.from + uint64(len(s.blocks))
	sum.seen = sum.seen.add(s.from, end)
	return shown.add(s.from, end), nil
}
