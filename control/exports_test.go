package control

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"tidemark"
	"tidemark/access"
	"tidemark/catalog"
)

// exported lists the names of what is exported.
func exported(t *testing.T, c *Control) []string {
	t.Helper()
	list, err := c.Exports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name)
	}
	return names
}

// export begins an export that must succeed.
func export(t *testing.T, c *Control, spec tidemark.ExportSpec) tidemark.Export {
	t.Helper()
	e, err := c.Export(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What is removed is exported no longer, so that nobody has by its name what is made later.
func TestExportsEndWithWhatTheyAreOf(t *testing.T) {
	c := serving(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ended(t, c)(c.Protect(t.Context(), tidemark.ProtectSpec{Name: "image", Source: file}))
	ended(t, c)(c.Capture(t.Context(), tidemark.CaptureSpec{Application: "image", Bookmark: "one"}))
	ended(t, c)(c.Clone(t.Context(), tidemark.CloneSpec{Ref: "v@pub-1", Name: "k"}))
	export(t, c, tidemark.ExportSpec{Ref: "image@one"})
	export(t, c, tidemark.ExportSpec{Ref: "k", Writable: true})
	stays := export(t, c, tidemark.ExportSpec{Ref: "v@pub-1"})
	if got := exported(t, c); len(got) != 4 {
		t.Fatalf("%q are exported", got)
	}
	if err := c.Unprotect(t.Context(), "image"); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveClone(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if got := exported(t, c); len(got) != 1 || got[0] != stays.Name {
		t.Errorf("%q are exported, and not %s alone", got, stays.Name)
	}
	for _, e := range c.exports.List() {
		if e.Name == "image" || e.Name == "k" || e.Name == "k-2" {
			t.Errorf("%s is served", e.Name)
		}
	}
}

// An export of what is gone is not served, when the server comes back, of what has its name now; nor is it begun by a rewind of that.
func TestExportOfAnotherOfTheName(t *testing.T) {
	dir := t.TempDir()
	c := serverIn(t, dir)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	a, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	export(t, c, tidemark.ExportSpec{Ref: "v", Writable: true}) // this one stays
	var k keptExport
	if err := c.catalog.Get(t.Context(), catalog.Exports, "v", &k); err != nil {
		t.Fatal(err)
	}
	k.Name, k.Timeline = "old", "another"
	if err := c.catalog.Put(t.Context(), catalog.Exports, k.Name, k); err != nil {
		t.Fatal(err)
	}
	if list, err := c.idleExports(t.Context(), a); err != nil || len(list) != 1 || list[0].Name != "v" {
		t.Errorf("%+v, %v", list, err)
	}
	closes(t, c)
	c = serverIn(t, dir)
	defer closes(t, c)
	if got := exported(t, c); len(got) != 1 || got[0] != "v" {
		t.Errorf("%q are exported", got)
	}
	served := map[string]bool{}
	for _, e := range c.exports.List() {
		served[e.Name] = true
	}
	if !served["v"] || served["old"] {
		t.Errorf("%v are served", served)
	}
}

// Exports that are begun at once have names, addresses and owners of their own.
func TestExportsAtOnce(t *testing.T) {
	c := serving(t)
	dir := t.TempDir()
	var all sync.WaitGroup
	for i := range 12 {
		all.Go(func() {
			spec := tidemark.ExportSpec{Ref: "v@pub-1"}
			if i%2 == 0 {
				spec.Listen = fmt.Sprintf("unix:%s/%d", dir, i)
			}
			if _, err := c.Export(t.Context(), spec); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	names := exported(t, c)
	if len(names) != 12 {
		t.Errorf("%q are exported", names)
	}
	for _, name := range names {
		if _, err := c.catalog.Object(t.Context(), access.KindExport, name); err != nil {
			t.Error(err)
		}
		all.Go(func() {
			if err := c.Unexport(t.Context(), name); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := exported(t, c); len(got) > 0 {
		t.Errorf("%q are exported", got)
	}
}

// Of an export that could not be kept nothing is left.
func TestExportThatIsNotKept(t *testing.T) {
	c := serving(t)
	db, err := sql.Open("sqlite", c.path("catalog.db"))
	if err == nil {
		_, err = db.ExecContext(t.Context(), "CREATE TRIGGER full BEFORE INSERT ON things WHEN NEW.kind = 'export' BEGIN SELECT RAISE(ABORT, 'no room'); END")
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if e, err := c.Export(t.Context(), tidemark.ExportSpec{Ref: "v@pub-1"}); err == nil {
		t.Fatalf("%+v was kept", e)
	}
	if o, err := c.catalog.Object(t.Context(), access.KindExport, "v"); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("%+v, %v", o, err)
	}
	for _, e := range c.exports.List() {
		if e.Name == "v" {
			t.Error("it is served")
		}
	}
}
