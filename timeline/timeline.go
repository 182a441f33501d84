package timeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidemark"
	"tidemark/block"
	"tidemark/internal/vfs"
	"tidemark/journal"
)

// Timeline is the whole history of an application's disks: a base (one image
// for each disk at a position), and the journal of all that was written after it.
//
// All methods may be called concurrently.
type Timeline struct {
	set     *Set
	id      string
	dir     string
	journal *journal.Journal
	disks   []*Disk

	// mu orders writes and cuts. A writer holds it shared while it appends and
	// publishes; whoever cuts the history, or merges part of a block, holds it alone.
	mu sync.RWMutex

	// foldMu is held by the one that folds.
	foldMu sync.Mutex

	// trimMu is held shared by those who make something that reads the journal
	// until it is pinned, and alone by the one that trims.
	trimMu sync.RWMutex

	// feedMu is held by who opens or ends a feed.
	feedMu sync.Mutex
	feed   *Feed       // the one that takes changes; guarded by feedMu
	fed    atomic.Bool // the disks are written by a feed alone
	// rewriting: the disks are written by a Rewrite alone.
	rewriting atomic.Bool
	fedSeq    atomic.Uint64 // changes of the feed that were applied; changed with mu held

	// facts guards the fields below.
	facts    sync.Mutex
	state    state
	desc     descriptor
	descNo   int                          // number of the newest descriptor object
	points   []manifest                   // retained points, by position
	lost     map[tidemark.Position]error  // retained points that cannot be read, and why
	cuts     []*cut                       // frozen layers that are not folded yet, oldest first
	pins     map[string]tidemark.Position // branches and snapshots that still read our journal after this position
	shown    map[string]shown             // what open snapshots are made from
	failed   error                        // the first error of a fold, until one succeeds
	unkept   error                        // what failed of the last keepHistory
	raw      bool                         // its Pack failed: history is larger than it might be
	toldLoss time.Time                    // when a loss of history was told last

	// archiveMu is held by the one that archives.
	archiveMu sync.Mutex
	strays    []string // archived files of a journal that is lost; guarded by archiveMu
	// ranBefore is for how long the timeline had been served when the set's Elapsed was 0.
	ranBefore time.Duration

	backlog  atomic.Int64 // payload bytes in the journal that are not folded
	sinceCut atomic.Int64 // of these, bytes since the last cut
	urgent   atomic.Bool  // they are to be folded to make room
	unlooked atomic.Int64 // bytes written since free space was looked at
	tight    atomic.Bool  // there was too little then
	resting  atomic.Bool  // a fold failed, and none is asked for until the next is due
	retrying atomic.Bool  // the next is due, some time from now
	unread   atomic.Bool  // what a sample was to be compared with could not be read
	// cutSegment and topSegment are the segments of the journal that hold the last cut and the newest record.
	cutSegment, topSegment atomic.Uint64
	bulk                   atomic.Bool  // large writes go to the pool at once
	stored                 atomic.Int64 // bytes added to the pool and not yet in state
	paused                 atomic.Bool  // little or nothing is written, and what was is to be folded
	// seenBacklog is sinceCut as the folder saw it last; of the folder alone.
	seenBacklog int64
	// seenAtRest is sinceCut as the keeper saw it last, and seenTail as it was a minute ago; of the keeper alone.
	seenAtRest, seenTail int64
	asked                atomic.Bool // a fold was asked for because of the backlog
	// background ends what the folder does for this timeline, if it does anything.
	background atomic.Pointer[context.CancelFunc]
}

