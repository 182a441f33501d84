package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark"
)

// logName is the clone's server log, in its data directory.
const logName = "tidemark.log"

// Instance is a running clone. It is plain data and outlives the process that
// started the server: see [Find].
type Instance struct {
	Name      string `json:"name"`
	DataDir   string `json:"dataDir"`
	SocketDir string `json:"socketDir"`
	Port      int    `json:"port"`
	Listen    string `json:"listen"` // an address on which it listens, too; empty: none
	PID       int    `json:"pid"`
	Superuser string `json:"superuser"`
	// Conn connects over the socket, as root or the server's user.
	Conn string `json:"conn"`
	// Log is the server's log file.
	Log string `json:"log"`
	// Seconds from the call of Recover to the first answer.
	Seconds float64 `json:"seconds"`
}

// Status says how an instance is.
type Status string

// The states of an instance.
const (
	Stopped  Status = "stopped"  // no process
	Starting Status = "starting" // recovering, not yet answering
	Running  Status = "running"  // answering
)

// Find returns the instance that runs on a data directory, whoever started it,
// or an error of kind NotFound.
func Find(dataDir string) (*Instance, error) {
	dir, err := filepath.Abs(dataDir)
	if err != nil {
		return nil, err
	}
	pid, lines := livePostmaster(dir)
	if pid == 0 {
		return nil, tidemark.Errorf(tidemark.NotFound, "no server runs on %s", dir)
	}
	text, err := os.ReadFile(filepath.Join(dir, "postgresql.conf"))
	if err != nil {
		return nil, err
	}
	conf := parseConf(string(text))
	in := &Instance{Name: strings.TrimPrefix(conf["cluster_name"], "tidemark:"), DataDir: dir, PID: pid,
		Listen: conf["listen_addresses"], Superuser: readState(filepath.Dir(dir)).Superuser}
	if in.Superuser == "" {
		in.Superuser = "postgres"
	}
	if in.Port, err = strconv.Atoi(lines[3]); err != nil {
		return nil, fmt.Errorf("read %s/postmaster.pid: %w", dir, err)
	}
	in.SocketDir = lines[4]
	return in.complete(), nil
}

func (in *Instance) complete() *Instance {
	in.Log = filepath.Join(in.DataDir, logName)
	in.Conn = in.connect(in.SocketDir)
	return in
}

func (in *Instance) connect(host string) string {
	return fmt.Sprintf("host=%s port=%d user=%s dbname=postgres", quoteWord(host), in.Port, quoteWord(in.Superuser))
}

// Reach is how the instance is reached by those who are to use it: by the address that it listens on, with a password, or over the
// socket like Conn if there is no single one.
func (in *Instance) Reach() string {
	if ip := net.ParseIP(in.Listen); ip != nil && !ip.IsUnspecified() {
		return in.connect(in.Listen)
	}
	return in.Conn
}

