package control

import (
	"context"
	"time"

	"tidemark"
	"tidemark/agent"
	"tidemark/capture"
)

// shootMachine makes an AppShot of a virtual machine: its writes are in the timeline when the guest is told that they are done, so
// the mark is made here, while the agent has the machine still.
func (c *Control) shootMachine(ctx context.Context, a app, name string) (p tidemark.RecoveryPoint, err error) {
	leave, err := c.taps.turn(ctx, []app{a})
	if err != nil {
		return p, err
	}
	defer leave()
	if err := markable(a, name); err != nil {
		return p, err
	}
	var pos tidemark.Position
	var at time.Time
	marked := false
	q := agent.Quiescing{Timeline: a.t.ID(), Bookmark: name, Scripts: a.Options[optionScripts], ScriptLimit: a.scriptLimit(), Guest: a.Options[optionGuest]}
	r, err := c.agent.Quiesce(ctx, q, func(m capture.Mark) (err error) {
		at = time.Now()
		m.Time = at.UnixNano()
		pos, err = a.t.Bookmark(m)
		marked = err == nil
		return err
	})
	for _, problem := range r.Problems {
		c.event("error", a.name, "after the bookmark %s: %s", name, problem)
	}
	if err == nil && !r.Lasted && r.Mark.Consistency != tidemark.CrashConsistent {
		err = tidemark.Errorf(tidemark.Unavailable, "the guest of %s went on before its bookmark was made", a.name).WithHint("try again: the disk of the server was slow")
	}
	if err != nil {
		c.wakeAgent(ctx)
		if marked {
			c.forgetPoint(context.WithoutCancel(ctx), a, name)
		}
		return p, err
	}
	return c.noteShot(ctx, a, r.MemberResult, r.Hold, pos, at.UnixNano()), nil
}

// markable refuses a bookmark of a machine that could not be made, before anything is held for it.
func markable(a app, name string) error {
	if err := unusedIn(a, name); err != nil {
		return err
	}
	if a.t.Lacks() {
		return noPoint(a)
	}
	return nil
}

// wakeAgent has an agent run. One that comes after one that was killed lets go on what that has left.
func (c *Control) wakeAgent(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, err := c.agent.Thaw(ctx, nil); err != nil {
		c.log.Error("no agent runs; a guest may be frozen", "error", err)
	}
}