// state is what the head is built on; it lies beside the journal.
type state struct {
	ID     string            `json:"id"`
	Base   tidemark.Position `json:"base"` // the disks' images are of this position
	Disks  []diskState       `json:"disks"`
	Stored int64             `json:"stored_bytes"` // added to the pool by this timeline, ever
	Window Window            `json:"window"`
	// Journal is the journal's identity: one that was lost and made anew is not mistaken for it.
	Journal string `json:"journal,omitempty"`
	// Feed is the stream of changes that writes the disks, if one does.
	Feed feedState `json:"feed,omitzero"`
	// Anchor is what the disks' source has to be asked for to learn what they may lack of it.
	Anchor string `json:"anchor,omitempty"`
	// Gaps are stretches of which no point can be had, oldest first.
	Gaps []Gap `json:"gaps,omitempty"`
	// Ran is for how long the timeline has been served, ever, and Ages where its head was then, oldest first.
	Ran  time.Duration `json:"ran,omitempty"`
	Ages []age         `json:"ages,omitempty"`
	// Told is the newest time, in Unix nanoseconds, that somebody was shown the head for; what comes is later.
	Told int64 `json:"told,omitempty"`
	// Lost is history that was given up for space, and Untold the part of it that was not told yet.
	Lost   *Loss `json:"lost,omitempty"`
	Untold *Loss `json:"untold,omitempty"`
	// Unmarked are positions of images that are no points any more, and kept for those of the window that are made from them.
	Unmarked []tidemark.Position `json:"unmarked,omitempty"`
	// Making: it has not its descriptor yet; without one it is nothing, and goes at the next start.
	Making bool `json:"making,omitempty"`
	// Removing: the timeline is being deleted; what is left of it goes at the next start.
	Removing bool `json:"removing,omitempty"`
}

type diskState struct {
	Name string `json:"name"`
	measured
	// Origin is set in a branch until its view is folded: over the image come
	// the parent's records in (After, UpTo].
	Origin *origin `json:"origin,omitempty"`
}

type origin struct {
	Timeline string            `json:"timeline"`
	Disk     uint16            `json:"disk"`
	After    tidemark.Position `json:"after"`
	UpTo     tidemark.Position `json:"up_to"`
}

// cut is a position at which the layers were frozen.
type cut struct {
	pos    tidemark.Position
	time   int64
	mark   *Mark    // of a bookmark; nil for a cut made by policy or by a branch
	layers []*layer // one for each disk; nil where nothing was written
	bytes  int64    // payload bytes since the cut before
	fedSeq uint64   // changes of the feed before it
	// origin: these layers are of the parent's journal; folding them completes a branch.
	origin bool
}

// ID is the timeline's identity: 32 hex digits.
func (t *Timeline) ID() string { return t.id }

// Name is the name it was created with, or renamed to.
func (t *Timeline) Name() string {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.desc.Name
}

// About returns what the owner stored about the timeline with SetAbout.
func (t *Timeline) About() json.RawMessage {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.desc.About
}

// Describe returns the timeline as a noun.
func (t *Timeline) Describe() tidemark.Timeline {
	t.facts.Lock()
	defer t.facts.Unlock()
	return tidemark.Timeline{ID: t.id, Parent: t.desc.Parent, Point: t.desc.Point, Created: t.desc.Created}
}

// Disks returns the heads of all disks, in the order they were added.
func (t *Timeline) Disks() []*Disk { return t.disks }

// Disk returns the head of the named disk; the empty name means the only disk.
func (t *Timeline) Disk(name string) (*Disk, error) {
	i, err := t.diskIndex(name)
	if err != nil {
		return nil, err
	}
	return t.disks[i], nil
}

func (t *Timeline) diskIndex(name string) (int, error) {
	if name == "" && len(t.disks) == 1 {
		return 0, nil
	}
	var names []string
	for i, d := range t.disks {
		if d.name == name {
			return i, nil
		}
		names = append(names, d.name)
	}
	if name == "" {
		return 0, tidemark.Errorf(tidemark.Invalid, "%s has several disks", t.Name()).WithHint(fmt.Sprintf("name one of %v", names))
	}
	return 0, tidemark.Errorf(tidemark.NotFound, "%s has no disk %q", t.Name(), name).WithHint(fmt.Sprintf("it has %v", names))
}

// minReference is the shortest run of whole chunks, in bytes, that is stored by reference.
const minReference = 64 << 10

