package proof

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app/postgres"
)

// probeDatabase runs the user's probe against a database.
func (b *box) probeDatabase(in *postgres.Instance) error {
	p := b.spec.Probe
	if p.sql() {
		return b.check("probe "+p.Name, func() (string, error) {
			ctx, cancel := context.WithTimeout(b.ctx, p.Limit)
			defer cancel()
			err := in.RunSQL(ctx, p.Database, string(p.Text), b)
			if ctx.Err() != nil && b.ctx.Err() == nil {
				err = fmt.Errorf("%s took longer than %v", p.Name, p.Limit)
			} else if err != nil {
				err = fmt.Errorf("%s: %w", p.Name, err)
			}
			return "", err
		})
	}
	return b.runProbe(in.DataDir, "TIDEMARK_CONNECTION="+in.ConnTo(p.Database), "PGHOST="+in.SocketDir, "PGPORT="+strconv.Itoa(in.Port), "PGUSER="+in.Superuser, "PGDATABASE="+p.Database)
}

// probeDisks runs the user's probe on the first file system, or where there is none on the first disk.
func (b *box) probeDisks(list []found) error {
	var env []string
	if len(b.spec.Disks) > 0 {
		env = []string{"TIDEMARK_DEVICE=" + node(b.spec.Disks[0].Name)}
	}
	for _, f := range list {
		if f.fstype != "" {
			dir := filepath.Join(f.dir(), b.spec.Data.Dir)
			return b.runProbe(dir, append(env, "TIDEMARK_MOUNT="+dir)...)
		}
	}
	return b.runProbe("/", env...)
}

// runProbe runs the user's program as the owner of a directory, or as nobody if that is root.
func (b *box) runProbe(of string, env ...string) error {
	p := b.spec.Probe
	program := filepath.Join("/run", "probe")
	if err := os.WriteFile(program, p.Text, 0o555); err != nil {
		return &troubleError{err}
	}
	who, err := b.probeUser(of)
	if err != nil {
		return &troubleError{err}
	}
	return b.check("probe "+p.Name, func() (string, error) {
		ctx, cancel := context.WithTimeout(b.ctx, p.Limit)
		defer cancel()
		cmd := exec.CommandContext(ctx, program)
		cmd.Dir, cmd.Stdout, cmd.Stderr = "/tmp", b, b
		cmd.Env = append([]string{"PATH=" + path, "LANG=C.UTF-8", "HOME=/tmp"}, append(env, p.Env...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: who}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = time.Second
		err := runUnprivileged(cmd)
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded) && b.ctx.Err() == nil:
			err = fmt.Errorf("%s took longer than %v, and was killed", p.Name, p.Limit)
		case err != nil:
			err = fmt.Errorf("%s: %w", p.Name, errors.New(err.Error())) // also one that cannot be run says so of the probe
		}
		return "", err
	})
}

// runUnprivileged runs a program that cannot become more than it is.
func runUnprivileged(cmd *exec.Cmd) error {
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never again unlocked: the thread ends with us
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	if err := <-started; err != nil {
		return err
	}
	return cmd.Wait()
}

// probeUser is whom a probe runs as: who owns what it looks at, or nobody.
func (b *box) probeUser(of string) (*syscall.Credential, error) {
	var st unix.Stat_t
	if err := unix.Stat(of, &st); err != nil {
		return nil, err
	}
	if st.Uid != 0 {
		return &syscall.Credential{Uid: st.Uid, Gid: st.Gid}, nil
	}
	const overflow = 65534 // what the kernel itself calls nobody
	u, err := user.Lookup("nobody")
	if err != nil {
		return &syscall.Credential{Uid: overflow, Gid: overflow}, nil
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil || uid == 0 {
		return nil, tidemark.Errorf(tidemark.Invalid, "the user nobody of this host cannot be used")
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