// quoteWord quotes a value of a key=value connection string.
func quoteWord(s string) string {
	if s != "" && !strings.ContainsAny(s, ` '\`) {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

// livePostmaster returns the process that runs on dir and the lines of its
// pid file (at least 8), or 0. A pid file that was copied along, whose number belongs
// to somebody else, is not taken for a server. The number in the file of a server that runs in a room is the one that it has there.
func livePostmaster(dir string) (int, []string) {
	text, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0, nil
	}
	lines := strings.Split(string(text), "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	for len(lines) < 8 {
		lines = append(lines, "")
	}
	pid, err := strconv.Atoi(lines[0])
	if err != nil || pid <= 0 {
		return 0, nil
	}
	here, err := os.Stat(dir)
	if err != nil {
		return 0, nil
	}
	if !worksIn(pid, here) {
		if pid = outOfRoom(dir, here, pid); pid == 0 {
			return 0, nil
		}
	}
	return pid, lines
}

// worksIn reports whether a directory is the working directory of a process.
func worksIn(pid int, dir os.FileInfo) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && os.SameFile(cwd, dir)
}

// Status asks the process table and the server's own pid file.
func (in *Instance) Status() Status {
	pid, lines := livePostmaster(in.DataDir)
	switch {
	case pid == 0:
		return Stopped
	case lines[7] == "ready":
		return Running
	}
	return Starting
}

// Source is how to connect to the clone.
func (in *Instance) Source() Source { return Source{Conn: in.Conn} }

// Probe asks the clone a question and returns the time the answer took. With
// deep, every table's and index's pages are read by amcheck, where installed.
func (in *Instance) Probe(ctx context.Context, deep bool) (time.Duration, error) {
	begun := time.Now()
	conn, err := in.Source().Connect(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var one int
	if err := conn.QueryRow(ctx, "SELECT 1").Scan(&one); err != nil {
		return 0, fmt.Errorf("probe clone %s: %w", in.Name, err)
	}
	took := time.Since(begun)
	if !deep {
		return took, nil
	}
	return took, in.Amcheck(ctx, true, io.Discard)
}

func firstLine(text string, err error) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if line == "" {
		return oneLine(err)
	}
	return line
}

// Stop ends the server, cleanly if it can within the context's time, and removes
// its socket directory if nothing else is in it. A server that is down
// already is no error.
func (in *Instance) Stop(ctx context.Context) error {
	exited := watchExit(in.DataDir)
	defer exited.close()
	for _, s := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGINT, time.Minute}, {syscall.SIGQUIT, 10 * time.Second}, {syscall.SIGKILL, 10 * time.Second}} {
		pid, _ := livePostmaster(in.DataDir)
		if pid == 0 {
			break
		}
		if err := syscall.Kill(pid, s.sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop clone %s: %w", in.Name, err)
		}
		if in.waitGone(ctx, s.wait) {
			break
		}
	}
	if pid, _ := livePostmaster(in.DataDir); pid != 0 {
		return tidemark.Errorf(tidemark.Internal, "clone %s (process %d) does not end", in.Name, pid)
	}
	if err := exited.wait(10 * time.Second); err != nil {
		return fmt.Errorf("stop clone %s: %w", in.Name, err)
	}
	seen.Delete(in.DataDir)
	if err := os.Remove(in.SocketDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return err
	}
	return nil
}

// waitGone waits for the end of the server. A done context shortens the patience
// with this signal, and not the stopping.
func (in *Instance) waitGone(ctx context.Context, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) {
		if pid, _ := livePostmaster(in.DataDir); pid == 0 {
			return true
		}
		if ctx.Err() != nil {
			deadline = earlier(deadline, time.Now().Add(time.Second))
			ctx = context.WithoutCancel(ctx)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// freePort returns want if it is free on this host, on 127.0.0.1 and on another address if one is given, or a free port for 0.
func freePort(want int, also string) (int, error) {
	if want < 0 || want > 65535 {
		return 0, tidemark.Errorf(tidemark.Invalid, "%d is no port", want).WithHint("choose one from 1024 to 65535")
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", want))
	if err != nil {
		return 0, tidemark.Errorf(tidemark.Conflict, "port %d is taken on this host", want).WithHint("choose another, or none to get a free one")
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	if also == "" || also == "127.0.0.1" {
		return port, nil
	}
	if ip := net.ParseIP(also); ip == nil || ip.IsUnspecified() { // it has 127.0.0.1
		return port, nil
	}
	o, err := net.Listen("tcp", net.JoinHostPort(also, strconv.Itoa(port)))
	if err != nil {
		return 0, tidemark.Errorf(tidemark.Conflict, "a database cannot listen on %s of this host: %w", also, err).WithHint("give an address of the host, and a port that is free, or none")
	}
	return port, o.Close()
}

// exitWatch waits for the end of a process. A server removes its pid file
// before it ends, and until its end it holds the file system of its directory.
type exitWatch struct{ fd int }

func watchExit(dataDir string) exitWatch {
	pid, _ := livePostmaster(dataDir)
	if pid == 0 {
		return exitWatch{-1}
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return exitWatch{-1} // it has ended already
	}
	return exitWatch{fd}
}

func (w exitWatch) wait(limit time.Duration) error {
	if w.fd < 0 {
		return nil
	}
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(max(time.Until(end).Milliseconds(), 0)))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("the server does not end")
		default:
			return nil
		}
	}
}

func (w exitWatch) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}
