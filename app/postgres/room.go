package postgres

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/internal/room"
)

// Room is what [Recover] is told to keep a server from that anybody may be a superuser of, and who is therefore its user on this host: the files of others that run as the same
// user. Such a server has namespaces of its own for mounts, processes and IPC, and a root in which there are, of the host, programs and configuration,
// read-only, and of the copy [Target].Root, the log to replay, read-only, and the directory of its socket. The network is the host's.
//
// The server is the first process in there, so its number in postmaster.pid is 1. When it ends, however it does, all that it has started ends.
//
// The program that calls Recover must call [EnterRoom] when it is started with the one argument "room".
type Room struct {
	// Hide are directories that must not be seen, wherever they lie. /opt, and the data directories of the host's clusters that run or that Debian's configuration names, need not be named.
	Hide []string
}

func (r *recovery) inRoom() bool { return r.t.Room != nil && os.Geteuid() == 0 }

// roomMark is in the environment of the first process of a room, so that nobody who calls EnterRoom by mistake loses the host's root.
const roomMark = "TIDEMARK_ROOM"

// seat is what the first process of a room is told.
type seat struct {
	Room     room.Room
	Args     []string // of the server, with its program
	Env      []string
	UID, GID int
}

// roomFor is the first process of a room, which becomes the server.
func (r *recovery) roomFor(server *exec.Cmd) (*exec.Cmd, error) {
	c := server.SysProcAttr.Credential
	if c == nil {
		return nil, tidemark.Errorf(tidemark.Internal, "the server would run as root")
	}
	s := seat{Args: server.Args, Env: server.Env, UID: int(c.Uid), GID: int(c.Gid), Room: room.Room{
		Hide: slices.Concat(dataDirs(), r.t.Room.Hide, []string{optional}), Keep: []room.Kept{{Path: r.t.Root}, {Path: r.t.SocketDir}}}}
	for _, dir := range []string{r.t.WALDir, resolverDir} {
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			s.Room.Keep = append(s.Room.Keep, room.Kept{Path: dir, ReadOnly: true})
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe", "room")
	cmd.Args[0], cmd.Env, cmd.Dir, cmd.Stdin = os.Args[0], []string{roomMark + "=1"}, "/", bytes.NewReader(text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	return cmd, nil
}

// resolverDir is where /etc/resolv.conf leads to on hosts with systemd-resolved.
const resolverDir = "/run/systemd/resolve"

// optional is a directory of programs that a server of ours does not need, and where data lie on many hosts.
const optional = "/opt"

// dataDirs are the data directories of this host's clusters that lie where programs are, and so would be seen. None is looked into: its disk may hang, and a
// clone is wanted all the more.
func dataDirs() (dirs []string) {
	add := func(dir string) {
		if strings.HasPrefix(dir, "/usr/") || strings.HasPrefix(dir, "/etc/") {
			dirs = append(dirs, dir)
		}
	}
	confs, _ := filepath.Glob(filepath.Join(debianConf, "*", "*", "postgresql.conf")) // the patterns are good ones
	for _, path := range confs {
		if text, err := os.ReadFile(path); err == nil {
			add(parseConf(string(text))["data_directory"])
		}
	}
	for _, pid := range servers() {
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
			add(dir)
		}
	}
	return dirs
}

// servers are the processes of servers, and of their backends.
func servers() (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is a good one
	for _, comm := range procs {
		name, err := os.ReadFile(comm)
		if n := strings.TrimSpace(string(name)); err != nil || n != "postgres" && n != "postmaster" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(comm))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// EnterRoom is all that the first process of a room does: it reads from standard input what it is to see, and becomes the server. It returns only with an
// error. Only [Recover] starts it.
func EnterRoom() error {
	if os.Getpid() != 1 || os.Getenv(roomMark) != "1" {
		return tidemark.Errorf(tidemark.Invalid, "this is no room").WithHint("`tidemark clone` makes one for each database")
	}
	var s seat
	if err := json.NewDecoder(os.Stdin).Decode(&s); err != nil {
		return fmt.Errorf("read what is to be in the room: %w", err)
	}
	// The mount namespace, and what comes behind it, is of the thread that becomes the server. It begins only now: what others unmount is in use by it
	// for a few milliseconds.
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = s.Room.Enter()
	}
	if err != nil {
		return fmt.Errorf("make a room for the database: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", os.DevNull, err)
	}
	// What is on the copy's disk, or makes it there, gains nothing by a setuid bit.
	err = errors.Join(unix.Dup3(null, 0, 0), unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		syscall.Setgroups(nil), syscall.Setgid(s.GID), syscall.Setuid(s.UID))
	if err != nil {
		return fmt.Errorf("become the database's user: %w", err)
	}
	return fmt.Errorf("start %s: %w", s.Args[0], syscall.Exec(s.Args[0], s.Args, s.Env))
}

// seen has the process of each server that was started or found in a room, by its data directory. It is only ever a guess, for processes end: [outOfRoom] looks again.
var seen sync.Map

// outOfRoom finds the server that works in a directory and has a number in its room, or 0.
func outOfRoom(dir string, here os.FileInfo, inside int) int {
	if pid, ok := seen.Load(dir); ok && isInRoom(pid.(int), here, inside) {
		return pid.(int)
	}
	for _, pid := range servers() {
		if isInRoom(pid, here, inside) {
			seen.Store(dir, pid)
			return pid
		}
	}
	seen.Delete(dir)
	return 0
}

// isInRoom reports whether a process works in a directory, and has a number in its innermost process namespace. The directory of one without a room, which may be
// on a disk that hangs, is not looked at.
func isInRoom(pid int, dir os.FileInfo, inside int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	_, line, _ := strings.Cut(string(status), "\nNSpid:")
	line, _, _ = strings.Cut(line, "\n")
	numbers := strings.Fields(line)
	return len(numbers) > 1 && numbers[len(numbers)-1] == strconv.Itoa(inside) && worksIn(pid, dir)
}
