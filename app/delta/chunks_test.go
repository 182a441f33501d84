package delta

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// chunkAt is what a test says of a chunk.
type chunkAt struct {
	path   string
	number int64
}

func nowhere(string) (string, bool) { return "", false }

func randomSum(rng *rand.Rand) (s sum) {
	for i := range s {
		s[i] = byte(rng.Uint32())
	}
	return s
}

// finds reports whether places lead to a chunk.
func finds(found []place, path func(uint32) (string, error), want chunkAt) bool {
	for _, p := range found {
		if name, err := path(p.path); err == nil && name == want.path && int64(p.number) == want.number {
			return true
		}
	}
	return false
}

// An index knows what was noted last of each chunk of the files that are still there, through many Receives.
func TestIndexModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	staging, path := t.TempDir(), filepath.Join(t.TempDir(), "index")
	model := map[chunkAt]sum{}
	var old *index
	for range 12 {
		n, err := newNotes(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		noted, files := map[chunkAt]sum{}, map[string]*named{}
		for range rng.IntN(3 * tailSize) {
			c := chunkAt{fmt.Sprintf("file %d", rng.IntN(200)), rng.Int64N(100)}
			if _, again := noted[c]; again {
				continue
			}
			noted[c] = randomSum(rng)
			if files[c.path] == nil {
				files[c.path] = &named{path: c.path}
			}
			n.add(noted[c], files[c.path], c.number)
			f, err := os.Create(filepath.Join(staging, c.path))
			if err == nil {
				err = errors.Join(f.Truncate(100*chunkSize), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for c, s := range noted {
			if !finds(n.find(s.key()), n.path, c) {
				t.Fatalf("seed %d: %v was noted, and is not found", seed, c)
			}
			model[c] = s
		}
		gone := fmt.Sprintf("file %d", rng.IntN(200))
		if _, err := os.Stat(filepath.Join(staging, gone)); err == nil && files[gone] == nil {
			if err := os.Remove(filepath.Join(staging, gone)); err != nil {
				t.Fatal(err)
			}
			for c := range model {
				if c.path == gone {
					delete(model, c)
				}
			}
		}
		if err := n.save(path, old, staging, nowhere); err != nil {
			t.Fatal(err)
		}
		n.table.Close()
		old.close()
		if old, err = openIndex(path); err != nil {
			t.Fatal(err)
		}
		if old.places != len(model) {
			t.Fatalf("seed %d: %d places of %d chunks", seed, old.places, len(model))
		}
		for c, s := range model {
			if !finds(old.find(s.key()), old.path, c) {
				t.Fatalf("seed %d: %v is not found", seed, c)
			}
		}
		if f := old.find(randomSum(rng).key()); len(f) != 0 {
			t.Fatalf("seed %d: found what was never noted: %v", seed, f)
		}
	}
	old.close()
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
		t.Errorf("beside the index there is %v, %v", list, err)
	}
}

// Whatever is in the file of an index, what it leads to can be asked for.
func FuzzIndex(f *testing.F) {
	dir := f.TempDir()
	n, err := newNotes(dir)
	if err != nil {
		f.Fatal(err)
	}
	s := sum{1, 2, 3}
	a := &named{path: "data/a"}
	n.add(s, a, 0)
	n.add(sum{1, 2, 4}, a, 7)
	n.add(sum{9}, &named{path: "data/b"}, 1)
	path := filepath.Join(dir, "index")
	if err := n.save(path, nil, dir, nowhere); err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:30])
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "index")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := openIndex(path)
		if err != nil {
			return
		}
		defer x.close()
		for _, p := range x.find(s.key()) {
			if name, err := x.path(p.path); err == nil && len(name) > maxPath {
				t.Errorf("a path of %d bytes", len(name))
			}
		}
		again, err := newNotes(filepath.Dir(path))
		if err != nil {
			t.Fatal(err)
		}
		defer again.table.Close()
		if err := again.save(path, x, dir, nowhere); err != nil {
			t.Errorf("it cannot be replaced: %v", err)
		}
	})
}
