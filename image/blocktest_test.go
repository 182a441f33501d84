package image

import (
	"strconv"
	"testing"

	"tidemark/block/blocktest"
	"tidemark/internal/vfs"
)

// TestViewIsAReader holds views of images to the contract of disks.
func TestViewIsAReader(t *testing.T) {
	for _, chunk := range []int{4 << 10, 64 << 10} {
		t.Run(strconv.Itoa(chunk), func(t *testing.T) {
			rng := seeded(t)
			fs := vfs.NewMem()
			s := mustOpen(t, testOptions(fs, mustDir(t, fs)))
			d := &disk{chunk: chunk, data: make([]byte, 40*chunk-512)}
			root := Empty(int64(len(d.data)), chunk)
			blocktest.Reader(t, s.View(root), d.data)
			x := s.Begin()
			defer x.End()
			for range 5 {
				from, to := d.write(rng)
				next, err := d.save(x, root, from, to)
				must(t, err)
				root = next
			}
			blocktest.Reader(t, s.View(root), d.data)
		})
	}
}
