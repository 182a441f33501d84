package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tidemark/internal/vfs"
	"tidemark/journal"
)

const fsyncEach = "fdatasync each"

// benchJournal lets writers append 4 KiB and wait until that is durable, and
// compares with one writer that syncs each of its records by itself.
func benchJournal(ctx context.Context, e *env, r *Result) error {
	span := 2 * e.span()
	type turn struct {
		side string
		take func(round int) (float64, error)
	}
	var turns []turn
	for _, writers := range []int{1, 16, 64, 256} {
		turns = append(turns, turn{tide, func(round int) (float64, error) {
			return durable(fmt.Sprintf("%s/journal-%d-%d", e.disk, writers, round), writers, 1, span)
		}})
	}
	turns = append(turns, turn{tide, func(round int) (float64, error) {
		return durable(fmt.Sprintf("%s/journal-window-%d", e.disk, round), 4, asyncWindow, span)
	}})
	turns = append(turns, turn{fsyncEach, func(round int) (float64, error) { return syncEach(e.disk+"/each", span) }})
	names := []string{"1 writer", "16 writers", "64 writers", "256 writers", "4 writers, a window each", "1 writer"}
	for round := range e.rounds {
		order := []int{0, 1, 2, 3, 4, 5}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, i := range order {
			rate, err := turns[i].take(round)
			if err != nil {
				return err
			}
			what := names[i]
			if turns[i].side == fsyncEach {
				for _, what := range names[:4] { // the same for however many
					r.add(Sample{fsyncEach, what, round, map[string]float64{"iops": rate}})
				}
				continue
			}
			r.add(Sample{tide, what, round, map[string]float64{"iops": rate}})
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	for _, what := range names[:4] {
		must := Bound{}
		if what == "64 writers" {
			must = atLeast(15)
		}
		r.row("durable 4 KiB records, "+what+" ÷ fdatasync each", r.ratio(tide, fsyncEach, what, "iops"), "x", must, Bound{},
			"%s against %s records/s", thousands(r.median(tide, what, "iops")), thousands(r.median(fsyncEach, what, "iops")))
	}
	r.row("4 KiB records, made durable in the background: 4 writers with 64 on their way each", r.median(tide, names[4], "iops")/1000, "k/s", atLeast(150), atLeast(250), "on a disk, as the changes of a tap are")
	r.row("durable 4 KiB records, 64 writers", r.median(tide, "64 writers", "iops")/1000, "k/s", Bound{}, atLeast(100), "on a disk; writers and journal share the cores")
	return nil
}

// asyncWindow is how many records a writer that does not wait for each has on their way.
const asyncWindow = 64

// durable returns the records per second that writers append to a journal, each
// waiting for its own to be durable after every window of so many.
func durable(dir string, writers, window int, span time.Duration) (float64, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	j, err := journal.Open(vfs.OS, dir, journal.Options{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return 0, err
	}
	defer j.Close()
	var records atomic.Int64
	var failure atomic.Value
	var group sync.WaitGroup
	begin := time.Now()
	end := begin.Add(span)
	for i := range writers {
		group.Go(func() {
			p := make([]byte, 4096)
			content(rand.New(rand.NewPCG(7, uint64(i))), p)
			for time.Now().Before(end) {
				if err := appendDurably(j, p, int64(i)*4096, window); err != nil {
					failure.Store(err)
					return
				}
				records.Add(int64(window))
			}
		})
	}
	group.Wait()
	took := time.Since(begin)
	if err, ok := failure.Load().(error); ok {
		return 0, err
	}
	return float64(records.Load()) / took.Seconds(), nil
}

func appendDurably(j *journal.Journal, p []byte, off int64, n int) error {
	for range n {
		if _, err := j.Append(&journal.Record{Kind: journal.Write, Off: off, Len: int64(len(p)), Payload: p}); err != nil {
			return err
		}
	}
	return j.Sync()
}

// syncEach returns the records per second that a plain loop of write and
// fdatasync reaches on a file whose space is there already.
func syncEach(file string, span time.Duration) (float64, error) {
	const space = 256 << 20
	f, err := os.Create(file)
	if err != nil {
		return 0, err
	}
	defer os.Remove(file)
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, space); err != nil {
		return 0, err
	}
	p := make([]byte, 4096)
	content(rand.New(rand.NewPCG(8, 8)), p)
	n, begin := 0, time.Now()
	for ; time.Since(begin) < span; n++ {
		if _, err := f.WriteAt(p, int64(n)*4096%space); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(begin).Seconds(), nil
}
