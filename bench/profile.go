package main

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"
)

// profileOnSignal writes a CPU profile of what our server does between SIGUSR1
// and SIGUSR2. The file appears, whole, after the second.
func profileOnSignal(file string) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		var part *os.File
		for s := range signals {
			var err error
			if s == syscall.SIGUSR1 {
				if part, err = os.Create(file + ".part"); err == nil {
					err = pprof.StartCPUProfile(part)
				}
			} else if part != nil {
				pprof.StopCPUProfile()
				part.Close()
				err = os.Rename(part.Name(), file)
			}
			if err != nil {
				slog.Error("profile", "error", err)
			}
		}
	}()
}

// profiled calls fn, and where a profile of the server is wanted leaves that of
// the time fn took beside the results, named by what fn measures. Profiles of
// several rounds are merged by "go tool pprof" when it is given all of them.
func (s *server) profiled(what string, fn func() error) error {
	if s.profile == "" {
		return fn()
	}
	if err := s.cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		return err
	}
	failed := fn()
	if err := s.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		return err
	}
	s.profiles++
	name := fmt.Sprintf("%s-%s-%d.pprof", strings.TrimSuffix(s.profile, ".pprof"), strings.ReplaceAll(what, " ", "-"), s.profiles)
	for range 1000 {
		if os.Rename(s.profile, name) == nil {
			return failed
		}
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Errorf("the server left no profile at %s: %v", s.profile, failed)
}
