package timeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidemark"
	"tidemark/image"
	"tidemark/internal/vfs"
	"tidemark/journal"
	"tidemark/object"
)

// Options says where timelines live.
type Options struct {
	FS     vfs.FS        // for journals and state
	Dir    string        // directory of all timelines' journals and states
	Bucket object.Bucket // for descriptors and points; the store's bucket
	Logger *slog.Logger

	// FoldAfter is the backlog of payload bytes in a journal at which it is
	// folded without being asked, in a pause of the writing or at twice as much; 0 means 192 MiB. It bounds what a restart
	// replays and how many segments a point is made of.
	FoldAfter int64
	// ReferenceAfter is the backlog at which large writes go to the pool at
	// once; 0 means 4 GiB.
	ReferenceAfter int64
	// HotBytes is how many bytes of history of a journal stay in Dir, and HotFor how old they may be, counted back from
	// the newest; what is more, or older, goes to the bucket. 0 is no bound: without any all stays.
	HotBytes int64
	HotFor   time.Duration
	// Reserve is how many bytes of Dir's file system are to be free: when there are fewer, the oldest
	// history goes. 0 means a fiftieth, but a GiB at least and 16 at most, and never more than a tenth; less than 0 none.
	Reserve int64
	// PoolDir is where the bucket lies, if that is on another file system than Dir, so that room is kept there, too.
	PoolDir string
	// Notify is told what an operator must know, of a timeline by its name. It may be called at any time until
	// Close returns. What it fails to record is told again. nil means that it is logged.
	Notify func(level, timeline, message string) error
	// Changed is told what has become true of a timeline, by its ID, when that is durable: that a bookmark is among its
	// [Timeline.Points] or is not any more, and that a gap has begun or was closed. It is called with locks of the timeline held, so
	// that all is told in the order in which it happens: it must return at once, and ask nothing of timelines. nil: nobody is told.
	Changed func(id string, c tidemark.TimelineChange)
	// SegmentSize is that of journals in bytes; 0 means [journal.DefaultSegmentSize].
	SegmentSize int64
	// Manual turns off folding, archiving and keeping room in the background: for tests that decide when.
	Manual bool
	// Elapsed says for how long the process has run, whatever the clock does; nil means that it is measured.
	Elapsed func() time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Set is all timelines of one data directory. It must be the only one that
// writes there. All methods may be called concurrently.
type Set struct {
	o     Options
	store *image.Store

	mu    sync.Mutex
	lines map[string]*Timeline
	// damaged says which timelines could not be opened, and why; guarded by mu.
	damaged map[string]error

	held sync.Map // image.Root → int64: see heldBytes

	spare   spare        // of the processors, for the background
	hurried atomic.Int32 // who waits for what is done there

	roomMu      sync.Mutex  // held by who gives history up for space
	dead        atomic.Bool // the pool may have what nobody needs
	spent       atomic.Bool // there is no history left to give
	reclaimNext time.Time   // before that nothing is reclaimed for room; of the keeper alone
	reclaimLast time.Time   // the same, where there is nothing else to give
	lingered    int         // how many segments were left when they were last waited for; guarded by roomMu
	lingeredAt  time.Time   // when that was; guarded by roomMu

	work chan *Timeline
	run  context.Context // until Close
	stop context.CancelFunc
	done sync.WaitGroup
}

// Open opens all timelines of a data directory, and brings back those that
// only the bucket knows. A timeline that is damaged is left out, with its
// reason in [Set.Damaged]; the others open.
func Open(ctx context.Context, store *image.Store, o Options) (*Set, error) {
	if o.FoldAfter == 0 {
		o.FoldAfter = 192 << 20
	}
	if o.ReferenceAfter == 0 {
		o.ReferenceAfter = 4 << 30
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = journal.DefaultSegmentSize
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Elapsed == nil {
		begun := time.Now()
		o.Elapsed = func() time.Duration { return time.Since(begun) }
	}
	if o.Notify == nil {
		o.Notify = func(level, timeline, message string) error {
			o.Logger.Error(message, "timeline", timeline, "level", level)
			return nil
		}
	}
	if o.Changed == nil {
		o.Changed = func(string, tidemark.TimelineChange) {}
	}
	s := &Set{o: o, store: store, lines: map[string]*Timeline{}, damaged: map[string]error{}, work: make(chan *Timeline, 256)}
	if err := vfs.MkdirAll(o.FS, o.Dir); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.run, s.stop = run, stop
	s.done.Go(func() { s.folder(run) })
	s.dead.Store(true)
	if !o.Manual {
		s.done.Go(func() { s.keeper(run) })
	}
	for _, t := range s.lines {
		s.askFold(t)
	}
	return s, nil
}

// load opens the timelines: first their journals and points, then, when all journals can be read, their heads.
func (s *Set) load(ctx context.Context) error {
	stored, err := listTimelines(ctx, s.o.Bucket)
	if err != nil {
		return err
	}
	names, err := s.o.FS.List(s.o.Dir)
	if err != nil {
		return err
	}
	for _, id := range names {
		if stored[id] == nil {
			stored[id] = &listed{}
		}
	}
	for id, l := range stored {
		t, err := s.open(ctx, id, l)
		switch {
		case err != nil:
			s.leaveOut(id, err)
		case t != nil:
			s.lines[id] = t
		}
	}
	for id, t := range s.lines {
		if err := t.buildHeads(); err != nil {
			s.leaveOut(id, err)
			delete(s.lines, id)
		}
	}
	for id := range s.damaged {
		s.pinFor(id)
	}
	return nil
}

// pinFor keeps what a timeline that cannot be opened needs of others, as far as that is known: it may be mended.
func (s *Set) pinFor(id string) {
	t := s.blank(id)
	if t.readState() != nil {
		return
	}
	for _, d := range t.state.Disks {
		if d.Origin == nil {
			continue
		}
		if parent := s.lines[d.Origin.Timeline]; parent != nil {
			parent.pins[id] = min(d.Origin.After, maxPin(parent.pins, id))
		}
	}
}

func (s *Set) leaveOut(id string, err error) {
	s.damaged[id] = err
	s.o.Logger.Error("a timeline cannot be opened", "timeline", id, "error", err)
}

// Damaged returns the timelines that could not be opened, and why.
func (s *Set) Damaged() map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.damaged)
}

