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

// env is what the programs are told.
func (h heldApplication) env() []string { return []string{"TIDEMARK_BOOKMARK=" + h.Bookmark} }

func (s *session) noteHeld(timeline string, h heldApplication) error {
	if err := vfs.MkdirAll(vfs.OS, s.places.Held); err != nil {
		return err
	}
	return vfs.WriteFile(vfs.OS, s.places.heldFile(timeline), mustJSON(h))
}

func (s *session) forgetHeld(timeline string) error {
	return os.Remove(s.places.heldFile(timeline))
}

// postAllLeft lets applications go on that an agent that was killed has left held.
func postAllLeft(p Places) {
	files, err := filepath.Glob(p.heldFile("*"))
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
	return errors.Join(h.letGo(context.Background()), os.Remove(file))
}

// letGo lets an application go on, whatever of it is held.
func (h heldApplication) letGo(ctx context.Context) error {
	var thawed error
	if h.Guest != "" {
		thawed = qemu.ThawGuest(ctx, h.Guest)
	}
	if h.Scripts == "" {
		return thawed
	}
	p, err := script.Load(h.Scripts)
	if err == nil {
		err = p.Run(ctx, script.Post, h.Limit, h.env()...)
	}
	return errors.Join(thawed, err)
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
