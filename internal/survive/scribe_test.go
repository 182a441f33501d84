package survive

import (
	"bytes"
	bits "encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// scribe writes to a tapped disk, one write after the other, and knows what the disk was after each.
type scribe struct {
	t       *testing.T
	f       *os.File
	rng     *rand.Rand
	size    int64
	buf     []byte // aligned, for writes past the kernel's cache
	first   []byte // what the disk was at the beginning
	log     []scrawl
	moments []moment
	slowest time.Duration // that a write took
	end     chan struct{}
	ended   sync.WaitGroup
}

// scrawl is a write; its content follows from its number.
type scrawl struct {
	off, n int64
	number uint64
}

// moment is a time between two writes.
type moment struct {
	when   time.Time
	writes int // so many were done
}

const scrawlMost = 128 << 10

// newScribe begins to write to a device.
func newScribe(x *tapping, size int64) *scribe {
	x.t.Helper()
	first, err := os.ReadFile(x.disk)
	if err != nil {
		x.t.Fatal(err)
	}
	f, err := os.OpenFile(x.device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	buf, err := unix.Mmap(-1, 0, scrawlMost, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		x.t.Fatal(err)
	}
	w := &scribe{t: x.t, f: f, rng: rand.New(rand.NewPCG(x.rng.Uint64(), 2)), size: size, buf: buf, first: first, end: make(chan struct{})}
	w.ended.Go(w.write)
	return w
}

// write writes some 20 MiB in a second until it is told to end.
func (w *scribe) write() {
	for {
		select {
		case <-w.end:
			return
		case <-time.After(3 * time.Millisecond):
		}
		s := scrawl{n: 4096 * (1 + w.rng.Int64N(scrawlMost/4096)), number: w.rng.Uint64()}
		s.off = w.rng.Int64N((w.size-s.n)/4096+1) * 4096
		s.fill(w.buf)
		begun := time.Now()
		_, err := w.f.WriteAt(w.buf[:s.n], s.off)
		if err == nil && len(w.log)%16 == 0 {
			err = w.f.Sync()
		}
		if err != nil {
			w.t.Errorf("production was disturbed: write %d: %v", len(w.log), err)
			return
		}
		w.slowest = max(w.slowest, time.Since(begun))
		w.log = append(w.log, s)
		w.moments = append(w.moments, moment{time.Now(), len(w.log)})
	}
}

// fill puts the content of the write to the beginning of p.
func (s scrawl) fill(p []byte) {
	for at := int64(0); at < s.n; at += 8 {
		bits.LittleEndian.PutUint64(p[at:], s.number+uint64(at))
	}
}

// stop ends the writing.
func (w *scribe) stop() {
	close(w.end)
	w.ended.Wait()
	w.f.Close()
	unix.Munmap(w.buf)
}

// model is what the disk was after so many writes.
func (w *scribe) model(writes int) []byte {
	p := bytes.Clone(w.first)
	for _, s := range w.log[:writes] {
		s.fill(p[s.off:])
	}
	return p
}

// checkMoments asks for moments of the time in which w wrote: those within a gap are refused, the others are what the disk was. Of
// what was given up for space nothing is asked.
func (x *tapping) checkMoments(w *scribe, most int) (shown, refused int) {
	x.t.Helper()
	gaps := ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Gaps
	lost := ask[tidemark.Status](x.stage, "status").Applications[0].Lost
	out := filepath.Join(x.dir, "then")
	for range 50 * most {
		if shown >= most && refused >= most {
			break
		}
		m := w.moments[x.rng.IntN(len(w.moments))]
		in := inside(gaps, m.when)
		if in && refused >= most || !in && shown >= most || lost != nil && !m.when.After(lost.To) {
			continue
		}
		ref := "prod@" + m.when.UTC().Format(time.RFC3339Nano)
		if in {
			x.refused([]string{"has no points between"}, "restore", ref, "--to", out, "--force")
			refused++
			continue
		}
		x.run("restore", ref, "--to", out, "--force")
		have, err := os.ReadFile(out)
		if err != nil {
			x.t.Fatal(err)
		}
		if want := w.model(m.writes); !bytes.Equal(have, want) {
			x.t.Fatalf("%s is not what the disk was after %d of %d writes: %s; gaps %+v", ref, m.writes, len(w.log), differs(have, want), gaps)
		}
		shown++
	}
	return shown, refused
}

func inside(gaps []tidemark.Interval, when time.Time) bool {
	for _, g := range gaps {
		if when.After(g.From) && (g.To.IsZero() || when.Before(g.To)) {
			return true
		}
	}
	return false
}
