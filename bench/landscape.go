package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"tidemark"
	"tidemark/client"
)

const (
	begun   = "begun"   // the bookmark of a clone as it came
	changed = "changed" // and with its tenth of the rows changed
)

var (
	tracks = []string{"crm", "erp", "hr", "pay", "web"}
	stages = []string{"dev", "test", "qa"}
)

// landscape is five tracks of three databases each, of one production.
type landscape struct {
	p      *product
	rows   int
	rng    *rand.Rand
	stored int64 // by production's capture
	gold   tidemark.CaptureResult
	asked  time.Duration // until all clones answered, of all stages
	worst  time.Duration // until one did
	sizes  []float64     // of what differs, and of that compressed, in bytes
	packed float64
}

// benchLandscape makes Dev of production, Test of Dev and QA of Test, five times, and changes a tenth of each.
func benchLandscape(ctx context.Context, e *env, r *Result) error {
	p, err := e.product(ctx, e.disk+"/data")
	if err != nil {
		return err
	}
	home := e.disk + "/src"
	if err := os.Mkdir(home, 0o755); err != nil {
		return err
	}
	scale := 345 // 5.2 GB
	if e.quick {
		scale = 4
	}
	c, err := newCluster(ctx, home, scale)
	if err != nil {
		return err
	}
	defer c.stop(stopAtOnce)
	l := &landscape{p: p, rows: scale * 100_000, rng: rand.New(rand.NewPCG(4, 15))}
	if err := l.p.start(); err != nil {
		return err
	}
	defer l.p.kill()
	defer l.remove()
	if err := l.capture(ctx, c); err != nil {
		return err
	}
	for i := range stages {
		if err := l.stage(ctx, i); err != nil {
			return fmt.Errorf("%s: %w", stages[i], err)
		}
	}
	return l.report(ctx, e, r)
}

// capture makes production an application, and captures it.
func (l *landscape) capture(ctx context.Context, c *cluster) error {
	if err := l.p.protected(ctx, tidemark.ProtectSpec{Name: "gold", Source: c.conn()}); err != nil {
		return err
	}
	var err error
	if l.gold, err = l.mark(ctx, "gold", "gold"); err != nil {
		return err
	}
	s, err := l.p.Status(ctx)
	l.stored = s.Pool.PhysicalBytes + s.Pool.JournalBytes
	return err
}

// mark captures an application under a bookmark.
func (l *landscape) mark(ctx context.Context, app, bookmark string) (tidemark.CaptureResult, error) {
	j, err := l.p.Capture(ctx, tidemark.CaptureSpec{Application: app, Bookmark: bookmark})
	return client.Result[tidemark.CaptureResult](ctx, l.p.Client, j, err, nil)
}

