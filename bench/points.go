package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"tidemark"
	"tidemark/timeline"
)

// manyPoints are the points that are listed, and manyApps the applications of the idle server.
const (
	manyPoints = 100_000
	manyApps   = 1000
	// pageLength is how many entries of a list a client asks for at once.
	pageLength = 1000
	// foldEvery is how many bookmarks are made images at once: what a fold looks at grows with the points there are.
	foldEvery = 10
)

// benchPoints lists the points of an application that has very many, and looks at a server with many applications that has nothing to do.
func benchPoints(ctx context.Context, e *env, r *Result) error {
	p, err := e.product(ctx, e.fast+"/data")
	if err != nil {
		return err
	}
	if err := p.start(); err != nil {
		return err
	}
	defer p.kill()
	fresh, err := p.resting(ctx)
	if err != nil {
		return err
	}
	apps := e.size(manyApps, 20)
	for i := range apps {
		if _, err := p.CreateVolume(ctx, tidemark.VolumeSpec{Name: fmt.Sprintf("app%04d", i), Size: 1 << 30}); err != nil {
			return err
		}
	}
	many, err := p.resting(ctx)
	if err != nil {
		return err
	}
	p.kill()
	count := e.size(manyPoints, 2000)
	if err := addPoints(ctx, p.data, "app0000", count); err != nil {
		return err
	}
	begun := time.Now()
	if err := p.start(); err != nil {
		return err
	}
	started := time.Since(begun)
	full, err := p.resting(ctx)
	if err != nil {
		return err
	}
	for range e.rounds {
		if err := listPoints(ctx, r, p, "app0000", count); err != nil {
			return err
		}
	}
	pages := r.values(tide, "page", "ms")
	r.row("a page of the list of an application's points: p99", percentile(pages, 99), "ms", atMost(100), atMost(20), "%d pages of %d, one after the other, of a list of %d; p50 %s ms", len(pages), pageLength, count, number(percentile(pages, 50)))
	r.row("memory of an idle server", float64(many)/(1<<20), "MiB", atMost(150), atMost(100), "%d applications; %s MiB when it was new, %s MiB with these points, of which it knows all by heart, %s s after it was asked to start",
		apps, number(float64(fresh)/(1<<20)), number(float64(full)/(1<<20)), number(started.Seconds()))
	r.note("Applications are volumes of 1 GiB; each point is a bookmark with an image. Memory is what the kernel says is resident of the server's process, VmRSS, after ten seconds of rest.")
	return nil
}

// resting returns the bytes that are resident of the server after some rest.
func (p *product) resting(ctx context.Context) (int64, error) {
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(10 * time.Second):
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(status, []byte("VmRSS:"))
	if !ok {
		return 0, errors.New("the kernel does not say how much of the server is resident")
	}
	kib, err := strconv.ParseInt(string(bytes.Fields(rest)[0]), 10, 64)
	return kib << 10, err
}

// addPoints gives a timeline bookmarks, each of a block that was written.
func addPoints(ctx context.Context, data, name string, n int64) error {
	w, err := openWorld(data, 0)
	if err != nil {
		return err
	}
	t, err := w.named(name)
	if err != nil {
		return errors.Join(err, w.close())
	}
	d, block := t.Disks()[0], make([]byte, 4096)
	for i := range n {
		copy(block, strconv.FormatInt(i, 10))
		if _, err = d.WriteAt(block, i%1000*4096); err == nil {
			_, err = t.Bookmark(timeline.Mark{Name: "point" + strconv.FormatInt(i, 10)})
		}
		if err == nil && i%foldEvery == foldEvery-1 {
			err = t.Fold(ctx)
		}
		if err != nil {
			return errors.Join(err, w.close())
		}
	}
	return w.close()
}

// listPoints reads a list page by page, and sees that it is all there.
func listPoints(ctx context.Context, r *Result, p *product, name string, want int64) error {
	seen, last := int64(0), time.Now()
	for _, err := range p.Points(ctx, name) {
		if err != nil {
			return err
		}
		if seen++; seen%pageLength == 1 { // the first of a page, which has just come
			r.add(Sample{tide, "page", int(seen / pageLength), map[string]float64{"ms": float64(time.Since(last)) / 1e6}})
		}
		if seen%pageLength == 0 {
			last = time.Now()
		}
	}
	if seen != want {
		return fmt.Errorf("%d points are listed, not %d", seen, want)
	}
	return nil
}
