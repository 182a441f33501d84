package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/catalog"
	"tidemark/internal/vfs"
)

// reserveSize is room for some hundred entries of the catalog, and for the few
// small files that a removal writes.
const reserveSize = 8 << 20

// A full disk must not keep anybody from making room on it: to delete and to
// reclaim are jobs, and a job has to be recorded. So some room is held by a
// file, which is given up when the catalog finds the disk full, and taken again
// when there is plenty.

// giveReserve gives the reserve up if err is that of a full disk; then what failed may be tried again.
func (c *Control) giveReserve(err error) bool {
	if tidemark.KindOf(err) != tidemark.Unavailable || errors.Is(err, catalog.ErrAway) || os.Remove(c.path("reserve")) != nil {
		return false
	}
	c.log.Error("the disk is full: the catalog uses its reserve", "dir", c.o.Dir)
	return true
}

// keepReserve takes the reserve if there is plenty of room. Nothing depends on it to succeed.
func (c *Control) keepReserve() {
	st, err := statfs(c.o.Dir)
	if err != nil || int64(st.Bavail)*st.Bsize < 8*reserveSize {
		return
	}
	f, err := os.OpenFile(c.path("reserve"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, reserveSize); err != nil {
		c.log.Warn("no room is reserved for a full disk", "error", err)
	}
	f.Close() // it has no content that could be lost
}

// addJob records a job, if need be with the reserve.
func (c *Control) addJob(ctx context.Context, n catalog.NewJob) (*catalog.Job, error) {
	j, err := c.catalog.Enqueue(ctx, n, c.limits())
	if err != nil && c.giveReserve(err) {
		j, err = c.catalog.Enqueue(ctx, n, c.limits())
	}
	return j, err
}

// hotBytes is how much history of each journal is kept beside a pool that is on another file system, unless the operator says.
const hotBytes = 1 << 30

// poolApart reports whether the pool is on another file system than the journals.
func (c *Control) poolApart() (bool, error) {
	if err := vfs.MkdirAll(vfs.OS, c.path("timelines")); err != nil {
		return false, err
	}
	var pool, journals unix.Stat_t
	if err := unix.Stat(c.path("pool"), &pool); err != nil {
		return false, fmt.Errorf("look at the pool: %w", err)
	}
	if err := unix.Stat(c.path("timelines"), &journals); err != nil {
		return false, fmt.Errorf("look at the journals: %w", err)
	}
	return pool.Dev != journals.Dev, nil
}

// notify tells what timelines have to say, in the catalog and, loudly, in the log.
func (c *Control) notify(level, application, message string) error {
	if level == "error" {
		c.log.Error(message, "application", application)
	} else {
		c.log.Warn(message, "application", application)
		c.keepReserve() // there is room again
	}
	return c.addEvent(level, application, "", message) // the timelines may be opened just now
}

// spaceStatus says how much room there is, and warns of what it costs that there is too little.
func (c *Control) spaceStatus(s *tidemark.Status) {
	r := c.set.Room()
	s.Pool.ReserveBytes = r.Reserve
	switch {
	case r.Spent:
		s.Warnings = append(s.Warnings, fmt.Sprintf("the disk is nearly full (%s free), and there is no history left to give up: when it is full, writes to what lives here fail, and tapped disks are no longer followed",
			tidemark.FormatSize(r.Free)))
	case r.Free < r.Reserve:
		s.Warnings = append(s.Warnings, fmt.Sprintf("the disk is nearly full: %s are free, and %s are kept by giving up the oldest any-point history",
			tidemark.FormatSize(r.Free), tidemark.FormatSize(r.Reserve)))
	}
	for i := range s.Applications {
		a := &s.Applications[i]
		if l := a.Lost; l != nil {
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s lost its any-point history from %s to %s, for the disk ran out of space; bookmarks are kept",
				a.Name, l.From.Local().Format(time.RFC3339), l.To.Local().Format(time.RFC3339)))
		}
	}
}
