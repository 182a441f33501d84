package survive

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// inGuest says that these tests run under another kernel, in a machine of their own.
var inGuest = os.Getenv("TIDEMARK_GUEST") != ""

// guests is who runs a machine: guest.sh lets one run at a time, and who waits for that must not keep a turn from others.
var guests = make(chan struct{}, 1)

// besideInGuest is beside, for a test that runs in a machine of its own.
func besideInGuest(t *testing.T) {
	t.Helper()
	t.Parallel()
	guests <- struct{}{}
	t.Cleanup(func() { <-guests })
	takeTurn(t)
}

// runInGuest runs the test that calls it in a machine of its own, which can load the modules and has the programs. What the machine does not run is
// no test that passed.
func runInGuest(t *testing.T, modules string, programs ...string) {
	t.Helper()
	runGuest(t, "TIDEMARK_GUEST_MODULES="+modules, programs...)
}

// runGuest is runInGuest, with what guest.sh is told by its environment.
func runGuest(t *testing.T, told string, programs ...string) {
	t.Helper()
	need(t, "qemu-system-x86_64", "busybox", "mkfs.ext4")
	paths := []string{binary}
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	cmd := exec.Command("../../mount/testdata/guest.sh", os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$", "-test.timeout=14m")
	cmd.Env = append(os.Environ(), "TIDEMARK_GUEST_PROGRAMS="+strings.Join(paths, " "), told)
	begin := time.Now()
	out, err := cmd.CombinedOutput()
	t.Logf("%v\n%s", time.Since(begin), out)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 97 && os.Getenv("CI") == "" {
		t.Skip("needs a kernel from Debian's archive")
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Error("the guest did not run the test")
	}
}
