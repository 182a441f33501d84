package postgres

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Kill kills every process of a server whose data directory is within dir. It is for servers whose disk is gone: what they had not made
// durable is lost, as in a power cut. It touches no file there, and does not wait for their end, for which their I/O has to fail first.
func Kill(dir string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is a good one
	for _, comm := range procs {
		name, err := os.ReadFile(comm)
		if n := strings.TrimSpace(string(name)); err != nil || n != "postgres" && n != "postmaster" {
			continue
		}
		cwd, err := os.Readlink(filepath.Join(filepath.Dir(comm), "cwd"))
		if err != nil {
			continue
		}
		rel, err := filepath.Rel(dir, cwd)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(comm))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	}
}
