package tap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"tidemark/capture"
	"tidemark/internal/vfs"
)

// notes is what a tap knows of itself across restarts.
type notes struct {
	Version int     `json:"version"`
	Known   string  `json:"known"`            // the stream that the sink has had last
	Durable uint64  `json:"durable"`          // changes of it that the sink has acknowledged as durable, or fewer
	Boot    string  `json:"boot"`             // of the host, when the tap was opened
	Clean   bool    `json:"clean"`            // the tap was closed, and the marks are as it left them
	Sizes   []int64 `json:"sizes"`            // of the disks, in bytes
	Stamps  []Stamp `json:"stamps,omitempty"` // of the disks, when the tap was closed
}

const notesVersion = 1

func (t *Tap) path(name string) string { return t.o.fs.PathJoin(t.o.Dir, name) }

// recover finds out what the timeline lacks, and begins new notes.
func (t *Tap) recover() error {
	if err := vfs.MkdirAll(t.o.fs, t.o.Dir); err != nil {
		return err
	}
	// What the tap before had spilled is of no use, and where the disk is full this makes the room for all that follows.
	if err := t.o.fs.Remove(t.path("queue")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove what the queue had spilled: %w", err)
	}
	boot := t.o.boot
	if boot == "" {
		b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return fmt.Errorf("tell this boot from others: %w", err)
		}
		boot = strings.TrimSpace(string(b))
	}
	var sizes []int64
	for _, p := range t.o.Primaries {
		sizes = append(sizes, p.Size())
	}
	old, err := t.readNotes()
	if err != nil {
		t.log.Error("the tap's notes cannot be used", "error", err)
	}
	if !slices.Equal(old.Sizes, sizes) {
		old = notes{Known: old.Known} // all of the stream comes again, whatever the sink has of it
	}
	reason := whyAnew(&old, boot)
	if i, err := changedMeanwhile(t.o.Primaries, &old, boot); err != nil {
		return err
	} else if i >= 0 {
		old, reason = notes{Known: old.Known}, "the disk was written while it was not tapped"
	}
	for i, p := range t.o.Primaries {
		if err := t.recoverDisk(uint16(i), p, &old, boot); err != nil {
			return err
		}
	}
	t.known = capture.Sent{ID: old.Known, Durable: old.Durable}
	if t.lost > 0 {
		t.gap = true
		t.queue.putMark(&mark{why: reason})
	} else {
		t.queue.putMark(&mark{whole: true}) // the tap before may not have come to say it
	}
	if err := t.writeNotes(notes{Known: old.Known, Durable: old.Durable, Boot: boot, Sizes: sizes}); err != nil {
		return err
	}
	return t.openSpill()
}

func whyAnew(old *notes, boot string) string {
	switch {
	case old.Sizes == nil:
		return "the disk had to be sent whole"
	case old.Boot != boot && !old.Clean:
		return "the host stopped without notice"
	case !old.Clean:
		return "the tap was killed"
	}
	return "the tap was stopped with writes that the server did not have"
}

// recoverDisk opens one disk with what is known of it.
func (t *Tap) recoverDisk(i uint16, p Primary, old *notes, boot string) (err error) {
	regions := (p.Size() + regionSize - 1) / regionSize
	extents := (p.Size() + extentSize - 1) / extentSize
	d := &Disk{t: t, n: i, primary: p, size: p.Size(), lost: newBitmap(regions), touched: newBitmap(extents)}
	t.disks = append(t.disks, d)
	if d.marks, err = t.o.mapBits(t.path(fmt.Sprintf("dirty-%d", i)), regions); err != nil {
		return err
	}
	name := t.path(fmt.Sprintf("active-%d", i))
	was := newBitmap(extents)
	if old.Sizes != nil {
		if was, err = readActive(t.o.fs, name, extents); err != nil {
			return err
		}
	} else {
		was.setRange(0, extents)
	}
	const per = extentSize / regionSize
	if marked := old.Sizes != nil && (old.Clean || old.Boot == boot) && !d.marks.fresh; marked {
		copy(d.lost.words, d.marks.bits.words)
	} else {
		for e := was.next(0); e < extents; e = was.next(e + 1) {
			d.lost.setRange(e*per, min((e+1)*per, regions))
		}
	}
	for r := d.lost.next(0); r < regions; r = d.lost.next(r + 1) {
		was.set(r / per)
	}
	copy(d.marks.bits.words, d.lost.words)
	t.lost += d.lost.count()
	d.active, err = newActive(t.o.fs, name, was)
	return err
}

