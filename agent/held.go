package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/app/script"
	"tidemark/capture/qemu"
	"tidemark/internal/vfs"
	"tidemark/mount"
)

// heldApplication is what is noted from before pre is run, or a guest frozen, until it goes on: it does so
// also if the agent is killed in between.
type heldApplication struct {
	Scripts  string        `json:"scripts,omitempty"`
	Guest    string        `json:"guest,omitempty"` // socket of a guest agent
	Bookmark string        `json:"bookmark"`
	Limit    time.Duration `json:"limit"`
}

// heldFile is the file that has it, of an application with a timeline.
func (p Places) heldFile(timeline string) string { return filepath.Join(p.Held, timeline+".json") }

// runningFile is there while a program of an application with a timeline runs, and holds what tells what that has started from all other processes.
func (p Places) runningFile(timeline string) string { return runningBeside(p.heldFile(timeline)) }

func runningBeside(heldFile string) string { return strings.TrimSuffix(heldFile, ".json") + ".run" }

// runName is the name of the word in a program's environment that its running file holds.
const runName = "TIDEMARK_RUN"

// run runs a program that makes an application still or lets it go on, with its running file.
func (h heldApplication) run(ctx context.Context, running string, p script.Scripts, program string) error {
	word := runName + "=" + rand.Text()
	if err := os.WriteFile(running, []byte(word), 0o600); err != nil { // post is run all the same, and so pre may be
		slog.Warn("what a program starts would not be found if the agent was killed", "error", err)
	}
	defer os.Remove(running)
	return p.Run(ctx, program, h.Limit, "TIDEMARK_BOOKMARK="+h.Bookmark, word)
}

// killLeft kills what a program has started that ran when its agent was killed. What a pre has left that had ended is meant to be there.
func killLeft(running string) error {
	text, err := os.ReadFile(running)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if word := string(text); err == nil && len(word) == len(runName+"=")+len(rand.Text()) && strings.HasPrefix(word, runName+"=") {
		_, err = within(context.Background(), thawLimit, "kill what a program has started", func() (none, error) { return none{}, script.KillLeft(word) })
	}
	return errors.Join(err, os.Remove(running))
}

func (s *session) noteHeld(timeline string, h heldApplication) error {
	if err := vfs.MkdirAll(vfs.OS, s.places.Held); err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, s.places.heldFile(timeline), mustJSON(h))
}

// forgetHeld forgets a note, if there is one.
func (s *session) forgetHeld(timeline string) error {
	if err := os.Remove(s.places.heldFile(timeline)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// thawAgain is how soon a guest that does not answer is asked again, behind the time that it was given to answer.
const thawAgain = time.Second

// seeThawed goes on after a shot until a guest is known not to be frozen, and then forgets the note of it. f is what froze it; nil: an agent that is no more
// did. When the session ends the guest is asked once more, and then left to the next agent, which finds the note.
func (s *session) seeThawed(timeline, guest string, f *frozen) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f == nil && s.ended {
		return
	}
	s.thawing[timeline] = true
	s.shots.Go(func() {
		if !s.askToThaw(guest, f) {
			return
		}
		if err := s.forgetHeld(timeline); err != nil {
			slog.Error("it stays noted that a guest is frozen", "error", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.thawing, timeline)
	})
}

// askToThaw reports whether a guest is known not to be frozen. It returns false only when the session has ended.
func (s *session) askToThaw(guest string, f *frozen) bool {
	if f != nil {
		<-f.back // no thaw is heard before
		if !f.mayBeLeft() {
			return true
		}
	}
	for told := false; ; told = true {
		err := qemu.ThawGuest(context.Background(), guest)
		if !stillFrozen(err) {
			return true
		}
		if !told {
			slog.Error("a guest may be frozen, and is asked again until it answers", "guest", guest, "error", err)
		}
		select {
		case <-s.over:
			return false
		case <-time.After(thawAgain):
		}
	}
}

// stillFrozen reports whether a guest may be frozen behind a thaw. Where nobody listens the machine is off, and nothing of it is held.
func stillFrozen(err error) bool {
	return err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED)
}

// isThawing reports whether the guest of a timeline may be frozen since a shot that has ended.
func (s *session) isThawing(timeline string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.thawing[timeline]
}

// postAllLeft lets applications go on that an agent that was killed has left held. It returns the guests that may be frozen all the same, by
// their timelines; they stay noted.
func postAllLeft(p Places) map[string]string {
	files, err := filepath.Glob(p.heldFile("*"))
	if err != nil {
		slog.Error("it is not known whether an application is held", "error", err)
	}
	guests := make([]string, len(files))
	var all sync.WaitGroup
	for i, file := range files {
		all.Go(func() {
			guest, err := postLeft(file)
			if err != nil {
				slog.Error("an application may still be held since the agent was killed", "error", err)
			}
			guests[i] = guest
		})
	}
	all.Wait()
	frozen := map[string]string{}
	for i, guest := range guests {
		if guest != "" {
			frozen[strings.TrimSuffix(filepath.Base(files[i]), ".json")] = guest
		}
	}
	return frozen
}

// postLeft ends the program that ran when an agent was killed, thaws the guest that it has left, and runs the program post that it was killed before. It returns the guest if that may be frozen yet: then
// that stays noted.
func postLeft(file string) (guest string, err error) {
	text, err := vfs.ReadFile(vfs.OS, file)
	if err != nil {
		return "", err
	}
	var h heldApplication
	if err := json.Unmarshal(text, &h); err != nil {
		return "", errors.Join(fmt.Errorf("read %s: %w", file, err), os.Remove(file))
	}
	killed := killLeft(runningBeside(file))
	var thawed error
	if h.Guest != "" {
		thawed = qemu.ThawGuest(context.Background(), h.Guest)
	}
	err = errors.Join(killed, thawed, h.post(context.Background(), runningBeside(file)))
	if stillFrozen(thawed) {
		return h.Guest, errors.Join(err, vfs.WriteFile(vfs.OS, file, mustJSON(heldApplication{Guest: h.Guest})))
	}
	return "", errors.Join(err, os.Remove(file))
}

// post runs the program post, if there are programs.
func (h heldApplication) post(ctx context.Context, running string) error {
	if h.Scripts == "" {
		return nil
	}
	p, err := script.Load(h.Scripts)
	if err != nil {
		return err
	}
	return h.run(ctx, running, p, script.Post)
}

// thawLimit is how long the thaw of what was left is waited for, of each file system: its disk may hang.
const thawLimit = 5 * time.Second

// thawAttached thaws what an agent that was killed has left frozen.
func thawAttached(p Places) error {
	list, err := mount.List(p.Attached)
	if err != nil {
		return err
	}
	var dirs []string
	for _, at := range list {
		mounted, err := mount.Mounts(at.Device())
		if errors.Is(err, os.ErrNotExist) { // it died
			continue
		}
		if err != nil {
			return err
		}
		for _, m := range mounted {
			dirs = append(dirs, m.Dir)
		}
	}
	errs := make([]error, len(dirs))
	var all sync.WaitGroup
	for i, dir := range dirs {
		all.Go(func() {
			errs[i] = thawLeft(dir)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func thawLeft(dir string) error {
	_, err := within(context.Background(), thawLimit, "thaw "+dir, func() (none, error) { return none{}, newSession(nil).thaw([]string{dir}) })
	return err
}
