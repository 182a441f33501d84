package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Kill kills every process of a server whose data directory is within dir. It is for servers whose disk is gone: what they had not made
// durable is lost, as in a power cut. It touches no file there, and does not wait for their end, for which their I/O has to fail first.
func Kill(dir string) {
	for _, pid := range servers() {
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			continue
		}
		if rel, err := filepath.Rel(dir, cwd); err == nil && filepath.IsLocal(rel) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	}
}
