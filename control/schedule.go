package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// scheduledPrefix begins the names of AppShots that were made by interval.
const scheduledPrefix = "auto-"

// keepShots makes AppShots by interval, as the application's options say, until ctx is done.
func (c *Control) keepShots(ctx context.Context, a app) {
	every, err := time.ParseDuration(a.Options[optionEvery])
	if err != nil {
		return // it has no interval
	}
	c.keepInterval(ctx, every, a.name, func(name string) error {
		_, err := c.shootOne(ctx, a, unusedName([]app{a}, name))
		if c.settled(a) != nil {
			return nil // no moment of a restore in place is a state that anybody meant
		}
		c.expireShots(ctx, a, "", a.Options[optionKeep])
		return err
	})
}

// errEnds is what an interval returns that has nothing left to mark.
var errEnds = errors.New("there is nothing to mark any more")

// keepInterval calls shoot every so often, with a name made of the time, until ctx is done, or shoot returns errEnds. That it fails is told once.
func (c *Control) keepInterval(ctx context.Context, every time.Duration, what string, shoot func(name string) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			err := shoot(scheduledPrefix + now.UTC().Format(nameTime))
			if errors.Is(err, errEnds) {
				return
			}
			if err != nil && !failed && ctx.Err() == nil {
				c.event("warning", what, "no AppShot of %s is made: %v", what, err)
			}
			failed = err != nil
		}
	}
}

// unusedName makes a name that was made of the time one that no bookmark has: a clock that was set back gives times again.
func unusedName(members []app, name string) string {
	unused := name
	for n := 2; hasBookmark(members, unused); n++ {
		unused = fmt.Sprintf("%s-%d", name, n)
	}
	return unused
}

func hasBookmark(members []app, name string) bool {
	for _, a := range members {
		if a.t.HasBookmark(name) {
			return true
		}
	}
	return false
}

// expireShots forgets AppShots of an application that were made by its own interval, or by that of a group, and are older than they are
// to be kept: by default as long as the window.
func (c *Control) expireShots(ctx context.Context, a app, group, keep string) {
	d, err := time.ParseDuration(keep)
	if err != nil {
		d = a.t.Window().For
	}
	if err := c.expireOlder(ctx, a, group, d); err != nil && ctx.Err() == nil {
		c.log.Error("old AppShots were not expired", "application", a.name, "error", err)
	}
}

// expireOlder is expireShots. As for the window, only the time counts in which the timeline was served: a clock that is set forward makes
// nothing old.
func (c *Control) expireOlder(ctx context.Context, a app, group string, keep time.Duration) error {
	notes, err := c.shotNotes(ctx, a.name)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range a.t.Points() {
		if !strings.HasPrefix(p.Bookmark, scheduledPrefix) || p.Labels[labelGroup] != group {
			continue
		}
		n := notes[p.Bookmark]
		switch {
		case n.Ran == 0: // it was not noted when it was made
			n.Application, n.Bookmark, n.Ran = a.name, p.Bookmark, a.t.Ran()
			errs = append(errs, c.catalog.Put(ctx, catalog.Shots, n.key(), n))
		case a.t.Ran()-n.Ran > keep && a.publicationAt(p.Position) == nil:
			_, err := c.Expire(ctx, a.name+"@"+p.Bookmark)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// groupings are the groups that are bookmarked by interval.
type groupings struct {
	change sync.Mutex // held while a group is changed

	mu   sync.Mutex
	live map[string]context.CancelFunc // guarded by mu
}

// keepGroup begins to bookmark a group by interval, as its options say now, and ends what was begun before.
func (c *Control) keepGroup(name string) {
	c.groups.mu.Lock()
	defer c.groups.mu.Unlock()
	if stop := c.groups.live[name]; stop != nil {
		stop()
		delete(c.groups.live, name)
	}
	every, err := time.ParseDuration(c.groupOptions(name)[optionEvery])
	if err != nil {
		return // it has no interval
	}
	ctx, cancel := context.WithCancel(c.jobs.ctx)
	if c.groups.live == nil {
		c.groups.live = map[string]context.CancelFunc{}
	}
	c.groups.live[name] = cancel
	c.jobs.wg.Go(func() {
		defer cancel()
		c.keepInterval(ctx, every, name, func(bookmark string) error { return c.shootGroup(ctx, name, bookmark) })
	})
}

// shootGroup makes a bookmark of a group by interval. One whose members are all unprotected is gone, and its interval ends.
func (c *Control) shootGroup(ctx context.Context, name, bookmark string) error {
	members := c.membersOf(name)
	if len(members) == 0 {
		return errEnds
	}
	_, err := c.BookmarkGroup(ctx, tidemark.BookmarkSpec{Application: name, Name: unusedName(members, bookmark)})
	if slices.ContainsFunc(members, func(a app) bool { return c.settled(a) != nil }) {
		return nil // as of one application
	}
	for _, a := range members {
		c.expireShots(ctx, a, name, a.Schedules[name][optionKeep])
	}
	return err
}

// groupOptions are the options of a group. All of its members carry them; if a change was cut, those of its first member count.
func (c *Control) groupOptions(name string) map[string]string {
	for _, a := range c.membersOf(name) {
		return a.Schedules[name]
	}
	return nil
}

// changedOptions are options with changes made, of which an empty value takes one away.
func changedOptions(options, changes map[string]string) (map[string]string, error) {
	changed := maps.Clone(options)
	if changed == nil {
		changed = map[string]string{}
	}
	for key, value := range changes {
		if key != optionEvery && key != optionKeep {
			return nil, tidemark.Errorf(tidemark.Invalid, "there is no option %q of a group", key).WithHint("there are appshot=INTERVAL and appshot_keep=TIME")
		}
		if value == "" {
			delete(changed, key)
			continue
		}
		if err := checkInterval(key, value); err != nil {
			return nil, err
		}
		changed[key] = value
	}
	if changed[optionKeep] != "" && changed[optionEvery] == "" {
		return nil, tidemark.Errorf(tidemark.Invalid, "%s is for bookmarks by interval, and there are none", optionKeep).WithHint("add -o appshot=1m")
	}
	return changed, nil
}
