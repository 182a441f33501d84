package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/block"
)

const tappedSize = 1 << 20

// far is the agent of another host with two tapped disks, which are files here.
type far struct {
	*Agent
	tapping Tapping
	paths   []string
	dialled []net.Conn // by the agent, for what is written
}

func newFar(t *testing.T, host string) *far {
	t.Helper()
	f := &far{Agent: NewRemote(host), tapping: Tapping{Timeline: "t", Application: "a"}}
	ours, theirs := net.Pipe()
	s := newSession(theirs)
	s.places = PlacesIn(t.TempDir())
	s.dial = func(context.Context, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		f.dialled = append(f.dialled, theirs)
		go func() {
			f.TakeTicket(ours)
			ours.Close()
		}()
		return theirs, nil
	}
	if err := os.MkdirAll(s.places.Devices, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		f.tapping.Disks = append(f.tapping.Disks, TapDisk{Name: name, Size: tappedSize})
		path := s.places.Device("a", name, 2)
		f.paths = append(f.paths, path)
		if err := os.WriteFile(path, make([]byte, tappedSize), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	go s.serve(context.Background())
	take(t, f.Agent, ours)
	return f
}

// loop has a kernel's device show each disk, which unlike a file is open for one alone.
func (f *far) loop(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	for _, path := range f.paths {
		image := path + ".img"
		if err := os.Rename(path, image); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("losetup", "--find", "--show", image).Output()
		if err != nil {
			t.Fatal(err)
		}
		device := strings.TrimSpace(string(out))
		t.Cleanup(func() {
			if err := exec.Command("losetup", "--detach", device).Run(); err != nil {
				t.Error(err)
			}
		})
		if err := os.Symlink(device, path); err != nil {
			t.Fatal(err)
		}
	}
}

// open opens the disks until the test ends.
func (f *far) open(t *testing.T) *WriteBack {
	t.Helper()
	w, err := f.OpenTapped(t.Context(), f.tapping)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// What is written here is what the disks there hold after a flush.
func TestWriteBack(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	f := newFar(t, "a")
	w := f.open(t)
	want := [2][]byte{make([]byte, tappedSize), make([]byte, tappedSize)}
	for range 200 {
		i := rng.IntN(2)
		off := rng.Int64N(tappedSize/block.BlockSize) * block.BlockSize
		p := bytes.Repeat([]byte{byte(rng.Uint32())}, int(min(tappedSize-off, rng.Int64N(64)*block.BlockSize)))
		copy(want[i][off:], p)
		if _, err := w.Disk(i).WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	for i, path := range f.paths {
		if err := w.Disk(i).Sync(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want[i]) {
			t.Errorf("disk %d holds something else (%v)", i, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// Disks are open for one alone, and for the next when they were closed.
func TestWriteBackAlone(t *testing.T) {
	f := newFar(t, "a")
	f.loop(t)
	w := f.open(t)
	if _, err := f.OpenTapped(t.Context(), f.tapping); tidemark.KindOf(err) != tidemark.Conflict {
		t.Errorf("what is open is opened again: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	f.open(t)
}

// What is wrong with a disk is told as that, and never as something that can be gone on with; a connection that ends can.
func TestWriteBackFails(t *testing.T) {
	f := newFar(t, "a")
	w := f.open(t)
	if _, err := w.Disk(0).WriteAt(make([]byte, 4096), 100); err == nil { // direct I/O takes no such offset
		err = w.Disk(0).Sync()
		if !errors.Is(err, unix.EINVAL) || errors.Is(err, ErrInterrupted) || !strings.Contains(err.Error(), "write disk one") {
			t.Errorf("of a disk that refuses a write: %v", err)
		}
	}
	if err := w.Disk(1).Sync(); err == nil {
		t.Error("a disk is flushed after the connection has ended")
	}
	w = f.open(t)
	if _, err := w.Disk(0).WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	f.dialled[1].Close()
	if err := w.Disk(0).Sync(); !errors.Is(err, ErrInterrupted) {
		t.Errorf("after the end of the connection: %v", err)
	}
	os.Remove(f.paths[1])
	if _, err := f.OpenTapped(t.Context(), f.tapping); tidemark.KindOf(err) != tidemark.Unavailable || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("of a disk that is not there: %v", err)
	}
}

// A job that is cancelled ends what is written, and is told so, whether the agent hears of that first or sees the connection end.
func TestWriteBackCancelled(t *testing.T) {
	f := newFar(t, "a")
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		w, err := f.OpenTapped(ctx, f.tapping)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := w.Disk(0).Sync(); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatalf("%v", err)
		}
		w.Close()
	}
}

// An agent that is stopped cancels what it does; that is no reason for us to give up.
func TestWriteBackAgentStops(t *testing.T) {
	f := &far{Agent: NewRemote("a"), tapping: Tapping{Timeline: "t", Application: "a", Disks: []TapDisk{{Name: "one"}}}}
	ours, theirs := net.Pipe()
	s := newSession(theirs)
	s.places = PlacesIn(t.TempDir())
	stopped, stop := context.WithCancel(context.Background())
	s.dial = func(context.Context, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go f.TakeTicket(ours)
		return theirs, nil
	}
	if err := os.MkdirAll(s.places.Devices, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.places.Device("a", "one", 1), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	go s.serve(stopped)
	take(t, f.Agent, ours)
	w := f.open(t)
	stop() // what runs is cancelled, and the connection lives on for its answers
	var err error
	for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); {
		err = w.Disk(0).Sync()
	}
	if !errors.Is(err, ErrInterrupted) {
		t.Errorf("%v", err)
	}
}

// A piece that was damaged on its way is not written, and nothing behind it.
func TestWriteBackDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	var good bytes.Buffer
	for off := range int64(2) {
		if err := writePiece(&good, piece{kind: pieceWrite, off: off * 4096}, bytes.Repeat([]byte{7}, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	disk, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for at := range pieceHead + 1 {
		for bit := range 8 {
			bad := bytes.Clone(good.Bytes())
			bad[at] ^= 1 << bit
			err := writePieces(struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(bad), io.Discard}, Tapping{Disks: []TapDisk{{Name: "one"}}}, []*os.File{disk})
			if tidemark.KindOf(err) != tidemark.Unavailable {
				t.Errorf("bit %d of byte %d: %v", bit, at, err)
			}
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, make([]byte, 8192)) {
		t.Errorf("something was written (%v)", err)
	}
}

// A ticket is good for the host that was asked, once, and a connection without one is not taken.
func TestTickets(t *testing.T) {
	a, b := NewRemote("a"), NewRemote("b")
	came := make(chan dialled, 1)
	ticket := strings.Repeat("t", ticketSize)
	a.expect(ticket, came)
	brings := func(x *Agent, ticket string) (taken bool) {
		ours, theirs := net.Pipe()
		ended := make(chan none)
		go func() {
			x.TakeTicket(ours)
			ours.Close()
			close(ended)
		}()
		io.WriteString(theirs, ticket)
		select {
		case <-ended:
			return false
		case d := <-came:
			close(d.taken)
			<-ended
			return true
		}
	}
	if brings(b, ticket) {
		t.Error("another host got in by the ticket")
	}
	if brings(a, strings.Repeat("x", ticketSize)) {
		t.Error("the host got in by another ticket")
	}
	if !brings(a, ticket) {
		t.Error("the host did not get in")
	}
	if brings(a, ticket) {
		t.Error("the host got in twice by one ticket")
	}
}

func FuzzPiece(f *testing.F) {
	var b bytes.Buffer
	writePiece(&b, piece{kind: pieceWrite, disk: 1, off: 4096}, []byte("data"))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		p, data, err := readPiece(bytes.NewReader(in), make([]byte, 64))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := writePiece(&out, p, data); err != nil || !bytes.Equal(out.Bytes(), in[:out.Len()]) {
			t.Errorf("%x is read as %+v %x, and written as %x", in, p, data, out.Bytes())
		}
	})
}
