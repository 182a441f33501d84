package script

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// KillLeft kills every process that has a word NAME=VALUE in its environment. A program that was run with it dies with us, but not what it has started. It returns
// when they have ended, or an error when some do not.
func KillLeft(word string) error {
	for until := time.Now().Add(lastWait); ; time.Sleep(10 * time.Millisecond) {
		n, err := killAll(word)
		if err != nil || n == 0 {
			return err
		}
		if time.Now().After(until) {
			return fmt.Errorf("%d processes that a program has started were killed, and do not end", n)
		}
	}
}

// killAll kills the processes that have a word in their environment now, and returns how many.
func killAll(word string) (n int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && killIf(pid, word) {
			n++
		}
	}
	return n, err
}

// killIf kills a process if it has a word in its environment. What is killed is what was looked at: its number may be that of another by then.
func killIf(pid int, word string) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for _, w := range bytes.Split(environ, []byte{0}) {
		if string(w) == word {
			return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
		}
	}
	return false
}
