package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"tidemark"
	"tidemark/timeline"
)

// pointsToOpen is how many points of a history are opened.
const pointsToOpen = 1000

// restAfter is how many writes are made between two rests.
const restAfter = 1_000_000

// benchAnyPoint opens points anywhere in histories of very different lengths.
func benchAnyPoint(ctx context.Context, e *env, r *Result) error {
	long := int(e.size(2_000_000, 200_000))
	if e.long {
		long *= 10
	}
	short := long / 10
	for _, h := range []struct {
		what   string
		writes int
	}{{"short", short}, {"long", long}} {
		if err := e.openPoints(ctx, r, h.what, h.writes); err != nil {
			return err
		}
	}
	figure := func(what string, p float64) float64 { return percentile(r.values(tide, what, "ms"), p) }
	r.row(fmt.Sprintf("open one of %d points of %d writes, to its first byte: p99", pointsToOpen, long), figure("long", 99), "ms", atMost(250), atMost(50), "p50 %s ms; a disk of 8 GiB", number(figure("long", 50)))
	r.row("K: the most segments between any point and its image", r.median(tide, "long", "k"), "", atMost(8), atMost(4), "in the shorter history %s", number(r.median(tide, "short", "k")))
	r.row(fmt.Sprintf("p99 ÷ that of a history of %d writes", short), figure("long", 99)/figure("short", 99), "x", atMost(1.2), atMost(1), "p99 %s ms there, p50 %s ms", number(figure("short", 99)), number(figure("short", 50)))
	return nil
}

// openPoints makes a history and opens points of it.
func (e *env) openPoints(ctx context.Context, r *Result, what string, writes int) error {
	w, err := openWorld(fmt.Sprintf("%s/%s", e.disk, what), 0)
	if err != nil {
		return err
	}
	defer w.close()
	const size = 8 << 30
	line, err := w.set.Create(ctx, "history", []timeline.DiskSpec{{Name: "disk", Size: size}}, nil)
	if err != nil {
		return err
	}
	if err := line.SetWindow(timeline.Window{For: 24 * time.Hour}); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(11, uint64(writes)))
	place := func() int64 { // a tenth of the disk takes most of the writes
		if rng.IntN(5) > 0 {
			return rng.Int64N(size/10/4096) * 4096
		}
		return rng.Int64N(size/4096) * 4096
	}
	p := make([]byte, 4096)
	for i := range writes {
		for at := 0; at < 64; at += 8 {
			binary.LittleEndian.PutUint64(p[at*64:], rng.Uint64())
		}
		if _, err := line.Disks()[0].WriteAt(p, place()); err != nil {
			return err
		}
		if i%restAfter == restAfter-1 { // the disk need not hold all of the history before it is packed
			if err := rested(ctx, line); err != nil {
				return err
			}
		}
	}
	if err := rested(ctx, line); err != nil {
		return err
	}
	head, _ := line.Head()
	r.add(Sample{tide, what, 0, map[string]float64{"k": float64(line.K())}})
	for range pointsToOpen {
		pos := 1 + tidemark.Position(rng.Uint64N(uint64(head)))
		begun := time.Now()
		s, err := line.At("disk", pos)
		if err == nil {
			_, err = s.ReadAt(p, place())
		}
		if err != nil {
			return fmt.Errorf("open %v: %w", pos, err)
		}
		r.add(Sample{tide, what, 0, map[string]float64{"ms": float64(time.Since(begun).Microseconds()) / 1000}})
		if err := s.Close(); err != nil {
			return err
		}
	}
	return nil
}

// rested waits until folding has caught up.
func rested(ctx context.Context, line *timeline.Timeline) error {
	if err := line.Disks()[0].Flush(); err != nil {
		return err
	}
	last, since := int64(-1), time.Now()
	const unfolded = 192 << 20 // so much is not folded without being asked
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		if n := line.JournalBytes() + line.StoredBytes() + line.Backlog(); n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) > 4*time.Second && line.Backlog() <= unfolded && line.K() <= timeline.KLimit {
			return line.Trouble()
		}
	}
	return fmt.Errorf("folding does not come to rest: %w", ctx.Err())
}
