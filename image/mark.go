package image

import (
	"context"
	"fmt"
)

// Keeper is told by the owner of the images what is live. Its methods read the
// trees they are told of; any error must be passed on by the caller.
// They must be called by one goroutine at a time.
type Keeper struct {
	s     *Store
	ctx   context.Context
	marks map[uint64]*bitmap // by pack: the records that are live, bases of patches among them
	seen  map[uint64]*bitmap // by pack: the records that were reached, and what is below them
	roots map[Root]bool      // told of, to walk a root once
	visit func(n Name, k kind, level, chunk int, at place, p *pack) error
	err   error // the first: marks are of no use after it
}

func (s *Store) newKeeper(ctx context.Context) *Keeper {
	return &Keeper{s: s, ctx: ctx, marks: map[uint64]*bitmap{}, seen: map[uint64]*bitmap{}, roots: map[Root]bool{}}
}

// Root keeps an image.
func (k *Keeper) Root(r Root) error {
	if err := r.Check(); err != nil {
		return k.fail(err)
	}
	if k.roots[r] || k.err != nil {
		return k.err
	}
	k.roots[r] = true
	if err := k.tree(r.height()-1, r.Chunk, r.Name); err != nil {
		return k.fail(fmt.Errorf("image %v: %w", r, err))
	}
	return nil
}

// Name keeps one chunk, of any size.
func (k *Keeper) Name(n Name) error {
	if k.err != nil || n.IsZero() {
		return k.err
	}
	_, err := k.mark(n, kindChunk, 0, 0)
	return k.fail(err)
}

func (k *Keeper) fail(err error) error {
	if err != nil && k.err == nil {
		k.err = err
	}
	return err
}

// tree marks a node and what is below it that has not been marked.
func (k *Keeper) tree(level, chunk int, n Name) error {
	if n.IsZero() {
		return nil
	}
	if seen, err := k.mark(n, kindNode, level, chunk); seen || err != nil {
		return err
	}
	v, err := k.s.node(n)
	if err != nil {
		return k.lenient(err)
	}
	for i := range v {
		if level > 0 {
			err = k.tree(level-1, chunk, v[i])
		} else if !v[i].IsZero() {
			_, err = k.mark(v[i], kindChunk, 0, chunk)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lenient lets a scrub, which has taken note of a damaged node, go on without what is below it.
func (k *Keeper) lenient(err error) error {
	if k.visit != nil && isDamage(err) {
		return nil
	}
	return err
}

// mark notes that the record of n, and that of its base, are live; seen: they were noted before.
func (k *Keeper) mark(n Name, kd kind, level, chunk int) (seen bool, err error) {
	if err := k.ctx.Err(); err != nil {
		return false, err
	}
	at, p, err := k.s.locate(n)
	if err != nil {
		if k.visit != nil && isDamage(err) {
			return false, k.visit(n, kd, level, chunk, place{}, nil)
		}
		return false, err
	}
	if set(k.seen, at) {
		return true, nil
	}
	set(k.marks, at)
	if at.codec == codecPatch {
		base, _, err := k.s.locate(at.base)
		if err == nil {
			set(k.marks, base)
		} else if k.visit == nil || !isDamage(err) {
			return false, fmt.Errorf("base of patch %s: %w", n.short(), err)
		}
	}
	if k.visit != nil {
		return false, k.visit(n, kd, level, chunk, at, p)
	}
	return false, nil
}

// set adds the record at a place to a set and returns whether it was in it.
func set(sets map[uint64]*bitmap, at place) bool {
	m := sets[at.pack]
	if m == nil {
		m = new(bitmap)
		sets[at.pack] = m
	}
	return m.set(int(at.ord))
}

// bitmap is a set of small numbers that grows as needed.
type bitmap struct{ words []uint64 }

func (b *bitmap) set(i int) (was bool) {
	for len(b.words) <= i/64 {
		b.words = append(b.words, 0)
	}
	was = b.words[i/64]&(1<<(i%64)) != 0
	b.words[i/64] |= 1 << (i % 64)
	return was
}

func (b *bitmap) has(i int) bool {
	return b != nil && i/64 < len(b.words) && b.words[i/64]&(1<<(i%64)) != 0
}
