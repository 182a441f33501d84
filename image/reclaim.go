package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"tidemark/object"
)

// ReclaimReport says what a Reclaim did.
type ReclaimReport struct {
	Packs        int   // looked at
	PacksDeleted int   //
	PacksLeft    int   // that would have been deleted, had there been room to move what is live in them
	BytesFreed   int64 // of deleted packs
	BytesMoved   int64 // of live records copied out of them
	LiveRecords  int64 // in all packs that were looked at
	DeadRecords  int64
}

// A pack is emptied when less than liveShare percent of it is live; moving that
// costs less than what it frees. Packs below PackBytes/smallShare are merged when
// there are more than smallPacks of them.
const (
	liveShare  = 50
	smallShare = 4
	smallPacks = 8
)

// victim is a pack that is being emptied.
type victim struct {
	p       *pack
	entries []entry
	live    int64 // bytes of live records when it was chosen
}

// Reclaim gives back the space of what is not live: not reachable from what mark
// tells the [Keeper], nor from a session. mark is called twice and must each time
// list everything live at some moment after it was called, or fail.
//
// When mark fails, or anything cannot be read while marking, nothing is deleted.
// Between the marks Reclaim waits for the sessions that began before it chose what to
// delete; ctx bounds that. One runs at a time. Readers and writers go on meanwhile.
func (s *Store) Reclaim(ctx context.Context, mark func(keep *Keeper) error) (ReclaimReport, error) {
	s.reclaim.Lock()
	defer s.reclaim.Unlock()
	var r ReclaimReport
	s.keepEnded(true)
	defer s.keepEnded(false)
	defer s.index.ballast.refill()
	s.endPack()
	candidates := s.sealedPacks()
	s.o.hook("mark")
	live, err := s.markAll(ctx, mark)
	if err != nil {
		return r, fmt.Errorf("reclaim: nothing was deleted: %w", err)
	}
	victims, err := s.choose(live, candidates, &r)
	if err == nil && len(victims) > 0 {
		err = s.empty(ctx, victims, live, &r)
	}
	if errors.Is(err, syscall.ENOSPC) { // no room to move anything: what is dead as a whole gives room
		all := len(victims)
		victims = slices.DeleteFunc(victims, func(v victim) bool { return v.live > 0 })
		r.PacksLeft, err = all-len(victims), nil
		s.index.ballast.lend() // for what waits to be written must be durable before anything is deleted
	}
	if err != nil || len(victims) == 0 {
		return r, wrapReclaim(err)
	}
	s.o.hook("condemn")
	for _, v := range victims {
		v.p.condemned.Store(true)
	}
	if err := s.sweep(ctx, victims, mark, &r); err != nil {
		for _, v := range victims {
			v.p.condemned.Store(false)
		}
		return r, wrapReclaim(err)
	}
	return r, nil
}

func wrapReclaim(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("reclaim: %w", err)
}

// keepEnded makes sessions that end leave behind what they held, or stops that.
func (s *Store) keepEnded(on bool) {
	t := &s.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keep = nil
	if on {
		t.keep = map[Root]bool{}
	}
}

// endPack ends the pack that grows, so that what is dead in it can be given back too. Where it
// cannot be sealed it stays as it is, and is left out.
func (s *Store) endPack() {
	s.appendMu.Lock()
	p := s.cur
	s.cur = nil
	s.appendMu.Unlock()
	if p != nil {
		s.sealLater(p)
	}
}

