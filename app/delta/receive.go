package delta

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"tidemark"
	"tidemark/app"
)

const (
	// dateMargin is how much older than the last capture a file's dates must be to prove that it saw the last write; see app/postgres.
	dateMargin     = 5 * time.Second
	defaultSamples = 64
	// attempts is how often a file that changes while it is read is read.
	attempts = 3
	// part is how much of a file is wanted at once, in bytes: the fingerprints of it are 64 KiB.
	part = 16 << 20
	// emptyPart is how much is wanted at once where nothing is staged: nothing is said of it.
	emptyPart = 1 << 30
	// wanting bounds what is wanted at once, in bytes of files: enough for a link that is long and fast, and to compare ahead of a slow one.
	wanting = 256 << 20
	// least is what the smallest file counts for in that, so that no more than 1,024 are open.
	least = wanting / 1024
	// settledEvery is how many files are dealt with before the sender is told.
	settledEvery = 256
	checkers     = 2
	// writeBackAfter is how much is written to a file before the kernel begins to write it back, and writeBackOf how much of it at its end: what
	// waits for the sync that ends a capture waits when the link has nothing to do any more.
	writeBackAfter = 8 << 20
	writeBackOf    = 64 << 10
	// partingTime is how long the sender may take to end the connection when all was said.
	partingTime = 10 * time.Second
)

// Options tune a Receive.
type Options struct {
	// Tops are the names that the sender may fill in the staging directory.
	Tops []string
	// Samples is how many blocks of files that were not read are compared anyway. Zero means 64; negative none.
	Samples int
	// Progress is told the bytes of files looked at so far, of all that were named. It may be nil.
	Progress func(tidemark.Progress)
	// Index is the file in which it is noted what is staged, so that it is found when it is elsewhere in a tree, of this application or another one of
	// [Options.Known]. It is a cache, and should be in no staging directory. Empty: nothing is noted, or found.
	Index string
	// Known are the other staging directories of the sender's host.
	Known []Known
	// Margin is how much older than the last capture dates must be to prove anything. Zero means 5 s, which is right for all but tests that have no time.
	Margin time.Duration
}

