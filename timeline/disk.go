package timeline

import (
	"fmt"
	"sync/atomic"

	"tidemark"
	"tidemark/block"
	"tidemark/image"
	"tidemark/journal"
)

// Disk is the head of one disk of a timeline: what it holds now. It is a
// [block.Device], and all its methods may be called concurrently.
//
// A write is appended to the journal and then published in the top layer; it
// is durable after Flush. Large writes may go to the pool at once and leave
// only their chunks' names in the journal (see byReference).
type Disk struct {
	t     *Timeline
	index uint16
	name  string
	size  int64
	chunk int64
	// head is replaced whole: when the top layer is frozen, and when a layer was folded.
	head atomic.Pointer[view]
}

var (
	_ block.Device   = (*Disk)(nil)
	_ block.Extenter = (*Disk)(nil)
)

// maxRecord bounds the bytes of one journal record, and so what one record's damage can take.
const maxRecord = 1 << 20

// Name is the disk's name within its timeline.
func (d *Disk) Name() string { return d.name }

// Size implements [block.Reader].
func (d *Disk) Size() int64 { return d.size }

// Chunk is the disk's chunk size in bytes.
func (d *Disk) Chunk() int { return int(d.chunk) }

// Describe returns the disk as a noun.
func (d *Disk) Describe() tidemark.Disk {
	return tidemark.Disk{Name: d.name, Size: d.size, Chunk: int(d.chunk)}
}

// ReadAt implements [block.Reader].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) { return d.head.Load().ReadAt(p, off) }

// TryReadAt reads if that takes no waiting, and without decode no decoding; it reports whether it did.
func (d *Disk) TryReadAt(p []byte, off int64, decode bool) (bool, error) {
	return d.head.Load().TryReadAt(p, off, decode)
}

// Extents implements [block.Extenter].
func (d *Disk) Extents(off, n int64, fn func(block.Extent) bool) error {
	return d.head.Load().Extents(off, n, fn)
}

// Prefetch implements [block.Prefetcher].
func (d *Disk) Prefetch(off, n int64) { d.head.Load().Prefetch(off, n) }

// Flush implements [block.Device]. It makes durable what was written to all
// disks of the timeline, in order.
func (d *Disk) Flush() error {
	if err := d.t.journal.Sync(); err != nil {
		return d.t.writeError("flush", err)
	}
	return nil
}

// WriteAt implements [block.Device].
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.writable(); err != nil {
		return 0, err
	}
	return d.writeAll(p, off, d.t.byReference)
}

// WriteBulkAt is WriteAt for data that nobody waits for: large writes go to the pool at once.
func (d *Disk) WriteBulkAt(p []byte, off int64) (int, error) {
	if err := d.writable(); err != nil {
		return 0, err
	}
	return d.writeAll(p, off, func() bool { return true })
}

// writeAll is WriteAt for whoever may write.
func (d *Disk) writeAll(p []byte, off int64, byReference func() bool) (int, error) {
	if err := block.Check(d, off, int64(len(p))); err != nil {
		return 0, err
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		n := min(int64(len(p)-done), maxRecord-at%maxRecord)
		if err := d.write(p[done:done+int(n)], at, byReference); err != nil {
			return done, d.t.writeError(fmt.Sprintf("write %d bytes at %d of disk %s", len(p), off, d.name), err)
		}
		done += int(n)
	}
	d.t.wroteSome()
	return len(p), nil
}

// writable reports why not everybody may write.
func (d *Disk) writable() error {
	switch {
	case d.t.fed.Load():
		return fmt.Errorf("disk %s of %s: %w", d.name, d.t.Name(), ErrFed)
	case d.t.rewriting.Load():
		return fmt.Errorf("disk %s of %s: %w", d.name, d.t.Name(), ErrRewriting)
	}
	return nil
}

