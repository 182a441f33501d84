package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bitmaps are numbered, those of all disks alike, and no number is used twice for a timeline. Its anchor is the number N such
// that, durably, it lacks nothing but what the bitmaps N and later mark: a run that finds all of them on a disk reads those
// ranges of it only. An anchor of -N says that what it lacks is not known, and that the numbers up to N were used.

// anchor is what the timeline has as its anchor; 0 if it has none.
func (r *run) anchor() int {
	n, err := strconv.Atoi(r.m.Target.Anchor())
	if err != nil {
		return 0
	}
	return n
}

// Distrust has the next Run compare everything; no Run may be under way.
func (m *Mirror) Distrust() error {
	r := &run{m: m}
	if n := r.anchor(); n > 0 {
		return m.Target.SetAnchor(strconv.Itoa(-n))
	}
	return nil
}

func (r *run) bitmapName(n int) string { return fmt.Sprintf("%s-%d", r.prefix, n) }

// recall finds out whether the machine knows what the timeline lacks. If not, that is noted before anything of
// this machine is written: another, or an earlier one, may come back with bitmaps of its own.
func (r *run) recall(ctx context.Context) error {
	have, err := r.bitmaps(ctx)
	if err != nil {
		return err
	}
	base := r.anchor()
	last := max(base, -base)
	for _, d := range r.disks {
		for n, b := range have[d.node.Node] {
			last = max(last, n)
			d.old = append(d.old, b.Name)
		}
	}
	all := true
	for _, d := range r.disks {
		d.known = base > 0
		for n := base; d.known && n <= last; n++ {
			b, ok := have[d.node.Node][n]
			d.known = ok && !b.Inconsistent
		}
		all = all && d.known
	}
	r.current = last + 1
	if all || base < 0 {
		return nil
	}
	return r.m.Target.SetAnchor(strconv.Itoa(-last))
}

// action is one of a transaction.
type action struct {
	Type string         `json:"type"`
	Data map[string]any `json:"data"`
}

// transact does actions on all disks in one moment.
func (r *run) transact(ctx context.Context, of func(d *disk) []action) error {
	var list []action
	for _, d := range r.disks {
		for _, a := range of(d) {
			a.Data["node"] = d.node.Node
			list = append(list, a)
		}
	}
	return r.qmp.Run(ctx, "transaction", map[string]any{"actions": list}, nil)
}

func addBitmap(name string, disabled bool) action {
	return action{"block-dirty-bitmap-add", map[string]any{"name": name, "granularity": granule, "disabled": disabled}}
}

// unionName is the bitmap that a sync reads: all that the timeline may lack.
func (r *run) unionName() string { return r.prefix + "-all" }

// bitmaps returns ours, by node and number.
func (r *run) bitmaps(ctx context.Context) (map[string]map[int]bitmap, error) {
	var nodes []node
	if err := r.qmp.Run(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return nil, err
	}
	found := map[string]map[int]bitmap{}
	for _, n := range nodes {
		found[n.Name] = map[int]bitmap{}
		for _, b := range n.Bitmaps {
			if s, ok := strings.CutPrefix(b.Name, r.prefix+"-"); ok {
				if k, err := strconv.Atoi(s); err == nil {
					found[n.Name][k] = b
				}
			}
		}
	}
	return found, nil
}

func (r *run) removeBitmap(ctx context.Context, d *disk, name string) error {
	err := r.qmp.Run(ctx, "block-dirty-bitmap-remove", map[string]any{"node": d.node.Node, "name": name}, nil)
	var refused *CommandError
	if errors.As(err, &refused) && strings.Contains(refused.Desc, "not found") {
		return nil
	}
	return err
}