// byReference decides whether a large write goes to the pool at once. While
// the journal has room, plain bytes are faster for the writer, and the fold
// compresses them later; a bulk load outruns the fold, so beyond the limit each
// write pays for its own compression, and the backlog stays bounded.
func (t *Timeline) byReference() bool {
	return t.bulk.Load() || t.backlog.Load() >= t.set.o.ReferenceAfter
}

// SetBulk tells whether large writes go to the pool at once: right for a disk that
// captures write, where all that counts is when the whole is done.
func (t *Timeline) SetBulk(on bool) { t.bulk.Store(on) }

// wroteSome asks for a fold when the backlog is large.
func (t *Timeline) wroteSome() {
	if !t.resting.Load() && t.due() && t.asked.CompareAndSwap(false, true) {
		t.set.askFold(t)
	}
}

// due reports whether so much was written since the last cut that it should be folded. Records
// without bytes fill segments, too.
func (t *Timeline) due() bool {
	return t.urgent.Load() || t.paused.Load() || t.sinceCut.Load() > t.set.o.FoldAfter || t.topSegment.Load() >= t.cutSegment.Load()+spanLimit
}

func (t *Timeline) addStored(n int64) { t.stored.Add(n) }

// writeError says of which timeline an error of the write path is.
func (t *Timeline) writeError(what string, err error) error {
	if errors.Is(err, journal.ErrNoSpace) {
		return fmt.Errorf("%s: %s: %w: %w", t.Name(), what, block.ErrNoSpace, err)
	}
	return fmt.Errorf("%s: %s: %w", t.Name(), what, err)
}

// Head returns the position and time of the newest record.
func (t *Timeline) Head() (tidemark.Position, time.Time) {
	pos, at := t.journal.Head()
	return tidemark.Position(pos), time.Unix(0, at)
}

// Bookmark marks the present: what was written before it belongs to the point,
// what comes after does not, across all disks. Nothing is copied. When it
// returns, the bookmark and all writes before it are durable. The point gets its image
// at the next [Timeline.Fold].
func (t *Timeline) Bookmark(m Mark) (tidemark.Position, error) {
	if err := t.canMark(m); err != nil {
		return 0, err
	}
	c, err := t.cut(&m)
	if err != nil {
		return 0, err
	}
	t.set.askFold(t)
	return c.pos, nil
}

// canMark reports why there cannot be such a bookmark now.
func (t *Timeline) canMark(m Mark) error {
	if err := tidemark.CheckBookmark(m.Name); err != nil {
		return err
	}
	if t.HasBookmark(m.Name) {
		return tidemark.Errorf(tidemark.Conflict, "%s has a bookmark %q already", t.Name(), m.Name).WithHint("choose another name")
	}
	if g := t.openGapOf(); g != nil {
		return t.gapError(g)
	}
	return nil
}

// maxCuts bounds the frozen layers that a read of the head may touch: whoever
// would add another folds first.
const maxCuts = 12

// HasBookmark reports whether there is a bookmark of a name, with an image or without one yet.
func (t *Timeline) HasBookmark(name string) bool {
	t.facts.Lock()
	defer t.facts.Unlock()
	for _, p := range t.points {
		if p.Mark != nil && p.Mark.Name == name {
			return true
		}
	}
	for _, c := range t.cuts {
		if c.mark != nil && c.mark.Name == name {
			return true
		}
	}
	return false
}

// Marked reports whether there is a bookmark at a position, with an image, without one yet, or with one that cannot be read.
func (t *Timeline) Marked(pos tidemark.Position) bool {
	t.facts.Lock()
	defer t.facts.Unlock()
	if i := t.firstPointFrom(pos); i < len(t.points) && t.points[i].Position == pos && t.points[i].Mark != nil {
		return true
	}
	return t.lost[pos] != nil || slices.ContainsFunc(t.cuts, func(c *cut) bool { return c.pos == pos && c.mark != nil })
}

// cut freezes the top layers at a new record, and makes the record durable.
func (t *Timeline) cut(m *Mark) (*cut, error) { return t.cutAt(m, 0) }

