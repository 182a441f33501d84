package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Damage is a chunk or node that cannot be read back.
type Damage struct {
	Name   Name   // zero where a footer is damaged
	Node   bool   // a tree node: what is below it cannot be found through it
	Pack   string // key of the pack; empty if the store has no record of it
	Offset int64  // of the damaged record in the pack; -1 for the footer
	What   string
	Roots  []Root // the images that need it, of those checked
}

// CheckReport says what a scrub looked at and found.
type CheckReport struct {
	Chunks, Nodes int64 // read, decoded and hashed, each once
	Bytes         int64 // of their content
	Damage        []Damage
}

// isDamage reports that err is about the store's content, not about reaching it.
func isDamage(err error) bool {
	var c *CorruptError
	return errors.As(err, &c) || errors.Is(err, ErrMissing)
}

// Check reads, decodes and hashes everything that mark tells the [Keeper] is live,
// and lists all that is damaged with the images that need it. A damaged record is
// marked, so that a later Put of the same content stores it again: that heals.
// progress, if not nil, is called now and then with the records done.
//
// An error means that the check is not complete; damage is no error.
func (s *Store) Check(ctx context.Context, mark func(keep *Keeper) error, progress func(done int64)) (CheckReport, error) {
	s.reclaim.Lock()
	defer s.reclaim.Unlock()
	var r CheckReport
	buf := make([]byte, MaxChunk)
	k := s.newKeeper(ctx)
	k.visit = func(n Name, kd kind, level, chunk int, at place, p *pack) error {
		if done := r.Chunks + r.Nodes; progress != nil && done%1024 == 0 {
			progress(done)
		}
		d, err := s.checkOne(n, kd, level, chunk, at, p, buf, &r)
		if d != nil {
			r.Damage = append(r.Damage, *d)
		}
		return err
	}
	err := mark(k)
	if err == nil {
		err = k.err
	}
	if err == nil && len(r.Damage) > 0 {
		err = s.affected(ctx, k.roots, r.Damage)
	}
	if err != nil {
		return r, fmt.Errorf("check: %w", err)
	}
	return r, nil
}

// checkOne checks a record that is live. Its damage is not an error.
func (s *Store) checkOne(n Name, kd kind, level, chunk int, at place, p *pack, buf []byte, r *CheckReport) (*Damage, error) {
	if p == nil {
		return &Damage{Name: n, Node: kd == kindNode, What: "there is no record of it"}, nil
	}
	content := buf[:1<<at.log]
	err := s.load(n, kd, content, nil)
	if err != nil && !isDamage(err) {
		return nil, err
	}
	if kd == kindNode {
		r.Nodes++
	} else {
		r.Chunks++
	}
	r.Bytes += int64(len(content))
	d := Damage{Name: n, Node: kd == kindNode, Pack: p.key, Offset: at.off}
	bad := n
	var c *CorruptError
	switch {
	case errors.As(err, &c):
		d.Pack, d.Offset, d.What, bad = c.Pack, c.Offset, c.What, c.Name
	case err != nil:
		d.What = err.Error()
	case kd == kindChunk && chunk != 0 && chunk != len(content):
		d.What = fmt.Sprintf("chunk of %d bytes in an image of chunks of %d", len(content), chunk)
	case kd == kindNode && nameOf(level, content) != n, kd == kindChunk && Name(sha256.Sum256(content)) != n:
		d.What = "content does not have this name"
	default:
		return nil, nil
	}
	s.log.Error("damaged chunk", "pack", d.Pack, "offset", d.Offset, "name", n, "what", d.What)
	return &d, s.markBad(bad)
}

// Doubt reports whether the error of a read is about damage, and not about reaching what is stored. What it names is marked then, as by a
// [Store.Check]: a later Put of the same content stores it again.
func (s *Store) Doubt(err error) (damaged bool, _ error) {
	var c *CorruptError
	if errors.As(err, &c) && c.Name != (Name{}) {
		return true, s.markBad(c.Name)
	}
	return isDamage(err), nil
}

// markBad makes the next Put of n store it again.
func (s *Store) markBad(n Name) error {
	s.cache.forget(&n)
	mu := &s.names[n[0]]
	mu.Lock()
	defer mu.Unlock()
	at, ok, err := s.index.get(n)
	if err != nil || !ok || at.bad {
		return err
	}
	at.bad = true
	return s.changeBad(n, at)
}

// changeBad notes damage in the index, and makes reads forget what they remember of the pack.
func (s *Store) changeBad(n Name, at place) error {
	err := s.index.change(n, at)
	s.marked.Add(1) // in this order: see remember
	if p := s.pack(at.pack); p != nil {
		s.numbers.forget(p)
	}
	return err
}

