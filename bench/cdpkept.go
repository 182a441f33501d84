package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// benchCDPKept looks at what is kept of a tapped disk, how long AppShots hold, and what an outage costs.
func benchCDPKept(ctx context.Context, e *env, r *Result) error {
	return e.producing(ctx, []string{tapped, gone}, func(p *product, images map[string]string, sockets string) error {
		list, end, err := e.productions(ctx, images, func(ctx context.Context, images map[string]string) ([]*production, error) {
			return e.tappedProductions(ctx, p, images, sockets)
		})
		defer end()
		if err != nil {
			return err
		}
		if err := e.shots(ctx, r, list[0], sockets); err != nil { // and the database has its log, which it goes on to write anew
			return err
		}
		if err := e.kept(ctx, r, list[0], sockets); err != nil {
			return err
		}
		r.note("The database and disks of `cdp`.")
		return e.outage(ctx, r, list[1])
	})
}

// shots makes AppShots of the database while pgbench runs.
func (e *env) shots(ctx context.Context, r *Result, x *production, sockets string) error {
	count := 60
	if e.quick {
		count = 10
	}
	return x.using(ctx, sockets, func(c *cluster) error {
		loadCtx, cancel := context.WithCancel(ctx)
		var load sync.WaitGroup
		load.Go(func() { c.pgbench(loadCtx, "-c", "8", "-j", "2", "-T", "600") })
		defer load.Wait()
		defer cancel()
		time.Sleep(time.Second)
		var holds, whole []float64
		for i := range count {
			begun := time.Now()
			p, err := x.server.Bookmark(ctx, tidemark.BookmarkSpec{Application: "side0", Name: fmt.Sprint("shot", i)})
			if err != nil {
				return err
			}
			if p.Consistency != tidemark.ApplicationConsistent {
				return fmt.Errorf("an AppShot is %s-consistent: %v", p.Consistency, p.Labels)
			}
			holds, whole = append(holds, p.Hold), append(whole, float64(time.Since(begun).Milliseconds()))
			time.Sleep(100 * time.Millisecond)
		}
		r.row("AppShot of a PostgreSQL under pgbench: hold, p99", percentile(holds, 99), "ms", atMost(50), atMost(10),
			"%d of them. A restore point holds nobody; the command takes p50 %s ms, p99 %s ms, the commit of that restore point most of all", count, number(percentile(whole, 50)), number(percentile(whole, 99)))
		return nil
	})
}

// kept says what keeping every write takes.
func (e *env) kept(ctx context.Context, r *Result, x *production, sockets string) error {
	before, err := x.server.bookmarked(ctx, "side0", "before")
	if err != nil {
		return err
	}
	device, err := filepath.EvalSymlinks(x.device)
	if err != nil {
		return err
	}
	from, err := written(device)
	if err != nil {
		return err
	}
	transactions := "8000"
	if e.quick {
		transactions = "300"
	}
	err = x.using(ctx, sockets, func(c *cluster) error {
		_, err := c.pgbench(ctx, "-c", "8", "-j", "2", "-t", transactions)
		return err
	})
	if err != nil {
		return err
	}
	to, err := written(device)
	if err != nil {
		return err
	}
	after, err := x.server.bookmarked(ctx, "side0", "after")
	if err != nil {
		return err
	}
	wrote, journal := to-from, float64(after.JournalBytes-before.JournalBytes)
	images := float64(after.StoredBytes-before.StoredBytes) - journal
	r.row("bytes kept in the journal ÷ bytes written, PostgreSQL on XFS", journal/wrote, "x", atMost(0.35), atMost(0.22),
		"%s MB written, %s MB kept, the any-point window open", number(wrote/1e6), number(journal/1e6))
	r.row("journal + images ÷ bytes written", (journal+images)/wrote, "x", Bound{}, Bound{},
		"%s MB of images: one for the bookmark, and those that bound K", number(images/1e6))
	return nil
}

// bookmarked makes a bookmark, so that what is before it becomes an image and is packed, and returns what is then kept.
func (p *product) bookmarked(ctx context.Context, app, name string) (v tidemark.VolumeInfo, err error) {
	if err := p.follows(ctx, app); err != nil {
		return v, err
	}
	if _, err := p.Bookmark(ctx, tidemark.BookmarkSpec{Application: app, Name: name}); err != nil {
		return v, err
	}
	return p.keeps(ctx, app, 20*time.Second)
}

// outageWrites are so many that the queue of a tap does not hold them.
const outageWrites = 40_000

// outage kills the server while a disk is written, and counts what is read again.
func (e *env) outage(ctx context.Context, r *Result, x *production) error {
	device, err := os.OpenFile(x.device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	x.server.kill()
	block, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for i := range block { // zeros would take no room in the queue
		block[i] = byte(rand.Uint32())
	}
	regions := map[int64]bool{}
	for range outageWrites {
		off := rand.Int64N(1<<30/4096) * 4096
		regions[off>>16] = true
		if _, err := device.WriteAt(block, off); err != nil {
			return err
		}
	}
	before, err := reread(x.server.data, x.image)
	if err != nil {
		return err
	}
	if err := x.server.start(); err != nil {
		return err
	}
	begun := time.Now()
	if err := x.server.follows(ctx, "side1"); err != nil {
		return err
	}
	after, err := reread(x.server.data, x.image)
	if err != nil {
		return err
	}
	r.row("resync after an outage: bytes read ÷ bytes dirtied, at 64 KiB", (after-before)/float64(len(regions)<<16), "x", atMost(1.5), atMost(1.1),
		"40,000 writes of 4 KiB to %d regions while the server was gone; %s MB read, in %s s", len(regions), number((after-before)/1e6), number(time.Since(begun).Seconds()))
	return nil
}

// reread returns how many bytes the tap of an image has read again.
func reread(data, image string) (float64, error) {
	x, err := tapOf(data, image)
	if err != nil {
		return 0, err
	}
	st, err := x.Status(context.Background())
	return float64(st.Reread), err
}
