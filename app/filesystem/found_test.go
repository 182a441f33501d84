package filesystem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"tidemark/app/delta"
)

// little is what a tree may cost in which all is known but names.
const little = 64 << 10

// What is staged of the same host does not travel again, wherever it is: in a tree of another application, by another name, twice in one tree.
func TestShipsWhatIsNotFound(t *testing.T) {
	one, two, stagedOne, stagedTwo, cache := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	first := delta.Options{Index: cache + "/one", Samples: -1}
	second := delta.Options{Index: cache + "/two", Samples: -1, Known: []delta.Known{{Dir: t.TempDir(), Index: cache + "/none"}, {Dir: stagedOne, Index: first.Index}}}
	data := noise(20<<20 + 12345)
	check := func(what string, st delta.Stats, shipped, found int64) {
		t.Helper()
		if st.Shipped > shipped+little || st.FoundBytes < found-little || st.FoundBytes > found {
			t.Errorf("%s: %+v", what, st)
		}
	}

	write(t, one+"/big", data)
	write(t, one+"/same", data)
	check("the same content twice", mustShip(t, one, stagedOne, first), int64(len(data)), int64(len(data)))
	equal(t, 0, one, stagedOne+"/data")

	write(t, two+"/dir/copy", data[1<<20:]) // from a chunk on, and with another end
	check("what another application has", mustShip(t, two, stagedTwo, second), 0, int64(len(data)-1<<20))
	equal(t, 0, two, stagedTwo+"/data")

	if err := os.Rename(two+"/dir/copy", two+"/dir/copy.1"); err != nil {
		t.Fatal(err)
	}
	alone := delta.Options{Index: second.Index, Samples: -1}
	check("renamed", mustShip(t, two, stagedTwo, alone), 0, int64(len(data)-1<<20))
	equal(t, 0, two, stagedTwo+"/data")
	if err := os.Rename(two+"/dir", two+"/another"); err != nil {
		t.Fatal(err)
	}
	check("its directory renamed", mustShip(t, two, stagedTwo, alone), 0, int64(len(data)-1<<20))
	equal(t, 0, two, stagedTwo+"/data")
	if list, err := os.ReadDir(stagedTwo + "/.tidemark/gone"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what is gone was kept: %v %v", list, err)
	}
}

// What was renamed is found, too, when the capture that saw it first was cut.
func TestShipsNoRenamedTreeBehindACut(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	opts := delta.Options{Index: t.TempDir() + "/index", Samples: -1}
	for i := range 20 {
		write(t, fmt.Sprintf("%s/d/%d", src, i), noise(1<<20+i))
	}
	mustShip(t, src, staging, opts)
	if err := os.Rename(src+"/d", src+"/e"); err != nil {
		t.Fatal(err)
	}
	write(t, src+"/d.new", noise(20<<20))
	if _, err := ship(t, src, staging, opts, 8<<20); !errors.Is(err, delta.ErrLost) {
		t.Fatal(err)
	}
	st := mustShip(t, src, staging, opts)
	if st.Shipped > 13<<20 {
		t.Errorf("8 of 20 MiB had come, and the rest is renamed: %+v", st)
	}
	equal(t, 0, src, staging+"/data")
}

// A link to anywhere in a directory that is gone is in nobody's way later.
func TestShipBehindCutsWithLinks(t *testing.T) {
	src, staging := t.TempDir(), t.TempDir()
	opts := delta.Options{Index: t.TempDir() + "/index", Samples: -1}
	cut := func() {
		t.Helper()
		write(t, src+"/z", noise(1<<20))
		if _, err := ship(t, src, staging, opts, 500_000); !errors.Is(err, delta.ErrLost) {
			t.Fatal(err)
		}
		if err := os.Remove(src + "/z"); err != nil {
			t.Fatal(err)
		}
	}
	write(t, src+"/app/x", noise(10_000))
	if err := os.Symlink("/srv/releases/1", src+"/app/current"); err != nil {
		t.Fatal(err)
	}
	mustShip(t, src, staging, opts)
	if err := os.Rename(src+"/app", src+"/old"); err != nil {
		t.Fatal(err)
	}
	cut()
	write(t, src+"/app/current/y", noise(10_000))
	cut()
	if err := os.Remove(src + "/app/current/y"); err != nil {
		t.Fatal(err)
	}
	mustShip(t, src, staging, opts)
	equal(t, 0, src, staging+"/data")
}

