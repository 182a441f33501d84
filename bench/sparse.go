package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"tidemark/image"
	"tidemark/timeline"
)

// benchSparse times the verbs on a disk that is large and mostly empty.
func benchSparse(ctx context.Context, e *env, r *Result) error {
	const disk = 1 << 40
	held := e.size(1<<30, 64<<20)
	dir := e.disk + "/data"
	w, err := openWorld(dir, 0)
	if err != nil {
		return err
	}
	defer func() { w.close() }()
	clock := stopwatch{r: r}
	var t *timeline.Timeline
	for i := range e.rounds {
		err := clock.time("create", i, func() (err error) {
			t, err = w.set.Create(ctx, fmt.Sprintf("sparse%d", i), []timeline.DiskSpec{{Name: "disk", Size: disk, Chunk: image.DefaultChunk}}, nil)
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := scatter(ctx, t, held); err != nil {
		return err
	}
	for i := range e.rounds {
		if err := verbs(ctx, w, t, &clock, i); err != nil {
			return err
		}
	}
	for i := range e.rounds {
		if err := w.close(); err != nil {
			return err
		}
		err := clock.time("open after restart", i, func() (err error) {
			w, err = openWorld(dir, 0)
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, what := range []string{"create", "commit 1 MiB", "commit 1 MiB scattered", "diff", "clone", "open point", "open after restart"} {
		limit := atMost(50)
		if what == "open after restart" {
			limit = Bound{}
		}
		r.row(what, r.median(tide, what, "ms"), "ms", limit, Bound{}, "1 TiB that holds %s MiB, on %s", number(float64(held>>20)), "a disk")
	}
	r.note("A commit is a bookmark and the fold that makes it an image, both durable, after 1 MiB was written in one piece, or as 256 blocks all over the disk. " +
		"Opening a point includes its first read. Opening after a restart is that of the whole data directory, all timelines and the index.")
	return nil
}

// stopwatch adds samples of how long calls take.
type stopwatch struct{ r *Result }

func (s *stopwatch) time(what string, round int, fn func() error) error {
	begin := time.Now()
	err := fn()
	s.r.add(Sample{tide, what, round, map[string]float64{"ms": float64(time.Since(begin).Microseconds()) / 1e3}})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// scatter fills a disk with pieces of 64 KiB at random places.
func scatter(ctx context.Context, t *timeline.Timeline, held int64) error {
	disk, rng, p := t.Disks()[0], rand.New(rand.NewPCG(5, 6)), make([]byte, 64<<10)
	t.SetBulk(true)
	defer t.SetBulk(false)
	for done := int64(0); done < held; done += int64(len(p)) {
		content(rng, p)
		if _, err := disk.WriteAt(p, rng.Int64N(disk.Size()/int64(len(p)))*int64(len(p))); err != nil {
			return err
		}
	}
	if _, err := t.Bookmark(timeline.Mark{Name: "full"}); err != nil {
		return err
	}
	return t.Fold(ctx)
}

// verbs times one round of what is done to the disk.
func verbs(ctx context.Context, w *world, t *timeline.Timeline, clock *stopwatch, round int) error {
	before, _ := t.Head()
	for _, way := range []struct {
		what  string
		piece int
	}{{"commit 1 MiB", 1 << 20}, {"commit 1 MiB scattered", 4096}} {
		if err := change(t, way.piece, uint64(round)); err != nil {
			return err
		}
		err := clock.time(way.what, round, func() error {
			if _, err := t.Bookmark(timeline.Mark{Name: fmt.Sprint(way.piece, "-", round)}); err != nil {
				return err
			}
			return t.Fold(ctx)
		})
		if err != nil {
			return err
		}
	}
	after, _ := t.Head()
	if err := timeDiff(ctx, w, t, clock, round); err != nil {
		return err
	}
	err := clock.time("clone", round, func() error {
		_, err := t.Branch(ctx, fmt.Sprintf("clone%d", round), before, nil, nil)
		return err
	})
	if err != nil {
		return err
	}
	return clock.time("open point", round, func() error {
		s, err := t.At("disk", after)
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.ReadAt(make([]byte, 4096), 0)
		return err
	})
}

// change writes 1 MiB in pieces at random places.
func change(t *timeline.Timeline, piece int, seed uint64) error {
	disk, rng, p := t.Disks()[0], rand.New(rand.NewPCG(seed, uint64(piece))), make([]byte, piece)
	for range (1 << 20) / piece {
		content(rng, p)
		if _, err := disk.WriteAt(p, rng.Int64N(disk.Size()/int64(piece))*int64(piece)); err != nil {
			return err
		}
	}
	return nil
}

// timeDiff compares the newest image with the first.
func timeDiff(ctx context.Context, w *world, t *timeline.Timeline, clock *stopwatch, round int) error {
	x := w.store.Begin()
	defer x.End()
	points := t.Points()
	first, err := t.Root(ctx, x, "disk", points[0].Position)
	if err != nil {
		return err
	}
	last, err := t.Root(ctx, x, "disk", points[len(points)-1].Position)
	if err != nil {
		return err
	}
	var chunks int
	err = clock.time("diff", round, func() error {
		return w.store.Diff(first, last, func(int64, image.Name, image.Name) error { chunks++; return nil })
	})
	if err == nil && chunks == 0 {
		return fmt.Errorf("diff found nothing between %v and %v", points[0].Position, points[len(points)-1].Position)
	}
	return err
}
