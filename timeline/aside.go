package timeline

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What nobody waits for, folding and packing in the background, is to take what others leave of the processors. Nice threads alone do
// not: the kernel weighs niceness among the threads of a session, or of a control group, and one session as much as another, whatever
// runs in it (sched(7), "The autogroup feature", which is usual). So a server beside a database would take half of the processors from
// it. Therefore such work also rests: the less is idle, the more.

// How nice threads are that work in the background, and which part of a processor each takes at least: next to nothing where
// little is left to fold, for a burst may end before it must be; the more, the more is left, so that it does not become more and more.
const (
	usualNice  = 19
	urgentNice = 10

	usualShare  = 1. / 50
	urgentShare = 1. / 4
)

const (
	// idlePart is the part of all processors that is left idle by who works in the background.
	idlePart = 1. / 8
	// leastPart is what a thread's part falls to where nothing is idle: not less, so that it comes back soon.
	leastPart = 1. / 50
	// lookEvery is how often it is looked how much is idle.
	lookEvery = 100 * time.Millisecond
	// restEvery is how long a thread works between two rests; what it rests follows from that.
	restEvery = 2 * time.Millisecond
)

// Processors is what GOMAXPROCS should be in a process that serves timelines: more than there are, by
// those that fold. The Go scheduler lets a goroutine compute for 10 ms while others wait, and two that
// fold would hold both processors of a small machine for as long; threads of the kernel, of which
// some are nice, share them better.
func Processors() int { return runtime.NumCPU() + foldWorkers }

// spare knows which part of the processors the background may take. Its methods may be called concurrently.
type spare struct {
	// look returns for how long processors were idle, and for how long there were any, in any unit; nil means [lookIdle].
	look func() (idle, total float64, ok bool)

	mu          sync.Mutex
	at          time.Time
	idle, total float64
	share       float64
}

// part returns which part of its time a thread may work now: all, if nobody knows what is idle.
func (s *spare) part(now time.Time) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.at) < lookEvery {
		return s.share
	}
	look := s.look
	if look == nil {
		look = lookIdle
	}
	idle, total, ok := look()
	switch {
	case !ok || s.at.IsZero() || total <= s.total:
		s.share = 1
	case idle-s.idle < idlePart*(total-s.total):
		s.share = max(s.share/2, leastPart)
	default:
		s.share = min(s.share*1.5, 1)
	}
	s.at, s.idle, s.total = now, idle, total
	return s.share
}

// lookIdle reads it of all processors of the host, in clock ticks: see proc_stat(5).
func lookIdle() (idle, total float64, ok bool) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0, false
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := bytes.Fields(line)
	const idleField, waitField, stealField = 4, 5, 8 // what follows is counted in those before
	if len(fields) <= stealField || string(fields[0]) != "cpu" {
		return 0, 0, false
	}
	for i, f := range fields[1 : stealField+1] {
		n, err := strconv.ParseFloat(string(f), 64)
		if err != nil {
			return 0, 0, false
		}
		total += n
		if i+1 == idleField || i+1 == waitField {
			idle += n
		}
	}
	return idle, total, true
}

// worker is a goroutine that works in the background. A nil one works as everybody does.
type worker struct {
	t     *Timeline
	ctx   context.Context
	since time.Duration // the time of its thread when it rested last
}

// begin makes a worker of the calling goroutine.
type begin func(ctx context.Context) *worker

// atOnce begins what somebody waits for.
func atOnce(context.Context) *worker { return nil }

// aside begins what nobody waits for. The goroutine, and with it its thread, stays so until it ends.
func (t *Timeline) aside(ctx context.Context) *worker {
	runtime.LockOSThread() // never unlocked: niceness cannot be taken back
	nice := usualNice
	if t.pressed() {
		nice = urgentNice
	}
	// Where it is refused, the rests are all that is left.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, nice)
	return &worker{t: t, ctx: ctx, since: threadTime()}
}

// pressed reports whether what is done in the background must not take too long: writers wait for it, or more and more is left.
func (t *Timeline) pressed() bool {
	return t.tight.Load() || t.urgent.Load() || t.excess() >= 1
}

// excess is how much is left to fold: 0 is what is left for the next fold, 1 is too much.
func (t *Timeline) excess() float64 {
	after := float64(t.set.o.FoldAfter)
	return max(0, float64(t.Backlog())-after) / (foldLimit * after)
}

// least is the part of a processor that a thread takes at least.
func (t *Timeline) least() float64 {
	if t.pressed() {
		return urgentShare
	}
	x := t.excess()
	return usualShare + (urgentShare-usualShare)*x*x
}

// rest lets others have the processor, if they want it, for as long as is their due. It is called between small pieces of work.
func (w *worker) rest() {
	if w == nil || w.t.set.hurried.Load() > 0 {
		return
	}
	worked := threadTime() - w.since
	if worked < restEvery {
		return
	}
	part := max(w.t.least(), w.t.set.spare.part(time.Now()))
	select {
	case <-w.ctx.Done():
	case <-time.After(time.Duration(float64(worked) * (1/part - 1))):
	}
	w.since = threadTime()
}

// threadTime is how long the calling thread has had a processor.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// hurry has all that is done in the background go on without rests until done is called: somebody waits for it, or for a lock that it holds.
func (s *Set) hurry() (done func()) {
	s.hurried.Add(1)
	return func() { s.hurried.Add(-1) }
}

// lockTrim takes trimMu, which an image that is made in the background may hold.
func (t *Timeline) lockTrim() {
	defer t.set.hurry()()
	t.trimMu.Lock()
}
