package survive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	// The program under test is built by the test. Without these, results of an older
	// one would be taken from the cache.
	"tidemark"
	"tidemark/agent/taps"
	_ "tidemark/api"
	_ "tidemark/client"
	"tidemark/mount"
)

// binary is the program under test.
var binary string

// TestMain builds the program once. The test binary is its own attacher, too: of disks that a test serves itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "attach" {
		if err := mount.RunAttacher(context.Background(), nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(func() int {
		letAllBegin()
		if inGuest {
			binary = "/sbin/tidemark"
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "survive-bin")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "tidemark")
		if out, err := exec.Command("go", "build", "-o", binary, "tidemark/cmd/tidemark").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the program: %v: %s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// need skips the test where what it needs is missing, but fails it in CI.
func need(t *testing.T, tools ...string) {
	t.Helper()
	missing := ""
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		missing = "root with /dev/fuse"
	}
	switch {
	case missing != "" && os.Getenv("CI") != "":
		t.Fatalf("%s is missing: scripts/install-test-deps installs it", missing)
	case missing != "":
		t.Skipf("%s is missing", missing)
	}
}

// stage is a directory in which a server and what it serves live.
type stage struct {
	t       *testing.T
	dir     string // for everything
	data    string // the server's data directory
	program string // the program under test by a name of the stage's own, which tells its processes from those of others
	cmd     *exec.Cmd
	env     []string // of the server, beside our own

	catalog *production // that has the server's catalog; nil: a file has it
}

// newStage makes a stage that is taken down, disks first, when the test ends.
func newStage(t *testing.T) *stage {
	t.Helper()
	dir, err := os.MkdirTemp("", "survive")
	if err != nil {
		t.Fatal(err)
	}
	// PostgreSQL does not run as root, and has to reach its files below.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, dir: dir, data: filepath.Join(dir, "d"), program: filepath.Join(dir, "tidemark")}
	t.Cleanup(s.strike)
	if inGuest {
		s.program = binary // its disk is another one, and so is nobody else there
	} else if err := os.Link(binary, s.program); err != nil {
		t.Fatal(err)
	}
	return s
}

// start starts the server and waits until it is ready.
func (s *stage) start() {
	s.t.Helper()
	if err := s.tryStart(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) tryStart() error {
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.program, "server", "--data", s.data, "--cache", "64MiB")
	cmd.Stderr, cmd.Env = log, append(os.Environ(), s.env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready ") {
		cmd.Wait()
		return fmt.Errorf("the server did not come up: %q %v: %s", line, err, s.log())
	}
	s.cmd = cmd
	return nil
}

func (s *stage) logFile() string { return s.data + ".log" }

// log is the end of what the server logged.
func (s *stage) log() string {
	text, _ := os.ReadFile(s.logFile())
	return string(text[max(0, len(text)-4000):])
}

// end ends the server by a signal.
func (s *stage) end(sig syscall.Signal) {
	s.t.Helper()
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("the server is gone already: %v: %s", err, s.log())
	}
	err := s.waitEnd(sig)
	s.cmd = nil
	if err != nil && sig != syscall.SIGKILL {
		s.t.Fatalf("the server stopped with %v: %s", err, s.log())
	}
}

// waitEnd waits for the end of the server. One that waits for a disk which it
// serves itself never ends, not even by kill -9.
func (s *stage) waitEnd(sig syscall.Signal) error {
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(s.cmd)
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		stacks, _ := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/stack", s.cmd.Process.Pid)).CombinedOutput()
		s.t.Fatalf("the server does not end by %v; its threads are in:\n%s", sig, stacks)
		return nil
	}
}

// command is a run of the program against the server.
func (s *stage) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = append(os.Environ(), "TIDEMARK_SOCKET="+filepath.Join(s.data, "tidemark.sock"))
	s.t.Cleanup(cancel)
	return cmd
}

// try runs a command and returns what it printed, and as the error what it said.
func (s *stage) try(args ...string) (string, error) {
	var out, said bytes.Buffer
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("tidemark %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), err
}

// run runs a command that has to succeed.
func (s *stage) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("%v\nlog: %s", err, s.log())
	}
	return out
}

