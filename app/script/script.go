// Package script makes an application still by programs that its administrator wrote: pre, before a
// point is marked, and post, after it.
//
// They lie in one directory, and run as root. So only root may be able to write to them, to the directory, and to
// every directory above: [Load] refuses all else. Whatever pre does, post is to be run after it, and each is
// given a time after which it is killed, with all that it started.
package script

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// Names of the programs in a directory.
const (
	Pre  = "pre"
	Post = "post"
)

// Scripts is a directory with programs that was checked.
type Scripts struct{ dir string }

// Load checks a directory with the programs pre and post, of which one may be missing.
func Load(dir string) (Scripts, error) {
	if !filepath.IsAbs(dir) {
		return Scripts{}, tidemark.Errorf(tidemark.Invalid, "%q is not an absolute path", dir).WithHint("write it from / on")
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return Scripts{}, tidemark.Errorf(tidemark.NotFound, "the scripts cannot be used: %w", err)
	}
	if err := checkPath(real); err != nil {
		return Scripts{}, err
	}
	found := 0
	for _, name := range []string{Pre, Post} {
		path := filepath.Join(real, name)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := checkRights(path, false); err != nil {
			return Scripts{}, err
		}
		found++
	}
	if found == 0 {
		return Scripts{}, tidemark.Errorf(tidemark.NotFound, "%s holds neither %s nor %s", dir, Pre, Post).WithHint("make them executable programs")
	}
	return Scripts{dir: real}, nil
}

// checkPath refuses a directory that others than root can change, or can put another one in the place of. There is no link in it.
func checkPath(dir string) error {
	for at := dir; ; at = filepath.Dir(at) {
		if err := checkRights(at, true); err != nil {
			return err
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// Read returns what is in a file of a directory, if only root can have put it there: the rules are those for pre and post, but that a
// file with nothing to run, such as one of SQL, need not be executable. Whether it is comes with it.
func Read(dir, name string) (text []byte, executable bool, err error) {
	if name != filepath.Base(name) || name == "." || name == ".." || name == "/" {
		return nil, false, tidemark.Errorf(tidemark.Invalid, "%q is no name of a file", name).WithHint("name a file of " + dir)
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, tidemark.Errorf(tidemark.NotFound, "there is no directory %s", dir).WithHint("make it as root, with mode 755, and put " + name + " into it")
	}
	if err != nil {
		return nil, false, err
	}
	if err := checkPath(real); err != nil {
		return nil, false, err
	}
	path := filepath.Join(real, name)
	st, err := os.Lstat(path)
	if err != nil {
		return nil, false, tidemark.Errorf(tidemark.NotFound, "there is no file %s", path).WithHint("put it there as root")
	}
	if executable = st.Mode()&0o100 != 0; executable || !st.Mode().IsRegular() {
		err = checkRights(path, false)
	} else {
		err = checkOwner(path)
	}
	if err != nil {
		return nil, false, err
	}
	if st.Size() > mostBytes {
		return nil, false, tidemark.Errorf(tidemark.Invalid, "%s is larger than %s", path, tidemark.FormatSize(mostBytes)).WithHint("have it run what is installed on the host")
	}
	text, err = os.ReadFile(path)
	return text, executable, err
}

// mostBytes is how large a file may be that Read returns, in bytes.
const mostBytes = 16 << 20

// checkOwner refuses a file that others than root can change.
func checkOwner(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return tidemark.Errorf(tidemark.NotFound, "%s: %w", path, err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return openToOthers(path)
	}
	return nil
}

func openToOthers(path string) error {
	return tidemark.Errorf(tidemark.Denied, "others than root can change %s, and it would be run by us", path).
		WithHint("chown root " + path + " && chmod go-w " + path)
}

// checkRights refuses what others than root can change. Of a directory with the sticky bit others cannot
// change what is in it.
func checkRights(path string, dir bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return tidemark.Errorf(tidemark.NotFound, "%s: %w", path, err)
	}
	open := st.Mode&0o022 != 0 && !(dir && st.Mode&unix.S_ISVTX != 0)
	switch kind := st.Mode & unix.S_IFMT; {
	case dir && kind != unix.S_IFDIR:
		return tidemark.Errorf(tidemark.Invalid, "%s is no directory", path)
	case !dir && (kind != unix.S_IFREG || st.Mode&0o100 == 0):
		return tidemark.Errorf(tidemark.Invalid, "%s is no executable file", path).WithHint("chmod 700 " + path)
	case st.Uid != 0 || open:
		return openToOthers(path)
	}
	return nil
}

// lastWait is how long a program that was killed may take to end. One that waits for a disk does not before that answers.
const lastWait = 3 * time.Second

// Run runs one of the programs with words added to its environment, for at most so long; one that is missing
// is fine. Its error has what it said last. It returns soon after that time, or when ctx is done, also if the program cannot be killed because a disk
// hangs: that is left to itself.
func (s Scripts) Run(ctx context.Context, name string, limit time.Duration, env ...string) error {
	path := filepath.Join(s.dir, name)
	var said bytes.Buffer
	err := runWithin(ctx, path, limit, &said, env)
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, lastLine(said.String()))
	}
	return err
}

