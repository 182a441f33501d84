package timeline

import (
	"errors"
	"fmt"

	"tidemark/block"
	"tidemark/capture"
	"tidemark/journal"
)

// run is changes that become records of the journal as they are, and so are appended together.
type run struct {
	disks   []*Disk
	records []journal.Record
	places  []journal.Place
	bytes   int // of payloads
}

// runBytes is how long a run becomes, in bytes: who freezes the timeline waits for it.
const runBytes = 1 << 20

func (x *run) add(d *Disk, r journal.Record) {
	x.disks, x.records, x.places = append(x.disks, d), append(x.records, r), append(x.places, journal.Place{})
	x.bytes += len(r.Payload)
}

// reset empties the run. It keeps nothing of what was in it.
func (x *run) reset() {
	clear(x.disks)
	clear(x.records)
	clear(x.places)
	x.disks, x.records, x.places, x.bytes = x.disks[:0], x.records[:0], x.places[:0], 0
}

// applyAll appends changes, each as exactly one record, in order; the run is empty, and is left so.
func (t *Timeline) applyAll(list []capture.Change, x *run) error {
	defer x.reset()
	for i := range list {
		c := &list[i]
		d, err := t.diskOf(c)
		if err != nil {
			return errors.Join(t.appendRun(x), err)
		}
		r, plain := d.plain(c)
		if plain {
			x.add(d, r)
			if x.bytes < runBytes {
				continue
			}
		}
		if err := t.appendRun(x); err != nil {
			return err
		}
		if plain {
			continue
		}
		if err := d.apply(c); err != nil {
			return t.writeError(fmt.Sprintf("apply %d bytes at %d of disk %s", c.Len, c.Off, d.name), err)
		}
	}
	return t.appendRun(x)
}

// diskOf returns the disk of a change, which can have it.
func (t *Timeline) diskOf(c *capture.Change) (*Disk, error) {
	if int(c.Disk) >= len(t.disks) {
		return nil, fmt.Errorf("%w: of disk %d of %s, which has %d", capture.ErrChange, c.Disk, t.Name(), len(t.disks))
	}
	d := t.disks[c.Disk]
	return d, c.Check(d.size)
}

// plain returns the record that a change of whole blocks becomes, and reports whether it becomes one as it is. Data in shared memory
// are not looked at.
func (d *Disk) plain(c *capture.Change) (r journal.Record, ok bool) {
	if c.Off%block.BlockSize != 0 || c.Len%block.BlockSize != 0 {
		return r, false
	}
	r = journal.Record{Kind: journal.Zero, Disk: d.index, Off: c.Off, Len: c.Len, Time: c.Time}
	if c.Data == nil || c.Memory == nil && zeros(c.Data) {
		return r, true
	}
	if d.refers(c) {
		return r, false
	}
	r.Kind, r.Payload, r.Shared, r.Sum = journal.Write, c.Data, c.Memory != nil, c.Sum
	return r, true
}

// refers reports whether the data of a change go to the pool at once.
func (d *Disk) refers(c *capture.Change) bool {
	return c.Off%d.chunk == 0 && c.Len%d.chunk == 0 && c.Len >= minReference && d.t.byReference()
}

// appendRun appends what is in the run, publishes it, and empties the run.
func (t *Timeline) appendRun(x *run) error {
	if len(x.records) == 0 {
		return nil
	}
	done := 0
	err := t.write(x.bytes, func() error {
		t.mu.RLock()
		defer t.mu.RUnlock()
		n, err := t.journal.AppendAll(x.records[done:], x.places[done:])
		for end := done + n; done < end; done++ {
			x.disks[done].published(&x.records[done], x.places[done])
		}
		return err
	})
	n := len(x.records)
	x.reset()
	switch {
	case errors.Is(err, journal.ErrChanged):
		return t.writeError("apply a change", fmt.Errorf("%w: %w", capture.ErrChanged, err))
	case err != nil:
		return t.writeError(fmt.Sprintf("apply %d changes", n), err)
	}
	return nil
}

// apply appends a change that is a part of a block, or the end of the disk, or goes to the pool, as one record.
func (d *Disk) apply(c *capture.Change) error {
	if err := c.Own(); err != nil {
		return err
	}
	n := (c.Len + block.BlockSize - 1) &^ (block.BlockSize - 1) // the end of a disk ends its last block
	r := journal.Record{Kind: journal.Zero, Disk: d.index, Off: c.Off, Len: n, Time: c.Time}
	whole := c.Off%block.BlockSize == 0 && (c.Len == n || c.Off+c.Len == d.size)
	switch {
	case !whole && c.Data == nil:
		return d.merge(make([]byte, c.Len), c.Off, c.Time)
	case !whole:
		return d.merge(c.Data, c.Off, c.Time)
	case zeros(c.Data):
		return d.append(&r)
	case d.refers(c):
		return d.refer(c.Data, c.Off, c.Time)
	}
	r.Kind, r.Payload = journal.Write, append(make([]byte, 0, n), c.Data...)[:n]
	return d.append(&r)
}