// Forget deletes a timeline that could not be opened, by its id, and what is left of it: for one that
// cannot be brought back, and keeps a reclaim from running.
func (s *Set) Forget(ctx context.Context, id string) error {
	if s.Damaged()[id] == nil {
		return tidemark.Errorf(tidemark.NotFound, "there is no damaged timeline %q", id).WithHint("`tidemark verify` lists what is damaged")
	}
	if err := s.erase(ctx, id); err != nil {
		return fmt.Errorf("forget the timeline %s: %w", id, err)
	}
	s.mu.Lock()
	delete(s.damaged, id)
	s.mu.Unlock()
	s.unpin(id)
	return nil
}

func (s *Set) dirOf(id string) string { return s.o.FS.PathJoin(s.o.Dir, id) }

func (s *Set) blank(id string) *Timeline {
	return &Timeline{set: s, ranBefore: -s.o.Elapsed(), id: id, dir: s.dirOf(id), state: state{ID: id}, pins: map[string]tidemark.Position{}, shown: map[string]shown{}, lost: map[tidemark.Position]error{}}
}

// open reads what is stored of one timeline. It returns nil and no error for the remains of a removed or half-made one.
func (s *Set) open(ctx context.Context, id string, l *listed) (*Timeline, error) {
	t := s.blank(id)
	stateErr := t.readState()
	if t.state.Removing {
		return nil, s.erase(ctx, id)
	}
	if len(l.descriptors) == 0 {
		return nil, s.openNameless(ctx, t, l, stateErr)
	}
	t.descNo = slices.Max(l.descriptors)
	if err := getSealed(ctx, s.o.Bucket, descriptorKey(id, t.descNo), &t.desc); err != nil {
		return nil, err
	}
	slices.Sort(l.images)
	t.points = make([]manifest, 0, len(l.images))
	for _, pos := range l.images {
		var m manifest
		if err := getSealed(ctx, s.o.Bucket, imageKey(id, pos), &m); err != nil {
			s.o.Logger.Error("a point cannot be used", "timeline", t.desc.Name, "position", pos, "error", err)
			t.lost[pos] = err
			continue
		}
		m.shareWith(t)
		if slices.Contains(t.state.Unmarked, pos) {
			m.Mark = nil
		}
		t.points = append(t.points, m)
	}
	if stateErr != nil {
		if err := t.stateFromPoints(stateErr); err != nil {
			return nil, err
		}
	}
	if t.state.Making { // it was cut just behind its descriptor
		t.state.Making = false
		if err := t.saveState(); err != nil {
			return nil, err
		}
	}
	t.ranBefore += t.state.Ran
	return t, t.openJournal(l.segments)
}

