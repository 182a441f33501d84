package survive

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// overwrite fills the tapped disk with new random bytes, and says what the primary must hold.
func (x *tapping) overwrite() {
	x.t.Helper()
	data := make([]byte, 48<<20)
	rand.Read(data)
	f, err := os.OpenFile(x.device, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		x.t.Fatalf("production cannot write: %v", err)
	}
	f.Close()
	if have, err := os.ReadFile(x.disk); err != nil || !slices.Equal(have, data) {
		x.t.Fatalf("the primary does not hold what was written (%v)", err)
	}
}

// warns reports whether the status warns with all the words.
func (x *tapping) warns(words ...string) bool {
	x.t.Helper()
	for _, w := range ask[tidemark.Status](x.stage, "status").Warnings {
		all := true
		for _, word := range words {
			all = all && strings.Contains(w, word)
		}
		if all {
			return true
		}
	}
	return false
}

// until waits until something is so.
func (x *tapping) until(what string, is func() bool) {
	x.t.Helper()
	for end := time.Now().Add(90 * time.Second); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			status, _ := x.try("status")
			x.t.Fatalf("never: %s\n%s\n%s", what, status, x.log())
		}
	}
}

// TestHistoryGivesWay (J1) writes through a tap more than the disk of the data directory holds: the oldest history goes, loudly, and
// neither production nor a bookmark does. With no history left, production still goes on; and with room made, all does.
func TestHistoryGivesWay(t *testing.T) {
	beside(t)
	need(t, "mkfs.ext4", "fallocate")
	x := newTappingOn(t, "512M", 48<<20, func(string) {}, "-o", "queue_memory=64MiB", "-o", "queue=8MiB", "--window", "24h")
	other := filepath.Join(x.data, "other") // somebody else's
	must(t, "fallocate", "-l", "64M", other)
	x.overwrite()
	x.follows()
	kept := ask[tidemark.RecoveryPoint](x.stage, "bookmark", "prod", "kept")
	sum := checksum(t, x.disk)
	beyond := func() bool { // the history that led to the bookmark is gone
		c := ask[tidemark.Status](x.stage, "status").Applications[0].Covered
		return c != nil && c.From.After(kept.Time)
	}
	for n := 0; !x.warns("prod", "lost its any-point history") || !beyond(); n++ {
		if n == 60 {
			t.Fatalf("nothing was given up: %s", x.run("status"))
		}
		x.overwrite()
		x.follows()
	}
	x.until("an event tells what was given up", func() bool {
		return slices.ContainsFunc(ask[tidemark.Status](x.stage, "status").Events, func(e tidemark.Event) bool {
			return e.Level == "error" && e.Application == "prod" && strings.Contains(e.Message, "were given up")
		})
	})
	if !strings.Contains(x.run("status"), "WARNING: prod lost") {
		t.Error("the status does not warn")
	}
	holds := func() {
		t.Helper()
		x.same()
		out := filepath.Join(x.dir, "kept")
		x.run("restore", "prod@kept", "--to", out, "--force")
		if checksum(t, out) != sum {
			t.Fatal("the bookmark has other bytes than the disk had")
		}
	}
	holds()
	a := ask[tidemark.Status](x.stage, "status").Applications[0]
	if a.Lost == nil || a.Covered == nil || !a.Lost.To.After(a.Lost.From) || a.Covered.From.Before(a.Lost.To) {
		t.Errorf("of what is left: lost %+v, covered %+v", a.Lost, a.Covered)
	}

	// Somebody takes all that is left.
	st := unix.Statfs_t{}
	if err := unix.Statfs(x.data, &st); err != nil {
		t.Fatal(err)
	}
	must(t, "fallocate", "-o", "64M", "-l", strconv.FormatInt(int64(st.Bavail)*st.Bsize-(1<<20), 10), other)
	for n := 0; !x.warns("no history left"); n++ {
		if n == 20 {
			t.Fatalf("it is not said that nothing is left: %s", x.run("status"))
		}
		x.overwrite()
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	x.until("there is room again", func() bool { return !x.warns("nearly full") })
	x.overwrite()
	holds()
	x.end(syscall.SIGKILL)
	x.start()
	holds()
	if !x.warns("prod", "lost its any-point history") {
		t.Error("after a restart nobody is told of the loss")
	}
	if v := ask[tidemark.VerifyResult](x.stage, "verify"); len(v.Damaged) > 0 {
		t.Errorf("verify: %v", v.Damaged)
	}
	x.run("unprotect", "prod")
}
