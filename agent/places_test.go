package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// What is on the disk of a clone is whoever's who wrote it: a link leads nowhere else, neither to another clone nor to what is not Tidemark's.
func TestOfCloneStaysIn(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	disk := filepath.Join(dir, ClonesDir, "k", "data")
	other := filepath.Join(dir, ClonesDir, "other", "data", "pgdata")
	for _, d := range []string{filepath.Join(disk, "pgdata"), other} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"own": "pgdata", "out": outside, "up": "../../other/data", "deep": "../../other/data/pgdata", "round": "../data/pgdata"} {
		if err := os.Symlink(to, filepath.Join(disk, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, own := range []bool{false, true} {
		s := &session{own: own, places: Places{Dir: dir}}
		for rel, good := range map[string]bool{"": true, "pgdata": true, "own": true, "round": true, "absent": true, "out": false, "up": false, "up/pgdata": false, "deep": false} {
			if path, err := s.ofClone(filepath.Join(disk, rel)); (err == nil) != good {
				t.Errorf("own %v: %q is %q, %v", own, rel, path, err)
			}
		}
		if _, err := s.ofClone(outside); (err == nil) != own {
			t.Errorf("own %v: a path that is no clone's: %v", own, err)
		}
	}
}
