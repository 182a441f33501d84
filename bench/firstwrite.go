package main

import (
	"context"
	"fmt"

	"tidemark/timeline"
)

const extl2 = "qcow2 extended_l2"

// benchFirstWrite writes each block of a fresh clone once, at random, and then
// the same blocks again.
func benchFirstWrite(ctx context.Context, e *env, r *Result) error {
	size := e.size(1<<30, 256<<20)
	raw, data := e.fast+"/raw", e.fast+"/data"
	if err := rawDisk(raw, size); err != nil {
		return err
	}
	depths := []int{1, 16}
	err := ours(ctx, data, raw, func(w *world, golden *timeline.Timeline) error {
		for round := range e.rounds {
			for _, depth := range depths {
				if _, err := branch(ctx, w, golden, cloneName(round, depth)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	t, err := e.serveOurs(ctx, data, e.fast+"/tidemark.sock", size*5/4, r.Name)
	if err != nil {
		return err
	}
	defer stopAll(t)
	for round := range e.rounds {
		for _, depth := range depths {
			// The file grows by whole steps ahead of the writes, so few bytes would not tell.
			p := pattern{rw: "randwrite", bs: "4k", depth: depth, bytes: size / 8, seed: 77 + round}
			if err := firstWrites(ctx, t, r, round, cloneName(round, depth), p, size, data); err != nil {
				return err
			}
			for _, side := range []string{qemu, extl2} {
				if err := e.overlayWrites(ctx, r, side, round, p, size, raw); err != nil {
					return err
				}
			}
		}
	}
	rowsFirstWrite(r)
	return r.noteFolded(ctx, e, t, data, depths, size/8)
}

func cloneName(round, depth int) string { return fmt.Sprintf("clone-%d-%d", round, depth) }

// overlayWrites is one peer's turn: a fresh overlay, served by a fresh qemu-nbd.
func (e *env) overlayWrites(ctx context.Context, r *Result, side string, round int, p pattern, size int64, raw string) error {
	file := e.fast + "/overlay.qcow2"
	args := []string{"qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw"}
	if side == extl2 {
		args = append(args, "-o", "extended_l2=on,cluster_size=128k")
	}
	if _, err := run(ctx, append(args, file)...); err != nil {
		return err
	}
	s, err := qemuNBD(ctx, side, e.fast+"/qemu.sock", "qcow2", file)
	if err != nil {
		return err
	}
	defer stopAll(s)
	return firstWrites(ctx, s, r, round, "", p, size, file)
}

// firstWrites takes the samples "first" and "again" of one fresh clone. stored
// is where the server keeps what is written.
func firstWrites(ctx context.Context, s *server, r *Result, round int, export string, p pattern, size int64, stored string) error {
	before, err := allocated(stored)
	if err != nil {
		return err
	}
	for _, pass := range []string{"first", "again"} {
		v, err := driveNBD(ctx, s, export, p, size)
		if err != nil {
			return err
		}
		if pass == "first" {
			after, err := allocated(stored)
			if err != nil {
				return err
			}
			v["growth"] = float64(after-before) / (v["ios"] * 4096)
		}
		r.add(Sample{s.side, fmt.Sprintf("%s %s", pass, p), round, v})
	}
	return nil
}

func rowsFirstWrite(r *Result) {
	for _, q := range []struct {
		name      string
		must, aim Bound
	}{{"QD16", atLeast(2), atLeast(4)}, {"QD1", Bound{}, atLeast(7)}} {
		first, again := "first randwrite 4k "+q.name, "again randwrite 4k "+q.name
		for _, peer := range []string{qemu, extl2} {
			must, aim := q.must, q.aim
			if peer == extl2 {
				must, aim = Bound{}, Bound{}
			}
			r.row("first 4 KiB write "+q.name+" ÷ "+peer, r.ratio(tide, peer, first, "iops"), "x", must, aim,
				"%s against %s IOPS; server CPU %s against %s µs", thousands(r.median(tide, first, "iops")), thousands(r.median(peer, first, "iops")),
				number(r.median(tide, first, "cpu_us")), number(r.median(peer, first, "cpu_us")))
		}
		ours, theirs := r.median(tide, first, "iops")/r.median(tide, again, "iops"), r.median(qemu, first, "iops")/r.median(qemu, again, "iops")
		r.row("first ÷ again "+q.name, ours, "x", atLeast(0.9), atLeast(1), "%s and %s IOPS; qcow2 %s", thousands(r.median(tide, first, "iops")), thousands(r.median(tide, again, "iops")), number(theirs))
		r.row("growth ÷ bytes written "+q.name, r.median(tide, first, "growth"), "x", atMost(1.1), atMost(1.02),
			"journal as allocated; qcow2 %s, extended_l2 %s", number(r.median(qemu, first, "growth")), number(r.median(extl2, first, "growth")))
	}
}

// noteFolded stops the server and says what the same writes take once they are
// in images.
func (r *Result) noteFolded(ctx context.Context, e *env, s *server, data string, depths []int, written int64) error {
	if err := s.stop(); err != nil {
		return err
	}
	w, err := openWorld(data, 0)
	if err != nil {
		return err
	}
	defer w.close()
	var stored, n int64
	for round := range e.rounds {
		for _, depth := range depths {
			t, err := w.named(cloneName(round, depth))
			if err != nil {
				return err
			}
			if _, err := t.Bookmark(timeline.Mark{Name: "written"}); err != nil {
				return err
			}
			if err := t.Fold(ctx); err != nil {
				return err
			}
			stored += t.StoredBytes()
			n++
		}
	}
	r.note("Folded into images, the %s MiB that each clone wrote at random 4 KiB places take %s of their bytes (fio's buffers, which hardly compress; both passes wrote the same places).",
		number(float64(written)/(1<<20)), number(float64(stored)/float64(n*written)))
	return nil
}
