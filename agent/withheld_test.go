package agent

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/mount"
)

// hostDies kills all that runs for a tapped disk, as a restart of the host does.
func (p *production) hostDies(s *session, name string) {
	p.t.Helper()
	at, err := mount.Find(p.places.Attached, attachmentName(name, "disk"))
	if err != nil {
		p.t.Fatal(err)
	}
	x, err := s.findTap(name)
	if err != nil {
		p.t.Fatal(err)
	}
	for _, pid := range []int{at.PID(), x.PID()} {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			p.t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); at.Alive() || x.Alive(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatal("they live on")
		}
	}
}

// Disks that are withheld are not there for production until they are given back, not after restarts of the host either; whoever takes them back finds them.
func TestWithheld(t *testing.T) {
	p := newProduction(t, "one")
	a, s := p.agent()
	link, tapping := p.places.Device("one", "disk", 1), p.tapping("one")
	shown := func(when string, want bool) {
		t.Helper()
		if _, err := os.Stat(link); (err == nil) != want {
			t.Fatalf("%s: %v", when, err)
		}
	}
	withhold := func(on, want bool) {
		t.Helper()
		if changed, err := a.WithholdTap(t.Context(), tapping, on); err != nil || changed != want {
			t.Fatalf("%v, changed %v: %v", on, changed, err)
		}
	}
	opened := func(when string, refused tidemark.Kind) {
		t.Helper()
		files, err := p.places.OpenTapped(tapping)
		if err == nil && refused != "" || err != nil && tidemark.KindOf(err) != refused {
			t.Errorf("%s: %v", when, err)
		}
		closeAll(files)
	}
	opened("mounted", tidemark.Conflict)
	p.must("umount", p.dir("one"))
	shown("at first", true)
	withhold(false, false)
	withhold(true, true)
	withhold(true, false)
	shown("withheld", false)
	opened("withheld", "")
	for _, when := range []string{"after a restart", "after another"} {
		p.hostDies(s, "one")
		p.must("ln", "-sfn", "/dev/null", link) // where a link of before the restart may lead to
		if err := Revive(t.Context(), p.places); err != nil {
			t.Fatal(err)
		}
		if x, err := s.findTap("one"); err != nil || !x.Alive() {
			t.Fatalf("%s the tap does not run: %v", when, err)
		}
		if at, ok, err := s.attached("one", "disk"); err != nil || ok && at.Alive() {
			t.Errorf("%s it is attached: %v", when, err)
		}
		shown(when, false)
		opened(when, tidemark.Unavailable)
		r, err := a.RunTap(t.Context(), tapping)
		if err != nil || !r.Withheld {
			t.Fatalf("%s: %+v, %v", when, r, err)
		}
		shown(when+" with a server", false)
		opened(when+" with a server", "")
	}
	withhold(false, true)
	shown("given back", true)
	p.hostDies(s, "one")
	if err := Revive(t.Context(), p.places); err != nil {
		t.Fatal(err)
	}
	shown("after a restart like any", true)
	p.must("mount", link, p.dir("one"))
}