// openNameless deletes what is left of a timeline without a descriptor if that is of one that was never made, or is gone. All else is kept, and an error: its
// descriptor was lost, or the pool is not there at all, as where its file system is not mounted.
func (s *Set) openNameless(ctx context.Context, t *Timeline, l *listed, stateErr error) error {
	_, err := s.o.FS.Stat(s.o.FS.PathJoin(t.dir, "journal"))
	nothing := errors.Is(stateErr, os.ErrNotExist) && errors.Is(err, os.ErrNotExist) && len(l.images) == 0 && len(l.segments) == 0
	if t.state.Making || nothing {
		return s.erase(ctx, t.id)
	}
	return tidemark.Errorf(tidemark.Corrupt, "the descriptor of timeline %s is not in the pool", t.id).
		WithHint("is the pool that it was written to mounted? What is here of the timeline is kept")
}

// shareWith lets a point have the strings of its timeline, instead of its own that say the same: there may be very many points.
func (m *manifest) shareWith(t *Timeline) {
	m.Timeline = t.id
	for i := range m.Disks {
		if d := &m.Disks[i]; i < len(t.state.Disks) && d.Name == t.state.Disks[i].Name {
			d.Name = t.state.Disks[i].Name
		}
	}
}

func (t *Timeline) readState() error {
	data, err := vfs.ReadFile(t.set.o.FS, t.set.o.FS.PathJoin(t.dir, "state"))
	if err == nil {
		err = unseal(data, &t.state)
	}
	if err != nil {
		t.state = state{ID: t.id}
		return fmt.Errorf("read the state: %w", err)
	}
	return nil
}

// stateFromPoints makes a state that stands on the newest retained point, for
// a timeline whose own state is not there (another server's pool) or damaged.
// The journal then decides whether anything behind that point is left.
func (t *Timeline) stateFromPoints(cause error) error {
	if len(t.points) == 0 {
		return tidemark.Errorf(tidemark.Corrupt, "%s has neither a state nor a retained point: %w", t.desc.Name, cause).
			WithHint("nothing of it can be brought back from the pool")
	}
	newest := t.points[len(t.points)-1]
	t.state.Base = newest.Position
	for _, d := range newest.Disks {
		t.state.Disks = append(t.state.Disks, diskState{Name: d.Name, measured: d.measured})
	}
	if err := vfs.MkdirAll(t.set.o.FS, t.dir); err != nil {
		return err
	}
	return t.saveState()
}

