package survive

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"

	"tidemark"
	"tidemark/capture"
	"tidemark/timeline"
)

// ledger is a copy of what came through the wire for a timeline, made right before the timeline got it: the changes in their order,
// and between which positions of the timeline each lies.
type ledger struct {
	line   *timeline.Timeline
	record func(*timeline.Feed, *capture.Change) error // what gives a change to the timeline; nil: its feed does

	cut atomic.Int64 // behind so many changes more the connection ends, if it is more than 0

	mu      sync.Mutex
	entries []entered
	marks   []marked
	whole   bool   // the disks came through as they were
	gaps    string // why something was missing after that
}

// entered is a change, and where the timeline was before and after it.
type entered struct {
	capture.Change
	before, after tidemark.Position
	by            *deed
}

// marked is a bookmark of a stream: behind so many changes.
type marked struct {
	name    string
	changes int
}

// feed is the timeline's, which the ledger keeps account of.
type feed struct {
	*timeline.Feed
	l *ledger
}

func (f feed) Apply(list []capture.Change) error {
	for i := range list {
		if err := f.l.apply(f.Feed, &list[i]); err != nil {
			return err
		}
		if f.l.cut.Add(-1) == 0 {
			return errCut
		}
	}
	return nil
}

// errCut ends a connection between two changes that came together.
var errCut = errors.New("it is cut on purpose")

// apply gives one change to the timeline, and enters it if that took it.
func (l *ledger) apply(f *timeline.Feed, c *capture.Change) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := entered{Change: *c}
	e.Data = bytes.Clone(c.Data)
	e.before, _ = l.line.Head()
	if err := l.give(f, c); err != nil {
		return err
	}
	e.after, _ = l.line.Head()
	if l.whole {
		l.entries = append(l.entries, e)
	}
	return nil
}

func (l *ledger) give(f *timeline.Feed, c *capture.Change) error {
	if l.record != nil && l.whole {
		if err := c.Own(); err != nil { // lies are told of a copy
			return err
		}
		return l.record(f, c)
	}
	return f.Apply([]capture.Change{*c})
}

func (f feed) Lose(since int64, why string) error {
	f.l.mu.Lock()
	if f.l.whole {
		f.l.gaps += why + "; "
	}
	f.l.mu.Unlock()
	return f.Feed.Lose(since, why)
}

func (f feed) Whole() error {
	f.l.mu.Lock()
	defer f.l.mu.Unlock()
	f.l.whole = true
	return f.Feed.Whole()
}

func (f feed) Bookmark(m capture.Mark) error {
	f.l.mu.Lock()
	defer f.l.mu.Unlock()
	_, err := f.Feed.Bookmark(m)
	f.l.marks = append(f.l.marks, marked{m.Name, len(f.l.entries)})
	return err
}

// soFar returns what came until now. It stays as it is.
func (l *ledger) soFar() []entered {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.entries[:len(l.entries):len(l.entries)]
}

// isWhole reports whether the disks came through as they were.
func (l *ledger) isWhole() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.whole
}

// at returns how many changes a position is behind: at least so many, and at most so many. They differ where
// the timeline has appended something of its own beside a change.
func (l *ledger) at(pos tidemark.Position) (least, most int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	least, _ = slices.BinarySearchFunc(l.entries, pos, func(e entered, p tidemark.Position) int { return cmp.Compare(e.after, p+1) })
	most, _ = slices.BinarySearchFunc(l.entries, pos, func(e entered, p tidemark.Position) int { return cmp.Compare(e.before, p) })
	return least, most
}

// settle finds the deed that each change is of, by place, bytes and time, and holds that the ledger is one of the orders that
// the disk's promise allows: every deed is there, once and whole, and none behind one that began after it was answered.
func (l *ledger) settle(w *witness) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gaps != "" {
		return fmt.Errorf("the timeline lacks something: %s", l.gaps)
	}
	deeds := w.noted()
	parts := partsOf(deeds)
	for i := range l.entries {
		e := &l.entries[i]
		if e.by = parts.take(&e.Change); e.by == nil {
			return fmt.Errorf("change %d, %d bytes at %d of disk %d, is nothing that was written then", i+1, e.Len, e.Off, e.Disk)
		}
		e.by.last = i + 1
		if e.by.first == 0 {
			e.by.first = i + 1
		}
	}
	if d := parts.left(deeds); d != nil {
		return fmt.Errorf("%v never came", d)
	}
	return l.checkOrder()
}

