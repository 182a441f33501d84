package control

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tidemark"
	"tidemark/catalog"
)

// A clock may be wrong for a while, and what was taken away because it was old does not come back. So things grow old by a clock that follows that
// of the host, but goes along with a jump forward only when that has stayed for long enough that somebody, or NTP, would have set it right. Until then
// it goes on as if nothing had happened. This is for what is taken away for its age alone: schedules, compliance and logins go by the host's clock.

const (
	// clockJump is how far clock and time that passed may differ before the clock was set.
	clockJump = time.Minute
	// clockStays is how long a clock that was set forward has to stay so until things are old by it.
	clockStays = 24 * time.Hour
	// clockAway is how long a server may not have run, by the clock, before the clock may have been set meanwhile.
	clockAway = 24 * time.Hour
	// clockNoted is how often it is noted what time it is, for a server that comes back.
	clockNoted = time.Hour
)

// clockNow is what the clock shows. [time.Now] knows more, how long the process has run, and compares with others of it by that: as if the clock had
// never been set, and otherwise than what was read from the catalog. What policies are asked with goes by the clock alone.
func clockNow() time.Time { return time.Now().Round(0) }

// clock is the time by which things grow old.
type clock struct {
	mu    sync.Mutex                                 // guards what follows
	read  func() (wall time.Time, ran time.Duration) // the clock, and a time that nobody sets
	wall  time.Time                                  // when it was looked at last
	ran   time.Duration
	ahead time.Duration // by how much it was set since it was believed; negative: back
	since time.Duration // by ran, when it was set last
	sets  int           // how often it was set
	noted time.Duration // by ran, when it was noted last
}

// clockLook is what a look at the clock shows.
type clockLook struct {
	aging  time.Time     // the time by which things grow old
	ahead  time.Duration // how far the clock is ahead of that
	until  time.Time     // when it is believed, if it stays so
	jump   time.Duration // how far it was set since the last look; 0: it was not
	stayed time.Duration // how far it was set forward, which is believed from now on; 0: there is nothing new
	sets   int
	due    bool // the time has to be noted
}

// begin begins with the time by which things had grown old when a server ran last; zero: that is not known. It returns by how much the clock is
// ahead of that, if it may have been set.
func (k *clock) begin(last time.Time) (ahead time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.read == nil {
		started := time.Now()
		k.read = func() (time.Time, time.Duration) {
			now := time.Now()
			return now.Round(0), now.Sub(started)
		}
	}
	k.wall, k.ran = k.read()
	k.ahead, k.since, k.noted = 0, k.ran, k.ran-clockNoted
	if away := k.wall.Sub(last); !last.IsZero() && away.Abs() > clockAway {
		k.ahead = away
	}
	return max(k.ahead, 0)
}

// look looks at the clock.
func (k *clock) look() (l clockLook) {
	k.mu.Lock()
	defer k.mu.Unlock()
	wall, ran := k.read()
	if d := wall.Sub(k.wall) - (ran - k.ran); d.Abs() > clockJump {
		l.jump = d
		k.ahead, k.since, k.sets = k.ahead+d, ran, k.sets+1
	}
	k.wall, k.ran = wall, ran
	if stays := ran-k.since >= clockStays; stays || k.ahead.Abs() <= clockJump {
		if stays {
			l.stayed = max(k.ahead, 0)
		}
		k.ahead = 0
	}
	l.ahead, l.sets = max(k.ahead, 0), k.sets
	l.aging, l.until = wall.Add(-l.ahead), wall.Add(clockStays-(ran-k.since))
	if l.due = l.jump != 0 || l.stayed != 0 || ran-k.noted >= clockNoted; l.due {
		k.noted = ran
	}
	return l
}

// clockNote is the time by which things grow old, as the catalog has it.
type clockNote struct {
	Aging time.Time `json:"aging"`
}

// clockKey is the name of that note.
const clockKey = "aging"

// beginClock looks whether the clock may have been set while no server ran.
func (c *Control) beginClock(ctx context.Context) error {
	var n clockNote
	if err := c.catalog.Get(ctx, catalog.Clock, clockKey, &n); err != nil && tidemark.KindOf(err) != tidemark.NotFound {
		return err
	}
	if ahead := c.clock.begin(n.Aging); ahead > 0 {
		c.event("warning", "", "by the clock, no server ran for %v, or the clock was set meanwhile: nothing is taken away for an age that it has by that, unless the clock stays so for %v",
			ahead.Round(time.Second), clockStays)
	}
	c.aging()
	return nil
}

// aging is the time by which things grow old: that of the clock, or before it. Whoever takes something away because it is old asks for it.
func (c *Control) aging() time.Time { return c.lookAtClock().aging }

// lookAtClock looks at the clock, and tells of what happened to it.
func (c *Control) lookAtClock() clockLook {
	l := c.clock.look()
	now := l.aging.Add(l.ahead).UTC().Format(time.RFC3339)
	switch {
	case l.jump > 0 && l.ahead > 0:
		c.event("warning", "", "the clock went forward by %v at once, to %s: nothing is taken away for an age that it has by that, unless the clock stays so for %v",
			l.jump.Round(time.Second), now, clockStays)
	case l.jump > 0:
		c.event("warning", "", "the clock went forward by %v at once, to %s", l.jump.Round(time.Second), now)
	case l.jump < 0:
		c.event("warning", "", "the clock went back by %v at once, to %s", -l.jump.Round(time.Second), now)
	case l.stayed > 0:
		c.event("info", "", "the clock that went forward by %v has stayed so for %v: things are as old as it says", l.stayed.Round(time.Second), clockStays)
	}
	if l.jump != 0 {
		c.promises.stir()
	}
	if l.due {
		if err := c.catalog.Put(c.jobs.ctx, catalog.Clock, clockKey, clockNote{l.aging}); err != nil && c.jobs.ctx.Err() == nil {
			c.log.Error("what time it is was not noted", "error", err)
		}
	}
	return l
}

// warnOfClock says in the status that the clock is not believed.
func (c *Control) warnOfClock(s *tidemark.Status) {
	if l := c.lookAtClock(); l.ahead > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the clock went forward by %v at once, or no server ran for so long: unless it is set back, things are as old as it says from %s on, and until then nothing is taken away for that",
			l.ahead.Round(time.Second), l.until.UTC().Format(time.RFC3339)))
	}
}