// refused runs a command that has to fail with one line that has all the words, and returns the line.
func (s *stage) refused(words []string, args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err == nil {
		s.t.Fatalf("tidemark %v succeeded: %s", args, out)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	if strings.Count(err.Error(), "\n") > 0 || strings.Contains(err.Error(), "panic") {
		s.t.Errorf("an error is one line: %v", err)
	}
	return err.Error()
}

// ask runs a command with --json and decodes what it prints.
func ask[T any](s *stage, args ...string) (v T) {
	s.t.Helper()
	out := s.run(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		s.t.Fatalf("tidemark %v printed %q: %v", args, out, err)
	}
	return v
}

// strike takes away what is left of the stage. Disks go before the server:
// without it a disk waits for ever, and so does whoever unmounts it.
func (s *stage) strike() {
	if s.t.Failed() {
		s.t.Logf("log: %s", s.log())
		s.t.Logf("in mount namespaces of their own: %s", strings.Join(namespaced(), "\n"))
	}
	s.killDatabases()
	for _, dir := range s.mounts() {
		unix.Unmount(dir, unix.MNT_DETACH)
	}
	list, _ := mount.List(filepath.Join(s.data, "run", "attached"))
	for _, at := range list {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if err := at.Detach(ctx, true); err != nil {
			at.Cleanup(true)
		}
		cancel()
	}
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
	}
	dirs, _ := filepath.Glob(filepath.Join(s.data, "taps", "*"))
	for _, d := range dirs {
		if t, err := taps.Find(d); err == nil && t.Alive() {
			unix.Kill(t.PID(), unix.SIGKILL)
		}
	}
	if len(s.mounts()) == 0 {
		unix.Unmount(s.data, unix.MNT_DETACH) // if it is a file system of its own
		os.RemoveAll(s.dir)
	}
}

// namespaced are the processes of the host that have a mount namespace of their own, as the databases of clones do, with how long they have been there: who keeps
// a disk in use that is not mounted here.
func namespaced() (list []string) {
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if ns, err := os.Readlink(dir + "/ns/mnt"); err == nil && ns != ours {
			out, _ := exec.Command("ps", "-o", "pid=,ppid=,stat=,wchan:30=,etimes=,args=", "-p", filepath.Base(dir)).Output()
			mounts, _ := os.ReadFile(dir + "/mountinfo")
			list = append(list, fmt.Sprintf("%s, %d mounts, %s", ns, bytes.Count(mounts, []byte("\n")), bytes.TrimSpace(out)))
		}
	}
	return list
}

// mounts are the file systems mounted below the stage, the deepest first.
func (s *stage) mounts() (dirs []string) {
	text, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], s.dir+"/") && f[1] != s.data {
			dirs = append([]string{f[1]}, dirs...)
		}
	}
	return dirs
}

// held names everything that the server holds of its host: mounts, attachers,
// loop devices and directories for mounts, in an order that can be compared.
func (s *stage) held() string {
	var list []string
	for _, m := range s.mounts() {
		list = append(list, "mount "+strings.TrimPrefix(m, s.dir))
	}
	found, _ := mount.List(filepath.Join(s.data, "run", "attached"))
	for _, a := range found {
		list = append(list, "disk "+a.Name())
	}
	for _, pattern := range []string{"clones/*", "staging/*"} {
		dirs, _ := filepath.Glob(filepath.Join(s.data, pattern))
		for _, d := range dirs {
			list = append(list, "directory "+strings.TrimPrefix(d, s.data))
		}
	}
	slices.Sort(list) // what was taken away and came again is the last of its mounts
	list = append(list, fmt.Sprintf("%d attachers, %d loop devices", s.attachers(), s.loops()))
	return strings.Join(list, "\n")
}

// attachers counts the processes that attach disks of this server.
func (s *stage) attachers() (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !bytes.HasPrefix(text, []byte(s.program+"\x00attach\x00")) {
			continue
		}
		// One that has no disk, and ends with its server, has no log either.
		if log, err := os.Readlink(filepath.Join(filepath.Dir(f), "fd", "2")); err == nil && strings.Contains(log, "/attacher.log") {
			n++
		}
	}
	return n
}

// loops counts the loop devices that show disks of this server.
func (s *stage) loops() (n int) {
	found, _ := mount.List(filepath.Join(s.data, "run", "attached"))
	for _, a := range found {
		if text, err := os.ReadFile("/sys/block/" + filepath.Base(a.Device()) + "/loop/backing_file"); err == nil && len(text) > 0 {
			n++
		}
	}
	return n
}

// settled waits until the host is held as it was; the kernel gives things back a moment later.
func (s *stage) settled(want string) {
	s.t.Helper()
	var have string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if have = s.held(); have == want {
			return
		}
	}
	var told []string
	for _, e := range ask[tidemark.Status](s, "status").Events {
		told = append(told, fmt.Sprint(e.Time.Format(time.TimeOnly), " ", e.Level, " ", e.Application, ": ", e.Message))
	}
	s.t.Fatalf("the host is held otherwise than before:\n%s\nbefore:\n%s\nevents:\n%s", have, want, strings.Join(told, "\n"))
}
