package control

import (
	"context"
	"io"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
)

// differing calls fn with every chunk in which two images of a disk differ, and its content in both.
func (c *Control) differing(a, b image.Root, fn func(off int64, a, b []byte) error) error {
	va, vb := c.store.View(a), c.store.View(b)
	pa, pb := make([]byte, a.Chunk), make([]byte, a.Chunk)
	return c.store.Diff(a, b, func(i int64, _, _ image.Name) error {
		off := i * int64(a.Chunk)
		n := min(int64(a.Chunk), a.Size-off)
		if _, err := va.ReadAt(pa[:n], off); err != nil {
			return err
		}
		if _, err := vb.ReadAt(pb[:n], off); err != nil {
			return err
		}
		return fn(off, pa[:n], pb[:n])
	})
}

// differingBlocks calls fn with every run of blocks in which the chunks a and b differ.
func differingBlocks(a, b []byte, fn func(from, to int) error) error {
	for i := 0; i < len(a); {
		from := i
		for i < len(a) {
			e := min(i+block.BlockSize, len(a))
			if string(a[i:e]) == string(b[i:e]) {
				break
			}
			i = e
		}
		if i > from {
			if err := fn(from, i); err != nil {
				return err
			}
			continue
		}
		i += block.BlockSize
	}
	return nil
}

// writeBack makes a disk that holds now hold then: it writes what differs, at a grain of a block, and nothing else.
// It returns how many bytes that was. What was written is not synced.
func (c *Control) writeBack(ctx context.Context, now, then image.Root, onto io.WriterAt, report func(tidemark.Progress)) (int64, error) {
	w := gathered{to: onto, buf: block.Aligned(gatherLimit)[:0]}
	err := c.differing(now, then, func(off int64, a, b []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		report(tidemark.Progress{Done: w.total, Unit: "bytes"})
		return differingBlocks(a, b, func(from, to int) error { return w.add(off+int64(from), b[from:to]) })
	})
	if err == nil {
		err = w.flush()
	}
	return w.total, err
}

// gathered joins adjacent writes.
type gathered struct {
	to    io.WriterAt
	off   int64
	buf   []byte // aligned, as direct I/O wants it
	total int64
}

// gatherLimit is the longest write that gathered makes of others.
const gatherLimit = 1 << 20

func (g *gathered) add(off int64, p []byte) error {
	if off != g.off+int64(len(g.buf)) || len(g.buf)+len(p) > cap(g.buf) {
		if err := g.flush(); err != nil {
			return err
		}
		g.off = off
	}
	g.buf = append(g.buf, p...)
	return nil
}

func (g *gathered) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	_, err := g.to.WriteAt(g.buf, g.off)
	g.total += int64(len(g.buf))
	g.off, g.buf = g.off+int64(len(g.buf)), g.buf[:0]
	return err
}
