package timeline

import (
	"context"
	"errors"
	"runtime"
	"time"

	"tidemark"
	"tidemark/journal"
)

// When space runs out, history of which any point could be had goes, the oldest of all timelines first. Nobody has to wait for
// an operator: writers go on as long as there is history to give. Bookmarks and the present never go.

const (
	roomEvery    = time.Second      // how often free space is looked at
	tendEvery    = time.Minute      // how often windows move on though nothing is folded
	lingerLimit  = time.Second / 4  // how long freed space is waited for
	lingerRest   = 2 * time.Second  // how long what was waited for in vain is left alone
	reclaimLimit = 30 * time.Second // how long a reclaim for space may wait for sessions
	reclaimRest  = 10               // and how long none follows, in multiples of what the last took
	reclaimHaste = 1                // the same, where there is nothing else to give
)

// keeper keeps room on the disk, and windows at their length.
func (s *Set) keeper(ctx context.Context) {
	room, tend := time.NewTicker(roomEvery), time.NewTicker(tendEvery)
	defer room.Stop()
	defer tend.Stop()
	for {
		select {
		case <-ctx.Done():
			s.tellLosses(true)
			return
		case <-room.C:
			s.keepRoom(ctx)
			s.tellLosses(false)
			for _, t := range s.List() {
				t.foldAtRest()
			}
		case <-tend.C:
			for _, t := range s.List() {
				if err := errors.Join(t.trim(ctx), t.shedTail()); err != nil && ctx.Err() == nil {
					s.o.Logger.Error("the window could not be moved on", "timeline", t.Name(), "error", err)
				}
				if t.cold() > 0 && t.asked.CompareAndSwap(false, true) {
					s.askFold(t) // which archives
				}
			}
		}
	}
}

// Room says how much room there is.
type Room struct {
	Free    int64 // bytes, where there are fewest
	Reserve int64 // of them that are kept; 0: none
	// Spent: fewer are free, and there is no history left to give.
	Spent bool
}

// Room returns how much room there is.
func (s *Set) Room() (r Room) {
	for i, dir := range s.places() {
		if u, err := s.o.FS.GetDiskUsage(dir); err == nil && (i == 0 || int64(u.AvailBytes) < r.Free) {
			r = Room{Free: int64(u.AvailBytes), Reserve: s.reserve(int64(u.TotalBytes))}
		}
	}
	r.Spent = s.spent.Load()
	return r
}

// places are the directories on whose file systems room is kept, our own first.
func (s *Set) places() []string {
	if s.o.PoolDir != "" {
		return []string{s.o.Dir, s.o.PoolDir}
	}
	return []string{s.o.Dir}
}

// reserve is how many bytes of a file system of a size are kept free.
func (s *Set) reserve(total int64) int64 {
	switch {
	case s.o.Reserve < 0:
		return 0
	case s.o.Reserve == 0:
		return min(max(total/50, 1<<30), 16<<30, total/10)
	}
	return s.o.Reserve
}

// short returns how many bytes are missing of the reserve in a directory, of which more have to be free, by a part, before that is 0 again.
func (s *Set) short(dir string, more int64) int64 {
	u, err := s.o.FS.GetDiskUsage(dir)
	if err != nil {
		return 0
	}
	reserve := s.reserve(int64(u.TotalBytes))
	return max(0, reserve+reserve/8*more-int64(u.AvailBytes))
}

// keepRoom makes room if less than the reserve is free: first of what is dead in the pool, then of history.
func (s *Set) keepRoom(ctx context.Context) {
	spent := false
	for _, dir := range s.places() {
		if s.short(dir, 0) > 0 && !s.keepPlace(ctx, dir) {
			spent = true
		}
	}
	if ctx.Err() != nil {
		return
	}
	if was := s.spent.Swap(spent); spent {
		s.foldForRoom()
		if !was {
			s.notify("error", "", "the disk is nearly full, and there is no history left to give up: when it is full, writes to what lives here fail, and tapped disks are no longer followed; make room")
		}
	} else if was {
		s.foldAgain()
		s.notify("info", "", "there is room on the disk again")
	}
}

// keepPlace makes room on the file system of a directory. It reports whether that has its reserve again.
func (s *Set) keepPlace(ctx context.Context, dir string) bool {
	for s.short(dir, 1) > 0 && ctx.Err() == nil {
		pool := dir == s.poolPlace()
		if pool && s.reclaimDead(ctx, s.reclaimNext) || s.free(ctx, dir) || pool && s.reclaimDead(ctx, s.reclaimLast) {
			continue
		}
		return s.short(dir, 0) == 0
	}
	return true
}

// poolPlace is the directory on whose file system the pool lies.
func (s *Set) poolPlace() string { return s.places()[len(s.places())-1] }

