package survive

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"tidemark"
)

// damaging is a stopped server with two volumes, one of whose files is damaged at a time.
type damaging struct {
	*stage
	sums map[string]string
}

// TestDamage (D2) flips a bit in a file of every kind, with the server stopped, and
// deletes what is said to be rebuilt. What is damaged is named or healed, is
// never served with other bytes, and everything else works.
func TestDamage(t *testing.T) {
	t.Parallel()
	need(t)
	for _, c := range []struct{ name, pattern string }{
		{"pack", "store/open/*"},
		{"journal", "timelines/ID/journal/*"},
		{"state", "timelines/ID/state"},
		{"descriptor", "pool/timelines/ID/descriptor-*"},
		{"point", "pool/timelines/ID/image-*"},
		{"index", "store/index/*.sst"},
		{"index manifest", "store/index/MANIFEST-*"},
		{"catalog", "catalog.db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			beside(t)
			d := &damaging{stage: newStage(t), sums: map[string]string{}}
			d.prepare()
			d.flip(c.pattern)
			d.check()
		})
	}
	for _, what := range []string{"store/index", "catalog.db"} {
		t.Run("without "+filepath.Base(what), func(t *testing.T) {
			beside(t)
			d := &damaging{stage: newStage(t), sums: map[string]string{}}
			d.prepare()
			for _, suffix := range []string{"", "-wal", "-shm"} {
				if err := os.RemoveAll(filepath.Join(d.data, what+suffix)); err != nil {
					t.Fatal(err)
				}
			}
			d.start()
			for ref := range d.sums {
				if !d.same(ref) {
					t.Errorf("%s cannot be restored", ref)
				}
			}
			if v := ask[tidemark.VerifyResult](d.stage, "verify"); len(v.Damaged) > 0 {
				t.Errorf("verify: %v", v.Damaged)
			}
		})
	}
}

// prepare makes two volumes of different bytes and stops the server.
func (d *damaging) prepare() {
	d.start()
	for i, name := range []string{"hit", "whole"} {
		k := &killing{stage: d.stage, rng: seeded(d.t), source: filepath.Join(d.dir, name)}
		if err := os.WriteFile(k.source, nil, 0o600); err != nil {
			d.t.Fatal(err)
		}
		if err := os.Truncate(k.source, 96<<20); err != nil {
			d.t.Fatal(err)
		}
		k.change(1 << 20 << i)
		d.run("volume", "import", name, k.source, "--bookmark", "b")
		d.sums[name+"@b"] = checksum(d.t, k.source)
	}
	d.end(syscall.SIGTERM)
}

// flip changes a bit in the middle of every file of a pattern, in which ID is the timeline of the volume hit.
func (d *damaging) flip(pattern string) {
	d.t.Helper()
	if strings.Contains(pattern, "ID") {
		d.start()
		id := ask[tidemark.VolumeInfo](d.stage, "volume", "show", "hit").Timeline.ID
		d.end(syscall.SIGTERM)
		pattern = strings.ReplaceAll(pattern, "ID", id)
	}
	files, err := filepath.Glob(filepath.Join(d.data, pattern))
	if err != nil || len(files) == 0 {
		d.t.Fatalf("no file is %s: %v", pattern, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			d.t.Fatal(err)
		}
		if len(b) == 0 {
			continue
		}
		b[len(b)/2] ^= 0x10
		if err := os.WriteFile(f, b, 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
}

// check starts the server: if it refuses, it names the file. Then what can be
// restored is as it was, and what cannot is named by verify.
func (d *damaging) check() {
	t := d.t
	if err := d.tryStart(); err != nil {
		if !strings.Contains(err.Error(), d.data) {
			t.Errorf("the refusal to start names no file: %v", err)
		}
		t.Logf("refuses to start: %v", err)
		return
	}
	hit, whole := d.same("hit@b"), d.same("whole@b")
	out, err := d.try("verify")
	t.Logf("hit %v, whole %v, verify: %v %s", hit, whole, err, out)
	if !hit && err == nil {
		t.Error("a point is lost and verify is content")
	}
	if !whole && (err == nil || !strings.Contains(out+err.Error(), "whole@b")) {
		t.Error("the other volume is lost, and verify does not say so")
	}
	d.run("volume", "create", "another", "--size", "1MiB")
	d.run("status")
}

// same restores a point: false is an error of one clear line; other bytes than were stored fail the test.
func (d *damaging) same(ref string) bool {
	out := filepath.Join(d.dir, "restored")
	if _, err := d.try("restore", ref, "--to", out, "--force"); err != nil {
		d.t.Logf("%v", err)
		if strings.Count(err.Error(), "\n") > 0 {
			d.t.Errorf("an error is one line: %v", err)
		}
		return false
	}
	if checksum(d.t, out) != d.sums[ref] {
		d.t.Fatalf("%s was restored with other bytes than were stored", ref)
	}
	return true
}
