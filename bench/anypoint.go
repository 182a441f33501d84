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
	var all []*history
	defer func() {
		for _, h := range all {
			h.w.close()
		}
	}()
	for _, h := range []struct {
		what   string
		writes int
	}{{"short", short}, {"long", long}} {
		made, err := e.newHistory(ctx, h.what, h.writes)
		if err != nil {
			return err
		}
		all = append(all, made)
		r.add(Sample{tide, h.what, 0, map[string]float64{"k": float64(made.line.K())}})
	}
	for range pointsToOpen { // in turn, so that what disturbs one disturbs the other
		for _, h := range all {
			took, err := h.openPoint()
			if err != nil {
				return err
			}
			r.add(Sample{tide, h.what, 0, map[string]float64{"ms": float64(took.Microseconds()) / 1000}})
		}
	}
	figure := func(what string, p float64) float64 { return percentile(r.values(tide, what, "ms"), p) }
	r.row(fmt.Sprintf("open one of %d points of %d writes, to its first byte: p99", pointsToOpen, long), figure("long", 99), "ms", atMost(250), atMost(50), "p50 %s ms; a disk of 8 GiB", number(figure("long", 50)))
	r.row("K: the most segments between any point and its image", r.median(tide, "long", "k"), "", atMost(8), atMost(4), "in the shorter history %s", number(r.median(tide, "short", "k")))
	r.row(fmt.Sprintf("p99 ÷ that of a history of %d writes", short), figure("long", 99)/figure("short", 99), "x", atMost(1.2), atMost(1), "p99 %s ms there, p50 %s ms", number(figure("short", 99)), number(figure("short", 50)))
	return nil
}

// history is a disk of 8 GiB with a past.
type history struct {
	what string
	w    *world
	line *timeline.Timeline
	rng  *rand.Rand
	page []byte
}

// newHistory makes a history of so many writes, and waits until it is folded.
func (e *env) newHistory(ctx context.Context, what string, writes int) (*history, error) {
	w, err := openWorld(fmt.Sprintf("%s/%s", e.disk, what), 0)
	if err != nil {
		return nil, err
	}
	h := &history{what: what, w: w, rng: rand.New(rand.NewPCG(11, uint64(writes))), page: make([]byte, 4096)}
	if err := h.fill(ctx, writes); err != nil {
		w.close()
		return nil, err
	}
	return h, nil
}

const historySize = 8 << 30

func (h *history) fill(ctx context.Context, writes int) (err error) {
	h.line, err = h.w.set.Create(ctx, "history", []timeline.DiskSpec{{Name: "disk", Size: historySize}}, nil)
	if err != nil {
		return err
	}
	if err := h.line.SetWindow(timeline.Window{For: 24 * time.Hour}); err != nil {
		return err
	}
	for i := range writes {
		for at := 0; at < 64; at += 8 {
			binary.LittleEndian.PutUint64(h.page[at*64:], h.rng.Uint64())
		}
		if _, err := h.line.Disks()[0].WriteAt(h.page, h.place()); err != nil {
			return err
		}
		if i%restAfter == restAfter-1 { // the disk need not hold all of the history before it is packed
			if err := rested(ctx, h.line); err != nil {
				return err
			}
		}
	}
	return rested(ctx, h.line)
}

// place is where something is written or read: a tenth of the disk takes most of it.
func (h *history) place() int64 {
	if h.rng.IntN(5) > 0 {
		return h.rng.Int64N(historySize/10/4096) * 4096
	}
	return h.rng.Int64N(historySize/4096) * 4096
}

// openPoint opens a point anywhere, and returns how long it took to its first byte.
func (h *history) openPoint() (time.Duration, error) {
	head, _ := h.line.Head()
	pos := 1 + tidemark.Position(h.rng.Uint64N(uint64(head)))
	begun := time.Now()
	s, err := h.line.At("disk", pos)
	if err != nil {
		return 0, fmt.Errorf("open %v: %w", pos, err)
	}
	defer s.Close()
	if _, err := s.ReadAt(h.page, h.place()); err != nil {
		return 0, fmt.Errorf("read %v: %w", pos, err)
	}
	return time.Since(begun), nil
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
