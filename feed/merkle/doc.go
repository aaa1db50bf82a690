// Package merkle is the tree over a log's blocks: Hypercore 11's flat tree, its
// hashes, its proofs and their verification, manifests and signed heads. It is
// pure: it does no I/O, starts no goroutine and keeps no state but what the
// caller holds. Functions are safe for concurrent use, types are not.
//
// # Hashes
//
//	leaf   = BLAKE2b-256(00 || LE64(len(block)) || block)
//	parent = BLAKE2b-256(01 || LE64(left.size + right.size) || left.hash || right.hash)
//	tree   = BLAKE2b-256(02 || for each root: hash || LE64(index) || LE64(size))
//
// No key goes into a tree. One log can therefore be sold as any number of
// feeds: all share the blocks and nodes, and differ in [Manifest], key and the
// signature over the tree hash ([Manifest.Signable]).
//
// # Proofs
//
// [Prove] builds what a peer asked for with a [Request] from anything that can
// look up nodes ([NodeReader]); [Verifier.Verify] checks a [Proof] against what
// is already trusted and says which nodes may be trusted from now on.
//
// # Sources
//
// specs/hypercore.md, sections 2 to 5, 11 and 12; testdata/ holds what stock
// Hypercore 11.37.1 computed.
package merkle

import "errors"

// Errors of this package. They are wrapped with what was wrong.
var (
	// ErrShape says that nodes, lengths or indexes do not form a tree.
	ErrShape = errors.New("merkle: not the nodes of such a tree")
	// ErrRequest says that a proof was asked for that cannot exist.
	ErrRequest = errors.New("merkle: impossible proof request")
	// ErrMissing says that a node is not stored any more.
	ErrMissing = errors.New("merkle: node is not available")
	// ErrProof says that a proof does not verify.
	ErrProof = errors.New("merkle: proof does not verify")
	// ErrSignature says that a head's signature does not verify.
	ErrSignature = errors.New("merkle: signature does not verify")
	// ErrManifest says that a manifest is malformed or not of this key.
	ErrManifest = errors.New("merkle: bad manifest")
)
