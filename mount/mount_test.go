package mount

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"tidemark/mount/internal/nbdctl"
)

// TestMain makes the test binary its own attacher.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "attach" {
		startSlowly()
		if err := RunAttacher(context.Background(), nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 4 && os.Args[1] == "serve" {
		fmt.Fprintln(os.Stderr, serveForgetful(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == "attachfor" {
		fmt.Fprintln(os.Stderr, attachFor(os.Args[2]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// eachVia runs a test with every kind of device that this host's kernel has. Where it
// has no nbd, TestInGuest runs the same in a kernel that does.
func eachVia(t *testing.T, test func(t *testing.T, via Via)) {
	for _, via := range []Via{ViaFUSE, ViaKernel} {
		t.Run(string(via), func(t *testing.T) {
			need(t)
			if via == ViaKernel {
				needKernel(t)
			}
			test(t, via)
		})
	}
}

// needKernel skips where there is no kernel nbd.
func needKernel(t *testing.T) {
	t.Helper()
	ctl, err := nbdctl.Open()
	if errors.Is(err, nbdctl.ErrAbsent) {
		t.Skipf("%v: see TestInGuest", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctl.Close()
}

// need skips the test where it cannot run; in CI that is a failure.
func need(t *testing.T, tools ...string) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
		}
	}
	switch {
	case missing == "":
	case os.Getenv("CI") != "":
		t.Fatalf("needs %s", missing)
	default:
		t.Skipf("needs %s", missing)
	}
}

// server is an NBD server over a raw file that can be killed and started again.
type server struct {
	t       *testing.T
	socket  string
	address string // of TCP, where there is no socket
	argv    []string
	cmd     *exec.Cmd
}

// newDisk makes an empty file of so many bytes.
func newDisk(t *testing.T, dir string, size int64) string {
	t.Helper()
	img := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	return img
}

// serveQEMU starts qemu-nbd over a new file of so many bytes.
func serveQEMU(t *testing.T, size int64) *server {
	t.Helper()
	need(t, "qemu-nbd")
	dir := t.TempDir()
	s := &server{t: t, socket: filepath.Join(dir, "nbd.sock")}
	s.argv = []string{"qemu-nbd", "-k", s.socket, "-t", "--shared=16", "-x", "disk", "--discard=unmap", "-f", "raw", newDisk(t, dir, size)}
	s.start()
	t.Cleanup(s.kill)
	return s
}

// serve starts our own server over a new file of so many bytes: killed, it loses
// everything that was not flushed.
func serve(t *testing.T, size int64) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, socket: filepath.Join(dir, "nbd.sock")}
	s.argv = []string{os.Args[0], "serve", "unix:" + s.socket, newDisk(t, dir, size)}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.t.Helper()
	if s.socket != "" {
		os.Remove(s.socket)
	}
	s.cmd = exec.Command(s.argv[0], s.argv[1:]...)
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	for begun := time.Now(); time.Since(begun) < 30*time.Second; { // a machine under load may take its time
		network, address := "unix", s.socket
		if s.address != "" {
			network, address = "tcp", s.address
		}
		if c, err := net.Dial(network, address); err == nil {
			c.Close()
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", s.cmd.Process.Pid))
	s.t.Fatalf("the server did not start; it is in\n%s", stack)
}

func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// attach attaches the server's disk and detaches it when the test ends.
func attach(t *testing.T, s *server, change func(*Config)) *Attachment {
	t.Helper()
	cfg := Config{Name: "vol1", StateDir: t.TempDir(), Socket: s.socket, Export: "disk"}
	if change != nil {
		change(&cfg)
	}
	a, err := Attach(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(a.dir, logName))
			t.Logf("attacher's log:\n%s", b)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := a.Detach(ctx, true); err != nil && !errors.Is(err, ErrStale) {
			t.Error(err)
		}
		if err := a.Cleanup(true); err != nil {
			t.Error(err)
		}
	})
	return a
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

func TestAttachMountDetach(t *testing.T) {
	eachVia(t, func(t *testing.T, via Via) {
		for _, fs := range []string{"ext4", "xfs"} {
			t.Run(fs, func(t *testing.T) {
				need(t, "mkfs."+fs)
				testAttachMountDetach(t, fs, via)
			})
		}
	})
}

func testAttachMountDetach(t *testing.T, fs string, via Via) {
	s := serve(t, 512<<20)
	begin := time.Now()
	a := attach(t, s, func(c *Config) { c.Via = via })
	t.Logf("attach took %v", time.Since(begin))
	if _, err := DetectFS(a.Device()); !errors.Is(err, ErrNoFS) {
		t.Fatalf("an empty disk: %v", err)
	}
	if err := Format(a.Device(), fs, "label"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	begin = time.Now()
	if err := MountFS(a.Device(), dir, "auto", []string{"noatime"}); err != nil {
		t.Fatal(err)
	}
	t.Logf("mount took %v", time.Since(begin))
	defer Unmount(dir)
	if err := a.Detach(t.Context(), false); !errors.Is(err, ErrBusy) {
		t.Fatalf("detach of a mounted device: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, 10<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(Freeze(dir), Thaw(dir)); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("TIDEMARK_GUEST") == "" {
		run(t, "fstrim", dir)
	}
	if err := Unmount(dir); err != nil {
		t.Fatal(err)
	}
	if st, err := a.Status(t.Context()); err != nil || !st.Server.Connected || st.Size != 512<<20 || st.Via != via || a.Via() != via {
		t.Fatalf("%+v, %v", st, err)
	}
	if err := a.Detach(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if all, err := List(a.Config().StateDir); len(all) != 0 || err != nil {
		t.Fatalf("after detach: %v, %v", all, err)
	}
	if tag, err := deviceTag(a.Device()); tag != "" || err != nil {
		t.Fatalf("%s is still there: %q, %v", a.Device(), tag, err)
	}
}
