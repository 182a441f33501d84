package agent

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/block"
	"tidemark/export/nbd"
	"tidemark/mount"
)

// shownHere serves a disk at the socket of a data directory, and returns who shows it there.
func shownHere(t *testing.T) (Here, ShownDisk, *nbd.Server) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	h := Here{Places: PlacesIn(t.TempDir())}
	if err := os.MkdirAll(filepath.Dir(h.Places.Disks), 0o700); err != nil {
		t.Fatal(err)
	}
	table := nbd.NewTable()
	if err := table.Add(&nbd.Export{Name: "e", Device: &inMemory{b: make([]byte, 16<<20)}}); err != nil {
		t.Fatal(err)
	}
	l, err := nbd.Listen("unix:" + h.Places.Disks)
	if err != nil {
		t.Fatal(err)
	}
	s := nbd.NewServer(table, nbd.Options{})
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return h, ShownDisk{Application: "a", Disk: "disk", Export: "e"}, s
}

// inMemory is a disk in memory.
type inMemory struct {
	mu sync.RWMutex
	b  []byte
}

func (d *inMemory) Size() int64  { return int64(len(d.b)) }
func (d *inMemory) Flush() error { return nil }

func (d *inMemory) ReadAt(p []byte, off int64) (int, error) {
	if err := block.Check(d, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.b[off:]), nil
}

func (d *inMemory) WriteAt(p []byte, off int64) (int, error) {
	if err := block.Check(d, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.b[off:], p), nil
}

func (d *inMemory) Discard(off, n int64) error {
	if err := block.Check(d, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.b[off : off+n])
	return nil
}

// An attacher that has given up shows nothing, whoever finds it: the disk is attached anew.
func TestGivenUpIsNotShown(t *testing.T) {
	h, d, server := shownHere(t)
	old, err := mount.Attach(t.Context(), mount.Config{Name: d.name(), StateDir: h.Places.Attached, Socket: h.Places.Disks, Export: d.Export, GiveUp: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	device, err := h.AttachDisk(t.Context(), d)
	if err != nil || device != old.Device() {
		t.Fatalf("one that works is left for %s: %v", device, err)
	}
	hidden := h.Places.Disks + ".away"
	if err := os.Rename(h.Places.Disks, hidden); err != nil {
		t.Fatal(err)
	}
	server.Disconnect(d.Export)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		st, err := old.Status(t.Context())
		if err != nil || time.Now().After(end) {
			t.Fatalf("%+v, %v", st, err)
		}
		if st.Server.GaveUp {
			break
		}
	}
	if err := os.Rename(hidden, h.Places.Disks); err != nil {
		t.Fatal(err)
	}
	if s, err := h.LookDisk(t.Context(), d); err != nil || s.Device != "" || !s.Attached {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := h.AttachDisk(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	now, err := h.find(d)
	if err != nil || now.PID() == old.PID() || old.Alive() {
		t.Fatalf("process %d shows it after %d: %v", now.PID(), old.PID(), err)
	}
	if st, err := now.Status(t.Context()); err != nil || !st.Server.Connected {
		t.Errorf("%+v, %v", st, err)
	}
	if err := h.DetachDisk(t.Context(), d); err != nil {
		t.Error(err)
	}
}

// What an attacher of another boot has left says nothing about a device that has its name now, nor about what runs on that.
func TestRemoveOfAnotherBoot(t *testing.T) {
	h, d, _ := shownHere(t)
	dir := filepath.Join(h.Places.Dir, ClonesDir, "b", "disk")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	device, err := h.AttachDisk(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.Format(device, "ext4", "b"); err != nil {
		t.Fatal(err)
	}
	if err := mount.MountFS(device, dir, "ext4", nil); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip(err)
	}
	program := filepath.Join(t.TempDir(), "postgres")
	if out, err := exec.Command("cp", "-L", sleep, program).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	database := exec.Command(program, "60")
	database.Dir = dir
	if err := database.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- database.Wait() }()

	left := filepath.Join(h.Places.Attached, "c@disk")
	b, err := json.Marshal(map[string]any{"Name": "c@disk", "PID": 1, "Boot": "another", "Device": device, "Token": "another", "Export": "e"})
	if err == nil {
		err = os.Mkdir(left, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(left, "attach.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	other := ShownDisk{Application: "c", Disk: "disk", Export: "e"}
	if here, elsewhere, err := h.KnownDisk(other); here || !elsewhere || err != nil {
		t.Errorf("known here %v, elsewhere %v: %v", here, elsewhere, err)
	}
	if here, elsewhere, err := h.KnownDisk(d); !here || elsewhere || err != nil {
		t.Errorf("known here %v, elsewhere %v: %v", here, elsewhere, err)
	}
	if err := h.DetachDisk(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("the database of another disk was ended: %v", err)
	case <-time.After(500 * time.Millisecond):
		database.Process.Kill()
		<-ended
	}
	if err := mount.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if err := h.DetachDisk(t.Context(), d); err != nil {
		t.Error(err)
	}
}

// What a host cannot do now is told as such, for it may pass; what is wrong with the request is not.
func TestNotAttached(t *testing.T) {
	h, d, server := shownHere(t)
	server.Close()
	if _, err := h.AttachDisk(t.Context(), d); tidemark.KindOf(err) != tidemark.Unavailable || !strings.Contains(err.Error(), "attach disk disk of a: attach a@disk: ") {
		t.Errorf("attached without a server: %v", err)
	}
	d.Application = "/"
	if _, err := h.AttachDisk(t.Context(), d); err == nil || tidemark.KindOf(err) == tidemark.Unavailable {
		t.Errorf("attached by a bad name: %v", err)
	}
}
