package image

import (
	"crypto/sha256"
	"fmt"
)

// The tree of an image: nodes of 256 names. At level 0 these name chunks, at
// level n nodes of level n-1. A node is named by the SHA-256 of
//
//	"TMNODE1\n", one byte level, 256 names
//
// and a node of zero names only is the zero name. See docs/format/tree.md.
const (
	fanout    = 256
	fanBits   = 8
	nodeLog   = 13
	nodeSize  = fanout * 32
	nodeMagic = "TMNODE1\n"
	// maxHeight is that of the largest disk of the smallest chunks: 2^48 chunks.
	maxHeight = 6
)

// node is a decoded tree node. It is never changed after it was made known.
type node [fanout]Name

// zeroNode is what the zero name stands for.
var zeroNode node

// appendTo appends the node's names, its content in a record.
func (n *node) appendTo(dst []byte) []byte {
	for i := range n {
		dst = append(dst, n[i][:]...)
	}
	return dst
}

func parseNode(content []byte) *node {
	n := new(node)
	for i := range n {
		copy(n[i][:], content[i*len(Name{}):])
	}
	return n
}

// nameOf returns the name of a node of that level and content.
func nameOf(level int, content []byte) Name {
	h := sha256.New()
	h.Write([]byte(nodeMagic))
	h.Write([]byte{byte(level)})
	h.Write(content)
	return Name(h.Sum(nil))
}

// node returns the node of that name.
func (s *Store) node(n Name) (*node, error) {
	if n.IsZero() {
		return &zeroNode, nil
	}
	e, err := s.cachedNode(n)
	if err != nil {
		return nil, err
	}
	return e.node, nil
}

// cachedNode returns the node of a name that is not zero.
func (s *Store) cachedNode(n Name) (*cachedNode, error) {
	if e := s.nodes.get(&n); e != nil {
		return e, nil
	}
	var content [nodeSize]byte
	if err := s.load(n, kindNode, content[:], nil); err != nil {
		return nil, fmt.Errorf("tree node: %w", err)
	}
	return s.nodes.put(&n, parseNode(content[:])), nil
}

// span is the number of chunks below a name in a node of that level.
func span(level int) int64 { return 1 << (fanBits * level) }

// Diff calls fn for every chunk in which the images differ, in order, with its
// names in a and b. What they share is not read. Where one disk is longer, the
// other counts as zeros there. The chunk sizes must be equal (else [ErrBadRoot]). An error of fn ends it.
func (s *Store) Diff(a, b Root, fn func(index int64, a, b Name) error) error {
	if err := a.Check(); err != nil {
		return err
	}
	if err := b.Check(); err != nil {
		return err
	}
	if a.Chunk != b.Chunk {
		return fmt.Errorf("%w: chunk sizes %d and %d", ErrBadRoot, a.Chunk, b.Chunk)
	}
	d := differ{s: s, a: a.height(), b: b.height(), fn: fn}
	return d.walk(max(d.a, d.b)-1, 0, a.Name, b.Name)
}

// differ walks two trees at once; a and b are their heights.
type differ struct {
	s    *Store
	a, b int
	fn   func(int64, Name, Name) error
}

func (d *differ) walk(level int, index int64, a, b Name) error {
	// Above its root a tree has no names of its own: there the name of the root is
	// carried along, at index 0, and must not be compared with a node's.
	above := index == 0 && (level >= d.a || level >= d.b)
	if a == b && (!above || a.IsZero()) {
		return nil
	}
	x, err := d.lifted(level, index, a, d.a)
	if err != nil {
		return err
	}
	y, err := d.lifted(level, index, b, d.b)
	if err != nil {
		return err
	}
	for i := range x {
		at := index + int64(i)*span(level)
		switch {
		case level > 0:
			err = d.walk(level-1, at, x[i], y[i])
		case x[i] != y[i]:
			err = d.fn(at, x[i], y[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lifted returns the node of a tree of that height at a level that may be above its root.
func (d *differ) lifted(level int, index int64, n Name, height int) (*node, error) {
	if level >= height && index == 0 {
		return &node{n}, nil
	}
	return d.s.node(n)
}