// Stats says what a Receive did.
type Stats struct {
	Files        int   `json:"files"`        // regular ones
	Skipped      int   `json:"skipped"`      // of these, not read, by proof
	Removed      int   `json:"removed"`      // entries that the tree has no more
	Bytes        int64 `json:"bytes"`        // of all files
	ReadBytes    int64 `json:"readBytes"`    // of files that were read
	ChangedBytes int64 `json:"changedBytes"` // written, without metadata
	FoundBytes   int64 `json:"foundBytes"`   // of these, found elsewhere in what is staged of the host: they were not sent
	Shipped      int64 `json:"shipped"`      // came over the connection, compressed
	Asked        int64 `json:"asked"`        // went over it to the sender, compressed
	Sampled      int   `json:"sampled"`
	// Inconsistent names the files that changed each time they were read.
	Inconsistent []string `json:"inconsistent,omitempty"`
	// Rescan, if not empty, says why everything was compared although dates were trusted at first.
	Rescan   string    `json:"rescan,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
	Started  time.Time `json:"started"`
	// Result is what the source told at the end.
	Result json.RawMessage `json:"result,omitempty"`
}

// mostTold bounds how many warnings, and how many names of inconsistent files, are kept.
const mostTold = 1000

// receiver is one run of Receive.
type receiver struct {
	*stream
	opts  Options
	root  string // the staging directory
	top   *os.Root
	prev  state
	hello Hello
	seed  uint64
	trust bool
	room  *semaphore.Weighted

	// notes are of what is staged now, old and indexes of what was before, here and in the directories of opts.Known. nil: nobody wants to know.
	notes   *notes
	old     *index
	indexes []*index
	gone    *gone

	// Used by listen alone.
	byNumber []*directory
	heard    bool // the sender's first word
	chunk    []byte
	touched  int // chunks of all files together, see file

	mu       sync.Mutex
	turn     *sync.Cond
	dirs     map[string]*directory // entered; guarded by mu, like all below
	order    []string              // in which they were entered
	round    map[string]bool       // tops entered in the round
	queue    []*file
	live     map[uint64]*file // of which something is wanted
	left     int              // files of the round that are not dealt with
	told     bool             // the round was told
	last     bool             // and it is the last one
	settled  int64            // that the sender was not told of
	nextID   uint64
	hard     []hardLink
	claimed  map[uint64]uint64 // inode of a staged file with several names → inode of the tree
	samples  sampler
	differs  string // a sample that is not as its dates say
	st       Stats
	done     *message
	looked   int64 // bytes of files
	lastNote time.Time

	warning  sync.Mutex // guards warnings; may be locked while mu is
	warnings []string
}

// directory is one of the tree.
type directory struct {
	path  string
	attr  Attr
	known bool // the same one was here at the last capture
	seen  map[string]bool
}

// file is one of the tree that is being compared.
type file struct {
	named
	id      uint64
	known   bool // its directory is
	attr    Attr
	again   int   // how often it was wanted before
	weight  int64 // of what is wanted now
	parts   []int64
	whole   bool // all of it is wanted
	out     *os.File
	probe   bool
	differs bool
	touched map[int64]struct{} // chunks that were written, and of which something was staged
	at      int64              // how far what has come of it reaches
	behind  int                // bytes written since the kernel was last told to write back
}

type hardLink struct{ path, to string }

// Receive makes what is in a staging directory by the names of opts.Tops equal to the tree that a [Send] at the other end of the connection has,
// and durable, and closes the connection. On any error, a crash or a cancellation, staging is incomplete and knows it; what
// has arrived stays, and is not sent again. Where the connection ended too soon, the error wraps [ErrLost].
//
// finish is called when all is staged and before that counts, with what the source has told. It may be nil.
func Receive(ctx context.Context, conn net.Conn, staging string, opts Options, finish func(Stats) error) (Stats, error) {
	defer conn.Close()
	lock, err := app.LockDir(staging)
	if err != nil {
		return Stats{}, err
	}
	defer lock.Close()
	top, err := os.OpenRoot(staging)
	if err != nil {
		return Stats{}, err
	}
	defer top.Close()
	st, err := newStream(conn)
	if err != nil {
		return Stats{}, err
	}
	defer st.close()
	if opts.Margin == 0 {
		opts.Margin = dateMargin
	}
	r := &receiver{stream: st, opts: opts, root: staging, top: top, prev: readState(staging), seed: rand.Uint64() >> 2, room: semaphore.NewWeighted(wanting),
		dirs: map[string]*directory{}, live: map[uint64]*file{}, claimed: map[uint64]uint64{}, chunk: make([]byte, chunkSize)}
	r.turn = sync.NewCond(&r.mu)
	defer r.closeFiles()
	r.openIndexes()
	err = r.run(ctx, finish)
	if errors.Is(err, unix.ENOSPC) {
		_ = r.gone.giveWay() // of that error the caller is told
	}
	r.closeIndexes()
	r.st.Shipped, r.st.Asked, r.st.Warnings = r.taken.Load(), r.sent.Load(), r.warnings
	return r.st, err
}

func (r *receiver) closeFiles() {
	for _, f := range r.live {
		if f.out != nil {
			f.out.Close()
		}
	}
}

func (r *receiver) run(ctx context.Context, finish func(Stats) error) error {
	defer context.AfterFunc(ctx, func() { r.conn.Close() })()
	g, gctx := errgroup.WithContext(ctx)
	ended := make(chan struct{})
	defer context.AfterFunc(gctx, func() {
		select {
		case <-ended:
		default:
			r.conn.Close()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.turn.Broadcast()
	})()
	stop, stopped := context.WithCancel(gctx) // of who checks, when there is nothing more to be checked
	defer stopped()
	defer context.AfterFunc(stop, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.turn.Broadcast()
	})()
	g.Go(func() error { return r.listen(gctx, ended) })
	for range checkers {
		g.Go(func() error { return r.check(stop) })
	}
	g.Go(func() error {
		defer stopped()
		if err := r.rounds(gctx); err != nil {
			return err
		}
		if err := r.conclude(finish); err != nil {
			return err
		}
		if err := r.send(gctx, message{kind: msgNext}); err != nil {
			return err
		}
		close(ended)
		// The sender ends the connection when it has heard that: to end it first could take the word away.
		// Whether it has heard is nothing to us any more: the staging is whole.
		_ = r.finish()
		_ = r.conn.SetReadDeadline(time.Now().Add(partingTime))
		return nil
	})
	err := g.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// rounds waits for one round after the other, and finishes each, until the sender has told its result.
func (r *receiver) rounds(ctx context.Context) error {
	for first := true; ; first = false {
		if err := r.await(ctx, func() bool { return r.told && r.left == 0 }); err != nil {
			return err
		}
		again, err := r.endRound(ctx, first)
		if err != nil {
			return err
		}
		r.mu.Lock()
		last := r.last && !again
		r.told, r.round, r.hard = false, nil, nil
		r.mu.Unlock()
		if err := r.send(ctx, message{kind: msgNext, flag: flag(again)}); err != nil {
			return err
		}
		if last {
			return r.await(ctx, func() bool { return r.done != nil })
		}
	}
}

// await waits until something holds, which is looked at while mu is held.
func (r *receiver) await(ctx context.Context, holds func() bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !holds() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		r.turn.Wait()
	}
	return nil
}

// endRound gives files their other names, and compares samples behind the first round.
func (r *receiver) endRound(ctx context.Context, first bool) (again bool, err error) {
	for _, h := range r.hard {
		if err := r.link(h); err != nil {
			return false, err
		}
	}
	if !first {
		return false, nil
	}
	for _, top := range r.opts.Tops {
		if !r.round[top] {
			if err := r.top.RemoveAll(top); err != nil {
				return false, err
			}
		}
	}
	if !r.trust {
		return false, nil
	}
	if err := r.sample(ctx); err != nil || r.differs == "" {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trust, r.claimed = false, map[uint64]uint64{}
	r.st = Stats{Started: r.st.Started, Removed: r.st.Removed, Sampled: r.st.Sampled, FoundBytes: r.st.FoundBytes, Rescan: r.differs}
	return true, nil
}

// conclude makes all of it durable and true.
func (r *receiver) conclude(finish func(Stats) error) error {
	for i := len(r.order) - 1; i >= 0; i-- { // what is below dates what is above
		d := r.dirs[r.order[i]]
		if d == nil { // it was taken away by a later round
			continue
		}
		if err := r.attributes(d.path, d.attr); err != nil {
			return err
		}
	}
	if err := r.gone.giveWay(); err != nil {
		return err
	}
	r.st.Result = append(json.RawMessage(nil), r.done.body...)
	if finish != nil {
		if err := finish(r.st); err != nil {
			return err
		}
	}
	if err := app.SyncTree(r.root); err != nil {
		return err
	}
	dirs := make(map[string]uint64, len(r.dirs))
	for path, d := range r.dirs {
		dirs[path] = d.attr.Inode
	}
	return writeState(r.root, state{Started: r.st.Started, Owner: r.hello.Owner, Line: r.hello.Line, Position: uint64(r.done.off), Dirs: dirs})
}

// listen hears the sender until it has ended.
func (r *receiver) listen(ctx context.Context, ended <-chan struct{}) error {
	for {
		m, err := r.receive()
		if err != nil {
			select {
			case <-ended:
				return nil
			default:
			}
			r.mu.Lock()
			said := r.done != nil
			r.mu.Unlock()
			if said { // it ends its side when it has said all
				select {
				case <-ended:
					return nil
				case <-ctx.Done():
					return nil // by an error of somebody else
				}
			}
			return err
		}
		if err := r.hear(ctx, m); err != nil {
			return err
		}
	}
}

// malformed is what a sender is told that says what makes no sense.
func malformed(format string, args ...any) error {
	return tidemark.Errorf(tidemark.Invalid, "the agent has sent what makes no sense: %s", fmt.Sprintf(format, args...)).WithHint("server and agent must be of one version")
}

// hear does what one message says.
func (r *receiver) hear(ctx context.Context, m message) error {
	if r.heard == (m.kind == msgHello) || !r.mayTell(m.kind) {
		return malformed("kind %d", m.kind)
	}
	switch m.kind {
	case msgHello:
		return r.greet(ctx, m)
	case msgEnter:
		return r.enter(m)
	case msgFile, msgKeep, msgLink, msgSpecial, msgHard:
		return r.entry(m)
	case msgLeave:
		return r.leave(m)
	case msgWarn:
		r.warn("%s", m.body)
		return nil
	case msgData, msgZero, msgDiffer, msgPart, msgOffer, msgEnd:
		return r.content(ctx, m)
	case msgRound:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.byNumber, r.told, r.last = nil, true, m.flag == 1
		r.turn.Broadcast()
		return nil
	case msgDone:
		r.mu.Lock()
		defer r.mu.Unlock()
		if !r.last {
			return malformed("an end before the last round")
		}
		m.body = append([]byte(nil), m.body...)
		r.done = &m
		r.turn.Broadcast()
		return nil
	}
	return malformed("kind %d", m.kind)
}

// mayTell reports whether something may be said now: nothing is told of a tree while a round of it is being finished, and nothing at all behind the end.
func (r *receiver) mayTell(k kind) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.done == nil && (!r.told || k >= msgWarn && k != msgRound)
}

// greet hears whose tree it is, and marks staging dirty before anything else.
func (r *receiver) greet(ctx context.Context, m message) error {
	r.heard = true
	if m.off != version {
		return tidemark.Errorf(tidemark.Invalid, "the agent sends version %d of a tree, and this server knows %d", m.off, version).WithHint("server and agent must be of one version")
	}
	if err := json.Unmarshal(m.body, &r.hello); err != nil {
		return malformed("%v", err)
	}
	h, p := r.hello, r.prev
	if p.Owner != "" && p.Owner != h.Owner {
		return tidemark.Errorf(tidemark.Conflict, "what is staged is of %s, and the source is %s now", p.Owner, h.Owner).WithHint("protect the new one as an application of its own")
	}
	r.trust = !p.Dirty && p.Line == h.Line && p.Position <= h.Position
	r.st.Started = h.Now
	dirty := p
	dirty.Dirty, dirty.Owner = true, h.Owner
	if err := r.gone.room(func() error { return writeState(r.root, dirty) }); err != nil {
		return err
	}
	return r.send(ctx, message{kind: msgAnswer, off: int64(r.seed)})
}

func (r *receiver) warn(format string, args ...any) {
	r.warning.Lock()
	defer r.warning.Unlock()
	if len(r.warnings) < mostTold {
		r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
	}
}
