// Package block says what a disk is: an array of bytes that can be read and
// written at any offset, and made durable on request.
//
// [Reader] and [Device] are the two interfaces that everything composes on: an
// image is a Reader, the head of a timeline is a Device, an NBD export shows
// either. Powers that only some disks have are separate small interfaces
// ([Zeroer], [Trimmer], [Extenter], [Prefetcher]), found by type assertion; the functions of the same
// names fall back to something correct where a disk lacks the power.
//
// All methods may be called concurrently. Concurrent calls that touch the same
// bytes, one of them a write, may see either content, as on any disk, but never
// anything else.
package block

import (
	"errors"
	"fmt"
	"io"
)

// Errors that a disk may answer with.
var (
	// ErrBounds: the range is not within the disk.
	ErrBounds = errors.New("range outside the disk")
	// ErrReadOnly: the disk cannot be written.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrNoSpace: there is no room for the write; nothing of it is promised.
	ErrNoSpace = errors.New("no space left for writes")
)

// BlockSize is the grain, in bytes, that all disks keep changes at. Writes of
// any offset and length are allowed; those aligned to it are cheapest.
const BlockSize = 4096

// Reader is a disk that can be read.
type Reader interface {
	// ReadAt fills p from offset off. Unlike io.ReaderAt it never reads less
	// than len(p): it returns len(p) and nil, or an error and unspecified p.
	ReadAt(p []byte, off int64) (int, error)
	// Size is the length of the disk in bytes.
	Size() int64
}

// Device is a disk that can be written.
//
// A write or discard is visible to reads as soon as the call returned, and
// durable once a Flush that began later returned nil. After a failed Flush
// every later write and Flush fails too: a device never forgets a failure.
type Device interface {
	Reader
	// WriteAt writes all of p at off. It keeps no reference to p.
	WriteAt(p []byte, off int64) (int, error)
	// Flush returns when all writes that completed before it began are durable.
	Flush() error
	// Discard makes [off, off+n) read as zeros and gives its space back.
	Discard(off, n int64) error
}

// Zeroer is a disk that can write zeros while it keeps the space allocated.
type Zeroer interface {
	// Zero makes [off, off+n) read as zeros without making a hole.
	Zero(off, n int64) error
}

// Trimmer is a disk that tells a client's discard, after which a range may hold anything, from zeros that
// a client wrote.
type Trimmer interface {
	// Trim takes note that nobody needs [off, off+n).
	Trim(off, n int64) error
}

// Extent is a run of bytes that are all allocated or all a hole.
type Extent struct {
	Off, Len int64
	// Hole: the bytes read as zeros and take no space.
	Hole bool
}

// Extenter is a disk that knows which of its parts are holes.
type Extenter interface {
	// Extents calls fn for consecutive extents that together cover exactly
	// [off, off+n), in order, until fn returns false. A hole always reads as zeros; an extent that
	// is not called a hole may still happen to.
	Extents(off, n int64, fn func(Extent) bool) error
}

// Prefetcher is a disk that can bring a range nearer before it is read.
type Prefetcher interface {
	// Prefetch is a hint: it reports no error and may do nothing.
	Prefetch(off, n int64)
}

// Extents lists the extents of [off, off+n) of r, as one allocated extent if r cannot tell.
func Extents(r Reader, off, n int64, fn func(Extent) bool) error {
	if err := Check(r, off, n); err != nil {
		return err
	}
	if e, ok := r.(Extenter); ok {
		return e.Extents(off, n, fn)
	}
	if n > 0 {
		fn(Extent{Off: off, Len: n})
	}
	return nil
}

// Check returns an error that wraps [ErrBounds] unless [off, off+n) lies within r.
func Check(r Reader, off, n int64) error {
	if size := r.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: offset %d length %d, disk has %d bytes", ErrBounds, off, n, size)
	}
	return nil
}

// ReadOnly returns d without the power to write.
func ReadOnly(d Reader) Reader { return readOnly{d} }

type readOnly struct{ Reader }

func (r readOnly) Extents(off, n int64, fn func(Extent) bool) error {
	return Extents(r.Reader, off, n, fn)
}

func (r readOnly) Prefetch(off, n int64) {
	if p, ok := r.Reader.(Prefetcher); ok {
		p.Prefetch(off, n)
	}
}

// Section returns an io.ReadSeeker over all of r, for code that wants a stream.
func Section(r Reader) *io.SectionReader { return io.NewSectionReader(r, 0, r.Size()) }