// affected fills in which roots need what is damaged.
func (s *Store) affected(ctx context.Context, roots map[Root]bool, damage []Damage) error {
	bad := map[Name][]int{}
	for i, d := range damage {
		bad[d.Name] = append(bad[d.Name], i)
	}
	for r := range roots {
		found := map[int]bool{}
		w := walker{s: s, ctx: ctx, bad: bad, found: found, seen: map[Name]bool{}}
		if err := w.walk(r.height()-1, r.Name); err != nil {
			return err
		}
		for i := range found {
			damage[i].Roots = append(damage[i].Roots, r)
		}
	}
	return nil
}

// walker finds the damaged names below a root.
type walker struct {
	s     *Store
	ctx   context.Context
	bad   map[Name][]int
	found map[int]bool
	seen  map[Name]bool
}

func (w *walker) walk(level int, n Name) error {
	if n.IsZero() || w.seen[n] {
		return nil
	}
	w.seen[n] = true
	for _, i := range w.bad[n] {
		w.found[i] = true
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	v, err := w.s.node(n)
	if isDamage(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range v {
		if level > 0 {
			if err := w.walk(level-1, c); err != nil {
				return err
			}
			continue
		}
		for _, i := range w.bad[c] {
			w.found[i] = true
		}
	}
	return nil
}

// PacksReport says what a scrub of the packs looked at and found.
type PacksReport struct {
	Packs, Records int64
	Bytes          int64 // of records as stored
	Orphans        int64 // patches nobody can need: their base was reclaimed
	Reindexed      int64 // records the index did not know of; it does now
	Damage         []Damage
}

// CheckPacks reads every record of every pack, whether an image needs it or not,
// and compares footers and index with them. Damage is no error; [Store.Check]
// says which images it matters to.
func (s *Store) CheckPacks(ctx context.Context) (PacksReport, error) {
	s.reclaim.Lock()
	defer s.reclaim.Unlock()
	var r PacksReport
	for _, p := range s.allPacks() {
		if err := s.checkPack(ctx, p, &r); err != nil {
			return r, fmt.Errorf("check %s: %w", p.key, err)
		}
	}
	return r, nil
}

func (s *Store) checkPack(ctx context.Context, p *pack, r *PacksReport) error {
	p.mu.Lock()
	entries := p.entries[:len(p.entries):len(p.entries)]
	p.mu.Unlock()
	r.Packs++
	if p.sealed.Load() {
		var err error
		if entries, err = s.footer(p); err != nil {
			if !errors.Is(err, errNotFooter) {
				return err
			}
			r.Damage = append(r.Damage, Damage{Pack: p.key, Offset: -1, What: err.Error()})
			if entries, err = s.scanSealed(p); err != nil {
				return err
			}
		}
	}
	b, content := new(buffer), make([]byte, MaxChunk)
	for i, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Records++
		r.Bytes += e.size()
		if err := s.checkEntry(p, i, e, content[:1<<e.log], b, r); err != nil {
			return err
		}
	}
	return nil
}

// checkEntry checks one record where it lies, then that the index can find its name.
func (s *Store) checkEntry(p *pack, ord int, e entry, content []byte, b *buffer, r *PacksReport) error {
	at := place{pack: p.id, ord: uint32(ord), off: e.off, length: e.length, kind: e.kind, codec: e.codec, log: e.log}
	body, err := s.record(p, at, e.name, e.kind, len(content), b)
	if err == nil && e.codec == codecPatch {
		at.base = patchBase(body)
		if _, _, err := s.locate(at.base); errors.Is(err, ErrMissing) {
			r.Orphans++
			return nil
		}
	} else if err == nil {
		err = corrupt(decodeFull(e.codec, content, body), p, at, e.name)
		if err == nil && !named(e.name, e.kind, content) {
			err = &CorruptError{Pack: p.key, Offset: e.off, Name: e.name, What: "content does not have this name"}
		}
	}
	var c *CorruptError
	if errors.As(err, &c) {
		r.Damage = append(r.Damage, Damage{Name: e.name, Node: e.kind == kindNode, Pack: c.Pack, Offset: c.Offset, What: c.What})
		at.bad = true
	} else if err != nil {
		return err
	}
	return s.reindex(e.name, at, r)
}

// named reports that content has that name; the level of a node is not in its record.
func named(n Name, k kind, content []byte) bool {
	if k == kindChunk {
		return Name(sha256.Sum256(content)) == n
	}
	for level := range maxHeight {
		if nameOf(level, content) == n {
			return true
		}
	}
	return false
}

// reindex brings a record into the index that it does not know, and marks one it knows as damaged.
func (s *Store) reindex(n Name, at place, r *PacksReport) error {
	mu := &s.names[n[0]]
	mu.Lock()
	defer mu.Unlock()
	old, ok, err := s.index.get(n)
	if err != nil {
		return err
	}
	same := ok && old.pack == at.pack && old.ord == at.ord
	switch {
	case same && (old.bad || !at.bad), ok && !same && s.pack(old.pack) != nil:
		return nil
	case same:
		old.bad = true
		return s.changeBad(n, old)
	}
	r.Reindexed++
	return s.index.change(n, at)
}
