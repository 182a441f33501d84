package qemu

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tidemark"
)

// Sockets in a mirror's directory.
const (
	writeName = "in.sock"   // where QEMU sends the guest's writes
	readName  = "read.sock" // where QEMU lets us read the disk
)

// run is one run of a mirror. Its methods are called by one goroutine.
type run struct {
	m       *Mirror
	qmp     *Monitor
	prefix  string
	disks   []*disk
	in      *intake
	current int       // number of the bitmaps that mark what is written since the sync began
	next    int       // of those that will succeed them, or 0
	nextAt  time.Time // when these were begun
}

// disk is one disk of a run.
type disk struct {
	*port
	node   Disk
	name   string   // of the job, the node and the export of this run
	old    []string // the bitmaps that mark what the timeline may lack
	known  bool     // they mark all of it
	quiet  bool     // since the next bitmaps were begun there was a moment with nothing on its way
	stored int64    // bytes that differed
}

// begin finds the machine and its disks, and takes away what an earlier run has left there.
func (m *Mirror) begin(ctx context.Context) (*run, error) {
	qmp, err := Dial(ctx, m.Socket)
	if err != nil {
		return nil, err
	}
	r := &run{m: m, qmp: qmp, prefix: m.prefix(), in: newIntake(m.stall, m.lose)}
	if err = r.clean(ctx); err == nil {
		err = r.findDisks(ctx)
	}
	if err == nil {
		err = r.recall(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, qmp.Close())
	}
	return r, nil
}

func (r *run) findDisks(ctx context.Context) error {
	nodes, err := r.qmp.choose(ctx, r.m.Disks)
	if err != nil {
		return err
	}
	name := r.prefix + "-" + randomName() // QEMU allows 31 characters
	for i, ours := range r.m.Target.Disks() {
		if n := nodes[i]; n.Size != ours.Size() {
			return tidemark.Errorf(tidemark.Conflict, "the disk %s of the machine has %d bytes, and its timeline has %d", n.ID(), n.Size, ours.Size()).
				WithHint("protect the machine under another name")
		}
		r.disks = append(r.disks, &disk{port: r.in.port(ours), node: nodes[i], name: fmt.Sprintf("%s.%d", name, i)})
	}
	return nil
}

// size is that of all disks, in bytes.
func (r *run) size() (n int64) {
	for _, d := range r.disks {
		n += d.size
	}
	return n
}

func randomName() string {
	var b [4]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// mirror has QEMU send on what the guest writes. When it returns, every write that begins is sent.
func (r *run) mirror(ctx context.Context) error {
	path := filepath.Join(r.m.Dir, writeName)
	if err := r.qmp.reachable(r.m.Dir); err != nil {
		return err
	}
	linked := make([]atomic.Bool, len(r.disks)) // while it negotiates, it comes and goes
	var inlets []Inlet
	for i, d := range r.disks {
		inlets = append(inlets, Inlet{Name: d.name, Disk: d.port, Gone: func() {
			if linked[i].Load() {
				r.in.close(0, errors.New("the machine hung up"), r.m.Target.HangUp)
			}
		}})
	}
	if err := r.m.Target.Show(path, inlets); err != nil {
		return err
	}
	if err := r.qmp.reachable(path); err != nil {
		return err
	}
	for i, d := range r.disks {
		if err := r.mirrorDisk(ctx, d, path, &linked[i]); err != nil {
			return err
		}
	}
	return r.waitReady(ctx)
}

func (r *run) mirrorDisk(ctx context.Context, d *disk, path string, linked *atomic.Bool) error {
	// Discards are passed on (discard: unmap). Without a reconnect-delay the guest does not wait for us while we are away; QEMU
	// connects again by itself, but to this run's export only, whose intake is shut then.
	err := r.qmp.Run(ctx, "blockdev-add", map[string]any{
		"driver": "nbd", "node-name": d.name, "export": d.name, "discard": "unmap",
		"server": map[string]any{"type": "unix", "path": path},
	}, nil)
	if err != nil {
		return err
	}
	linked.Store(true)
	// sync none: what is there already we read ourselves. A job that fails pauses (stop), and the guest, which is told nothing,
	// goes on; we end it. One that ends by itself (report) would do so under writes of the guest: see endJobs.
	return r.qmp.Run(ctx, "blockdev-mirror", map[string]any{
		"job-id": d.name, "device": d.node.Node, "target": d.name, "sync": "none", "copy-mode": "write-blocking",
		"on-target-error": "stop", "on-source-error": "report", "granularity": granule,
	}, nil)
}

// waitReady waits until all jobs send on what is written as it is written.
func (r *run) waitReady(ctx context.Context) error {
	for {
		jobs, err := r.jobs(ctx)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(r.disks, func(d *disk) bool { return !jobs[d.name].Ready }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.in.down:
			return r.in.why()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// jobs returns the job of each disk, by its name. That one has ended is an error.
func (r *run) jobs(ctx context.Context) (map[string]job, error) {
	list, err := r.qmp.jobs(ctx)
	if err != nil {
		return nil, err
	}
	found := map[string]job{}
	for _, j := range list {
		found[j.ID] = j
	}
	for _, d := range r.disks {
		j, ok := found[d.name]
		switch {
		case !ok:
			return nil, r.ended()
		case j.IOStatus != "ok":
			return nil, errNotSent
		}
	}
	return found, nil
}

// endOf returns why one of the jobs ended, if that is what the event tells.
func (r *run) endOf(e Event) error {
	for _, d := range r.disks {
		if err := endOf(e, d.name); err != nil {
			return err
		}
	}
	return nil
}

// ended says why a job is not there any more.
func (r *run) ended() error {
	for {
		select {
		case e, ok := <-r.qmp.Events:
			if err := r.endOf(e); err != nil {
				return err
			}
			if ok {
				continue
			}
		default:
		}
		return errors.New("the machine has ended the mirror")
	}
}

// flushEvery is how long what came in may not be durable.
const flushEvery = 250 * time.Millisecond

// keep makes durable what comes in, and hangs up on the machine if we cannot keep up: the guest must not wait.
func (r *run) keep() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		every(ctx, r.m.stall/8, func() {
			if since, ok := r.in.beat(); !ok {
				r.in.close(since, errStalled, r.m.Target.HangUp)
			}
		})
	})
	wg.Go(func() {
		seen := int64(0)
		every(ctx, flushEvery, func() {
			n := r.in.writes.Load()
			if n == seen || r.in.why() != nil {
				return
			}
			seen = n
			for _, d := range r.disks {
				if err := d.disk.Flush(); err != nil {
					r.in.close(0, err, nil)
				}
			}
		})
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

func every(ctx context.Context, d time.Duration, fn func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			fn()
		}
	}
}

// progress tells how far a sync is.
func (r *run) progress(done, total int64) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.m.state.Phase == Syncing {
		r.m.state.Done, r.m.state.Total = done, total
	}
}

// watch stays until something breaks.
func (r *run) watch(ctx context.Context) error {
	t := time.NewTicker(min(tendEvery, r.m.turnEvery))
	defer t.Stop()
	for turned := time.Now(); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.in.down:
			return r.in.why()
		case e, ok := <-r.qmp.Events:
			if !ok {
				return errors.New("the machine closed its QMP socket")
			}
			if err := r.endOf(e); err != nil {
				return err
			}
		case <-t.C:
			if err := r.tend(ctx, &turned); err != nil {
				return err
			}
		}
	}
}