// A log that grows and is renamed is known by its new name, too: what was added to it was noted.
func TestShipsNoRotatedLog(t *testing.T) {
	src, staging, cache := t.TempDir(), t.TempDir(), t.TempDir()
	opts := delta.Options{Index: cache + "/index", Samples: -1}
	data := noise(4 << 20)
	for n := 100_000; n < len(data); n += 700_000 {
		write(t, src+"/log", data[:n])
		mustShip(t, src, staging, opts)
	}
	write(t, src+"/log.1", data[:len(data)-1000])
	write(t, src+"/log", []byte("a new one"))
	st := mustShip(t, src, staging, opts)
	if st.Shipped > 800_000+little {
		t.Errorf("%+v", st)
	}
	equal(t, 0, src, staging+"/data")
}

// An index that lies, of files that have changed since or are no more, and one that is damaged, cost what travels and nothing else.
func TestShipBelievesNoIndex(t *testing.T) {
	one, two, stagedOne, cache := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	opts := delta.Options{Index: cache + "/one", Samples: -1}
	data := noise(3 << 20)
	write(t, one+"/a", data)
	write(t, one+"/b", noise(1<<20))
	mustShip(t, one, stagedOne, opts)
	changed := bytes.Clone(data)
	for i := 0; i < len(changed); i += 100_000 {
		changed[i] ^= 1
	}
	write(t, stagedOne+"/data/a", changed)
	if err := os.Remove(stagedOne + "/data/b"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a", stagedOne+"/data/b"); err != nil {
		t.Fatal(err)
	}
	write(t, two+"/a", data)
	write(t, two+"/b", noise(1<<20))
	ask := func() delta.Stats {
		staging := t.TempDir()
		st := mustShip(t, two, staging, delta.Options{Samples: -1, Index: cache + "/two", Known: []delta.Known{{Dir: stagedOne, Index: opts.Index}}})
		equal(t, 0, two, staging+"/data")
		return st
	}
	if st := ask(); st.FoundBytes == 0 || st.FoundBytes > 2<<20 {
		t.Errorf("a chunk of three was as it was: %+v", st)
	}
	good, err := os.ReadFile(opts.Index)
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		bad := bytes.Clone(good)
		switch rng.IntN(3) {
		case 0:
			bad = bad[:rng.IntN(len(bad))]
		case 1:
			binary.BigEndian.PutUint64(bad[rng.IntN(len(bad)-8):], rng.Uint64())
		case 2:
			clear(bad[rng.IntN(len(bad)):])
		}
		if err := errors.Join(os.WriteFile(opts.Index, bad, 0o600), os.RemoveAll(cache+"/two")); err != nil {
			t.Fatal(err)
		}
		ask()
	}
	if t.Failed() {
		t.Logf("seed %d", seed)
	}
}

// smallDisk mounts a file system in memory, with options that make it a small one, for the length of a test.
func smallDisk(t *testing.T, options string) string {
	need(t, os.Geteuid() == 0, "root")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Nor does it take the last inodes.
func TestShipToADiskWithoutInodes(t *testing.T) {
	staging := smallDisk(t, "size=64m,nr_inodes=200")
	src, opts := t.TempDir(), delta.Options{Index: t.TempDir() + "/index", Samples: -1}
	for i := range 120 {
		write(t, fmt.Sprintf("%s/a/x/%d", src, i), noise(5000+i))
	}
	mustShip(t, src, staging, opts)
	if err := os.RemoveAll(src + "/a/x"); err != nil {
		t.Fatal(err)
	}
	for i := range 120 {
		write(t, fmt.Sprintf("%s/b/%d", src, i), noise(6000+i))
	}
	mustShip(t, src, staging, opts)
	equal(t, 0, src, staging+"/data")
}

// What is kept because it may be elsewhere gives way to what comes, and so does nothing else.
func TestShipToAFullDisk(t *testing.T) {
	staging := smallDisk(t, "size=16m")
	src, opts := t.TempDir(), delta.Options{Index: t.TempDir() + "/index", Samples: -1}
	data := noise(22 << 20)
	write(t, src+"/a", data[:11<<20])
	mustShip(t, src, staging, opts)
	if err := os.Remove(src + "/a"); err != nil {
		t.Fatal(err)
	}
	write(t, src+"/b", data[11<<20:])
	mustShip(t, src, staging, opts)
	equal(t, 0, src, staging+"/data")
	write(t, src+"/c", data[:11<<20])
	if st, err := ship(t, src, staging, opts, 0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%+v %v", st, err)
	}
}
