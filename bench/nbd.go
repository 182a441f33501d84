package main

import (
	"context"
	"fmt"
	"slices"

	"tidemark/timeline"
)

const (
	tide  = "tidemark"
	qemu  = "qemu-nbd qcow2"
	nbdk  = "nbdkit file"
	write = "write 1M QD4"
)

// benchNBD compares servers of one disk: ours a clone of a packed golden disk,
// the peers' a whole file in the page cache.
func benchNBD(ctx context.Context, e *env, r *Result) error {
	size := e.size(1<<30, 128<<20)
	raw, data, qcow := e.fast+"/raw", e.fast+"/data", e.fast+"/full.qcow2"
	if err := rawDisk(raw, size); err != nil {
		return err
	}
	if err := fullQcow2(ctx, qcow, raw); err != nil {
		return err
	}
	err := ours(ctx, data, raw, func(w *world, golden *timeline.Timeline) error {
		// One to read, and a fresh one for each round's sequential write.
		for i := range e.rounds + 1 {
			if _, err := branch(ctx, w, golden, fmt.Sprintf("clone%d", i)); err != nil {
				return err
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
	q, err := qemuNBD(ctx, qemu, e.fast+"/qemu.sock", "qcow2", qcow)
	if err != nil {
		return err
	}
	defer stopAll(q)
	k, err := nbdkitFile(ctx, e.fast+"/nbdkit.sock", raw)
	if err != nil {
		return err
	}
	defer stopAll(k)
	if err := e.roundsNBD(ctx, r, size, t, q, k); err != nil {
		return err
	}
	rowsNBD(r)
	r.note("What is written is hashed, compressed and packed afterwards, when nobody writes: %s µs of CPU for each MiB. Samples wait until that is over.", number(r.median(tide, write, "later_us")))
	r.note("Our server's peak memory was %s MiB, with room for %s MiB of decoded chunks.",
		number(float64(peakRSS(t.cmd.Process.Pid))/(1<<20)), number(float64(size*5/4)/(1<<20)))
	return nil
}

// patternsNBD are the requests that servers are compared by.
func (e *env) patternsNBD(size int64) []pattern {
	return []pattern{
		{rw: "randread", bs: "4k", depth: 1, span: e.span()},
		{rw: "randread", bs: "4k", depth: 16, span: e.span()},
		{rw: "randread", bs: "4k", depth: 64, span: e.span()},
		{rw: "read", bs: "1M", depth: 4, span: e.span()},
		{rw: "write", bs: "1M", depth: 4, bytes: size},
	}
}

func (e *env) roundsNBD(ctx context.Context, r *Result, size int64, servers ...*server) error {
	export := func(s *server, clone int) string {
		if s.side == tide {
			return fmt.Sprintf("clone%d", clone)
		}
		return ""
	}
	for _, s := range servers { // warm
		if _, err := driveNBD(ctx, s, export(s, 0), pattern{rw: "read", bs: "1M", depth: 4, bytes: size}, size); err != nil {
			return err
		}
	}
	for round := range e.rounds {
		order := slices.Clone(servers)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, p := range e.patternsNBD(size) {
			for _, s := range order {
				clone := 0
				if p.rw == "write" {
					clone = round + 1
				}
				v, err := driveNBD(ctx, s, export(s, clone), p, size)
				if err != nil {
					return err
				}
				r.add(Sample{s.side, p.String(), round, v})
			}
		}
	}
	return nil
}

func rowsNBD(r *Result) {
	compare := func(what, p, peer, unit string, must, aim Bound) {
		format := thousands
		if unit == "MB/s" {
			format = number
		}
		r.row(what+" ÷ "+peer, r.ratio(tide, peer, p, unit), "x", must, aim, "%s against %s %s; server CPU %s against %s µs per request",
			format(r.median(tide, p, unit)), format(r.median(peer, p, unit)), unit,
			number(r.median(tide, p, "cpu_us")), number(r.median(peer, p, "cpu_us")))
	}
	const q1, q16, q64 = "randread 4k QD1", "randread 4k QD16", "randread 4k QD64"
	compare("4 KiB random read QD16", q16, qemu, "iops", atLeast(2), atLeast(4.5))
	compare("4 KiB random read QD16", q16, nbdk, "iops", atLeast(1), atLeast(1.3))
	r.row("server CPU per 4 KiB read QD16", r.median(tide, q16, "cpu_us"), "µs", atMost(12), atMost(6), "nbdkit %s, qemu-nbd %s",
		number(r.median(nbdk, q16, "cpu_us")), number(r.median(qemu, q16, "cpu_us")))
	compare("4 KiB random read QD1", q1, qemu, "iops", atLeast(1.5), atLeast(2.5))
	compare("4 KiB random read QD1", q1, nbdk, "iops", Bound{}, Bound{})
	compare("4 KiB random read QD64", q64, qemu, "iops", Bound{}, Bound{})
	compare("4 KiB random read QD64", q64, nbdk, "iops", Bound{}, Bound{})
	for _, p := range []string{"read 1M QD4", write} {
		compare("1 MiB sequential "+p[:len(p)-7], p, qemu, "MB/s", atLeast(1.3), Bound{})
		compare("1 MiB sequential "+p[:len(p)-7], p, nbdk, "MB/s", Bound{}, atLeast(1.4))
	}
}