func (t *Timeline) openJournal(archived []journal.Archived) error {
	dir := t.set.o.FS.PathJoin(t.dir, "journal")
	if err := vfs.MkdirAll(t.set.o.FS, dir); err != nil {
		return err
	}
	j, err := journal.Open(t.set.o.FS, dir, journal.Options{
		FirstPos: uint64(t.state.Base) + 1, Told: t.newestTold(), SegmentSize: t.set.o.SegmentSize, Now: t.set.o.Now, Logger: t.set.o.Logger,
		Archive: t.set.shelfOf(t.id), Archived: archived,
	})
	if err != nil {
		return fmt.Errorf("open the journal of %s: %w", t.desc.Name, err)
	}
	t.journal, t.strays = j, strayNames(archived, j.ID())
	return t.checkJournal()
}

// newestTold is a time that every record to come must be behind: it was shown to somebody, or is a point's. The journal of the
// point may be lost, and the clock be another one.
func (t *Timeline) newestTold() int64 {
	told := t.state.Told
	if n := len(t.points); n > 0 {
		told = max(told, t.points[n-1].Time.UnixNano())
	}
	return told
}

// checkJournal makes sure that the journal is the one that belongs to the
// state, and that the two meet: all records behind the base are in it.
func (t *Timeline) checkJournal() error {
	head, _ := t.journal.Head()
	whole := t.oldestInJournal() <= t.state.Base && uint64(t.state.Base) <= head
	if !whole || t.state.Journal != "" && t.state.Journal != t.journal.ID() {
		return tidemark.Errorf(tidemark.Corrupt, "the journal of %s is not whole: its writes after position %v are lost", t.desc.Name, t.state.Base).
			WithHint("bring its directory timelines/" + t.id + "/journal back; or remove timelines/" + t.id + ", and it stands on its newest point")
	}
	if t.state.Journal != "" {
		return nil
	}
	t.facts.Lock()
	defer t.facts.Unlock()
	t.state.Journal = t.journal.ID()
	return t.saveState()
}

// buildHeads makes the disks' heads: the base images, and over them what the
// journal holds, cut where bookmarks still wait for their images.
func (t *Timeline) buildHeads() error {
	begin, err := t.originCut()
	if err != nil {
		return err
	}
	t.makeHeads(begin)
	t.fed.Store(t.state.Feed.ID != "")
	_, rewriting := t.Rewriting()
	t.rewriting.Store(rewriting)
	t.fedSeq.Store(t.state.Feed.Seq)
	t.cutSegment.Store(t.firstSegment(t.state.Base))
	head, _ := t.journal.Head()
	if head <= uint64(t.state.Base) {
		return nil
	}
	return t.journal.Scan(uint64(t.state.Base), head, t.replayRecord)
}

// replayRecord does to the heads what a record did when it was written.
func (t *Timeline) replayRecord(r *journal.Record, p journal.Place) error {
	if r.Kind != journal.Bookmark {
		if int(r.Disk) >= len(t.disks) {
			return tidemark.Errorf(tidemark.Corrupt, "the journal of %s has a record of disk %d, and %s has %d disks", t.desc.Name, r.Disk, t.desc.Name, len(t.disks))
		}
		d := t.disks[r.Disk]
		d.head.Load().layers[0].put(r, p, d.chunk)
		raise(&t.topSegment, p.Segment.Number())
		size := int64(len(r.Payload))
		if r.Kind == journal.Write { // whose payload a scan leaves where it is
			size = r.Len
		}
		t.backlog.Add(size)
		t.sinceCut.Add(size)
		if r.Pos > uint64(t.state.Feed.Pos) {
			t.fedSeq.Add(1)
		}
		return nil
	}
	if len(r.Payload) == 0 {
		return nil
	}
	m := new(Mark)
	if err := json.Unmarshal(r.Payload, m); err != nil {
		return tidemark.Errorf(tidemark.Corrupt, "the journal of %s has a bookmark at %d that cannot be read: %w", t.desc.Name, r.Pos, err)
	}
	c := &cut{pos: tidemark.Position(r.Pos), time: r.Time, mark: m, layers: make([]*layer, len(t.disks)), fedSeq: t.fedSeq.Load()}
	for i, d := range t.disks {
		c.layers[i] = d.freezeTop(p.Segment.Number())
	}
	c.bytes = t.sinceCut.Swap(0)
	t.cutSegment.Store(p.Segment.Number())
	t.cuts = append(t.cuts, c)
	return nil
}