// sealedPacks returns the packs that can be emptied: those that take no more records.
func (s *Store) sealedPacks() []*pack {
	all := slices.DeleteFunc(s.allPacks(), func(p *pack) bool { return !p.sealed.Load() })
	slices.SortFunc(all, func(a, b *pack) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return all
}

// markAll marks what mark lists and what sessions hold. The sessions are asked
// last: an image that one of them took over from the list, before it left the
// list, is then marked by either.
func (s *Store) markAll(ctx context.Context, mark func(*Keeper) error) (*Keeper, error) {
	k := s.newKeeper(ctx)
	if err := mark(k); err != nil {
		return nil, fmt.Errorf("mark: %w", err)
	}
	if k.err != nil { // mark has swallowed it
		return nil, fmt.Errorf("mark: %w", k.err)
	}
	s.o.hook("marked")
	for _, r := range s.heldRoots() {
		if err := k.Root(r); err != nil {
			return nil, fmt.Errorf("mark what sessions hold: %w", err)
		}
	}
	return k, nil
}

func (s *Store) heldRoots() []Root {
	t := &s.sessions
	t.mu.Lock()
	defer t.mu.Unlock()
	var roots []Root
	for r := range t.keep {
		roots = append(roots, r)
	}
	for _, x := range t.active {
		x.mu.Lock()
		for r := range x.held {
			roots = append(roots, r)
		}
		x.mu.Unlock()
	}
	return roots
}

// choose picks the packs worth emptying. One whose footer is damaged is left to the scrub.
func (s *Store) choose(k *Keeper, candidates []*pack, r *ReclaimReport) ([]victim, error) {
	var victims, small []victim
	for _, p := range candidates {
		entries, err := s.footer(p)
		if errors.Is(err, errNotFooter) {
			s.log.Warn("a pack with a damaged footer is kept", "pack", p.key, "error", err)
			continue
		}
		if err != nil {
			return nil, err
		}
		var live int64
		for i, e := range entries {
			if k.marks[p.id].has(i) {
				live += e.size()
				r.LiveRecords++
			} else {
				r.DeadRecords++
			}
		}
		r.Packs++
		switch size := p.stored.Load(); {
		case live*100 < size*liveShare:
			victims = append(victims, victim{p, entries, live})
		case size < s.o.PackBytes/smallShare:
			small = append(small, victim{p, entries, live})
		}
	}
	if len(small) > smallPacks {
		victims = append(victims, small...)
	}
	return victims, nil
}

// empty copies the live records of the victims elsewhere and makes the copies durable.
func (s *Store) empty(ctx context.Context, victims []victim, k *Keeper, r *ReclaimReport) error {
	var b buffer
	for _, v := range victims {
		for i, e := range v.entries {
			if !k.marks[v.p.id].has(i) {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := s.move(v.p, i, e, &b)
			if err != nil {
				return fmt.Errorf("move a record of %s: %w", v.p.key, err)
			}
			r.BytesMoved += n
		}
	}
	s.o.hook("moved")
	return s.Sync()
}

// move appends a copy of a record to the current pack, if the index still points at it.
func (s *Store) move(p *pack, ord int, e entry, b *buffer) (int64, error) {
	mu := &s.names[e.name[0]]
	mu.Lock()
	defer mu.Unlock()
	at, ok, err := s.index.get(e.name)
	if err != nil || !ok || at.pack != p.id || at.ord != uint32(ord) {
		return 0, err
	}
	body, err := s.record(p, at, e.name, e.kind, 1<<e.log, b)
	if err != nil {
		return 0, err
	}
	h := e.head
	_, err = s.append(h, body)
	return e.size(), err
}

// sweep deletes the condemned packs, once no session can count on them, without
// what a second mark still finds in them.
func (s *Store) sweep(ctx context.Context, victims []victim, mark func(*Keeper) error, r *ReclaimReport) error {
	if err := s.waitSessions(ctx); err != nil {
		return fmt.Errorf("nothing was deleted: writers that began earlier have not ended: %w", err)
	}
	s.o.hook("mark again")
	k, err := s.markAll(ctx, mark)
	if err != nil {
		return fmt.Errorf("nothing was deleted: %w", err)
	}
	if err := s.empty(ctx, victims, k, r); err != nil {
		return err
	}
	for _, v := range victims {
		s.o.hook("delete")
		if err := s.drop(ctx, v); err != nil {
			return err
		}
		r.PacksDeleted++
		r.BytesFreed += v.p.stored.Load()
	}
	return nil
}

// waitSessions returns when all sessions that are active now have ended, but
// for those that only hold images: these are marked.
func (s *Store) waitSessions(ctx context.Context) error {
	t := &s.sessions
	t.mu.Lock()
	last := t.next
	t.mu.Unlock()
	for {
		t.mu.Lock()
		older := false
		for id, x := range t.active {
			older = older || id <= last && x.writes.Load()
		}
		if t.ended == nil {
			t.ended = make(chan struct{})
		}
		ended := t.ended
		t.mu.Unlock()
		if !older {
			return nil
		}
		s.o.hook("wait")
		select {
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drop forgets the records of a pack and deletes it.
func (s *Store) drop(ctx context.Context, v victim) error {
	for i, e := range v.entries {
		if err := s.unindex(v.p, i, e.name); err != nil {
			return err
		}
	}
	if err := s.index.removePack(v.p.id); err != nil {
		return err
	}
	s.packsMu.Lock()
	delete(s.packs, v.p.id)
	s.packsMu.Unlock()
	s.numbers.forget(v.p)
	if err := s.o.Bucket.Delete(ctx, v.p.key); err != nil && !errors.Is(err, object.ErrNotFound) {
		s.packsMu.Lock() // still there, and now without any use: the next Reclaim tries again
		s.packs[v.p.id] = v.p
		s.packsMu.Unlock()
		return fmt.Errorf("delete %s: %w", v.p.key, err)
	}
	return nil
}

func (s *Store) unindex(p *pack, ord int, n Name) error {
	mu := &s.names[n[0]]
	mu.Lock()
	defer mu.Unlock()
	at, ok, err := s.index.get(n)
	if err != nil || !ok || at.pack != p.id || at.ord != uint32(ord) {
		return err
	}
	return s.index.remove(n)
}
