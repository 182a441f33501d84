package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/process"
	"tidemark/internal/vfs"
)

// An attacher works in its directory before it has a record there, and who has started it may be killed meanwhile. So before it is
// told what to attach, it is noted in the directory who it is: then a directory without a record is one in which somebody may be at work,
// and nobody is once he has ended. See DESIGN.md, "Who starts".

// startingName is the file of an attachment's directory with a starting.
const startingName = "starting.json"

// starting is who attaches a disk, as noted before he is told to.
type starting struct {
	process.ID            // the attacher
	Starter    process.ID // who waits for its word
	Token      string     // of its block device
}

// noteStarting notes who is about to attach a disk. It need not be durable: it is of a process that ends with the host.
func noteStarting(p *process.Process, cfg attachConfig) error {
	who, err := process.Of(p.PID())
	if err != nil { // it has ended
		return fmt.Errorf("%w: %w", process.ErrSilent, err)
	}
	self, err := process.Self()
	if err != nil {
		return err
	}
	b, err := json.Marshal(starting{ID: who, Starter: self, Token: cfg.Token})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cfg.dir(), startingName), b, 0o600)
}

// readStarting returns who was to attach the disk of a directory. It is nobody where that was not noted whole: then nobody was told to.
func readStarting(dir string) (s starting) {
	b, err := os.ReadFile(filepath.Join(dir, startingName))
	if err != nil || json.Unmarshal(b, &s) != nil {
		return starting{}
	}
	return s
}

const (
	// orphanPatience is how long an attacher may take to undo what it has made, when its starter is gone: the kernel may be slow to set up a device.
	orphanPatience = 10 * time.Second
	// killPatience is how long one may take to end that was killed.
	killPatience = 10 * time.Second
)

// endStarting waits until nobody is at work in a directory that had no record, and ends who does not end by himself. What he has made is gone then.
// ErrBusy: his starter waits for him, or he has a record by now.
func (a *Attachment) endStarting() error {
	s := a.starting
	if !s.ThisBoot() {
		return nil
	}
	if fd, err := s.Open(); err == nil {
		defer unix.Close(fd)
		if s.Starter.Alive() {
			return fmt.Errorf("%s is just being attached: %w", a.Name(), ErrBusy)
		}
		if err := a.endOrphan(fd); err != nil {
			return err
		}
	}
	if readStarting(a.dir).Token != s.Token { // it has undone all by itself
		return nil
	}
	return sweepDevices(tagOf(s.Token))
}

// endOrphan ends an attacher whose starter is gone: it does so by itself, but for one that is stuck.
func (a *Attachment) endOrphan(pidfd int) error {
	if awaitEnd(pidfd, orphanPatience) {
		return nil
	}
	if now, err := load(filepath.Dir(a.dir), a.Name()); err == nil && now.Alive() {
		return fmt.Errorf("%s has a living attacher: %w", a.Name(), ErrBusy)
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d, which attaches %s for nobody: %w", a.starting.PID, a.Name(), err)
	}
	if !awaitEnd(pidfd, killPatience) {
		return fmt.Errorf("process %d, which attaches %s for nobody, does not end: %w", a.starting.PID, a.Name(), ErrBusy)
	}
	return nil
}

// awaitEnd reports whether a process ends in time.
func awaitEnd(pidfd int, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return process.Await(ctx, pidfd) == nil
}

// displaced returns errOrphan if our directory is another's by now.
func (a *attacher) displaced() error {
	if s := readStarting(a.dir); s.Token != "" && s.Token != a.cfg.Token {
		return errOrphan
	}
	return nil
}

// undone notes that an attacher whose start has failed has left nothing but its directory.
func (a *attacher) undone() {
	if readStarting(a.dir).Token == a.cfg.Token {
		os.Remove(filepath.Join(a.dir, startingName)) // if it stays, it is looked for what is left, and nothing found
	}
}

// removeDir removes the directory of an attachment. Its name is free at once, so that what is still to be removed is not in a directory that is another's.
func removeDir(dir, token string) error {
	away := filepath.Join(filepath.Dir(dir), "."+token) // no name of an attachment
	err := vfs.Rename(vfs.OS, dir, away)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, os.RemoveAll(away))
}
