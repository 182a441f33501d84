package control

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/catalog"
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
	if tidemark.KindOf(err) != tidemark.Unavailable || os.Remove(c.path("reserve")) != nil {
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

// addJob records a job that begins, if need be with the reserve.
func (c *Control) addJob(ctx context.Context, kind, app string, args any) (*catalog.Job, error) {
	j, err := c.catalog.AddJob(ctx, kind, app, args)
	if err != nil && c.giveReserve(err) {
		j, err = c.catalog.AddJob(ctx, kind, app, args)
	}
	return j, err
}
