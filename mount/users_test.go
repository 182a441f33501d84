package mount

import (
	"bufio"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// It is told who has a device open, and who has it mounted where we do not see it; that its attacher has it needs no word.
func TestUsers(t *testing.T) {
	need(t, "mkfs.ext4", "mount")
	a := attach(t, serve(t, 32<<20), func(c *Config) { c.Via = ViaFUSE })
	if err := Format(a.Device(), "ext4", "x"); err != nil {
		t.Fatal(err)
	}
	users := func() []User {
		t.Helper()
		list, err := Users(a.Device())
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := users(); len(list) > 0 {
		t.Errorf("%v", list)
	}
	dir := t.TempDir()
	pid := use(t, `exec 3<"$1"; echo; read end`, a.Device(), 0)
	if list := users(); len(list) != 1 || list[0] != (User{PID: pid, Program: "sh"}) {
		t.Errorf("%v, and it is %d", list, pid)
	}
	apart := use(t, `mount "$1" "$2" && echo; read end`, a.Device(), unix.CLONE_NEWNS, dir)
	want := map[User]bool{{PID: pid, Program: "sh"}: true, {PID: apart, Program: "sh", Dir: dir}: true}
	if list := users(); len(list) != 2 || !want[list[0]] || !want[list[1]] {
		t.Errorf("%v, not %v", list, want)
	}
}

// use starts a script that uses a device until the test ends, and returns when it does so.
func use(t *testing.T, script, device string, namespaces uintptr, args ...string) (pid int) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", device}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}
