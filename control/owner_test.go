package control

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark"
	"tidemark/internal/vfs"
)

// asIfStopped lets the owner have looked long ago, as after a time in which the process was stopped.
func asIfStopped(w *owner) { w.seen.Store(0) }

func TestOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owner")
	var told error
	first, err := takeOwnership(path, func(err error) { told = err })
	if err != nil {
		t.Fatal(err)
	}
	fs := ownedFS{vfs.OS, first}
	file := filepath.Join(t.TempDir(), "file")
	asIfStopped(first)
	if err := vfs.WriteFile(fs, file, []byte("first")); err != nil || told != nil {
		t.Fatalf("%v, %v", err, told)
	}
	f, err := vfs.OpenReadWrite(fs, file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	second, err := takeOwnership(path, func(err error) { t.Errorf("the second is told %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"sync":       f.Sync,
		"sync data":  f.SyncData,
		"remove":     func() error { return fs.Remove(file) },
		"remove all": func() error { return fs.RemoveAll(file) },
		"rename":     func() error { return fs.Rename(file, file+"-2") },
		"link":       func() error { return fs.Link(file, file+"-2") },
		"write file": func() error { return vfs.WriteFile(fs, file, []byte("late")) },
	} {
		told = nil
		asIfStopped(first)
		if err := do(); err == nil || !errors.Is(err, told) {
			t.Errorf("%s: %v, told %v", what, err, told)
		}
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "first" {
		t.Errorf("%q, %v", data, err)
	}
	asIfStopped(second)
	if err := second.check(); err != nil {
		t.Error(err)
	}
}

// A server whose directory was taken over acknowledges nothing more, and is told so whether or not anybody writes.
func TestTakenOver(t *testing.T) {
	told := make(chan error, 1)
	lost := func(err error) {
		select {
		case told <- err:
		default: // it was told before, and would have ended
		}
	}
	dir := t.TempDir()
	c, err := Open(t.Context(), Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), Reserve: -1, CacheBytes: 16 << 20, Lost: lost})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	a, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	d := a.t.Disks()[0]
	write := func() error {
		if _, err := d.WriteAt(bytes.Repeat([]byte("."), 4096), 0); err != nil {
			return err
		}
		return d.Flush()
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	mine := c.path("owner-of-mine")
	if err := os.Link(c.path("owner"), mine); err != nil {
		t.Fatal(err)
	}
	defer func() { // so that it can be closed, which no process that has lost its directory tries
		if err := os.Rename(mine, c.path("owner")); err != nil {
			t.Error(err)
		}
	}()
	if _, err := takeOwnership(c.path("owner"), nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-told:
	case <-time.After(30 * time.Second):
		t.Error("nobody has looked")
	}
	if err := write(); err == nil {
		t.Error("a write was acknowledged")
	}
}