// RunFile runs a program of a directory, by the rules of [Read] and [Scripts.Run], and writes what it says to out, which is not used any more
// when RunFile has returned. Its error has nothing of that.
func RunFile(ctx context.Context, dir, name string, limit time.Duration, out io.Writer, env ...string) error {
	_, executable, err := Read(dir, name)
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	path := filepath.Join(real, name)
	if !executable {
		return tidemark.Errorf(tidemark.Invalid, "%s is no executable file", path).WithHint("chmod 700 " + path + ", or name it .sql if it is SQL")
	}
	w := &untilEnd{to: out}
	defer w.end()
	return runWithin(ctx, path, limit, w, env)
}

// untilEnd writes until the end, and drops what comes later: a program that cannot be killed may go on.
type untilEnd struct {
	mu sync.Mutex
	to io.Writer // guarded by mu; nil: it is over
}

func (u *untilEnd) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.to == nil {
		return len(p), nil
	}
	return u.to.Write(p)
}

func (u *untilEnd) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.to = nil
}

// Find returns the path of a program in a directory, if it can be run by the rules for pre and post.
func Find(dir, name string) (path string, err error) {
	if err := tidemark.CheckName(name); err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", tidemark.Errorf(tidemark.NotFound, "there is no directory %s", dir).WithHint("make it as root, with mode 755, and put " + name + " into it")
	}
	if err != nil {
		return "", err
	}
	if err := checkPath(real); err != nil {
		return "", err
	}
	path = filepath.Join(real, name)
	return path, checkRights(path, false)
}

// Program runs a program of a directory, which [Find] has to find, as [Scripts.Run] does. It returns the last line that it said.
func Program(ctx context.Context, dir, name string, limit time.Duration, env ...string) (last string, err error) {
	path, err := Find(dir, name)
	if err != nil {
		return "", err
	}
	var said tail
	w := &untilEnd{to: &said}
	err = runWithin(ctx, path, limit, w, env)
	w.end()
	last = lastLine(string(said))
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, last)
	}
	return last, err
}

// tail keeps the end of what is written to it.
type tail []byte

const tailBytes = 4096

// Write takes p up, and forgets what came long before.
func (t *tail) Write(p []byte) (int, error) {
	all := append(*t, p...)
	*t = append(tail(nil), all[max(0, len(all)-tailBytes):]...)
	return len(p), nil
}

// runWithin runs a program for at most so long.
func runWithin(ctx context.Context, path string, limit time.Duration, out io.Writer, env []string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, path, out, env) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		select {
		case err = <-ended:
		case <-time.After(lastWait):
			return fmt.Errorf("%s was killed, and does not end: does it wait for a disk?", path)
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("%s was killed: it took longer than %v", path, limit)
	}
	return err
}

// run runs a program, if it is there, until it has ended.
func run(ctx context.Context, path string, out io.Writer, env []string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := checkRights(path, false); err != nil { // it may have changed since
		return err
	}
	cmd := exec.CommandContext(ctx, path)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", out, out
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, env...)
	// It ends with us, that is with the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	last := lines[len(lines)-1]
	return last[:min(len(last), 200)]
}
