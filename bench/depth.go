package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"tidemark/timeline"
)

// benchDepth reads a clone, the 20th clone of a clone, and the 1,000th; each
// clone on the way was written to.
func benchDepth(ctx context.Context, e *env, r *Result) error {
	size := e.size(512<<20, 64<<20)
	deepest := 1000
	if e.quick {
		deepest = 50
	}
	depths := []int{1, 20, deepest}
	raw, data := e.fast+"/raw", e.fast+"/data"
	if err := rawDisk(raw, size); err != nil {
		return err
	}
	if err := ours(ctx, data, raw, func(w *world, golden *timeline.Timeline) error {
		return chain(ctx, w, golden, deepest)
	}); err != nil {
		return err
	}
	t, err := e.serveOurs(ctx, data, e.fast+"/tidemark.sock", 2*size, r.Name)
	if err != nil {
		return err
	}
	defer stopAll(t)
	peers, err := e.qcowChain(ctx, raw, size)
	defer func() { stopAll(peers...) }()
	if err != nil {
		return err
	}
	if err := e.readDepths(ctx, r, t, peers, size, depths); err != nil {
		return err
	}
	for _, qd := range []string{"QD1", "QD16", "QD64"} {
		one := "depth 1 randread 4k " + qd
		for _, d := range depths[1:] {
			must, aim := Bound{}, Bound{}
			if qd == "QD16" {
				must, aim = atLeast(0.9), atLeast(0.98)
			}
			deep := fmt.Sprintf("depth %d randread 4k %s", d, qd)
			peer := ""
			if d == 20 {
				peer = "; qcow2 " + number(r.median(qemu, deep, "iops")/r.median(qemu, one, "iops"))
			}
			r.row(fmt.Sprintf("4 KiB read %s, depth %d ÷ depth 1", qd, d), r.across(tide, deep, one, "iops"), "x", must, aim,
				"%s against %s IOPS; CPU %s against %s µs%s", thousands(r.median(tide, deep, "iops")), thousands(r.median(tide, one, "iops")),
				number(r.median(tide, deep, "cpu_us")), number(r.median(tide, one, "cpu_us")), peer)
		}
	}
	return nil
}

// across is the median over rounds of one of a side's samples over another.
func (r *Result) across(side, what, over, unit string) float64 {
	other := &Result{}
	for _, s := range r.Samples {
		if s.Side == side && (s.What == what || s.What == over) {
			other.add(Sample{s.What, "", s.Round, s.Value})
		}
	}
	return other.ratio(what, over, "", unit)
}

// chain makes clones of clones down to a depth, each with 64 blocks of its own.
func chain(ctx context.Context, w *world, golden *timeline.Timeline, deepest int) error {
	rng := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 4096)
	at := golden
	for depth := 1; depth <= deepest; depth++ {
		next, err := branch(ctx, w, at, fmt.Sprintf("depth%d", depth))
		if err != nil {
			return fmt.Errorf("depth %d: %w", depth, err)
		}
		disk := next.Disks()[0]
		for range 64 {
			content(rng, p)
			if _, err := disk.WriteAt(p, rng.Int64N(disk.Size()/4096)*4096); err != nil {
				return err
			}
		}
		at = next
	}
	return nil
}

// qcowChain serves overlays at depth 1 and 20, written to as much as ours.
func (e *env) qcowChain(ctx context.Context, raw string, size int64) ([]*server, error) {
	var servers []*server
	base, format := raw, "raw"
	for depth := 1; depth <= 20; depth++ {
		file := fmt.Sprintf("%s/chain%d.qcow2", e.fast, depth)
		if err := overlay(ctx, file, base, format); err != nil {
			return servers, err
		}
		s, err := qemuNBD(ctx, qemu, fmt.Sprintf("%s/chain%d.sock", e.fast, depth), "qcow2", file)
		if err != nil {
			return servers, err
		}
		_, err = driveNBD(ctx, s, "", pattern{rw: "randwrite", bs: "4k", depth: 16, bytes: 64 * 4096, seed: depth}, size)
		stopAll(s)
		if err != nil {
			return servers, err
		}
		if depth == 1 || depth == 20 {
			copied := file
			if depth == 1 { // depth 2 reads it; serve a sibling
				copied = e.fast + "/first.qcow2"
				if _, err := run(ctx, "cp", file, copied); err != nil {
					return servers, err
				}
			}
			s, err := qemuNBD(ctx, qemu, fmt.Sprintf("%s/serve%d.sock", e.fast, depth), "qcow2", copied)
			if err != nil {
				return servers, err
			}
			s.export = fmt.Sprint(depth)
			servers = append(servers, s)
		}
		base, format = file, "qcow2"
	}
	return servers, nil
}

// readDepths takes turns between all depths of all sides.
func (e *env) readDepths(ctx context.Context, r *Result, t *server, peers []*server, size int64, depths []int) error {
	type turn struct {
		s             *server
		export, label string
	}
	var turns []turn
	for _, d := range depths {
		turns = append(turns, turn{t, fmt.Sprintf("depth%d", d), fmt.Sprintf("depth %d", d)})
	}
	for _, s := range peers {
		turns = append(turns, turn{s, "", "depth " + s.export})
	}
	for _, x := range turns { // warm
		if _, err := driveNBD(ctx, x.s, x.export, pattern{rw: "read", bs: "1M", depth: 4, bytes: size}, size); err != nil {
			return err
		}
	}
	for round := range e.rounds {
		for _, p := range e.patternsNBD(size)[:3] {
			order := slices.Clone(turns)
			if round%2 == 1 {
				slices.Reverse(order)
			}
			for _, x := range order {
				v, err := driveNBD(ctx, x.s, x.export, p, size)
				if err != nil {
					return err
				}
				r.add(Sample{x.s.side, x.label + " " + p.String(), round, v})
			}
		}
	}
	return nil
}