// checkOrder holds that the ledger's order is one of the witness's.
func (l *ledger) checkOrder() error {
	var latest *deed // of those before, who began last
	for i, e := range l.entries {
		if latest != nil && e.by.before(latest.stretch) {
			return fmt.Errorf("%v was answered before %v began, and comes behind it", e.by, latest)
		}
		if latest == nil || e.by.begun > latest.begun {
			latest = e.by
		}
		if i > 0 && e.Time < l.entries[i-1].Time {
			return fmt.Errorf("the time of change %d is before that of the one before", i+1)
		}
	}
	return nil
}

// parts are the changes that deeds are made of, which were not found yet.
type parts struct {
	seed maphash.Seed
	of   map[part][]*deed
	open map[*deed]int
}

// part is what tells one change from others, but for its time.
type part struct {
	disk   int
	off, n int64
	sum    uint64
}

// partsOf cuts deeds as a tap does.
func partsOf(deeds []*deed) *parts {
	p := &parts{seed: maphash.MakeSeed(), of: map[part][]*deed{}, open: map[*deed]int{}}
	for _, d := range deeds {
		if d.flush {
			continue
		}
		_ = capture.Split(d.off, d.n, func(off, n int64) error {
			var data []byte
			if d.data != nil {
				data = d.data[off-d.off : off-d.off+n]
			}
			k := p.part(d.disk, off, n, data)
			p.of[k] = append(p.of[k], d)
			p.open[d]++
			return nil
		})
	}
	return p
}

// part tells a change. One that writes zeros is one that discards: a tap sends no zeros.
func (p *parts) part(disk int, off, n int64, data []byte) part {
	k := part{disk: disk, off: off, n: n}
	if slices.ContainsFunc(data, func(b byte) bool { return b != 0 }) {
		k.sum = maphash.Bytes(p.seed, data) | 1
	}
	return k
}

// take finds the deed that a change is of. Of several that it may be of, that is the one that was answered first: the others can have
// later ones.
func (p *parts) take(c *capture.Change) *deed {
	k := p.part(int(c.Disk), c.Off, c.Len, c.Data)
	at := -1
	for i, d := range p.of[k] {
		then := d.from <= c.Time && c.Time <= d.to && d.answered != 0
		if then && (at < 0 || d.answered < p.of[k][at].answered) {
			at = i
		}
	}
	if at < 0 {
		return nil
	}
	d := p.of[k][at]
	p.of[k] = slices.Delete(p.of[k], at, at+1)
	p.open[d]--
	return d
}

// left returns a deed that not all of was found.
func (p *parts) left(deeds []*deed) *deed {
	for _, d := range deeds {
		if p.open[d] > 0 {
			return d
		}
	}
	return nil
}

// byLedger returns the writes and discards among deeds in the order in which the ledger has them.
func byLedger(deeds []*deed) []*deed {
	list := slices.DeleteFunc(slices.Clone(deeds), func(d *deed) bool { return d.flush })
	slices.SortFunc(list, func(a, b *deed) int { return cmp.Compare(a.last, b.last) })
	return list
}

// allows holds what is shown for a time, which is the first so many changes of the ledger, to the promise: every write that was answered
// before is there, and none that began after it.
func allows(deeds []*deed, changes int, when int64) error {
	for _, d := range deeds {
		switch {
		case d.flush:
		case d.to < when && d.last > changes:
			return fmt.Errorf("%v was answered before, and is not there", d)
		case d.from > when && d.first <= changes:
			return fmt.Errorf("%v began after it, and is there", d)
		}
	}
	return nil
}