// originCut makes the layers of a branch that is not folded yet, from its parent's journal.
func (t *Timeline) originCut() (*cut, error) {
	var begin *cut
	for i, d := range t.state.Disks {
		if d.Origin == nil {
			continue
		}
		parent := t.set.lines[d.Origin.Timeline]
		if parent == nil {
			return nil, tidemark.Errorf(tidemark.Corrupt, "%s branched from timeline %s, which is not there, before it was complete", t.desc.Name, d.Origin.Timeline)
		}
		y, err := parent.replay(d.Origin.Disk, d.measured, d.Origin.After, d.Origin.UpTo)
		if err != nil {
			return nil, err
		}
		if begin == nil {
			begin = &cut{pos: t.state.Base, origin: true, layers: make([]*layer, len(t.state.Disks))}
		}
		begin.layers[i] = y
		parent.pins[t.id] = min(d.Origin.After, maxPin(parent.pins, t.id))
	}
	return begin, nil
}

func maxPin(pins map[string]tidemark.Position, id string) tidemark.Position {
	if p, ok := pins[id]; ok {
		return p
	}
	return ^tidemark.Position(0)
}

// establish makes a new timeline durable and known. The descriptor goes last:
// without it, what is there is swept away at the next start.
func (s *Set) establish(ctx context.Context, t *Timeline, begin *cut) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create %s: %w", t.desc.Name, err), s.erase(context.WithoutCancel(ctx), t.id))
		}
	}()
	if err := vfs.MkdirAll(s.o.FS, t.dir); err != nil {
		return err
	}
	if err := t.saveMaking(true); err != nil {
		return err
	}
	if err := t.openJournal(nil); err != nil {
		return err
	}
	t.makeHeads(begin)
	t.descNo = 1
	if err := putSealed(ctx, s.o.Bucket, descriptorKey(t.id, t.descNo), t.desc); err != nil {
		return errors.Join(err, t.journal.Close())
	}
	if err := t.saveMaking(false); err != nil {
		return errors.Join(err, t.journal.Close())
	}
	s.mu.Lock()
	s.lines[t.id] = t
	s.mu.Unlock()
	return nil
}

// saveMaking notes whether the timeline has no descriptor yet.
func (t *Timeline) saveMaking(making bool) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	t.state.Making = making
	return t.saveState()
}

// makeHeads makes the heads of the disks: their base images, and over them the layers that a branch begins with.
func (t *Timeline) makeHeads(begin *cut) {
	for i, r := range t.base() {
		d := &Disk{t: t, index: uint16(i), name: t.state.Disks[i].Name, size: r.Size, chunk: int64(r.Chunk)}
		v := newView(t.set.store, r, newLayer(r.Size, t.firstSegment(t.state.Base)))
		if begin != nil && begin.layers[i] != nil {
			v.layers = append(v.layers, begin.layers[i])
		}
		d.head.Store(v)
		t.disks = append(t.disks, d)
	}
	if begin != nil {
		t.cuts = []*cut{begin}
	}
}

// Get returns the timeline of an id, or nil.
func (s *Set) Get(id string) *Timeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lines[id]
}

// List returns all timelines, oldest first.
func (s *Set) List() []*Timeline {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*Timeline
	for _, t := range s.lines {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *Timeline) int { return a.Describe().Created.Compare(b.Describe().Created) })
	return list
}

func (s *Set) forget(t *Timeline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.lines, t.id)
}

