package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// server is a process that serves disks over NBD on a unix socket.
type server struct {
	side   string // its name in the report
	socket string
	export string
	cmd    *exec.Cmd
	done   chan error

	profile  string // where it leaves CPU profiles, "" for nowhere
	profiles int    // left so far
}

// start runs a server and returns when its socket takes connections.
func start(ctx context.Context, side, socket, export string, argv ...string) (*server, error) {
	s := &server{side: side, socket: socket, export: export}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	log, err := os.Create(socket + ".log")
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if s.done, err = startTied(s.cmd); err != nil {
		return nil, err
	}
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return s, nil
		}
		select {
		case err := <-s.done:
			said, _ := os.ReadFile(socket + ".log")
			return nil, fmt.Errorf("%s ended at once: %v: %s", side, err, said)
		default:
		}
		if time.Now().After(end) || ctx.Err() != nil {
			s.stop()
			return nil, fmt.Errorf("%s did not open %s", side, socket)
		}
	}
}

// startTied starts a process that is killed when we end, and returns where its own end
// is told. The kernel ties it to the thread that starts it, and threads end before
// us: those of goroutines that were locked to them do, such as those that attach disks. So this one stays locked.
func startTied(cmd *exec.Cmd) (done chan error, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started, done := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	return done, <-started
}

// stop ends the server and waits for it.
func (s *server) stop() error {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
		return nil
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("%s did not end when asked", s.side)
	}
}

// uri returns how fio and libnbd reach one of the server's exports.
func (s *server) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + s.socket
}

// cpu returns the processor time that the process has used.
func (s *server) cpu() time.Duration { return cpuOf(s.cmd.Process.Pid) }

func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in parentheses may hold anything; count from behind it.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return time.Duration(user+system) * tick
}

// peakRSS returns the most memory that a process ever had resident, in bytes.
func peakRSS(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
	return kib << 10
}

// watchPeak begins to watch how much memory a process has used at most; what it
// returns is called when the process has ended. What the kernel says then is no good: it counts
// the memory of the process that forked, too.
func watchPeak(pid int) (peak func() int64) {
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		var bytes int64
		for {
			bytes = max(bytes, peakRSS(pid))
			select {
			case <-stop:
				most <- bytes
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(stop); return <-most }
}

// allocated returns the bytes that the files below a path take on their medium,
// those with several names counted once.
func allocated(path string) (int64, error) {
	var sum int64
	seen := map[uint64]bool{}
	err := filepath.Walk(path, func(_ string, info os.FileInfo, err error) error {
		if os.IsNotExist(err) {
			return nil // deleted while we walked
		}
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && !seen[st.Ino] {
			seen[st.Ino] = true
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}

// run executes a command and returns its output as the error's text if it fails.
func run(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return string(out), nil
}
