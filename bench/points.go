package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark"
	"tidemark/client"
	"tidemark/policy"
	"tidemark/timeline"
)

// manyPoints are the points that are listed, and manyApps the applications of the idle server.
const (
	manyPoints = 100_000
	manyApps   = 1000
	// listed is the application whose points are listed. It has no template, by which it would forget them.
	listed = "listed"
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
	if err := promiseHourly(ctx, p, apps); err != nil {
		return err
	}
	many, err := p.resting(ctx)
	if err != nil {
		return err
	}
	before := cpuOf(p.cmd.Process.Pid)
	if err := rest(ctx, idleTime); err != nil {
		return err
	}
	idle := cpuOf(p.cmd.Process.Pid) - before
	if _, err := p.CreateVolume(ctx, tidemark.VolumeSpec{Name: listed, Size: 1 << 30}); err != nil {
		return err
	}
	p.kill()
	if err := benchTick(ctx, r); err != nil {
		return err
	}
	count := e.size(manyPoints, 2000)
	if err := addPoints(ctx, p.data, listed, count); err != nil {
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
		if err := listPoints(ctx, r, p, listed, count); err != nil {
			return err
		}
	}
	pages := r.values(tide, "page", "ms")
	r.row("a page of the list of an application's points: p99", percentile(pages, 99), "ms", atMost(100), atMost(20), "%d pages of %d, one after the other, of a list of %d; p50 %s ms", len(pages), pageLength, count, number(percentile(pages, 50)))
	r.row("memory of an idle server", float64(many)/(1<<20), "MiB", atMost(150), atMost(100), "%d applications with an hourly template, each captured; %s MiB when it was new, %s MiB with these points, of which it knows all by heart, %s s after it was asked to start",
		apps, number(float64(fresh)/(1<<20)), number(float64(full)/(1<<20)), number(started.Seconds()))
	r.row("processor time of an idle server", idle.Seconds()/idleTime.Seconds()*100, "%", atMost(5), atMost(1), "of one processor, in %v, with these applications", idleTime)
	r.note("Applications are volumes of 1 GiB; each point is a bookmark with an image. Memory is what the kernel says is resident of the server's process, VmRSS, after ten seconds of rest.")
	return nil
}

// promiseHourly gives the applications a template with hourly captures, and waits until each was captured once.
func promiseHourly(ctx context.Context, p *product, apps int64) error {
	const template = "kind: Template\nname: hourly\nspread: 0s\ncapture:\n  every: 1h\nkeep:\n  count: 100\n"
	if _, err := p.Apply(ctx, tidemark.ApplySpec{Documents: template}); err != nil {
		return err
	}
	for i := range apps {
		if err := p.SetSLA(ctx, tidemark.SLASpec{Application: fmt.Sprintf("app%04d", i), Template: "hourly"}); err != nil {
			return err
		}
	}
	for {
		list, err := client.Collect(p.Compliance(ctx))
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(list, func(c policy.Compliance) bool { return c.State != policy.OK }) {
			return nil
		}
		if err := rest(ctx, time.Second); err != nil {
			return err
		}
	}
}

// benchTick has the scheduler's own benchmark run, which looks at a thousand applications.
func benchTick(ctx context.Context, r *Result) error {
	out, err := exec.CommandContext(ctx, "go", "test", "./control", "-run", "^$", "-bench", "^BenchmarkTick$", "-benchtime", "20x").CombinedOutput()
	if err != nil {
		return fmt.Errorf("the benchmark of the scheduler: %w: %s", err, out)
	}
	took := map[string]float64{} // ms
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "BenchmarkTick/") {
			continue
		}
		ns, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			return fmt.Errorf("the benchmark of the scheduler says %q: %w", line, err)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(f[0], "BenchmarkTick/"), "-")
		took[name] = ns / 1e6
	}
	anew, ok := took["all_anew"]
	if !ok {
		return fmt.Errorf("the benchmark of the scheduler says nothing: %s", out)
	}
	r.row("a tick of the scheduler that looks at all anew", anew, "ms", atMost(50), atMost(50), "1000 applications with an hourly template and ten points each; %s ms when nothing is due", number(took["nothing_due"]))
	return nil
}

// idleTime is for how long the processor time of an idle server is measured.
const idleTime = 30 * time.Second

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// resting returns the bytes that are resident of the server after some rest.
func (p *product) resting(ctx context.Context) (int64, error) {
	if err := rest(ctx, 10*time.Second); err != nil {
		return 0, err
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
