package nbd

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"tidemark/block"
)

// Export is a disk under a name.
type Export struct {
	// Name is what clients ask for, at most 4096 bytes of UTF-8 without NUL.
	Name string
	// Description is shown by clients to humans; same limits.
	Description string
	// Device is the disk. It is writable if it is a [block.Device] and ReadOnly
	// is false. Its other powers ([block.Extenter], [block.Zeroer], [block.Trimmer],
	// [block.Prefetcher], [TryReader]) are found by type assertion.
	Device block.Reader
	// ReadOnly refuses writes to a device that could take them.
	ReadOnly bool
	// Idle, if set, is called each time the last connection to the export closed.
	Idle func()
	// Release, if set, is called once: when the export was removed from its
	// [Table] and no connection uses it any more. The device may be closed then.
	Release func()
}

// TryReader is a disk that can tell without waiting whether it has a range in
// memory. Reads that it serves are answered inline; the others go to a worker,
// and requests behind them go on.
type TryReader interface {
	// TryReadAt fills p from offset off and returns true if that takes no
	// waiting; false, with unspecified p, if it might. Without decode it must not
	// take long either: other requests wait behind it. An error is final.
	TryReadAt(p []byte, off int64, decode bool) (ok bool, err error)
}

// writable returns the device to write to, nil if the export is read-only.
func (e *Export) writable() block.Device {
	if e.ReadOnly {
		return nil
	}
	d, _ := e.Device.(block.Device)
	return d
}

func (e *Export) check() error {
	switch {
	case e.Device == nil:
		return fmt.Errorf("%w %q: no device", ErrBadExport, e.Name)
	case !validText(e.Name) || !validText(e.Description):
		return fmt.Errorf("%w: name and description are at most %d bytes of UTF-8 without NUL", ErrBadExport, maxName)
	}
	return nil
}

func validText(s string) bool {
	return len(s) <= maxName && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// Info names an export for a listing.
type Info struct {
	Name, Description string
}

// Exports knows exports by name. All methods may be called concurrently.
type Exports interface {
	// Open finds an export and holds it for one connection until release is
	// called, which happens exactly once. The empty name asks for the default
	// export. An error that wraps [ErrUnknownExport] says there is none; the
	// text of any other error is shown to the client.
	Open(name string) (e *Export, release func(), err error)
	// List returns the exports that a stranger may know of.
	List() []Info
}

// Table is an [Exports] that counts who uses what.
type Table struct {
	mu sync.Mutex
	m  map[string]*entry // guarded by mu
}

// entry is an export with its users; the fields are guarded by Table.mu.
type entry struct {
	*Export
	users   int
	removed bool
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{m: map[string]*entry{}} }

// Add makes e known. It fails with [ErrBadExport] or [ErrExportExists] and then
// changes nothing. The export must not be changed afterwards.
func (t *Table) Add(e *Export) error {
	if err := e.check(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.m[e.Name]; ok {
		return fmt.Errorf("%w: %q", ErrExportExists, e.Name)
	}
	t.m[e.Name] = &entry{Export: e}
	return nil
}

// Remove makes the export unknown to new connections. Those that use it go on;
// Release is called when the last one closed, or before Remove returns if there
// is none. It fails with [ErrUnknownExport]. See [Server.Disconnect].
func (t *Table) Remove(name string) error {
	t.mu.Lock()
	e, ok := t.m[name]
	if !ok {
		t.mu.Unlock()
		return fmt.Errorf("%w: %q", ErrUnknownExport, name)
	}
	delete(t.m, name)
	e.removed = true
	unused := e.users == 0
	t.mu.Unlock()
	if unused && e.Release != nil {
		e.Release()
	}
	return nil
}

// Users returns how many connections use the export; 0 if there is none of that name.
func (t *Table) Users(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.m[name]; ok {
		return e.users
	}
	return 0
}

// Open implements [Exports]. The empty name stands for an export of that name
// or, failing that, for the only export there is.
func (t *Table) Open(name string) (*Export, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.m[name]
	if !ok && name == "" && len(t.m) == 1 {
		for _, e = range t.m {
			ok = true
		}
	}
	if !ok {
		return nil, nil, fmt.Errorf("%w: %q", ErrUnknownExport, name)
	}
	e.users++
	return e.Export, func() { t.release(e) }, nil
}

func (t *Table) release(e *entry) {
	t.mu.Lock()
	e.users--
	idle, last := e.users == 0, e.users == 0 && e.removed
	t.mu.Unlock()
	if idle && e.Idle != nil {
		e.Idle()
	}
	if last && e.Release != nil {
		e.Release()
	}
}

// List implements [Exports]: all exports, by name.
func (t *Table) List() []Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := make([]Info, 0, len(t.m))
	for _, e := range t.m {
		l = append(l, Info{e.Name, e.Description})
	}
	slices.SortFunc(l, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return l
}
