package timeline

import (
	"context"
	"errors"
	"syscall"
	"time"

	"tidemark"
	"tidemark/journal"
)

// What is written has to be folded before it is history that can be given up, and that takes room. So writers leave room for it:
// they wait for a fold rather than fill the disk, and are refused only if there is nothing to fold and nothing to give.

const (
	admitStep    = 1 << 20          // how much is written between looks at the free space
	foldFloor    = 1 << 30          // of the reserve, what folds may take and writers may not, at most
	urgentFold   = 8 << 20          // the least backlog that is folded to make room
	foldPatience = 60 * time.Second // how long a writer waits for a fold
	foldLook     = 5 * time.Millisecond
)

// withRoom runs a step that changes nothing when it meets a full disk, and makes room as long as it does.
func (t *Timeline) withRoom(step func() error) error {
	for {
		err := step()
		if err == nil || !noSpace(err) || !t.set.freeFullest() {
			return err
		}
	}
}

// write runs a step that appends a payload of n bytes to the journal, when there is room.
func (t *Timeline) write(n int, step func() error) error {
	for {
		err := t.admit(n)
		if err == nil {
			err = step()
		}
		if err == nil || !noSpace(err) || !t.awaitFold() && !t.set.freeFullest() {
			return err
		}
	}
}

// admit refuses n more bytes if they would take the room that it takes to fold the backlog.
func (t *Timeline) admit(n int) error {
	if t.unlooked.Add(int64(n)) < admitStep && !t.tight.Load() || t.set.o.Reserve < 0 {
		return nil
	}
	t.unlooked.Store(0)
	u, err := t.set.o.FS.GetDiskUsage(t.set.o.Dir)
	if err != nil {
		return nil // the write will tell
	}
	free, need := int64(u.AvailBytes)-min(t.set.reserve(int64(u.TotalBytes))/2, foldFloor), t.foldNeed()
	if free < 2*need && t.backlog.Load() > urgentFold {
		t.urgent.Store(true)
		t.wroteSome()
	}
	t.tight.Store(free < need)
	if free < need {
		return tidemark.Errorf(tidemark.Unavailable, "%w: what is free is needed to fold what was written", journal.ErrNoSpace)
	}
	return nil
}

// foldNeed is how many bytes a fold of the backlog may take where the journal is: what is frozen for each cut, and what was written since, becomes an image of
// its own, and until the last one is made none of the journal may be history that can be given up.
func (t *Timeline) foldNeed() int64 {
	if t.set.o.PoolDir != "" {
		return 0
	}
	size := int64(0)
	for _, d := range t.disks {
		size += d.size
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	need := min(size, t.sinceCut.Load())
	for _, c := range t.cuts {
		need += min(size, c.bytes)
	}
	return need
}

// awaitFold waits until some of what was written is folded: then there is history to give, or less to be kept. It reports
// false if that cannot be waited for.
func (t *Timeline) awaitFold() bool {
	if t.set.o.Manual || t.backlog.Load() <= urgentFold {
		return false
	}
	defer t.set.hurry()()
	before := t.folded()
	for end := time.Now().Add(foldPatience); time.Now().Before(end); time.Sleep(foldLook) {
		if t.folded() > before {
			return true
		}
		if t.resting.Load() || t.set.run.Err() != nil || t.removed() {
			return false
		}
		t.urgent.Store(true)
		t.wroteSome()
	}
	return false
}

// foldForRoom asks for folds of what is not history yet, so that it can be given up, or takes less.
func (s *Set) foldForRoom() {
	for _, t := range s.List() {
		if t.backlog.Load() > urgentFold {
			t.urgent.Store(true)
			t.wroteSome()
		}
	}
}

// foldAgain lets folds that failed be tried again, now that there is room.
func (s *Set) foldAgain() {
	for _, t := range s.List() {
		if t.resting.Swap(false) {
			s.askFold(t)
		}
	}
}

// freeFullest makes some room where there is least.
func (s *Set) freeFullest() bool {
	dir := s.o.Dir
	if s.o.PoolDir != "" {
		here, err := s.o.FS.GetDiskUsage(s.o.Dir)
		pool, e := s.o.FS.GetDiskUsage(s.o.PoolDir)
		if err != nil || e != nil || pool.AvailBytes < here.AvailBytes {
			dir = s.o.PoolDir
		}
	}
	return s.free(context.Background(), dir)
}

func noSpace(err error) bool {
	return errors.Is(err, journal.ErrNoSpace) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func fromNano(t int64) time.Time { return time.Unix(0, t).UTC() }
