package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/image"
	"tidemark/timeline"
)

// coldCache is so small that hardly a read finds its chunk decoded.
const coldCache = 4 << 20

const tideS2 = "tidemark, s2"

// benchCold reads a clone whose chunks must be found in packs and decoded for
// each read; the peer has the same disk uncompressed. The files of both are in
// the page cache.
func benchCold(ctx context.Context, e *env, r *Result) error {
	size := e.size(1<<30, 256<<20)
	raw, data, qcow := e.fast+"/raw", e.fast+"/data", e.fast+"/full.qcow2"
	if err := rawDisk(raw, size); err != nil {
		return err
	}
	if err := fullQcow2(ctx, qcow, raw); err != nil {
		return err
	}
	clone := func(w *world, golden *timeline.Timeline) error {
		_, err := branch(ctx, w, golden, "clone")
		return err
	}
	if err := errors.Join(ours(ctx, data, raw, clone), oursAs(ctx, data+"-s2", raw, image.Options{Fast: true}, clone)); err != nil {
		return err
	}
	t, err := e.serveOurs(ctx, data, e.fast+"/tidemark.sock", coldCache, r.Name)
	if err != nil {
		return err
	}
	defer stopAll(t)
	s2, err := e.serveOurs(ctx, data+"-s2", e.fast+"/tidemark-s2.sock", coldCache, r.Name+"-s2")
	if err != nil {
		return err
	}
	defer stopAll(s2)
	s2.side = tideS2
	q, err := qemuNBD(ctx, qemu, e.fast+"/qemu.sock", "qcow2", qcow)
	if err != nil {
		return err
	}
	defer stopAll(q)
	if err := e.readCold(ctx, r, size, t, s2, q); err != nil {
		return err
	}
	for _, qd := range []string{"QD1", "QD16", "QD64"} {
		p := "randread 4k " + qd
		must, aim := Bound{}, Bound{}
		if qd == "QD16" {
			must, aim = atLeast(1), atLeast(2)
		}
		r.row("4 KiB read of cold chunks "+qd+" ÷ "+qemu, r.ratio(tide, qemu, p, "iops"), "x", must, aim, "%s against %s IOPS; server CPU %s against %s µs",
			thousands(r.median(tide, p, "iops")), thousands(r.median(qemu, p, "iops")), number(r.median(tide, p, "cpu_us")), number(r.median(qemu, p, "cpu_us")))
		r.row("the same, packed with s2", r.ratio(tideS2, qemu, p, "iops"), "x", Bound{}, Bound{}, "%s IOPS; server CPU %s µs", thousands(r.median(tideS2, p, "iops")), number(r.median(tideS2, p, "cpu_us")))
	}
	zstd, err := allocated(data)
	if err != nil {
		return err
	}
	other, err := allocated(data + "-s2")
	if err != nil {
		return err
	}
	r.note("%s MiB of cache for a disk of %s MiB, in chunks of 16 KiB; ours takes %s of the bytes of the uncompressed file with zstd, as the product packs, and %s with s2.",
		number(coldCache>>20), number(float64(size>>20)), number(float64(zstd)/float64(size)), number(float64(other)/float64(size)))
	return nil
}

func (e *env) readCold(ctx context.Context, r *Result, size int64, servers ...*server) error {
	exports := map[string]string{tide: "clone", tideS2: "clone"}
	for round := range e.rounds {
		for _, p := range e.patternsNBD(size)[:3] {
			for _, s := range servers {
				v, err := driveNBD(ctx, s, exports[s.side], p, size)
				if err != nil {
					return fmt.Errorf("%s: %w", s.side, err)
				}
				r.add(Sample{s.side, p.String(), round, v})
			}
		}
		slices.Reverse(servers)
	}
	return nil
}
