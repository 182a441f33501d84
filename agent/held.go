package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"tidemark/app/script"
	"tidemark/internal/vfs"
	"tidemark/mount"
)

// heldApplication is what is noted beside a tap from before pre is run until post has been: an application
// goes on also if the agent is killed in between.
type heldApplication struct {
	Scripts  string        `json:"scripts"`
	Bookmark string        `json:"bookmark"`
	Limit    time.Duration `json:"limit"`
}

// heldName is the file in the directory of a tap that has it.
const heldName = "held.json"

// env is what the programs are told.
func (h heldApplication) env() []string { return []string{"TIDEMARK_BOOKMARK=" + h.Bookmark} }

func (s *session) noteHeld(timeline string, h heldApplication) error {
	return vfs.WriteFile(vfs.OS, filepath.Join(s.tapDir(timeline), heldName), mustJSON(h))
}

func (s *session) forgetHeld(timeline string) error {
	return os.Remove(filepath.Join(s.tapDir(timeline), heldName))
}

// postAllLeft lets applications go on that an agent that was killed has left held.
func postAllLeft(p Places) {
	files, err := filepath.Glob(filepath.Join(p.Taps, "*", heldName))
	if err != nil {
		slog.Error("it is not known whether an application is held", "error", err)
	}
	var all sync.WaitGroup
	for _, file := range files {
		all.Go(func() {
			if err := postLeft(file); err != nil {
				slog.Error("an application may still be held, by a program that ran when the agent was killed", "error", err)
			}
		})
	}
	all.Wait()
}

// postLeft runs the program post that an agent was killed before.
func postLeft(file string) error {
	text, err := vfs.ReadFile(vfs.OS, file)
	if err != nil {
		return err
	}
	var h heldApplication
	if err := json.Unmarshal(text, &h); err != nil {
		return errors.Join(fmt.Errorf("read %s: %w", file, err), os.Remove(file))
	}
	p, err := script.Load(h.Scripts)
	if err == nil {
		err = p.Run(context.Background(), script.Post, h.Limit, h.env()...)
	}
	return errors.Join(err, os.Remove(file))
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
