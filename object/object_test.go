package object_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/object/objecttest"
)

func TestMem(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Bucket { return &object.Mem{} })
}

func TestDir(t *testing.T) {
	objecttest.Run(t, func(t *testing.T) object.Bucket { return openDir(t, vfs.OS, t.TempDir()) })
}

func openDir(t *testing.T, fs vfs.FS, dir string) *object.Dir {
	t.Helper()
	d, err := object.OpenDir(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// F1, F2: whatever the crash keeps, an object is whole or absent, and present once Put returned.
func TestDirAfterCrash(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 7))
		fs := vfs.NewMem()
		d := openDir(t, fs, "/b")
		data := make([]byte, 20000)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		for i := range 5 {
			if err := d.Put(context.Background(), fmt.Sprintf("x/%d", i), bytes.NewReader(data), int64(len(data))); err != nil {
				t.Fatal(err)
			}
		}
		c := openDir(t, vfs.Crash(fs, int(seed*2), rng), "/b")
		n := 0
		err := c.List(context.Background(), "", func(i object.Info) error {
			n++
			got := make([]byte, i.Size)
			if err := c.ReadAt(context.Background(), i.Key, got, 0); err != nil || !bytes.Equal(got, data) {
				return errors.Join(err, fmt.Errorf("%s is not whole", i.Key))
			}
			return nil
		})
		if err != nil || n != 5 {
			t.Fatalf("seed %d: %d objects: %v", seed, n, err)
		}
	}
}
