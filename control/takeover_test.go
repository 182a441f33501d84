package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/mount"
)

// mounted makes a volume v with a mount m of it, which is attached and no more, in a data directory, and returns its server and its attachment.
func mounted(t *testing.T, dir string) (*Control, *mount.Attachment) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	c := serverIn(t, dir)
	if _, err := c.CreateVolume(t.Context(), tidemark.VolumeSpec{Name: "v", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Mount(t.Context(), tidemark.MountSpec{Ref: "v@latest", Name: "m"}); err != nil {
		t.Fatal(err)
	}
	return c, attachment(t, c.attachDir())
}

// attachment is that of the mount m below a state directory.
func attachment(t *testing.T, state string) *mount.Attachment {
	t.Helper()
	at, err := mount.Find(state, "m@"+volumeDisk)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// served reports whether a server serves a name.
func served(c *Control, name string) bool {
	for _, e := range c.exports.List() {
		if e.Name == name {
			return true
		}
	}
	return false
}

// statusOf is how an attachment is.
func statusOf(t *testing.T, at *mount.Attachment) mount.Status {
	t.Helper()
	st, err := at.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// back waits until an attachment has its server, and says how it is.
func back(t *testing.T, at *mount.Attachment) mount.Status {
	t.Helper()
	for range 1000 {
		if st := statusOf(t, at); st.Server.Connected {
			return st
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the attacher does not come back")
	return mount.Status{}
}

// page is a page that can be written directly.
func page(t *testing.T) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// writes fills the first page of a device with a byte, and flushes it if asked to.
func writes(t *testing.T, device string, fill byte, flush bool) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := page(t)
	for i := range b {
		b[i] = fill
	}
	_, err = f.WriteAt(b, 0)
	if flush {
		err = errors.Join(err, f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// reads checks that the first page of a device is filled with a byte.
func reads(t *testing.T, device string, fill byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := page(t)
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{fill}, len(b))) {
		t.Errorf("the disk begins with %q, not %q: %v", b[0], fill, err)
	}
}

// ends takes what is attached off when the test ends.
func endsItself(t *testing.T, at *mount.Attachment) {
	t.Cleanup(func() {
		unix.Kill(at.PID(), unix.SIGKILL)
		for i := 0; at.Alive() && i < 1000; i++ {
			time.Sleep(10 * time.Millisecond)
		}
		if err := at.Cleanup(true); err != nil {
			t.Error(err)
		}
	})
}

// A server that is started again on the same host finds the attachers that it had; what an older release had attached, too.
func TestAttachersComeBackOnTheSameBoot(t *testing.T) {
	for what, turn := range map[string]int{"as it was made": firstTurn, "by an older release": 0} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			c, at := mounted(t, dir)
			if turn != firstTurn {
				a, err := c.app("m")
				if err == nil {
					err = errors.Join(c.detach(t.Context(), a, volumeDisk), c.annotate(t.Context(), a, func(n *about) { n.Turn = turn }))
				}
				if err == nil {
					a, err = appOf(a.t)
				}
				if err == nil {
					_, err = c.attach(t.Context(), a, volumeDisk, false)
				}
				if err != nil {
					t.Fatal(err)
				}
				if at = attachment(t, c.attachDir()); at.Config().Export != exportName("m", volumeDisk) {
					t.Fatalf("it is attached as %s", at.Config().Export)
				}
			}
			writes(t, at.Device(), 'a', false)
			closes(t, c)
			c = serverIn(t, dir)
			defer closes(t, c)
			if st := back(t, at); st.Server.Reconnects == 0 {
				t.Error("it was not away")
			}
			if now := attachment(t, c.attachDir()); now.PID() != at.PID() || !served(c, at.Config().Export) {
				t.Errorf("process %d shows it, and not %d any more", now.PID(), at.PID())
			}
			if a, err := c.app("m"); err != nil || a.Turn != turn {
				t.Errorf("it is turn %d: %v", a.Turn, err)
			}
			reads(t, at.Device(), 'a')
			if err := c.Unmount(t.Context(), "m"); err != nil {
				t.Error(err)
			}
		})
	}
}

// Two machines that share the data directory take turns. What the attacher of the one has left to write never gets over what was
// written by way of the other.
func TestTakeOverFromAnotherMachine(t *testing.T) {
	dir := t.TempDir()
	c, one := mounted(t, dir)
	writes(t, one.Device(), 'a', false)
	closes(t, c)

	// For the second machine, and what it leaves to the first, none of this host's is there.
	state := c.attachDir()
	away := t.TempDir()
	if err := os.Rename(filepath.Join(state, one.Name()), filepath.Join(away, one.Name())); err != nil {
		t.Fatal(err)
	}
	one = attachment(t, away)
	endsItself(t, one)
	c = serverIn(t, dir)
	two := attachment(t, state)
	endsItself(t, two)
	if two.PID() == one.PID() || served(c, one.Config().Export) {
		t.Fatalf("%s is still served", one.Config().Export)
	}
	writes(t, two.Device(), 'b', true)
	stays(t, one)
	reads(t, two.Device(), 'b')
	writes(t, two.Device(), 'c', false)
	closes(t, c)

	// The first machine finds what the second has noted.
	record := filepath.Join(state, two.Name(), "attach.json")
	b, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	var of map[string]any
	if err := json.Unmarshal(b, &of); err != nil {
		t.Fatal(err)
	}
	of["Boot"] = "another"
	if b, err = json.Marshal(of); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c = serverIn(t, dir)
	defer closes(t, c)
	three := attachment(t, state)
	if slices.Contains([]int{one.PID(), two.PID()}, three.PID()) || served(c, one.Config().Export) || served(c, two.Config().Export) {
		t.Fatalf("attached by process %d as %s, after %s and %s", three.PID(), three.Config().Export, one.Config().Export, two.Config().Export)
	}
	stays(t, one)
	writes(t, three.Device(), 'd', true)
	reads(t, three.Device(), 'd')
	if err := c.Unmount(t.Context(), "m"); err != nil {
		t.Error(err)
	}
}

// stays checks that an attacher does not come back, for longer than it waits between two tries.
func stays(t *testing.T, at *mount.Attachment) {
	t.Helper()
	for range 15 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		st, err := at.Status(ctx)
		cancel()
		if errors.Is(err, mount.ErrStale) {
			return
		}
		if err != nil || st.Server.Connected || st.Server.Replayed > 0 {
			t.Fatalf("an attacher of another machine is %+v, %v", st.Server, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// What is made anew under a name is never what an attacher knows by that.
func TestNamesOfWhatIsMadeAnew(t *testing.T) {
	c := serving(t)
	names := map[string]bool{}
	v, err := c.app("v")
	if err != nil {
		t.Fatal(err)
	}
	head, _ := v.t.Head()
	for range 2 {
		a, err := c.branch(t.Context(), v, "k", "", head, nil, roleMount)
		if err != nil {
			t.Fatal(err)
		}
		if name := exportOf(a, volumeDisk); names[name] || name == exportName("k", volumeDisk) {
			t.Errorf("it is served as %s again", name)
		} else {
			names[name] = true
		}
		if err := a.t.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
