package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/agent/taps"
	"tidemark/app/postgres"
	"tidemark/mount"
)

// TestMain makes this test binary an agent, too, with a few verbs for tests, and what it starts: taps and attachers.
func TestMain(m *testing.M) {
	processes := map[string]func(context.Context) error{"agent": Run, "tap": taps.Run, "attach": attach,
		"room": func(context.Context) error { return postgres.EnterRoom() }}
	if len(os.Args) == 2 && processes[os.Args[1]] != nil {
		verbs["test"] = on(doTest)
		if err := processes[os.Args[1]](context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// attach is an attacher's process.
func attach(ctx context.Context) error { return mount.RunAttacher(ctx, DialDisk) }

// doTest does what its argument says.
func doTest(ctx context.Context, _ *session, what string, note func(any)) (string, error) {
	switch what {
	case "pid":
		return fmt.Sprint(os.Getpid()), nil
	case "sleep":
		note("asleep")
		<-ctx.Done()
		return "", ctx.Err()
	case "panic":
		panic("as asked")
	case "die":
		os.Exit(3)
	case "space":
		return "", &os.PathError{Op: "write", Path: "/staging/x", Err: syscall.ENOSPC}
	case "told":
		return "", fmt.Errorf("in the middle: %w", tidemark.Errorf(tidemark.Conflict, "it is busy").WithHint("wait"))
	}
	return what, nil
}

func newAgent(t *testing.T, lock string) *Agent {
	t.Helper()
	a := New(Config{Lock: lock, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	t.Cleanup(func() {
		if err := a.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return a
}

func test(a *Agent, what string) (string, error) {
	return do[string](context.Background(), a, "test", what, nil)
}

func pid(t *testing.T, a *Agent) int {
	t.Helper()
	s, err := test(a, "pid")
	if err != nil {
		t.Fatal(err)
	}
	var n int
	fmt.Sscan(s, &n)
	return n
}

// Errors keep what they are on the way from another process.
func TestErrors(t *testing.T) {
	a := newAgent(t, filepath.Join(t.TempDir(), "lock"))
	if s, err := test(a, "hello there"); s != "hello there" || err != nil {
		t.Fatalf("%q, %v", s, err)
	}
	if _, err := test(a, "space"); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/staging/x") {
		t.Errorf("a full disk: %v", err)
	}
	_, err := test(a, "told")
	var told *tidemark.Error
	if !errors.As(err, &told) || told.Kind != tidemark.Conflict || told.Hint != "wait" || err.Error() != "in the middle: it is busy: wait" {
		t.Errorf("an error of ours: %v, %+v", err, told)
	}
	if _, err := test(a, "panic"); tidemark.KindOf(err) != tidemark.Internal || !strings.Contains(err.Error(), "as asked") {
		t.Errorf("a panic: %v", err)
	}
	if _, err := do[string](context.Background(), a, "no such verb", nil, nil); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("an unknown verb: %v", err)
	}
	if _, err := a.FindPostgres(context.Background(), t.TempDir()); tidemark.KindOf(err) != tidemark.NotFound {
		t.Errorf("no database: %v", err)
	}
	if _, err := a.LogStatus(context.Background(), "none"); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("no log: %v", err)
	}
	if err := a.ReceiveLog(context.Background(), Log{ID: "Not A Slot", Dir: "/x"}, func(postgres.Gap) {}); tidemark.KindOf(err) != tidemark.Invalid {
		t.Errorf("a log with a bad name: %v", err)
	}
}

// A call ends with its context, and says why.
func TestCancel(t *testing.T) {
	a := newAgent(t, filepath.Join(t.TempDir(), "lock"))
	ctx, cancel := context.WithCancel(context.Background())
	_, err := do[string](ctx, a, "test", "sleep", func(note json.RawMessage) {
		if string(note) != `"asleep"` {
			t.Errorf("noted %s", note)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := do[string](ctx, a, "test", "sleep", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("out of time: %v", err)
	}
}

// An agent that dies fails its calls, and the next call has a new one.
func TestDeath(t *testing.T) {
	a := newAgent(t, filepath.Join(t.TempDir(), "lock"))
	first := pid(t, a)
	asleep := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		_, err := do[string](context.Background(), a, "test", "sleep", func(json.RawMessage) { close(begun) })
		asleep <- err
	}()
	<-begun
	if _, err := test(a, "die"); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("the call that killed it: %v", err)
	}
	if err := <-asleep; tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("the call beside it: %v", err)
	}
	if second := pid(t, a); second == first {
		t.Errorf("it is still process %d", first)
	}
}

// Close ends the process, with what it does; no call begins afterwards.
func TestClose(t *testing.T) {
	a := New(Config{Lock: filepath.Join(t.TempDir(), "lock")})
	n := pid(t, a)
	go do[string](context.Background(), a, "test", "sleep", nil)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(n, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", n, err)
	}
	if _, err := test(a, "pid"); tidemark.KindOf(err) != tidemark.Unavailable {
		t.Errorf("after Close: %v", err)
	}
}

// Only one agent works: the next one waits until the first is gone, even
// though its server is gone already.
func TestNextWaits(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "lock")
	old, err := os.OpenFile(lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := unix.Flock(int(old.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, lock)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := do[string](ctx, a, "test", "pid", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it began beside another: %v", err)
	}
	old.Close()
	pid(t, a)
}

// What a server froze is thawed when that server dies in the middle.
func TestThawedAfterServer(t *testing.T) {
	dir := mounted(t)
	a := New(Config{Lock: filepath.Join(t.TempDir(), "lock")})
	ctx := context.Background()
	if err := a.Freeze(ctx, []string{dir, filepath.Join(dir, "missing")}); err == nil {
		t.Fatal("froze what does not exist")
	}
	writable(t, dir) // all or none
	if err := a.Freeze(ctx, []string{dir}); err != nil {
		t.Fatal(err)
	}
	if err := a.Freeze(ctx, []string{dir}); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("frozen twice: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	writable(t, dir)
	b := newAgent(t, filepath.Join(t.TempDir(), "lock"))
	if lasted, err := b.Thaw(ctx, []string{dir}); err != nil || lasted {
		t.Errorf("thaw what is not frozen: %v, %v", lasted, err)
	}
	if err := b.Unmount(ctx, dir, 0); err != nil {
		t.Error(err)
	}
}

// A busy file system is named, with what to do.
func TestBusy(t *testing.T) {
	dir := mounted(t)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := newAgent(t, filepath.Join(t.TempDir(), "lock"))
	err = a.Unmount(context.Background(), dir, 0)
	if tidemark.KindOf(err) != tidemark.Conflict || !strings.Contains(err.Error(), "fuser") {
		t.Errorf("a busy file system: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { f.Close() })
	if err := a.Unmount(context.Background(), dir, 5*time.Second); err != nil {
		t.Errorf("with patience: %v", err)
	}
}

// mounted mounts an empty ext4 until the test ends.
func mounted(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	image, dir := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
	for _, argv := range [][]string{{"truncate", "-s", "16M", image}, {"mkfs.ext4", "-q", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir
}

// writable fails the test if a write to dir does not get through.
func writable(t *testing.T, dir string) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600) }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("%s is frozen", dir)
	}
}

// An agent that is started without a server, by a user, says what it lacks.
func TestNotForUsers(t *testing.T) {
	out, err := exec.Command(os.Args[0], "agent").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "not said which server") {
		t.Errorf("%v: %s", err, out)
	}
}