// tendEvery is how often it is looked whether something is due.
const tendEvery = time.Second

// tend does what is due.
func (r *run) tend(ctx context.Context, turned *time.Time) error {
	if _, err := r.jobs(ctx); err != nil {
		return err
	}
	if r.inDoubt() {
		if err := r.settle(ctx); err != nil {
			return err
		}
	}
	if r.next != 0 {
		return r.finishTurn(ctx)
	}
	if time.Since(*turned) < r.m.turnEvery {
		return nil
	}
	*turned = time.Now()
	return r.beginTurn(ctx)
}

// part lets go of the machine: its jobs are ended, and nothing of this run is left but bitmaps.
func (r *run) part(ctx context.Context, why error) error {
	graceful := ctx.Err() != nil && r.in.why() == nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), partTime)
	defer cancel()
	defer r.qmp.Close()
	if graceful { // while we answer
		r.m.lose(loss{why: why}) // first: what comes in while they end may be short of something
		_ = r.endJobs(ctx)
	}
	// A write that waits for us is given up first: no command to a machine that waits for it would return.
	r.in.close(0, why, r.m.Target.HangUp)
	return errors.Join(r.m.Target.Hide(), r.clean(ctx))
}

// endJobs ends all jobs of this mirror, and waits until they are gone.
//
// The guest is stopped for that moment, if it runs: a job that ends while writes of the guest are sent on frees what they
// still use (seen in QEMU 7.2), and takes the machine with it. All is said at once, so that the guest goes on if we die.
// No connection of ours to the machine's NBD server may be made meanwhile: QEMU could wait for it, and for nothing else (DESIGN.md).
func (r *run) endJobs(ctx context.Context) error {
	cancel, err := r.cancels(ctx)
	if err != nil || len(cancel) == 0 {
		return err
	}
	running, err := r.qmp.running(ctx)
	if err != nil {
		return err
	}
	list := cancel
	if running {
		list = append(append([]command{{name: "stop"}}, cancel...), command{name: "cont"})
	}
	if r.m.still != nil {
		defer r.m.still()()
	}
	became, err := r.qmp.batch(ctx, list, nil)
	if err != nil {
		return err
	}
	for i, err := range became {
		var refused *CommandError
		if err != nil && (list[i].args == nil || !errors.As(err, &refused)) { // a job that has ended is refused
			return err
		}
	}
	for len(cancel) > 0 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		if cancel, err = r.cancels(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cancels are what ends the jobs of this mirror.
func (r *run) cancels(ctx context.Context) (list []command, err error) {
	jobs, err := r.qmp.jobs(ctx)
	for _, j := range jobs {
		if strings.HasPrefix(j.ID, r.prefix+"-") {
			list = append(list, command{"block-job-cancel", map[string]any{"device": j.ID, "force": true}})
		}
	}
	return list, err
}

// clean takes away what runs of this mirror have made in the machine, but for its bitmaps.
func (r *run) clean(ctx context.Context) error {
	if err := r.endJobs(ctx); err != nil {
		return err
	}
	if err := r.stopServer(ctx); err != nil {
		return err
	}
	var nodes []node
	if err := r.qmp.Run(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, r.prefix+"-") {
			if err := r.qmp.Run(ctx, "blockdev-del", map[string]any{"node-name": n.Name}, nil); err != nil {
				return err
			}
		}
	}
	for _, name := range []string{writeName, readName} {
		if err := os.Remove(filepath.Join(r.m.Dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