// reclaimDead gives back what is dead in the pool, if anything may be, but not before a time. It reports whether it tried.
func (s *Set) reclaimDead(ctx context.Context, notBefore time.Time) bool {
	if time.Now().Before(notBefore) || !s.dead.Swap(false) {
		return false
	}
	begun := time.Now()
	bounded, cancel := context.WithTimeout(ctx, reclaimLimit)
	defer cancel()
	r, err := s.store.Reclaim(bounded, s.Keep)
	again := err != nil || r.PacksLeft > 0
	if again {
		s.dead.Store(true)
	}
	if err != nil && ctx.Err() == nil {
		s.o.Logger.Error("the disk is nearly full, and the pool could not be reclaimed", "error", err)
	} else {
		s.o.Logger.Warn("the disk is nearly full: the pool was reclaimed", "freed", r.BytesFreed-r.BytesMoved, "packs left for want of room", r.PacksLeft)
	}
	if err := s.SweepArchives(ctx); err != nil && ctx.Err() == nil {
		s.o.Logger.Error("the archive could not be cleaned up", "error", err)
	}
	took := time.Since(begun)
	s.reclaimNext = time.Now().Add(reclaimRest * took)
	s.reclaimLast = s.reclaimNext
	if !again {
		s.reclaimLast = time.Now().Add(reclaimHaste * took)
	}
	return true
}

// free makes some room on the file system of a directory. It reports whether there was anything to give.
func (s *Set) free(ctx context.Context, dir string) bool {
	s.roomMu.Lock()
	defer s.roomMu.Unlock()
	if dir == s.o.Dir && s.letGo() {
		return true
	}
	switch {
	case s.o.PoolDir == "": // all is on one
		return s.giveUp(ctx, func([]journal.SegmentInfo) bool { return true })
	case dir == s.o.PoolDir:
		return s.giveUp(ctx, func(list []journal.SegmentInfo) bool { return list[0].Archived })
	}
	return s.moveOut(ctx) || s.giveUp(ctx, func(list []journal.SegmentInfo) bool { return !list[len(list)-1].Archived })
}

// moveOut archives all that is folded, though it is not out of the hot set yet. It reports whether there was any.
func (s *Set) moveOut(ctx context.Context) (moved bool) {
	for _, t := range s.List() {
		t.archiveMu.Lock()
		done, err := t.journal.Archive(ctx, t.folded())
		t.archiveMu.Unlock()
		if err != nil && ctx.Err() == nil {
			s.o.Logger.Error("the disk is nearly full, and history could not be moved to the pool", "timeline", t.Name(), "error", err)
		}
		moved = moved || done.Segments > 0
	}
	return moved
}

// giveUp forgets the oldest history of all timelines, as much as is useless without its oldest segment. It reports whether there
// was any. useful says of the segments of a journal that may be forgotten whether that helps. The caller holds roomMu.
func (s *Set) giveUp(ctx context.Context, useful func([]journal.SegmentInfo) bool) bool {
	tried := map[*Timeline]bool{}
	for {
		var oldest *Timeline
		var of journal.SegmentInfo
		for _, t := range s.List() {
			list := t.givable()
			if len(list) > 0 && !tried[t] && (oldest == nil || list[0].Last < of.Last) && useful(list) {
				oldest, of = t, list[0]
			}
		}
		if oldest == nil {
			return false
		}
		freed, err := oldest.giveUp(ctx, of)
		if err != nil && ctx.Err() == nil {
			s.o.Logger.Error("history could not be given up", "timeline", oldest.Name(), "error", err)
		}
		if freed {
			return true
		}
		tried[oldest] = true
	}
}

// givable returns the segments of the journal that only history needs, oldest first.
func (t *Timeline) givable() []journal.SegmentInfo {
	list := t.journal.Segments()
	t.facts.Lock()
	defer t.facts.Unlock()
	n, upTo := 0, t.dispensable()
	for n < len(list)-1 && tidemark.Position(list[n].LastPos) <= upTo {
		n++
	}
	return list[:n]
}

// giveUp forgets history up to and with a segment, and what lies between it and the next image.
func (t *Timeline) giveUp(ctx context.Context, g journal.SegmentInfo) (freed bool, err error) {
	t.lockTrim()
	defer t.trimMu.Unlock()
	before := t.journal.Segments()
	from := t.anyTime()
	t.facts.Lock()
	upTo, removing := min(t.dispensable(), t.usefulFrom(tidemark.Position(g.LastPos))), t.state.Removing
	t.facts.Unlock()
	if removing {
		return false, nil
	}
	err = t.forgetUpTo(ctx, upTo)
	oldest, bytes := t.oldestInJournal(), int64(0)
	for _, s := range before {
		if tidemark.Position(s.LastPos) <= oldest {
			bytes += s.Bytes
			freed = true
		}
	}
	if !freed {
		return false, err
	}
	t.set.letGo()
	return true, errors.Join(err, t.noteLoss(Loss{From: from, To: t.anyTime(), Bytes: bytes, At: t.set.o.Now()}))
}

// letGo lets the space of forgotten segments come back: layers that nobody can reach any more still hold them, and where nobody is let write
// it may be minutes until they are found. It reports whether some came back. Those that somebody reads are not looked for all the time. The caller holds roomMu.
func (s *Set) letGo() bool {
	was := s.lingering()
	if was == 0 || was == s.lingered && time.Since(s.lingeredAt) < lingerRest {
		return false
	}
	s.lingered = was
	for end := time.Now().Add(lingerLimit); s.lingered > 0 && time.Now().Before(end); s.lingered = s.lingering() {
		runtime.GC()
		time.Sleep(lingerLimit / 10)
	}
	s.lingeredAt = time.Now()
	return s.lingered < was
}

// lingering is how many forgotten segments still take space.
func (s *Set) lingering() (n int) {
	for _, t := range s.List() {
		n += t.journal.Lingering()
	}
	return n
}
