package survive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stuckAfter is how long a step may take before everything is told that may say why, and the test is over: long enough for a host that has much else
// to do, in which a server of an emulated machine takes half a minute to begin.
const stuckAfter = 2 * time.Minute

// steps watches over a test that may hang where no time limit reaches: below a write, in the kernel.
type steps struct {
	t    *testing.T
	now  atomic.Pointer[step]
	told atomic.Bool
}

type step struct {
	name  string
	since time.Time
}

// watchSteps has the test tell what all processes do when a step takes long. logs are patterns of their log files.
func watchSteps(t *testing.T, logs ...string) *steps {
	w := &steps{t: t}
	w.step("the beginning")
	tick := time.NewTicker(time.Second)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if s := w.now.Load(); time.Since(s.since) > stuckAfter && w.told.CompareAndSwap(false, true) {
				fmt.Printf("STUCK: %s for %v\n", s.name, time.Since(s.since))
				tellAll(logs)
			}
		}
	}()
	return w
}

func (w *steps) step(format string, args ...any) {
	w.now.Store(&step{fmt.Sprintf(format, args...), time.Now()})
}

// tellAll prints where every thread is, in the kernel and, for ours, in the program.
func tellAll(logs []string) {
	tellThreads()
	for _, name := range []string{"/proc/meminfo", "/proc/loadavg"} {
		tellFile(name, 16000)
	}
	for _, pattern := range []string{"/sys/kernel/debug/block/nbd0/hctx*/busy", "/sys/kernel/debug/block/nbd0/hctx*/dispatch", "/sys/block/nbd0/inflight", "/sys/block/dm-*/inflight"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			tellFile(name, 3000)
		}
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		var pid int
		fmt.Sscan(filepath.Base(dir), &pid)
		if line, _ := os.ReadFile(dir + "/cmdline"); strings.Contains(string(line), "tidemark") && pid != os.Getpid() {
			syscall.Kill(pid, syscall.SIGQUIT)
		}
	}
	time.Sleep(5 * time.Second)
	for _, pattern := range logs {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			tellFile(name, 60000)
		}
	}
	buf := make([]byte, 256<<10)
	if n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf); err == nil {
		fmt.Printf("=== kernel\n%s\n", buf[max(0, n-8000):n])
	}
	syscall.Kill(os.Getpid(), syscall.SIGQUIT)
}

// tellThreads prints where the threads are that do not run: those of the programs of this test, and all that cannot
// be interrupted.
func tellThreads() {
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/*")
	for _, dir := range tasks {
		stat, _ := os.ReadFile(dir + "/stat")
		_, rest, _ := strings.Cut(string(stat), ") ")
		comm, _ := os.ReadFile(dir + "/comm")
		name := strings.TrimSpace(string(comm))
		if !strings.HasPrefix(rest, "D") && !relevant(name) {
			continue
		}
		syscall, _ := os.ReadFile(dir + "/syscall")
		stack, _ := os.ReadFile(dir + "/stack")
		fmt.Printf("=== %s %s state %.1s syscall %s%s", dir, name, rest, syscall, stack)
	}
}

// relevant reports whether what a thread is called makes it one of those that a write may wait for.
func relevant(name string) bool {
	for _, part := range []string{"tidemark", "program", "nbd0", "log-writes"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

func tellFile(name string, most int) {
	b, err := os.ReadFile(name)
	if err != nil {
		fmt.Printf("=== %s: %v\n", name, err)
		return
	}
	fmt.Printf("=== %s\n%s\n", name, b[max(0, len(b)-most):])
}
