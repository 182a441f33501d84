package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"tidemark"
	"tidemark/agent"
)

// tappedDisks are the devices of an application's tapped disks, open for us alone.
type tappedDisks struct {
	disks []tappedDisk
	close func()
}

// tappedDisk is one of them. What was written is durable after Sync.
type tappedDisk interface {
	io.WriterAt
	Sync() error
}

// openTapped opens the tapped devices of an application for us alone, on whatever host they are. ctx closes those of another host.
func (c *Control) openTapped(ctx context.Context, a app) (*tappedDisks, error) {
	if a.Agent == "" {
		files, err := agent.PlacesIn(c.o.Dir).OpenTapped(c.tapping(a))
		if err != nil {
			return nil, err
		}
		o := &tappedDisks{close: func() { closeAll(files) }}
		for _, f := range files {
			o.disks = append(o.disks, f)
		}
		return o, nil
	}
	x, err := c.agentOn(a.Agent)
	if err != nil {
		return nil, err
	}
	w, err := x.OpenTapped(ctx, c.tapping(a))
	if err != nil {
		return nil, fmt.Errorf("on host %s, %w", a.Agent, err)
	}
	o := &tappedDisks{close: func() {
		if err := w.Close(); err != nil {
			c.log.Info("the disks of a host were not closed in order", "application", a.name, "host", a.Agent, "error", err)
		}
	}}
	for i := range a.t.Disks() {
		o.disks = append(o.disks, w.Disk(i))
	}
	return o, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// open opens the disks of all members, or none.
func (p *inPlace) open(ctx context.Context) (err error) {
	for _, m := range p.members {
		if m.disks, err = p.c.openTapped(ctx, m.a); err != nil {
			p.close()
			return err
		}
	}
	return nil
}

func (p *inPlace) close() {
	for _, m := range p.members {
		m.close()
	}
}

func (m *returning) close() {
	if m.disks != nil {
		m.disks.close()
		m.disks = nil
	}
}

// bring makes a member what it is to be, and goes on when the agent of its host comes back.
func (p *inPlace) bring(ctx context.Context, m *returning) error {
	for {
		if m.disks == nil {
			if err := p.reopen(ctx, m); err != nil {
				return err
			}
		}
		err := p.write(ctx, m)
		if err == nil {
			p.void(ctx, m)
			return p.set(context.WithoutCancel(ctx), &m.Done, true)
		}
		if !errors.Is(err, agent.ErrInterrupted) || ctx.Err() != nil {
			return err
		}
		p.c.event("warning", m.a.name, "the restore of %s in place was interrupted, and goes on when its disks can be had again: %v", m.a.name, err)
		m.close()
	}
}

// set changes something that is noted of a member.
func (p *inPlace) set(ctx context.Context, what *bool, to bool) error {
	p.mu.Lock()
	*what = to
	p.mu.Unlock()
	return p.note(ctx)
}

// reopen opens the disks of a member whose restore was cut, when that is possible, and finds out what they hold. They are open first:
// while the tap sends again what was being written, as it does after a power cut, nobody else gets them.
func (p *inPlace) reopen(ctx context.Context, m *returning) (err error) {
	if err := p.set(ctx, &m.waits, true); err != nil {
		return err
	}
	busySince := time.Time{}
	for {
		if m.disks, err = p.c.openTapped(ctx, m.a); err == nil {
			_, err = p.c.withhold(ctx, m.a, true)
		}
		switch tidemark.KindOf(err) {
		case tidemark.Conflict: // perhaps by who had opened them for us
			if busySince.IsZero() {
				busySince = time.Now()
			}
			if time.Since(busySince) > patience {
				return err
			}
		case tidemark.Unavailable:
			m.close()
			busySince = time.Time{}
		default:
			if err != nil {
				return err
			}
			if m.now, err = p.c.catchUp(ctx, m.a, forEver, p.t.report); err != nil {
				return err
			}
			return p.set(ctx, &m.waits, false)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(reopenPause):
		}
	}
}

// reopenPause is how long a restore waits before it looks again for disks that cannot be had. It is short: once a tap is attached, others could open them.
const reopenPause = 100 * time.Millisecond

// withhold keeps tapped disks from production, also over a restart of their host, or no more, and reports whether that is new.
func (c *Control) withhold(ctx context.Context, a app, on bool) (changed bool, err error) {
	x, err := c.agentOn(a.Agent)
	if err != nil {
		return false, err
	}
	return x.WithholdTap(ctx, c.tapping(a), on)
}

// withholdAll does so for all members, before the first is written.
func (p *inPlace) withholdAll(ctx context.Context) error {
	for _, m := range p.members {
		if _, err := p.c.withhold(ctx, m.a, true); err != nil {
			return fmt.Errorf("keep the disks of %s from others: %w", m.Application, err)
		}
	}
	return nil
}

// giveBack lets production have the disks, when the restore has ended or was given up. One that is only cut by the stop of the server keeps them.
// What cannot be told to a host now is told by [Control.keepTap].
func (p *inPlace) giveBack(ctx context.Context, failure error) {
	p.close()
	if failure != nil && errors.Is(context.Cause(ctx), errStopping) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	for _, m := range p.members {
		if m.a.t == nil { // it is gone
			continue
		}
		if _, err := p.c.withhold(ctx, m.a, false); err != nil {
			p.c.log.Warn("disks that were taken back are not shown yet", "application", m.Application, "error", err)
		}
	}
}

// showAgain shows disks that are withheld for a restore which has ended while their host could not be told.
func (c *Control) showAgain(ctx context.Context, a app) error {
	release, err := c.claimDisks([]*returning{{takenBack: takenBack{Application: a.name}}})
	if err != nil { // it has not ended
		return nil
	}
	defer release()
	was, err := c.withhold(ctx, a, false)
	if err != nil || !was {
		return err
	}
	c.event("warning", a.name, "the disks of %s are shown again: no restore of them runs any more (`tidemark jobs`)", a.name)
	return nil
}

// write writes to each disk of a member what its point has and the present does not, and flushes it.
func (p *inPlace) write(ctx context.Context, m *returning) error {
	x := p.c.store.Begin()
	defer x.End()
	before := m.Changed
	for i, d := range m.a.t.Disks() {
		then, err := m.a.t.Root(ctx, x, d.Name(), m.Position)
		if err != nil {
			return err
		}
		now, err := m.a.t.Root(ctx, x, d.Name(), m.now)
		if err != nil {
			return err
		}
		n, err := p.c.writeBack(ctx, now, then, m.disks.disks[i], func(at tidemark.Progress) { p.report(m, before+at.Done) })
		before += n
		p.report(m, before)
		if err == nil {
			err = m.disks.disks[i].Sync()
		}
		if err != nil {
			return fmt.Errorf("write disk %s: %w", d.Name(), err)
		}
	}
	return nil
}

// report notes how much of a member is written.
func (p *inPlace) report(m *returning, n int64) {
	p.mu.Lock()
	m.Changed = n
	sum := tidemark.Progress{Unit: "bytes"}
	for _, o := range p.members {
		sum.Done += o.Changed
	}
	p.mu.Unlock()
	p.t.report(sum)
}

// void takes away the points between what a member was and what it is now, which nobody meant.
func (p *inPlace) void(ctx context.Context, m *returning) {
	end, err := p.c.catchUp(ctx, m.a, patience, func(tidemark.Progress) {})
	if err == nil && end > m.Present+1 {
		err = m.a.t.Void(m.Present, end, "it was taken back to "+p.Ref)
	}
	if err != nil {
		p.c.event("warning", m.a.name, "moments in the middle of the restore of %s are shown as points: %v", m.a.name, err)
	}
}

// How long a restore in place waits for a tap that is away or does not run. One that sends what the timeline lacks is
// waited for however long that takes.
const (
	patience = 10 * time.Second
	forEver  = time.Duration(math.MaxInt64)
)

// catchUp waits until the timeline of a tapped application has all that its disks have, and returns where it is then. It stays there
// if nobody writes. It reports how much was missing and is there.
func (c *Control) catchUp(ctx context.Context, a app, patience time.Duration, report func(tidemark.Progress)) (tidemark.Position, error) {
	seen, total := time.Now(), int64(0)
	for {
		var d tidemark.Application
		c.describeTap(ctx, a, &d)
		if _, err := c.agentOn(a.Agent); tidemark.KindOf(err) == tidemark.NotFound {
			return 0, errHostRemoved(a.Agent) // which nobody waits for
		}
		switch {
		case d.Tap.State == tidemark.TapFollowing && d.Tap.QueuedBytes == 0:
			report(tidemark.Progress{})
			head, _ := a.t.Head()
			return head, nil
		case d.Tap.State == tidemark.TapFollowing:
			seen = time.Now()
		case d.Tap.State == tidemark.TapSyncing:
			seen, total = time.Now(), max(total, d.Tap.LostBytes)
			report(tidemark.Progress{Done: total - d.Tap.LostBytes, Total: total, Unit: "bytes"})
		case time.Since(seen) > patience:
			return 0, tidemark.Errorf(tidemark.Unavailable, "%s has no point for now: its tap is %s (%s)", a.name, d.Tap.State, d.Tap.Detail).
				WithHint("`tidemark status` says how the tap is; `tidemark restore --to` needs none")
		}
		pause := 100 * time.Millisecond
		if d.Tap.State == tidemark.TapFollowing {
			pause = 5 * time.Millisecond
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(pause):
		}
	}
}
