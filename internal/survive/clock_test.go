package survive

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// TestClockSet (J7, K1) sets the clock of a host, forward and back, while a tapped disk is written there, in a machine whose clock is its own: points
// keep their order, each bookmark is what the disk was, a time that named a point once names it for ever, also
// behind a kill, and nothing is old because the clock says so.
func TestClockSet(t *testing.T) {
	if inGuest {
		clockSet(t)
		return
	}
	besideInGuest(t)
	runInGuest(t, "")
}

const clockDisk = 2 << 20

// clocked is a tapped disk under a clock that the test sets.
type clocked struct {
	*tapping
	f     *os.File
	buf   []byte
	model []byte // what the disk holds
	names []string
	marks map[string][]byte
	told  []momentOf
	// scheduled are bookmarks that were made by interval.
	scheduled []string
}

// momentOf is a time and what the disk was shown to be then.
type momentOf struct {
	when time.Time
	data []byte
}

func clockSet(t *testing.T) {
	x := &clocked{tapping: &tapping{stage: newStage(t), rng: seeded(t)}, model: make([]byte, clockDisk), marks: map[string][]byte{}}
	x.disk = filepath.Join(x.dir, "disk")
	if err := os.WriteFile(x.disk, x.model, 0o600); err != nil {
		t.Fatal(err)
	}
	x.start()
	a := ask[tidemark.Application](x.stage, "protect", x.disk, "--cdp", "--name", "prod", "--window", "1h", "-o", "appshot=2s", "-o", "appshot_keep=10m")
	x.device = a.Tap.Disks[0].Device
	x.follows()
	x.openDevice()

	x.stretch(true)
	first := x.told[0]
	x.setClock(2 * time.Hour)
	x.stretch(true)
	x.setClock(-time.Hour)
	behind := func(w string) bool { return strings.Contains(w, "behind the newest write of prod") } // where folding is slow, there is another one
	if w := ask[tidemark.Status](x.stage, "status").Warnings; !slices.ContainsFunc(w, behind) {
		x.t.Errorf("the clock was set back, and status warns of %q", w)
	}
	x.refused([]string{"the clock is", "behind the newest write of prod"}, "restore", "prod@-1s", "--to", filepath.Join(x.dir, "out"))
	x.stretch(false)
	x.end(syscall.SIGKILL)
	x.start()
	x.stretch(false)
	x.setClock(2 * time.Hour)
	x.stretch(true)
	x.scheduled = x.shots()
	x.setClock(365 * 24 * time.Hour)
	for len(x.shots()) < len(x.scheduled)+2 { // those who make them expire the old ones
		x.stretch(true)
	}
	x.shows(first)
	x.end(syscall.SIGTERM)
	x.start()
	x.follows()
	x.everything()
	x.f.Close()
	x.run("unprotect", "prod")
}

func (x *clocked) openDevice() {
	x.t.Helper()
	f, err := os.OpenFile(x.device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		x.t.Fatal(err)
	}
	buf, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		x.t.Fatal(err)
	}
	x.f, x.buf = f, buf
}

// setClock moves the clock of this machine.
func (x *clocked) setClock(by time.Duration) {
	x.t.Helper()
	ts := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		x.t.Fatal(err)
	}
}

func (x *clocked) write() {
	x.t.Helper()
	rng := rand.New(rand.NewPCG(x.rng.Uint64(), 3))
	p := x.buf[:4096*(1+x.rng.IntN(16))]
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	off := x.rng.Int64N((clockDisk-int64(len(p)))/4096) * 4096
	if _, err := x.f.WriteAt(p, off); err != nil {
		x.t.Fatal(err)
	}
	copy(x.model[off:], p)
}

// stretch writes for a while, with bookmarks, and asks for the time that it is now and then. If the clock is ahead of all records, that is what the
// disk is; else it is what it was shown to be when that time was there first.
func (x *clocked) stretch(ahead bool) {
	x.t.Helper()
	for n := range 6 {
		for range 10 {
			x.write()
		}
		now := time.Now()
		name := fmt.Sprintf("b%d", len(x.names))
		if n%2 == 0 {
			x.run("bookmark", "prod", name)
			x.names = append(x.names, name)
			x.marks[name] = bytes.Clone(x.model)
		}
		got := x.at(now.UTC().Format(time.RFC3339Nano))
		if ahead && !bytes.Equal(got, x.model) {
			x.t.Errorf("at %v, just past, the disk was not what is shown: %s", now, differs(got, x.model))
		}
		x.told = append(x.told, momentOf{now, got})
	}
}

// at is what the disk was at a point.
func (x *clocked) at(point string) []byte {
	x.t.Helper()
	out := filepath.Join(x.dir, "out")
	for end := time.Now().Add(time.Minute); ; {
		_, err := x.try("restore", "prod@"+point, "--to", out, "--force")
		if err == nil {
			return readAll(x.t, out)
		}
		if !strings.Contains(err.Error(), "is not known yet") || time.Now().After(end) { // a busy machine's tap is behind for longer than a command waits
			x.t.Fatalf("%v\nlog: %s", err, x.log())
		}
	}
}

// shows asks for a time again.
func (x *clocked) shows(m momentOf) {
	x.t.Helper()
	if got := x.at(m.when.UTC().Format(time.RFC3339Nano)); !bytes.Equal(got, m.data) {
		x.t.Errorf("%v named another point before: %s", m.when, differs(got, m.data))
	}
}

// everything asks for all that was told, and looks at all points.
func (x *clocked) everything() {
	x.t.Helper()
	for _, m := range x.told {
		x.shows(m)
	}
	for name, want := range x.marks {
		if got := x.at(name); !bytes.Equal(got, want) {
			x.t.Errorf("%s is not what the disk was: %s", name, differs(got, want))
		}
	}
	points := ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Points
	var ours []string
	for i, p := range points {
		if i > 0 && (p.Position <= points[i-1].Position || !p.Time.After(points[i-1].Time)) {
			x.t.Errorf("%s of %v is listed behind %s of %v", p.Bookmark, p.Time, points[i-1].Bookmark, points[i-1].Time)
		}
		if !strings.HasPrefix(p.Bookmark, "auto-") {
			ours = append(ours, p.Bookmark)
		}
	}
	if want := strings.Join(x.names, " "); strings.Join(ours, " ") != want {
		x.t.Errorf("the bookmarks are %v, and were made as %s", ours, want)
	}
	left := x.shots()
	for _, name := range x.scheduled {
		if !slices.Contains(left, name) {
			x.t.Errorf("%s is gone, in less than its ten minutes", name)
		}
	}
}

// shots are the bookmarks that were made by interval.
func (x *clocked) shots() (names []string) {
	x.t.Helper()
	for _, p := range ask[tidemark.Points](x.stage, "points", "prod", "--intervals").Points {
		if strings.HasPrefix(p.Bookmark, "auto-") {
			names = append(names, p.Bookmark)
		}
	}
	return names
}