// write stores one piece that lies in one record's span.
func (d *Disk) write(p []byte, off int64, byReference func() bool) error {
	if head := off % block.BlockSize; head != 0 || int64(len(p)) < block.BlockSize {
		n := min(block.BlockSize-head, int64(len(p)))
		if err := d.merge(p[:n], off, 0); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	whole := int64(len(p)) &^ (block.BlockSize - 1)
	if whole > 0 {
		if err := d.writeBlocks(p[:whole], off, byReference); err != nil {
			return err
		}
	}
	if int64(len(p)) > whole {
		return d.merge(p[whole:], off+whole, 0)
	}
	return nil
}

// writeBlocks stores whole blocks.
func (d *Disk) writeBlocks(p []byte, off int64, byReference func() bool) error {
	if zeros(p) {
		return d.discard(off, int64(len(p)))
	}
	first := (off + d.chunk - 1) / d.chunk * d.chunk
	last := (off + int64(len(p))) / d.chunk * d.chunk
	if last-first < minReference || !byReference() {
		return d.appendWrite(p, off)
	}
	if first > off {
		if err := d.appendWrite(p[:first-off], off); err != nil {
			return err
		}
	}
	if err := d.refer(p[first-off:last-off], first, 0); err != nil {
		return err
	}
	if rest := p[last-off:]; len(rest) > 0 {
		return d.appendWrite(rest, last)
	}
	return nil
}

func (d *Disk) appendWrite(p []byte, off int64) error {
	return d.append(&journal.Record{Kind: journal.Write, Disk: d.index, Off: off, Len: int64(len(p)), Payload: p})
}

// append writes one record and publishes it.
func (d *Disk) append(r *journal.Record) error {
	return d.t.write(len(r.Payload), func() error {
		d.t.mu.RLock()
		defer d.t.mu.RUnlock()
		return d.publish(r)
	})
}

// publish is append for a caller that holds t.mu.
func (d *Disk) publish(r *journal.Record) error {
	place, err := d.t.journal.Append(r)
	if err == nil {
		d.published(r, place)
	}
	return err
}

// published makes a record that was appended the newest of its blocks. The caller has held t.mu since before that.
func (d *Disk) published(r *journal.Record, place journal.Place) {
	d.head.Load().layers[0].put(r, place, d.chunk)
	d.t.backlog.Add(int64(len(r.Payload)))
	d.t.sinceCut.Add(int64(len(r.Payload)))
	raise(&d.t.topSegment, place.Segment.Number())
	d.t.fedSeq.Add(1)
}

// merge stores a piece of one block, as of a time, 0 for now. Nobody else writes meanwhile: another
// writer's piece of the same block must not be undone by our copy of it.
func (d *Disk) merge(p []byte, off, at int64) error {
	return d.t.write(block.BlockSize, func() error { return d.mergeOnce(p, off, at) })
}

func (d *Disk) mergeOnce(p []byte, off, at int64) error {
	d.t.mu.Lock()
	defer d.t.mu.Unlock()
	var buf [block.BlockSize]byte
	start := off - off%block.BlockSize
	have := min(block.BlockSize, d.size-start)
	if _, err := d.head.Load().ReadAt(buf[:have], start); err != nil {
		return err
	}
	copy(buf[off-start:], p)
	r := journal.Record{Kind: journal.Zero, Disk: d.index, Off: start, Len: block.BlockSize, Time: at}
	if !zeros(buf[:]) {
		r.Kind, r.Payload = journal.Write, buf[:]
	}
	return d.publish(&r)
}

// refer stores whole chunks in the pool and their names in the journal, as of a time, 0 for now. The
// chunks are durable before the names can be: a name in the journal is never
// without its chunk, wherever the power fails.
func (d *Disk) refer(p []byte, off, at int64) error {
	return d.t.withRoom(func() error { return d.referOnce(p, off, at) })
}

func (d *Disk) referOnce(p []byte, off, at int64) error {
	x := d.t.set.store.Begin()
	defer x.End()
	base := d.head.Load().base
	names := make([]byte, 0, len(p)/int(d.chunk)*len(image.Name{}))
	for at := int64(0); at < int64(len(p)); at += d.chunk {
		prev, err := base.ChunkName((off + at) / d.chunk)
		if err != nil {
			return err
		}
		name, err := x.Put(p[at:at+d.chunk], prev)
		if err != nil {
			return err
		}
		names = append(names, name[:]...)
	}
	if err := d.t.set.store.Sync(); err != nil {
		return err
	}
	d.t.addStored(x.Stats().StoredBytes)
	return d.append(&journal.Record{Kind: journal.Reference, Disk: d.index, Off: off, Len: int64(len(p)), Payload: names, Time: at})
}

// Discard implements [block.Device].
func (d *Disk) Discard(off, n int64) error {
	err := d.writable()
	if err == nil {
		err = block.Check(d, off, n)
	}
	if err != nil {
		return err
	}
	return d.discard(off, n)
}

// discard is Discard of what lies within the disk, for whoever may write.
func (d *Disk) discard(off, n int64) error {
	end := off + n
	for off < end {
		if off%block.BlockSize != 0 || end-off < block.BlockSize {
			part := min(block.BlockSize-off%block.BlockSize, end-off)
			if err := d.merge(make([]byte, part), off, 0); err != nil {
				return d.t.writeError("discard", err)
			}
			off += part
			continue
		}
		whole := (end - off) &^ (block.BlockSize - 1)
		if !d.hole(off, whole) {
			if err := d.append(&journal.Record{Kind: journal.Zero, Disk: d.index, Off: off, Len: whole}); err != nil {
				return d.t.writeError("discard", err)
			}
		}
		off += whole
	}
	return nil
}

// hole reports whether [off, off+n) is known to be nothing but a hole.
func (d *Disk) hole(off, n int64) bool {
	hole := true
	err := d.head.Load().Extents(off, n, func(e block.Extent) bool {
		hole = hole && e.Hole
		return hole
	})
	return err == nil && hole
}

// zeros reports whether p holds nothing but zeros.
func zeros(p []byte) bool {
	if len(p) == 0 || p[0] != 0 {
		return len(p) == 0
	}
	for len(p) > len(zeroPage) {
		if string(p[:len(zeroPage)]) != zeroPage {
			return false
		}
		p = p[len(zeroPage):]
	}
	return string(p) == zeroPage[:len(p)]
}

var zeroPage = string(make([]byte, 16<<10))
