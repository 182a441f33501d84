package timeline

import (
	"context"
	"testing"

	"tidemark/block"
	"tidemark/block/blocktest"
	"tidemark/internal/vfs"
)

const blocktestSize = 2<<20 + 512 // not a multiple of a block

// TestDiskIsADevice holds the head of a timeline, and of a branch, to the contract of
// disks, also after the server was started again; and their snapshots.
func TestDiskIsADevice(t *testing.T) {
	fs := vfs.NewMem()
	w := open(t, fs, "/w")
	defer func() { w.close(t) }()
	spec := []DiskSpec{{Name: "a", Size: blocktestSize, Chunk: testChunk}}
	tl, err := w.set.Create(context.Background(), "t", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := tl.ID()
	blocktest.Device(t, disk(t, tl), 0, func() block.Device {
		w.close(t)
		w = open(t, fs, "/w")
		return disk(t, w.set.Get(id))
	})
	tl = w.set.Get(id)
	content := make([]byte, blocktestSize)
	if _, err := disk(t, tl).ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	pos, err := tl.Bookmark(Mark{Name: "kept"})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := func(t *testing.T) {
		s, err := tl.At("a", pos)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		blocktest.Reader(t, s, content)
	}
	t.Run("snapshot", snapshot)
	branch, err := tl.Branch(context.Background(), "b", pos, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("branch", func(t *testing.T) {
		d := disk(t, branch)
		blocktest.Reader(t, d, content)
		if err := d.Discard(0, d.Size()); err != nil {
			t.Fatal(err)
		}
		blocktest.Device(t, d, 200, nil)
	})
	if err := tl.Fold(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Run("folded", snapshot)
}

func disk(t *testing.T, tl *Timeline) *Disk {
	t.Helper()
	d, err := tl.Disk("a")
	if err != nil {
		t.Fatal(err)
	}
	return d
}