// cutAt is cut for a record of a time, if that is not 0.
func (t *Timeline) cutAt(m *Mark, at int64) (*cut, error) {
	payload := []byte(nil)
	if m != nil {
		var err error
		if payload, err = json.Marshal(m); err != nil {
			return nil, err
		}
	}
	if err := t.makeRoom(); err != nil {
		return nil, err
	}
	c, err := t.freeze(m, payload, at)
	if err != nil {
		return nil, t.writeError("mark a point", err)
	}
	if err := t.journal.Sync(); err != nil {
		return nil, t.writeError("mark a point", err)
	}
	return c, nil
}

// makeRoom folds if so much is frozen that reads would suffer from more.
func (t *Timeline) makeRoom() error {
	t.facts.Lock()
	full := len(t.cuts) >= maxCuts
	t.facts.Unlock()
	if !full {
		return nil
	}
	return t.Fold(context.Background())
}

// freeze holds all writers for as long as it takes to append one record and replace the top layers.
func (t *Timeline) freeze(m *Mark, payload []byte, at int64) (*cut, error) {
	var c *cut
	err := t.withRoom(func() (err error) {
		t.mu.Lock()
		defer t.mu.Unlock()
		c, err = t.freezeHeld(m, payload, at)
		return err
	})
	return c, err
}

// asBefore is a time in the past: the journal takes the first that is left, that of the record before.
const asBefore = 1

// freezeHeld is freeze for a caller that holds mu.
func (t *Timeline) freezeHeld(m *Mark, payload []byte, at int64) (*cut, error) {
	r := journal.Record{Kind: journal.Bookmark, Payload: payload, Time: at}
	if t.fed.Load() {
		r.Time = asBefore // what was written meanwhile, and is on its way, is not older than this record
	}
	if m != nil && m.Time != 0 {
		r.Time = m.Time
	}
	place, err := t.journal.Append(&r)
	if err != nil {
		return nil, err
	}
	c := &cut{pos: tidemark.Position(r.Pos), time: r.Time, mark: m, layers: make([]*layer, len(t.disks)), fedSeq: t.fedSeq.Load()}
	t.facts.Lock()
	defer t.facts.Unlock()
	for i, d := range t.disks {
		c.layers[i] = d.freezeTop(place.Segment.Number())
	}
	c.bytes = t.sinceCut.Swap(0)
	t.cutSegment.Store(place.Segment.Number())
	t.cuts = append(t.cuts, c)
	return c, nil
}

// freezeTop puts a new top layer over the present one and returns that, or nil if it is empty.
func (d *Disk) freezeTop(segment uint64) *layer {
	v := d.head.Load()
	top := v.layers[0]
	if top.blocks.Load() == 0 {
		return nil
	}
	next := *v
	next.layers = append([]*layer{newLayer(d.size, segment)}, v.layers...)
	d.head.Store(&next)
	return top
}

// saveState makes the state durable. The caller holds facts.
func (t *Timeline) saveState() error {
	t.state.Ran = t.Ran()
	t.state.Stored += t.stored.Swap(0)
	data, err := seal(&t.state)
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(t.set.o.FS, t.set.o.FS.PathJoin(t.dir, "state"), data); err != nil {
		return fmt.Errorf("save the state of %s: %w", t.desc.Name, err)
	}
	return nil
}

// Window returns for how long any point can be recovered.
func (t *Timeline) Window() Window {
	t.facts.Lock()
	defer t.facts.Unlock()
	return t.state.Window
}

// SetWindow changes for how long any point can be recovered.
func (t *Timeline) SetWindow(w Window) error {
	t.facts.Lock()
	defer t.facts.Unlock()
	old := t.state.Window
	t.state.Window = w
	if err := t.saveState(); err != nil {
		t.state.Window = old
		return err
	}
	t.set.askFold(t) // which trims to it
	return nil
}

// base returns the images that the head stands on. The caller holds facts.
func (t *Timeline) base() []measured {
	images := make([]measured, len(t.state.Disks))
	for i, d := range t.state.Disks {
		images[i] = d.measured
	}
	return images
}
