package image

import (
	"fmt"
	"slices"
)

// Change says that the chunk at Index (its offset divided by the chunk size) has
// that name in the new image.
type Change struct {
	Index int64
	Name  Name
}

// Commit returns the image that differs from base by changes, at a cost that
// follows their number. They may be in any order; of several for one chunk the last counts. The names
// must have been put in this session, or be kept otherwise; base must be marked or held until Commit returns.
func (x *Session) Commit(base Root, changes []Change) (Root, error) {
	if err := base.Check(); err != nil {
		return Root{}, err
	}
	if x.ended.Load() {
		return Root{}, fmt.Errorf("commit in an ended session: %w", ErrClosed)
	}
	x.writes.Store(true)
	x.Hold(base)
	byIndex := func(a, b Change) int { return int(min(max(a.Index-b.Index, -1), 1)) }
	if !slices.IsSortedFunc(changes, byIndex) {
		changes = slices.Clone(changes)
		slices.SortStableFunc(changes, byIndex)
	}
	if n := len(changes); n > 0 && (changes[0].Index < 0 || changes[n-1].Index >= base.Chunks()) {
		return Root{}, fmt.Errorf("%w: change of chunk %d or %d of %d", ErrBadRoot, changes[0].Index, changes[n-1].Index, base.Chunks())
	}
	name, err := x.commit(base.height()-1, base.Name, changes)
	if err != nil {
		return Root{}, fmt.Errorf("commit: %w", err)
	}
	root := Root{Name: name, Size: base.Size, Chunk: base.Chunk}
	x.Hold(root)
	return root, nil
}

// commit returns the name of the node that old becomes by the changes, which all
// lie below it.
func (x *Session) commit(level int, old Name, changes []Change) (Name, error) {
	if len(changes) == 0 {
		return old, nil
	}
	was, err := x.s.node(old)
	if err != nil {
		return Name{}, err
	}
	now := *was
	for len(changes) > 0 {
		slot := int(changes[0].Index >> (fanBits * level) & (fanout - 1))
		n := 1
		for n < len(changes) && int(changes[n].Index>>(fanBits*level)&(fanout-1)) == slot {
			n++
		}
		if level == 0 {
			now[slot] = changes[n-1].Name
		} else if now[slot], err = x.commit(level-1, was[slot], changes[:n]); err != nil {
			return Name{}, err
		}
		changes = changes[n:]
	}
	return x.putNode(level, old, was, &now)
}

// putNode stores a node that takes the place of old.
func (x *Session) putNode(level int, old Name, was, now *node) (Name, error) {
	switch {
	case *now == *was:
		return old, nil
	case *now == zeroNode:
		return Name{}, nil
	}
	b := make([]byte, 0, nodeSize)
	content := now.appendTo(b)
	name := nameOf(level, content)
	if _, err := x.store(name, kindNode, content, old); err != nil {
		return Name{}, fmt.Errorf("tree node: %w", err)
	}
	x.s.nodes.put(&name, now)
	return name, nil
}

// Resize returns base cut to, or filled up with zeros to, another size in bytes.
// base must be marked or held until Resize returns.
func (x *Session) Resize(base Root, size int64) (Root, error) {
	to := Root{Name: base.Name, Size: size, Chunk: base.Chunk}
	if err := base.Check(); err != nil {
		return Root{}, err
	}
	if err := to.Check(); err != nil {
		return Root{}, err
	}
	if x.ended.Load() {
		return Root{}, fmt.Errorf("resize in an ended session: %w", ErrClosed)
	}
	x.writes.Store(true)
	x.Hold(base)
	if size < base.Size {
		cut, err := x.cutLast(base, size)
		if err != nil {
			return Root{}, fmt.Errorf("resize: %w", err)
		}
		if to.Name, err = x.clip(base.height()-1, cut.Name, 0, to.Chunks()); err != nil {
			return Root{}, fmt.Errorf("resize: %w", err)
		}
	}
	if err := x.reroot(&to, base.height()); err != nil {
		return Root{}, fmt.Errorf("resize: %w", err)
	}
	x.Hold(to)
	return to, nil
}

// cutLast zeroes what the chunk with the new end has beyond it.
func (x *Session) cutLast(base Root, size int64) (Root, error) {
	rest := int(size % int64(base.Chunk))
	if rest == 0 {
		return base, nil
	}
	i := size / int64(base.Chunk)
	old, err := x.s.View(base).ChunkName(i)
	if err != nil || old.IsZero() {
		return base, err
	}
	content := make([]byte, base.Chunk)
	if err := x.s.ReadChunk(old, base.Chunk, content[:rest], 0); err != nil {
		return Root{}, err
	}
	name, err := x.Put(content, old)
	if err != nil {
		return Root{}, err
	}
	return x.Commit(base, []Change{{Index: i, Name: name}})
}

// clip returns the node n, whose first chunk is index, with zeros from chunk end on.
func (x *Session) clip(level int, n Name, index, end int64) (Name, error) {
	switch {
	case n.IsZero() || index+span(level+1) <= end:
		return n, nil
	case index >= end:
		return Name{}, nil
	}
	was, err := x.s.node(n)
	if err != nil {
		return Name{}, err
	}
	now := *was
	for i := range now {
		at := index + int64(i)*span(level)
		switch {
		case at >= end:
			now[i] = Name{}
		case level > 0:
			if now[i], err = x.clip(level-1, was[i], at, end); err != nil {
				return Name{}, err
			}
		}
	}
	return x.putNode(level, n, was, &now)
}

// reroot brings a tree of the height was, which fits r's size, to the height it must have.
func (x *Session) reroot(r *Root, was int) error {
	for ; was > r.height(); was-- {
		v, err := x.s.node(r.Name)
		if err != nil {
			return err
		}
		r.Name = v[0]
	}
	for ; was < r.height() && !r.Name.IsZero(); was++ {
		name, err := x.putNode(was, Name{}, &zeroNode, &node{r.Name})
		if err != nil {
			return err
		}
		r.Name = name
	}
	return nil
}
