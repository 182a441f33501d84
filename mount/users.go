package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is a program that has a device in use.
type User struct {
	PID     int
	Program string // the name of its process
	// Dir is where the device is mounted in the mount namespace of that program, which is not ours: what we unmount stays mounted there. Empty: it has it open.
	Dir string
}

// String says who it is, and how it uses the device.
func (u User) String() string {
	if u.Dir == "" {
		return fmt.Sprintf("%s (process %d) has it open", u.Program, u.PID)
	}
	return fmt.Sprintf("%s (process %d) has it mounted on %s, in a mount namespace of its own", u.Program, u.PID, u.Dir)
}

// Users returns who has a device in use, as far as /proc tells: who has it open, but for other processes of this program, such as its attacher; and of each
// other mount namespace that it is mounted in, one process. It is for people to look at: who it is may have changed by the time it returns.
func Users(device string) (list []User, err error) {
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return nil, err
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	namespaces := map[string]bool{}
	if ours, err := os.Readlink("/proc/self/ns/mnt"); err == nil {
		namespaces[ours] = true
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc)) // of digits alone
		name, err := os.ReadFile(proc + "/comm")
		if err != nil || pid == os.Getpid() {
			continue // it has ended
		}
		u := User{PID: pid, Program: strings.TrimSpace(string(name))}
		if exe, err := os.Stat(proc + "/exe"); err == nil && !os.SameFile(exe, self) && hasOpen(proc, st.Rdev) {
			list = append(list, u)
		}
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil || namespaces[ns] {
			continue
		}
		namespaces[ns] = true
		mounts, err := mountsIn(proc+"/mountinfo", st.Rdev)
		if err == nil && len(mounts) > 0 {
			u.Dir = mounts[0].Dir
			list = append(list, u)
		}
	}
	return list, nil
}

// hasOpen reports whether a process has a device open.
func hasOpen(proc string, number uint64) bool {
	fds, _ := filepath.Glob(proc + "/fd/*") // the pattern is a good one
	return slices.ContainsFunc(fds, func(fd string) bool {
		name, err := os.Readlink(fd)
		return err == nil && strings.HasPrefix(name, "/dev/") && isDevice(name, number)
	})
}
