package object_test

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"tidemark/internal/vfs"
	"tidemark/object"
	"tidemark/object/objecttest"
)

func openDir(t *testing.T, fs vfs.FS, root string) object.Bucket {
	t.Helper()
	b, err := object.OpenDir(fs, root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func TestMem(t *testing.T) {
	objecttest.Run(t, func(*testing.T) object.Bucket { return object.NewMem() })
}

func TestDirOnDisk(t *testing.T) {
	objecttest.Run(t, func(t *testing.T) object.Bucket { return openDir(t, vfs.OS, t.TempDir()) })
}

func TestDirInMemory(t *testing.T) {
	objecttest.Run(t, func(t *testing.T) object.Bucket { return openDir(t, vfs.NewMem(), "/bucket") })
}

func TestDirCrash(t *testing.T) {
	objecttest.Crash(t, 200, func(fs vfs.FS) (object.Bucket, error) { return object.OpenDir(fs, "/bucket") })
}

// TestDirErrors fails the n-th operation on the file system, for every n: a Put
// that failed left nothing, one that did not is whole.
func TestDirErrors(t *testing.T) {
	for n := int32(0); ; n++ {
		mem := vfs.NewMem()
		openDir(t, mem, "/b")
		inj := errorfs.OnIndex(-1)
		b, err := object.OpenDir(errorfs.Wrap(mem, inj), "/b")
		if err != nil {
			t.Fatal(err)
		}
		inj.Store(n)
		err = object.PutBytes(t.Context(), b, "d/k", []byte("abc"))
		fired := inj.Load() < 0
		inj.Store(-1)
		found := 0
		if err := b.List(t.Context(), "", func(object.Info) error { found++; return nil }); err != nil {
			t.Fatal(err)
		}
		if err == nil && found != 1 {
			t.Fatalf("op %d: put said nil, %d objects", n, found)
		}
		if !fired {
			break
		}
	}
}

func TestManyHandles(t *testing.T) {
	b := openDir(t, vfs.OS, t.TempDir())
	p := make([]byte, 1)
	for round := range 2 {
		for i := range 600 {
			key := "k" + string(rune('a'+i%26)) + "-" + string(rune('a'+i/26))
			if round == 0 {
				if err := object.PutBytes(t.Context(), b, key, []byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.ReadAt(t.Context(), key, p, 0); err != nil || p[0] != byte(i) {
				t.Fatal(err, p)
			}
		}
	}
}
