package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestKilledAtEveryStep (C5) ends the server at each thing that it says to the machine, before the machine hears it or before the answer comes
// back, in a run that finds the machine, compares, follows, turns its bitmaps over and parts; or only the QMP connection is
// cut there. The guest, which writes all the while, notices nothing; the next run succeeds and has lost nothing: the timeline is the disk, what it
// offers of the past is what the disk was, and nothing is left in the machine but one bitmap.
func TestKilledAtEveryStep(t *testing.T) {
	for _, from := range []string{"bitmaps", "nothing"} {
		t.Run("known from "+from, func(t *testing.T) {
			rng := seeded(t)
			x := &steps{t: t, rng: rng, m: newMachine(t, rng, "raw", 1), w: newWorld(t, 1), forget: from == "nothing"}
			x.recover(func() {})
			x.every()
		})
	}
}

// steps is a machine, and a server that is ended at its steps.
type steps struct {
	t      *testing.T
	rng    *rand.Rand
	m      *machine
	w      *world
	forget bool // before each run the bitmaps are taken out of the machine
	clock  *clock
}

// ending is how a server ends at a step.
type ending struct {
	what string
	late bool // the machine does what it is told there, and the answer is lost
}

const (
	killed    = "killed"
	powerless = "without power" // its host is: what was not synced is gone
	unlinked  = "unlinked"      // it lives on, and its connection is cut
)

// every ends the server at the first step, then at the second, until a run comes through.
func (x *steps) every() {
	var all []ending
	for _, what := range []string{killed, powerless, unlinked} {
		all = append(all, ending{what, false}, ending{what, true})
	}
	for n := int64(1); !x.t.Failed(); n++ {
		x.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		list := all
		if os.Getenv("TIDEMARK_LONG") == "" {
			list = all[:1]
		}
		for _, how := range list {
			g := x.round(n, how)
			if g.isCut() {
				x.t.Logf("step %d, %s, %+v", n, g.said, how)
				continue
			}
			if n < 20 {
				x.t.Errorf("a whole run has %d steps only", n-1)
			}
			return
		}
	}
}

// round ends the server at a step, and looks at what becomes of it.
func (x *steps) round(n int64, how ending) *gate {
	x.t.Helper()
	if x.forget {
		x.forgetAll()
	}
	quiet := x.write()
	g := x.gate(n, how.late, func() {
		if how.what != unlinked {
			x.w.life.Lock()
			x.w.dead.Store(true)
			x.w.life.Unlock()
		}
	})
	defer g.l.Close()
	mirror, stop := x.w.follow(x.m, soon, func(m *Mirror) { m.Socket = g.path })
	g.until("the mirror is ready", func() bool { return mirror.State().Phase == Ready })
	anchor := x.w.Anchor()
	g.until("the bitmaps are turned over", func() bool { return x.w.Anchor() != anchor })
	if how.what == unlinked && g.isCut() {
		eventually(x.t, "the mirror is ready again", func() bool { return g.again.Load() && mirror.State().Phase == Ready })
	}
	if !g.isCut() || how.what == unlinked {
		stop() // which may be cut, too
	}
	if how.what != unlinked && g.isCut() {
		x.w.kill(stop, how.what == powerless)
	}
	x.recover(quiet)
	return g
}

func soon(m *Mirror) { m.turnEvery, m.turnAfter = 20*time.Millisecond, time.Millisecond }

// forgetAll takes our bitmaps out of the machine.
func (x *steps) forgetAll() {
	x.t.Helper()
	m := &Mirror{Socket: x.m.socket(), NBD: x.m.nbd(), ID: x.w.line.ID(), Dir: filepath.Join(x.w.dir, "m"), Target: x.w}
	if err := m.Forget(x.t.Context()); err != nil {
		x.t.Fatal(err)
	}
}

// write has guests write until the function that it returns is called.
func (x *steps) write() (quiet func()) {
	ctx, cancel := context.WithCancel(context.Background())
	x.clock = &clock{}
	rng, c := rand.New(rand.NewPCG(x.rng.Uint64(), 1)), x.clock
	var wg sync.WaitGroup
	wg.Go(func() {
		g := x.m.guestOf(0)
		defer g.Close()
		c.run(g, ctx)
	})
	wg.Go(func() {
		g := x.m.guestOf(0)
		defer g.Close()
		for ctx.Err() == nil && !x.t.Failed() {
			g.scribble(rng)
			time.Sleep(time.Duration(rng.Int64N(int64(4 * time.Millisecond))))
		}
	})
	return func() {
		cancel()
		wg.Wait()
	}
}

