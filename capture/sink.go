package capture

import (
	"context"
	"crypto/sha256"
	"fmt"

	"tidemark"
	"tidemark/internal/shared"
)

// Sink opens streams of changes into one timeline.
type Sink interface {
	// Open begins the stream id, or resumes it. before is of the stream that the source had open
	// last. It returns when the timeline has said how far it has come.
	//
	// m is memory that data of the stream's changes will lie in, or nil. If the sink can read it, they need not be carried there. It is the source's, which holds
	// it as long as the stream is open, and does not change what is the data of a change before that was durable; or, if the source gives the
	// stream up, ever.
	Open(ctx context.Context, id string, before Sent, m *shared.Memory) (Stream, error)
}

// Sent is what a source has sent of a stream. A timeline that has less of it has lost something: it was put back to an older state.
type Sent struct {
	// ID is the name of the stream; empty: there was none.
	ID string
	// Durable is how many of its changes were acknowledged as durable ([Stream.Sync]); fewer, if the source has not kept all of that.
	Durable uint64
}

// Mark is a bookmark on its way to a timeline, and what it says of its point there.
type Mark struct {
	Name        string               `json:"name"`
	Consistency tidemark.Consistency `json:"consistency"`
	Labels      map[string]string    `json:"labels,omitempty"`
	// ID tells a mark that a stream brings a second time from another one of the same name.
	ID string `json:"id,omitempty"`
	// Time is when the disks were so, in Unix nanoseconds; 0: when the timeline gets it.
	Time int64 `json:"time,omitempty"`
}

// Sample is what the source of a stream has at a place of a disk, between the changes before and after it.
type Sample struct {
	Disk uint16 // number of the disk in its timeline
	Off  int64  // bytes
	Len  int64  // bytes, at most MaxChange
	Sum  [sha256.Size]byte
}

// SampleOf is the sample of data at an offset.
func SampleOf(disk uint16, off int64, data []byte) Sample {
	return Sample{Disk: disk, Off: off, Len: int64(len(data)), Sum: sha256.Sum256(data)}
}

// Check returns an error that wraps [ErrChange] unless a disk of size bytes has the place.
func (s *Sample) Check(size int64) error {
	if s.Off < 0 || s.Len <= 0 || s.Len > MaxChange || s.Off > size-s.Len {
		return fmt.Errorf("%w: a sample of %d bytes at %d, of a disk of %d", ErrChange, s.Len, s.Off, size)
	}
	return nil
}

// Stream takes changes in order. One goroutine may call Sync while another calls the rest. After an
// error the stream takes no more, and has to be opened again.
type Stream interface {
	// Applied returns how many changes of the stream the timeline had when it was opened.
	Applied() uint64
	// Known reports whether the stream follows one that the timeline has, with all of its changes that were acknowledged. If
	// not, nothing is known of what its disks hold.
	Known() bool
	// Shares reports whether the sink reads the source's memory: of changes whose data lie there it wants to be told where, and [Change.Sum].
	Shares() bool
	// Apply sends the next changes. They need not be applied when it returns, and are not durable.
	// It keeps nothing of list.
	Apply(list []Change) error
	// Lose says that changes are missing from here on: since a time in Unix nanoseconds, or 0 if that is
	// not known, and why. What comes then mends that in no order of time. It may be said again where
	// the stream is resumed, as may Whole: that changes nothing if it is so.
	Lose(since int64, why string) error
	// Bookmark marks the point between the changes before and after it. After a connection
	// was lost it may come a second time.
	Bookmark(m Mark) error
	// Whole says that nothing is missing any more.
	Whole() error
	// Sample has compared what the timeline has with what the source has. If that is not the same, somebody has
	// written past the source, or the timeline is wrong; then the stream ends, and the next one is not
	// Known.
	Sample(s Sample) error
	// Sync makes durable all that was sent before, and returns how many changes of the stream that is.
	Sync() (durable uint64, err error)
	// Close ends the connection, whatever it waits for.
	Close() error
}