// unpin tells every timeline that a branch needs its journal no longer. The
// caller may hold the branch's facts, so it runs on its own.
func (s *Set) unpin(child string) {
	s.done.Go(func() {
		for _, t := range s.List() {
			t.unpinOne(child)
		}
	})
}

// askFold asks for a fold in the background.
func (s *Set) askFold(t *Timeline) {
	if s.o.Manual {
		return
	}
	select {
	case s.work <- t:
	default: // it is asked for again by the next write, cut or start
		t.asked.Store(false)
	}
}

// foldRetry is how long after a failed fold the next is tried.
const foldRetry = 30 * time.Second

// folder folds what it is asked to, one timeline at a time.
func (s *Set) folder(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-s.work:
			if err := t.foldBacklog(ctx); err != nil && ctx.Err() == nil && !t.removed() {
				if !errors.Is(err, context.Canceled) { // by Remove, which wants none of it
					s.o.Logger.Error("what a fold does, or what comes behind it, failed, and is tried again", "timeline", t.Name(), "error", err)
				}
				s.retry(t)
			}
		}
	}
}

// retry asks for what failed again, later.
func (s *Set) retry(t *Timeline) {
	if t.retrying.Swap(true) {
		return
	}
	time.AfterFunc(foldRetry, func() {
		t.retrying.Store(false)
		t.resting.Store(false)
		s.askFold(t)
	})
}