// stage asks for the clones of one stage at once, each of what its track had last, and then changes them one by one.
func (l *landscape) stage(ctx context.Context, i int) error {
	clones, took, begin := make([]tidemark.Clone, len(tracks)), make([]time.Duration, len(tracks)), time.Now()
	errs := make([]error, len(tracks))
	var all sync.WaitGroup
	for n, track := range tracks {
		all.Go(func() {
			of := "gold@gold"
			if i > 0 {
				of = track + "-" + stages[i-1] + "@" + changed
			}
			clones[n], errs[n] = l.clone(ctx, of, track+"-"+stages[i])
			took[n] = time.Since(begin)
		})
	}
	all.Wait()
	l.asked += time.Since(begin)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for n, c := range clones {
		l.worst = max(l.worst, took[n])
		if err := l.change(ctx, c); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	return nil
}

// clone makes a clone, and returns when it has answered.
func (l *landscape) clone(ctx context.Context, of, name string) (tidemark.Clone, error) {
	j, err := l.p.Clone(ctx, tidemark.CloneSpec{Ref: of, Name: name})
	c, err := client.Result[tidemark.Clone](ctx, l.p.Client, j, err, nil)
	if err != nil {
		return c, err
	}
	return c, query(ctx, c.Connection, fmt.Sprintf("SELECT 1 / count(*) FROM pgbench_accounts WHERE aid BETWEEN %d AND %[1]d + 100", l.rows/2))
}

// change gives a tenth of the rows other contents, which are new ones in each clone, and adds up what differs afterwards.
func (l *landscape) change(ctx context.Context, c tidemark.Clone) error {
	if _, err := l.mark(ctx, c.Name, begun); err != nil {
		return err
	}
	first := l.rng.IntN(l.rows * 9 / 10)
	err := query(ctx, c.Connection, fmt.Sprintf("UPDATE pgbench_accounts SET abalance = abalance + 1, filler = md5(aid::text || '%s') || md5((aid * 11)::text || '%[1]s') WHERE aid BETWEEN %d AND %d; CHECKPOINT",
		c.Name, first, first+l.rows/10))
	if err != nil {
		return err
	}
	if _, err := l.mark(ctx, c.Name, changed); err != nil {
		return err
	}
	d, err := l.p.Diff(ctx, tidemark.DiffSpec{A: c.Name + "@" + begun, B: c.Name + "@" + changed})
	if err != nil {
		return err
	}
	l.sizes = append(l.sizes, float64(d.ChangedBytes))
	return l.compress(ctx, d)
}

// compress adds up how small what differs becomes, by the usual level of zstd in pieces of 64 KiB.
func (l *landscape) compress(ctx context.Context, d tidemark.Diff) error {
	const piece = 64 << 10
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return err
	}
	defer z.Close()
	byDisk := map[string][]tidemark.DiffExtent{}
	for _, x := range d.Extents {
		byDisk[x.Disk] = append(byDisk[x.Disk], x)
	}
	for disk, extents := range byDisk {
		var held, out []byte
		err := l.reading(ctx, d.B, disk, func(f *os.File) error {
			for _, x := range extents {
				for off := x.Off; off < x.Off+x.Len; {
					buf := make([]byte, min(piece, x.Off+x.Len-off))
					if _, err := f.ReadAt(buf, off); err != nil {
						return err
					}
					off += int64(len(buf))
					for held = append(held, buf...); len(held) >= piece; held = held[piece:] {
						out = z.EncodeAll(held[:piece], out[:0])
						l.packed += float64(len(out))
					}
				}
			}
			l.packed += float64(len(z.EncodeAll(held, out[:0])))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// reading shows a disk of a point as a device, for as long as fn takes.
func (l *landscape) reading(ctx context.Context, ref, disk string, fn func(*os.File) error) error {
	m, err := l.p.Mount(ctx, tidemark.MountSpec{Ref: ref, Disk: disk, ReadOnly: true})
	if err != nil {
		return err
	}
	f, err := os.Open(m.Device)
	if err == nil {
		err = errors.Join(fn(f), f.Close())
	}
	return errors.Join(err, l.p.Unmount(context.Background(), m.Name))
}

// remove takes everything down again, those first of which nobody was cloned.
func (l *landscape) remove() {
	ctx := context.Background()
	for i := len(stages) - 1; i >= 0; i-- {
		for _, track := range tracks {
			_ = l.p.RemoveClone(ctx, track+"-"+stages[i]) // one that is not there was not made
		}
	}
	_ = l.p.Unprotect(ctx, "gold")
}

// windowsPass has the time pass for which any point of the clones can be had, and returns the journals as they were before, in bytes.
func (l *landscape) windowsPass(ctx context.Context) (before int64, err error) {
	s, err := l.p.Status(ctx)
	if err != nil {
		return 0, err
	}
	before = s.Pool.JournalBytes
	for _, c := range s.Clones {
		j, err := l.p.ChangeApplication(ctx, c.Name, tidemark.ApplicationChange{Window: &tidemark.Window{Seconds: 1}})
		if _, err := client.Result[tidemark.Application](ctx, l.p.Client, j, err, nil); err != nil {
			return before, err
		}
	}
	last, since := before, time.Now()
	for time.Since(since) < 70*time.Second { // windows move on each minute
		time.Sleep(time.Second)
		if s, err = l.p.Status(ctx); err != nil {
			return before, err
		}
		if now := s.Pool.JournalBytes; now < last {
			last, since = now, time.Now()
		}
	}
	return before, nil
}

func (l *landscape) report(ctx context.Context, e *env, r *Result) error {
	journals, err := l.windowsPass(ctx)
	if err != nil {
		return err
	}
	s, err := l.p.Status(ctx)
	if err != nil {
		return err
	}
	disk, err := allocated(l.p.data)
	if err != nil {
		return err
	}
	count := len(tracks) * len(stages)
	var differs float64
	for _, n := range l.sizes {
		differs += n
	}
	total, gold, raw := float64(s.Pool.PhysicalBytes+s.Pool.JournalBytes), float64(l.stored), float64(l.gold.ReadBytes)
	r.row("pool and journals, once the hour of any point of clones is over, without the bytes changed, compressed ÷ the stored gold image", (total-l.packed)/gold, "x", atMost(1.5), atMost(1.1),
		"pool %s MB, journals %s MB, and %s within that hour; the gold image of %s MB takes %s of them; %d clones differ from what they were made of by %s MB, which zstd makes %s", number(float64(s.Pool.PhysicalBytes)/1e6), number(float64(s.Pool.JournalBytes)/1e6), number(float64(journals)/1e6), number(raw/1e6), number(gold/1e6), count, number(differs/1e6), number(l.packed/1e6))
	r.row("pool and journals ÷ production's size: sixteen databases", total/raw, "x", Bound{}, atMost(2.5),
		"full copies: %d; the data directory takes %s MB on its disk, with indexes and catalog", count+1, number(float64(disk)/1e6))
	r.row("until all fifteen answer a query, from asking, of three stages together", l.asked.Seconds(), "s", atMost(60), atMost(15), "five at once in each stage; the slowest clone %s s", number(l.worst.Seconds()))
	r.note("PostgreSQL 15 of %s GB: five of Dev cloned of production, of each of them one of Test, of each of these one of QA. A tenth of the rows is changed in each before the next is cloned of it, all fifteen servers run, and each clone is captured before and after. What differs is compared at 4 KiB, its log included.", number(raw/1e9))
	return nil
}
