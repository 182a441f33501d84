package survive

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/mount"
)

// killTap kills the tap, and returns when it is gone.
func (x *tapping) killTap() {
	x.t.Helper()
	tap := x.tap()
	for end := time.Now().Add(5 * time.Second); tap == nil; tap = x.tap() { // it may just be started anew
		if time.Now().After(end) {
			x.t.Fatal("no tap runs")
		}
		time.Sleep(time.Millisecond)
	}
	if err := unix.Kill(tap.PID(), unix.SIGKILL); err != nil {
		x.t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); tap.Alive(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			x.t.Fatal("the tap does not die")
		}
	}
}

// aloneStall is how long production may wait for a tap that died when no server is there to start it anew.
const aloneStall = 3 * time.Second

// TestTapDiesAlone kills the tap again and again while no server is there: production goes on, and the next server is
// sent what the timeline lacks.
func TestTapDiesAlone(t *testing.T) {
	const size = 16 << 20
	need(t)
	x := newTapping(t, size, func(string) {}, "--window", "1h")
	w := newScribe(x, size)
	time.Sleep(300 * time.Millisecond)
	x.end(syscall.SIGKILL)
	for range 3 {
		x.killTap()
		time.Sleep(aloneStall / 2)
	}
	x.start()
	time.Sleep(500 * time.Millisecond)
	w.stop()
	x.same()
	if have := readAll(t, x.disk); !bytes.Equal(have, w.model(len(w.log))) {
		t.Fatalf("the primary is not what was written: %s", differs(have, w.model(len(w.log))))
	}
	if w.slowest > aloneStall {
		t.Errorf("a write took %v", w.slowest)
	}
	if shown, refused := x.checkMoments(w, 10); shown == 0 || refused == 0 {
		t.Errorf("%d moments were shown, and %d refused", shown, refused)
	}
	x.run("unprotect", "prod")
}

// TestTappedWithoutServer restarts the host, as far as its processes go, and the server does not come up because its pool is
// gone: production's disk is there all the same.
func TestTappedWithoutServer(t *testing.T) {
	beside(t)
	const size = 16 << 20
	need(t)
	x := newTapping(t, size, func(string) {}, "--window", "1h")
	x.end(syscall.SIGKILL)
	x.killTap()
	list, err := mount.List(filepath.Join(x.data, "run", "attached"))
	if err != nil || len(list) != 1 {
		t.Fatalf("attached are %v, %v", list, err)
	}
	if err := unix.Kill(list[0].PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}

	pool, aside := filepath.Join(x.data, "pool"), filepath.Join(x.data, "aside")
	if err := os.Rename(pool, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pool, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := x.tryStart(); err == nil {
		t.Fatal("a server without a pool came up")
	}
	w := newScribe(x, size)
	time.Sleep(300 * time.Millisecond)
	x.killTap()
	time.Sleep(aloneStall / 2)
	w.stop()
	if len(w.log) == 0 {
		t.Fatal("nothing was written")
	}

	if err := os.Remove(pool); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(aside, pool); err != nil {
		t.Fatal(err)
	}
	x.start()
	x.follows()
	x.same()
	if have := readAll(t, x.disk); !bytes.Equal(have, w.model(len(w.log))) {
		t.Fatalf("the primary is not what was written: %s", differs(have, w.model(len(w.log))))
	}
	x.run("unprotect", "prod")
	if s := ask[tidemark.Status](x.stage, "status"); len(s.Applications) != 0 {
		t.Errorf("left are %v", s.Applications)
	}
}