// foldBacklog folds what is frozen, and cuts first if much was written since the last cut. Then it sees to history.
func (t *Timeline) foldBacklog(ctx context.Context) (err error) {
	if t.removed() {
		return nil
	}
	if t.postpones() {
		return nil
	}
	folded := false
	defer func() {
		t.resting.Store(!folded)
		t.asked.Store(false)
		t.wroteSome() // what was written meanwhile, if it was the last for now
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t.background.Store(&cancel)
	if err := t.cutAndFold(ctx); err != nil {
		return err
	}
	folded = true
	return t.keepHistory(ctx)
}

func (t *Timeline) cutAndFold(ctx context.Context) error {
	if t.due() {
		t.urgent.Store(false)
		t.paused.Store(false)
		// A cut of ours is no news of the disks: what their source says next of a time before now, as that it was not heard, is true of it all the same.
		if _, err := t.cutAt(nil, asBefore); err != nil {
			return err
		}
	}
	return t.fold(ctx, t.aside)
}

// A burst of writes is not folded while it lasts, but for one of more than foldLimit
// times FoldAfter: what it overwrites again need not be folded, and its writer needs the processors.
const (
	foldPause = time.Second
	foldLimit = 2
)

// postpones reports whether a fold because of the backlog is put off for a moment. It is called by the folder alone.
func (t *Timeline) postpones() bool {
	since, after := t.sinceCut.Load(), t.set.o.FoldAfter
	seen := t.seenBacklog
	t.seenBacklog = since
	if t.urgent.Load() || since <= after || since > foldLimit*after || since == seen {
		return false
	}
	time.AfterFunc(foldPause, func() { t.set.askFold(t) })
	return true
}

// restPart is which part of FoldAfter is folded when the writing has paused.
const restPart = 1. / 4

// foldAtRest asks for a fold of what was written, if nothing is written now: the host may have nothing else to do, the next burst
// finds nothing left, and what is near the present opens quickly. It is called every second, by the keeper alone.
func (t *Timeline) foldAtRest() {
	since := t.sinceCut.Load()
	if since == t.seenAtRest && float64(since) >= restPart*float64(t.set.o.FoldAfter) {
		t.paused.Store(true)
		t.wroteSome()
	}
	t.seenAtRest = since
}

// Keep tells a reclaim of the store what all timelines need. It fails if that
// is not known, because something of a timeline cannot be read.
func (s *Set) Keep(k *image.Keeper) error {
	if err := s.KeepReadable(k); err != nil {
		return err
	}
	if d := s.Damage(); len(d) > 0 {
		return tidemark.Errorf(tidemark.Corrupt, "it is not known what is needed, for %d timelines or points are damaged", len(d)).
			WithHint("`tidemark verify` names them, with what to do")
	}
	return nil
}

// KeepReadable is Keep for one who only looks: it goes on after an error, and
// does not mind what is missing already.
func (s *Set) KeepReadable(k *image.Keeper) error { return keepAll(k, s.List()) }

func keepAll(k *image.Keeper, lines []*Timeline) (err error) {
	for _, t := range lines {
		if e := t.keep(k); e != nil && !t.removed() {
			err = errors.Join(err, fmt.Errorf("list what %s needs: %w", t.Name(), e))
		}
	}
	return err
}

// Damage returns what is known to be unreadable of timelines and points.
func (s *Set) Damage() (list []error) {
	damaged := s.Damaged()
	for _, id := range slices.Sorted(maps.Keys(damaged)) {
		list = append(list, fmt.Errorf("a timeline cannot be opened; `tidemark forget %s` deletes what is left of it: %w", id, damaged[id]))
	}
	for _, t := range s.List() {
		t.facts.Lock()
		for _, pos := range slices.Sorted(maps.Keys(t.lost)) {
			list = append(list, tidemark.Errorf(tidemark.Corrupt, "the point %s@%v: %w", t.desc.Name, pos, t.lost[pos]).
				WithHint(fmt.Sprintf("`tidemark expire %s@%v` forgets it", t.desc.Name, pos)))
		}
		t.facts.Unlock()
	}
	return list
}

// removed reports whether the timeline is being removed, or was: what is no longer found of it is not missing, and needed by nobody.
func (t *Timeline) removed() bool { return t.set.Get(t.id) != t }

// VerifyJournal reads all records of the timeline's journal and compares them with their checksums.
func (t *Timeline) VerifyJournal() error {
	var errs []error
	for _, s := range t.journal.Segments() {
		if err := t.verifySegment(s); err != nil && !t.removed() {
			errs = append(errs, fmt.Errorf("the journal of %s: %w", t.Name(), err))
		}
	}
	return errors.Join(errs...)
}

// verifySegment reads the records of a segment, unless it was trimmed meanwhile.
func (t *Timeline) verifySegment(s journal.SegmentInfo) error {
	t.trimMu.RLock()
	defer t.trimMu.RUnlock()
	after := max(s.FirstPos-1, uint64(t.oldestInJournal()))
	if s.LastPos <= after {
		return nil
	}
	return t.journal.Verify(after, s.LastPos)
}

func (t *Timeline) keep(k *image.Keeper) error {
	// The journal first: what is folded while we look moves from the journal into roots.
	t.trimMu.RLock()
	defer t.trimMu.RUnlock()
	head, _ := t.journal.Head()
	err := t.journal.Scan(uint64(t.oldestInJournal()), head, func(r *journal.Record, _ journal.Place) error {
		if r.Kind != journal.Reference {
			return nil
		}
		for p := r.Payload; len(p) >= len(image.Name{}); p = p[len(image.Name{}):] {
			if err := k.Name(image.Name(p[:len(image.Name{})])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		err = t.journalError(err)
	}
	for _, m := range t.allImages() {
		err = errors.Join(err, k.Root(m.root()))
	}
	return err
}

// allImages returns the images of the base and of all points.
func (t *Timeline) allImages() []measured {
	t.facts.Lock()
	defer t.facts.Unlock()
	list := t.base()
	for _, m := range t.points {
		for _, d := range m.Disks {
			list = append(list, d.measured)
		}
	}
	return list
}

// Close folds nothing more and closes all journals; unflushed writes are made durable.
func (s *Set) Close() error {
	s.stop()
	s.done.Wait()
	var err error
	for _, t := range s.List() {
		err = errors.Join(err, t.journal.Sync(), t.saveRan(), t.journal.Close())
	}
	return err
}