// recover has the next run follow the machine, and compares when the guests are quiet.
func (x *steps) recover(quiet func()) {
	x.t.Helper()
	mirror, stop := x.w.follow(x.m)
	ready(x.t, mirror)
	quiet()
	x.w.same(x.m)
	stop()
	if f := inspect(x.t, x.m); len(f.bitmaps) != 1 || len(f.nodes) != 0 || len(f.jobs) != 0 {
		x.t.Errorf("left in the machine: %+v", f)
	}
	if x.clock != nil {
		x.clock.check(x.w)
	}
}

// gate is a QMP socket in front of a machine's. What the client writes at once is a step; at one of them the connection ends.
type gate struct {
	t     *testing.T
	m     *machine
	path  string
	l     net.Listener
	left  atomic.Int64 // steps until that one
	late  bool         // as in an ending
	ended func()       // called when it is reached
	cut   chan struct{}
	said  string // what was said there; to be read when cut is closed
	again atomic.Bool
}

func (x *steps) gate(n int64, late bool, ended func()) *gate {
	x.t.Helper()
	g := &gate{t: x.t, m: x.m, path: filepath.Join(x.m.dir, "gate.sock"), late: late, ended: ended, cut: make(chan struct{})}
	g.left.Store(n)
	_ = os.Remove(g.path)
	var err error
	if g.l, err = net.Listen("unix", g.path); err != nil {
		x.t.Fatal(err)
	}
	go func() {
		for {
			c, err := g.l.Accept()
			if err != nil {
				return
			}
			go g.serve(c)
		}
	}()
	return g
}

func (g *gate) isCut() bool {
	select {
	case <-g.cut:
		return true
	default:
		return false
	}
}

// until waits for something, or for the end.
func (g *gate) until(what string, done func() bool) {
	g.t.Helper()
	eventually(g.t, what, func() bool { return g.isCut() || done() })
}

// serve joins a client with the machine.
func (g *gate) serve(client net.Conn) {
	defer client.Close()
	machine, err := net.Dial("unix", g.m.socket())
	if err != nil {
		return
	}
	defer machine.Close()
	if g.isCut() {
		g.again.Store(true)
	}
	var lost atomic.Bool // answers are
	answers := make(chan struct{}, 100)
	go func() {
		defer client.Close()
		for r := bufio.NewReader(machine); ; {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			if lost.Load() {
				if bytes.Contains(line, []byte(`"id"`)) {
					answers <- struct{}{}
				}
			} else if _, err := client.Write(line); err != nil {
				return
			}
		}
	}()
	for piece := make([]byte, 1<<20); ; {
		n, err := client.Read(piece)
		if err != nil {
			return
		}
		if g.left.Add(-1) == 0 {
			g.end(piece[:n], machine, &lost, answers)
			return
		}
		if _, err := machine.Write(piece[:n]); err != nil {
			return
		}
	}
}

// end is the end of a connection, at a step.
func (g *gate) end(piece []byte, machine net.Conn, lost *atomic.Bool, answers chan struct{}) {
	var said struct{ Execute string }
	_ = json.Unmarshal(piece[:bytes.IndexByte(piece, '\n')], &said)
	g.said = said.Execute
	lost.Store(true)
	if g.late {
		if _, err := machine.Write(piece); err != nil {
			g.t.Error(err)
		}
		for range bytes.Count(piece, []byte("\n")) {
			select {
			case <-answers:
			case <-time.After(10 * time.Second):
				g.t.Errorf("the machine does not answer to %s", g.said)
			}
		}
		if err := g.settled(); err != nil {
			g.t.Error(err)
		}
	}
	g.ended()
	close(g.cut)
}

// settled waits until no job is on its way out: a machine with a processor would be stopped until then (see endJobs), and this one's guests are
// only until its client is told.
func (g *gate) settled() error {
	if g.said != "block-job-cancel" {
		return nil
	}
	q, err := Dial(context.Background(), g.m.other())
	if err != nil {
		return err
	}
	defer q.Close()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		jobs, err := q.jobs(context.Background())
		if err != nil || len(jobs) == 0 {
			return err
		}
	}
	return errors.New("a job that was cancelled does not end")
}
