package survive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"tidemark/block"
)

// picture is what some blocks of the disks hold behind a number of changes of a ledger: all blocks that are ever written. It is the model
// that points are compared with, and only goes forward.
type picture struct {
	entries []entered
	disks   []pictured
	changes int // it is behind so many
	buf     []byte
}

// pictured is one disk of a picture.
type pictured struct {
	base io.ReaderAt // what it was before the first change
	size int64
	runs []run // in order
}

// run is a stretch of a disk, of whole blocks. Between those that are ever written lie some that are not, where that makes runs fewer.
type run struct {
	off  int64
	data []byte
}

func (r run) end() int64 { return r.off + int64(len(r.data)) }

// runApart is how far runs are apart, in bytes.
const runApart = 64 << 10

// pictureSize is how much is compared at a time, in bytes.
const pictureSize = 1 << 20

// newPicture returns the picture of before the first of entries, of disks that were what bases say.
func newPicture(entries []entered, bases []io.ReaderAt, sizes []int64) (*picture, error) {
	p := &picture{entries: entries, disks: make([]pictured, len(bases)), buf: make([]byte, pictureSize)}
	for i := range bases {
		d := &p.disks[i]
		d.base, d.size, d.runs = bases[i], sizes[i], runsOf(entries, i)
		for _, r := range d.runs {
			if _, err := d.base.ReadAt(r.data, r.off); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

// runsOf returns the stretches of a disk that are ever written, still empty.
func runsOf(entries []entered, disk int) (runs []run) {
	type extent struct{ off, end int64 }
	var list []extent
	for _, e := range entries {
		if int(e.Disk) == disk {
			list = append(list, extent{e.Off &^ (block.BlockSize - 1), (e.Off + e.Len + block.BlockSize - 1) &^ (block.BlockSize - 1)})
		}
	}
	slices.SortFunc(list, func(a, b extent) int { return int(a.off - b.off) })
	for i := 0; i < len(list); {
		x := list[i]
		for ; i < len(list) && list[i].off <= x.end+runApart; i++ {
			x.end = max(x.end, list[i].end)
		}
		runs = append(runs, run{x.off, make([]byte, x.end-x.off)})
	}
	return runs
}

// reach goes forward to behind so many changes.
func (p *picture) reach(changes int) {
	for ; p.changes < changes; p.changes++ {
		e := &p.entries[p.changes]
		runs := p.disks[e.Disk].runs
		i, ok := slices.BinarySearchFunc(runs, e.Off, func(r run, off int64) int { return int(r.off - off) })
		if !ok {
			i--
		}
		place := runs[i].data[e.Off-runs[i].off:][:e.Len]
		if e.Data == nil {
			clear(place)
		} else {
			copy(place, e.Data)
		}
	}
}

// when is the time of the last change, in Unix nanoseconds; 0: there is none.
func (p *picture) when() int64 {
	if p.changes == 0 {
		return 0
	}
	return p.entries[p.changes-1].Time
}

// errOther: a disk is not what the picture says.
var errOther = errors.New("it is not what was written")

// compare holds a disk to the picture, in all blocks that are ever written.
func (p *picture) compare(disk int, r io.ReaderAt) error {
	for _, x := range p.disks[disk].runs {
		for at := 0; at < len(x.data); at += pictureSize {
			want := x.data[at:min(at+pictureSize, len(x.data))]
			if err := p.same(r, x.off+int64(at), want); err != nil {
				return fmt.Errorf("disk %d behind %d changes: %w", disk, p.changes, err)
			}
		}
	}
	return nil
}

// compareRest holds a disk to what it was before the first change, in all blocks that are never written.
func (p *picture) compareRest(disk int, r io.ReaderAt) error {
	d, at := &p.disks[disk], int64(0)
	want := make([]byte, pictureSize)
	for _, x := range append(slices.Clone(d.runs), run{off: d.size}) {
		for at < x.off {
			part := want[:min(x.off-at, pictureSize)]
			if _, err := d.base.ReadAt(part, at); err != nil {
				return err
			}
			if err := p.same(r, at, part); err != nil {
				return fmt.Errorf("disk %d, which nobody wrote to there: %w", disk, err)
			}
			at += int64(len(part))
		}
		at = x.end()
	}
	return nil
}

func (p *picture) same(r io.ReaderAt, off int64, want []byte) error {
	have := p.buf[:len(want)]
	if _, err := r.ReadAt(have, off); err != nil {
		return err
	}
	if !bytes.Equal(have, want) {
		return fmt.Errorf("%w, from %d on at %s", errOther, off, differs(have, want))
	}
	return nil
}