func (t *Tap) readNotes() (n notes, err error) {
	data, err := vfs.ReadFile(t.o.fs, t.path("notes.json"))
	if errors.Is(err, os.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err == nil && n.Version != notesVersion {
		err = fmt.Errorf("version %d", n.Version)
	}
	if err != nil {
		return notes{}, err
	}
	return n, nil
}

// writeNotes replaces the notes. But for recover, before anything runs beside it, the caller holds noting.
func (t *Tap) writeNotes(n notes) error {
	n.Version = notesVersion
	data, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(t.o.fs, t.path("notes.json"), data); err != nil {
		return fmt.Errorf("write the tap's notes: %w", err)
	}
	t.notes = n
	return nil
}

// learn notes that the sink has had a stream, of which nothing was acknowledged yet. That the sink had lost something of the one before could not be
// told any more then: what follows from that has to be noted already.
func (t *Tap) learn(id string) error {
	if err := t.retryDistrust(); err != nil {
		return err
	}
	t.noting.Lock()
	defer t.noting.Unlock()
	n := t.notes
	n.Known, n.Durable = id, 0
	if err := t.writeNotes(n); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known = capture.Sent{ID: id}
	return nil
}

// newNotes returns the notes with all that was acknowledged of the stream. The caller holds noting.
func (t *Tap) newNotes() notes {
	n := t.notes
	t.mu.Lock()
	defer t.mu.Unlock()
	n.Durable = max(n.Durable, t.known.Durable)
	return n
}

// keepKnown notes how much of the stream was acknowledged, if the notes have less.
func (t *Tap) keepKnown() error {
	t.noting.Lock()
	defer t.noting.Unlock()
	n := t.newNotes()
	if n.Durable == t.notes.Durable {
		return nil
	}
	return t.writeNotes(n)
}

func (t *Tap) openSpill() error {
	slots := int(t.o.Spill / segmentSize)
	if slots == 0 {
		return nil
	}
	f, err := vfs.Create(t.o.fs, t.path("queue"))
	if err != nil {
		return fmt.Errorf("make room for the queue: %w", err)
	}
	t.queue.spill = spill{file: f, slots: slots}
	return nil
}

// settleAll keeps the tap's notes from time to time, and gives back memory that the queue does not need.
func (t *Tap) settleAll(ctx context.Context) {
	tick := time.NewTicker(t.o.settle)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.keepNotes()
		for t.trim() {
		}
	}
}

// keepNotes notes which extents are not written any more, and what the sink has acknowledged, and tries again what could not be noted.
func (t *Tap) keepNotes() {
	for _, d := range t.disks {
		if err := d.settle(); err != nil {
			t.log.Warn("a power cut would have more sent again than need be", "error", err)
		}
	}
	if err := t.keepKnown(); err != nil {
		t.log.Warn("if the server is put back to an older state, and the tap restarted, it may go unnoticed", "error", err)
	}
	if err := t.retryDistrust(); err != nil {
		t.log.Error("a power cut of the host may go unnoticed", "error", err)
	}
}

// trim is the queue's.
func (t *Tap) trim() (more bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queue.trim()
}

// settle ends the extents of which the timeline has everything, and the primary too, durably.
func (d *Disk) settle() error {
	t := d.t
	var quiet []int64
	t.mu.Lock()
	for e := d.active.set.next(0); e < d.active.set.n; e = d.active.set.next(e + 1) {
		d.touched.clear(e)
		if !d.dirty(e) {
			quiet = append(quiet, e)
		}
	}
	t.mu.Unlock()
	if len(quiet) == 0 {
		return nil
	}
	if err := d.Flush(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range quiet {
		if d.touched.get(e) || d.dirty(e) {
			continue
		}
		if err := d.active.end(e); err != nil {
			return err
		}
	}
	return nil
}

// dirty reports whether the timeline lacks anything of an extent. The caller holds mu.
func (d *Disk) dirty(e int64) bool {
	const per = extentSize / regionSize
	return d.marks.bits.any(e*per, min((e+1)*per, d.lost.n))
}

// Close stops the tap when the timeline has all that is in the queue, or when ctx ends: the next tap
// goes on from there. Nothing may use the disks any more.
func (t *Tap) Close(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.wake()
	})
	defer stop()
	t.mu.Lock()
	for ctx.Err() == nil && len(t.queue.list) > 0 {
		t.changed.Wait()
	}
	t.mu.Unlock()
	t.halt()
	return errors.Join(t.leaveClean(), t.release())
}

// halt ends what runs in the background.
func (t *Tap) halt() {
	t.ranges.end()
	t.mu.Lock()
	t.closing = true
	t.wake()
	t.mu.Unlock()
	t.cancel()
	t.ended.Wait()
}

// leaveClean makes the marks durable, and notes that they are.
func (t *Tap) leaveClean() error {
	for _, d := range t.disks {
		if err := errors.Join(d.Flush(), d.marks.sync()); err != nil {
			return err
		}
	}
	t.noting.Lock()
	defer t.noting.Unlock()
	n := t.newNotes()
	n.Clean, n.Stamps = true, nil
	for _, p := range t.o.Primaries {
		s, err := stampOf(p)
		if err != nil {
			return err
		}
		n.Stamps = append(n.Stamps, s)
	}
	return t.writeNotes(n)
}

// release closes all files.
func (t *Tap) release() error {
	t.mu.Lock()
	t.queue.close()
	t.mu.Unlock()
	var errs []error
	for _, d := range t.disks {
		if d.marks.close != nil {
			errs = append(errs, d.marks.close())
		}
		if d.active != nil && d.active.file != nil {
			errs = append(errs, d.active.file.Close())
		}
	}
	for _, p := range t.o.Primaries {
		errs = append(errs, p.Close())
	}
	if t.queue.spill.file != nil {
		errs = append(errs, t.queue.spill.file.Close())
	}
	return errors.Join(errs...)
}
