package image

import (
	"log/slog"
	"sync"
	"time"

	"tidemark/internal/vfs"
)

// ballastSize is room for a few flushes and compactions of the index.
const ballastSize = 32 << 20

// ballast is a file whose only use is to be deleted. Pebble ends the process
// when it cannot write; a full disk must not do that to the server. So when the
// disk is full the index gets the ballast's room, and if that is used up as well it waits for
// somebody to make more. Meanwhile packs cannot grow, their writers get errors, and the
// index has next to nothing to write.
type ballast struct {
	fs   vfs.FS
	dir  string
	log  *slog.Logger
	mu   sync.Mutex
	have bool
	used bool          // and not there again
	stop chan struct{} // closed when nobody may wait any longer
}

func newBallast(fs vfs.FS, dir string, log *slog.Logger) *ballast {
	b := &ballast{fs: fs, dir: dir, log: log, stop: make(chan struct{})}
	b.refill()
	return b
}

func (b *ballast) path() string { return b.fs.PathJoin(b.dir, "ballast") }

// refill takes the room if there is plenty.
func (b *ballast) refill() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.have || !b.roomFor(4*ballastSize) {
		return
	}
	f, err := vfs.Create(b.fs, b.path())
	if err != nil {
		return
	}
	// Nothing depends on the content, nor on this to succeed.
	err = f.Preallocate(0, ballastSize)
	b.have = f.Close() == nil && err == nil
	b.used = b.used && !b.have
}

// roomFor reports whether n bytes are free, as far as can be known.
func (b *ballast) roomFor(n uint64) bool {
	u, err := b.fs.GetDiskUsage(b.dir)
	return err != nil || u.AvailBytes >= n
}

// lend gives the room to one who makes more of it, and then refills.
func (b *ballast) lend() {
	b.mu.Lock()
	have := b.have
	b.have = false
	b.mu.Unlock()
	if have && b.fs.Remove(b.path()) == nil {
		b.log.Warn("the disk is full: a reclaim uses the reserve of the chunk index", "dir", b.dir)
	}
}

// full is called when the index met a full disk; what failed is tried once
// more when it returns.
func (b *ballast) full() {
	b.mu.Lock()
	have := b.have
	b.have, b.used = false, true
	b.mu.Unlock()
	if have && b.fs.Remove(b.path()) == nil {
		b.log.Error("the disk is full: the chunk index uses its reserve", "dir", b.dir)
		return
	}
	b.log.Error("the disk is full: the chunk index waits for room", "dir", b.dir)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !b.roomFor(1 << 20) {
		select {
		case <-b.stop:
			return
		case <-tick.C:
		}
	}
}

// spent reports whether the reserve is used up.
func (b *ballast) spent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used && !b.roomFor(ballastSize)
}