// forgetBitmaps removes all of ours, on whatever nodes.
func (r *run) forgetBitmaps(ctx context.Context) error {
	var nodes []node
	if err := r.qmp.Run(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		for _, b := range n.Bitmaps {
			if !strings.HasPrefix(b.Name, r.prefix+"-") {
				continue
			}
			if err := r.qmp.Run(ctx, "block-dirty-bitmap-remove", map[string]any{"node": n.Name, "name": b.Name}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// sync makes the timeline equal to the machine's disks, and closes the gap.
func (r *run) sync(ctx context.Context) error {
	if err := r.startServer(ctx); err != nil { // first: without it, nothing is under way
		return err
	}
	r.m.become(State{Phase: Syncing, Total: r.size()})
	if err := r.gather(ctx); err != nil {
		return err
	}
	if err := r.pullLacking(ctx); err != nil {
		return err
	}
	if err := r.settle(ctx); err != nil {
		return err
	}
	if err := r.agree(ctx); err != nil && !errors.Is(err, errBusy) {
		return err
	}
	if err := r.in.why(); err != nil {
		return err
	}
	if err := r.m.Target.Whole(strconv.Itoa(r.current)); err != nil {
		return err
	}
	if end := r.in.shut.Load(); end != nil { // the gap may have been opened before it was closed
		r.m.lose(*end)
		return end.why
	}
	for _, d := range r.disks {
		r.m.Logger.Info("a machine is followed", "socket", r.m.Socket, "disk", d.node.ID(), "by_bitmap", d.known, "stored_bytes", d.stored)
		for _, name := range append(d.old, r.unionName()) {
			if err := r.removeBitmap(ctx, d, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// gather begins the bitmaps of what is written from now on, and those that have all that the timeline lacks up to now, of
// disks of which that is known.
func (r *run) gather(ctx context.Context) error {
	for _, d := range r.disks {
		if err := r.removeBitmap(ctx, d, r.unionName()); err != nil {
			return err
		}
		d.pushed.Store(&pushed{current: newMarks(d.size)}) // before the bitmap, so that it marks no more than this
	}
	return r.transact(ctx, func(d *disk) []action {
		list := []action{addBitmap(r.bitmapName(r.current), false)}
		if d.known {
			list = append(list, addBitmap(r.unionName(), true),
				action{"block-dirty-bitmap-merge", map[string]any{"target": r.unionName(), "bitmaps": d.old}})
		}
		return list
	})
}

// inDoubt reports whether something was discarded and not read since.
func (r *run) inDoubt() bool {
	return slices.ContainsFunc(r.disks, func(d *disk) bool { return d.doubts.bytes() > 0 })
}

// settle reads again what was discarded, until nothing is in doubt.
func (r *run) settle(ctx context.Context) error {
	for r.inDoubt() {
		if err := r.pullDoubts(ctx); err != nil {
			return err
		}
	}
	return r.stopServer(ctx)
}

var (
	// errBusy: the guest writes all the time, and it could not be told whether all of it came in.
	errBusy = errors.New("the guest writes all the time")
	// errPassed: QEMU's bitmap has marks where nothing came in.
	errPassed = errors.New("writes to the machine's disk did not come through its mirror")
)

// agree compares what QEMU has marked as written since the current bitmaps were begun with what came
// in: a write that took another way, or that failed halfway, is found so.
func (r *run) agree(ctx context.Context) error {
	have, err := r.bitmaps(ctx)
	if err != nil {
		return err
	}
	for range 25 {
		jobs, err := r.jobs(ctx)
		if err != nil {
			return err
		}
		all := true
		for _, d := range r.disks {
			j := jobs[d.name]
			d.quiet = d.quiet || j.quiet()
			b, ok := have[d.node.Node][r.current]
			came := d.pushed.Load().current.bytes() // after the job was looked at: what was under way is in it
			switch {
			case !ok:
				return fmt.Errorf("the bitmap %s of %s is gone from the machine", r.bitmapName(r.current), d.node.ID())
			case b.Count <= came:
			case j.quiet():
				return fmt.Errorf("%w: %d bytes of %s are marked, and %d came in", errPassed, b.Count, d.node.ID(), came)
			default:
				all = false
			}
		}
		if all {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errBusy
}

// beginTurn begins new bitmaps beside the current ones, if those have marks.
func (r *run) beginTurn(ctx context.Context) error {
	have, err := r.bitmaps(ctx)
	if err != nil || !slices.ContainsFunc(r.disks, func(d *disk) bool { return have[d.node.Node][r.current].Count > 0 }) {
		return err
	}
	for _, d := range r.disks {
		d.pushed.Store(&pushed{d.pushed.Load().current, newMarks(d.size)}) // before the bitmap, so that it marks no more than this
	}
	if err := r.transact(ctx, func(*disk) []action { return []action{addBitmap(r.bitmapName(r.current+1), false)} }); err != nil {
		return err
	}
	r.next, r.nextAt = r.current+1, time.Now()
	for _, d := range r.disks {
		d.quiet = false
	}
	return nil
}

// finishTurn lets the current bitmaps go when nothing that they alone have marked can be on its way any more: of each disk
// there was a moment with nothing under way since the next were begun.
func (r *run) finishTurn(ctx context.Context) error {
	if time.Since(r.nextAt) < r.m.turnAfter || r.inDoubt() {
		return nil
	}
	if err := r.agree(ctx); errors.Is(err, errBusy) {
		return nil
	} else if err != nil {
		return err
	}
	if slices.ContainsFunc(r.disks, func(d *disk) bool { return !d.quiet }) {
		return nil
	}
	if err := r.m.Target.SetAnchor(strconv.Itoa(r.next)); err != nil {
		return err
	}
	old := r.bitmapName(r.current)
	r.current, r.next = r.next, 0
	for _, d := range r.disks {
		d.pushed.Store(&pushed{current: d.pushed.Load().next})
		if err := r.removeBitmap(ctx, d, old); err != nil {
			return err
		}
	}
	return nil
}
